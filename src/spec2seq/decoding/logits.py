"""Logits processors of a model's generation config. They act per drafted position, so lossless stays lossless.

The arguments are Transformers' own; what is not supported here is refused by name, never ignored.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spec2seq.errors import Spec2SeqError


@dataclass(frozen=True)
class Prefix:
    """What stands before each scored place: place j of a row comes after `lengths + j` tokens of `tokens`
    `[rows, capacity]` (decoder start and drafts included). `limits` `[rows]` is the most tokens a row may have, and
    `given` `[rows]` how many it began with; None: the decoder start alone."""

    tokens: Tensor
    lengths: Tensor
    limits: Tensor
    given: Tensor | None = None

    def before(self, width: int) -> Tensor:
        """How many tokens stand before each place, the decoder start included: `[rows, width]`."""
        return self.lengths[:, None] + torch.arange(width, device=self.lengths.device)

    def written(self, width: int) -> Tensor:
        """How many of these the row has written itself: `[rows, width]`."""
        return self.before(width) - (1 if self.given is None else self.given[:, None])

    def holds(self, width: int) -> Tensor:
        """Which of `tokens` stand before each place: `[rows, width, capacity]`."""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device) < self.before(width)[:, :, None]


Processor = Callable[[Tensor, Prefix], Tensor]

# Names that change nothing about the tokens, or that the methods own (see `Sampling` and `Beam`).
_HARMLESS = {
    "max_length", "max_new_tokens", "do_sample", "num_beams", "use_cache", "cache_implementation", "cache_config",
    "temperature", "top_k", "top_p", "min_p", "typical_p", "early_stopping", "length_penalty", "num_return_sequences",
    "output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate",
    "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "is_assistant", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "assistant_confidence_threshold", "prompt_lookup_num_tokens",
    "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind", "target_lookbehind",
    "compile_config", "disable_compile", "continuous_batching_config", "prefill_chunk_size", "max_cache_len",
    "transformers_version", "generation_kwargs", "token_healing", "use_mtp", "low_memory",
    "assistant_ensemble_weight", "speculation_type", "custom_generate",
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


def processors_from(config: dict[str, Any], eos_token_ids: tuple[int, ...]) -> list[Processor]:
    """The processors a generation config (as a mapping) asks for, in Transformers' order.

    Raises Spec2SeqError naming any setting that would change the tokens and is not supported.
    """
    _refuse_unknown(config)
    return [*_of_words(config, eos_token_ids), *_of_places(config, eos_token_ids), *_of_numbers(config, eos_token_ids)]


def _of_words(config: dict[str, Any], eos_token_ids: tuple[int, ...]) -> Iterator[Processor]:
    if config.get("sequence_bias"):
        biases = config["sequence_bias"]
        biases = biases.items() if isinstance(biases, dict) else biases
        yield bias_sequences({tuple(tokens): bias for tokens, bias in biases})  # the last of equal ones counts
    if config.get("repetition_penalty") not in (None, 1.0):
        yield penalize_repetition(config["repetition_penalty"])
    if (config.get("no_repeat_ngram_size") or 0) > 0:
        yield no_repeat_ngrams(config["no_repeat_ngram_size"])
    ends = [[token] for token in eos_token_ids]  # which nobody bans
    banned = [word for word in config.get("bad_words_ids") or [] if word not in ends]
    if single := [word[0] for word in banned if len(word) == 1]:
        yield suppress(single)
    if longer := {tuple(word): -torch.inf for word in banned if len(word) > 1}:
        yield bias_sequences(longer)


def _of_places(config: dict[str, Any], eos_token_ids: tuple[int, ...]) -> Iterator[Processor]:
    ends, fewest = list(eos_token_ids), config.get("min_new_tokens")
    if fewest is not None:  # where both are given, Transformers takes this one
        if fewest:
            yield suppress(ends, lambda prefix, width: prefix.written(width) < fewest)
    elif (shortest := config.get("min_length") or 0) > 1:
        yield suppress(ends, lambda prefix, width: prefix.before(width) < shortest)
    first, last = config.get("forced_bos_token_id"), config.get("forced_eos_token_id")
    if first is not None:
        yield force([first], lambda before, limits: before == 1)
    if last is not None:
        yield force(_listed(last), lambda before, limits: before == limits[:, None] - 1)


def _of_numbers(config: dict[str, Any], eos_token_ids: tuple[int, ...]) -> Iterator[Processor]:
    if config.get("remove_invalid_values"):
        yield lambda logits, prefix: logits.nan_to_num(0.0, neginf=-torch.inf)  # what is banned stays so
    if config.get("exponential_decay_length_penalty"):
        yield favour_the_end(eos_token_ids, *config["exponential_decay_length_penalty"])
    if config.get("suppress_tokens"):
        yield suppress(config["suppress_tokens"])
    if config.get("begin_suppress_tokens"):
        yield suppress(config["begin_suppress_tokens"], _first(config.get("forced_bos_token_id") is not None))
    if config.get("renormalize_logits"):
        yield lambda logits, prefix: logits.log_softmax(-1)


def penalize_repetition(penalty: float) -> Processor:
    """Every token that stands before a place has its logit divided by `penalty`, or multiplied if it is negative:
    Transformers' reading of CTRL (Keskar et al. 2019, section 4.1). Raises Spec2SeqError unless it is positive."""
    if not penalty > 0:
        raise Spec2SeqError(f"generation setting repetition_penalty={penalty!r}; allowed: above 0")

    def process(logits: Tensor, prefix: Prefix) -> Tensor:
        # As in Transformers float32 at least: rounded to bfloat16, penalized logits would tie.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        tokens = prefix.tokens[:, None]
        # The start token stands before every place, so it can stand in for what does not.
        seen = torch.where(prefix.holds(logits.shape[1]), tokens, tokens[:, :, :1])
        score = logits.gather(2, seen)
        return logits.scatter(2, seen, torch.where(score < 0, score * penalty, score / penalty))

    return process


