"""Whisper: a BART that hears. Its keys have no bias, and its encoder begins with convolutions, not an embedding."""

from typing import Any

from spec2seq.models.architecture import Architecture, SoundShape
from spec2seq.models.bart_like import names, stack
from spec2seq.models.family import Family, NameMap, token_ids

FRONT = {"first": "conv1", "second": "conv2"}


def whisper() -> Family:
    """The family (Radford et al. 2023, section 2.2)."""
    return Family(_architecture, _names, zeros=("k_proj.bias",), filled=("encoder.embed_positions.weight",))


def _architecture(config: Any) -> Architecture:
    return Architecture(
        vocabulary=config.vocab_size,
        width=config.d_model,
        encoder=stack(config, "encoder"),
        decoder=stack(config, "decoder"),
        activation=config.activation_function,
        pre_norm=True,
        final_norm=True,
        position_rows=config.max_target_positions,
        source_positions=config.max_source_positions,
        sound=SoundShape(config.num_mel_bins, config.max_source_positions),
        **token_ids(config),
    )


def _names(architecture: Architecture) -> NameMap:
    found = names(architecture, head="proj_out.weight", positions=True)
    del found["source_embedding"]
    found["front.positions"] = found.pop("encoder.positions")
    for ours, theirs in FRONT.items():
        for kind in ("weight", "bias"):
            found[f"front.{ours}.{kind}"] = (f"model.encoder.{theirs}.{kind}",)
    return found
