"""What has to be known to repeat a measurement: versions, machine, threads, revision, command and weights."""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spec2seq.version import __version__

PACKAGES = ("torch", "transformers", "sentencepiece", "ctranslate2", "sacrebleu")


def manifest(
    command: str, models: Mapping[str, Path], dtype: str, threads: int, seeds: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """The facts of a run as JSON. `models` names folders; their weights are fingerprinted, their paths not kept."""
    import torch

    return {
        "command": command,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "revision": git_revision(),
        "versions": versions(),
        "cpu": cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "dtype": dtype,
        "threads": threads,
        "seeds": dict(seeds or {}),
        "weights": {name: fingerprint(folder) for name, folder in models.items()},
    }


def versions() -> dict[str, str]:
    """Versions of Python, this package and those of the measured packages that are installed."""
    found = {"spec2seq": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    """The processor as the system names it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def git_revision() -> str | None:
    """The commit of the source tree, with "+" if files of it were changed since; None outside of a repository."""

    def git(*arguments: str) -> str:
        here = Path(__file__).resolve().parent
        done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10)
        done.check_returncode()
        return done.stdout.strip()

    try:
        if not git("ls-files", Path(__file__).name):
            return None  # installed into somebody else's repository
        changed = git("status", "--porcelain", "--untracked-files=no", ":/src")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def fingerprint(folder: Path) -> str | None:
    """SHA-256 over the folder's safetensors files in the order of their names; None if it has none."""
    files = sorted(Path(folder).glob("*.safetensors"))
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest() if files else None
