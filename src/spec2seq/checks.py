"""What a model may be given, checked: token ids of a source, what it is to hear, how an output begins and ends."""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spec2seq.errors import Spec2SeqError, UsageError
from spec2seq.models import languages
from spec2seq.models.architecture import Architecture, SoundShape

LONGEST_SOURCE = 4096  # tokens, where a model has no limit of its own: attention over more fills the memory


def source_ids(ids: Any, where: str, a: Architecture, truncate: bool) -> list[int]:
    """A source, cut to what the model allows if `truncate` says so. Raises UsageError for one without tokens, and as
    `listed` and `check_source`."""
    ids = listed(ids, where)
    if not ids:
        raise UsageError(f"{where} has no tokens; a source holds at least the end token")
    if truncate:
        check_ids(ids, where, a.source_vocabulary or a.vocabulary)
        ids = languages.cut(ids, a.max_source_positions or LONGEST_SOURCE, a.eos_token_id)
    check_source(ids, where, a)
    return ids


def end_tokens(found: Any, a: Architecture) -> tuple[int, ...]:
    """What ends an output, as a generation config says; None: the model's own. Raises Spec2SeqError for an id that the
    vocabulary does not have."""
    if found is None:
        return (a.eos_token_id,)
    ends = tuple(found) if isinstance(found, list | tuple) else (found,)
    if not ends or any(not isinstance(end, int) or not 0 <= end < a.vocabulary for end in ends):
        raise Spec2SeqError(f"generation setting eos_token_id={found!r}; allowed: ids of 0 to {a.vocabulary - 1}")
    return tuple(dict.fromkeys(ends))


def check_source(ids: Sequence[int], where: str, a: Architecture) -> None:
    """Raises UsageError for ids that are not the vocabulary's, Spec2SeqError for too many, naming `where`."""
    check_ids(ids, where, a.source_vocabulary or a.vocabulary)
    check_length(ids, where, a.max_source_positions)


def check_output(ids: Sequence[int], where: str, a: Architecture) -> None:
    """The same of an output, which may be empty."""
    check_ids(ids, where, a.vocabulary)
    check_length(ids, where, a.max_positions)


def prompt_ids(model: Any, prompts: Any, count: int | None) -> list[list[int]]:
    """Token ids that each of `count` outputs of a `Seq2Seq` (None: as many as there are prompts) is to begin with;
    None: with nothing. Texts are without the end token. Raises UsageError for another number of them, and as
    `check_output`."""
    if prompts is None:
        return [[]] * (count or 0)
    if isinstance(prompts, str) or not hasattr(prompts, "__len__") or count not in (None, len(prompts)):
        raise UsageError(f"prompts is to be a list{'' if count is None else f' of {count}'}, one for each source")
    found, a = [], model.model.architecture
    for number, prompt in enumerate(prompts, 1):
        if isinstance(prompt, str):
            ids = [token for token in model.encode_text(prompt, target=True) if token not in model.eos_token_ids]
        else:
            ids = listed(prompt, f"prompt {number}")
        check_ids(ids, f"prompt {number}", a.vocabulary)
        if a.max_positions is not None and len(ids) >= a.max_positions:
            raise UsageError(
                f"prompt {number} has {len(ids)} tokens; allowed: {a.max_positions - 1} of the model's positions"
            )
        found.append(ids)
    return found


def listed(ids: Any, where: str) -> list[Any]:
    """Raises UsageError, naming `where`, for what is no sequence."""
    try:
        return list(ids)
    except TypeError:
        raise UsageError(f"{where} is {ids!r}; allowed: a text, or token ids") from None


def check_ids(ids: Sequence[int], where: str, vocabulary: int) -> None:
    """Raises UsageError, naming `where`, for what is no id of the vocabulary."""
    for token in ids:
        try:
            found = operator.index(token)
        except TypeError:
            found = -1
        if not 0 <= found < vocabulary:
            raise UsageError(f"{where} has the token id {token!r}; allowed: 0 to {vocabulary - 1}")


def check_drafter_reads(drafter: Any, source: Sequence[int], where: str) -> None:
    """Raises UsageError, naming `where`, for a source that is longer than a drafter (None: there is none) can read."""
    most = None if drafter is None else drafter.longest_source
    if most is not None and len(source) > most:
        raise UsageError(
            f"{where} has {len(source)} tokens, and the drafter has positions for {most}; split it, or decode it by a "
            "method without this drafter"
        )


def check_length(ids: Sequence[int], where: str, own: int | None) -> None:
    if len(ids) > (own or LONGEST_SOURCE):
        unlimited = f"allowed are {LONGEST_SOURCE} (the model has no limit of its own)"
        allows = f"the model allows {own}" if own else unlimited
        raise Spec2SeqError(f"{where} has {len(ids)} tokens; {allows}; split or truncate it (--truncate)")


def spectrogram(sound: Any, where: str, shape: SoundShape, extractor: Any) -> Tensor:
    """What a model hears, `[places, 2 * bins]`, of samples `[n]` (an array, mono, at the extractor's rate; a shorter
    sound is followed by silence), or of features `[bins, frames]` or `[places, 2 * bins]`, which are taken as they are.

    Raises UsageError, naming `where`, for anything else; Spec2SeqError for a sound that is longer than a window.
    """
    if isinstance(sound, str) or not hasattr(sound, "ndim"):
        raise UsageError(f"{where} is no sound; allowed: an array of samples, or features; transcribe reads files")
    bins, places = shape.bins, shape.places
    if sound.ndim == 2:
        features = torch.as_tensor(sound, dtype=torch.float32)
        if features.shape == (bins, 2 * places):
            return features.T.reshape(places, 2 * bins)
        if features.shape == (places, 2 * bins):
            return features
    if sound.ndim != 1:
        raise UsageError(
            f"{where} has the shape {[*sound.shape]}; allowed: samples [n], or features [{bins}, {2 * places}]"
        )
    if extractor is None:
        raise UsageError("this model was loaded without a feature extractor; pass features")
    if len(sound) > extractor.n_samples:
        seconds, most = (n / extractor.sampling_rate for n in (len(sound), extractor.n_samples))
        raise Spec2SeqError(f"{where} is {seconds:.1f} seconds long; the model hears {most:.0f}; use transcribe")
    found = extractor(samples(sound, where), sampling_rate=extractor.sampling_rate, return_tensors="pt")
    return spectrogram(found.input_features[0], where, shape, extractor)


def samples(sound: Any, where: str) -> np.ndarray:
    """Of an array `[n]`, in float32. Raises UsageError for other arrays, Spec2SeqError for a sound without samples;
    both name `where`."""
    if not hasattr(sound, "ndim") or sound.ndim != 1:
        shape = f"has the shape {[*sound.shape]}" if hasattr(sound, "shape") else f"is a {type(sound).__name__}"
        raise UsageError(f"{where} {shape}; allowed: a file, or an array of samples [n]")
    if isinstance(sound, Tensor) and sound.is_floating_point():
        sound = sound.detach().float().cpu()  # numpy has no bfloat16
    found = np.asarray(sound)
    if found.dtype.kind != "f":  # whole numbers would be heard as a very loud sound
        raise UsageError(f"{where} has samples of type {found.dtype}; allowed: floating point, from -1 to 1")
    if not len(found):
        raise Spec2SeqError(f"{where}: there are no samples")
    with np.errstate(over="ignore"):
        found = found.astype(np.float32, copy=False)
    if not np.isfinite(found).all():
        raise Spec2SeqError(f"{where}: there are samples that are no numbers")
    return found
