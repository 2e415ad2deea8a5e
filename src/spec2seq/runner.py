"""Runs sources through a model by one method, of whichever kind."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from spec2seq.checks import LONGEST_SOURCE, check_drafter_reads
from spec2seq.config import check_whole
from spec2seq.decoding.beam import beam_search
from spec2seq.decoding.device_memory import planned_rows
from spec2seq.decoding.loop import AtEnd, Engine
from spec2seq.decoding.methods import Beam, Speculative
from spec2seq.decoding.official import OfficialBiLD
from spec2seq.decoding.sampling import seed_of
from spec2seq.decoding.scheduler import Completion, Source
from spec2seq.decoding.stats import Stats
from spec2seq.decoding.streaming import Streamed, check_streamable
from spec2seq.errors import UsageError
from spec2seq.pairing import check_pair

if TYPE_CHECKING:
    from spec2seq.api import Method, Seq2Seq

AT_ONCE = 16  # iterations in one call: a keyboard interrupt waits for them


class Begin(NamedTuple):
    """How an output begins: with a prompt, behind a start (None: the decoder's own); and the most tokens it may then
    have (None: as many as all others)."""

    prompt: Sequence[int] = ()
    start: int | None = None
    most: int | None = None


EMPTY: Mapping[int, Begin] = {}


def begun(prompts: Sequence[Sequence[int]]) -> dict[int, Begin]:
    """Outputs that begin with these, by their indices."""
    return {index: Begin(prompt) for index, prompt in enumerate(prompts)}


class Runner:
    """One generation: groups of (source, index) in, (index, completion) out, counts in `stats`. `sources` are all that
    there will be, where that is known; `begins`, by index, how outputs begin that begin in a way of their own."""

    def __init__(
        self, seq2seq: "Seq2Seq", method: "Method", max_new_tokens: int | None, batch_size: int, trace: bool,
        profile: bool, sources: Sequence[Source] | None = None, begins: Mapping[int, Begin] = EMPTY,
        scores: bool = False, at_end: AtEnd | None = None,
    ):  # fmt: skip
        check_whole("batch_size", batch_size, low=1)
        if not isinstance(method, Speculative | Beam | OfficialBiLD):
            raise UsageError(f"method is {method!r}; allowed: a method, such as Greedy()")
        if profile and not isinstance(method, Speculative):
            raise UsageError("profile is of the phases of draft and verify; beam search and OfficialBiLD have none")
        if scores and not isinstance(method, Speculative):
            raise UsageError("scores are not for OfficialBiLD, nor for beam search, whose hypotheses have their own")
        if at_end is not None and not isinstance(method, Speculative):
            raise UsageError(f"what is done at a row's end is not done in {type(method).__name__}")
        if sources:
            batch_size = min(batch_size, len(sources))  # costs are measured at the rows there are
        method = method.completed(seq2seq.settings)
        self.seq2seq, self.method, self.batch_size = seq2seq, method, batch_size
        self.begins, self.asked = begins, max_new_tokens
        given = max((len(begin.prompt) for begin in begins.values()), default=0)
        seq2seq.max_new_tokens(max_new_tokens, given)  # raises for what is not possible
        if seq2seq.model.device.type == "cuda" and not isinstance(method, OfficialBiLD):
            most = seq2seq.model.architecture.max_source_positions or LONGEST_SOURCE
            longest = max(map(len, sources)) if sources else most
            self.batch_size = planned_rows(seq2seq.model, method, batch_size, longest,
                                           seq2seq.max_new_tokens(max_new_tokens) + given)  # fmt: skip
        self.engine: Engine | None = None
        self.streamed: Streamed | None = None
        self.stats = Stats()
        if isinstance(method, Speculative):
            self.engine = seq2seq.engine(
                method, self.batch_size, trace=trace, profile=profile, scores=scores, at_end=at_end
            )
            self.stats = self.engine.stats
        else:
            self.processors, self.ends = seq2seq.processors(), seq2seq.eos_token_ids
            if isinstance(method, OfficialBiLD):
                own = seq2seq.model.architecture.decoder_start_token_id
                if given or any(begin.start not in (None, own) for begin in begins.values()):
                    raise UsageError("OfficialBiLD takes no prompts, nor another start; use BiLD")
                check_pair(seq2seq, method.drafter)

    def __call__(self, sources: list[Source], indices: list[int]) -> list[tuple[int, Completion]]:
        return list(self.each(sources, indices))

    def each(self, sources: list[Source], indices: list[int]) -> Iterator[tuple[int, Completion]]:
        """The same as they end."""
        if isinstance(self.method, OfficialBiLD):
            for index, source in zip(indices, sources, strict=True):
                yield index, self._alone(source)
        elif self.engine is None:
            yield from self._beams(sources, indices)
        else:
            yield from self._rows(self.engine, sources, indices)

    def _rows(self, engine: Engine, sources: list[Source], indices: list[int]) -> Iterator[tuple[int, Completion]]:
        engine.stats = self.stats
        place = {}
        for source, index in zip(sources, indices, strict=True):
            check_drafter_reads(self.method.drafter, source, f"source {index + 1}")
            begin, seed = self._begin(index), seed_of(engine.sampling, index)
            place[engine.submit(source, self._most(source, begin), seed, begin.prompt, begin.start)] = index
        while engine.busy:
            ended = engine.step(1 if self.streamed is not None else AT_ONCE)
            if self.streamed is not None:
                self.streamed.follow(engine, ended)
            for completion in ended:
                yield place[completion.id], completion

    def _beams(self, sources: list[Source], indices: list[int]) -> Iterator[tuple[int, Completion]]:
        waiting = [(index, source, self._begin(index)) for index, source in zip(indices, sources, strict=True)]
        own = self.seq2seq.model.architecture.decoder_start_token_id
        while waiting:  # as many as one batch has, with prompts of one length
            alike = [one for one in waiting if len(one[2].prompt) == len(waiting[0][2].prompt)][: self.batch_size]
            places, batch, begins = map(list, zip(*alike, strict=True))
            waiting = [one for one in waiting if one[0] not in places]
            most = [self._most(source, begin) for source, begin in zip(batch, begins, strict=True)]
            found = beam_search(
                self.seq2seq.model, batch, self.method, most, self.processors, self.stats,
                [seed_of(self.method.sampling, index) for index in places], self.ends,
                [begin.prompt for begin in begins], [own if begin.start is None else begin.start for begin in begins],
            )  # fmt: skip
            for completion in found:
                yield places[completion.id], completion

    def _begin(self, index: int) -> Begin:
        return self.begins.get(index, Begin())

    def _most(self, source: Source, begin: Begin) -> int:
        """Tokens of an output."""
        most = begin.most or self.seq2seq.max_new_tokens(self.asked, len(begin.prompt))
        return self.seq2seq.most_tokens(source, most)

    def _alone(self, source: list[int]) -> Completion:
        """A source in the official BiLD, whatever the batch size."""
        started = time.perf_counter()
        most = self._most(source, Begin())
        completion = self.method.decode(self.seq2seq.model, source, most, self.processors, self.ends)
        counts, stats = completion.counts, self.stats
        stats.add(counts)
        stats.rows += 1
        stats.verifier_passes += counts.verifier_calls
        stats.drafter_passes += counts.drafter_calls
        stats.seconds += time.perf_counter() - started
        return completion


def complete(
    seq2seq: "Seq2Seq", method: "Method", sources: Sequence[Source], begins: Mapping[int, Begin], *,
    max_new_tokens: int | None, batch_size: int, trace: bool = False, profile: bool = False, scores: bool = False,
    streamer: Any = None,
) -> tuple[list[Completion], Stats]:  # fmt: skip
    """What becomes of every source, in their order, and the counts; the arguments are those of `Seq2Seq.generate`."""
    if not sources and streamer is None:  # no costs to measure
        return [], Stats()
    run = Runner(seq2seq, method, max_new_tokens, batch_size, trace, profile, sources, begins, scores)
    if streamer is not None:
        check_streamable(run.method, len(sources))
        run.streamed, first = Streamed(streamer), begins.get(0, Begin())
        own = seq2seq.model.architecture.decoder_start_token_id
        run.streamed.start([own if first.start is None else first.start, *first.prompt])
    order = sorted(range(len(sources)), key=lambda index: -len(sources[index]))
    done = dict(run([sources[index] for index in order], order))
    if run.streamed is not None:
        run.streamed.end()
    return [done[index] for index in range(len(sources))], run.stats
