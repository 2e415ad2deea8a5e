"""Load a model and generate: the only place where models and decoding meet."""

import copy
import dataclasses
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from spec2seq.decoding.beam import beam_search
from spec2seq.decoding.drafters import LittleModel
from spec2seq.decoding.logits import Processor, processors_from
from spec2seq.decoding.loop import Engine
from spec2seq.decoding.methods import Beam, Greedy, Speculative
from spec2seq.decoding.official import OfficialBiLD
from spec2seq.decoding.scheduler import Completion
from spec2seq.decoding.score import log_probability
from spec2seq.decoding.stats import Counts, Stats
from spec2seq.errors import Spec2SeqError, UsageError
from spec2seq.models import executor as executors
from spec2seq.models import families, int8_folder, languages
from spec2seq.models.drafter_folder import whole_folder
from spec2seq.models.encoder_decoder import EncoderDecoder
from spec2seq.models.fingerprint import fingerprint
from spec2seq.pairing import check_pair

DTYPES = executors.WEIGHTS
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "spiece.model", "sentencepiece.bpe.model", "source.spm", "vocab.json",
    "vocab-src.json",
)  # fmt: skip
DEFAULT_MAX_NEW_TOKENS = 256
LONGEST_SOURCE = 4096  # tokens, where a model has no limit of its own: attention over more fills the memory
WINDOW = 16  # batches that are sorted by length together

Method = Speculative | Beam | OfficialBiLD


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """One of the best outputs of beam search. `score` is its log-probability over its length to the power of
    length_penalty."""

    text: str | None
    tokens: list[int]
    score: float


@dataclasses.dataclass(frozen=True)
class Row:
    """One generated output: its text, its token ids (end token included) and its counts. `trace`, if asked for,
    has one letter a token: d for the drafter, v for the verifier. Beam search adds its `hypotheses`, the best, which
    is this output, first."""

    text: str | None
    tokens: list[int]
    counts: Counts
    trace: str | None = None
    hypotheses: tuple[Hypothesis, ...] = ()


@dataclasses.dataclass(frozen=True)
class Generation:
    """The rows in the order of the sources, and the counts and seconds of the run."""

    rows: list[Row]
    stats: Stats

    @property
    def texts(self) -> list[str]:
        return [row.text or "" for row in self.rows]

    @property
    def sequences(self) -> list[list[int]]:
        return [row.tokens for row in self.rows]


