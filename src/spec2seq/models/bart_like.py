"""BART and its relatives: biases everywhere, absolute positions, a head that is the embedding.

They differ in where they normalize and where positions come from; the table in families.py says how.
"""

import functools
import math
from typing import Any

import torch
from torch import Tensor

from spec2seq.models.architecture import Architecture, StackShape
from spec2seq.models.family import Family, NameMap, token_ids

SELF_ATTENTION = [
    ("self_qkv", [f"self_attn.{part}_proj" for part in "qkv"]),
    ("self_out", ["self_attn.out_proj"]),
    ("self_norm", ["self_attn_layer_norm"]),
]
CROSS_ATTENTION = [
    ("cross_query", ["encoder_attn.q_proj"]),
    ("cross_key_value", ["encoder_attn.k_proj", "encoder_attn.v_proj"]),
    ("cross_out", ["encoder_attn.out_proj"]),
    ("cross_norm", ["encoder_attn_layer_norm"]),
]
FEED_FORWARD = [("ffn_in", ["fc1"]), ("ffn_out", ["fc2"]), ("ffn_norm", ["final_layer_norm"])]


def bart_like(
    *, offset: int | None, norms: str = "", head: str = "lm_head.weight", computed: bool = False, **more: Any
) -> Family:
    """A family.

    Args:
        offset: the row of the position table where counting starts; None: behind the padding id, as in fairseq.
        norms: "embedding" (of embedding and position together), "layer" (before each layer's parts rather than
            after, and at the end), or both with a space.
        head: the name of the head's weight.
        computed: Transformers' class computes the position table, and padding has no place in it.
        more: fields of `Family`.
    """
    shape = dict(offset=offset, embedding_norm="embedding" in norms, pre_norm="layer" in norms, skip_padding=computed)
    return Family(
        functools.partial(_architecture, **shape),
        functools.partial(names, head=head, positions=not computed),
        positions=_sinusoids if computed else None,
        **more,
    )


def _architecture(config: Any, *, offset: int | None, embedding_norm: bool, pre_norm: bool, skip_padding: bool):
    source = getattr(config, "src_vocab_size", config.vocab_size)
    target = getattr(config, "decoder_vocab_size", None) or config.vocab_size
    offset = config.pad_token_id + 1 if offset is None else offset
    return Architecture(
        vocabulary=target,
        source_vocabulary=None if source == target else source,
        width=config.d_model,
        encoder=stack(config, "encoder"),
        decoder=stack(config, "decoder"),
        activation=config.activation_function,
        embedding_norm=embedding_norm,
        pre_norm=pre_norm,
        final_norm=pre_norm,
        embedding_scale=math.sqrt(config.d_model) if config.scale_embedding else 1.0,
        position_rows=config.max_position_embeddings + offset,
        position_offset=offset,
        skip_padding=skip_padding,
        **token_ids(config),
    )


def stack(config: Any, side: str) -> StackShape:
    """The shape of "encoder" or "decoder"."""
    heads = getattr(config, f"{side}_attention_heads")
    return StackShape(
        getattr(config, f"{side}_layers"), heads, config.d_model // heads, getattr(config, f"{side}_ffn_dim")
    )


def names(architecture: Architecture, head: str, positions: bool) -> NameMap:
    """Transformers' tensors by our parameters, with or without the position tables."""
    found: NameMap = {
        "source_embedding": ("model.encoder.embed_tokens.weight",),
        "target_embedding": ("model.decoder.embed_tokens.weight",),
        "head.weight": (head,),
    }
    for side, shape in (("encoder", architecture.encoder), ("decoder", architecture.decoder)):
        if positions:
            found[f"{side}.positions"] = (f"model.{side}.embed_positions.weight",)
        parts = SELF_ATTENTION + (CROSS_ATTENTION if side == "decoder" else []) + FEED_FORWARD
        for kind in ("weight", "bias"):
            if architecture.embedding_norm:
                found[f"{side}.embedding_norm.{kind}"] = (f"model.{side}.layernorm_embedding.{kind}",)
            if architecture.final_norm:
                found[f"{side}.final_norm.{kind}"] = (f"model.{side}.layer_norm.{kind}",)
            for index in range(shape.layers):
                for ours, theirs in parts:
                    prefix = f"model.{side}.layers.{index}"
                    found[f"{side}.layers.{index}.{ours}.{kind}"] = tuple(f"{prefix}.{t}.{kind}" for t in theirs)
    return found


def _sinusoids(architecture: Architecture) -> Tensor:
    """tensor2tensor's table `[rows, width]`: sines, then cosines (Vaswani et al. 2017, section 3.5, has them
    interleaved and another last exponent); padding has zeros. float32, as M2M100 computes it."""
    half = architecture.width // 2
    frequencies = torch.exp(torch.arange(half).float() * -(math.log(10000) / (half - 1)))
    angles = torch.arange(architecture.position_rows).float()[:, None] * frequencies
    table = torch.zeros(architecture.position_rows, architecture.width, dtype=torch.float32)
    table[:, :half], table[:, half : 2 * half] = angles.sin(), angles.cos()
    table[architecture.pad_token_id] = 0
    return table
