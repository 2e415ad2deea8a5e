"""Whole runs that train the paper's drafter: accumulation, stopping, resuming, the folder, wrong recipes."""

import copy
import json

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from spec2seq import BlockDrafter, Seq2Seq, SpecDec, UsageError
from spec2seq.errors import Spec2SeqError
from spec2seq.models.paper_drafter import PaperDrafter
from spec2seq.training import train
from spec2seq.training.checkpoints import weights_of
from spec2seq.training.glancing_session import GlancingSession
from spec2seq.training.recipe import parse_recipe

SIZE = 4


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A tiny verifier's folder and what it wrote, as `distill` writes it."""
    folder = tmp_path_factory.mktemp("glancing")
    model = copy.deepcopy(tiny.transformers_model("marian")).float()  # it is cached
    words = tiny.tokenizer(model)
    model.save_pretrained(folder / "verifier")
    words.save_pretrained(folder / "verifier")
    verifier = Seq2Seq.from_pretrained(folder / "verifier")
    for name, count, seed in (("train", 120, 1), ("dev", 6, 2), ("test", 5, 3)):
        rows = tiny.sources(model, count, seed)
        written = verifier.generate(rows, max_new_tokens=16).rows
        with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as file:
            for ids, row in zip(rows, written, strict=True):
                record = {"source": words.decode(ids[:-1]), "target": row.text or "-", "tokens": row.tokens}
                file.write(json.dumps(record) + "\n")
    return folder


def values(corpus) -> dict:
    return {
        "name": "toy",
        "paper_drafter": {
            "verifier": str(corpus / "verifier"), "width": 32, "heads": 4, "feed_forward": 64, "encoder_layers": 2,
            "decoder_layers": 1, "block_size": SIZE, "source_positions": 32, "target_positions": 32,
        },
        "data": {"train": "train.jsonl", "dev": "dev.jsonl", "test": "test.jsonl", "source": "source",
                 "target": "target", "target_tokens": "tokens", "max_tokens": 24, "max_ratio": 1000.0},
        "training": {"max_steps": 6, "tokens_per_batch": 128, "gradient_accumulation": 2, "learning_rate": 1e-3,
                     "warmup_steps": 2, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-6, "threads": 1,
                     "precision": "fp32", "save_minutes": 0.0, "log_seconds": 0.0, "average": 2},
        "evaluation": {"dev_lines": 6, "max_new_tokens": 16, "every_minutes": 60},
    }  # fmt: skip


def test_a_run_stops_goes_on_and_writes_a_folder_that_drafts(corpus, tmp_path):
    recipe = parse_recipe(values(corpus))
    first = train(recipe, tmp_path, corpus, max_minutes=1e-9)
    assert not first.finished and first.step == 1
    last = train(recipe, tmp_path, corpus)
    assert last.finished and last.step == 6
    facts, card = last.summary, (last.folder / "README.md").read_text()
    model = PaperDrafter.from_pretrained(last.folder).float()
    assert model.config.block_size == SIZE and model.config.mask_token_id is None
    verifier = Seq2Seq.from_pretrained(corpus / "verifier")
    assert model.config.verifier == verifier.fingerprint()
    # The card's numbers are those of the folder, counted again.
    method = SpecDec(BlockDrafter.from_pretrained(last.folder), beta=1)
    lines = [json.loads(line) for line in (corpus / "test.jsonl").read_text().splitlines()]
    out = verifier.generate([line["source"] for line in lines], method, max_new_tokens=16)
    assert [row.tokens for row in out.rows] == [line["tokens"] for line in lines]
    assert facts["test"]["tokens_per_verifier_call"] == pytest.approx(out.stats.tokens_per_verifier_call)
    assert f"| test | 5 | {out.stats.tokens_per_verifier_call:.2f} |" in card and "glancing" in card
    assert f"{facts['target_tokens_seen']:,} drafted tokens learned" in card
    assert len(facts["dev"]["accuracy"]) == SIZE


