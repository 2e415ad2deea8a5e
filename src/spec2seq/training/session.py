"""One session of a run: prepare or resume, train until a limit, choose the best weights, write the final folder."""

import dataclasses
import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.utils import broadcast_object_list
from transformers import set_seed

from spec2seq.errors import Spec2SeqError, UsageError
from spec2seq.files import write_text
from spec2seq.models.drafter_folder import whole_folder
from spec2seq.models.loading import torch_device
from spec2seq.training.averaging import average_states
from spec2seq.training.batches import Collator, TokenBudgetSampler
from spec2seq.training.cache import tokenized
from spec2seq.training.checkpoints import Checkpoint, best_checkpoint, weights_of, whole_checkpoints
from spec2seq.training.clock import Clock
from spec2seq.training.data import Pair, filter_pairs, made_by, read_pairs, resolve
from spec2seq.training.distill import distilled_file, distilled_files
from spec2seq.training.export import write_final
from spec2seq.training.loss import narrow_residuals, sequence_loss
from spec2seq.training.processes import processes
from spec2seq.training.recipe import Recipe, load_recipe
from spec2seq.training.run import TrainResult
from spec2seq.training.shapes import new_model
from spec2seq.training.trainer import BudgetTrainer, Watch, compute_dtype
from spec2seq.training.validation import sample, score
from spec2seq.training.vocabulary import copy_vocabulary, load_tokenizer, train_vocabulary
from spec2seq.training.warm_start import start_from


