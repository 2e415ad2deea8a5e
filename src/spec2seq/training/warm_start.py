"""First weights of a shallow model from a deep one of the same widths: its embeddings and evenly spaced layers."""

import re
from pathlib import Path
from typing import Any

import torch

from spec2seq.errors import UsageError

_LAYER = re.compile(r"(encoder|decoder)\.(?:layers|block)\.(\d+)\.")


def start_from(model: Any, folder: Path) -> None:
    """Copy weights into `model` from the trained `folder`. Raises UsageError if the folder or a width does not fit."""
    from transformers import AutoModelForSeq2SeqLM

    try:
        found = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise UsageError(f"model.start_from is {str(folder)!r}; allowed: a trained folder ({error})") from None
    for name in ("encoder_attention_heads", "decoder_attention_heads"):  # no weight's shape says it, but in T5
        there, here = (getattr(one.config, name, None) for one in (found, model))
        if there != here:
            raise UsageError(f"model.start_from is {str(folder)!r}, which has {there} heads; model.heads is {here}")
    weights, deep = model.state_dict(), found.state_dict()
    depths = {part: (_depth(weights, part), _depth(deep, part)) for part in ("encoder", "decoder")}
    for name, weight in weights.items():
        layer = _LAYER.search(name)
        source = name
        if layer:
            chosen = spaced(*depths[layer[1]])[int(layer[2])]
            source = f"{name[: layer.start(2)]}{chosen}{name[layer.end(2) :]}"
        if source in deep and name.rpartition(".")[0].endswith(("shared", "embed_tokens", "lm_head")):
            deep[source] = deep[source][: len(weight)]  # T5's tables are longer than its tokenizer's vocabulary
        if source not in deep or deep[source].shape != weight.shape:
            shape = tuple(deep[source].shape) if source in deep else "missing"
            raise UsageError(
                f"model.start_from is {str(folder)!r}: {source} is {shape} there; needed: {tuple(weight.shape)}"
            )
        weight.copy_(deep[source])


def spaced(shallow: int, deep: int) -> list[int]:
    """Which of `deep` layers the `shallow` ones begin as: first and last, and evenly between; one is the first."""
    if shallow > deep:
        raise UsageError(f"model.start_from has {deep} layers; allowed: at least the {shallow} of this model")
    return [round(index * (deep - 1) / max(1, shallow - 1)) for index in range(shallow)]


def _depth(weights: dict[str, Any], part: str) -> int:
    numbers = [int(found[2]) for name in weights if (found := _LAYER.search(name)) and found[1] == part]
    return max(numbers) + 1 if numbers else 0
