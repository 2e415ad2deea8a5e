"""Trains every recipe of a folder and writes the loss of each step beside it; `accelerate launch` runs it, too."""

import json
import os
import sys
from pathlib import Path

import torch

from spec2seq.training import load_recipe, train
from spec2seq.training.trainer import Watch


def losses(recipe: Path, data: Path, out: Path) -> list[float]:
    """NLL in nats a label, of every step of the run."""
    found, log = [], Watch._log

    def spy(self, now):
        found.append(float(self.trainer.nll) / self.trainer.nll_tokens)
        log(self, now)

    Watch._log = spy
    try:
        train(load_recipe(recipe), out, data)
    finally:
        Watch._log = log
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, data = map(Path, sys.argv[1:])
    for path in sorted(folder.glob("*.yaml")):
        found = losses(path, data, folder / f"{path.stem}-together")
        path.with_suffix(f".{os.environ['RANK']}.json").write_text(json.dumps(found))
