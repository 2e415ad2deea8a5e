"""Random checkpoints under the names of fairseq 1.0, and the drafter written down once more, straight from them."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WIDTH, INNER, HEADS, LAYERS = 16, 24, 4, 2


def layer_names(side: str, index: int, width: int = WIDTH, inner: int = INNER) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one layer."""
    shapes: dict[str, tuple[int, ...]] = {}
    prefix = f"{side}.layers.{index}"
    for attention in ("self_attn", "encoder_attn")[: 1 + (side == "decoder")]:
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            shapes[f"{prefix}.{attention}.{part}.weight"] = (width, width)
            shapes[f"{prefix}.{attention}.{part}.bias"] = (width,)
        shapes |= {f"{prefix}.{attention}_layer_norm.{kind}": (width,) for kind in ("weight", "bias")}
    shapes |= {f"{prefix}.fc1.weight": (inner, width), f"{prefix}.fc1.bias": (inner,)}
    shapes |= {f"{prefix}.fc2.weight": (width, inner), f"{prefix}.fc2.bias": (width,)}
    return shapes | {f"{prefix}.final_layer_norm.{kind}": (width,) for kind in ("weight", "bias")}


def names(kind: str, vocabulary: int, rows: int, layers: int = LAYERS, **sizes: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a `transformer`, a `block` or a `bart_base` with `rows` rows of positions."""
    width = sizes.get("width", WIDTH)
    shapes: dict[str, tuple[int, ...]] = {}
    for side in ("encoder", "decoder"):
        shapes |= {f"{side}.version": (1,), f"{side}.embed_tokens.weight": (vocabulary, width)}
        if kind == "transformer":
            shapes[f"{side}.embed_positions._float_tensor"] = (1,)
        else:
            shapes[f"{side}.embed_positions.weight"] = (rows, width)
        if kind == "bart_base":
            shapes |= {f"{side}.layernorm_embedding.{part}": (width,) for part in ("weight", "bias")}
        for index in range(layers):
            shapes |= layer_names(side, index, **sizes)
    if kind == "block":
        shapes["decoder.copy_attn.weight"] = (width, width)
    return shapes | {"decoder.output_projection.weight": (vocabulary, width)}


def random_state(kind: str, vocabulary: int, rows: int = 14, seed: int = 0, dtype=torch.float32) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    state = {name: torch.randn(shape) * 0.4 for name, shape in names(kind, vocabulary, rows).items()}
    for name in state:
        if "norm" in name and name.endswith("weight"):
            state[name] += 1.0
    for name in ("decoder.embed_tokens.weight", "decoder.output_projection.weight"):
        state[name] = state["encoder.embed_tokens.weight"]
    return {name: tensor.to(dtype) for name, tensor in state.items()}


def settings(kind: str, **more: Any) -> Namespace:
    return Namespace(
        arch=kind, encoder_attention_heads=HEADS, decoder_attention_heads=HEADS, dropout=0.1, max_source_positions=30,
        max_target_positions=40, activation_fn="relu" if kind == "transformer" else "gelu",
        no_scale_embedding=kind == "bart_base", **({"block_size": 3} if kind == "block" else {}) | more,
    )  # fmt: skip


def write(path: Path, kind: str, state: dict[str, Tensor], legacy: bool = False, **more: Any) -> Path:
    """As fairseq saves it before it had `cfg`."""
    found = {"args": settings(kind, **more), "model": state, "extra_state": {"epoch": 1}, "optimizer_history": []}
    torch.save(found, path, _use_new_zipfile_serialization=not legacy)
    return path


def write_dictionary(path: Path, vocabulary: int) -> Path:
    path.write_text("".join(f"w{index} {100 - index}\n" for index in range(4, vocabulary)), encoding="utf-8")
    return path


def old_spelling(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under the names of earlier versions."""
    old = {}
    for name, tensor in state.items():
        side = name.partition(".")[0]
        norms = ["self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"][
            :: 2 if side == "encoder" else 1
        ]
        part = name.split(".")[3] if ".layers." in name else ""
        if part in norms:
            old[name.replace(part, f"layer_norms.{norms.index(part)}")] = tensor
        elif ".q_proj." in name:
            parts = [state[name.replace("q_proj", f"{kind}_proj")] for kind in "qkv"]
            old[name.replace("q_proj.", "in_proj_")] = torch.cat(parts)
        elif not any(piece in name for piece in (".k_proj.", ".v_proj.", "output_projection")):
            old[name.replace("_float_tensor", "weights")] = tensor
    return old


def drafter_logits(state: dict[str, Tensor], source: list[int], tokens: list[int], is_mask: list[bool]) -> Tensor:
    """Logits `[length, vocabulary]` of a `block` drafter for one source (SpecDec's architecture, without batches)."""
    words = state["encoder.embed_tokens.weight"]
    first, behind = words[torch.tensor(source)], state["encoder.embed_positions.weight"][2 : 2 + len(source)]
    memory = first + behind
    for index in range(LAYERS):
        memory = _layer(state, f"encoder.layers.{index}", memory, None)
    positions = state["decoder.embed_positions.weight"][2 : 2 + len(tokens)]
    scores = (positions @ state["decoder.copy_attn.weight"].T) @ (first + behind).T
    x = torch.where(torch.tensor(is_mask)[:, None], scores.softmax(-1) @ first, words[torch.tensor(tokens)])
    for index in range(LAYERS):
        x = _layer(state, f"decoder.layers.{index}", x + positions, memory)
    return x @ words.T


def _layer(state: dict[str, Tensor], name: str, x: Tensor, memory: Tensor | None) -> Tensor:
    x = _norm(state, f"{name}.self_attn_layer_norm", x + _attention(state, f"{name}.self_attn", x, x))
    if memory is not None:
        x = _norm(state, f"{name}.encoder_attn_layer_norm", x + _attention(state, f"{name}.encoder_attn", x, memory))
    inner = _linear(state, f"{name}.fc1", x)
    inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
    return _norm(state, f"{name}.final_layer_norm", x + _linear(state, f"{name}.fc2", inner))


def _attention(state: dict[str, Tensor], name: str, x: Tensor, keys: Tensor) -> Tensor:
    q, k, v = (_linear(state, f"{name}.{part}_proj", y) for part, y in (("q", x), ("k", keys), ("v", keys)))
    size = q.shape[1] // HEADS
    heads = [slice(head * size, (head + 1) * size) for head in range(HEADS)]
    mixed = [(q[:, h] * size**-0.5 @ k[:, h].T).softmax(-1) @ v[:, h] for h in heads]
    return _linear(state, f"{name}.out_proj", torch.cat(mixed, 1))


def _linear(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def _norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    x = x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    return x * state[f"{name}.weight"] + state[f"{name}.bias"]
