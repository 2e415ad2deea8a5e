"""Iterations over fixed tensors for the rows in flight: on a GPU each is one graph and one read."""

import weakref
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from spec2seq.decoding.acceptance import AcceptanceRule, Exact, Rollback, TopBeta
from spec2seq.decoding.cached_blocks import CachedBlockDrafter, with_prompts
from spec2seq.decoding.graphs import Graphs, read
from spec2seq.decoding.methods import Speculative
from spec2seq.decoding.native_loop import Iterated
from spec2seq.decoding.processors import Processor
from spec2seq.decoding.rows import Rows
from spec2seq.decoding.static_iteration import HEAD, Shape, State, iterate
from spec2seq.models.encoder_decoder import Decoded, EncoderDecoder

LEAST, FRESH = 64, 16  # places and tokens; fewer cost as much
SETS = 8  # of processors whose graphs are kept
LARGEST = Shape(rows=256, source=1536, horizon=1024, k=32, fresh=64)  # what goes beyond it is not captured


class StaticLoop:
    """Drafting, verifying, judging and committing in one call: greedy decoding and the cached drafter, with rules that
    neither draw nor want distributions.

    Sizes are rounded up, so that few shapes are met. Rows, caches and graphs outlive an engine: see `borrow`.
    """

    drafts, several, ragged = True, False, False
    seconds: dict[str, float] = {}  # of the phases of an iteration: it has none
    spent = None

    def __init__(self, verifier: EncoderDecoder, drafter: CachedBlockDrafter | None, slots: int):
        a, device = verifier.architecture, verifier.device
        self.pointers = _pointers(verifier, drafter)
        self.rows = Rows(slots, a.decoder_start_token_id, (a.eos_token_id,), a.pad_token_id, device)
        self.cache = verifier.new_cache(slots)
        self.session = None if drafter is None else drafter.session(self.rows, verifier)
        features = 0 if drafter is None else len(drafter.hidden_layers) * a.width
        self.longest = 0 if drafter is None else drafter.block_size
        self.state = State(
            self.rows, self.cache, self.session, torch.zeros(slots, dtype=torch.long, device=device),
            torch.zeros(slots, 0, features, dtype=verifier.dtype, device=device),
            torch.tensor(a.eos_token_id, device=device),
        )  # fmt: skip
        # A slot without a row sees one token and one place of a source, so that nothing in it is undefined.
        self.rows.lengths.fill_(1)
        for cache in self._caches():
            cache.source_lengths.fill_(1)
        self.graphs = Graphs(device)
        self.sets: dict[tuple[Processor, ...], tuple[int, tuple[Processor, ...]]] = {}
        self.host_eos = a.eos_token_id
        self.reserved: tuple[int, ...] = ()  # where the tensors lie that the graphs are of

    @staticmethod
    def can_run(verifier: EncoderDecoder, method: Speculative) -> bool:
        """Whether the verifier is to run by graphs, and the method is one of these."""
        rule, drafter = method.acceptance, method.drafter
        if not verifier.graphs or type(rule) not in (Exact, TopBeta, Rollback):
            return False
        if rule.sampling is not None or getattr(rule, "needs_distributions", False):
            return False
        plain = method.verify_tail and method.starts == "drafter" and method.length.confidence is None
        return drafter is None or (isinstance(drafter, CachedBlockDrafter) and plain)

    @property
    def settled(self) -> bool:
        """Whether the last iteration made no graph, which takes long and happens once."""
        return self.graphs.settled

    @property
    def nbytes(self) -> int:
        """Bytes of the caches and of what the drafter reads."""
        return sum(cache.nbytes for cache in self._caches()) + self.state.features.nbytes

    def start(self, verifier: EncoderDecoder, rule: AcceptanceRule, processors: tuple[Processor, ...] = ()) -> None:
        """Serve another engine, without rows. It may put what is to be done while the device works into `meanwhile`."""
        self.verifier, self.rule, self.rows.count = verifier, rule, 0
        if processors not in self.sets and len(self.sets) == SETS:
            self.graphs.forget()
            self.sets.clear()
        # Graphs are of the tensors that the first of equal processors keep.
        self.set, self.processors = self.sets.setdefault(processors, (len(self.sets), processors))
        self.meanwhile: Callable[[], None] = lambda: None
        if self.session is not None:
            self.session.verifier = verifier

    def rest(self) -> None:
        """Let go of the verifier, so that an idle loop does not keep it alive."""
        self.verifier = self.meanwhile = None
        if self.session is not None:
            self.session.verifier = None
            self.session.unread.clear()

    def admit(self, first_slot: int) -> None:
        """Rows that are new in the slots from `first_slot` on."""
        new = slice(first_slot, self.rows.count)
        self.state.fed[new] = 0
        self.state.features[new, :1] = 0

    def prompted(self, first_slot: int, decoded: Decoded) -> None:
        """As `Session.prompted`."""
        self.state.features = with_prompts(self.state.features, first_slot, self.session.features(decoded))

    def move(self, source: int, target: int) -> None:
        """As `Session.move`."""
        self.state.fed[target] = self.state.fed[source]
        self.state.features[target] = self.state.features[source]

    def run(self, k: int, most: int = 1) -> Iterator[Iterated]:
        """Draft k tokens, or as many as the drafter can; 0: none. Commit what stands. `most` is 1."""
        n, asked, k = self.rows.count, k, min(k, self.longest)
        if k:
            self.session.read_sources()
        report = self.launch(self.shape(k))
        found = read(report[:n], self.meanwhile)
        fed = 0
        if k:
            fed = self.fresh + k - 1
            self.session.fed[:n] = self.rows.host_lengths[:n]
        yield self._commit(found, k, asked, fed)

    def launch(self, shape: Shape) -> Tensor:
        """Begin an iteration; returns its report, which may still be in the making."""
        self._reserve(shape)
        if self.rows.eos_token_ids[0] != self.host_eos:
            self.host_eos = self.rows.eos_token_ids[0]
            self.state.eos.fill_(self.host_eos)
        captured = all(getattr(shape, name) <= most for name, most in vars(LARGEST).items())
        return self.graphs.run(
            (shape, self.rule, self.set) if captured else None,
            lambda: iterate(self.verifier, self.state, shape, self.rule, self.processors),
        )

    @property
    def fresh(self) -> int:
        """The most committed tokens of any row in flight that the drafter has not read."""
        n = self.rows.count
        return max(length - fed for length, fed in zip(self.rows.host_lengths[:n], self.session.fed, strict=False))

    def shape(self, k: int) -> Shape:
        """Of an iteration over the rows in flight with so many drafted tokens."""
        rows, fresh, places = self.rows, 1, self.rows.horizon + k
        if k:  # the drafter reads what came since a draft of this length; more where the last was longer, or long ago
            fresh = k + 1 if self.fresh <= k + 1 else up(self.fresh, FRESH, 4)
            places = max(places, max(self.session.fed[: rows.count]) + fresh + k - 1)
        return Shape(up(rows.count), up(rows.source_horizon, LEAST, 4), up(places, LEAST), k, fresh)

    def _reserve(self, shape: Shape) -> None:
        """Make room for an iteration, and at once for all that the rows in flight will need; graphs of tensors that had
        to grow are forgotten."""
        rows, state = self.rows, self.state
        places = max(shape.horizon, up(max(rows.host_limits[: rows.count]) + 2 * self.longest, LEAST))
        rows.reserve(places + 1)
        for cache in self._caches():
            cache.reserve(places)
            cache.reserve_source(shape.source)
        missing = rows.tokens.shape[1] - state.features.shape[1]
        if missing:
            state.features = nn.functional.pad(state.features, (0, 0, 0, missing))
        held = (rows.tokens, state.features, *(part for cache in self._caches() for part in (cache.own, cache.source)))
        pointers = tuple(tensor.data_ptr() for tensor in held)
        if pointers != self.reserved:
            self.graphs.forget()
            self.reserved = pointers

    def _caches(self) -> list:
        return [self.cache] if self.session is None else [self.cache, self.session.cache]

    def _commit(self, report: list[list[int]], k: int, asked: int, fed: int) -> Iterated:
        for slot, row in enumerate(report):
            self.rows.host_lengths[slot] += row[2]
        none = [0] * len(report)
        return Iterated(
            [row[0] for row in report], [row[1] for row in report], [row[HEAD : HEAD + row[2]] for row in report], none,
            [[row[HEAD + k + 1 + place] for row in report] for place in range(k)],
            [int(k > 0)] * len(report), [fed] * len(report), asked, 1, none,
        )  # fmt: skip


