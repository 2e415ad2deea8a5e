"""What `transformers.pipeline` made for encoder–decoder models until Transformers 5 removed it: translation,
summarization, text2text-generation, with their arguments, their defaults and what they returned (as of 4.57)."""

import copy
import itertools
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from spec2seq.api import Method, Seq2Seq
from spec2seq.config import check_choice
from spec2seq.decoding.methods import Beam, Speculative
from spec2seq.decoding.stats import Stats
from spec2seq.dropin.generate import share
from spec2seq.dropin.methods import asked_for, check_agrees, drafted, repeats, seed_of
from spec2seq.errors import UsageError
from spec2seq.generation import Row
from spec2seq.limits import STAND_IN
from spec2seq.models import languages
from spec2seq.models.loading import load_tokenizer

# Task → the first word of the keys of a result.
TASKS = {"translation": "translation", "summarization": "summary", "text2text-generation": "generated"}
PAIR = re.compile(r"translation_(.+)_to_(.+)")
# Where a model's generation config says nothing. Drawing from the 50 likeliest is the default of `model.generate`.
DEFAULTS = {"num_beams": 4, "max_new_tokens": 256, "top_k": 50}
_TRUNCATIONS = {False: False, True: True, "do_not_truncate": False, "longest_first": True, "only_first": True}


def pipeline(
    task: str, model: Any = None, tokenizer: Any = None, *, method: Method | None = None, drafter: Any = None,
    device: int | str | torch.device | None = None, dtype: str | torch.dtype = "float32", executor: str = "auto",
    **defaults: Any,
) -> "Pipeline":  # fmt: skip
    """A callable for texts, as `transformers.pipeline` made it.

    Args:
        task: "translation", "translation_xx_to_yy" (languages as the tokenizer names them), "summarization" or
            "text2text-generation".
        model: a folder or hub id, a `Seq2Seq`, or a live Transformers module, whose weights are shared as they lie
            now: one that moves to another device or dtype wants a new pipeline.
        tokenizer: folder, id or tokenizer, where the model brings none.
        method: how to decode; None does what settings and the model's config say, and 4 beams where they say nothing.
        drafter: a folder or hub id, a `Seq2Seq`, a drafter: greedy decoding, speculative with the same tokens.
        device: "cpu", "cuda"…, or a number: of a GPU, -1 for the CPU. dtype, executor: see `Seq2Seq.from_pretrained`;
            of a model that is a folder or an id.
        defaults: of the arguments of `Pipeline.__call__`.
    """
    found = PAIR.fullmatch(task)
    check_choice("task", "translation" if found else task, TASKS)
    place = {"device": _device(device), "dtype": str(dtype).removeprefix("torch."), "executor": executor}
    loaded = _load(model, tokenizer, place, given=device is not None)
    if drafter is not None:
        if method is not None:
            raise UsageError("method and drafter are both given; a method brings its own drafter")
        method = _speculation(drafter, loaded, place)
    if found and languages.language_tokens(loaded.tokenizer):
        defaults = {"src_lang": found.group(1), "tgt_lang": found.group(2)} | defaults
    return Pipeline(task, loaded, method, defaults)


class Pipeline:
    """Made by `pipeline`. `stats` are the counts of the last call."""

    def __init__(self, task: str, model: Seq2Seq, method: Method | None, defaults: dict[str, Any]):
        self.task, self.method, self.defaults, self.stats = task, method, defaults, Stats()
        self.name = TASKS["translation" if task.startswith("translation") else task]
        own = (getattr(model.config, "task_specific_params", None) or {}).get(task, {})  # as T5's have them
        prefix = own.get("prefix") or getattr(model.config, "prefix", None)
        self.model = model if prefix is None or model.prefix else model.for_task(prefix=prefix)
        self.own = {name: value for name, value in own.items() if name != "prefix"}
        self._directions: dict[tuple[str | None, str | None], Seq2Seq] = {(None, None): self.model}

    def direction(self, source: str | None, target: str | None) -> Seq2Seq:
        """The model for two languages; the same object each time, so that what is learned of it stays."""
        if (source, target) not in self._directions:
            self._directions[source, target] = self.model.for_task(source, target)
        return self._directions[source, target]

    def __call__(self, inputs: str | Iterable[str], **arguments: Any) -> Any:
        """Run one text, a list, or any other iterable.

        Args, each also of `pipeline` as a default:
            return_text: give `…_text` (default: unless `return_tensors`).
            return_tensors: give `…_token_ids`, a tensor `[tokens]` with the decoder start token.
            clean_up_tokenization_spaces: as the tokenizer's `decode` takes it.
            truncation: cut sources that are too long; True, or a name of Transformers.
            src_lang, tgt_lang: languages of a multilingual model.
            batch_size: rows in flight (1).
            generation_config, and any setting of it: num_beams, max_length, do_sample, num_return_sequences…

        Returns one text's list of results, each a dictionary; of a list of texts their results, or with several for
        each (num_return_sequences) a list of lists; of an iterable an iterator of lists. Raises UsageError for an
        argument that is neither, Spec2SeqError for a setting that is not supported.
        """
        run = _Run(self, self.defaults | arguments)
        self.stats = run.stats
        if isinstance(inputs, str):
            return next(run([inputs]))
        if not isinstance(inputs, list):
            return run(inputs)
        results = list(run(inputs))
        return [found[0] for found in results] if all(len(found) == 1 for found in results) else results