class Seq2Seq:
    """An encoder–decoder model: our layers, Transformers' configuration, tokenizer and weights."""

    src_lang: str | None = None
    tgt_lang: str | None = None
    prefix = ""

    def __init__(self, model: EncoderDecoder, config: Any, tokenizer: Any = None, generation_config: Any = None):
        self.model, self.config, self.tokenizer = model, config, tokenizer
        self.generation_config = generation_config

    @classmethod
    def from_pretrained(
        cls, name: str | Path, dtype: str = "float32", device: str = "cpu", executor: str = "auto", *,
        tokenizer: str | Path | None = None, src_lang: str | None = None, tgt_lang: str | None = None,
        prefix: str | None = None,
    ) -> "Seq2Seq":  # fmt: skip
        """Load a folder or a hub id. Raises Spec2SeqError if it is no model of a supported family.

        Args:
            name: a folder with config.json, weights and tokenizer, or an id on the hub.
            dtype: one of float32, int8 (weights; activations by token), bfloat16, float16, float64.
            device: a PyTorch device, such as "cpu" or "cuda".
            executor: what runs the layers: "torch"; "native", compiled on this machine, for float32 and int8 on a CPU;
                "auto", native where that is possible.
            tokenizer: folder or id of the tokenizer where the model's has none.
            src_lang, tgt_lang, prefix: see `for_task`.
        """
        if dtype not in DTYPES:
            raise UsageError(f"dtype is {dtype!r}; allowed: {', '.join(DTYPES)}")
        where = _torch_device(device)
        executors.check(dtype, executor)
        name = str(name)
        if os.path.exists(name) and not os.path.isfile(os.path.join(name, "config.json")):
            raise Spec2SeqError(f"{name}: no model here: config.json is missing")
        if name.startswith((".", "/", "~")) and not os.path.exists(name):
            raise Spec2SeqError(f"{name}: no such folder")
        import transformers  # slow to import, and only loading needs it

        from spec2seq.models import subwords  # so does this

        try:
            config = transformers.AutoConfig.from_pretrained(name)
            families.family_of(config, name)
            model, config, generation_config = _load_weights(config, name, dtype)
        except Spec2SeqError:
            raise
        except Exception as error:  # a broken configuration raises anything, from KeyError to the hub's own kinds
            reason = _first_line(error)
            raise Spec2SeqError(f"{name}: neither a model folder nor an id that could be loaded: {reason}") from None
        # Without its files Transformers makes an empty tokenizer up for some families.
        words = str(tokenizer or name)
        if os.path.isdir(words) and not any(os.path.isfile(os.path.join(words, file)) for file in TOKENIZER_FILES):
            raise Spec2SeqError(f"{words}: no tokenizer here: expected one of {', '.join(TOKENIZER_FILES)}")
        subwords.register()
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(words)
        except Exception as error:  # as above
            reason = _first_line(error)
            if "tiktoken" in reason:  # what Transformers tries last, and is misleading
                reason = "a SentencePiece file without tokenizer.json needs protobuf (pip install protobuf)"
            raise Spec2SeqError(f"{words}: its tokenizer could not be loaded: {reason}") from None
        executors.prepare(model.to(where), dtype, executor)
        loaded = cls(model, config, tokenizer, generation_config)
        return loaded.for_task(src_lang, tgt_lang, prefix)

    @classmethod
    def from_transformers(cls, module: Any, tokenizer: Any = None) -> "Seq2Seq":
        """Take over the weights of a live Transformers model."""
        model = families.load(module.config, module.state_dict(), type(module).__name__)
        return cls(model, module.config, tokenizer, module.generation_config)

    def for_task(
        self, src_lang: str | None = None, tgt_lang: str | None = None, prefix: str | None = None
    ) -> "Seq2Seq":
        """The same weights for one direction or task; None leaves what was set before.

        Args:
            src_lang, tgt_lang: languages of a multilingual model, as its tokenizer names them, such as "eng_Latn".
            prefix: what stands before every source text, such as "translate English to German: ".

        Raises UsageError if the tokenizer has no such language.
        """
        other = copy.copy(self)
        if prefix is not None:
            other.prefix = prefix
        if src_lang is not None:
            languages.language_token(self.tokenizer, "src_lang", src_lang)
            other.src_lang = src_lang
        if tgt_lang is not None:
            start = getattr(self.config, "decoder_start_token_id", None)
            setting = languages.target_setting(self.tokenizer, start, tgt_lang)
            other.tgt_lang, other.generation_config = tgt_lang, copy.deepcopy(self.generation_config)
            other.generation_config.update(**setting)
            if "decoder_start_token_id" in setting:
                other.model = copy.copy(self.model)  # its weights are shared
                other.model.architecture = dataclasses.replace(self.model.architecture, **setting)
        return other

    def fingerprint(self) -> str:
        """Names these weights, in whatever precision they were loaded; a trained drafter keeps its verifier's."""
        return fingerprint(self.model)

    def drafter(self) -> LittleModel:
        """This model as the little one of another: `Assisted(little.drafter())`."""
        return LittleModel(self.model, self.tokenizer)

    def early_exit(self, layers: int | None = None) -> LittleModel:
        """The first `layers` of this model's own decoder, with its encoder and its head, as its little model.

        None: as many as it was trained for (`model.early_exit` of a recipe). Raises UsageError if it was not.
        """
        layers = getattr(self.config, "early_exit", None) if layers is None else layers
        if layers is None:
            raise UsageError("this model was not trained for an early exit; give the number of layers")
        return LittleModel(self.model.first_layers(layers), self.tokenizer, shares_encoder=True)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what `AutoModelForSeq2SeqLM.from_pretrained` and `Seq2Seq.from_pretrained` load back; the weights of
        an int8 model as they are, for `Seq2Seq.from_pretrained(folder, "int8")` alone.

        Raises Spec2SeqError if `folder` exists. It appears whole or not at all.
        """
        import transformers

        with whole_folder(folder) as temporary:
            parts = [self.tokenizer, self.generation_config]
            if executors.is_int8(self.model):
                int8_folder.save(self.model, temporary)
                parts.append(self.config)
            else:
                with torch.device("meta"):  # only its configuration and its list of tied weights are wanted
                    config = copy.deepcopy(self.config)
                    theirs = transformers.AutoModelForSeq2SeqLM.from_config(config, dtype=self.model.dtype)
                model = self.model if self.model.device.type == "cpu" else copy.deepcopy(self.model).cpu()
                theirs.save_pretrained(temporary, state_dict=families.export(model, self.config))
            for part in parts:
                if part is not None:
                    part.save_pretrained(temporary)

    def generate(
        self,
        sources: Sequence[str] | Sequence[Sequence[int]],
        method: Method | None = None,
        *,
        max_new_tokens: int | None = None,
        batch_size: int = 8,
        truncate: bool = False,
        trace: bool = False,
        profile: bool = False,
    ) -> Generation:
        """Generate an output for every source.

        Args:
            sources: texts, or token ids with the end token.
            method: Greedy() by default; any preset or Speculative, Beam, or OfficialBiLD.
            max_new_tokens: the most tokens of an output; by default what the model's generation config says.
            batch_size: rows in flight; a finished row's place is taken by the next source.
            truncate: cut sources that are longer than the model allows; otherwise they are an error.
            trace: say for each token which model wrote it.
            profile: time each phase (waits for the device, so it costs time).
        """
        if isinstance(sources, str):
            raise UsageError("sources is one string; pass a list of them")
        ids = [self.source_ids(source, f"source {index + 1}", truncate) for index, source in enumerate(sources)]
        order = sorted(range(len(ids)), key=lambda index: -len(ids[index]))
        run = _Run(self, method or Greedy(), max_new_tokens, batch_size, trace, profile, len(ids))
        done = run([ids[index] for index in order], list(order))
        rows = [None] * len(ids)
        for index, completion in done:
            rows[index] = self._row(completion, trace)
        return Generation(rows, run.stats)

    def stream(
        self,
        sources: Iterable[str | Sequence[int]],
        method: Method | None = None,
        *,
        stats: Stats | None = None,
        max_new_tokens: int | None = None,
        batch_size: int = 8,
        truncate: bool = False,
        trace: bool = False,
    ) -> Iterator[Row]:
        """Like `generate`, for a source of any length: rows come in order, a window of sources at a time, each
        line alone at batch size 1. Counts are added to `stats` as it goes."""
        if isinstance(sources, str):
            raise UsageError("sources is one string; pass a list of them")
        run = _Run(self, method or Greedy(), max_new_tokens, batch_size, trace, False)
        run.stats = stats if stats is not None else run.stats
        size = 1 if batch_size == 1 else batch_size * WINDOW
        window: list[tuple[int, list[int]]] = []

        def flush() -> Iterator[Row]:
            order = sorted(range(len(window)), key=lambda place: -len(window[place][1]))
            done = dict(run([window[place][1] for place in order], [window[place][0] for place in order]))
            for index, _ in window:
                yield self._row(done[index], trace)
            window.clear()

        for index, source in enumerate(sources):
            window.append((index, self.source_ids(source, f"source {index + 1}", truncate)))
            if len(window) == size:
                yield from flush()
        if window:
            yield from flush()

    def score(
        self, sources: Sequence[str] | Sequence[Sequence[int]], outputs: Sequence[str] | Sequence[Sequence[int]]
    ) -> list[float]:
        """The log-probability of each output, in nats: texts, with the end token, or token ids just as they are.

        Raises UsageError where there is not one output for each source, or one has ids or a length that the model
        does not allow.
        """
        if isinstance(sources, str) or isinstance(outputs, str) or len(sources) != len(outputs):
            raise UsageError("score takes a list of sources and a list of as many outputs")
        scores = []
        for number, (source, output) in enumerate(zip(sources, outputs, strict=True), 1):
            ids = self.encode_text(output, target=True) if isinstance(output, str) else list(output)
            if ids:
                self._check_ids(ids, f"output {number}", self.model.architecture.vocabulary)
                self._check_length(ids, f"output {number}")
            scores.append(log_probability(self.model, self.source_ids(source, f"source {number}"), ids))
        return scores

    @property
    def settings(self) -> dict[str, Any]:
        """The model's generation config."""
        return {} if self.generation_config is None else self.generation_config.to_dict()

    def processors(self) -> list[Processor]:
        """What the model's generation config asks for. Raises Spec2SeqError for what is not supported."""
        settings = self.settings
        for name in ("eos_token_id", "decoder_start_token_id"):
            value, ours = settings.get(name), getattr(self.model.architecture, name)
            if value not in (None, ours, [ours]):
                raise Spec2SeqError(f"generation setting {name}={value!r} is not supported; the model's own is {ours}")
        return processors_from(settings, self.model.architecture.eos_token_id)

    def max_new_tokens(self, asked: int | None = None) -> int:
        """The cap in force. Raises UsageError if `asked` is not possible."""
        most = self.model.architecture.max_positions
        if asked is not None:
            if asked < 1 or (most is not None and asked > most):
                allowed = "at least 1" if most is None else f"1 to {most}, the model's positions"
                raise UsageError(f"max_new_tokens is {asked}; allowed: {allowed}")
            return asked
        config = self.generation_config
        value = getattr(config, "max_new_tokens", None)
        if value is None:
            total = getattr(config, "max_length", None)
            value = total - 1 if total and total > 20 else DEFAULT_MAX_NEW_TOKENS  # 20: Transformers' stand-in
        return min(value, most or value)

    def encode_text(self, text: str, target: bool = False) -> list[int]:
        """Token ids of a source, or of an output if it is the `target`, with the end token."""
        if self.tokenizer is None:
            raise UsageError("this model was loaded without a tokenizer; pass token ids")
        languages.set_languages(self.tokenizer, self.src_lang, self.tgt_lang)
        if not target:
            return self.tokenizer(self.prefix + text, verbose=False)["input_ids"]
        ids = self.tokenizer(text_target=text, verbose=False)["input_ids"]
        a = self.model.architecture
        # mBART puts the language token behind, although its decoder starts with it.
        return ids[:-1] if ids[-1:] == [a.decoder_start_token_id] != [a.eos_token_id] else ids

    def source_ids(self, source: str | Sequence[int], where: str, truncate: bool = False) -> list[int]:
        """Token ids of a source, end token included, cut to what the model allows if `truncate` says so.

        Raises UsageError for ids that are not the vocabulary's, Spec2SeqError for too many, naming `where`.
        """
        ids = self.encode_text(source) if isinstance(source, str) else list(source)
        if not ids:
            raise UsageError(f"{where} has no tokens; a source holds at least the end token")
        a = self.model.architecture
        self._check_ids(ids, where, a.source_vocabulary or a.vocabulary)
        most = a.max_positions or LONGEST_SOURCE
        if truncate and len(ids) > most:
            behind = 2 if ids[-2] == a.eos_token_id else 1  # a language token may follow the end
            ids = [*ids[: most - behind], *ids[-behind:]]
        self._check_length(ids, where)
        return ids

    def _check_ids(self, ids: list[int], where: str, vocabulary: int) -> None:
        for token in (min(ids), max(ids)):
            if not 0 <= token < vocabulary:
                raise UsageError(f"{where} has the token id {token}; allowed: 0 to {vocabulary - 1}")

    def _check_length(self, ids: list[int], where: str) -> None:
        own = self.model.architecture.max_positions
        if len(ids) > (own or LONGEST_SOURCE):
            unlimited = f"allowed are {LONGEST_SOURCE} (the model has no limit of its own)"
            allows = f"the model allows {own}" if own else unlimited
            raise Spec2SeqError(f"{where} has {len(ids)} tokens; {allows}; split or truncate it (--truncate)")

    def _row(self, completion: Completion, trace: bool) -> Row:
        hypotheses = tuple(Hypothesis(self._text(ids), ids, score) for score, ids in completion.hypotheses)
        text = hypotheses[0].text if hypotheses else self._text(completion.tokens)
        return Row(text, completion.tokens, completion.counts, completion.trace if trace else None, hypotheses)

    def _text(self, ids: list[int]) -> str | None:
        return None if self.tokenizer is None else self.tokenizer.decode(ids, skip_special_tokens=True)


