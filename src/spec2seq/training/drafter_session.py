"""A run that trains a cached block drafter: the verifier gives the vocabulary, the states and the labels."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from spec2seq.api import Seq2Seq
from spec2seq.models.cached_drafter import CachedDrafter, CachedDrafterConfig
from spec2seq.training.batches import Collator
from spec2seq.training.card import drafter_card
from spec2seq.training.data import Pair
from spec2seq.training.drafting import DrafterLoss, DraftScores, DraftValidation
from spec2seq.training.session import Session, recipe_yaml
from spec2seq.training.trainer import BudgetTrainer, compute_dtype


class DrafterSession(Session):
    """See `Session`. Every file of `data` holds what the verifier wrote."""

    def _vocabulary(self) -> Any:
        dtype = str(compute_dtype(self.recipe.training.precision)).removeprefix("torch.")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.verifier = Seq2Seq.from_pretrained(self.recipe.cached_drafter.verifier, dtype, device)
        return self.verifier.tokenizer

    def _new_model(self) -> CachedDrafter:
        model = self.verifier.model
        shape = self.recipe.cached_drafter.shape
        drafter = CachedDrafter(CachedDrafterConfig(model.architecture, shape, self.verifier.fingerprint()))
        drafter.start_from(model)
        return drafter

    def _trainer(self, *arguments: Any) -> BudgetTrainer:
        a = self.verifier.model.architecture
        loss = DrafterLoss(self.verifier.model, self.recipe.cached_drafter.stride, lambda: self.clock.step)
        return BudgetTrainer(*arguments, Collator(a.pad_token_id, a.decoder_start_token_id), loss)

    def _score(self, pairs: list[Pair]) -> DraftScores:
        evaluation = self.recipe.evaluation
        return DraftValidation(self.verifier, evaluation.batch_size, evaluation.max_new_tokens)(self.model, pairs)

    def _write(self, facts: dict[str, Any]) -> None:
        folder = self.out / "final"
        partial = folder.with_name("final.partial")
        shutil.rmtree(partial, ignore_errors=True)
        verifier = sum(weight.numel() for weight in self.verifier.model.parameters())
        facts["verifier"] = {"folder": Path(self.recipe.cached_drafter.verifier).name, "parameters": verifier}
        self.model.save_pretrained(partial)
        (partial / "recipe.yaml").write_text(recipe_yaml(self.recipe), encoding="utf-8")
        text = json.dumps(facts, indent=2, ensure_ascii=False)
        (partial / "training_summary.json").write_text(text + "\n", encoding="utf-8")
        (partial / "README.md").write_text(drafter_card(facts, self.recipe), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
