"""The bench: every method and every peer side by side, on the same weights, lines, caps, threads and inputs."""
