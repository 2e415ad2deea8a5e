"""What `generate` of Transformers returns: tensors, or its output classes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spec2seq.api import Method, Seq2Seq
from spec2seq.decoding.processors import Prefix, processed
from spec2seq.decoding.rows import padded
from spec2seq.decoding.scheduler import Completion, Source
from spec2seq.runner import Begin


def sequences(found: Sequence[Completion], told: Sequence[Sequence[int]], pad: int, beams: bool) -> Tensor:
    """Generated rows as `[rows, length]`: first what each was told to begin with, padding at the end. The hypotheses of
    beam search are rows of their own, those of a source next to each other, the best first."""
    rows = [[*begin, *tokens] for one, begin in zip(found, told, strict=True) for _, tokens in _each(one, beams)]
    return padded(rows, pad)


def of_beams(
    model: Seq2Seq, config: Any, sources: Sequence[Source], begins: Sequence[Begin], found: Sequence[Completion],
    sequences: Tensor,
) -> Any:  # fmt: skip
    """`GenerateBeamEncoderDecoderOutput` with `sequences_scores` `[rows]`. What it says of single steps is None, but of
    a model that hears, whose `generate` asks for them: then `scores`, where the config asks for them, are those of the
    returned rows, and `beam_indices` `[rows, tokens]` say so."""
    from transformers.generation.utils import GenerateBeamEncoderDecoderOutput

    made: dict[str, Any] = {}
    if config.output_scores and model.model.architecture.sound is not None:
        each = [(row, tokens) for row, one in enumerate(found) for _, tokens in one.hypotheses]
        told = [begins[row] for row, _ in each]
        written = [tokens for _, tokens in each]
        left = config.max_length - sequences.shape[1]
        logits, prefix = _logits(model, [sources[row] for row, _ in each], told, written, left)
        made["scores"] = processed(logits.float().log_softmax(-1), prefix, model.processors()).unbind(1)
        rows = torch.arange(len(each), device=sequences.device)
        made["beam_indices"] = rows[:, None].expand(-1, len(made["scores"]))
    scores = torch.tensor([score for one in found for score, _ in one.hypotheses], device=sequences.device)
    return GenerateBeamEncoderDecoderOutput(sequences=sequences, sequences_scores=scores, **made)


def of_rows(
    model: Seq2Seq, config: Any, method: Method, sources: Sequence[Source], begins: Sequence[Begin],
    found: Sequence[Completion], sequences: Tensor,
) -> Any:  # fmt: skip
    """`GenerateEncoderDecoderOutput`, with `scores` (after the processors, and what sampling leaves of them) and
    `logits` (before them) where the config asks for them: a tuple with `[rows, vocabulary]`, float32, for every new
    token."""
    from transformers.generation.utils import GenerateEncoderDecoderOutput

    made: dict[str, tuple[Tensor, ...]] = {}
    if config.output_scores or config.output_logits:
        written, left = [one.tokens for one in found], config.max_length - sequences.shape[1]
        logits, prefix = _logits(model, sources, begins, written, left)
        if config.output_logits:
            made["logits"] = logits.float().unbind(1)
        if config.output_scores:
            scores = processed(logits, prefix, model.processors())
            sampling = method.completed(model.settings).sampling
            made["scores"] = (scores if sampling is None else sampling.filtered(scores)).float().unbind(1)
    return GenerateEncoderDecoderOutput(sequences=sequences, **made)


@torch.no_grad()
def _logits(
    model: Seq2Seq, sources: Sequence[Source], begins: Sequence[Begin], written: Sequence[Sequence[int]], left: int
) -> tuple[Tensor, Prefix]:
    """The logits `[rows, length, vocabulary]` that came before each token that was written, in one more pass, and where
    they stand: an engine that drafts does not meet every place as one-by-one decoding does. `left` more would have had
    room."""
    verifier, rows = model.model, len(sources)
    device, pad = verifier.device, verifier.architecture.pad_token_id
    lengths = torch.tensor([len(source) for source in sources], device=device)
    encoder_inputs = padded(sources, pad).to(device)
    cache = verifier.new_cache(rows)
    verifier.admit(cache, 0, verifier.encode(encoder_inputs, lengths))
    given = torch.tensor([1 + len(begin.prompt) for begin in begins], device=device)
    longest = max(map(len, written))
    whole = [[begin.start, *begin.prompt, *tokens] for begin, tokens in zip(begins, written, strict=True)]
    tokens = padded(whole, pad).to(device)
    known = tokens[:, : int(given.max()) + longest - 1]
    logits = verifier.decode_block(
        cache, known, torch.zeros_like(lengths), known.shape[1], uniform=True, source_horizon=encoder_inputs.shape[1],
        logit_positions=((given - 1)[:, None] + torch.arange(longest, device=device)).clamp(max=known.shape[1] - 1),
    ).logits  # fmt: skip
    return logits, Prefix(tokens, given, given + longest + left, given)


def _each(found: Completion, beams: bool) -> Sequence[tuple[float, list[int]]]:
    return found.hypotheses if beams else [(0.0, found.tokens)]
