"""For people who stay on Transformers: `generate` on its modules, its pipelines, its streamers."""
