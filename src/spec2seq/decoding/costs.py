"""What an iteration of the engine takes on this machine, by the length of the draft: measured once, kept on disk."""

import contextlib
import dataclasses
import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from spec2seq.decoding.acceptance import Draft
from spec2seq.decoding.drafters import LittleModel, Session
from spec2seq.decoding.lookup import NgramLookup
from spec2seq.decoding.native_rules import NativeRules
from spec2seq.decoding.processors import Processor
from spec2seq.decoding.sampling import Sampling
from spec2seq.errors import Spec2SeqError
from spec2seq.files import read_json, write_json
from spec2seq.kernels import library as c
from spec2seq.kernels.build import cache_folder, cpu
from spec2seq.models import threads
from spec2seq.models.architecture import Architecture
from spec2seq.models.encoder_decoder import EncoderDecoder
from spec2seq.version import __version__

if TYPE_CHECKING:
    from spec2seq.decoding.methods import Speculative

LENGTHS = (0, 1, 2, 3, 5, 8, 11, 16)  # 5 and 11 with the row's own token fill the kernels' tiles of 6
FIRST = 5  # of them, measured before the others; a slow model has only this one and 0
BUDGET = 0.7  # seconds
ROUNDS = 8
ON_END = 2  # iterations that are timed in one call, as in a decoding loop, where the drafter allows it
SOURCE, OUTPUT = 32, 48  # tokens of a made-up row


@dataclass(frozen=True)
class Costs:
    """Seconds of an iteration by drafted tokens a row: `drafting` for 1 and more, `rest` for 0 and more; and what the
    drafter's own encoder takes for the sources (`reading`), by token that every row emits."""

    drafting: dict[int, float]
    rest: dict[int, float]
    reading: float = 0.0

    def iteration(self, asked: int, fill: float) -> float:
        """Seconds of an iteration in which so many tokens are asked for and a share `fill` of them is drafted."""
        if not asked:
            return _between(self.rest, 0)
        return _between(self.drafting, max(1.0, fill * asked)) + _between(self.rest, fill * asked)


def of_iterations(
    verifier: EncoderDecoder, method: "Speculative", processors: list[Processor], slots: int, ends: int = 1
) -> Costs:
    """What iterations of an engine with such a method and so many end tokens take: known to this process, from disk, or
    measured."""
    key = _key(verifier, method, processors, slots, ends)
    if key not in _known:
        _known[key] = _kept(key, lambda: measure(verifier, method, processors, slots, ends))
    return _known[key]


_known: dict[str, Costs] = {}


def _kept(key: str, measured: Callable[[], Costs]) -> Costs:
    file = cache_folder() / "costs" / f"{key}.json"
    with contextlib.suppress(Spec2SeqError, ValueError, KeyError, TypeError, AttributeError):
        found = read_json(file)
        drafting, rest = ({int(k): float(s) for k, s in found[name].items()} for name in ("drafting", "rest"))
        if rest[0] > 0:
            return Costs(drafting, rest, float(found["reading"]))
    costs = measured()
    with contextlib.suppress(OSError, Spec2SeqError):  # a home that cannot be written to: others will measure again
        for folder in (cache_folder(), file.parent):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(file, dataclasses.asdict(costs))
    return costs


@torch.inference_mode()
def measure(
    verifier: EncoderDecoder, method: "Speculative", processors: list[Processor], slots: int, ends: int = 1
) -> Costs:
    """Run the engine over made-up rows, with each draft length in turn: for less than a second, if a few iterations
    take no longer. Sources and outputs are taken to be of about one length."""
    from spec2seq.decoding.lengths import FixedLength  # which want to know costs themselves
    from spec2seq.decoding.loop import Engine

    a, drafter, cap = verifier.architecture, method.drafter, method.length.cap
    most = a.max_positions or SOURCE + OUTPUT + cap
    sources = _made_up(a, slots, min(SOURCE, most, drafter.longest_source or SOURCE))
    lengths = [k for k in LENGTHS if k < cap] + [cap]
    drafting: dict[int, list[float]] = {k: [] for k in lengths}
    rest: dict[int, list[float]] = {k: [] for k in lengths}
    asking = dataclasses.replace(method, length=FixedLength(cap), starts="drafter")
    none = tuple(range(-ends, 0))  # no row ends early
    engine = Engine(verifier, asking, slots, processors, eos_token_ids=none, profile=True)
    copies = engine.native is not None and isinstance(drafter, NgramLookup)
    if copies:  # made-up text repeats nothing, so the drafts are made up as well
        engine.native.drafts = False
    if engine.native is None or not engine.native.drafts:
        engine.tensors.session = _Full(engine.session)
    began, first = time.perf_counter(), [0, min(FIRST, cap)]
    for number, k in enumerate([*first, *lengths * ROUNDS]):
        if 4 * engine.rows.count < 3 * slots:
            for source in sources[engine.rows.count :]:
                engine.submit(source if a.sound else source.tolist(), min(OUTPUT + cap, most))
            engine.chooser.k = 1
            engine.step()  # in which the drafter reads the new sources
        if number >= len(first) and time.perf_counter() - began > BUDGET:
            break
        engine.chooser.k = k
        turn = time.perf_counter()
        engine.step()  # which finds the caches as another length left them
        new = engine.pace.seconds(engine.native) is None
        if not engine.rows.count or engine.rows.room < k:
            continue
        stats = engine.stats
        drafted, passes = stats.phases.get("draft", 0.0), stats.verifier_passes
        engine.step(ON_END)
        seconds, passes = engine.pace.seconds(engine.native), stats.verifier_passes - passes
        if new or seconds is None:
            began += time.perf_counter() - turn
            continue
        drafted = stats.phases.get("draft", 0.0) - drafted
        drafting[k].append(drafted / passes)
        rest[k].append((seconds - drafted) / passes)
    reading = 0.0
    if isinstance(drafter, LittleModel) and not drafter.reads_as(verifier):
        reading = _reading(drafter.model, sources.to(verifier.device)) / (OUTPUT if a.sound else SOURCE)
    drafting = {} if copies else {k: drafting[k] for k in lengths[1:]}  # to look up takes next to nothing
    # The least: whatever else the machine does only adds to it.
    least = ({k: min(seconds) for k, seconds in part.items() if seconds} for part in (drafting, rest))
    return Costs(*least, reading)