class _Run:
    """One generation: groups of (source, index) in, (index, completion) out, counts in `stats`."""

    def __init__(
        self, seq2seq: Seq2Seq, method: Method, max_new_tokens: int | None, batch_size: int, trace: bool,
        profile: bool, count: int | None = None,
    ):  # fmt: skip
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}; allowed: at least 1")
        if profile and not isinstance(method, Speculative):
            raise UsageError("profile is of the phases of draft and verify; beam search and OfficialBiLD have none")
        if count:
            batch_size = min(batch_size, count)  # costs are measured at the rows there are
        method = method.completed(seq2seq.settings)
        self.seq2seq, self.method, self.batch_size = seq2seq, method, batch_size
        self.cap = seq2seq.max_new_tokens(max_new_tokens)
        self.processors = seq2seq.processors()
        self.engine = None
        self.stats = Stats()
        if isinstance(getattr(method, "drafter", None), LittleModel):
            check_pair(seq2seq, method.drafter)
        if isinstance(method, Speculative):
            self.engine = Engine(seq2seq.model, method, batch_size, self.processors, trace=trace, profile=profile)
            self.stats = self.engine.stats

    def __call__(self, sources: list[list[int]], indices: list[int]) -> list[tuple[int, Completion]]:
        if isinstance(self.method, OfficialBiLD):
            return [(index, self._alone(source)) for source, index in zip(sources, indices, strict=True)]
        if self.engine is None:
            done = []
            for start in range(0, len(sources), self.batch_size):
                group = sources[start : start + self.batch_size]
                found = beam_search(self.seq2seq.model, group, self.method, self.cap, self.processors, self.stats)
                done += [(indices[start + completion.id], completion) for completion in found]
            return done
        self.engine.stats = self.stats
        place = {}
        seed = (self.engine.sampling.seed if self.engine.sampling else 0) * 1_000_003
        for source, index in zip(sources, indices, strict=True):
            place[self.engine.submit(source, self.cap, seed + index)] = index
        done = []
        while self.engine.busy:
            done += [(place[completion.id], completion) for completion in self.engine.step()]
        return done

    def _alone(self, source: list[int]) -> Completion:
        """A source in the official BiLD, whatever the batch size."""
        started = time.perf_counter()
        completion = self.method.decode(self.seq2seq.model, source, self.cap, self.processors)
        counts, stats = completion.counts, self.stats
        stats.add(counts)
        stats.rows += 1
        stats.verifier_passes += counts.verifier_calls
        stats.drafter_passes += counts.drafter_calls
        stats.seconds += time.perf_counter() - started
        return completion


