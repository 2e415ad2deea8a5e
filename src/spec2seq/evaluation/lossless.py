"""Is a method lossless? Its tokens against greedy's, and what stands behind each difference."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from spec2seq.api import Method, Seq2Seq
from spec2seq.config import check_range
from spec2seq.decoding.methods import Greedy
from spec2seq.decoding.processors import Prefix, processed
from spec2seq.decoding.scheduler import Source
from spec2seq.decoding.score import logits_behind
from spec2seq.decoding.stats import Stats
from spec2seq.errors import Spec2SeqError, UsageError

# Logit gaps that rounding explains, at logits of some ten: several times the dtype's own spacing there.
TIES = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.25}
ROWS_PER_TIE = 500


@dataclass(frozen=True)
class Divergence:
    """The first place where a row's tokens are not greedy's.

    `line` is the source's number from 1, `position` counts the output's tokens from 0. `expected` is greedy's
    token, `actual` the method's; None where that output has ended. `gap` is the distance of their logits in the
    verifier after the common prefix, `below_best` that of the better one to the best logit there; both are infinite
    where a token is missing.
    `tie`: both distances are so small that rounding decides.
    """

    line: int
    position: int
    expected: int | None
    actual: int | None
    expected_text: str | None
    actual_text: str | None
    gap: float
    below_best: float
    tie: bool


@dataclass(frozen=True)
class LosslessReport:
    """The comparison of `rows` rows with greedy, each line alone."""

    rows: int
    tokens: int
    divergences: list[Divergence]
    stats: Stats = field(default_factory=Stats)

    @property
    def ties(self) -> int:
        return sum(divergence.tie for divergence in self.divergences)

    @property
    def bugs(self) -> int:
        return len(self.divergences) - self.ties

    @property
    def allowed_ties(self) -> int:
        """One for every 500 rows begun."""
        return -(-self.rows // ROWS_PER_TIE)

    @property
    def passed(self) -> bool:
        """Whether there are ties only, and few."""
        return not self.bugs and self.ties <= self.allowed_ties

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; an infinite distance is null."""
        names = ("rows", "tokens", "ties", "bugs", "allowed_ties", "passed")
        made = {name: getattr(self, name) for name in names}
        found = [
            {key: None if value == float("inf") else value for key, value in dataclasses.asdict(item).items()}
            for item in self.divergences
        ]
        return made | {"divergences": found, "stats": self.stats.as_dict()}


def describe(report: LosslessReport, method: str, lossless: bool = True) -> str:
    """The report for people: a line for each divergence, then the summary. What is a bug in a lossless method is
    called a difference in others."""
    lines = []
    for item in report.divergences:
        kind = "numerical tie" if item.tie else "BUG" if lossless else "difference"
        below = f", both {item.below_best:.2g} or more below the best" if 0 < item.below_best < float("inf") else ""
        lines.append(
            f"line {item.line}: position {item.position}: greedy {_shown(item.expected, item.expected_text)}, "
            f"{method} {_shown(item.actual, item.actual_text)}, logit gap {item.gap:.2g}{below}: {kind}"
        )
    verdict = f"{report.rows} lines, {report.tokens} tokens, {report.ties} numerical ties"
    if lossless:
        word = "passed" if report.passed else "FAILED"
        verdict = f"{word}: {verdict} (allowed: {report.allowed_ties}), {report.bugs} bugs"
    else:
        verdict += f", {report.bugs} lines differ"
    return "\n".join([*lines, f"{verdict}; {report.stats.tokens_per_verifier_call:.2f} tokens per verifier call"])


def _shown(token: int | None, text: str | None) -> str:
    return "nothing" if token is None else str(token) if text is None else f"{text!r} ({token})"


def require_lossless(method: Method, name: str) -> None:
    """Raise UsageError if the method may differ from greedy by design."""
    if not method.lossless:
        raise UsageError(
            f"method {name} with these options is lossy, so it would differ; allowed: greedy; specdec, "
            "assisted and lookup without beta and tau, or with beta 1; bild with policy lossless; any method with "
            "--report-only"
        )


def greedy_outputs(
    model: Seq2Seq,
    sources: Sequence[Source],
    max_new_tokens: int | None = None,
    progress: Callable[[], None] | None = None,
    prompts: Sequence[Sequence[int]] | None = None,
) -> list[list[int]]:
    """Greedy's token ids of every source (ids, end token included; or what a model hears), each alone, behind its
    prompt: what lossless means."""
    return _outputs(model, sources, Greedy(), 1, max_new_tokens, Stats(), progress, prompts)


