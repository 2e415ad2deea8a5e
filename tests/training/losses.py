"""Trains every recipe of a folder and writes the loss of each step beside it, and distils; for `accelerate launch`."""

import json
import os
import sys
from pathlib import Path

import torch

from spec2seq import Seq2Seq
from spec2seq.training import load_recipe, train
from spec2seq.training.distill import Distilled, distill
from spec2seq.training.recipe import DataConfig
from spec2seq.training.trainer import Watch


def losses(recipe: Path, data: Path, out: Path) -> list[float]:
    """NLL in nats a label, of every step of the run."""
    found, log = [], Watch._log

    def spy(self, now):
        found.append(float(self.trainer.nll) / self.trainer.nll_tokens)
        log(self, now)

    Watch._log = spy
    try:
        assert train(load_recipe(recipe), out, data).folder.is_dir()  # in every process
    finally:
        Watch._log = log
    return found


def distil(verifier: Path, data: Path, out: Path) -> Distilled:
    """What the verifier writes for toy.txt, in chunks that processes can share."""
    limits = DataConfig("", "", max_tokens=16)
    return distill(Seq2Seq.from_pretrained(verifier), data / "toy.txt", out, limits, chunk_lines=16)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, data, verifier = map(Path, sys.argv[1:])
    done = distil(verifier, data, folder / "shared.jsonl")
    (folder / f"lines.{os.environ['RANK']}.json").write_text(json.dumps(done.lines))
    for path in sorted(folder.glob("*.yaml")):
        found = losses(path, data, folder / f"{path.stem}-together")
        path.with_suffix(f".{os.environ['RANK']}.json").write_text(json.dumps(found))
