"""A model and its tokenizer from a folder or from the hub."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from spec2seq.errors import Spec2SeqError, UsageError, first_line
from spec2seq.files import read_json
from spec2seq.models import executor, families, int8_folder
from spec2seq.models.encoder_decoder import EncoderDecoder
from spec2seq.models.transformers_check import check_kind
from spec2seq.models.transformers_model import TransformersModel

SHORTLIST_FILE = "shortlist.json"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "spiece.model", "sentencepiece.bpe.model", "source.spm", "vocab.json",
    "vocab-src.json",
)  # fmt: skip
# Of a snapshot, what only other frameworks read.
OF_OTHERS = ("*.h5", "*.msgpack", "*.ot", "*.onnx", "onnx/*")


def torch_device(name: str) -> torch.device:
    """Where models go; on a GPU none of them uses cuDNN's attention from now on. Raises UsageError for what is no
    device, or not on this machine."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device is {name!r}; allowed: cpu, cuda, cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device is {name!r}, but no CUDA device is here; allowed: cpu")
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)  # it plans for tenths of a second at every new shape
    return device


def load_config(name: str) -> Any:
    """A model's configuration, in a folder or of the hub. Raises Spec2SeqError if there is none of an
    encoder–decoder."""
    _check_folder(name)
    if name.startswith((".", "/", "~")) and not os.path.exists(name):
        raise Spec2SeqError(f"{name}: no such folder")
    import transformers  # slow to import, and only loading needs it

    with _as_one_error(name):
        config = transformers.AutoConfig.from_pretrained(name)
        if not families.knows(config):
            check_kind(config, name)
    return config


def _check_folder(name: str) -> None:
    if os.path.exists(name) and not os.path.isfile(os.path.join(name, "config.json")):
        raise Spec2SeqError(f"{name}: no model here: config.json is missing")


def of_module(module: Any, where: str) -> EncoderDecoder | TransformersModel:
    """Our model with the weights of a Transformers module, or the module itself behind the same contract.

    Raises Spec2SeqError, naming `where`, for one that cannot be decoded here.
    """
    if families.knows(module.config):
        return families.load(module.config, module.state_dict(), where)
    return TransformersModel(module, where)


def load_model(name: str, dtype: str) -> tuple[EncoderDecoder | TransformersModel, Any, Any]:
    """The model in a folder or of the hub, its configuration and its generation config.

    Raises Spec2SeqError if there is none, or none that can be decoded here.
    """
    config = load_config(name)
    with _as_one_error(name):
        return _load_weights(config, name, dtype)


@contextlib.contextmanager
def _as_one_error(name: str) -> Iterator[None]:
    """A broken model raises anything, from KeyError to the hub's own kinds."""
    try:
        yield
    except Spec2SeqError:
        raise
    except Exception as error:
        raise Spec2SeqError(
            f"{name}: neither a model folder nor an id that could be loaded: {first_line(error)}"
        ) from None


def local_folder(name: str) -> Path:
    """The folder of that name, or a local copy of the hub's model of that name. Raises Spec2SeqError if there is
    neither."""
    _check_folder(name)
    if os.path.isdir(name):
        return Path(name).resolve()
    from huggingface_hub import snapshot_download

    with _as_one_error(name):
        return Path(snapshot_download(name, ignore_patterns=OF_OTHERS))


def load_tokenizer(name: str) -> Any:
    """The tokenizer in a folder or of the hub. Raises Spec2SeqError if there is none that loads."""
    # Without its files Transformers makes an empty tokenizer up for some families.
    if os.path.isdir(name) and not any(os.path.isfile(os.path.join(name, file)) for file in TOKENIZER_FILES):
        raise Spec2SeqError(f"{name}: no tokenizer here: expected one of {', '.join(TOKENIZER_FILES)}")
    import transformers

    from spec2seq.models import subwords  # slow to import, as Transformers is

    subwords.register()
    try:
        return transformers.AutoTokenizer.from_pretrained(name)
    except Exception as error:  # of any kind, as there
        reason = first_line(error)
        if "tiktoken" in reason:  # what Transformers tries last, and is misleading
            reason = "a SentencePiece file without tokenizer.json needs protobuf (pip install protobuf)"
        raise Spec2SeqError(f"{name}: its tokenizer could not be loaded: {reason}") from None


def load_extractor(name: str) -> Any:
    """What makes spectrograms for the model in a folder or of the hub. Raises Spec2SeqError if there is none."""
    import transformers

    try:
        return transformers.AutoFeatureExtractor.from_pretrained(name)
    except Exception as error:  # of any kind, as there
        raise Spec2SeqError(f"{name}: its feature extractor could not be loaded: {first_line(error)}") from None


def load_shortlist(name: str) -> list[int]:
    """The tokens that a little model is to propose, in a folder or of the hub; empty: nothing is said of it. Raises
    Spec2SeqError for a file that is no list of ids."""
    found = _file(name, SHORTLIST_FILE)
    if found is None:
        return []
    ids = read_json(Path(found))
    if not isinstance(ids, list) or not all(isinstance(one, int) for one in ids):
        raise Spec2SeqError(f"{name}: {SHORTLIST_FILE} is no list of token ids")
    return ids


def _file(name: str, file: str) -> str | None:
    """Where a file of a folder, or of the hub's model of that name, lies; None: there is none."""
    from transformers.utils import cached_file

    return cached_file(name, file, _raise_exceptions_for_missing_entries=False,
                       _raise_exceptions_for_connection_errors=False)  # fmt: skip


def _load_weights(config: Any, name: str, dtype: str) -> tuple[EncoderDecoder | TransformersModel, Any, Any]:
    """The model in a folder or of the hub, its configuration and its generation config."""
    import transformers

    if (codes := _file(name, int8_folder.FILE)) is not None:
        if dtype != "int8":
            raise UsageError(f'{name}: its weights are int8; load it with dtype="int8" (--dtype int8)')
        return int8_folder.load(config, Path(codes).parent), config, transformers.GenerationConfig.from_pretrained(name)
    theirs, loading = families.auto_class(config).from_pretrained(
        name, dtype=executor.WEIGHTS[dtype], output_loading_info=True, ignore_mismatched_sizes=True
    )
    _check_complete(name, theirs.config, loading)
    start = theirs.generation_config.decoder_start_token_id
    if getattr(theirs.config, "decoder_start_token_id", None) is None and isinstance(start, int):
        theirs.config.decoder_start_token_id = start
    return of_module(theirs, name), theirs.config, theirs.generation_config


def _check_complete(name: str, config: Any, loading: dict[str, Any]) -> None:
    """Transformers fills tensors that are missing or have another shape with random numbers and goes on."""
    if loading["mismatched_keys"]:
        tensor, found, wanted = sorted(loading["mismatched_keys"], key=str)[0]
        raise Spec2SeqError(f"{name}: {tensor} has the shape {[*found]}; config.json asks for {[*wanted]}")
    family = families.FAMILIES.get(config.model_type)
    filled = () if family is None else family.filled
    if missing := sorted(tensor for tensor in loading["missing_keys"] if not tensor.endswith(filled)):
        raise Spec2SeqError(f"{name}: the weights lack {len(missing)} tensors of the model, such as {missing[0]}")
