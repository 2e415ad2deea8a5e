"""One iteration over fixed tensors: the host reads nothing in it, and no size depends on what the tensors hold, so
that a GPU can replay it as one graph. The arithmetic is that of the loop; only masks are wider."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from spec2seq.decoding.acceptance import AcceptanceRule, Draft, Verdict
from spec2seq.decoding.cached_blocks import CachedSession, through
from spec2seq.decoding.processors import Prefix, Processor, processed
from spec2seq.decoding.rows import Rows
from spec2seq.models.cache import Cache
from spec2seq.models.encoder_decoder import Decoded, EncoderDecoder

HEAD = 3  # numbers of a row's report before its tokens: drafted, accepted, emitted


@dataclass(frozen=True)
class Shape:
    """All sizes of an iteration: rows, places of a source, places of an output that are looked at, drafted tokens, and
    committed tokens that the drafter reads before it drafts."""

    rows: int
    source: int
    horizon: int
    k: int
    fresh: int


@dataclass(eq=False)
class State:
    """The fixed tensors, a slot for each row. `fed[slots]` tokens are in the drafter's cache;
    `features[slots, places, width]` are the verifier's states that chose the token at each place. `eos[]` is a tensor,
    so that one graph serves whatever ends a row.

    A slot may hold no row, or one that has ended or left. Such a row goes through every pass all the same; whatever its
    length is, it is taken for one that the shape has room for.
    """

    rows: Rows
    cache: Cache
    session: CachedSession | None
    fed: Tensor
    features: Tensor
    eos: Tensor


def iterate(
    verifier: EncoderDecoder, state: State, shape: Shape, rule: AcceptanceRule, processors: tuple[Processor, ...] = ()
) -> Tensor:
    """Draft, verify, judge and commit for the first `shape.rows` slots.

    Returns the report `[rows, HEAD + k + 1 + k]`: how many tokens were drafted, accepted and emitted, then the emitted
    tokens and the draft, of which so many count.
    """
    n, rows = shape.rows, state.rows
    lengths = rows.lengths[:n].clamp(max=shape.horizon - shape.k)
    last = rows.tokens[:n].gather(1, lengths[:, None] - 1)
    draft = _draft(verifier, state, shape, lengths, last)
    decoded = verifier.decode_block(
        state.cache.window(shape.source), torch.cat([last, draft.tokens], 1), lengths - 1, shape.horizon,
        hidden_layers=() if state.session is None else state.session.model.shape.hidden_layers,
    )  # fmt: skip
    logits = _processed(decoded.logits, state, shape, draft, lengths, processors) if processors else decoded.logits
    verdict = rule.judge(logits, draft, rows.seeds[:n], lengths)
    return _commit(state, shape, draft, verdict, decoded, lengths)


def _draft(verifier: EncoderDecoder, state: State, shape: Shape, lengths: Tensor, last: Tensor) -> Draft:
    """What `CachedSession.draft` does, over the features by place."""
    n, rows, session = shape.rows, state.rows, state.session
    if session is None or not shape.k:
        return Draft(rows.tokens.new_zeros(n, 0), torch.zeros_like(lengths))
    model, fed = session.model, state.fed[:n].clamp(max=shape.horizon - shape.fresh - shape.k + 1)
    places = fed[:, None] + torch.arange(shape.fresh, device=fed.device)
    features = state.features[:n].gather(1, places[:, :, None].expand(-1, -1, state.features.shape[2]))
    states = model.guess(
        verifier, session.cache.window(shape.source), rows.tokens[:n].gather(1, places), features, fed,
        (lengths - fed).clamp(max=shape.fresh), shape.k, shape.horizon, None,
    )  # fmt: skip
    tokens, _ = model.choose(verifier, session.head, states, last[:, 0], lambda logits, step: logits.argmax(-1))
    room = rows.limits[:n] - lengths - 1  # the verifier adds a token of its own
    return Draft(tokens, torch.minimum(room, through(tokens == state.eos)).clamp(min=0))


def _processed(
    logits: Tensor, state: State, shape: Shape, draft: Draft, lengths: Tensor, processors: tuple[Processor, ...]
) -> Tensor:
    """Logits as the processors want them; the draft stands behind the committed tokens while its places are scored."""
    n, rows = shape.rows, state.rows
    tokens = rows.tokens[:n, : shape.horizon + 1].scatter(
        1, lengths[:, None] + torch.arange(shape.k, device=lengths.device), draft.tokens
    )
    return processed(logits, Prefix(tokens, lengths, rows.limits[:n], rows.given[:n]), processors)


def _commit(
    state: State, shape: Shape, draft: Draft, verdict: Verdict, decoded: Decoded, lengths: Tensor
) -> Tensor:  # fmt: skip
    n, rows = shape.rows, state.rows
    steps = torch.arange(shape.k + 1, device=lengths.device)
    accepted, limits = verdict.accepted, rows.limits[:n]
    stands = steps < accepted[:, None]
    emitted = torch.where(stands, F.pad(draft.tokens, (0, 1)), verdict.replacement[:, None])
    ends = emitted == state.eos
    count = torch.minimum(accepted + 1, through(ends))
    count = torch.minimum(count, (limits - lengths).clamp(min=0))
    places = lengths[:, None] + steps
    rows.tokens[:n].scatter_(1, places, emitted.where(steps < count[:, None], rows.pad_token_id))
    rows.lengths[:n] += count
    ended = (ends & (steps < count[:, None])).any(1)
    limits.copy_(torch.where(ended, lengths + count, limits))
    if state.session is not None:
        _keep_features(state, decoded, places)
        if shape.k:  # a row that got nothing keeps a token to be fed, so that the drafter has one to read
            state.fed[:n] = torch.where(count > 0, lengths, state.fed[:n])
    return torch.cat([torch.stack([draft.lengths, accepted, count], 1), emitted, draft.tokens], 1)


def _keep_features(state: State, decoded: Decoded, places: Tensor) -> None:
    if state.session.model.shape.hidden_layers:
        states = state.session.features(decoded)
        state.features[: len(places)].scatter_(1, places[:, :, None].expand(-1, -1, states.shape[2]), states)
