"""The cached block drafter: what it drafts from its cache is what it would draft from scratch."""

import dataclasses
import itertools

import pytest
import tiny
import torch

from spec2seq import (
    AdaptiveLength,
    BlockDrafter,
    FixedLength,
    Rollback,
    Sample,
    Spec2SeqError,
    SpecDec,
    Speculative,
    UsageError,
)
from spec2seq.decoding.cached_blocks import CachedSession
from spec2seq.models.encoder_decoder import Encoded


def padded(rows, filler):
    width = max(map(len, rows))
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows])


def read(model, sources, outputs, layers):
    """Encoding of the sources, decoder inputs, and for each place the verifier's states that chose the token there."""
    a = model.model.architecture
    lengths = torch.tensor([len(source) for source in sources])
    encoded = model.model.encode(padded(sources, a.pad_token_id), lengths)
    inputs = padded([[a.decoder_start_token_id, *output] for output in outputs], a.pad_token_id)
    cache = model.model.new_cache(len(sources))
    model.model.admit(cache, 0, encoded)
    decoded = model.model.decode_block(
        cache, inputs, torch.zeros(len(sources), dtype=torch.long), inputs.shape[1], uniform=True,
        source_horizon=int(lengths.max()), hidden_layers=layers,
    )  # fmt: skip
    states = torch.cat([decoded.hidden[layer] for layer in layers], 2)
    return encoded, inputs, torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], 1)


@pytest.mark.parametrize("layers", [1, 2])
def test_training_and_drafting_see_the_same(family, layers):
    """Several blocks of a sentence at once, against one block after another over the cache, rows ragged."""
    model = tiny.seq2seq(family)
    drafter = tiny.cached_drafter(model, layers=layers).model
    sources = tiny.sources(model, 3, 5)
    outputs = [[5, 6, 7, 8, 9], [9, 8, 5, 9, 7, 6], [6, 6, 6, 7, 7, 5, 8]]
    encoded, inputs, features = read(model, sources, outputs, drafter.shape.hidden_layers)
    size = drafter.shape.block_size
    anchors = torch.tensor([[1, 3], [0, 4], [2, 5]])
    at_tokens, at_slots = drafter.block_states(model.model, encoded, inputs, features, anchors)
    cache, fed = drafter.new_cache(3), torch.zeros(3, dtype=torch.long)
    drafter.admit(cache, 0, encoded)
    for block in range(2):
        fresh = anchors[:, block] + 1 - fed
        places = fed[:, None] + torch.arange(int(fresh.max()))
        places = places.clamp(max=inputs.shape[1] - 1)
        found = drafter.guess(
            model.model, cache, inputs.gather(1, places),
            features.gather(1, places[:, :, None].expand(-1, -1, features.shape[2])), fed, fresh, size,
            int(fed.max() + fresh.max()) + size - 1, encoded.states.shape[1],
        )  # fmt: skip
        rows = torch.arange(3)
        assert torch.allclose(found[:, 0], at_tokens[rows, anchors[:, block]], atol=1e-9)
        assert torch.allclose(found[:, 1:], at_slots[:, block], atol=1e-9)
        fed = anchors[:, block] + 1


@pytest.mark.parametrize(("batch_size", "shortlist"), [(1, 0), (3, 0), (3, 40)])
def test_drafts_from_the_cache_are_drafts_from_scratch(family, batch_size, shortlist, monkeypatch):
    """After acceptances of every length, rollbacks, moved rows and passes without a draft."""
    model = tiny.seq2seq(family)
    block = tiny.cached_drafter(model, shortlist=shortlist)
    drafts = []
    draft = CachedSession.draft

    def spy(self, k, *rest):
        if len(drafts) % 5 == 4:
            k = 1
        rows = self.rows
        before = [rows.tokens[i, 1 : rows.host_lengths[i]].tolist() for i in range(rows.count)]
        sources = [rows.source_tokens[i, : rows.source_lengths[i]].tolist() for i in range(rows.count)]
        done = draft(self, k, *rest)
        drafts.append((sources, before, done.tokens.tolist()))
        return done

    monkeypatch.setattr(CachedSession, "draft", spy)
    sources = tiny.sources(model, 7, 3)
    # Accepts and rejects by a threshold that these untrained drafts often pass.
    found = model.generate(sources, Speculative(block, FixedLength(4), Rollback(6.0)), max_new_tokens=24,
                           batch_size=batch_size)  # fmt: skip
    assert 0.1 < found.stats.acceptance < 0.9
    monkeypatch.undo()
    drafter, layers = block.model, block.hidden_layers
    for sources, before, wanted in drafts:
        for source, output, tokens in zip(sources, before, wanted, strict=True):
            encoded, inputs, features = read(model, [source], [output], layers)
            cache = drafter.new_cache(1)
            drafter.admit(cache, 0, encoded)
            n, k = inputs.shape[1], len(tokens)
            states = drafter.guess(
                model.model, cache, inputs, features, torch.tensor([0]), torch.tensor([n]), k, n + k - 1, len(source)
            )
            chosen, _ = drafter.choose(
                model.model,
                drafter.guess_head(model.model),
                states,
                inputs[:, -1],
                lambda logits, step: logits.argmax(-1),
            )
            assert chosen[0].tolist() == tokens