def compare_with_greedy(
    model: Seq2Seq,
    sources: Sequence[Source],
    method: Method,
    *,
    greedy: Sequence[Sequence[int]] | None = None,
    numbers: Sequence[int] | None = None,
    batch_size: int = 1,
    max_new_tokens: int | None = None,
    tie: float | None = None,
    progress: Callable[[], None] | None = None,
    prompts: Sequence[Sequence[int]] | None = None,
) -> LosslessReport:
    """Replay the sources with the method and compare its token ids with greedy's.

    Args:
        sources: token ids, end token included; or what a model hears.
        greedy: what `greedy_outputs` returned; None decodes it here.
        numbers: what to call the sources; by default 1, 2, 3…
        batch_size: of the method; greedy decodes each source alone.
        tie: logit gaps below this count as rounding; None is the dtype's entry of `TIES`.
        progress: called after every row, greedy's rows included.
        prompts: token ids that each output begins with; they are no part of it.

    Raises Spec2SeqError if there are no sources.
    """
    tie = TIES[model.model.dtype] if tie is None else tie
    check_range("tie", tie, low=0.0)
    if not sources:
        raise Spec2SeqError("no lines to compare")
    if greedy is None:
        greedy = greedy_outputs(model, sources, max_new_tokens, progress, prompts)
    stats = Stats()
    outputs = _outputs(model, sources, method, batch_size, max_new_tokens, stats, progress, prompts)
    numbers = range(1, len(sources) + 1) if numbers is None else numbers
    told = [()] * len(sources) if prompts is None else prompts
    found = [
        _divergence(model, number, source, prompt, expected, actual, max_new_tokens, tie)
        for number, source, prompt, expected, actual in zip(numbers, sources, told, greedy, outputs, strict=True)
        if list(expected) != actual
    ]
    return LosslessReport(len(sources), sum(map(len, greedy)), found, stats)


def next_logits(
    model: Seq2Seq,
    source: Source,
    prefix: Sequence[int],
    max_new_tokens: int | None = None,
    prompt: Sequence[int] = (),
) -> torch.Tensor:
    """The verifier's logits `[vocabulary]` after `prompt` and `prefix` (output tokens so far), processed as in
    decoding, from one pass over both."""
    start, given = model.model.architecture.decoder_start_token_id, 1 + len(prompt)
    with torch.inference_mode():
        fed = [start, *prompt, *prefix]
        logits = logits_behind(model.model, source, fed)[:, -1:]
        tokens = torch.tensor([fed], device=logits.device)
        limit = model.max_new_tokens(max_new_tokens, len(prompt)) + given
        place = Prefix(tokens, tokens.new_tensor([len(fed)]), tokens.new_tensor([limit]), tokens.new_tensor([given]))
        return processed(logits, place, model.processors())[0, 0].double()


def _outputs(model, sources, method, batch_size, max_new_tokens, stats, progress, prompts) -> list[list[int]]:
    outputs, limits = [], {"batch_size": batch_size, "max_new_tokens": max_new_tokens}
    for row in model.stream(sources, method, stats=stats, prompts=prompts, **limits):
        outputs.append(row.tokens)
        if progress is not None:
            progress()
    return outputs


def _divergence(model, line, source, prompt, expected, actual, max_new_tokens, tie) -> Divergence:
    pairs = enumerate(zip(expected, actual, strict=False))
    position = next((place for place, (a, b) in pairs if a != b), min(len(expected), len(actual)))
    tokens = [ids[position] if position < len(ids) else None for ids in (expected, actual)]
    gap = below_best = float("inf")
    if None not in tokens:
        logits = next_logits(model, source, expected[:position], max_new_tokens, prompt)
        scores = logits[tokens]
        gap = (scores[0] - scores[1]).abs().nan_to_num(nan=float("inf"), posinf=float("inf")).item()
        below_best = (logits.max() - scores.max()).item()
    texts = [_token_text(model, token) for token in tokens]
    return Divergence(line, position, *tokens, *texts, gap, below_best, gap < tie and below_best < tie)


def _token_text(model: Seq2Seq, token: int | None) -> str | None:
    if token is None or model.tokenizer is None:
        return None
    return model.tokenizer.convert_ids_to_tokens(token)
