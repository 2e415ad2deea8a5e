"""Training of the cached drafter: its loss against plain PyTorch, its scores against the engine, a whole run."""

import copy
import dataclasses
import functools
import json
from pathlib import Path

import pytest
import tiny
import torch
import torch.nn.functional as F

from spec2seq import BlockDrafter, Exact, FixedLength, Seq2Seq, SpecDec, Speculative, UsageError
from spec2seq.decoding.acceptance import Verdict
from spec2seq.decoding.cached_blocks import CachedSession
from spec2seq.training import train
from spec2seq.training.batches import Collator
from spec2seq.training.data import Pair
from spec2seq.training.distill import distill
from spec2seq.training.draft_scores import score_drafter
from spec2seq.training.drafting import DrafterLoss, block_guesses, read
from spec2seq.training.inputs import inputs_of
from spec2seq.training.recipe import DataConfig, parse_recipe

STRIDE, SMOOTHING = 3, 0.1
OUTPUTS = [[5, 6, 7, 8, 9, 3], [9, 8, 5, 9], [6, 6, 6, 7, 7, 5, 8, 4, 12]]


class NothingStands(Exact):
    """Greedy's tokens, one for each draft."""

    def judge(self, logits, draft, seeds, lengths):
        return Verdict(torch.zeros_like(draft.lengths), logits[:, 0].argmax(-1))


def trainable(model):
    return copy.deepcopy(tiny.cached_drafter(model).model).requires_grad_(True)


def batch_of(model, sources, outputs):
    a = model.model.architecture
    rows = [(torch.tensor(s).numpy(), torch.tensor(o).numpy()) for s, o in zip(sources, outputs, strict=True)]
    return Collator(a.pad_token_id, a.decoder_start_token_id)(rows)


def loss_of(model, drafter, batch, step=1):
    return DrafterLoss(model.model, STRIDE, lambda: step)(drafter, batch, SMOOTHING, torch.float64)


def plain_loss(model, drafter, batch, step):
    """One drafted place after another, over explicit logits: smoothed loss, NLL and number of places."""
    verifier, inputs, labels = model.model, batch["decoder_input_ids"], batch["labels"]
    encoded, features = read(verifier, batch, drafter.shape.hidden_layers)
    offset = (labels.clamp(min=0).sum(1) + step) % STRIDE
    anchors = offset[:, None] + torch.arange(0, inputs.shape[1], STRIDE)
    at_tokens, at_slots = drafter.block_states(verifier, encoded, inputs, features, anchors)
    smooth, nll, count = 0.0, 0.0, 0
    for row, length in enumerate((labels != -100).sum(1).tolist()):
        places = [(place, at_tokens[row, place]) for place in range(length)]
        for block, anchor in enumerate(anchors[row].tolist()):
            places += [(anchor + 1 + j, state) for j, state in enumerate(at_slots[row, block])]
        for place, state in places:
            if place < length:
                embedded, follow = verifier.target_embedding[inputs[row, place]], drafter.follow
                hidden = follow.state.weight @ state + follow.state.bias + follow.token.weight @ embedded
                state = state + follow.out.weight @ F.silu(hidden) + follow.out.bias
                logits = verifier.logits(state[None, None])[0, 0]
                smooth = smooth + F.cross_entropy(logits, labels[row, place], label_smoothing=SMOOTHING)
                nll = nll + F.cross_entropy(logits, labels[row, place])
                count += 1
    return smooth, nll, count


