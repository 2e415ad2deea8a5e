"""What an iteration of the engine takes on this machine, by the length of the draft: measured once, kept on disk."""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spec2seq.decoding.acceptance import Draft
from spec2seq.decoding.drafters import Drafter, LittleModel, Session
from spec2seq.decoding.sampling import Sampling
from spec2seq.kernels.build import cache_folder, cpu
from spec2seq.models.encoder_decoder import EncoderDecoder
from spec2seq.version import __version__

LENGTHS = (0, 1, 2, 4, 8, 16)
BUDGET = 0.7  # seconds; no length is tried after that, once there are two
ROUNDS = 9
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


def of_iterations(verifier: EncoderDecoder, drafter: Drafter, slots: int, cap: int) -> Costs:
    """From disk, or measured: in a second or less, if two iterations take no longer."""
    file = cache_folder() / "costs" / f"{_key(verifier, drafter, slots, cap)}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(file.read_text(encoding="utf-8"))
        drafting, rest = ({int(k): float(s) for k, s in found[name].items()} for name in ("drafting", "rest"))
        return Costs(drafting, rest, float(found["reading"]))
    costs = measure(verifier, drafter, slots, cap)
    with contextlib.suppress(OSError):  # a home that cannot be written to: it will be measured again
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=".writing-")
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            json.dump(dataclasses.asdict(costs), out)
        os.replace(temporary, file)
    return costs


@torch.inference_mode()
def measure(verifier: EncoderDecoder, drafter: Drafter, slots: int, cap: int) -> Costs:
    """Run the engine over made-up rows, with each draft length in turn."""
    from spec2seq.decoding.loop import Engine  # which asks for costs itself
    from spec2seq.decoding.methods import Speculative

    a, words = verifier.architecture, torch.Generator().manual_seed(0)
    vocabulary = a.vocabulary if a.source_vocabulary is None else a.source_vocabulary
    most = a.max_positions or SOURCE + OUTPUT + cap
    length = min(SOURCE, most, drafter.longest_source or SOURCE)
    sources = torch.randint(vocabulary, (slots, length), generator=words)
    sources[:, -1] = a.eos_token_id
    lengths = [k for k in LENGTHS if k < cap] + [cap]
    drafting: dict[int, list[float]] = {k: [] for k in lengths}
    rest: dict[int, list[float]] = {k: [] for k in lengths}
    engine = Engine(verifier, Speculative(drafter, _Asks(cap)), slots, profile=True)
    asks = engine.chooser
    copies = engine.native is not None and engine.native.field == "lookup"
    if copies:  # made-up text repeats nothing, so the drafts are made up as well
        engine.native.drafts = False
    if engine.native is None or not engine.native.drafts:
        engine.session = _Full(engine.session)
    engine.rows.eos_token_id = -1  # no row ends before its limit
    began = time.perf_counter()
    for k in lengths * ROUNDS:
        if 4 * engine.rows.count < 3 * slots:
            for source in sources[engine.rows.count :].tolist():
                engine.submit(source, min(OUTPUT + cap, most))
            asks.k = 1
            engine.step()  # in which the drafter reads the new sources
        asks.k = k
        started = time.perf_counter()
        if started - began > BUDGET and rest[lengths[1]]:
            break
        before, whole = engine.stats.phases.get("draft", 0.0), engine.rows.room >= k
        engine.step()
        if not whole:
            continue
        drafting[k].append(engine.stats.phases.get("draft", 0.0) - before)
        rest[k].append(time.perf_counter() - started - drafting[k][-1])
    reading = 0.0
    if isinstance(drafter, LittleModel) and not drafter.shares_encoder:
        reading = _reading(drafter.model, sources.to(verifier.device)) / SOURCE
    drafting = {} if copies else {k: drafting[k] for k in lengths[1:]}  # to look up takes next to nothing
    least = ({k: min(seconds) for k, seconds in part.items() if seconds} for part in (drafting, rest))
    return Costs(*least, reading)


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
    """Seconds that the little model takes to read sources `[rows, length]`."""
    sources = sources.clamp(max=little.architecture.vocabulary - 1)
    lengths, cache = torch.full_like(sources[:, 0], sources.shape[1]), little.new_cache(len(sources))
    least = math.inf
    for _ in range(3):
        started = time.perf_counter()
        little.admit(cache, 0, little.encode(sources, lengths))
        if sources.is_cuda:
            torch.cuda.synchronize(sources.device)
        least = min(least, time.perf_counter() - started)
    return least


@dataclass
class _Asks:
    """A length rule and its running state: the `k` that is measured next."""

    cap: int
    k: int = 1

    confidence = None

    def chooser(self, costs: Callable[[], Costs]) -> "_Asks":
        return self

    def choose(self) -> int:
        return self.k

    def observe(self, asked: int, accepted: int) -> None:
        pass

    def filled(self, asked: int, drafted: int) -> None:
        pass


class _Full:
    """A drafter's session whose drafts are filled up, so that a pass over made-up text is as long as was asked for."""

    def __init__(self, session: Session):
        self.session = session
        self.admit, self.commit, self.move = session.admit, session.commit, session.move

    def draft(self, k: int, room: Tensor, confidence: float | None, sampling: Sampling | None) -> Draft:
        found = self.session.draft(k, room, confidence, sampling)
        tokens = nn.functional.pad(found.tokens, (0, k - found.width))
        return dataclasses.replace(found, tokens=tokens, lengths=room.clamp(0, k))


def _key(verifier: EncoderDecoder, drafter: Drafter, slots: int, cap: int) -> str:
    """Names all that the seconds depend on but the state of the machine."""
    model = getattr(drafter, "model", None)
    facts = [__version__, torch.__version__, cpu(), torch.get_num_threads(), slots, cap, type(drafter).__name__]
    for part in (verifier, model):
        if isinstance(part, nn.Module):
            shapes = [(name, tuple(value.shape), str(value.dtype)) for name, value in part.state_dict().items()]
            facts += [shapes, str(next(part.parameters()).device), getattr(part, "native", None) is not None]
    facts += [getattr(verifier, "architecture", None)]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:24]