def test_every_slot_of_the_accumulated_batches_weighs_the_same(corpus, tmp_path):
    changed = values(corpus)
    changed["training"] |= {"max_steps": 1, "gradient_accumulation": 3, "max_grad_norm": 1e9}
    changed["paper_drafter"]["dropout"] = 0.0
    session = GlancingSession(parse_recipe(changed), tmp_path, corpus, None, None)
    session._prepare()
    trainer = session._trainer(session.recipe, session.model, session.rows, session.sampler, session.clock, tmp_path)
    loader = iter(trainer.get_train_dataloader())
    parts = [next(loader) for _ in range(3)]
    found = [trainer.loss(session.model, part, 0.1, torch.float32) for part in parts]
    mean = sum(part[0] for part in found) / sum(part[2] for part in found)
    wanted = torch.autograd.grad(mean, list(session.model.parameters()))
    seen = []

    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, *_, model, **__):
            seen.extend(weight.grad.clone() for weight in model.parameters())

    trainer.add_callback(Look())
    trainer.train()
    for mine, theirs in zip(seen, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)


def test_a_stopped_run_ends_where_one_that_was_not_does(corpus, tmp_path):
    changed = values(corpus)
    changed["training"] |= {"max_steps": 3}
    changed["paper_drafter"]["dropout"] = 0.0  # what drops out is drawn anew in every session
    recipe = parse_recipe(changed)
    assert train(recipe, tmp_path / "once", corpus).finished
    assert not train(recipe, tmp_path / "twice", corpus, max_minutes=1e-9).finished
    assert train(recipe, tmp_path / "twice", corpus).finished
    once, twice = (weights_of(tmp_path / name / "checkpoints" / "checkpoint-3") for name in ("once", "twice"))
    for name, weight in once.items():
        torch.testing.assert_close(weight, twice[name], rtol=1e-4, atol=1e-5)


def test_a_checkpoint_with_other_weights_is_refused_at_resume(corpus, tmp_path):
    recipe = parse_recipe(values(corpus))
    assert not train(recipe, tmp_path, corpus, max_minutes=1e-9).finished
    file = tmp_path / "checkpoints" / "checkpoint-1" / "model.safetensors"
    weights = load_file(file)
    weights["copied.weight"] = weights.pop("copy_query.weight")
    save_file(weights, file)
    with pytest.raises(Spec2SeqError, match=r"checkpoint-1: copy_query\.weight is missing"):
        train(recipe, tmp_path, corpus)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cached_drafter": {"verifier": "v"}}, "cached_drafter and paper_drafter are both there"),
        ({"model": {"width": 32}}, "model and vocabulary are the verifier's"),
        ({"data": {"target_tokens": None}}, "data.target_tokens is not set"),
        ({"data": {"max_tokens": 30}}, r"max_tokens is 30; .*target_positions - block_size \+ 1, 29"),
        ({"data": {"max_tokens": 33}}, "max_tokens is 33; .*source_positions, 32"),
        ({"paper_drafter": {"block_size": 33}}, "block_size is 33; allowed: from 1 to 32"),
        ({"paper_drafter": {"minus_p": 0.6}}, "minus_p is 0.6; allowed: from 0.0 to 0.5"),
        ({"paper_drafter": {"heads": 5}}, "heads is 5; allowed: a divisor of width 32"),
        ({"paper_drafter": {"noise": "full_mask"}}, "unknown key 'noise'"),
    ],
)
def test_a_wrong_recipe_is_one_clear_error(corpus, change, message):
    changed = values(corpus)
    for section, keys in change.items():
        changed[section] = changed.get(section, {}) | keys
    with pytest.raises(UsageError, match=message):
        parse_recipe(changed, "toy.yaml")


def test_an_encoder_of_another_width_is_refused_before_training(corpus, tmp_path):
    changed = values(corpus)
    changed["paper_drafter"]["width"] = 16
    with pytest.raises(Spec2SeqError, match=r"init_encoder, verifier .*embedding is \[64, 32\]; needed: \[64, 16\]"):
        train(parse_recipe(changed), tmp_path, corpus)
    changed["paper_drafter"]["init_encoder"] = False
    changed["training"]["max_steps"] = 1
    assert train(parse_recipe(changed), tmp_path / "random", corpus).finished