def test_the_loss_is_the_plain_one_with_its_gradients(family):
    model = tiny.seq2seq(family)
    drafter = trainable(model)
    batch = batch_of(model, tiny.sources(model, 3, 5), OUTPUTS)
    found, wanted = loss_of(model, drafter, batch), plain_loss(model, drafter, batch, 1)
    assert found[2] == wanted[2] > sum(map(len, OUTPUTS))
    for mine, theirs in zip(found[:2], wanted[:2], strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-5)
    names, weights = zip(*drafter.named_parameters(), strict=True)
    theirs = torch.autograd.grad(wanted[0], weights)
    for name, one, other in zip(names, torch.autograd.grad(found[0], weights), theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_a_shortlist_learns_what_it_can_guess():
    model = tiny.seq2seq("marian")
    drafter = copy.deepcopy(tiny.cached_drafter(model, shortlist=5).model).requires_grad_(True)
    drafter.shortlist.copy_(torch.tensor([5, 6, 7, 8, 9]))
    outputs = [[5, 6, 40, 8, 9, 41], [9, 8, 5, 9]]
    batch = batch_of(model, tiny.sources(model, 2, 5), outputs)
    smooth, nll, count = loss_of(model, drafter, batch)
    assert 0 < count < loss_of(model, trainable(model), batch)[2] and 0 < nll < count * 20
    smooth.backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in drafter.parameters())
    ((logits, labels, _),) = block_guesses(drafter, model.model, batch)
    assert logits.shape[1] == 5 and (labels == -100).sum() >= 2
    assert drafter.tokens(labels[labels != -100]).unique().tolist() == [5, 6, 8, 9]


def test_splitting_a_batch_changes_nothing():
    model = tiny.seq2seq("bart")  # its pad is not 0
    drafter, sources = trainable(model), tiny.sources(model, 3, 5)
    whole = loss_of(model, drafter, batch_of(model, sources, OUTPUTS), 2)
    parts = [
        loss_of(model, drafter, batch_of(model, sources[a:b], OUTPUTS[a:b]), 2) for a, b in ((0, 1), (1, 2), (2, 3))
    ]
    for place in range(3):
        torch.testing.assert_close(
            torch.as_tensor(whole[place]).double(),
            torch.as_tensor(sum(part[place] for part in parts)).double(), rtol=1e-5, atol=1e-5,
        )  # fmt: skip


def test_accuracy_by_place_is_that_of_the_engines_drafts(monkeypatch):
    model = tiny.seq2seq("marian")
    block = tiny.cached_drafter(model, follow_width=0)  # else a place hangs on what was guessed before
    size, sources = block.block_size, tiny.sources(model, 8, 3)
    outputs = model.generate(sources, max_new_tokens=12).sequences
    right, seen = [0] * size, [0] * size
    draft = CachedSession.draft

    def spy(self, k, *rest):
        done, place = draft(self, k, *rest), self.rows.host_lengths[0] - 1
        output, tokens = outputs[current], done.tokens[0].tolist()
        for j, token in enumerate(tokens):
            if place + j < len(output) and (j == 0 or place % size == 0):
                seen[j] += 1
                right[j] += token == output[place + j]
        return done

    monkeypatch.setattr(CachedSession, "draft", spy)
    nothing_stands = Speculative(block, FixedLength(size), NothingStands())
    for current, source in enumerate(sources):
        found = model.generate([source], nothing_stands, max_new_tokens=24).sequences[0]
        assert found[: len(outputs[current])] == outputs[current]
    monkeypatch.undo()
    assert seen[0] == sum(map(len, outputs)) and min(seen) > 4 and 0 < sum(right) < sum(seen)
    pairs = [Pair(source, "", tokens=tuple(output)) for source, output in zip(sources, outputs, strict=True)]
    guess = functools.partial(block_guesses, block.model, model.model)
    scores = score_drafter(inputs_of(model, Path()), block, guess, pairs, 3, 12)
    assert scores.accuracy == pytest.approx([r / s for r, s in zip(right, seen, strict=True)])
    exact = model.generate(sources, SpecDec(block, size), max_new_tokens=12)
    assert exact.sequences == outputs
    assert scores.tokens_per_verifier_call == pytest.approx(exact.stats.tokens_per_verifier_call)