class _Run:
    """One call: its arguments sorted, its model under the settings it asks for."""

    def __init__(self, pipe: Pipeline, arguments: dict[str, Any]):
        take = arguments.pop
        self.name, self.stats = pipe.name, Stats()
        self.batch_size = take("batch_size", None) or 1
        self.tensors = bool(take("return_tensors", None))
        text = take("return_text", None)
        self.text = not self.tensors if text is None else bool(text)
        if not (self.text or self.tensors):
            raise UsageError("return_text and return_tensors are both False; nothing is left to return")
        self.clean = take("clean_up_tokenization_spaces", None)
        truncation = take("truncation", None)
        truncation = getattr(truncation, "value", truncation) or False  # an enumeration of Transformers
        check_choice("truncation", truncation, _TRUNCATIONS)
        self.truncate = _TRUNCATIONS[truncation]
        self.model = self._in_languages(pipe, take("src_lang", None), take("tgt_lang", None))
        self.model, asked = _under(self.model, pipe.own, arguments)
        said = "max_length" in asked or "max_new_tokens" in asked
        self.cap = self.model.max_new_tokens(self.model.generation_config.max_new_tokens if said else None)
        self._choose(pipe, asked)

    def _in_languages(self, pipe: Pipeline, source: str | None, target: str | None) -> Seq2Seq:
        model = pipe.direction(source, target)
        if pipe.name == "translation" and languages.language_tokens(model.tokenizer):
            for name in ("src_lang", "tgt_lang"):
                if getattr(model, name) is None:
                    raise UsageError(f"this model translates between many languages, and {name} is not given")
        return model

    def _choose(self, pipe: Pipeline, asked: Mapping[str, Any]) -> None:
        """The method, and how often each source is decoded."""
        settings, self.method = self.model.settings, pipe.method
        if self.method is None:
            self.method = asked_for(settings, None, seed_of(settings))
        check_agrees(self.method, asked)
        self.repeats = repeats(self.method, self.model.generation_config)

    def __call__(self, texts: Iterable[str]) -> Iterator[list[dict[str, Any]]]:
        rows = self.model.stream(
            self._sources(texts), self.method, stats=self.stats, max_new_tokens=self.cap, batch_size=self.batch_size
        )
        while group := list(itertools.islice(rows, self.repeats)):
            yield [self._record(found.tokens) for row in group for found in self._outputs(row)]

    def _outputs(self, row: Row) -> Iterable[Any]:
        return row.hypotheses if isinstance(self.method, Beam) else (row,)

    def _sources(self, texts: Iterable[str]) -> Iterator[list[int]]:
        for number, text in enumerate(texts, 1):
            if not isinstance(text, str):
                raise UsageError(f"input {number} is {type(text).__name__}; allowed: a text")
            ids = self.model.encode_text(text)
            most = getattr(self.model.tokenizer, "model_max_length", None)
            if self.truncate and most:
                ids = languages.cut(ids, most, self.model.model.architecture.eos_token_id)
            ids = self.model.source_ids(ids, f"input {number}", self.truncate)
            self._warn(number, len(ids))
            yield from itertools.repeat(ids, self.repeats)

    def _warn(self, number: int, length: int) -> None:
        """What the removed pipelines warned of: outputs that will be cut, or are asked to be longer than the source."""
        shortest = self.model.settings.get("min_length") or 0
        if self.name == "summary" and shortest > self.cap:
            warnings.warn(f"min_length is {shortest}, and an output has at most {self.cap} tokens", stacklevel=2)
        if self.name == "summary" and length < self.cap:
            warnings.warn(
                f"input {number} has {length} tokens, and its summary may have {self.cap}; a smaller max_length would "
                "keep it short", stacklevel=2,
            )  # fmt: skip
        if self.name == "translation" and length > 0.9 * self.cap:
            warnings.warn(
                f"input {number} has {length} tokens, and its translation at most {self.cap}; a larger max_length "
                "would leave it room", stacklevel=2,
            )  # fmt: skip

    def _record(self, tokens: list[int]) -> dict[str, Any]:
        record: dict[str, Any] = {}
        if self.text:
            clean = {} if self.clean is None else {"clean_up_tokenization_spaces": self.clean}
            record[f"{self.name}_text"] = self.model.tokenizer.decode(tokens, skip_special_tokens=True, **clean)
        if self.tensors:
            start = self.model.model.architecture.decoder_start_token_id
            record[f"{self.name}_token_ids"] = torch.tensor([start, *tokens])
        return record


