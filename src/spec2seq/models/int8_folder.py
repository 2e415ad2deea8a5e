"""The weights of an int8 model on disk: codes and scales as they are, under our own names, in one safetensors file."""

from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from spec2seq.errors import Spec2SeqError
from spec2seq.models.encoder_decoder import EncoderDecoder
from spec2seq.models.families import family_of
from spec2seq.models.fingerprint import fingerprint
from spec2seq.models.quantize import QuantizedLinear

FILE = "int8.safetensors"


def save(model: EncoderDecoder, folder: Path) -> None:
    """Write the weights of an int8 model into a folder that exists."""
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if model.shares_embedding:
        del state["source_embedding"]
    safetensors.torch.save_file(state, folder / FILE, {"fingerprint": fingerprint(model)})


def load(config: Any, folder: str | Path) -> EncoderDecoder:
    """The model that `save` wrote, for a Transformers configuration. Raises Spec2SeqError if they do not fit."""
    path = Path(folder, FILE)
    try:
        with safetensors.safe_open(path, "pt") as file:
            known = (file.metadata() or {})["fingerprint"]
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
        with torch.device("meta"):
            architecture = family_of(config, str(folder)).architecture(config)
            model = EncoderDecoder(architecture, tied_head=False, logit_bias="head.bias" in state)
        for name in [name.removesuffix(".scale") for name in state if name.endswith(".scale")]:
            parent, _, child = name.rpartition(".")
            parts = (state[f"{name}.weight"], state[f"{name}.scale"], state.get(f"{name}.bias"))
            setattr(model.get_submodule(parent), child, QuantizedLinear(*parts))
        shared = architecture.sound is None and "source_embedding" not in state
        if shared:
            state["source_embedding"] = state["target_embedding"]
        model.load_state_dict(state, assign=True)
    except Spec2SeqError:
        raise
    except Exception as error:  # a broken file, or missing, further or misshapen tensors
        raise Spec2SeqError(f"{path}: does not fit config.json: {' '.join(str(error).split())}") from None
    if shared:
        model.target_embedding = model.source_embedding
    model.fingerprint = known
    return model.requires_grad_(False)
