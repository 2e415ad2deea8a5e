"""Runs that train a block drafter: the verifier gives the vocabulary, and every file of `data` holds what it wrote."""

import copy
import functools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spec2seq import CachedBlockDrafter, Seq2Seq
from spec2seq.config import check_range
from spec2seq.models import languages
from spec2seq.models.cached_drafter import CachedDrafter
from spec2seq.models.cached_drafter_shape import CachedDrafterConfig
from spec2seq.training.card import drafter_card
from spec2seq.training.checkpoints import Checkpoint, require_fit, weights_of
from spec2seq.training.data import Pair, made_by
from spec2seq.training.draft_scores import DraftScores, Guess, score_drafter
from spec2seq.training.drafting import DrafterLoss, block_guesses
from spec2seq.training.inputs import inputs_of
from spec2seq.training.session import Session, recipe_yaml
from spec2seq.training.trainer import BudgetTrainer, Loss, compute_dtype


class DrafterSession(Session):
    """See `Session`. A kind of drafter adds its first weights, its loss and how it is judged."""

    def _verifier_dtype(self) -> torch.dtype:
        raise NotImplementedError

    def _loss(self) -> Loss:
        raise NotImplementedError

    def _judged(self, drafter: Any) -> tuple[Any, Guess]:
        """The drafter as the engine uses it, and its guesses on a batch."""
        raise NotImplementedError

    def _vocabulary(self) -> Any:
        dtype = str(self._verifier_dtype()).removeprefix("torch.")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        asked = self.recipe.drafter
        self.verifier = Seq2Seq.from_pretrained(made_by(asked.verifier, self.out), dtype, device, **asked.direction)
        a, evaluation = self.verifier.model.architecture, self.recipe.evaluation
        check_range("data.max_tokens", self.recipe.data.max_tokens, 2, a.max_positions)
        check_range("evaluation.max_new_tokens", evaluation.max_new_tokens, 1, a.max_positions)
        languages.set_languages(self.verifier.tokenizer, asked.src_lang, asked.tgt_lang)
        return self.verifier.tokenizer

    def _training_rows(self) -> Any:
        self.inputs = inputs_of(self.verifier, self.out / "cache", self.report)
        return self.inputs.training_rows(self.files["train"], self.recipe.data, self.tokenizer)

    def _trainer(self, *arguments: Any) -> BudgetTrainer:
        return BudgetTrainer(*arguments, self.inputs.collator(), self._loss())

    def _fit(self, resume: Checkpoint | None) -> None:
        if resume is not None:  # Transformers only warns of weights that do not fit
            require_fit(weights_of(resume.path), self.model.state_dict(), str(resume.path))
        super()._fit(resume)

    def _load(self, weights: dict[str, torch.Tensor]) -> None:
        require_fit(weights, self.model.state_dict(), str(self.checkpoints))
        super()._load(weights)

    def _score(self, pairs: list[Pair]) -> DraftScores:
        model, evaluation = self.verifier.model, self.recipe.evaluation
        drafter, guess = self._judged(copy.deepcopy(self.model).to(model.device, model.dtype).eval())
        limits = evaluation.batch_size, evaluation.max_new_tokens
        return score_drafter(self.inputs, drafter, guess, pairs, *limits)

    def _write(self, facts: dict[str, Any]) -> None:
        folder = self.out / "final"
        partial = folder.with_name("final.partial")
        shutil.rmtree(partial, ignore_errors=True)
        verifier = sum(weight.numel() for weight in self.verifier.model.parameters())
        facts["verifier"] = {"folder": Path(self.recipe.drafter.verifier).name, "parameters": verifier}
        copy.deepcopy(self.model).half().save_pretrained(partial)
        (partial / "recipe.yaml").write_text(recipe_yaml(self.recipe), encoding="utf-8")
        text = json.dumps(facts, indent=2, ensure_ascii=False)
        (partial / "training_summary.json").write_text(text + "\n", encoding="utf-8")
        (partial / "README.md").write_text(drafter_card(facts, self.recipe), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)


class CachedDrafterSession(DrafterSession):
    """A cached block drafter: the verifier reads along."""

    def _verifier_dtype(self) -> torch.dtype:
        return compute_dtype(self.recipe.training.precision)

    def _new_model(self) -> CachedDrafter:
        model = self.verifier.model
        shape = self.recipe.cached_drafter.shape
        drafter = CachedDrafter(CachedDrafterConfig(model.architecture, shape, self.verifier.fingerprint()))
        drafter.start_from(model)
        if shape.shortlist:
            counts = np.bincount(self.rows.target, minlength=model.architecture.vocabulary)
            drafter.shortlist.copy_(torch.from_numpy(np.argsort(-counts, kind="stable")[: shape.shortlist].copy()))
        return drafter

    def _loss(self) -> DrafterLoss:
        return DrafterLoss(self.verifier.model, self.recipe.cached_drafter.stride, lambda: self.clock.step)

    def _judged(self, drafter: CachedDrafter) -> tuple[CachedBlockDrafter, Guess]:
        return CachedBlockDrafter(drafter), functools.partial(block_guesses, drafter, self.verifier.model)
