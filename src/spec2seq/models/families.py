"""Per family: which configuration fields and weight names become our layers. Nothing else knows a family's name.

Each of our parameters is the concatenation (dimension 0) of one or more of Transformers' tensors, so the same
table loads and saves.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spec2seq.errors import Spec2SeqError
from spec2seq.models.architecture import Architecture, StackShape
from spec2seq.models.encoder_decoder import EncoderDecoder

NameMap = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Family:
    """How one of Transformers' model types maps onto `EncoderDecoder`. `shared` is the third name that it ties both
    embeddings to, if it has one."""

    architecture: Callable[[Any], Architecture]
    names: Callable[[Architecture], NameMap]
    shared: str | None = None


def load(config: Any, state: dict[str, Tensor], where: str) -> EncoderDecoder:
    """Our model with the weights of a Transformers state dict. Raises Spec2SeqError for another family."""
    family = family_of(config, where)
    if config.model_type == "t5" and any(tensor.dtype == torch.float16 for tensor in state.values()):
        raise Spec2SeqError(f"{where}: T5 overflows in float16; use bfloat16 or float32")
    architecture = family.architecture(config)
    logit_bias = state.get("final_logits_bias")
    if logit_bias is not None and not logit_bias.any():
        logit_bias = None  # an addition over the whole vocabulary for nothing
    names = family.names(architecture)
    ours = {name: torch.cat([state[part] for part in parts]) for name, parts in names.items()}
    shared_table = torch.equal(ours["source_embedding"], ours["target_embedding"])
    tied_head = torch.equal(ours["head.weight"], ours["target_embedding"])
    with torch.device("meta"):
        model = EncoderDecoder(architecture, tied_head=tied_head, logit_bias=logit_bias is not None)
    if logit_bias is not None:
        ours["head.bias"] = logit_bias.flatten()
    model.load_state_dict(ours, assign=True)
    if shared_table:
        model.target_embedding = model.source_embedding
    if tied_head:
        model.head.weight = model.target_embedding
    return model.requires_grad_(False)


def export(model: EncoderDecoder, config: Any) -> dict[str, Tensor]:
    """The state dict that Transformers' own class loads."""
    family = family_of(config, "this model")
    ours = model.state_dict()
    theirs: dict[str, Tensor] = {}
    for name, parts in family.names(model.architecture).items():
        for part, tensor in zip(parts, ours[name].chunk(len(parts)), strict=True):
            theirs[part] = tensor.contiguous()
    if family.shared is not None and model.target_embedding is model.source_embedding:
        theirs[family.shared] = ours["source_embedding"]
    if config.model_type in ("bart", "marian"):
        bias = ours.get("head.bias", torch.zeros(model.architecture.vocabulary))
        theirs["final_logits_bias"] = bias[None].contiguous()
    return theirs


def family_of(config: Any, where: str) -> Family:
    kind = getattr(config, "model_type", None)
    if kind not in FAMILIES:
        raise Spec2SeqError(f"{where}: model type {kind!r} is not supported; supported: {', '.join(FAMILIES)}")
    return FAMILIES[kind]


def _bart_architecture(config: Any) -> Architecture:
    """BART, Marian and FSMT: post-norm, biases everywhere, absolute positions."""
    kind, width = config.model_type, config.d_model
    source = config.src_vocab_size if kind == "fsmt" else config.vocab_size
    vocabulary = (config.decoder_vocab_size if kind == "marian" else None) or config.vocab_size
    if vocabulary != source:
        raise Spec2SeqError(f"separate vocabularies are not supported: {source} source and {vocabulary} target entries")
    offset = {"marian": 0, "bart": 2, "fsmt": config.pad_token_id + 1}[kind]
    return Architecture(
        vocabulary=vocabulary,
        width=width,
        encoder=_bart_stack(config, "encoder"),
        decoder=_bart_stack(config, "decoder"),
        activation=config.activation_function,
        embedding_norm=kind == "bart",
        embedding_scale=math.sqrt(width) if config.scale_embedding else 1.0,
        position_rows=config.max_position_embeddings + offset,
        position_offset=offset,
        **_token_ids(config),
    )