def test_passes_without_a_draft_are_caught_up(family):
    """Where the length rule drafts nothing for a while, the verifier's states wait for the next draft."""
    model = tiny.seq2seq(family)
    block, sources = tiny.cached_drafter(model), tiny.sources(model, 5, 3)
    wanted = model.generate(sources, max_new_tokens=20).sequences
    method = Speculative(block, AdaptiveLength(4))
    for batch_size in (1, 3):
        assert model.generate(sources, method, max_new_tokens=20, batch_size=batch_size).sequences == wanted
    assert any(method.chooser(model.model, 1).tried)


class Seldom(FixedLength):
    """Three tokens with every ninth pass."""

    def chooser(self, costs):
        order = itertools.cycle([0] * 8 + [3])
        made = super().chooser(costs)
        made.choose = lambda: next(order)
        return made


def test_sources_are_read_when_a_draft_needs_them(family, monkeypatch):
    """Rows come, move and leave before; what is drafted is what it would be had they been read at once."""
    model, read = tiny.seq2seq(family), []
    sources, drafter = tiny.sources(model, 14, 3), tiny.cached_drafter(model)
    admit, enter = type(drafter.model).admit, CachedSession.admit

    def counted(self, cache, first_slot, encoded):
        read.append(len(encoded.lengths))
        admit(self, cache, first_slot, encoded)

    def at_once(self, first_slot, encoded):
        enter(self, first_slot, encoded)
        self.read_sources()

    monkeypatch.setattr(type(drafter.model), "admit", counted)
    runs = []
    for change in (False, True):
        if change:
            monkeypatch.setattr(CachedSession, "admit", at_once)
        found = model.generate(sources, Speculative(drafter, Seldom()), max_new_tokens=20, batch_size=4)
        runs.append((found.sequences, found.stats.drafted_at, found.stats.accepted_at, sum(read)))
        read.clear()
    assert runs[0][:3] == runs[1][:3] and sum(runs[0][2]) > 0
    assert 0 < runs[0][3] < runs[1][3] == len(sources)


def test_a_slot_hangs_on_the_token_chosen_before_it():
    model = tiny.seq2seq("bart")
    drafter, verifier = tiny.cached_drafter(model, follow_width=2).model, model.model
    for weight in drafter.follow.parameters():
        weight.zero_()
    states = torch.randn(1, 2, verifier.architecture.width, dtype=torch.float64)
    last, head, greedy = torch.tensor([9]), drafter.guess_head(verifier), lambda logits, step: logits.argmax(-1)
    plain, logits = drafter.choose(verifier, head, states, last, greedy)
    assert torch.allclose(logits, verifier.logits(states)) and torch.equal(plain, logits.argmax(-1))
    # The network answers only to the first choice: the slot behind it wants another token.
    first, wanted = int(plain[0, 0]), (int(plain[0, 1]) + 1) % 64
    embedded = verifier.target_embedding[first]
    drafter.follow.token.weight[0] = 100 * embedded / embedded.norm() ** 2
    drafter.follow.out.weight[:, 0] = 10 * verifier.head.weight[wanted]
    drafter.follow.state.bias[0] = -60.0
    assert drafter.choose(verifier, head, states, last, greedy)[0].tolist() == [[first, wanted]]
    assert drafter.choose(verifier, head, states[:, 1:], last, greedy)[0].tolist() == plain[:, 1:].tolist()


