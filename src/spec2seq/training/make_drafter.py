"""A block drafter for one's own model in one call: distil, train, check, measure, write the folder. The model reads
texts or hears sounds."""

import dataclasses
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spec2seq import BlockDrafter, Greedy, Seq2Seq, Spec2SeqError, SpecDec
from spec2seq.api import Method
from spec2seq.config import check_range
from spec2seq.errors import UsageError
from spec2seq.evaluation.lossless import compare_with_greedy, describe, greedy_outputs
from spec2seq.evaluation.manifest import cpu_name
from spec2seq.evaluation.timing import interleave
from spec2seq.files import read_json, write_json, write_text
from spec2seq.models.drafter_folder import whole_folder
from spec2seq.models.transformers_model import TransformersModel
from spec2seq.training.card import drafter_card
from spec2seq.training.data import read_pairs
from spec2seq.training.distill import distill
from spec2seq.training.inputs import inputs_of
from spec2seq.training.recipe import CachedDrafterRecipe, DataConfig, EvaluationConfig, Recipe, TrainingConfig
from spec2seq.training.run import train
from spec2seq.training.shortlist import frequent, read_outputs
from spec2seq.training.sounds import TOLD, check_told
from spec2seq.training.validation import sample

MAX_TOKENS = 512  # of a source or an output; the attention of longer ones fills the memory of a small machine
MAX_WORDS = 100_000  # none is left out for its words
DEV_LINES, DEV_WINDOWS = 200, 40
TIMED_LINES, ROUNDS = 24, 5


@dataclass(frozen=True)
class Made:
    """A drafter that was made: its folder, and the facts that its `training_summary.json` has."""

    folder: Path
    facts: dict[str, Any]


def make_drafter(
    model: str | Path,
    sources: Path,
    out: Path,
    *,
    field: str | None = None,
    src_lang: str | None = None,
    tgt_lang: str | None = None,
    prefix: str = "",
    language: str | None = None,
    task: str = "transcribe",
    timestamps: bool | None = None,
    dtype: str = "float32",
    lines: int | None = None,
    minutes: float = 30.0,
    layers: int = 1,
    block_size: int = 6,
    dev_lines: int | None = None,
    report: Callable[[str], None] | None = None,
) -> Made:
    """Train a cached block drafter on what `model` writes greedily for `sources`, and write its folder `out`.

    All work lies in `out`.work until the folder is whole: a call that was stopped goes on from there.

    Args:
        model: folder or hub id of the verifier.
        sources: TSV, JSONL or lines of text (.txt), optionally .gz; for a model that hears they name audio files of any
            length, from where `sources` lies.
        field: column of a TSV (default 0) or field of a JSONL (default source) with the source.
        src_lang, tgt_lang: languages of a multilingual model, as its tokenizer names them.
        prefix: what stands before every source, as T5 wants it.
        language, task, timestamps: what a model that hears is told, as `transcribe` does.
        dtype: of the model, one of float32, int8, bfloat16, float16, float64, while it distils and is measured.
        lines: so many sources, spread evenly over those that can be used; None takes all.
        minutes: of training; distilling comes before, checking and measuring after it.
        layers: of the drafter, at most as many as the verifier's decoder has.
        block_size: the most tokens of a draft.
        dev_lines: so many lines, or windows of sounds, choose the weights and as many others test; neither is trained
            on. None: 200, or 40 windows.
        report: takes each line of progress.

    Raises UsageError for wrong options, several processes, too few lines, or the work of a call with other ones;
    Spec2SeqError if `out` exists, or if decoding with the drafter is not greedy's output for a reason other than
    rounding.
    """
    if out.exists():
        raise Spec2SeqError(f"{out}: exists already")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UsageError("make-drafter is one process; of several, spec2seq distill and train make use")
    for name, value, low in (("lines", lines, 1), ("dev_lines", dev_lines, 1), ("minutes", minutes, 0.01)):
        check_range(name, value, low)
    device, direction = "cuda" if torch.cuda.is_available() else "cpu", {"src_lang": src_lang, "tgt_lang": tgt_lang}
    verifier = Seq2Seq.from_pretrained(model, dtype, device, **direction)
    if isinstance(verifier.model, TransformersModel):
        raise UsageError(f"{model}: a drafter reads hidden states, which models of other families do not give")
    check_range("layers", layers, 1, verifier.model.architecture.decoder.layers)
    heard = {"language": language, "task": task, "timestamps": timestamps}
    reads = verifier.model.architecture.sound is None
    dev_lines = dev_lines or (DEV_LINES if reads else DEV_WINDOWS)
    if reads and lines is not None:
        _check_enough(lines, dev_lines, sources)
    recipe = _recipe(verifier, str(model), out.name, minutes, layers, block_size, dev_lines)
    work = out.with_name(f"{out.name}.work")
    data = dataclasses.replace(_corpus(sources, field, prefix, recipe.data.max_tokens), **heard)
    check_told(verifier, data)
    _claim(work / "sources.json", {"model": verifier.fingerprint(), "sources": sources.name, "lines": lines,
                                   "size": sources.stat().st_size, "field": data.source, "prefix": prefix,
                                   "dtype": dtype, **direction, **heard})  # fmt: skip
    if not (work / "train.jsonl").is_file():
        distilled = work / "distilled.jsonl"
        if not distilled.is_file():
            cap = recipe.evaluation.max_new_tokens
            distill(verifier, sources, distilled, data, lines=lines, max_new_tokens=cap, report=report)
        _split(distilled, sources, dev_lines)
    _claim(work / "split.json", {"dev_lines": dev_lines})
    shortlist = len(frequent(read_outputs(work / "train.jsonl")))
    drafter = dataclasses.replace(recipe.cached_drafter, shortlist=shortlist, **direction)
    recipe = dataclasses.replace(recipe, cached_drafter=drafter)
    trained = train(recipe, work / "run", work, report=report)
    facts = trained.summary | measure(verifier, dtype, trained.folder, work / "test.jsonl", recipe)
    with whole_folder(out) as folder:
        shutil.copytree(trained.folder, folder, dirs_exist_ok=True)
        write_json(folder / "training_summary.json", facts)
        write_text(folder / "README.md", drafter_card(facts, recipe))
    shutil.rmtree(work)
    return Made(out, facts)


