"""The mean of checkpoints: arithmetic, dtypes, what is refused, and folders that load again."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spec2seq.errors import Spec2SeqError, UsageError
from spec2seq.training.averaging import average_folders, average_states


def state(value: float, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((2, 3), value, dtype=dtype), "ids": torch.tensor([1, 2])}


def test_the_mean_is_taken_in_float32_and_kept_in_the_dtype_of_the_inputs() -> None:
    mean = average_states([state(1.0), state(2.0), state(6.0)])
    assert mean["weight"].unique().tolist() == [3.0] and mean["ids"].tolist() == [1, 2]
    # In float16 the sum 60000 + 60000 would be infinite.
    half = average_states([state(60000, torch.float16), state(60000, torch.float16)])["weight"]
    assert half.dtype == torch.float16 and half.unique().tolist() == [60000.0]
    assert average_states([state(1.0), state(2.0)], dtype=torch.bfloat16)["weight"].dtype == torch.bfloat16
    tiny = average_states([state(1.0, torch.float64), state(1.0 + 1e-12, torch.float64)])["weight"]
    assert tiny[0, 0].item() == pytest.approx(1.0 + 5e-13, abs=1e-14)


def test_tied_tensors_are_averaged_once_and_inputs_stay_as_they_are() -> None:
    tables = [torch.ones(2), torch.full((2,), 3.0)]
    mean = average_states([{"a": table, "b": table} for table in tables])
    assert mean["a"].tolist() == mean["b"].tolist() == [2.0, 2.0] and tables[0].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"more": torch.ones(1)}, "state 2 differs from state 1: more is in only one"),
        ({"weight": torch.ones(3, 2)}, r"weight is \[2, 3\] of float32 and \[3, 2\] of float32"),
        ({"weight": torch.ones(2, 3).half()}, "weight is .* of float16"),
        ({"ids": torch.tensor([1, 3])}, "ids is not floating point and not equal"),
    ],
)
def test_the_first_difference_is_named(change, message) -> None:
    with pytest.raises(Spec2SeqError, match=message):
        average_states([state(1.0), state(1.0) | change])


def folder(path: Path, value: float, **config) -> Path:
    path.mkdir()
    save_file({"weight": torch.full((2, 3), value).half()}, path / "model-1-of-2.safetensors", {"format": "pt"})
    save_file({"bias": torch.full((2,), 2 * value)}, path / "model-2-of-2.safetensors", {"format": "pt"})
    (path / "config.json").write_text(json.dumps({"heads": 4, "transformers_version": str(value)} | config))
    (path / "optimizer.pt").write_bytes(b"state")
    (path / "vocab.txt").write_text(f"of {path.name}")
    return path


def test_folders_are_averaged_file_by_file(tmp_path: Path) -> None:
    made = average_folders([folder(tmp_path / name, value) for name, value in (("a", 1.0), ("b", 2.0))], tmp_path / "m")
    assert made == 2
    names = ["config.json", "model-1-of-2.safetensors", "model-2-of-2.safetensors", "vocab.txt"]
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == names
    weight = load_file(tmp_path / "m" / names[1])["weight"]
    assert weight.dtype == torch.float16 and weight.unique().tolist() == [1.5]
    assert load_file(tmp_path / "m" / names[2])["bias"].tolist() == [3.0, 3.0]
    assert (tmp_path / "m/vocab.txt").read_text() == "of a"


def test_folders_that_do_not_fit_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", 1.0), folder(tmp_path / "b", 1.0, heads=8)
    with pytest.raises(Spec2SeqError, match=r"b differs from .*a: config.json: heads is 8 and 4"):
        average_folders([a, b], tmp_path / "m")
    (b / "config.json").write_text((a / "config.json").read_text())
    save_file({"bias": torch.ones(3)}, b / "model-2-of-2.safetensors")
    with pytest.raises(Spec2SeqError, match=r"b differs from .*a: bias is \[2\]"):
        average_folders([a, b], tmp_path / "m")
    (b / "model-2-of-2.safetensors").write_bytes(b"broken")
    with pytest.raises(Spec2SeqError, match="model-2-of-2.safetensors: not readable"):
        average_folders([a, b], tmp_path / "m")
    for wrong, out, message in (([a], "m", "1 folder"), ([a, a], "b", "exists already"), ([a, tmp_path], "m", "config"),
                                ([a, tmp_path / "absent"], "m", "no readable config.json")):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            average_folders(wrong, tmp_path / out)
    (tmp_path / "config.json").write_text((a / "config.json").read_text())
    with pytest.raises(UsageError, match="no weights"):
        average_folders([a, tmp_path], tmp_path / "m")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "config.json"]
