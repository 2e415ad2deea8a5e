"""Beam search, batched, as Transformers defines it. The only user of `Cache.reorder`.

The beams of a sentence are consecutive rows; its cross-attention keys and values exist once.
"""

import time
from dataclasses import dataclass, field

import torch

from spec2seq.decoding.logits import Prefix, Processor
from spec2seq.decoding.methods import Beam
from spec2seq.decoding.rows import padded
from spec2seq.decoding.scheduler import Completion
from spec2seq.decoding.stats import Counts, Stats
from spec2seq.models.encoder_decoder import EncoderDecoder


@dataclass
class _Sentence:
    """Finished hypotheses (score, tokens) of one source, best first."""

    id: int
    finished: list[tuple[float, list[int]]] = field(default_factory=list)
    done: bool = False
    counts: Counts = field(default_factory=Counts)


@torch.inference_mode()
def beam_search(
    verifier: EncoderDecoder, sources: list[list[int]], method: Beam, max_new_tokens: int,
    processors: list[Processor], stats: Stats, eos_token_ids: tuple[int, ...] = (),
) -> list[Completion]:  # fmt: skip
    """Decode one batch of sources by a method that is `completed`; returns the best hypothesis of each, in order, and
    with it the others that were asked for. Counts go into `stats`.

    `eos_token_ids` end a hypothesis; none: the model's own end token. `verifier_calls` counts the passes a sentence
    took part in, all its beams at once.
    """
    started = time.perf_counter()
    search = _Search(verifier, sources, method, max_new_tokens, processors, eos_token_ids)
    while not search.over:
        search.step()
    done = search.results()
    stats.rows += len(done)
    stats.verifier_passes += search.passes
    for completion in done:
        stats.add(completion.counts)
    stats.seconds += time.perf_counter() - started
    return done


class _Search:
    def __init__(self, verifier: EncoderDecoder, sources, method: Beam, max_new_tokens: int, processors, ends):
        a, device = verifier.architecture, verifier.device
        self.verifier, self.method, self.processors = verifier, method, processors
        self.ends, self.limit, self.passes, self.length = ends or (a.eos_token_id,), max_new_tokens + 1, 0, 1
        self.beams = method.num_beams
        # "never" reckons with the score that a longer hypothesis could come to.
        self.to_the_end = method.early_stopping == "never" and method.length_penalty > 0
        self.sentences = [_Sentence(index) for index in range(len(sources))]
        lengths = torch.tensor([len(source) for source in sources], device=device)
        texts = padded(sources, a.pad_token_id).to(device)
        self.cache = verifier.new_cache(len(sources) * self.beams)
        verifier.admit(self.cache, 0, verifier.encode(texts, lengths))
        self.source_horizon = texts.shape[1]
        rows = len(sources) * self.beams
        self.tokens = torch.full((rows, self.limit), a.pad_token_id, device=device)
        self.tokens[:, 0] = a.decoder_start_token_id
        self.written: list[list[int]] = [[] for _ in range(rows)]  # the host's copy, without the start
        # All beams start alike: only the first may speak, or they would all say the same.
        dtype = torch.promote_types(verifier.dtype, torch.float32)  # sums of log-probabilities need that much
        self.scores = torch.full((len(sources), self.beams), -1e9, dtype=dtype, device=device)
        self.scores[:, 0] = 0

    @property
    def over(self) -> bool:
        return self.length >= self.limit or all(sentence.done for sentence in self.sentences)

    def step(self) -> None:
        """One token for every beam of every sentence."""
        rows, count = self.tokens.shape[0], len(self.sentences)
        lengths = torch.full((rows,), self.length - 1, device=self.tokens.device)
        decoded = self.verifier.decode_block(
            self.cache, self.tokens[:, self.length - 1 : self.length], lengths, self.length,
            uniform=True, source_horizon=self.source_horizon, sources=count,
        )  # fmt: skip
        self.passes += 1
        log_probabilities = decoded.logits.to(self.scores.dtype).log_softmax(-1)
        if self.processors:
            prefix = Prefix(self.tokens, lengths + 1, torch.full_like(lengths, self.limit))
            for process in self.processors:
                log_probabilities = process(log_probabilities, prefix)
        vocabulary = log_probabilities.shape[2]
        totals = (self.scores[:, :, None] + log_probabilities.view(count, self.beams, vocabulary)).flatten(1)
        best, place = totals.topk((1 + len(self.ends)) * self.beams, dim=1)
        packed = torch.stack([best.double(), place.double()], 2)  # float64 holds both exactly
        self._advance(packed.tolist(), vocabulary)  # the one host read of the step

    def _advance(self, best: list[list[list[float]]], vocabulary: int) -> None:
        """Split the best continuations (score, place) of each sentence, at least as many as beams if all others end
        one, into finished hypotheses and running beams; a place is beam × vocabulary + token."""
        chosen = []
        for index, sentence in enumerate(self.sentences):
            running = []
            for rank, (score, place) in enumerate(best[index]):
                source, word = divmod(int(place), vocabulary)
                row = index * self.beams + source
                if word in self.ends or self.length + 1 == self.limit:
                    if rank < self.beams and not sentence.done:
                        self._finish(sentence, score, [*self.written[row], word])
                    if word in self.ends:
                        continue
                running.append((row, word, score))
            if not sentence.done:
                sentence.counts.verifier_calls += 1
                sentence.counts.verifier_tokens += self.beams
                sentence.done = self._is_done(sentence, best_running=running[0][2])
            chosen += running[: self.beams]
        rows, words, scores = zip(*chosen, strict=True)
        self.written = [[*self.written[row], word] for row, word in zip(rows, words, strict=True)]
        order = self.tokens.new_tensor(rows)
        self.cache.reorder(order, self.length)
        self.tokens = self.tokens[order]
        self.tokens[:, self.length] = self.tokens.new_tensor(words)
        self.scores = self.scores.new_tensor(scores).view(self.scores.shape)
        self.length += 1

    def _finish(self, sentence: _Sentence, score: float, tokens: list[int]) -> None:
        sentence.finished.append((score / len(tokens) ** self.method.length_penalty, tokens))
        sentence.finished.sort(key=lambda hypothesis: -hypothesis[0])
        del sentence.finished[self.beams :]

    def _is_done(self, sentence: _Sentence, best_running: float) -> bool:
        if len(sentence.finished) < self.beams:
            return False
        if self.method.early_stopping is True:
            return True
        length = self.limit - 1 if self.to_the_end else self.length
        attainable = best_running / length**self.method.length_penalty
        return attainable <= sentence.finished[-1][0]

    def results(self) -> list[Completion]:
        done = []
        for sentence in self.sentences:
            best = sentence.finished[: self.method.num_return_sequences]
            tokens = best[0][1]
            sentence.counts.new_tokens = len(tokens)
            done.append(Completion(sentence.id, tokens, sentence.counts, "v" * len(tokens), tuple(best)))
        return done
