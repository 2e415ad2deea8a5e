"""Only whole checkpoints count, and pruning keeps what a run needs."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from spec2seq.errors import UsageError
from spec2seq.training.checkpoints import best_checkpoint, mark_whole, prune, whole_checkpoints
from spec2seq.training.clock import Clock
from spec2seq.training.recipe import ModelShape, TrainingConfig
from spec2seq.training.shapes import new_model
from spec2seq.training.warm_start import spaced, start_from


def _checkpoint(folder: Path, step: int, score: float | None = None, whole: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    save_file({"weight": torch.full((2,), float(step))}, path / "model.safetensors")
    (path / "optimizer.pt").write_bytes(b"state")
    if whole:
        mark_whole(path, Clock(TrainingConfig(max_steps=10), 1, step=step, tokens=10 * step), score)
    return path


def test_half_written_checkpoints_do_not_count_and_are_pruned(tmp_path: Path) -> None:
    for step, score in ((1, 5.0), (2, None), (10, 3.0), (11, None)):
        _checkpoint(tmp_path, step, score)
    _checkpoint(tmp_path, 12, whole=False)
    whole = whole_checkpoints(tmp_path)
    assert [(checkpoint.step, checkpoint.tokens) for checkpoint in whole] == [(1, 10), (2, 20), (10, 100), (11, 110)]
    assert best_checkpoint(whole).step == 1
    prune(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-10", "checkpoint-11"]
    assert [path.parent.name for path in tmp_path.glob("*/optimizer.pt")] == ["checkpoint-11"]


def test_a_score_that_is_no_number_is_not_the_best(tmp_path: Path) -> None:
    for step, score in ((1, float("nan")), (2, 20.0), (3, 30.0), (4, None)):
        _checkpoint(tmp_path, step, score)
    assert best_checkpoint(whole_checkpoints(tmp_path)).step == 3


def test_learning_rate_warms_up_decays_and_cools_down() -> None:
    clock = Clock(TrainingConfig(max_steps=1000, warmup_steps=100, cooldown=0.2), batches_per_epoch=100)
    factors = []
    for clock.step in range(1001):
        factors.append(clock.learning_rate_factor(clock.step))
    assert factors[49] == pytest.approx(0.5) and max(factors) == factors[99] == pytest.approx(1.0)
    assert factors[399] == pytest.approx(0.5)
    assert factors[900] == pytest.approx(0.5 * (100 / 901) ** 0.5)
    assert factors[1000] == 0.0


def test_the_nearest_limit_counts() -> None:
    clock = Clock(TrainingConfig(max_epochs=2.0, budget_minutes=10.0), 100, batches=50, seconds=60.0)
    assert clock.progress() == pytest.approx(0.25)
    clock.seconds = 300.0
    assert clock.progress() == pytest.approx(0.5, abs=0.01)


def test_a_model_with_other_heads_is_no_start(verifier) -> None:
    from transformers import AutoTokenizer

    shape = ModelShape(width=32, encoder_layers=1, decoder_layers=1, heads=8, feed_forward=64, max_positions=96)
    with pytest.raises(UsageError, match="which has 4 heads; model.heads is 8"):
        start_from(new_model(shape, AutoTokenizer.from_pretrained(verifier)), verifier)


def test_layers_of_a_shallow_start_are_evenly_spaced() -> None:
    assert [spaced(1, 6), spaced(2, 6), spaced(3, 6), spaced(6, 6)] == [[0], [0, 5], [0, 2, 5], [0, 1, 2, 3, 4, 5]]
    with pytest.raises(UsageError, match="allowed: at least the 7"):
        spaced(7, 6)