def up(value: int, least: int = 1, steps: int = 1) -> int:
    """The next size: `least`, its doubles, and `steps` equal steps from one of these to the next."""
    below = least
    while 2 * below < value:
        below *= 2
    step = below // steps
    return max(least, -(-value // step) * step)


def borrow(
    engine: Any, verifier: EncoderDecoder, method: Speculative, slots: int, processors: tuple[Processor, ...] = ()
) -> StaticLoop:
    """A loop for an engine, until that is gone. Then it waits with its buffers and graphs for the next engine that
    needs no more slots, as long as the verifier and the drafter live."""
    drafter, pointers = method.drafter, _pointers(verifier, method.drafter)
    owner = drafter or verifier
    idle = _waiting(verifier, owner)
    same = [loop for loop in idle if loop.pointers == pointers]
    loop = next((loop for loop in same if loop.rows.slots >= slots), None)
    if loop is None:
        idle[:] = [loop for loop in idle if loop not in same]  # the new one will serve whom they could
        loop = StaticLoop(verifier, drafter, up(slots))
    else:
        idle.remove(loop)
    loop.start(verifier, method.acceptance, processors)
    weakref.finalize(engine, _give_back, weakref.ref(verifier), weakref.ref(owner), loop).atexit = False
    return loop


def idle_bytes(verifier: EncoderDecoder) -> int:
    """What idle loops of a verifier hold of its device."""
    return sum(loop.nbytes for loops in _idle.get(verifier, {}).values() for loop in loops)


def drop_idle(verifier: EncoderDecoder) -> None:
    """Free what idle loops of a verifier hold."""
    _idle.pop(verifier, None)


# By the drafter, or the verifier where there is none: training validates one copy after the other, each for a moment.
_idle: WeakKeyDictionary[EncoderDecoder, WeakKeyDictionary[Any, list[StaticLoop]]] = WeakKeyDictionary()


def _waiting(verifier: EncoderDecoder, owner: Any) -> list[StaticLoop]:
    return _idle.setdefault(verifier, WeakKeyDictionary()).setdefault(owner, [])


def _give_back(verifier: weakref.ref, owner: weakref.ref, loop: StaticLoop) -> None:
    loop.rest()
    if verifier() is not None and owner() is not None:
        _waiting(verifier(), owner()).append(loop)


def _pointers(*models: Any) -> tuple[int, ...]:
    """Where the weights lie: graphs are of these, and of no others."""
    modules = [getattr(model, "model", model) for model in models if model is not None]
    return tuple(weight.data_ptr() for module in modules for weight in module.parameters())
