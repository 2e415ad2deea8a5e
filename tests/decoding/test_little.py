"""The little model as a drafter: what it is fed, when it stops, and what it may propose."""

import pytest
import tiny
import torch

from spec2seq import Assisted, BiLD, ConfidenceLength, Exact, FixedLength, Seq2Seq, Speculative
from spec2seq.decoding.drafters import LittleSession
from spec2seq.decoding.loop import Engine
from spec2seq.models.encoder_decoder import EncoderDecoder

CAP = 14


class Spy(EncoderDecoder):
    """Records how many tokens a row each pass was fed."""

    def decode_block(self, cache, tokens, *rest, **named):
        self.widths.append(tokens.shape[1])
        return super().decode_block(cache, tokens, *rest, **named)


def spied(model: Seq2Seq) -> Seq2Seq:
    spy = object.__new__(Spy)
    spy.__dict__.update(model.model.__dict__, widths=[])
    return Seq2Seq(spy, model.config, None, None)


def capped_source(model: Seq2Seq) -> list[int]:
    """A source whose output runs into the cap."""
    sources = tiny.sources(model, 30, 12)
    rows = model.generate(sources, max_new_tokens=CAP).sequences
    return next(s for s, row in zip(sources, rows, strict=True) if model.config.eos_token_id not in row)


def test_two_tokens_after_a_draft_that_stood_whole(family):
    """Its last token was drafted and never fed, so the next draft feeds it and the verifier's own."""
    model = tiny.seq2seq(family)
    little = spied(model)  # always right
    done = model.generate([capped_source(model)], Assisted(little.drafter(), 3), max_new_tokens=CAP)
    assert done.stats.accepted == done.stats.drafted
    # 4 + 4 + 4 tokens, then room for one draft: each draft is one pass a token, the first fed what is pending.
    assert little.model.widths == [1, 1, 1] + [2, 1, 1] + [2, 1, 1] + [2]
    assert done.stats.drafter_calls == 10 and done.stats.drafter_tokens == sum(little.model.widths)


def test_one_token_after_a_rejection(family):
    model = tiny.seq2seq(family)
    little = spied(tiny.seq2seq(family, 2))  # another model: nearly always wrong
    source = capped_source(model)
    done = model.generate([source], Assisted(little.drafter(), 3), max_new_tokens=CAP)
    firsts = little.model.widths[::3]
    assert done.stats.rollbacks > 8
    assert firsts[0] == 1 and set(firsts) <= {1, 2}
    whole = done.stats.accepted_at[2] if len(done.stats.accepted_at) > 2 else 0
    assert firsts.count(2) <= whole + 1


def test_what_is_fed_is_what_is_committed(family):
    """Ragged rows: at each draft the drafter's logits are those of a model that reads the whole prefix anew."""
    model, little = tiny.seq2seq(family), tiny.noisy_copy(tiny.seq2seq(family), 0.03)
    sources, checked = tiny.sources(model, 12, 14), []

    class Checked(LittleSession):
        def _feed_pending(self):
            rows, before = self.rows, self.fed.copy()
            logits = super()._feed_pending()
            for slot in range(rows.count):
                source = rows.source_tokens[slot, : rows.source_lengths[slot]]
                prefix = rows.tokens[slot : slot + 1, : rows.host_lengths[slot]]
                cache = self.model.new_cache(1)
                self.model.admit(cache, 0, self.model.encode(source[None], rows.source_lengths[slot : slot + 1]))
                fresh = self.model.decode_block(
                    cache, prefix, torch.zeros(1, dtype=torch.long), prefix.shape[1], uniform=True
                ).logits[:, -1]
                torch.testing.assert_close(logits[slot : slot + 1], fresh, atol=1e-9, rtol=0)
                checked.append(rows.host_lengths[slot] - before[slot])
            return logits

    drafter = little.drafter()
    object.__setattr__(drafter, "session", lambda rows, verifier: Checked(drafter, rows, verifier))
    done = model.generate(sources, Speculative(drafter, FixedLength(3), Exact()), max_new_tokens=CAP, batch_size=4)
    assert done.sequences == model.generate(sources, max_new_tokens=CAP).sequences
    assert len(checked) > 6 and set(checked) == {1, 2}


