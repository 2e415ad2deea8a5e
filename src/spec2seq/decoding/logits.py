"""The logits processors that a model's generation config asks for. They act per drafted position, so lossless stays
lossless.

The arguments are Transformers' own; what is not supported here is refused by name, never ignored.
"""

import math
import numbers
import operator
from collections.abc import Iterator
from typing import Any

from spec2seq.decoding.processors import (
    BiasSequences,
    FavourTheEnd,
    Force,
    NoRepeatNgrams,
    PenalizeRepetition,
    Processor,
    RemoveInvalid,
    Renormalize,
    Suppress,
    Where,
)  # fmt: skip
from spec2seq.errors import Spec2SeqError

MOST = 2**31  # of a length
# Names that change nothing about the tokens, or that the methods own (see `Sampling` and `Beam`).
_HARMLESS = {
    "max_length", "max_new_tokens", "do_sample", "num_beams", "use_cache", "cache_implementation", "cache_config",
    "temperature", "top_k", "top_p", "min_p", "typical_p", "early_stopping", "length_penalty", "num_return_sequences",
    "output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate",
    "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "is_assistant", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "assistant_confidence_threshold", "prompt_lookup_num_tokens",
    "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind", "target_lookbehind",
    "compile_config", "disable_compile", "continuous_batching_config", "prefill_chunk_size", "max_cache_len",
    "transformers_version", "token_healing", "use_mtp", "low_memory", "speculation_type",
}  # fmt: skip
_SUPPORTED = {
    "min_length", "min_new_tokens", "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens",
    "begin_suppress_tokens", "bad_words_ids", "sequence_bias", "no_repeat_ngram_size", "repetition_penalty",
    "exponential_decay_length_penalty", "remove_invalid_values", "renormalize_logits",
}  # fmt: skip
# Of models that hear; what matters of these is said in the prompts of their outputs.
OF_SPEECH = {
    "alignment_heads", "forced_decoder_ids", "is_multilingual", "lang_to_id", "language", "max_initial_timestamp_index",
    "median_filter_width", "no_timestamps_token_id", "prev_sot_token_id", "prompt_condition_type", "return_timestamps",
    "task", "task_to_id",
}  # fmt: skip
_NEUTRAL = {"encoder_repetition_penalty": 1.0, "guidance_scale": 1.0, "num_beam_groups": 1}


def processors_from(
    config: dict[str, Any], eos_token_ids: tuple[int, ...], vocabulary: int
) -> list[Processor]:  # fmt: skip
    """The processors a generation config (as a mapping) asks for, in Transformers' order.

    Raises Spec2SeqError naming any setting that would change the tokens and is not supported, or is not what it should
    be, such as ids that the vocabulary does not have.
    """
    _refuse_unknown(config)
    asked = config, eos_token_ids, vocabulary
    return [*_of_words(*asked), *_of_places(*asked), *_of_numbers(*asked)]


def _of_words(config: dict[str, Any], eos_token_ids: tuple[int, ...], vocabulary: int) -> Iterator[Processor]:
    if config.get("sequence_bias"):
        name, biases = "sequence_bias", config["sequence_bias"]
        biases = list(biases.items()) if isinstance(biases, dict) else biases
        pairs = [_listed(name, pair, 2) for pair in _listed(name, biases)]
        last = {_tokens(name, tokens, vocabulary): _number(name, bias) for tokens, bias in pairs}  # of equal ones
        yield BiasSequences(tuple(last.items()))
    if config.get("repetition_penalty") not in (None, 1.0):
        yield PenalizeRepetition(_number("repetition_penalty", config["repetition_penalty"]))
    if size := _whole("no_repeat_ngram_size", config.get("no_repeat_ngram_size") or 0):
        yield NoRepeatNgrams(size)
    ends = [[token] for token in eos_token_ids]  # which nobody bans
    words = _listed("bad_words_ids", config.get("bad_words_ids") or [])
    banned = [word for word in (_tokens("bad_words_ids", word, vocabulary) for word in words) if [*word] not in ends]
    if single := [word[0] for word in banned if len(word) == 1]:
        yield Suppress(tuple(single))
    if longer := dict.fromkeys((word for word in banned if len(word) > 1), -math.inf):
        yield BiasSequences(tuple(longer.items()))


