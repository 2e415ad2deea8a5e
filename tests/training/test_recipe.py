"""Recipes: every one in recipes/ loads, and every mistake is named."""

from pathlib import Path

import pytest
import yaml

from spec2seq.errors import UsageError
from spec2seq.training import load_recipe
from spec2seq.training.queue import RECIPES
from spec2seq.training.recipe import parse_recipe
from spec2seq.training.session import recipe_yaml

FOLDER = Path(__file__).parents[2] / "recipes"


PATHS = [path for path in sorted(FOLDER.rglob("*.yaml")) if path.parent.name != "bench"]  # those train nothing


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_recipe_loads_and_names_no_machine_path(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    named = [recipe.data.train, recipe.data.dev, recipe.data.test, recipe.vocabulary.from_, recipe.model.start_from]
    named += [recipe.drafter.verifier] if recipe.drafter else []
    assert not any(Path(name).is_absolute() for name in named if name)


def test_the_queue_names_recipes_that_exist() -> None:
    assert all((FOLDER / f"{name}.yaml").is_file() for name in RECIPES)


def test_a_recipe_survives_the_copy_in_the_model_folder(recipe) -> None:
    assert parse_recipe(yaml.safe_load(recipe_yaml(recipe))) == recipe


@pytest.mark.parametrize(
    ("section", "key", "value", "parts"),
    [
        ("training", "learning_rat", 0.1, ("learning_rat", "learning_rate")),
        ("training", "label_smoothing", 1.5, ("label_smoothing", "1.5", "0.9")),
        ("training", "precision", "fp8", ("precision", "fp8", "bf16")),
        ("training", "tokens_per_batch", "many", ("tokens_per_batch", "many", "int")),
        ("training", "tokens_per_batch", 64, ("max_tokens", "200", "64")),
        ("model", "family", "gpt", ("family", "gpt", "marian")),
        ("model", "heads", 3, ("heads", "3", "16")),
        ("data", "max_words", 0, ("data: max_words", "0", "from 1 to")),
        ("data", "max_words", -1, ("max_words", "-1")),
        ("vocabulary", "size", 3, ("size", "3", "64")),
        ("evaluation", "dev_lines", 0, ("dev_lines", "0", "at least 1")),
        ("evaluation", "max_new_tokens", 513, ("evaluation.max_new_tokens is 513", "from 1 to 512")),
        ("data", "language", "de", ("data.language is 'de'; it does nothing for a model that reads",)),
        ("data", "task", "nonsense", ("data.task is 'nonsense'",)),
        ("vocabulary", "from", "other/final", ("size is 310; it does nothing beside from",)),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(values, section, key, value, parts) -> None:
    values[section][key] = value
    with pytest.raises(UsageError) as caught:
        parse_recipe(values, "toy.yaml")
    assert all(part in str(caught.value) for part in ("toy.yaml", *parts)), caught.value


@pytest.mark.parametrize(
    ("data", "asked", "message"),
    [
        ({"train": "x.tsv"}, {}, r"data.train is 'x.tsv'; allowed, for distillation.train is set: NAME.jsonl"),
        ({"train": "x.jsonl.gz"}, {}, "NAME.jsonl"),
        ({"test": None}, {"test": "c.tsv"}, "data.test is not set"),
        ({"dev": "other/x.jsonl"}, {"dev": "c.tsv"}, "data names the files x.jsonl, x.jsonl, toy.test.tsv"),
        ({"source": "0"}, {}, "data.source is '0'; allowed with distillation: source"),
    ],
)
def test_what_is_distilled_has_files_of_its_own(values, data, asked, message) -> None:
    values["data"] |= {"train": "x.jsonl", "source": "source", "target": "target"} | data
    values["distillation"] = {"model": "m", "train": "c.tsv"} | asked
    with pytest.raises(UsageError, match=message):
        parse_recipe(values)


def test_a_cached_drafter_is_bound_by_its_verifier_alone(values) -> None:
    for name in ("model", "vocabulary"):
        del values[name]
    values["cached_drafter"], values["training"]["tokens_per_batch"] = {"verifier": "m"}, 4096
    values["data"] |= {"target_tokens": "tokens", "max_tokens": 1000}
    assert parse_recipe(values).data.max_tokens == 1000


def test_a_t5_that_transformers_cannot_decode_is_refused(values) -> None:
    values["model"] |= {"family": "t5", "encoder_layers": 2, "decoder_layers": 3}
    with pytest.raises(UsageError, match="decoder_layers is 3; allowed for t5: at most the 2 of the encoder"):
        parse_recipe(values)


def test_a_recipe_without_a_limit_is_refused(values) -> None:
    del values["training"]["max_steps"]
    with pytest.raises(UsageError, match="max_steps, max_epochs, budget_minutes"):
        parse_recipe(values)


def test_a_missing_file_and_a_missing_section_are_named(tmp_path: Path, values) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load_recipe(tmp_path / "none.yaml")
    del values["data"]
    with pytest.raises(UsageError, match="missing key 'data'"):
        parse_recipe(values)