def _load_weights(config: Any, name: str, dtype: str) -> tuple[EncoderDecoder, Any, Any]:
    """The model in a folder or of the hub, its configuration and its generation config."""
    import transformers

    if os.path.isfile(os.path.join(name, int8_folder.FILE)):
        if dtype != "int8":
            raise UsageError(f'{name}: its weights are int8; load it with dtype="int8" (--dtype int8)')
        return int8_folder.load(config, name), config, transformers.GenerationConfig.from_pretrained(name)
    theirs, loading = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        name, dtype=DTYPES[dtype], output_loading_info=True, ignore_mismatched_sizes=True
    )
    _check_complete(name, loading)
    return families.load(theirs.config, theirs.state_dict(), name), theirs.config, theirs.generation_config


def _check_complete(name: str, loading: dict[str, Any]) -> None:
    """Transformers fills tensors that are missing or have another shape with random numbers and goes on."""
    if loading["mismatched_keys"]:
        tensor, found, wanted = sorted(loading["mismatched_keys"], key=str)[0]
        raise Spec2SeqError(f"{name}: {tensor} has the shape {[*found]}; config.json asks for {[*wanted]}")
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        raise Spec2SeqError(f"{name}: the weights lack {len(missing)} tensors of the model, such as {missing[0]}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _torch_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device is {name!r}; allowed: cpu, cuda, cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device is {name!r}, but no CUDA device is here; allowed: cpu")
    return device