def _of_places(config: dict[str, Any], eos_token_ids: tuple[int, ...], vocabulary: int) -> Iterator[Processor]:
    fewest = config.get("min_new_tokens")
    if fewest is not None:  # where both are given, Transformers takes this one
        if fewest:
            yield Suppress(eos_token_ids, Where("written", 0, _whole("min_new_tokens", fewest)))
    elif (shortest := _whole("min_length", config.get("min_length") or 0)) > 1:
        yield Suppress(eos_token_ids, Where("before", 0, shortest))
    first, last = config.get("forced_bos_token_id"), config.get("forced_eos_token_id")
    if first is not None:
        yield Force(_tokens("forced_bos_token_id", [first], vocabulary), Where("before", 1, 2))
    if last is not None:
        last = last if isinstance(last, list | tuple) else [last]
        yield Force(_tokens("forced_eos_token_id", last, vocabulary), Where("left", 1, 2))


def _of_numbers(config: dict[str, Any], eos_token_ids: tuple[int, ...], vocabulary: int) -> Iterator[Processor]:
    if config.get("remove_invalid_values"):
        yield RemoveInvalid()
    name = "exponential_decay_length_penalty"
    if config.get(name):
        yield FavourTheEnd(eos_token_ids, *(_number(name, part) for part in _listed(name, config[name], 2)))
    counted = "written" if config.get("forced_bos_token_id") is None else "behind"
    for name, where in (("suppress_tokens", None), ("begin_suppress_tokens", Where(counted, 0, 1))):
        # As in Transformers ids that there are not, such as -1, suppress nothing.
        ids = _ids(name, config[name]) if config.get(name) else ()
        if known := tuple(token for token in ids if 0 <= token < vocabulary):
            yield Suppress(known, where)
    if config.get("renormalize_logits"):
        yield Renormalize()


def _refuse_unknown(config: dict[str, Any]) -> None:
    for name, value in config.items():
        known = name in _HARMLESS or name in _SUPPORTED or name.startswith("_")
        if not known and value and value != _NEUTRAL.get(name):
            raise Spec2SeqError(f"generation setting {name}={value!r} is not supported")


def _whole(name: str, value: Any) -> int:
    try:
        found = operator.index(value)
    except TypeError:
        found = -1
    if not 0 <= found <= MOST:
        raise Spec2SeqError(f"generation setting {name}={value!r}; allowed: whole numbers from 0 to {MOST}")
    return found


def _number(name: str, value: Any) -> Any:
    if not isinstance(value, numbers.Real):
        raise Spec2SeqError(f"generation setting {name}={value!r}; allowed: numbers")
    return value


def _listed(name: str, values: Any, count: int | None = None) -> list[Any]:
    """A list; of so many, if that is said."""
    if not isinstance(values, list | tuple) or count not in (None, len(values)):
        raise Spec2SeqError(f"generation setting {name}: {values!r} is no list" + (f" of {count}" if count else ""))
    return list(values)


def _ids(name: str, ids: Any) -> tuple[int, ...]:
    """Whole numbers, one at least."""
    try:
        found = tuple(map(operator.index, ids))
    except TypeError:
        found = ()
    if not found:
        raise Spec2SeqError(f"generation setting {name}: {ids!r} are no token ids")
    return found


def _tokens(name: str, ids: Any, vocabulary: int) -> tuple[int, ...]:
    """Token ids that the vocabulary has, one at least."""
    found = _ids(name, ids)
    if min(found) < 0 or max(found) >= vocabulary:
        raise Spec2SeqError(f"generation setting {name} has the token ids {ids!r}; allowed: 0 to {vocabulary - 1}")
    return found