def measure(verifier: Seq2Seq, dtype: str, folder: Path, test: Path, recipe: Recipe) -> dict[str, Any]:
    """Facts of exact decoding with the drafter in `folder`, in the verifier's `dtype`: `lossless`, whole blocks against
    greedy by token ids, and `speedup`, with adaptive length against own greedy at batch 1, on some of the lines of
    `test`.

    Raises Spec2SeqError for a difference that rounding does not explain.
    """
    drafter = BlockDrafter.from_pretrained(folder, dtype, str(verifier.model.device))
    cap, inputs = recipe.evaluation.max_new_tokens, inputs_of(verifier, test.parent / "cache")
    pairs, equal, ties, wrong = list(read_pairs(test, recipe.data)), 0, 0, []
    for model, sources, prompts in inputs.asked(pairs):
        ids, blocks = list(sources), SpecDec(drafter, drafter.block_size)
        found = compare_with_greedy(
            model, ids, blocks, greedy=greedy_outputs(model, ids, cap, prompts=prompts), max_new_tokens=cap,
            prompts=prompts,
        )  # fmt: skip
        equal, ties = equal + found.rows - len(found.divergences), ties + found.ties
        wrong += [describe(found, "specdec")] if found.bugs else []
    if wrong:
        raise Spec2SeqError(f"decoding with the drafter is not lossless: {wrong[0]}")
    chosen, method = sample(pairs, TIMED_LINES), SpecDec(drafter)
    timed = [(model, list(sources), prompts) for model, sources, prompts in inputs.asked(chosen)]

    def run(method: Method) -> None:
        for model, ids, prompts in timed:
            model.generate(ids, method, batch_size=1, max_new_tokens=cap, prompts=prompts)

    seconds = interleave({"greedy": lambda: run(Greedy()), "drafter": lambda: run(method)}, ROUNDS)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name()
    return {
        "lossless": {"lines": len(pairs), "equal": equal, "ties": ties},
        "speedup": seconds.speedup("drafter", "greedy").as_dict() | {
            "lines": len(chosen), "rounds": ROUNDS, "dtype": dtype, "device": device,
            "threads": torch.get_num_threads(),
        },
    }  # fmt: skip


