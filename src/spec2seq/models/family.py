"""What a family is, and what all of them share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from spec2seq.models.architecture import Architecture

NameMap = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Family:
    """How one of Transformers' model types maps onto `EncoderDecoder`.

    `names` says which of Transformers' tensors, one behind the other (dimension 0), are each of our parameters.
    `shared` is the third name that it ties both embeddings to, if it has one. `logit_bias`: its head has a bias, under
    a name of its own. `positions` makes the table that both sides add, where Transformers' class computes it and so
    has no name for it. `half`: it can be used in float16. `zeros`: how the names of tensors end that Transformers'
    class does not have because they are zero, `filled` of those that it computes where a checkpoint lacks them.
    """

    architecture: Callable[[Any], Architecture]
    names: Callable[[Architecture], NameMap]
    shared: str | None = None
    logit_bias: bool = False
    positions: Callable[[Architecture], Tensor] | None = None
    half: bool = True
    zeros: tuple[str, ...] = ()
    filled: tuple[str, ...] = ()


def token_ids(config: Any) -> dict[str, int]:
    """The special ids of a configuration, as `Architecture` names them; of several end tokens the first."""
    eos, start = config.eos_token_id, getattr(config, "decoder_start_token_id", None)
    if isinstance(eos, list | tuple):
        eos = eos[0]
    if start is None:  # Transformers falls back to bos_token_id; T5 has none and starts with padding
        start = getattr(config, "bos_token_id", None)
    return {
        "pad_token_id": config.pad_token_id,
        "eos_token_id": eos,
        "decoder_start_token_id": config.pad_token_id if start is None else start,
    }