def test_only_the_shortlist_is_guessed(family):
    model = tiny.seq2seq(family)
    block = tiny.cached_drafter(model, shortlist=12)
    block.model.shortlist.copy_(torch.arange(40, 52))
    states = torch.randn(2, 3, model.model.architecture.width, dtype=torch.float64)
    logits = block.model.guess_head(model.model)(states)
    assert torch.allclose(logits, model.model.logits(states)[:, :, 40:52])
    sources = tiny.sources(model, 4)
    for method in (SpecDec(block, 5), Sample(drafter=block, length=FixedLength(5))):
        found = model.generate(sources, method, max_new_tokens=12, trace=True)
        drafted = {t for row in found.rows for t, by in zip(row.tokens, row.trace, strict=True) if by == "d"}
        assert drafted <= set(range(40, 52))
    assert model.generate(sources, SpecDec(block, 5)).sequences == model.generate(sources).sequences


def test_a_folder_keeps_everything(tmp_path):
    model = tiny.seq2seq("marian")
    block = tiny.cached_drafter(model, shortlist=20)
    block.model.save_pretrained(tmp_path / "drafter")
    again = BlockDrafter.from_pretrained(tmp_path / "drafter", "float64")
    assert again.model.shape == block.model.shape and again.model.verifier == model.fingerprint()
    assert again.model.architecture == model.model.architecture
    for name, weight in block.model.state_dict().items():
        assert torch.equal(
            again.model.state_dict()[name], weight.half().double() if weight.is_floating_point() else weight
        )
    with pytest.raises(Spec2SeqError, match="exists already"):
        block.model.save_pretrained(tmp_path / "drafter")


def test_another_verifier_is_refused_and_other_weights_are_one_warning(recwarn):
    model = tiny.seq2seq("marian")
    sources = tiny.sources(model, 2)
    block = tiny.cached_drafter(model)
    model.generate(sources, SpecDec(block, 3), max_new_tokens=4)
    assert not [warning for warning in recwarn if "drafter" in str(warning.message)]
    other = tiny.seq2seq("marian", 1)
    with pytest.warns(UserWarning, match="a verifier with other weights") as warned:
        found = other.generate(sources, SpecDec(block, 3), max_new_tokens=4)
    assert len(warned) == 1 and found.sequences == other.generate(sources, max_new_tokens=4).sequences
    with pytest.raises(UsageError, match="pad_token_id|decoder_start_token_id|eos_token_id"):
        tiny.seq2seq("bart").generate(sources, SpecDec(block, 3))
    with pytest.raises(UsageError, match="dtype is torch.float64 and torch.float32; load both alike"):
        model.generate(sources, SpecDec(dataclasses.replace(block, model=tiny.cached_drafter(model).model.float()), 3))


def test_sizes_out_of_range_are_refused():
    model = tiny.seq2seq("marian")
    block = tiny.cached_drafter(model)
    with pytest.raises(UsageError, match="the draft length is 9; allowed with this drafter: at most 5"):
        SpecDec(block, 9)
    with pytest.raises(Spec2SeqError, match="hidden_layers is \\[7\\]; allowed: 0 to 2"):
        tiny.cached_drafter(model, hidden_layers=(7,))


def test_confidence_ends_a_draft():
    model = tiny.seq2seq("marian")
    block, sources = tiny.cached_drafter(model), tiny.sources(model, 4)
    long, short = (
        model.generate(sources, Speculative(block, AdaptiveLength(4, confidence)), max_new_tokens=12).stats
        for confidence in (None, 1.0)
    )
    assert long.drafted > 0 and short.drafted == 0 and short.fallbacks > 0


def test_nothing_of_the_source_beyond_its_length_is_seen():
    model = tiny.seq2seq("bart")
    drafter = tiny.cached_drafter(model).model
    sources = tiny.sources(model, 2, 5)
    encoded, inputs, features = read(model, sources, [[5, 6], [7, 8]], drafter.shape.hidden_layers)
    anchors = torch.tensor([[1], [1]])
    wanted, _ = drafter.block_states(model.model, encoded, inputs, features, anchors)
    states = encoded.states.clone()
    for row, source in enumerate(sources):
        states[row, len(source) :] = 7.0
    changed = Encoded(encoded.tokens, encoded.lengths, states)
    found, _ = drafter.block_states(model.model, changed, inputs, features, anchors)
    assert torch.equal(found, wanted)
