"""The paper's drafter: the original's numbers, an independent version, training, saving."""

import fairseq_state
import pytest
import tiny
import torch
from golden_specdec import SEED11

from spec2seq.errors import Spec2SeqError, UsageError
from spec2seq.models.fairseq import drafter_from
from spec2seq.models.paper_drafter import PaperConfig, PaperDrafter

CONFIG = PaperConfig(
    vocabulary=20, width=16, heads=4, ffn_width=24, encoder_layers=2, decoder_layers=2, source_positions=9,
    target_positions=10, eos_token_id=2, pad_token_id=1, block_size=3, dropout=0.0,
)  # fmt: skip


def imported(tmp_path, vocabulary=20, rows=14, seed=0, dtype=torch.float64):
    """A random checkpoint and the drafter made of it."""
    state = fairseq_state.random_state("block", vocabulary, rows, seed, dtype)
    path = fairseq_state.write(tmp_path / f"block{seed}.pt", "block", state)
    return state, drafter_from(path, vocabulary)


def ids(*rows: list[int]):
    return tiny.padded(list(rows), 1)


def close(found, wanted) -> bool:
    return torch.allclose(found, torch.as_tensor(wanted, dtype=found.dtype), rtol=0, atol=1e-4)


def test_encoder_states_are_the_originals(golden):
    pair = golden(SEED11)
    for line in pair.lines:
        for kind, encoder in (("verifier", pair.verifier.model), ("drafter", pair.drafter.model)):
            states = encoder_states(encoder, line["src_ids"])
            wanted = line[f"{kind}_encoder"]
            assert [*states.shape] == wanted["shape"]
            assert close(states[0, :4], wanted["first4"]) and close(states[-1, -4:], wanted["last4_of_last"])
            assert close(states.mean(), wanted["mean"]) and close(states.std(correction=0), wanted["std"])


def encoder_states(model, source):
    """The last encoder states of a source; the drafter keeps what its decoder makes of them, so they are caught."""
    caught = []
    tokens, lengths = ids(source)
    if isinstance(model, PaperDrafter):
        hook = model.encoder[-1].register_forward_hook(lambda _, __, output: caught.append(output))
        model.encode(tokens, lengths)
        hook.remove()
        return caught[0]
    return model.encode(tokens, lengths).states[0]


@pytest.mark.parametrize("case", ["drafter_empty_prefix", "drafter_prefix3", "drafter_prefix3_with_unk"])
def test_blocks_are_the_originals(golden, case):
    pair = golden(SEED11)
    model, k = pair.drafter.model, pair.expected["block_size"]
    for line in pair.lines:
        prefix = line[case]["prefix_ids"]
        source = model.encode(*ids(line["src_ids"]))
        tokens = torch.tensor([prefix + [0] * k])
        # To the original an <unk> of the prefix is a mask, too (D2).
        is_mask = torch.tensor([[token == 3 for token in prefix] + [True] * k])
        asked = torch.arange(len(prefix), len(prefix) + k)[None]
        logits = model.block_logits(source, tokens, is_mask, None, asked)[0]
        assert logits.argmax(-1).tolist() == line[case]["argmax"]
        assert close(logits[0, :8], line[case]["slot0_logits_first8"])
        assert close(logits[-1, :8], line[case]["last_slot_logits_first8"])
        drafted = model.draft(source, tokens, torch.tensor([len(prefix)]), len(prefix), k)
        assert drafted.tolist() == [line[case]["argmax"]]


@pytest.mark.parametrize(("vocabulary", "rows"), [(20, 14), (23, 12), (24, 16)])
def test_imported_drafters_equal_an_independent_version(tmp_path, vocabulary, rows):
    state, model = imported(tmp_path, vocabulary, rows, seed=rows)
    assert model.config.target_positions == rows - 2
    source, tokens = [7, 3, 9, 2], [5, 3, 8, 0, 0, 0]
    for is_mask in ([False] * 3 + [True] * 3, [False, True, False, True, True, True], [True] * 6):
        wanted = fairseq_state.drafter_logits(state, source, tokens, is_mask)
        states = model.block_states(model.encode(*ids(source)), ids(tokens)[0], torch.tensor([is_mask]), None)
        assert torch.allclose(model.logits(states)[0], wanted)