def _under(model: Seq2Seq, own: Mapping[str, Any], asked: dict[str, Any]) -> tuple[Seq2Seq, dict[str, Any]]:
    """The model under what a call asks for, then what its config has for the task, then its generation config, then
    the defaults; and what the call asks for. Raises UsageError for a name that is none of a setting."""
    from transformers import GenerationConfig

    base = asked.pop("generation_config", None)
    asked = ({} if base is None else vars(base)) | asked
    asked = {name: value for name, value in asked.items() if value is not None and not name.startswith("_")}
    config, lengths = copy.deepcopy(model.generation_config) or GenerationConfig(), {"max_length", "max_new_tokens"}
    config.update(**own)
    if lengths & set(asked):  # of the two the one that was asked for counts
        config.max_length = config.max_new_tokens = None
    elif config.max_new_tokens is None and config.max_length not in (None, STAND_IN):
        config.max_new_tokens = config.max_length - 1  # the decoder start is not new
    for name, value in DEFAULTS.items():
        if getattr(config, name) is None and not (lengths if name in lengths else {name}) & set(asked):
            setattr(config, name, value)
    try:
        unused = config.update(**asked)
    except ValueError as error:  # of Transformers' own checks
        raise UsageError(str(error)) from None
    if unused:
        raise UsageError(f"{next(iter(unused))} is neither an argument of a pipeline nor a generation setting")
    if config.max_new_tokens is None:
        config.max_new_tokens = config.max_length - 1
    other = copy.copy(model)
    other.generation_config = config
    return other, asked


def _load(model: Any, tokenizer: Any, place: dict[str, str], given: bool) -> Seq2Seq:
    words = {"tokenizer": tokenizer} if isinstance(tokenizer, str | Path) else {}
    if isinstance(model, str | Path):
        model = Seq2Seq.from_pretrained(model, **place, **words)
    elif given or place["dtype"] != "float32":
        raise UsageError("device and dtype are of a model that is loaded; this one is: move it yourself")
    if isinstance(model, torch.nn.Module) and hasattr(model, "generation_config"):
        model = copy.copy(share(model, "native" if place["executor"] == "native" else "torch"))
    if not isinstance(model, Seq2Seq):
        raise UsageError(
            f"model is {type(model).__name__}; allowed: a folder or hub id, a Seq2Seq, or a model of Transformers"
        )
    if words and model.tokenizer is None:
        tokenizer = load_tokenizer(str(tokenizer))
    if tokenizer is not None and not isinstance(tokenizer, str | Path):
        model = copy.copy(model)
        model.tokenizer = tokenizer
    if model.tokenizer is None:
        raise UsageError("a pipeline reads texts; give its model's tokenizer")
    return model


def _speculation(drafter: Any, verifier: Seq2Seq, place: dict[str, str]) -> Speculative:
    """The lossless method for whatever was given as a drafter."""
    if isinstance(drafter, str | Path):
        from spec2seq.from_options import load_drafter

        drafter = load_drafter(str(drafter), verifier, **place)
    elif isinstance(drafter, torch.nn.Module) and hasattr(drafter, "generation_config"):
        drafter = share(drafter)
    if isinstance(drafter, Seq2Seq):
        drafter = drafter.drafter()
    return drafted(drafter)


def _device(device: int | str | torch.device | None) -> str:
    if device is None or device == -1:
        return "cpu"
    return f"cuda:{device}" if isinstance(device, int) else str(device)
