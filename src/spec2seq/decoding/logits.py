"""Logits processors of a model's generation config. They act per drafted position, so lossless stays lossless.

The arguments are Transformers' own; what is not supported here is refused by name, never ignored.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spec2seq.errors import Spec2SeqError


@dataclass(frozen=True)
class Prefix:
    """What stands before each scored place: place j of a row comes after `lengths + j` tokens of `tokens`
    `[rows, capacity]` (decoder start and drafts included). `limits` `[rows]` is the most tokens a row may have."""

    tokens: Tensor
    lengths: Tensor
    limits: Tensor

    def before(self, width: int) -> Tensor:
        """How many tokens stand before each place, the decoder start included: `[rows, width]`."""
        return self.lengths[:, None] + torch.arange(width, device=self.lengths.device)

    def holds(self, width: int) -> Tensor:
        """Which of `tokens` stand before each place: `[rows, width, capacity]`."""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device) < self.before(width)[:, :, None]


Processor = Callable[[Tensor, Prefix], Tensor]

# Names that change nothing about the tokens of greedy decoding or sampling, or that the methods own.
_HARMLESS = {
    "max_length", "max_new_tokens", "do_sample", "num_beams", "use_cache", "cache_implementation", "cache_config",
    "temperature", "top_k", "top_p", "early_stopping", "length_penalty", "num_return_sequences", "low_memory",
    "output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate",
    "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "is_assistant", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "assistant_confidence_threshold", "prompt_lookup_num_tokens",
    "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind", "target_lookbehind",
    "compile_config", "disable_compile", "continuous_batching_config", "prefill_chunk_size", "max_cache_len",
    "transformers_version", "generation_kwargs", "remove_invalid_values", "token_healing", "use_mtp",
    "assistant_ensemble_weight", "speculation_type", "renormalize_logits", "diversity_penalty", "num_beam_groups",
    "penalty_alpha", "custom_generate",
}  # fmt: skip
_SUPPORTED = {
    "min_length", "min_new_tokens", "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens",
    "begin_suppress_tokens", "bad_words_ids", "no_repeat_ngram_size", "repetition_penalty",
}  # fmt: skip
_NEUTRAL = {"encoder_repetition_penalty": 1.0, "typical_p": 1.0, "guidance_scale": 1.0}


def processors_from(config: dict[str, Any], eos_token_id: int) -> list[Processor]:
    """The processors a generation config (as a mapping) asks for, in Transformers' order.

    Raises Spec2SeqError naming any setting that would change the tokens and is not supported.
    """
    _refuse_unknown(config)
    made: list[Processor] = []
    if config.get("repetition_penalty") not in (None, 1.0):
        made.append(penalize_repetition(config["repetition_penalty"]))
    if (config.get("no_repeat_ngram_size") or 0) > 0:
        made.append(no_repeat_ngrams(config["no_repeat_ngram_size"]))
    banned = _single_tokens("bad_words_ids", config.get("bad_words_ids") or [])
    banned = [token for token in banned if token != eos_token_id]  # Transformers never bans the end
    if banned:
        made.append(suppress(banned))
    fewest = config.get("min_new_tokens")  # where both are given, Transformers takes this one
    shortest = (config.get("min_length") or 0) if fewest is None else fewest + 1
    if shortest > 1:
        made.append(suppress([eos_token_id], until=shortest))
    if config.get("forced_bos_token_id") is not None:
        made.append(force(config["forced_bos_token_id"], lambda before, limits: before == 1))
    if config.get("forced_eos_token_id") is not None:
        made.append(
            force(
                _one("forced_eos_token_id", config["forced_eos_token_id"]),
                lambda before, limits: before == limits[:, None] - 1,
            )
        )
    if config.get("suppress_tokens"):
        made.append(suppress(config["suppress_tokens"]))
    if config.get("begin_suppress_tokens"):
        begin = 2 if config.get("forced_bos_token_id") is not None else 1
        made.append(suppress(config["begin_suppress_tokens"], until=begin + 1, since=begin))
    return made


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


def suppress(tokens: list[int], until: int | None = None, since: int = 0) -> Processor:
    """Tokens that may not come; with `until`, only where fewer than `until` tokens stand before."""
    on: dict[torch.device, Tensor] = {}  # a copy to a GPU for every pass would stall it

    def process(logits: Tensor, prefix: Prefix) -> Tensor:
        if logits.device not in on:
            on[logits.device] = torch.tensor(tokens, device=logits.device)
        places = on[logits.device]
        if until is None:
            return logits.index_fill(2, places, -torch.inf)
        before = prefix.before(logits.shape[1])
        active = ((before < until) & (before >= since))[:, :, None]
        return torch.where(active, logits.index_fill(2, places, -torch.inf), logits)

    return process


def force(token: int, where: Callable[[Tensor, Tensor], Tensor]) -> Processor:
    """One token must come where `where(before, limits)` `[rows, width]` holds."""

    def process(logits: Tensor, prefix: Prefix) -> Tensor:
        forced = torch.full_like(logits[:1, :1], -torch.inf)
        forced[..., token] = 0
        return torch.where(where(prefix.before(logits.shape[1]), prefix.limits)[:, :, None], forced, logits)

    return process


def _refuse_unknown(config: dict[str, Any]) -> None:
    for name, value in config.items():
        known = name in _HARMLESS or name in _SUPPORTED or name.startswith("_")
        if not known and value and value != _NEUTRAL.get(name):
            raise Spec2SeqError(f"generation setting {name}={value!r} is not supported")


def _single_tokens(name: str, words: list[list[int]]) -> list[int]:
    if any(len(word) != 1 for word in words):
        raise Spec2SeqError(f"generation setting {name} with words of several tokens is not supported")
    return [word[0] for word in words]


def _one(name: str, value: int | list[int]) -> int:
    if isinstance(value, list | tuple):
        if len(value) != 1:
            raise Spec2SeqError(f"generation setting {name}={value!r}: exactly one token is supported")
        return value[0]
    return value