@pytest.mark.parametrize("confidence", [None, 0.3])
def test_not_stopping_early_changes_nothing(family, confidence):
    """On a GPU a draft is not cut short as soon as all rows are done: it would wait for the device."""
    model, little = tiny.seq2seq(family), tiny.noisy_copy(tiny.seq2seq(family), 0.02)
    sources, found = tiny.sources(model, 9, 14), []
    for stops_early in (True, False):
        engine = Engine(model.model, Assisted(little.drafter(), 4, confidence), 4, trace=True)
        assert engine.session.stops_early  # on a CPU
        engine.session.stops_early = stops_early
        ids, done = [engine.submit(source, CAP) for source in sources], {}
        while engine.busy:
            done |= {completion.id: completion for completion in engine.step()}
        rows = [done[index] for index in ids]
        found.append([(row.tokens, row.trace, row.counts.drafted, row.counts.fallbacks) for row in rows])
    assert found[0] == found[1]
    assert [tokens for tokens, *_ in found[0]] == model.generate(sources, max_new_tokens=CAP).sequences


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6, 1.0])
def test_drafts_stop_where_the_drafter_is_unsure(threshold):
    model = tiny.seq2seq("bart")
    little = tiny.noisy_copy(model, 0.02)
    sources = tiny.sources(model, 8, 4)
    method = Speculative(little.drafter(), ConfidenceLength(threshold, 6), Exact())
    done = model.generate(sources, method, max_new_tokens=CAP)
    assert done.sequences == model.generate(sources, max_new_tokens=CAP).sequences
    stats = done.stats
    if threshold == 0.0:  # zero is a value: never unsure
        assert stats.fallbacks == 0
        fixed = model.generate(sources, Assisted(little.drafter(), 6), max_new_tokens=CAP).stats
        assert stats.drafted == fixed.drafted
    if threshold == 1.0:  # always unsure: a token that is not certain is left to the verifier
        assert stats.drafted == 0 and stats.fallbacks > 0
        assert stats.verifier_calls == stats.new_tokens
    if 0 < threshold < 1:
        assert 0 < stats.fallbacks < stats.verifier_calls and stats.drafted > 0


def test_the_unsure_token_is_not_drafted():
    """Each drafted token had at least the threshold under the drafter."""
    model = tiny.seq2seq("bart")
    little, source = tiny.noisy_copy(model, 0.02), capped_source(tiny.seq2seq("bart"))
    done = model.generate([source], BiLD(little.drafter(), 0.3, None, 4), max_new_tokens=CAP, trace=True)
    row = done.rows[0]
    assert 0 < row.counts.fallbacks < row.counts.verifier_calls
    tokens, lengths = tiny.padded([source], 1)
    cache = little.model.new_cache(1)
    little.model.admit(cache, 0, little.model.encode(tokens, lengths))
    ids = torch.tensor([[model.config.decoder_start_token_id, *row.tokens[:-1]]])
    top = little.model.decode_block(cache, ids, lengths * 0, len(row.tokens), uniform=True).logits[0].softmax(-1)
    for place, (writer, token) in enumerate(zip(row.trace, row.tokens, strict=True)):
        if writer == "d":
            assert top[place].argmax() == token and top[place].max() >= 0.3
    # With the rollback off, a verifier's token stands at the cap of four or where the drafter doubted.
    runs = [len(run) for run in row.trace.split("v")[:-1]]
    assert max(runs) <= 4
    for place, writer in enumerate(row.trace[:-1]):
        if writer == "v" and not row.trace[:place].endswith("dddd"):
            assert top[place].max() < 0.3


def test_padded_vocabularies():
    """A verifier with more rows than its tokenizer has words: the drafter proposes the common part only."""
    verifier, little = tiny.seq2seq("t5"), tiny.seq2seq("t5", vocabulary=72)
    small, large = (tiny.tokenizer(tiny.seq2seq("t5")) for _ in range(2))
    padded = Seq2Seq(little.model, little.config, large, None)
    named = Seq2Seq(verifier.model, verifier.config, small, verifier.generation_config)
    sources = tiny.sources(verifier, 5)
    expected = named.generate(sources, max_new_tokens=CAP).sequences
    assert named.generate(sources, Assisted(padded.drafter(), 3), max_new_tokens=CAP).sequences == expected
    # And the other way round, with sampling, where distributions must have the verifier's size.
    from spec2seq import Sample

    for model, drafter in ((named, padded), (padded, named)):
        done = model.generate(sources, Sample(drafter=drafter.drafter()), max_new_tokens=CAP, batch_size=3)
        assert done.stats.drafted > 0
        assert all(token < model.config.vocab_size for row in done.sequences for token in row)


def test_a_little_model_of_another_shape():
    verifier, little = tiny.seq2seq("marian"), tiny.seq2seq("marian", 1, layers=1, width=16)
    sources = tiny.sources(verifier, 6)
    done = verifier.generate(sources, Assisted(little.drafter(), 4), max_new_tokens=CAP, batch_size=4)
    assert done.sequences == verifier.generate(sources, max_new_tokens=CAP).sequences
    assert done.stats.drafted > 0
