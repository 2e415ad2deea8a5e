"""T5 and its relatives: norms before each part and by root mean square, no biases, relative positions, unscaled
attention, a feed-forward that may be gated (v1.1)."""

import functools
from typing import Any

from spec2seq.models.architecture import Architecture, StackShape
from spec2seq.models.family import Family, NameMap, token_ids


def t5_like(*, per_layer: bool = False, scaled: bool = True) -> Family:
    """A family.

    Args:
        per_layer: each layer has relative biases of its own, not all those of the first.
        scaled: the head's input is scaled, if the configuration says that the head is tied.
    """
    architecture = functools.partial(_architecture, per_layer=per_layer, scaled=scaled)
    return Family(architecture, _names, "shared.weight", half=False)


def _architecture(config: Any, per_layer: bool, scaled: bool) -> Architecture:
    gated = config.feed_forward_proj.startswith("gated-")
    activation = config.feed_forward_proj.removeprefix("gated-")
    scaled = scaled and getattr(config, "scale_decoder_outputs", config.tie_word_embeddings)
    stack = (config.num_heads, config.d_kv, config.d_ff)
    return Architecture(
        vocabulary=config.vocab_size,
        width=config.d_model,
        encoder=StackShape(config.num_layers, *stack),
        decoder=StackShape(config.num_decoder_layers or config.num_layers, *stack),
        activation="gelu_new" if gated and activation == "gelu" else activation,
        gated=gated,
        bias=False,
        rms_norm=True,
        norm_eps=config.layer_norm_epsilon,
        pre_norm=True,
        final_norm=True,
        attention_scale=1.0,
        logit_scale=config.d_model**-0.5 if scaled else 1.0,
        relative_buckets=config.relative_attention_num_buckets,
        relative_max_distance=config.relative_attention_max_distance,
        relative_per_layer=per_layer,
        **token_ids(config),
    )


def _names(architecture: Architecture) -> NameMap:
    names: NameMap = {
        "source_embedding": ("encoder.embed_tokens.weight",),
        "target_embedding": ("decoder.embed_tokens.weight",),
        "head.weight": ("lm_head.weight",),
    }
    wi = ("wi_0", "wi_1") if architecture.gated else ("wi",)
    for side, shape in (("encoder", architecture.encoder), ("decoder", architecture.decoder)):
        tables = range(shape.layers if architecture.relative_per_layer else 1)
        bias = "layer.0.SelfAttention.relative_attention_bias.weight"
        names[f"{side}.relative_bias"] = tuple(f"{side}.block.{index}.{bias}" for index in tables)
        names[f"{side}.final_norm.weight"] = (f"{side}.final_layer_norm.weight",)
        last = 2 if side == "decoder" else 1
        parts = [
            ("self_qkv", [f"0.SelfAttention.{p}" for p in "qkv"]),
            ("self_out", ["0.SelfAttention.o"]),
            ("self_norm", ["0.layer_norm"]),
            ("ffn_in", [f"{last}.DenseReluDense.{w}" for w in wi]),
            ("ffn_out", [f"{last}.DenseReluDense.wo"]),
            ("ffn_norm", [f"{last}.layer_norm"]),
        ]
        if side == "decoder":
            parts += [
                ("cross_query", ["1.EncDecAttention.q"]),
                ("cross_key_value", ["1.EncDecAttention.k", "1.EncDecAttention.v"]),
                ("cross_out", ["1.EncDecAttention.o"]),
                ("cross_norm", ["1.layer_norm"]),
            ]
        for index in range(shape.layers):
            for ours, theirs in parts:
                prefix = f"{side}.block.{index}.layer"
                names[f"{side}.layers.{index}.{ours}.weight"] = tuple(f"{prefix}.{t}.weight" for t in theirs)
    return names