class Session:
    """See `spec2seq.training.train`, which makes one of these and calls `run`."""

    def __init__(self, recipe: Recipe, out: Path, data_dir: Any, max_minutes: float | None, report: Any):
        self.recipe, self.out, self.listener = recipe, out, report
        self.limit = None if max_minutes is None else 60 * max_minutes
        self.started, self.processes = time.monotonic(), processes()
        self.files, self.corpora = {}, {}  # what is read, and what is distilled first for those that are not there
        for key in ("train", "dev", "test"):
            name, corpus = getattr(recipe.data, key), getattr(recipe.distillation, key, None)
            if corpus is not None:
                self.files[key] = distilled_file(recipe, out, key)
                if not self.files[key].is_file():
                    self.corpora[key] = resolve(corpus, data_dir)
            elif name is not None:
                self.files[key] = resolve(made_by(name, out), data_dir)
        self.checkpoints = out / "checkpoints"

    def run(self) -> TrainResult:
        """Train until finished or out of time. Of several processes only the first writes the final folder."""
        summary = self.out / "final" / "training_summary.json"
        with self.processes.main_process_first():
            self._claim()
        if summary.is_file():
            facts = json.loads(summary.read_text(encoding="utf-8"))
            return TrainResult(
                self.out / "final", True, facts["steps"], facts["target_tokens_seen"], facts["minutes"], facts
            )
        if self.corpora and not self._distil():
            return TrainResult(self.out, False, 0, 0, (time.monotonic() - self.started) / 60)
        with self.processes.main_process_first():
            self._prepare()
        # Encoding sounds may take as long as the training that the budget is for. The first process has done it.
        self.clock.seconds = -broadcast_object_list([self.read_seconds])[0]
        whole = whole_checkpoints(self.checkpoints)
        if whole:
            last = whole[-1]
            for name in ("step", "batches", "tokens", "seconds"):
                setattr(self.clock, name, getattr(last, name))
        if self.clock.progress() < 1:
            self._fit(whole[-1] if whole else None)
        clock = self.clock
        if clock.progress() < 1:
            self.report(f"stopped at step {clock.step} after this session's time; call again to go on")
            return TrainResult(self.out, False, clock.step, clock.tokens, clock.elapsed() / 60)
        facts = self._finish() if self.processes.is_main_process else None
        self.processes.wait_for_everyone()  # the folder is there for all of them
        minutes = clock.elapsed() / 60 if facts is None else facts["minutes"]
        return TrainResult(self.out / "final", True, clock.step, clock.tokens, minutes, facts)

    def report(self, line: str) -> None:
        """One line to log.txt, with the time, and to the caller's listener; only from the first process."""
        if not self.processes.is_main_process:
            return
        line = f"{time.strftime('%H:%M:%S')} {line}"
        with open(self.out / "log.txt", "a", encoding="utf-8") as log:
            log.write(line + "\n")
        if self.listener is not None:
            self.listener(line)

    def _distil(self) -> bool:
        """Make the files that are to be distilled; False if this session's time is over then."""
        whole = distilled_files(self.recipe, self.out, self.corpora, self.limit, self.listener)
        now = time.monotonic()
        if self.limit is not None:
            [self.limit] = broadcast_object_list([self.limit - (now - self.started)])  # the same for all processes
        if not whole or (self.limit is not None and self.limit <= 0):
            return False
        self.started = now  # distilling is no part of the training that a budget is for
        return True

    def _claim(self) -> None:
        """Refuse a folder whose run has another model, vocabulary, data or distillation; limits may change."""
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / "recipe.yaml"
        if path.is_file():
            before = load_recipe(path)
            for section in ("model", "cached_drafter", "paper_drafter", "distillation", "vocabulary", "data"):
                if getattr(before, section) != getattr(self.recipe, section):
                    raise UsageError(f"{self.out}: holds a run with another {section!r} section; choose another folder")
        write_text(path, recipe_yaml(self.recipe))

    def _prepare(self) -> None:
        recipe = self.recipe
        if recipe.training.threads is not None:
            torch.set_num_threads(recipe.training.threads)
        torch.set_flush_denormal(True)
        set_seed(recipe.training.seed)
        self.tokenizer = self._vocabulary()
        started = time.monotonic()
        self.rows = self._training_rows()
        self.read_seconds = time.monotonic() - started
        self.dev = self._held_out("dev", recipe.evaluation.dev_lines)
        lengths = self.rows.source_lengths, self.rows.target_lengths
        self.sampler = TokenBudgetSampler(*lengths, recipe.training.tokens_per_batch, recipe.training.seed)
        # A run that only has to be finished gets no trainer, which would move the model.
        self.model = self._new_model().to(torch_device(str(self.processes.device)))
        if importlib.util.find_spec("sacrebleu") is None:
            self.report("sacrebleu is missing: BLEU and chrF are not measured, the best weights are those of least NLL")
        self.parameters = sum(weight.numel() for weight in self.model.parameters())
        count = self.processes.num_processes
        self.clock = Clock(recipe.training, len(self.sampler), session_limit=self.limit, started=self.started)
        self.clock.agreed = None if count == 1 else 0.0
        self.report(
            f"{recipe.name}: {len(self.rows)} lines, {len(self.rows.target)} target tokens, {len(self.sampler)} "
            f"batches an epoch, {self.parameters} parameters, {torch.get_num_threads()} threads"
        )

    def _training_rows(self) -> Any:
        folder, vocabulary = self.out / "cache", len(self.tokenizer)
        return tokenized(self.files["train"], self.recipe.data, self.tokenizer, folder, vocabulary)

    def _new_model(self) -> Any:
        shape = self.recipe.model
        model = new_model(shape, self.tokenizer, self.recipe.evaluation.max_new_tokens)
        if shape.start_from is not None and not whole_checkpoints(self.checkpoints):
            start_from(model, Path(made_by(shape.start_from, self.out)))
        return model

    def _vocabulary(self) -> Any:
        folder = self.out / "vocabulary"
        if not folder.is_dir():
            with whole_folder(folder) as partial:
                self._make_vocabulary(partial)
        return load_tokenizer(folder)

    def _make_vocabulary(self, folder: Path) -> None:
        recipe = self.recipe
        if recipe.vocabulary.from_ is not None:
            copy_vocabulary(Path(made_by(recipe.vocabulary.from_, self.out)), folder)
            return
        pairs = list(filter_pairs(read_pairs(self.files["train"], recipe.data), recipe.data))
        if not pairs:
            raise UsageError(f"{self.files['train']}: none of its lines passes the recipe's data filters")
        texts = (text for pair in pairs for text in (pair.source, pair.target))
        threads = recipe.training.threads or torch.get_num_threads()
        train_vocabulary(texts, recipe.vocabulary, recipe.model.family, folder, threads)

    def _held_out(self, key: str, lines: int | None) -> list[Pair]:
        pairs = sample(list(read_pairs(self.files[key], self.recipe.data)), lines)
        if not pairs:
            raise UsageError(f"{self.files[key]}: no lines")
        return pairs

    def _fit(self, resume: Checkpoint | None) -> None:
        trainer = self._trainer(self.recipe, self.model, self.rows, self.sampler, self.clock, self.checkpoints)
        trainer.add_callback(Watch(trainer, lambda: self._validate("dev").value, self.report))
        if resume is not None:
            self.report(f"going on from step {resume.step}")
        trainer.train(resume_from_checkpoint=str(resume.path) if resume else None)

    def _trainer(self, *arguments: Any) -> BudgetTrainer:
        config = self.model.config
        collate = Collator(config.pad_token_id, config.decoder_start_token_id)
        trainer = BudgetTrainer(*arguments, collate, sequence_loss)
        if trainer.args.device.type == "cpu":
            # Measured on 2 cores with AMX: the fused attention's backward pass takes a third of a step.
            self.model.set_attn_implementation("eager")
            narrow_residuals(self.model)
        return trainer

    def _validate(self, what: str, pairs: list[Pair] | None = None) -> Any:
        started = time.monotonic()
        scores = self._score(self.dev if pairs is None else pairs)
        took = f"({scores.lines} lines, {time.monotonic() - started:.0f} s)"
        self.report(f"{what}: step {self.clock.step} {scores} {took}")
        return scores

    def _score(self, pairs: list[Pair]) -> Any:
        evaluation = self.recipe.evaluation
        return score(self.model, self.tokenizer, pairs, evaluation.batch_size, evaluation.max_new_tokens)

    def _finish(self) -> dict[str, Any]:
        """Choose among the last, the best and the averaged weights by dev score; measure on the test set; write."""
        whole = whole_checkpoints(self.checkpoints)
        if not whole:
            raise Spec2SeqError(f"{self.out}: no whole checkpoint to finish from")
        candidates = {f"step {whole[-1].step} (last)": lambda: weights_of(whole[-1].path)}
        best = best_checkpoint(whole)
        if best is not None and best.step != whole[-1].step:
            candidates[f"step {best.step} (best on dev)"] = lambda: weights_of(best.path)
        recent = whole[-self.recipe.training.average :]
        if len(recent) > 1:
            steps = ", ".join(str(checkpoint.step) for checkpoint in recent)
            candidates[f"mean of steps {steps}"] = lambda: average_states(
                weights_of(checkpoint.path) for checkpoint in recent
            )
        scored = {}
        for name, load in candidates.items():
            self._load(load())
            scored[name] = self._validate(f"dev, {name}")
        chosen = max(scored, key=lambda name: scored[name].value)
        self._load(candidates[chosen]())
        test = None
        if "test" in self.files:
            test = self._validate("test", self._held_out("test", self.recipe.evaluation.test_lines))
        facts = self._facts(whole[-1], chosen, scored[chosen], test)
        self._write(facts)
        self.report(f"finished: {self.out / 'final'} holds {chosen}")
        return facts

    def _write(self, facts: dict[str, Any]) -> None:
        write_final(self.model, self.tokenizer, self.out / "vocabulary", self.out / "final", facts, self.recipe)

    def _load(self, weights: dict[str, torch.Tensor]) -> None:
        # As they will be stored: what is measured is then what the folder gives.
        rounded = {name: w.half().float() if w.is_floating_point() else w for name, w in weights.items()}
        missing, unexpected = self.model.load_state_dict(rounded, strict=False)
        if missing:  # tied weights are stored once
            self.model.tie_weights()
        if unexpected:
            raise Spec2SeqError(f"{self.checkpoints}: unexpected weights {unexpected[:3]}")

    def _facts(self, last: Checkpoint, chosen: str, dev: Any, test: Any) -> dict[str, Any]:
        import transformers

        return {
            "name": self.recipe.name,
            "parameters": self.parameters,
            "vocabulary_size": len(self.tokenizer),
            "weights": chosen,
            "steps": last.step,
            "target_tokens_seen": last.tokens,
            "epochs": round(self.clock.epochs(), 3),
            "minutes": round(last.seconds / 60, 1),
            "train_lines": len(self.rows),
            "train_target_tokens": len(self.rows.target),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
            "threads": torch.get_num_threads(),
            "precision": str(compute_dtype(self.recipe.training.precision)).removeprefix("torch."),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "dev": dataclasses.asdict(dev),
            "test": None if test is None else dataclasses.asdict(test),
        }


def recipe_yaml(recipe: Recipe) -> str:
    """The recipe as YAML that `load_recipe` reads back."""
    values = json.loads(json.dumps(dataclasses.asdict(recipe)))
    values["vocabulary"]["from"] = values["vocabulary"].pop("from_")
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
