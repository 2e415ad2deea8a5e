"""Beam search, batched, as Transformers defines it. The only user of `Cache.reorder`.

The beams of a sentence are consecutive rows; its cross-attention keys and values exist once. A sentence that is done
leaves, and the last one takes its place.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spec2seq.decoding.methods import Beam
from spec2seq.decoding.native_rules import NativeRules
from spec2seq.decoding.processors import Prefix, Processor, processed
from spec2seq.decoding.rows import padded
from spec2seq.decoding.scheduler import Completion
from spec2seq.decoding.stats import Counts, Stats
from spec2seq.kernels import library as c
from spec2seq.models import threads
from spec2seq.models.encoder_decoder import EncoderDecoder
from spec2seq.models.native import call

IMPOSSIBLE = -1e9  # Transformers' score of what must not be; what is worse is no hypothesis


@dataclass
class _Sentence:
    """Of one source the finished hypotheses, best first: score, length, the row that it continued and its last token.
    `generator` is where a sampled sentence's draws come from."""

    id: int
    source_length: int
    limit: int  # of tokens, the decoder's start included
    generator: torch.Generator | None = None
    finished: list[tuple[float, int, int, int]] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)


@torch.inference_mode()
def beam_search(
    verifier: EncoderDecoder, sources: list[list[int]], method: Beam, max_new_tokens: list[int],
    processors: list[Processor], stats: Stats, seeds: list[int], eos_token_ids: tuple[int, ...] = (),
    prompts: Sequence[Sequence[int]] | None = None, starts: Sequence[int] | None = None,
) -> list[Completion]:  # fmt: skip
    """Decode one batch of sources by a method that is `completed`; returns the best hypothesis of each, in order, and
    with it the others that were asked for. Counts go into `stats`. `max_new_tokens` and `seeds` are the sources' own,
    the latter of `method.sampling`.

    `eos_token_ids` end a hypothesis; none: the model's own end token. `prompts`, all of one length, are what the
    outputs begin with, behind `starts` (None: the decoder's own); neither is part of a hypothesis. `verifier_calls`
    counts the passes a sentence took part in, all its beams at once.
    """
    started = time.perf_counter()
    with threads.ours(_scores_natively(verifier, method, processors)):
        search = Search(verifier, sources, method, max_new_tokens, processors, seeds, eos_token_ids, prompts, starts)
        while search.running:
            search.step()
    done = sorted(search.done, key=lambda completion: completion.id)
    stats.rows += len(done)
    stats.verifier_passes += len(search.history)
    for completion in done:
        stats.add(completion.counts)
    stats.seconds += time.perf_counter() - started
    return done


def _scores_natively(verifier: EncoderDecoder, method: Beam, processors: list[Processor]) -> bool:
    """Whether the compiled executor chooses the continuations."""
    native = verifier.native is not None and method.sampling is None
    return native and NativeRules.known(processors, verifier.architecture.vocabulary)


