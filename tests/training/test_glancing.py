"""Glancing training of the paper's drafter: samples, the two passes, the loss, first weights."""

from collections import Counter
from types import SimpleNamespace

import pytest
import tiny
import torch

from spec2seq.errors import Spec2SeqError
from spec2seq.models.paper_drafter import PaperConfig, PaperDrafter
from spec2seq.training.batches import Collator
from spec2seq.training.checkpoints import require_fit
from spec2seq.training.glancing import Blocks, GlancingLoss, guesses, reveal, row_draws
from spec2seq.training.glancing_session import start_encoder
from spec2seq.training.recipe import PaperDrafterRecipe

VOCABULARY, SIZE = 40, 4
PAD, END = 1, 2


def drafter(dropout: float = 0.0, seed: int = 0, **changes) -> PaperDrafter:
    torch.manual_seed(seed)
    sizes = dict(
        vocabulary=VOCABULARY, width=16, heads=2, ffn_width=24, encoder_layers=2, decoder_layers=2, source_positions=20,
        target_positions=24, eos_token_id=END, pad_token_id=PAD, block_size=SIZE, dropout=dropout,
    )  # fmt: skip
    return PaperDrafter(PaperConfig(**(sizes | changes)))


def pairs(count: int, seed: int = 0, longest: int = 14) -> list[tuple]:
    choose = torch.Generator().manual_seed(seed)

    def row():
        length = int(torch.randint(0, longest, (), generator=choose))
        return torch.cat([torch.randint(3, VOCABULARY, (length,), generator=choose), torch.tensor([END])]).numpy()

    return [(row(), row()) for _ in range(count)]


def batch(rows: list[tuple]) -> dict[str, torch.Tensor]:
    return Collator(PAD, END)(rows)


def loss(step: int = 0, progress: float = 0.0, **values) -> GlancingLoss:
    clock = SimpleNamespace(step=step, progress=lambda: progress)
    return GlancingLoss(PaperDrafterRecipe("verifier", **values), clock)


def test_prefixes_are_uniform_from_nothing_to_all_but_the_last_token():
    length, trials = 5, 4000
    labels = torch.randint(3, 10**6, (trials, length), generator=torch.Generator().manual_seed(1))
    draws = row_draws(labels, 7, 1)[:, 0]
    prefix = length - 1 - (length * draws).long()
    counts = Counter(prefix.tolist())
    assert sorted(counts) == [0, 1, 2, 3, 4]
    assert all(abs(count - trials / length) < 5 * (trials * 0.2 * 0.8) ** 0.5 for count in counts.values())


def test_a_block_has_all_its_slots_and_only_those_before_the_end_are_supervised():
    labels = torch.tensor([[5, 6, 7, 8, 9, END], [5, 6, END, -100, -100, -100], [END, *[-100] * 5]])
    prefix = torch.tensor([1, 2, 0])
    blocks = Blocks.behind(labels, prefix, SIZE)
    assert blocks.tokens.shape == (3, 2 + SIZE)  # no longer than the longest prefix and a block
    assert blocks.places.tolist() == [[1, 2, 3, 4], [2, 3, 4, 5], [0, 1, 2, 3]]
    assert blocks.labels.tolist() == [[6, 7, 8, 9], [END, -100, -100, -100], [END, -100, -100, -100]]
    lengths = torch.tensor([6, 3, 1])
    assert torch.equal(blocks.supervised.sum(1), (lengths - prefix).clamp(max=SIZE))


def test_slots_are_masked_whatever_token_stands_there_and_nothing_behind_the_block_is_seen():
    model = drafter().double().eval()
    source = model.encode(torch.tensor([[5, 6, END]] * 2), torch.tensor([3, 3]))
    labels = torch.tensor([[5, 6, 7, 8, 9, 10, 11, END]])
    other = torch.tensor([[5, 6, 17, 18, 19, 20, 21, END]])  # the same prefix of two
    hidden = torch.zeros(2, SIZE, dtype=torch.bool)
    states = Blocks.behind(torch.cat([labels, other]), torch.tensor([2, 2]), SIZE).states(model, source, hidden)
    torch.testing.assert_close(states[0], states[1])
    hidden[:, 0] = True
    states = Blocks.behind(torch.cat([labels, other]), torch.tensor([2, 2]), SIZE).states(model, source, hidden)
    assert not torch.allclose(states[0, 1], states[1, 1])