def _bart_stack(config: Any, side: str) -> StackShape:
    heads = getattr(config, f"{side}_attention_heads")
    return StackShape(
        getattr(config, f"{side}_layers"), heads, config.d_model // heads, getattr(config, f"{side}_ffn_dim")
    )


def _t5_architecture(config: Any) -> Architecture:
    """T5 and T5 v1.1: pre-norm with root mean square, no biases, relative positions, unscaled attention."""
    gated = config.feed_forward_proj.startswith("gated-")
    activation = config.feed_forward_proj.removeprefix("gated-")
    scaled = getattr(config, "scale_decoder_outputs", config.tie_word_embeddings)
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
        **_token_ids(config),
    )


def _token_ids(config: Any) -> dict[str, int]:
    eos, start = config.eos_token_id, getattr(config, "decoder_start_token_id", None)
    if isinstance(eos, list | tuple):
        if len(eos) != 1:
            raise Spec2SeqError(f"eos_token_id is {eos}; exactly one end-of-sequence token is supported")
        eos = eos[0]
    return {
        "pad_token_id": config.pad_token_id,
        "eos_token_id": eos,
        "decoder_start_token_id": config.pad_token_id if start is None else start,
    }


def _bart_names(architecture: Architecture) -> NameMap:
    names: NameMap = {
        "source_embedding": ("model.encoder.embed_tokens.weight",),
        "target_embedding": ("model.decoder.embed_tokens.weight",),
        "head.weight": ("lm_head.weight",),
    }
    for side, shape in (("encoder", architecture.encoder), ("decoder", architecture.decoder)):
        names[f"{side}.positions"] = (f"model.{side}.embed_positions.weight",)
        parts = [
            ("self_qkv", [f"self_attn.{p}_proj" for p in "qkv"]),
            ("self_out", ["self_attn.out_proj"]),
            ("self_norm", ["self_attn_layer_norm"]),
            ("ffn_in", ["fc1"]),
            ("ffn_out", ["fc2"]),
            ("ffn_norm", ["final_layer_norm"]),
        ]
        if side == "decoder":
            parts += [
                ("cross_query", ["encoder_attn.q_proj"]),
                ("cross_key_value", ["encoder_attn.k_proj", "encoder_attn.v_proj"]),
                ("cross_out", ["encoder_attn.out_proj"]),
                ("cross_norm", ["encoder_attn_layer_norm"]),
            ]
        for kind in ("weight", "bias"):
            if architecture.embedding_norm:
                names[f"{side}.embedding_norm.{kind}"] = (f"model.{side}.layernorm_embedding.{kind}",)
            for index in range(shape.layers):
                for ours, theirs in parts:
                    prefix = f"model.{side}.layers.{index}"
                    names[f"{side}.layers.{index}.{ours}.{kind}"] = tuple(f"{prefix}.{t}.{kind}" for t in theirs)
    return names


def _fsmt_names(architecture: Architecture) -> NameMap:
    return _bart_names(architecture) | {"head.weight": ("model.decoder.output_projection.weight",)}


def _t5_names(architecture: Architecture) -> NameMap:
    names: NameMap = {
        "source_embedding": ("encoder.embed_tokens.weight",),
        "target_embedding": ("decoder.embed_tokens.weight",),
        "head.weight": ("lm_head.weight",),
    }
    wi = ("wi_0", "wi_1") if architecture.gated else ("wi",)
    for side, shape in (("encoder", architecture.encoder), ("decoder", architecture.decoder)):
        names[f"{side}.relative_bias"] = (f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",)
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


FAMILIES: dict[str, Family] = {
    "bart": Family(_bart_architecture, _bart_names, "model.shared.weight"),
    "fsmt": Family(_bart_architecture, _fsmt_names),
    "marian": Family(_bart_architecture, _bart_names, "model.shared.weight"),
    "t5": Family(_t5_architecture, _t5_names, "shared.weight"),
}
