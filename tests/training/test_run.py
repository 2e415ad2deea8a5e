"""Whole runs of a tiny recipe: vocabulary, training, stopping, resuming, the final folder."""

import dataclasses
import json
import shutil
import types
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, MarianTokenizer

from spec2seq import Beam, BlockDrafter, Seq2Seq
from spec2seq.errors import Spec2SeqError, UsageError
from spec2seq.files import write_json
from spec2seq.models.languages import cut
from spec2seq.training import queue, train, validation
from spec2seq.training import session as session_module
from spec2seq.training.batches import TokenBudgetSampler
from spec2seq.training.cache import encode, tokenized
from spec2seq.training.checkpoints import whole_checkpoints
from spec2seq.training.data import Pair
from spec2seq.training.queue import run_queue
from spec2seq.training.recipe import VocabularyConfig, parse_recipe
from spec2seq.training.run import TrainResult
from spec2seq.training.session import recipe_yaml
from spec2seq.training.trainer import BudgetTrainer
from spec2seq.training.vocabulary import load_tokenizer


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 12 steps that was not interrupted."""
    out = tmp_path_factory.mktemp("run")
    values = {
        "name": "toy", "data": {"train": "toy.train.tsv", "dev": "toy.dev.tsv", "test": "toy.test.tsv"},
        "model": {"width": 16, "encoder_layers": 2, "decoder_layers": 2, "heads": 2, "feed_forward": 32},
        "vocabulary": {"size": 310, "character_coverage": 1.0},
        "training": {"max_steps": 12, "tokens_per_batch": 256, "learning_rate": 5e-3, "warmup_steps": 4, "threads": 1,
                     "save_minutes": 0.0, "log_seconds": 0.0, "average": 3},
        "evaluation": {"dev_lines": 4, "max_new_tokens": 8, "every_minutes": 60},
    }  # fmt: skip
    result = train(parse_recipe(values), out, data)
    assert result.finished and result.step == 12
    return out


def test_the_vocabulary_is_one_marian_tokenizer_for_both_languages(finished: Path) -> None:
    tokenizer = MarianTokenizer.from_pretrained(finished / "final")
    text = "the cache is full ☃"
    ids = tokenizer(text).input_ids
    assert len(tokenizer) == 310 and tokenizer.unk_token_id not in ids and ids[-1] == tokenizer.eos_token_id
    assert tokenizer(text_target=text).input_ids == ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.pad_token_id == 309 and (finished / "final" / "source.spm").is_file()


def test_the_final_folder_loads_is_half_precision_and_states_its_facts(finished: Path) -> None:
    folder = finished / "final"
    from safetensors.torch import load_file

    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.float16}
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    assert model.dtype == torch.float32 and model.config.vocab_size == 310
    assert model.generation_config.num_beams in (None, 1) and model.generation_config.forced_eos_token_id is None
    tokenizer = AutoTokenizer.from_pretrained(folder)
    made = model.generate(**tokenizer(["the file is empty"], return_tensors="pt"), max_new_tokens=5)
    assert made.shape[0] == 1
    facts = json.loads((folder / "training_summary.json").read_text())
    card = (folder / "README.md").read_text()
    assert facts["steps"] == 12 and facts["test"]["lines"] == 12 and "nrefs:1" in facts["test"]["bleu_signature"]
    assert f"{facts['target_tokens_seen']:,}" in card and facts["test"]["chrf_signature"] in card
    assert not list(finished.glob("*.partial"))


def test_finished_weights_are_one_of_the_candidates(finished: Path) -> None:
    facts = json.loads((finished / "final" / "training_summary.json").read_text())
    assert facts["weights"].startswith(("step 12", "mean of steps 10, 11, 12")) or "best" in facts["weights"]
    assert [checkpoint.step for checkpoint in whole_checkpoints(finished / "checkpoints")][-3:] == [10, 11, 12]


def test_a_stopped_and_a_killed_run_go_on_and_end_at_the_same_weights(finished, data, recipe, tmp_path, monkeypatch):
    first = train(recipe, tmp_path, data, max_minutes=1e-9)  # ends after its first step
    assert not first.finished and first.step == 1 and not (tmp_path / "final").exists()

    class Killed(Exception):
        pass

    def kill(line: str) -> None:
        if " step 5 " in line:
            raise Killed

    with pytest.raises(Killed):
        train(recipe, tmp_path, data, report=kill)
    assert whole_checkpoints(tmp_path / "checkpoints")[-1].step == 4
    last = train(recipe, tmp_path, data)
    reference = json.loads((finished / "final" / "training_summary.json").read_text())
    assert last.finished and (last.step, last.tokens) == (12, reference["target_tokens_seen"])
    ours, theirs = (
        AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "checkpoints" / "checkpoint-12").state_dict(),
        AutoModelForSeq2SeqLM.from_pretrained(finished / "checkpoints" / "checkpoint-12").state_dict(),
    )
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-3, atol=1e-3)
    monkeypatch.setattr(session_module.Session, "_fit", None)  # called once more: nothing is trained again
    assert train(recipe, tmp_path, data).step == 12
    shutil.rmtree(tmp_path / "final")  # as if it was stopped before: the weights are chosen where models are decoded
    moved: list[str] = []
    monkeypatch.setattr(session_module, "torch_device", lambda name: moved.append(name) or torch.device(name))
    assert train(recipe, tmp_path, data).finished and (tmp_path / "final").is_dir()
    assert moved == ["cuda:0" if torch.cuda.is_available() else "cpu"]


def test_special_tokens_and_languages_are_read_as_in_decoding(finished: Path) -> None:
    tokenizer = MarianTokenizer.from_pretrained(finished / "final")
    texts = ["the file", "", ">>deu<< the file", "the </s> file", "a <pad> b<unk>", "<< a >>"]
    assert encode(texts, tokenizer) == tokenizer(texts).input_ids


def test_a_loss_that_is_no_number_ends_the_run_before_it_is_saved(recipe, data, tmp_path, monkeypatch) -> None:
    compute = BudgetTrainer.compute_loss

    def broken(self, *arguments, **settings):
        loss = compute(self, *arguments, **settings)
        if self.clock.step == 2:
            self.step_nll += float("nan")
        return loss

    monkeypatch.setattr(BudgetTrainer, "compute_loss", broken)
    with pytest.raises(Spec2SeqError, match=r"step 3: the loss is nan; .*lower training\.learning_rate"):
        train(recipe, tmp_path, data)
    assert [checkpoint.step for checkpoint in whole_checkpoints(tmp_path / "checkpoints")] == [1, 2]


def test_a_run_that_goes_on_with_another_accumulation_skips_nothing(recipe, data, tmp_path) -> None:
    train(recipe, tmp_path, data, max_minutes=1e-9)
    training = dataclasses.replace(recipe.training, max_steps=2, gradient_accumulation=3)
    result = train(dataclasses.replace(recipe, training=training), tmp_path, data)
    first, last = whole_checkpoints(tmp_path / "checkpoints")
    assert (first.batches, last.batches) == (1, 4)
    rows = tokenized(data / "toy.train.tsv", recipe.data, load_tokenizer(tmp_path / "vocabulary"), tmp_path, 310)
    batches = len(TokenBudgetSampler(rows.source_lengths, rows.target_lengths, recipe.training.tokens_per_batch))
    assert result.summary["epochs"] == round(4 / batches, 3)


def test_a_vocabulary_appears_whole_or_not_at_all(recipe, data, tmp_path, monkeypatch) -> None:
    def stop(*arguments, **settings):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MarianTokenizer, "save_vocabulary", stop)
        train(recipe, tmp_path, data)
    assert not (tmp_path / "vocabulary").exists()
    assert train(recipe, tmp_path, data, max_minutes=1e-9).step == 1
    (tmp_path / "recipe.yaml").write_text("")
    with pytest.raises(UsageError, match=r"recipe\.yaml: expected keys with values"):
        train(recipe, tmp_path, data)


def test_validation_reads_what_the_models_positions_allow(monkeypatch) -> None:
    monkeypatch.setattr(validation, "encode", lambda texts, *rest: [[5] * len(text) + [0] for text in texts])
    seen = []
    config = types.SimpleNamespace(n_positions=1024, decoder_start_token_id=0)
    model = types.SimpleNamespace(config=config, device=torch.device("cpu"))
    tokenizer = types.SimpleNamespace(eos_token_id=0, pad_token_id=0)

    def loss(model, batch, smoothing, dtype):
        seen.append((batch["input_ids"].shape[1], batch["labels"].shape[1]))
        return None, torch.tensor(6.0), 3

    monkeypatch.setattr(validation, "sequence_loss", loss)
    for length in (700, 2000):
        pair = Pair("x" * length, "y" * length)
        assert validation.mean_nll(model, tokenizer, [pair], torch.float32) == 2.0
    assert seen == [(701, 701), (1024, 1024)]


def test_a_little_model_shares_the_vocabulary_and_starts_from_the_verifier(finished, data, recipe, tmp_path) -> None:
    model = dataclasses.replace(recipe.model, decoder_layers=1, start_from=str(finished / "final"))
    vocabulary = VocabularyConfig(from_=str(finished / "final"))
    training = dataclasses.replace(recipe.training, max_steps=1, learning_rate=1e-8)
    little = dataclasses.replace(recipe, name="little", model=model, vocabulary=vocabulary, training=training)
    assert train(little, tmp_path, data).finished
    for name in ("source.spm", "vocab.json"):
        assert (tmp_path / "final" / name).read_bytes() == (finished / "final" / name).read_bytes()
    ours = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "final").state_dict()
    theirs = AutoModelForSeq2SeqLM.from_pretrained(finished / "final").state_dict()
    for name in ("model.shared.weight", "model.encoder.layers.1.fc1.weight", "model.decoder.layers.0.fc2.weight"):
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-2, atol=1e-3)


def test_t5_shape_trains_in_the_queue_and_its_tokenizer_round_trips(data, values, tmp_path) -> None:
    values["model"] |= {"family": "t5", "encoder_layers": 1, "decoder_layers": 1}
    values["training"] |= {"max_steps": 2}
    del values["data"]["test"]
    bad = values | {"name": "bad", "vocabulary": {"from": str(tmp_path / "nowhere")}}
    paths = []
    for recipe in map(parse_recipe, (bad, values)):
        paths.append(tmp_path / f"{recipe.name}.yaml")
        paths[-1].write_text(recipe_yaml(recipe), encoding="utf-8")
    results = run_queue(paths, tmp_path / "runs", data, max_minutes=5)
    assert results["bad"]["state"] == "failed" and "nowhere" in results["bad"]["error"]
    assert results["toy"]["state"] == "finished" and results["toy"]["steps"] == 2
    assert json.loads((tmp_path / "runs" / "results.json").read_text()) == results
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "runs" / "toy" / "final")
    ids = tokenizer("the cache is full").input_ids
    assert (
        ids[-1] == tokenizer.eos_token_id == 1
        and tokenizer.decode(ids, skip_special_tokens=True) == "the cache is full"
    )
    AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "runs" / "toy" / "final")


def test_what_is_finished_behind_a_run_that_stopped_is_reported(values, tmp_path, monkeypatch) -> None:
    asked = []

    def run(recipe, out, *rest):
        asked.append(recipe.name)
        return TrainResult(out, recipe.name == "c", 1, 1, 1.0)

    monkeypatch.setattr(queue, "train", run)
    for name in "abc":
        (tmp_path / f"{name}.yaml").write_text(recipe_yaml(parse_recipe(values | {"name": name})))
    write_json(tmp_path / "c" / "final" / "training_summary.json", {})
    results = run_queue([tmp_path / f"{name}.yaml" for name in "abc"], tmp_path)
    assert [entry["state"] for entry in results.values()] == ["stopped", "waiting", "finished"]
    assert asked == ["a", "c"]
    monkeypatch.setattr(queue, "train", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    assert queue.main([str(tmp_path / "a.yaml"), "--out", str(tmp_path)]) == 130


def test_the_queue_trains_a_verifier_and_what_learns_from_its_output(data, values, tmp_path) -> None:
    values["training"] |= {"max_steps": 2}
    shared = {"training": values["training"], "evaluation": values["evaluation"]}
    columns = {"source": "source", "target": "target", "target_tokens": "tokens", "max_ratio": 1000.0}
    drafter = shared | {
        "name": "drafter", "cached_drafter": {"verifier": "toy/final", "block_size": 3, "follow_width": 8},
        "distillation": {"model": "toy/final", "train": "toy.train.tsv", "dev": "toy.dev.tsv", "lines": 20},
        "data": columns | {"train": "out.jsonl", "dev": "out.dev.jsonl", "max_tokens": 24},
    }  # fmt: skip
    little = shared | {
        "name": "little", "model": values["model"] | {"decoder_layers": 1, "start_from": "toy/final"},
        "vocabulary": {"from": "toy/final"},
        "data": columns | {f: f"drafter/distilled/out{e}.jsonl" for f, e in (("train", ""), ("dev", ".dev"))},
    }  # fmt: skip
    tuned = shared | {
        "name": "tuned", "model": values["model"] | {"start_from": "toy/final"}, "vocabulary": {"from": "toy/final"},
        "distillation": {"model": "toy/final", "train": "toy.train.tsv", "lines": 10, "num_beams": 2},
        "data": {"source": "source", "target": "target", "train": "beam.jsonl", "dev": "toy.dev.tsv",
                 "max_ratio": 1000.0},
    }  # fmt: skip
    paths = []
    for recipe in map(parse_recipe, (values, drafter, little, tuned)):
        paths.append(tmp_path / f"{recipe.name}.yaml")
        paths[-1].write_text(recipe_yaml(recipe), encoding="utf-8")
    results = run_queue(paths, tmp_path / "runs", data, max_minutes=5)
    assert {name: entry["state"] for name, entry in results.items()} == dict.fromkeys(
        ("toy", "drafter", "little", "tuned"), "finished"
    ), results
    [record, *_] = map(json.loads, (tmp_path / "runs" / "tuned" / "distilled" / "beam.jsonl").read_text().splitlines())
    beams = Seq2Seq.from_pretrained(tmp_path / "runs" / "toy" / "final").generate(
        [record["source"]], Beam(num_beams=2), max_new_tokens=200
    )
    assert record["tokens"] == beams.sequences[0]
    distilled = (tmp_path / "runs" / "drafter" / "distilled" / "out.jsonl").read_text().splitlines()
    assert 0 < len(distilled) <= 20
    assert not (tmp_path / "runs" / "drafter" / "distilled" / "out.jsonl.parts").exists()
    BlockDrafter.from_pretrained(tmp_path / "runs" / "drafter" / "final")


def test_what_is_distilled_is_read_as_the_student_reads_it(verifier, texts, values, tmp_path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"source": text, "target": "w5"}) + "\n" for text in texts[:20]))
    values["model"] |= {"width": 32, "heads": 4, "feed_forward": 64, "decoder_layers": 1}
    values |= {"vocabulary": {"from": str(verifier)}, "training": values["training"] | {"max_steps": 1}}
    values["distillation"] = {"model": str(verifier), "train": "corpus.jsonl", "dev": "corpus.jsonl", "lines": 8}
    values["data"] = {"train": "out.jsonl", "dev": "dev.jsonl", "source": "source", "target": "target",
                      "target_tokens": "tokens", "prefix": "w60 w61 ", "max_tokens": 7, "truncate": True,
                      "max_ratio": 1000.0}  # fmt: skip
    out = tmp_path / "run"
    assert train(parse_recipe(values), out, tmp_path).finished
    records = [json.loads(line) for line in (out / "distilled" / "out.jsonl").read_text().splitlines()]
    model = Seq2Seq.from_pretrained(verifier, prefix="w60 w61 ")
    assert len(records) == 8 and {record["source"] for record in records} <= {*texts}
    sources = [cut(model.encode_text(record["source"]), 7, 0) for record in records]
    assert max(map(len, sources)) == 7
    assert [record["tokens"] for record in records] == model.generate(sources, max_new_tokens=7).sequences
    values["distillation"]["lines"] = 5
    with pytest.raises(UsageError, match="another 'distillation' section"):
        train(parse_recipe(values), out, tmp_path)
    del values["distillation"]["dev"]  # so dev.jsonl is to be there
    with pytest.raises(UsageError, match=r"dev\.jsonl' not found"):
        train(parse_recipe(values), tmp_path / "other", tmp_path)
    assert not (tmp_path / "other").exists()


def test_wrong_input_is_one_clear_error_and_writes_nothing(finished, data, values, recipe, tmp_path) -> None:
    out = tmp_path / "out"
    missing = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, train="none.tsv"))
    with pytest.raises(UsageError, match=r"none\.tsv.*not found"):
        train(missing, out, data)
    assert not out.exists()
    with pytest.raises(UsageError, match="max_minutes is 0"):
        train(recipe, out, data, max_minutes=0)
    other = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, decoder_layers=1))
    with pytest.raises(UsageError, match="another 'model' section"):
        train(other, finished, data)
    values["vocabulary"]["size"] = 30000
    with pytest.raises(UsageError, match=r"vocabulary\.size is 30000"):
        train(parse_recipe(values), tmp_path / "large", data)
    values["vocabulary"]["size"], values["data"]["min_words"] = 310, 190
    with pytest.raises(UsageError, match="passes the recipe's data filters"):
        train(parse_recipe(values), tmp_path / "none", data)