def test_so_many_slots_are_revealed_and_each_as_often_as_the_others():
    among = torch.tensor([[True, True, True, False]]).expand(3000, -1)
    draws = torch.rand(3000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shown = reveal(among, torch.tensor([2]).expand(3000), draws)
    assert (shown.sum(1) == 2).all() and not shown[:, 3].any()
    assert all(abs(share - 2 / 3) < 0.05 for share in shown[:, :3].double().mean(0).tolist())
    counts = torch.tensor([0, 1, 3])
    assert torch.equal(reveal(among[:3], counts, draws[:3]).sum(1), counts)


def test_the_revealed_share_falls_linearly_and_then_stays():
    assert loss(progress=0.0).share() == 0.5
    assert loss(progress=0.5).share() == pytest.approx(0.4)
    assert loss(progress=1.2).share() == pytest.approx(0.3)
    assert loss(step=10, progress=0.9, total_up=40, start_p=0.8, minus_p=0.4).share() == pytest.approx(0.7)


def test_both_passes_drop_out_the_same_and_the_random_state_goes_on():
    model = drafter(dropout=0.5).train()
    seen = []
    model.decoder[-1].register_forward_hook(lambda _, __, output: seen.append(output.detach()))
    data = batch(pairs(6))
    loss(start_p=0.0, minus_p=0.0)(model, data, 0.1, torch.float32)  # nothing revealed: the passes are the same
    loss(start_p=0.0, minus_p=0.0)(model, data, 0.1, torch.float32)
    first, second, third, _ = seen
    assert torch.equal(first, second) and not torch.allclose(second, third)


def plain_loss(model: PaperDrafter, rows: list[tuple], smoothing: float, share: float, step: int):
    """Row by row and slot by slot, as the paper says it."""
    total, nll, count = 0.0, 0.0, 0
    for source, target in rows:
        target = torch.from_numpy(target)
        length = len(target)
        draws = row_draws(target[None], step, 1 + SIZE)[0].tolist()
        prefix = length - (int(length * draws[0]) + 1)
        supervised = range(min(SIZE, length - prefix))
        encoded = model.encode(torch.from_numpy(source)[None], torch.tensor([len(source)]))

        def logits(shown, prefix=prefix, target=target, encoded=encoded):
            tokens = torch.full((1, prefix + SIZE), 3)
            tokens[0, :prefix] = target[:prefix]
            is_mask = torch.arange(prefix + SIZE)[None] >= prefix
            for slot in shown:
                tokens[0, prefix + slot], is_mask[0, prefix + slot] = target[prefix + slot], False
            return model.logits(model.block_states(encoded, tokens, is_mask, None))[0, prefix:].log_softmax(-1)

        guessed = logits([]).argmax(-1)
        wrong = sum(int(guessed[slot] != target[prefix + slot]) for slot in supervised)
        shown = sorted(supervised, key=lambda slot, draws=draws: draws[1 + slot])[: int(wrong * share)]
        scores = logits(shown)
        for slot in set(supervised) - set(shown):
            own = -scores[slot, target[prefix + slot]]
            total = total + (1 - smoothing) * own + smoothing * -scores[slot].mean()
            nll, count = nll + own.item(), count + 1
    return total, nll, count


def test_the_loss_and_its_gradient_are_those_of_a_plain_computation():
    model, rows = drafter(seed=3).double(), pairs(8, seed=3)
    mine, nll, count = loss(step=5)(model, batch(rows), 0.1, torch.float64)
    mine.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    wanted, wanted_nll, wanted_count = plain_loss(model, rows, 0.1, 0.5, 5)
    wanted.backward()
    assert count == wanted_count and mine.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert nll.item() == pytest.approx(wanted_nll, rel=1e-5)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(gradients[name], weight.grad, rtol=1e-4, atol=1e-6)


def test_a_batch_in_parts_is_the_whole_batch_and_another_step_is_another_sample():
    model, rows = drafter(seed=4).double(), pairs(9, seed=4)
    whole, _, count = loss(step=2)(model, batch(rows), 0.1, torch.float64)
    parts = [loss(step=2)(model, batch(part), 0.1, torch.float64) for part in (rows[:2], rows[2:7], rows[7:])]
    assert sum(part[2] for part in parts) == count
    assert sum(part[0].item() for part in parts) == pytest.approx(whole.item(), rel=1e-6)
    assert loss(step=3)(model, batch(rows), 0.1, torch.float64)[0].item() != pytest.approx(whole.item(), rel=1e-6)


def test_in_mixed_precision_every_weight_gets_its_gradient():
    model = drafter(seed=5).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss()(model, batch(pairs(6, seed=5)), 0.1, torch.bfloat16)[0].backward()
    without = [n for n, w in model.named_parameters() if w.requires_grad and (w.grad is None or not w.grad.any())]
    assert not without


def test_validation_counts_drafted_places_alone_each_once():
    model, rows = drafter(seed=6).double().eval(), pairs(7, seed=6)
    found = [torch.cat(part) for part in zip(*guesses(model, batch(rows)), strict=True)]
    logits, labels, place = found
    assert len(logits) == len(labels) == sum(len(target) for _, target in rows)
    starts = Counter(place.tolist())
    assert starts == Counter(index % SIZE for _, target in rows for index in range(len(target)))
    source, target = rows[0]
    encoded = model.encode(torch.from_numpy(source)[None], torch.tensor([len(source)]))
    tokens = torch.cat([torch.from_numpy(target), torch.zeros(SIZE, dtype=torch.long)])[None]
    drafted = model.draft(encoded, tokens, torch.tensor([0]), 0, SIZE)[0]
    mine = next(iter(guesses(model, batch(rows[:1]))))[0].argmax(-1)
    assert mine.tolist() == drafted[: len(mine)].tolist()
    short = drafter(seed=6, target_positions=SIZE + 3).double().eval()  # no block fits behind place 3
    assert len(next(zip(*guesses(short, batch(rows)), strict=True))) == 1


def test_the_encoder_starts_as_the_verifiers_and_nothing_else_does():
    verifier = tiny.seq2seq("marian").model
    same = dict(vocabulary=tiny.VOCABULARY, width=32, heads=4, ffn_width=64)
    model, before = drafter(**same), drafter(**same)
    start_encoder(model, verifier, "recipe")
    assert torch.equal(model.embedding, verifier.source_embedding.float())
    for mine, theirs in zip(model.encoder, verifier.encoder.layers, strict=True):
        for name, weight in theirs.state_dict().items():
            assert torch.equal(mine.state_dict()[name], weight.float())
    for name in ("decoder.0.self_qkv.weight", "source_positions", "copy_query.weight"):
        assert torch.equal(model.state_dict()[name], before.state_dict()[name])


def test_weights_that_do_not_fit_are_refused_with_both_shapes():
    verifier = tiny.seq2seq("marian").model
    with pytest.raises(Spec2SeqError, match=r"recipe: embedding is \[64, 32\]; needed: \[64, 16\]"):
        start_encoder(drafter(vocabulary=tiny.VOCABULARY), verifier, "recipe")
    same = dict(vocabulary=tiny.VOCABULARY, width=32, heads=4, ffn_width=64)
    with pytest.raises(Spec2SeqError, match=r"encoder\.1\.\S+ is unknown"):
        start_encoder(drafter(**same, encoder_layers=1), verifier, "recipe")
    with pytest.raises(Spec2SeqError, match=r"encoder\.2\.\S+ is missing"):
        start_encoder(drafter(**same, encoder_layers=3), verifier, "recipe")
    with pytest.raises(Spec2SeqError, match="recipe: heads is 8; needed: the verifier's 4"):
        start_encoder(drafter(**(same | {"heads": 8})), verifier, "recipe")
    with pytest.raises(Spec2SeqError, match="here: b is unknown"):
        require_fit({"a": torch.zeros(1), "b": torch.zeros(1)}, {"a": torch.zeros(1)}, "here")