def _made_up(a: Architecture, rows: int, length: int) -> Tensor:
    """Sources `[rows, length]` that nobody wrote, or sounds `[rows, places, 2 * bins]`."""
    words = torch.Generator().manual_seed(0)
    if a.sound is not None:
        return torch.randn(rows, a.sound.places, 2 * a.sound.bins, generator=words)
    vocabulary = a.vocabulary if a.source_vocabulary is None else a.source_vocabulary
    sources = torch.randint(vocabulary, (rows, length), generator=words)
    sources[:, -1] = a.eos_token_id
    return sources


def _between(seconds: dict[int, float], k: float) -> float:
    """On the line through the two nearest measurements; more tokens never take less."""
    points, most = [], 0.0
    for known, measured in sorted(seconds.items()):
        most = max(most, measured)
        points.append((known, most))
    if len(points) < 2:
        return most
    after = max(1, next((i for i, (known, _) in enumerate(points) if known >= k), len(points) - 1))
    (low, fast), (high, slow) = points[after - 1 : after + 1]
    return fast + (slow - fast) * (k - low) / (high - low)


def _reading(little: EncoderDecoder, sources: Tensor) -> float:
    """Seconds that the little model takes to read sources `[rows, length]`, or sounds."""
    if little.architecture.sound is None:
        sources = sources.clamp(max=little.architecture.vocabulary - 1)
    lengths, cache = (
        sources.new_full((len(sources),), sources.shape[1], dtype=torch.long),
        little.new_cache(len(sources)),
    )
    least = math.inf
    for _ in range(3):
        started = time.perf_counter()
        little.admit(cache, 0, little.encode(sources, lengths))
        if sources.is_cuda:
            torch.cuda.synchronize(sources.device)
        least = min(least, time.perf_counter() - started)
    return least


class _Full:
    """A drafter's session whose drafts are filled up, so that a pass over made-up text is as long as was asked for."""

    def __init__(self, session: Session):
        self.session = session
        self.admit, self.commit, self.move = session.admit, session.commit, session.move

    def draft(self, k: int, room: Tensor, confidence: float | None, sampling: Sampling | None) -> Draft:
        found = self.session.draft(k, room, confidence, sampling)
        tokens = nn.functional.pad(found.tokens, (0, k - found.width))
        return dataclasses.replace(found, tokens=tokens, lengths=room.clamp(0, k))


def _key(verifier: EncoderDecoder, method: "Speculative", processors: list[Processor], slots: int, ends: int) -> str:
    """Names what the seconds depend on but the state of the machine."""
    drafter, rule = method.drafter, method.acceptance
    library = c.find()[0]
    known = NativeRules.known(processors, verifier.architecture.vocabulary)
    kinds = known, [type(process).__qualname__ for process in processors]
    facts = [
        __version__, LENGTHS, torch.__version__, cpu(), library and library._name, threads.count(), slots, ends,
        method.length.cap, kinds, type(rule).__name__, rule.sampling is None, type(drafter).__module__,
        type(drafter).__qualname__, getattr(drafter, "distributions", None),
        isinstance(drafter, LittleModel) and drafter.reads_as(verifier),
    ]  # fmt: skip
    for part in (verifier, getattr(drafter, "model", None)):
        if isinstance(part, nn.Module):
            shapes = [(name, tuple(value.shape), str(value.dtype)) for name, value in part.state_dict().items()]
            device = next(part.parameters()).device
            name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
            facts += [shapes, name, getattr(part, "native", None) is not None, getattr(part, "graphs", False)]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:24]