def describe_made(made: Made) -> str:
    """The report for people."""
    facts = made.facts
    speedup, lossless, test = facts["speedup"], facts["lossless"], facts["test"]
    share = 100 * facts["parameters"] / facts["verifier"]["parameters"]
    return "\n".join([
        f"{made.folder}: {facts['parameters']:,} parameters ({share:.1f}% of the model's), learned from "
        f"{facts['train_lines']:,} outputs in {facts['minutes']:g} minutes",
        f"lossless: {lossless['equal']} of {lossless['lines']} held-out lines equal greedy's token ids, "
        f"{lossless['ties']} numerical ties",
        f"tokens per verifier call: {test['tokens_per_verifier_call']:.2f} with whole blocks",
        f"speed-up over own greedy: {speedup['median']:.2f} (quartiles {speedup['low']:.2f} to {speedup['high']:.2f}; "
        f"batch 1, {speedup['dtype']}, {speedup['threads']} threads, {speedup['lines']} lines, {speedup['rounds']} "
        "rounds)",
    ])  # fmt: skip


def _recipe(
    verifier: Seq2Seq, model: str, name: str, minutes: float, layers: int, block_size: int, dev_lines: int
) -> Recipe:
    """As recipes/ende-drafter.yaml, for a verifier of any size."""
    a = verifier.model.architecture
    decoder = a.decoder
    most = min(MAX_TOKENS, a.max_positions or MAX_TOKENS)
    return Recipe(
        name,
        DataConfig(
            "train.jsonl", "dev.jsonl", "test.jsonl", source="source", target="target", target_tokens="tokens",
            origin=None, max_words=MAX_WORDS, max_tokens=most, max_ratio=1000.0,  # what the verifier writes is right
        ),
        TrainingConfig(
            budget_minutes=minutes, cooldown=0.3, tokens_per_batch=1152, warmup_steps=200, label_smoothing=0.0,
            save_minutes=min(3.0, minutes / 8), average=3,
        ),
        CachedDrafterRecipe(
            verifier=model, block_size=block_size, layers=layers,
            feed_forward=decoder.ffn_width,  # so that layers start as the verifier's last
            hidden_layers=tuple(sorted({(decoder.layers + 1) // 2, decoder.layers})),
        ),
        evaluation=EvaluationConfig(
            every_minutes=min(6.0, minutes / 4), dev_lines=dev_lines,
            max_new_tokens=min(verifier.max_new_tokens(None, TOLD if a.sound else 0), most),
        ),
    )  # fmt: skip


def _corpus(sources: Path, field: str | None, prefix: str, max_tokens: int) -> DataConfig:
    if not sources.is_file():
        raise UsageError(f"{sources}: no such file")
    is_jsonl = sources.name.removesuffix(".gz").endswith(".jsonl")
    field = field or ("source" if is_jsonl else "0")
    # No reference is wanted: the source stands for it.
    return DataConfig(str(sources), "", source=field, target=field, origin=None, max_words=MAX_WORDS,
                      max_tokens=max_tokens, prefix=prefix)  # fmt: skip


def _claim(path: Path, settings: dict[str, Any]) -> None:
    """Write down what this step of the work was made with, and refuse to go on with other values."""
    if not path.is_file():
        write_json(path, settings)
        return
    before = read_json(path)
    for name, value in settings.items():
        if before.get(name) != value:
            raise UsageError(
                f"{path.parent}: holds the work of a call with another value of {name} ({before.get(name)!r}, not "
                f"{value!r}); remove it or choose another folder"
            )


def _check_enough(lines: int, dev_lines: int, sources: Path) -> None:
    if lines <= 2 * dev_lines:
        raise UsageError(
            f"{sources}: {lines} usable lines; needed: more than {2 * dev_lines}, for dev_lines is {dev_lines}, and as "
            "many are for testing"
        )


def _split(distilled: Path, sources: Path, dev_lines: int) -> None:
    """Share the lines out to dev.jsonl, test.jsonl and train.jsonl, the one that says that all are there."""
    lines = [line for line in distilled.read_text(encoding="utf-8").split("\n") if line]
    _check_enough(len(lines), dev_lines, sources)
    held = sample(range(len(lines)), 2 * dev_lines)
    parts = {"dev": held[::2], "test": held[1::2], "train": sorted({*range(len(lines))} - {*held})}
    for name, chosen in parts.items():
        write_text(distilled.with_name(f"{name}.jsonl"), "".join(f"{lines[index]}\n" for index in chosen))
