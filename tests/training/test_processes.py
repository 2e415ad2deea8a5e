"""Two processes train as one with twice the accumulation does, and share the lines that are to be distilled."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training.losses import distil, losses

from spec2seq.training.checkpoints import weights_of
from spec2seq.training.recipe import Recipe, parse_recipe
from spec2seq.training.session import recipe_yaml

STEPS = 20
TRAINING = {"max_steps": STEPS, "tokens_per_batch": 128, "learning_rate": 1e-3, "warmup_steps": 4, "threads": 1,
            "precision": "fp32", "log_seconds": 0.0, "save_minutes": 60, "average": 1}  # fmt: skip
DRAFTERS = {
    "cached": {"cached_drafter": {"block_size": 4, "feed_forward": 64, "hidden_layers": [1, 2]}},
    "paper": {"paper_drafter": {"width": 32, "heads": 4, "feed_forward": 64, "encoder_layers": 1, "decoder_layers": 1,
                                "block_size": 4, "source_positions": 32, "target_positions": 32, "dropout": 0.0,
                                "init_encoder": False}},
}  # fmt: skip


@pytest.fixture
def recipes(values, verifier) -> dict[str, Recipe]:
    evaluation = {"dev_lines": 2, "max_new_tokens": 8, "every_minutes": 60}
    values["data"]["max_tokens"] = 100
    made = {"model": parse_recipe(values | {"training": TRAINING, "evaluation": evaluation, "name": "model"})}
    data = {"train": "toy.jsonl", "dev": "toy.jsonl", "source": "source", "target": "target", "target_tokens": "tokens",
            "max_tokens": 24, "max_ratio": 1000.0}  # fmt: skip
    for name, section in DRAFTERS.items():
        ((kind, sizes),) = section.items()
        made[name] = parse_recipe({"name": name, kind: sizes | {"verifier": str(verifier)}, "data": data,
                                   "training": TRAINING, "evaluation": evaluation})  # fmt: skip
    return made


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this PyTorch has no gloo, which joins CPUs")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the processes would share one GPU")
def test_two_processes_do_what_one_does(recipes, data, verifier, texts, tmp_path):
    folder, here = tmp_path / "recipes", Path(__file__).resolve()
    folder.mkdir()
    for file in data.glob("*.tsv"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "toy.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    lines = distil(verifier, tmp_path, tmp_path / "toy.jsonl").lines
    alone = {}
    for name, recipe in recipes.items():
        (folder / f"{name}.yaml").write_text(recipe_yaml(recipe), encoding="utf-8")
        twice = tmp_path / f"{name}.yaml"
        training = dataclasses.replace(recipe.training, gradient_accumulation=2)
        twice.write_text(recipe_yaml(dataclasses.replace(recipe, training=training)), encoding="utf-8")
        alone[name] = losses(twice, tmp_path, folder / f"{name}-alone")
        assert len(alone[name]) == STEPS and alone[name][0] > 0
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
              "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
              str(here.with_name("losses.py")), str(folder), str(tmp_path), str(verifier)]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr[-4000:]
    assert (folder / "shared.jsonl").read_bytes() == (tmp_path / "toy.jsonl").read_bytes()
    shares = [json.loads((folder / f"lines.{rank}.json").read_text()) for rank in (0, 1)]
    assert sum(shares) == lines and min(shares) > 0
    for name, wanted in alone.items():
        for rank in (0, 1):
            found = json.loads((folder / f"{name}.{rank}.json").read_text())
            assert found == pytest.approx(wanted, rel=0, abs=1e-4), (name, rank)
        one, two = (weights_of(folder / f"{name}-{how}" / "final") for how in ("alone", "together"))
        for key, weight in one.items():
            torch.testing.assert_close(two[key].float(), weight.float(), rtol=1e-2, atol=2e-3)