def no_repeat_ngrams(size: int) -> Processor:
    """No sequence of `size` tokens may come twice (Paulus et al. 2018, section 2.5)."""

    def process(logits: Tensor, prefix: Prefix) -> Tensor:
        tokens, before = prefix.tokens[:, None], prefix.before(logits.shape[1])
        # Each earlier n-gram, by its last token; banned where its other tokens are the last before the place.
        banned = prefix.holds(logits.shape[1])[:, :, size - 1 :]
        ngrams = banned.shape[2]
        for back in range(1, size):
            latest = prefix.tokens.gather(1, (before - back).clamp(min=0))  # below 0 there is no n-gram to ban
            start = size - 1 - back
            banned &= tokens[:, :, start : start + ngrams] == latest[:, :, None]
        ceiling = logits.new_full(banned.shape, torch.inf).masked_fill_(banned, -torch.inf)
        # The smallest ceiling counts: the same token may end n-grams that are banned and others that are not.
        return logits.scatter_reduce(2, tokens[:, :, size - 1 :].expand(banned.shape), ceiling, "amin")

    return process


def bias_sequences(biases: dict[tuple[int, ...], float]) -> Processor:
    """The last token of each sequence gets its bias wherever the others stand right before."""
    sizes: dict[int, list[tuple[tuple[int, ...], float]]] = {}
    for tokens, bias in biases.items():
        sizes.setdefault(len(tokens), []).append((tokens, bias))

    @functools.cache
    def on(device: torch.device) -> list[tuple[Tensor, Tensor]]:
        """For each size the sequences `[n, size]` and their biases `[n]`."""
        columns = [zip(*group, strict=True) for group in sizes.values()]
        return [tuple(torch.tensor(column, device=device) for column in group) for group in columns]

    def process(logits: Tensor, prefix: Prefix) -> Tensor:
        before = prefix.before(logits.shape[1])
        total = torch.zeros_like(logits)
        for sequences, values in on(logits.device):
            size = sequences.shape[1]
            stands = (before >= size - 1)[:, :, None].expand(-1, -1, len(sequences))  # [rows, width, n]
            for back in range(1, size):
                latest = prefix.tokens.gather(1, (before - back).clamp(min=0))
                stands = stands & (latest[:, :, None] == sequences[:, -1 - back])
            total.index_add_(2, sequences[:, -1], torch.where(stands, values, 0.0).to(total.dtype))
        return logits + total

    return process


def favour_the_end(eos_token_ids: tuple[int, ...], start: int, factor: float) -> Processor:
    """From the place `start` on an end token's logit rises by its size times factor ** (steps since) - 1."""

    ends = list(eos_token_ids)

    def process(logits: Tensor, prefix: Prefix) -> Tensor:
        steps = (prefix.written(logits.shape[1]) - start).clamp(min=0)[:, :, None]
        score = logits[:, :, ends]
        rise = score.abs() * (torch.pow(float(factor), steps.double()) - 1).to(score.dtype)
        logits = logits.clone()
        logits[:, :, ends] += rise.masked_fill(~score.isfinite(), 0.0)
        return logits

    return process


def _first(forced: bool) -> Callable[[Prefix, int], Tensor]:
    """Whether a place `[rows, width]` is the first that a row chooses a token for: its second, if its first is
    `forced`, which it is behind the decoder start alone."""

    def where(prefix: Prefix, width: int) -> Tensor:
        return prefix.written(width) == (forced if prefix.given is None else forced & (prefix.given == 1)[:, None])

    return where


def suppress(tokens: list[int], where: Callable[[Prefix, int], Tensor] | None = None) -> Processor:
    """Tokens that may not come where `where(prefix, width)` `[rows, width]` holds; None: anywhere."""

    @functools.cache  # a copy to a GPU for every pass would stall it
    def on(device: torch.device) -> Tensor:
        return torch.tensor(tokens, device=device)

    def process(logits: Tensor, prefix: Prefix) -> Tensor:
        banned = logits.index_fill(2, on(logits.device), -torch.inf)
        return banned if where is None else torch.where(where(prefix, logits.shape[1])[:, :, None], banned, logits)

    return process


def force(tokens: list[int], where: Callable[[Tensor, Tensor], Tensor]) -> Processor:
    """One of the tokens must come where `where(before, limits)` `[rows, width]` holds."""

    def process(logits: Tensor, prefix: Prefix) -> Tensor:
        forced = torch.full_like(logits[:1, :1], -torch.inf)
        forced[..., tokens] = 0
        return torch.where(where(prefix.before(logits.shape[1]), prefix.limits)[:, :, None], forced, logits)

    return process


def _refuse_unknown(config: dict[str, Any]) -> None:
    for name, value in config.items():
        known = name in _HARMLESS or name in _SUPPORTED or name.startswith("_")
        if not known and value and value != _NEUTRAL.get(name):
            raise Spec2SeqError(f"generation setting {name}={value!r} is not supported")


def _listed(value: int | list[int]) -> list[int]:
    return [*value] if isinstance(value, list | tuple) else [value]