@pytest.mark.parametrize(("tokens", "message"), [((5, 64), "'w5' has the token id 64"), (None, "no token ids")])
def test_outputs_that_are_not_the_verifiers_are_refused(verifier, tokens, message, tmp_path):
    model, file = Seq2Seq.from_pretrained(verifier), tmp_path / "x.jsonl"
    inputs = inputs_of(model, tmp_path)
    with pytest.raises(UsageError, match=f"the record of .*{message}"):
        inputs.rows([Pair("w5", "", tokens=tokens)])
    if tokens is None:
        file = file.with_suffix(".tsv")
    file.write_text("w5\tw6\n" if tokens is None else json.dumps({"source": "w5", "target": "w6", "tokens": tokens}))
    data = DataConfig("", "", source="source", target="target", target_tokens="tokens")
    with pytest.raises(UsageError, match=f"{file.name}: the record of .*{message}"):
        inputs.training_rows(file, data, model.tokenizer)


@pytest.fixture(scope="module")
def corpus(verifier, texts, tmp_path_factory):
    folder, model = tmp_path_factory.mktemp("drafting"), Seq2Seq.from_pretrained(verifier)
    for name, part in (("train", texts[:120]), ("dev", texts[120:126]), ("test", texts[126:131])):
        (folder / f"{name}.txt").write_text("\n".join(part) + "\n", encoding="utf-8")
        distill(model, folder / f"{name}.txt", folder / f"{name}.jsonl", DataConfig("", "", max_tokens=16))
    return folder


def test_a_run_stops_goes_on_and_writes_a_folder_that_drafts(corpus, verifier, tmp_path):
    recipe = parse_recipe({
        "name": "toy", "cached_drafter": {"verifier": str(verifier), "block_size": 4, "feed_forward": 64,
                                          "hidden_layers": [1, 2], "follow_width": 32},
        "data": {"train": "train.jsonl", "dev": "dev.jsonl", "test": "test.jsonl", "source": "source",
                 "target": "target", "target_tokens": "tokens", "max_tokens": 24, "max_ratio": 1000.0},
        "training": {"max_steps": 6, "tokens_per_batch": 128, "learning_rate": 1e-3, "warmup_steps": 2, "threads": 1,
                     "precision": "fp32", "save_minutes": 0.0, "log_seconds": 0.0, "average": 2},
        "evaluation": {"dev_lines": 6, "max_new_tokens": 16, "every_minutes": 60},
    })  # fmt: skip
    for section, key in (("data", "max_tokens"), ("evaluation", "max_new_tokens")):
        wrong = dataclasses.replace(getattr(recipe, section), **{key: 97})
        with pytest.raises(UsageError, match=f"{section}.{key} is 97; allowed: from [12] to 96"):
            train(dataclasses.replace(recipe, **{section: wrong}), tmp_path / section, corpus)
    first = train(recipe, tmp_path, corpus, max_minutes=1e-9)
    assert not first.finished and first.step == 1
    last = train(recipe, tmp_path, corpus)
    assert last.finished and last.step == 6
    model = Seq2Seq.from_pretrained(verifier)
    block = BlockDrafter.from_pretrained(last.folder)
    assert block.model.verifier == model.fingerprint() and block.block_size == 4 and block.hidden_layers == (1, 2)
    # The card's numbers are those of the folder, counted again.
    lines = [json.loads(line) for line in (corpus / "test.jsonl").read_text().splitlines()]
    out = model.generate([line["source"] for line in lines], SpecDec(block, 4), max_new_tokens=16)
    assert out.sequences == [line["tokens"] for line in lines]
    calls, card = out.stats.tokens_per_verifier_call, (last.folder / "README.md").read_text()
    assert last.summary["test"]["tokens_per_verifier_call"] == pytest.approx(calls)
    assert f"| test | 5 | {calls:.2f} |" in card and "times as fast" not in card
    assert f"{last.summary['target_tokens_seen']:,} drafted tokens learned" in card
    assert last.summary["parameters"] == sum(weight.numel() for weight in block.model.state_dict().values())
