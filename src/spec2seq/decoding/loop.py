"""The engine: draft, verify, judge, commit, over rows of different lengths, until every request is done."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from spec2seq.checks import check_drafter_reads, check_ids
from spec2seq.config import check_whole
from spec2seq.decoding.methods import Speculative
from spec2seq.decoding.native_loop import Iterated, NativeLoop
from spec2seq.decoding.pace import Pace
from spec2seq.decoding.processors import Processor
from spec2seq.decoding.prompts import read_prompts
from spec2seq.decoding.reader import Reader
from spec2seq.decoding.rows import Rows
from spec2seq.decoding.sampling import Sampling, seed_of
from spec2seq.decoding.scheduler import Completion, Request, Scheduler, Source
from spec2seq.decoding.score import row_log_probabilities
from spec2seq.decoding.static_loop import StaticLoop, borrow
from spec2seq.decoding.stats import Stats
from spec2seq.decoding.tensor_loop import TensorLoop
from spec2seq.errors import UsageError
from spec2seq.models import threads
from spec2seq.models.cache import Cache
from spec2seq.models.encoder_decoder import EncoderDecoder

AtEnd = Callable[[Cache, int, Request], Any]


class Engine:
    """Runs one method on one verifier with `slots` rows in flight. `generate` and a server are its users."""

    def __init__(
        self,
        verifier: EncoderDecoder,
        method: Speculative,
        slots: int,
        processors: list[Processor] | None = None,
        *,
        eos_token_ids: tuple[int, ...] = (),
        trace: bool = False,
        profile: bool = False,
        scores: bool = False,
        at_end: AtEnd | None = None,
    ):
        """`eos_token_ids`: what ends a row; none: the model's own end token. `scores`: a row that ends goes through the
        verifier once more, for the log-probabilities of its tokens. `at_end` gets a cache with the source of such a row
        alone, the source's length, and the request; what it returns is the completion's `more`."""
        self.verifier, self.method, self.processors = verifier, method, processors or []
        self.trace, self.profile, self.scores, self.at_end = trace, profile, scores, at_end
        self.scheduler = Scheduler(slots)
        self.reader = Reader(verifier, self.scheduler)
        self.sampling: Sampling | None = method.acceptance.sampling
        ends = eos_token_ids or (verifier.architecture.eos_token_id,)
        # Before there are caches: it may measure iterations, in engines of its own.
        self.chooser = method.chooser(verifier, slots, self.processors, len(ends)) if method.drafter else None
        self.native: NativeLoop | StaticLoop | None = None  # does an iteration in one call
        if len(ends) == 1 and StaticLoop.can_run(verifier, method):
            self._take(borrow(self, verifier, method, slots, tuple(self.processors)), ends)
        else:
            self._make(slots, ends)
        self.tensors = TensorLoop(verifier, method, self.rows, self.cache, self.session, self.processors)
        self.stats, self.pace = Stats(), Pace()
        self.ids = itertools.count()

    def _take(self, loop: StaticLoop, ends: tuple[int, ...]) -> None:
        """Decode over the tensors of a loop that has them."""
        self.native, self.rows, self.cache, self.session = loop, loop.rows, loop.cache, loop.session
        self.rows.eos_token_ids = ends
        loop.meanwhile = self.reader.read_ahead

    @torch.inference_mode()  # as `step`: a cache that is kept can then be the next one's
    def _make(self, slots: int, ends: tuple[int, ...]) -> None:
        """Tensors of this engine alone, which grow as they must."""
        verifier, method, a = self.verifier, self.method, self.verifier.architecture
        self.rows = Rows(slots, a.decoder_start_token_id, ends, a.pad_token_id, verifier.device)
        self.cache = verifier.new_cache(slots)
        self.session = method.drafter.session(self.rows, verifier) if method.drafter else None
        if len(ends) == 1 and NativeLoop.can_run(verifier, method, self.session, self.processors):
            self.native = NativeLoop(verifier, method, self.rows, self.cache, self.session, self.processors)

    def submit(
        self, source: Source, max_new_tokens: int, seed: int | None = None, prompt: Sequence[int] = (),
        start: int | None = None,
    ) -> int:  # fmt: skip
        """Queue one source (ids, end token included, or a spectrogram); returns the request's id. `seed` draws
        differently for each request: by default it is the method's seed and the request's number. The output begins
        with `prompt`, behind `start` (None: the decoder's own); they are no part of what is returned.

        Raises UsageError for an empty source, one longer than the positions of the model or the drafter, ids that the
        vocabulary does not have, or a cap out of range.
        """
        a = self.verifier.architecture
        most = a.max_source_positions
        if not len(source) or (most is not None and len(source) > most):
            raise UsageError(f"the source has {len(source)} tokens; allowed: 1 to {most or 'any number'}")
        check_drafter_reads(self.method.drafter, source, "the source")
        if a.sound is None:
            check_ids(source, "the source", a.source_vocabulary or a.vocabulary)
        check_ids(prompt, "the prompt", a.vocabulary)
        check_ids([] if start is None else [start], "the start", a.vocabulary)
        room = None if a.max_positions is None else a.max_positions - len(prompt)
        check_whole("max_new_tokens", max_new_tokens, low=1, high=room)
        request_id = next(self.ids)
        if seed is None:
            seed = seed_of(self.sampling, request_id)
        self.scheduler.submit(Request(request_id, source, max_new_tokens, seed, tuple(prompt), start))
        return request_id

    @torch.inference_mode()  # the rows' tensors were made in it, and only there may they change
    def cancel(self, request_id: int) -> bool:
        """Take a request out, waiting or running; False if it is neither."""
        if self.scheduler.withdraw(request_id):
            return True
        for slot, request in enumerate(self.scheduler.running):
            if request.id == request_id:
                self._leave(slot)
                return True
        return False

    @property
    def busy(self) -> bool:
        return bool(self.scheduler.running or self.scheduler.waiting)

    @torch.inference_mode()
    def step(self, most: int = 1) -> list[Completion]:
        """One iteration over the rows in flight, or `most` on end where they can run in one call and no row ends;
        returns the requests that ended. Raises UsageError unless `most` is a whole number of at least 1."""
        check_whole("most", most, low=1)
        started = time.perf_counter()
        with threads.ours(self.compiled):
            with self._phase("encode"):
                self._admit()
            done: list[Completion] = []
            if self.rows.count:
                done = self._iterate(most)
        self.stats.seconds += time.perf_counter() - started
        return done

    @property
    def compiled(self) -> bool:
        """Whether the compiled executor does all that takes long."""
        natively = getattr(self.session, "drafts_natively", False)
        return isinstance(self.native, NativeLoop) and (self.native.drafts or natively)

    @property
    def _opening(self) -> bool:
        """Whether the next token is one that the verifier writes alone."""
        return self.method.starts == "verifier" and self.rows.opening

    def _iterate(self, most: int) -> list[Completion]:
        """One iteration or several, with the draft length that the method's rule chooses."""
        iterate = self._iterate_over_tensors if self.native is None else self._iterate_native
        if self.chooser is None or self.rows.room < 1 or self._opening:
            return iterate(0, most)
        full = 4 * self.rows.count >= 3 * self.scheduler.slots  # what a rule knows of costs is of full batches
        self.pace.begin()
        k = self.chooser.choose()
        done = iterate(k, most)
        if full:
            self.pace.tell(self.chooser, k, self.native)
        self.pace.unread = False
        return done

    def _iterate_over_tensors(self, k: int, most: int) -> list[Completion]:
        """One iteration over tensors, however many there may be."""
        loop = self.tensors
        with self._phase("draft"):
            draft = loop.draft(k)
            tail = loop.unverified_tail(draft)
        decoded = None
        if tail is None or not tail.all():
            with self._phase("verify"):
                decoded = loop.verify(draft)
        with self._phase("judge"):
            verdict = loop.judge(decoded, draft, tail)
            self.reader.read_ahead()  # the device is still at work
            return self._booked(loop.commit(draft, verdict, decoded, tail))

    def _iterate_native(self, k: int, most: int) -> list[Completion]:
        """The same in one call, or in two where the drafter runs before; up to `most` times in one call where it needs
        nothing from outside."""
        done: list[Completion] = []
        if self.native.drafts:
            if self.chooser is not None:
                several = self.native.several and not self._opening
                most = 1 + self.chooser.more(most - 1) if several else 1
            for place, found in enumerate(self.native.run(k, most)):
                if place and self.chooser is not None:
                    self.chooser.again()
                done = self._booked(found)
        else:
            with self._phase("draft"):
                draft = self.tensors.draft(k)
            done = self._booked(self.native.judge(draft))
        if self.profile:
            for name, seconds in self.native.seconds.items():
                self.stats.phases[name] = self.stats.phases.get(name, 0.0) + seconds
        return done

    def _admit(self) -> None:
        for group, encoded in self.reader.read(self.scheduler.admissible()):
            self.pace.unread = True
            first = self.rows.admit(encoded.tokens, group)
            self.scheduler.running.extend(group)
            self.verifier.admit(self.cache, first, encoded)
            if self.session is not None:
                self.session.admit(first, encoded)
            if self.native is not None:
                self.native.admit(first)
            prompted = read_prompts(self.verifier, self.method, self.rows, self.cache, first)
            for reader in (self.session, self.native):
                if prompted is not None and prompted.hidden and reader is not None:
                    reader.prompted(first, prompted)

    def _booked(self, found: Iterated) -> list[Completion]:
        """Count what every row in flight got, let the length rule learn from it, and release who has finished."""
        rows, running = self.rows, self.scheduler.running
        finished = [
            new[-1] in rows.eos_token_ids or length >= limit
            for new, length, limit in zip(found.emitted, rows.host_lengths, rows.host_limits, strict=False)
        ]
        self.stats.verifier_passes += found.passes
        self.stats.drafter_passes += max(found.calls)
        drafting, fed = any(found.calls), 0.0
        # Whose first token the verifier writes was not asked for a draft.
        opening = [self.method.starts == "verifier" and not request.tokens for request in running]
        if drafting:
            filled = fed = len(found.tokens)  # all rows are fed as many as the longest
            if self.native is not None and self.native.ragged:
                filled, fed = (sum(found.drafted) / count for count in (opening.count(False), rows.count))
            self.chooser.filled(found.asked, filled)
        self.pace.booked(fed)
        for slot, request in enumerate(running):
            new, drafted, accepted = found.emitted[slot], found.drafted[slot], found.accepted[slot]
            booked = request.counts
            # An end token that was drafted leaves no room for the verifier's own token.
            written = min(accepted, len(new))
            booked.new_tokens += len(new)
            booked.drafter_calls += found.calls[slot]
            booked.drafter_tokens += found.fed[slot]
            if found.tail[slot]:
                booked.unverified += len(new)
            else:
                booked.verifier_calls += 1
                booked.verifier_tokens += 1 + drafted
            request.tokens += new
            if drafting:
                booked.judged(drafted, written, accepted < drafted, bool(found.unsure[slot]))
                ended = bool(drafted) and found.tokens[drafted - 1][slot] in rows.eos_token_ids
                booked.handovers += drafted == found.asked and not ended
                # A draft that the row's end cut short says nothing of the places behind it.
                cut = finished[slot] and accepted == drafted
                if not opening[slot]:
                    self.chooser.observe(drafted if cut else found.asked, accepted)
            if self.trace:
                request.trace += "d" * written + "v" * (len(new) - written)
        return self._release(finished)

    def _release(self, finished: list[bool]) -> list[Completion]:
        rows, done = self.rows, []
        for slot in reversed(range(rows.count)):
            if finished[slot]:
                scores = more = None
                if self.scores:
                    scores = row_log_probabilities(self.verifier, rows, self.cache, slot, self.processors)
                if self.at_end is not None:
                    request, source = self.scheduler.running[slot], rows.host_sources[slot]
                    more = self.at_end(self.cache.beside(slot), source, request)
                request = self._leave(slot)
                self.stats.rows += 1
                self.stats.add(request.counts)
                done.append(Completion(request.id, request.tokens, request.counts, request.trace, (), scores, more))
        return done

    def _leave(self, slot: int) -> Request:
        last = self.rows.leave(slot)
        if last != slot:
            self.cache.move(last, slot, *self.rows.places(slot))
            if self.session is not None:
                self.session.move(last, slot)
            if self.native is not None:
                self.native.move(last, slot)
        return self.scheduler.leave(slot)

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """Time a phase in profile mode only: it has to wait for the device."""
        if not self.profile:
            yield
            return
        started = time.perf_counter()
        yield
        if self.verifier.device.type == "cuda":
            torch.cuda.synchronize(self.verifier.device)
        self.stats.phases[name] = self.stats.phases.get(name, 0.0) + time.perf_counter() - started
