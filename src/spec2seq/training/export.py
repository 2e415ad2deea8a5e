"""The final folder: half-precision weights in small files, tokenizer, recipe, recorded facts and the model card."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from spec2seq.training.card import model_card
from spec2seq.training.recipe import Recipe
from spec2seq.training.vocabulary import copy_vocabulary

SHARD = "15MB"


def write_final(
    model: Any, tokenizer: Any, vocabulary: Path, folder: Path, facts: dict[str, Any], recipe: Recipe
) -> None:
    """Write what `AutoModelForSeq2SeqLM.from_pretrained(folder)` loads, first under a temporary name.

    Weights are float16 in files under 16 MB; the configuration says float32, so they are computed with in that
    unless the user asks for another dtype.
    """
    from spec2seq.training.session import recipe_yaml

    partial = folder.with_name(folder.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)
    model.half().save_pretrained(partial, max_shard_size=SHARD)
    config = json.loads((partial / "config.json").read_text(encoding="utf-8"))
    config["dtype"] = "float32"
    (partial / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    model.float()
    copy_vocabulary(vocabulary, partial)
    (partial / "recipe.yaml").write_text(recipe_yaml(recipe), encoding="utf-8")
    text = json.dumps(facts, indent=2, ensure_ascii=False)
    (partial / "training_summary.json").write_text(text + "\n", encoding="utf-8")
    (partial / "README.md").write_text(model_card(facts, recipe), encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)