class Search:
    """Beam search of a batch, step by step. `running[i]` has the rows from i * beams on. `history` is, for each step,
    what every row continued (a row of the step before) and with which token."""

    def __init__(
        self, verifier: EncoderDecoder, sources, method: Beam, max_new_tokens: list[int], processors, seeds, ends=(),
        prompts=None, starts=None,
    ):  # fmt: skip
        a, device = verifier.architecture, verifier.device
        self.verifier, self.method, self.processors = verifier, method, processors
        self.ends = ends or (a.eos_token_id,)
        self.native = _scores_natively(verifier, method, processors)
        self.rules = NativeRules(processors) if self.native and processors else None
        starts = starts or [a.decoder_start_token_id] * len(sources)
        begins = [(start, *prompt) for start, prompt in zip(starts, prompts or [()] * len(sources), strict=True)]
        self.given = self.length = len(begins[0])
        self.beams = method.num_beams
        self.wanted = (1 + len(self.ends)) * self.beams  # as many as beams do not end, whatever the others are
        # "never" reckons with the score that a longer hypothesis could come to.
        self.to_the_end = method.early_stopping == "never" and method.length_penalty > 0
        limits = [most + self.given for most in max_new_tokens]
        self.running = [_Sentence(index, len(source), limits[index]) for index, source in enumerate(sources)]
        if method.sampling is not None:
            for sentence, seed in zip(self.running, seeds, strict=True):
                sentence.generator = torch.Generator(device).manual_seed(seed)
        self.done: list[Completion] = []
        self.history: list[tuple[list[int], list[int]]] = []
        lengths = torch.tensor([len(source) for source in sources], device=device)
        texts = padded(sources, a.pad_token_id).to(device)
        rows = len(sources) * self.beams
        self.cache = verifier.new_cache(rows, len(sources))
        verifier.admit(self.cache, 0, verifier.encode(texts, lengths))
        self.tokens = torch.full((rows, max(limits)), a.pad_token_id, device=device)
        self.tokens[:, : self.given] = self.tokens.new_tensor(begins).repeat_interleave(self.beams, 0)
        # Sums of log-probabilities need that much. What is drawn is Transformers' if all is float32, as it is there.
        drawn = method.sampling is not None
        dtype = torch.float32 if drawn else torch.promote_types(verifier.dtype, torch.float32)
        # All beams start alike: only the first may speak, or they would all say the same.
        self.scores = torch.full((len(sources), self.beams), IMPOSSIBLE, dtype=dtype, device=device)
        self.scores[:, 0] = 0
        self.best = torch.zeros(len(sources), self.wanted, 2, dtype=torch.float64, device=device)
        if self.given > 1:
            self._decode(slice(0, self.given - 1), scored=False)

    def _decode(self, places: slice, scored: bool = True) -> Tensor:
        """Feed what all beams have at some places; logits `[rows, length or 0, vocabulary]`."""
        tokens = self.tokens[:, places]
        return self.verifier.decode_block(
            self.cache, tokens, torch.full_like(tokens[:, 0], places.start), places.stop, uniform=True,
            source_horizon=max(sentence.source_length for sentence in self.running), sources=len(self.running),
            logit_positions=None if scored else tokens[:, :0],
        ).logits  # fmt: skip

    def step(self) -> None:
        """One token for every beam of every sentence."""
        logits = self._decode(slice(self.length - 1, self.length))
        if self.native and self.verifier.native.takes(logits):
            self._score_natively(logits)
        else:
            self._score(logits)
        self._advance(self.best.tolist(), logits.shape[2])  # the one host read of the step

    def _score(self, logits: Tensor) -> None:
        """Put the candidates of each sentence into `best`: score and place, which is beam * vocabulary + token."""
        log_probabilities = logits.to(self.scores.dtype).log_softmax(-1)
        if self.processors:
            log_probabilities = processed(log_probabilities, self._prefix(), self.processors)
        if self.method.sampling is not None:
            log_probabilities = self.method.sampling.filtered(log_probabilities, fewest=1 + len(self.ends))
        count = len(self.running)
        totals = (self.scores[:, :, None] + log_probabilities.view(count, self.beams, -1)).flatten(1)
        if self.method.sampling is None:
            score, place = totals.topk(self.wanted, dim=1)
        else:
            place = torch.stack([
                p.multinomial(self.wanted, generator=sentence.generator)
                for p, sentence in zip(totals.softmax(-1), self.running, strict=True)
            ])  # fmt: skip
            score = totals.gather(1, place)
        self.best[:count, :, 0], self.best[:count, :, 1] = score, place  # float64 holds both exactly

    def _score_natively(self, logits: Tensor) -> None:
        asked = c.Continuations(
            logits.data_ptr(), self.scores.data_ptr(), len(self.running), self.beams, logits.shape[2], self.wanted,
            self.best.data_ptr(), None, self.length,
        )  # fmt: skip
        if self.rules is not None:
            prefix = self._prefix()
            asked.rules = self.rules.over(prefix.tokens, prefix.limits, prefix.given)
        call("spec2seq_continue", asked)

    def _prefix(self) -> Prefix:
        """What stands before the next token of every beam."""
        lengths = torch.full((len(self.tokens),), self.length, device=self.tokens.device)
        limits = lengths.new_tensor([sentence.limit for sentence in self.running]).repeat_interleave(self.beams)
        return Prefix(self.tokens, lengths, limits, torch.full_like(lengths, self.given))

    def _advance(self, best: list[list[list[float]]], vocabulary: int) -> None:
        """Split the candidates of each sentence into finished hypotheses and beams that go on."""
        rows, words, scores = [], [], []
        ended = []
        for index, sentence in enumerate(self.running):
            going = []
            for rank, (score, place) in enumerate(best[index]):
                source, word = divmod(int(place), vocabulary)
                row = index * self.beams + source
                if rank < self.beams and (word in self.ends or self.length + 1 == sentence.limit):
                    self._finish(sentence, score, row, word)
                if word not in self.ends:
                    going.append((score, row, word))
            if self.method.sampling is not None:  # candidates come as they were drawn
                going.sort(key=lambda candidate: -candidate[0])
            sentence.counts.verifier_calls += 1
            sentence.counts.verifier_tokens += self.beams
            if self.length + 1 == sentence.limit or self._is_done(sentence, best_going=going[0][0]):
                ended.append(index)
            for score, row, word in going[: self.beams]:
                rows.append(row)
                words.append(word)
                scores.append(score)
        for index in reversed(ended):
            self._leave(index, (rows, words, scores))
        self.history.append((rows, words))
        self.length += 1
        if self.running:
            self._go_on(rows, words, scores)

    def _go_on(self, rows: list[int], words: list[int], scores: list[float]) -> None:
        order = self.tokens.new_tensor(rows)
        self.cache.reorder(order, self.length - 1)
        if self.processors:  # nobody else reads what stands before the last token
            self.tokens[: len(rows)] = self.tokens[order]
        self.tokens = self.tokens[: len(rows)]
        self.tokens[:, self.length - 1] = self.tokens.new_tensor(words)
        self.scores = self.scores.new_tensor(scores).view(-1, self.beams)

    def _leave(self, index: int, lists: tuple[list, ...]) -> None:
        """The sentence at `index` is done; the last one takes its place, in the lists by row, too."""
        sentence, last = self.running[index], len(self.running) - 1
        self.done.append(self._completion(sentence))
        if index != last:
            self.running[index] = self.running[last]
            self.cache.move_source(last, index, self.running[index].source_length)
        self.running.pop()
        for values in lists:
            values[index * self.beams : (index + 1) * self.beams] = values[last * self.beams :]
            del values[last * self.beams :]

    def _finish(self, sentence: _Sentence, score: float, row: int, word: int) -> None:
        length = self.length - self.given + 1  # of what was written, this token included
        sentence.finished.append((score / length**self.method.length_penalty, length, row, word))
        sentence.finished.sort(key=lambda hypothesis: -hypothesis[0])
        del sentence.finished[self.beams :]

    def _is_done(self, sentence: _Sentence, best_going: float) -> bool:
        if len(sentence.finished) < self.beams or sentence.finished[-1][0] <= IMPOSSIBLE:
            return False
        if self.method.early_stopping is True:
            return True
        length = (sentence.limit if self.to_the_end else self.length + 1) - self.given
        attainable = best_going / length**self.method.length_penalty
        return attainable <= sentence.finished[-1][0]

    def _completion(self, sentence: _Sentence) -> Completion:
        best = sentence.finished[: self.method.num_return_sequences]
        found = tuple((score, self._written(length, row, word)) for score, length, row, word in best)
        tokens = found[0][1]
        sentence.counts.new_tokens = len(tokens)
        return Completion(sentence.id, tokens, sentence.counts, "v" * len(tokens), found)

    def _written(self, length: int, row: int, word: int) -> list[int]:
        """The tokens of a hypothesis, back from its end."""
        tokens = [word]
        for rows, words in reversed(self.history[: length - 1]):
            tokens.append(words[row])
            row = rows[row]
        return tokens[::-1]
