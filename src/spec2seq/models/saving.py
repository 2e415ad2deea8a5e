"""A model folder as Transformers' classes and ours load it back."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from spec2seq.files import write_json
from spec2seq.models import executor, families, int8_folder
from spec2seq.models.drafter_folder import whole_folder
from spec2seq.models.encoder_decoder import EncoderDecoder
from spec2seq.models.loading import SHORTLIST_FILE
from spec2seq.models.transformers_model import TransformersModel


def save(
    folder: str | Path, model: EncoderDecoder | TransformersModel, config: Any, parts: Sequence[Any],
    shortlist: Sequence[int],
) -> None:  # fmt: skip
    """Write weights and configuration, `parts` that save themselves (tokenizer, generation config; None: there is none)
    and the shortlist, if it has tokens.

    Raises Spec2SeqError if `folder` exists. It appears whole or not at all.
    """
    with whole_folder(folder) as temporary:
        if isinstance(model, TransformersModel):
            model.module.save_pretrained(temporary)
        elif executor.is_int8(model):
            int8_folder.save(model, temporary)
            config.save_pretrained(temporary)
        else:
            _save_weights(model, config, temporary)
        for part in parts:
            if part is not None:
                part.save_pretrained(temporary)
        if shortlist:
            write_json(temporary / SHORTLIST_FILE, list(shortlist))


def _save_weights(model: EncoderDecoder, config: Any, folder: Path) -> None:
    with torch.device("meta"):  # only its configuration and its list of tied weights are wanted
        theirs = families.auto_class(config).from_config(copy.deepcopy(config), dtype=model.dtype)
    on_cpu = model if model.device.type == "cpu" else copy.deepcopy(model).cpu()
    theirs.save_pretrained(folder, state_dict=families.export(on_cpu, config))