def test_padding_changes_nothing(tmp_path):
    """Rows of a batch, with other lengths of source and prefix, are what they are alone."""
    _, model = imported(tmp_path)
    sources, prefixes, k = [[5, 6, 7, 2], [8, 2], [4, 4, 4, 4, 4, 2]], [[9, 3], [], [6, 7, 8, 9]], 3
    rows, _ = ids(*(prefix + [1] * (7 - len(prefix)) for prefix in prefixes))
    together = model.draft(model.encode(*ids(*sources)), rows, torch.tensor([2, 0, 4]), 4, k)
    for row, (source, prefix) in enumerate(zip(sources, prefixes, strict=True)):
        tokens = torch.tensor([prefix + [1] * k])
        alone = model.draft(model.encode(*ids(source)), tokens, torch.tensor([len(prefix)]), len(prefix), k)
        assert together[row].tolist() == alone[0].tolist()


def test_a_mask_has_no_embedding(tmp_path):
    _, model = imported(tmp_path)
    source, is_mask = model.encode(*ids([5, 6, 2])), torch.tensor([[False, True, True]])
    before = model.block_states(source, torch.tensor([[5, 3, 3]]), is_mask, None)
    assert torch.equal(before, model.block_states(source, torch.tensor([[5, 9, 0]]), is_mask, None))
    model.embedding[3] += 10
    assert torch.equal(before, model.block_states(source, torch.tensor([[5, 3, 3]]), is_mask, None))
    ordinary = model.block_states(source, torch.tensor([[5, 3, 3]]), torch.tensor([[False, False, True]]), None)
    assert not torch.allclose(before, ordinary)


def test_it_learns_and_drops_out():
    torch.manual_seed(0)
    with torch.enable_grad():
        model = PaperDrafter(CONFIG)
        sources, lengths = ids([5, 6, 7, 2], [8, 9, 2])
        tokens, is_mask = torch.tensor([[5, 0, 0, 0], [0, 0, 0, 1]]), torch.tensor([[0, 1, 1, 1], [1, 1, 1, 0]]).bool()
        asked, wanted = torch.tensor([[1, 2, 3], [0, 1, 2]]), torch.tensor([[6, 7, 2], [8, 9, 2]])
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        losses = []
        for _ in range(60):
            logits = model.block_logits(model.encode(sources, lengths), tokens, is_mask, torch.tensor([4, 3]), asked)
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
            optimizer.zero_grad()
            loss.backward()
            assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
            optimizer.step()
            losses.append(loss.item())
    assert losses[0] > 2.8 and losses[-1] < 0.5
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5

    def states(seed):
        torch.manual_seed(seed)
        return model.block_states(model.encode(sources, lengths), tokens, is_mask, torch.tensor([4, 3]))

    assert torch.equal(states(1), states(1)) and not torch.allclose(states(1), states(2))
    model.eval()
    assert torch.equal(states(1), states(2))


def test_save_and_load(tmp_path):
    torch.manual_seed(0)
    model = PaperDrafter(CONFIG)
    model.save_pretrained(tmp_path / "new" / "drafter")
    loaded = PaperDrafter.from_pretrained(tmp_path / "new" / "drafter")
    assert loaded.config == CONFIG and not loaded.training
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    assert {file.name for file in (tmp_path / "new" / "drafter").iterdir()} == {"config.json", "model.safetensors"}
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["drafter"]
    with pytest.raises(Spec2SeqError, match="exists already"):
        model.save_pretrained(tmp_path / "new" / "drafter")


@pytest.mark.parametrize(("name", "value"), [("block_size", 11), ("block_size", 0), ("dropout", 1.5)])
def test_impossible_settings_are_refused(name, value):
    with pytest.raises(UsageError, match=f"{name} is {value}; allowed"):
        PaperConfig(**(vars(CONFIG) | {name: value}))
