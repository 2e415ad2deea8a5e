"""Load a model and generate."""

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from spec2seq import checks, limits
from spec2seq.config import check_choice, check_range, check_whole
from spec2seq.decoding.beam import IMPOSSIBLE
from spec2seq.decoding.device_memory import limit
from spec2seq.decoding.drafters import LittleModel
from spec2seq.decoding.logits import OF_SPEECH, processors_from
from spec2seq.decoding.loop import AtEnd, Engine
from spec2seq.decoding.methods import Beam, Greedy, Speculative
from spec2seq.decoding.official import OfficialBiLD
from spec2seq.decoding.processors import Processor
from spec2seq.decoding.scheduler import Completion, Source
from spec2seq.decoding.score import log_probability
from spec2seq.decoding.stats import Stats
from spec2seq.errors import Spec2SeqError, UsageError
from spec2seq.generation import Generation, Hypothesis, Row
from spec2seq.models import executor as executors
from spec2seq.models import languages, loading, saving
from spec2seq.models.encoder_decoder import EncoderDecoder
from spec2seq.models.fingerprint import fingerprint
from spec2seq.models.transformers_model import TransformersModel
from spec2seq.options import DTYPES
from spec2seq.pairing import check_pair
from spec2seq.runner import Runner, begun, complete

WINDOW = 16  # batches that are sorted by length together

Method = Speculative | Beam | OfficialBiLD


class Seq2Seq:
    """An encoder–decoder model: our layers, Transformers' configuration, tokenizer and weights; of a family that has no
    layers here Transformers' own modules."""

    src_lang: str | None = None
    tgt_lang: str | None = None
    prefix = ""
    max_len_a: float | None = None
    max_len_b: int | None = None
    shortlist: Sequence[int] = ()
    extractor: Any = None  # of a model that hears, Transformers' feature extractor
    more_processors: Sequence[Processor] = ()  # behind those of the generation config

    def __init__(
        self, model: EncoderDecoder | TransformersModel, config: Any, tokenizer: Any = None,
        generation_config: Any = None,
    ):  # fmt: skip
        self.model, self.config, self.tokenizer = model, config, tokenizer
        self.generation_config = generation_config

    @classmethod
    def from_pretrained(
        cls, name: str | Path, dtype: str = "float32", device: str = "cpu", executor: str = "auto", *,
        tokenizer: str | Path | None = None, src_lang: str | None = None, tgt_lang: str | None = None,
        prefix: str | None = None, max_len_a: float | None = None, max_len_b: int | None = None,
        device_memory: float | None = None,
    ) -> "Seq2Seq":  # fmt: skip
        """Load a folder or a hub id. Raises Spec2SeqError if it is no model of a supported family.

        Args:
            name: a folder with config.json, weights and tokenizer, or an id on the hub.
            dtype: one of float32, int8 (weights; activations by token), bfloat16, float16, float64.
            device: a PyTorch device, such as "cpu" or "cuda".
            executor: what runs the layers: "torch"; "native", compiled on this machine, for float32 and int8 on a CPU;
                "auto", native where that is possible, and on a GPU a graph for each iteration.
            tokenizer: folder or id of the tokenizer where the model's has none.
            src_lang, tgt_lang, prefix, max_len_a, max_len_b: see `for_task`.
            device_memory: GiB of a GPU that this process may take; None: what is free. Rows in flight are as many as
                have room in it.
        """
        check_choice("dtype", dtype, DTYPES)
        where = loading.torch_device(device)
        executors.check(dtype, executor)
        if device_memory is not None:
            limit(where, device_memory)
        model, config, generation_config = loading.load_model(str(name), dtype)
        words = loading.load_tokenizer(str(tokenizer or name))
        executors.prepare(model.to(where), dtype, executor)
        made = cls(model, config, words, generation_config)
        made.shortlist = loading.load_shortlist(str(name))
        if model.architecture.sound is not None:
            made.extractor = loading.load_extractor(str(name))
        return made.for_task(src_lang, tgt_lang, prefix, max_len_a, max_len_b)

    @classmethod
    def from_transformers(cls, module: Any, tokenizer: Any = None, extractor: Any = None) -> "Seq2Seq":
        """Take over the weights of a live Transformers model; of another family the module itself. `extractor` is the
        feature extractor of a model that hears."""
        model = loading.of_module(module, type(module).__name__)
        made = cls(model, module.config, tokenizer, module.generation_config)
        made.extractor = extractor
        return made

    def for_task(
        self, src_lang: str | None = None, tgt_lang: str | None = None, prefix: str | None = None,
        max_len_a: float | None = None, max_len_b: int | None = None,
    ) -> "Seq2Seq":  # fmt: skip
        """The same weights for one direction or task; None leaves what was set before.

        Args:
            src_lang, tgt_lang: languages of a multilingual model, as its tokenizer names them, such as "eng_Latn".
            prefix: what stands before every source text, such as "translate English to German: ".
            max_len_a, max_len_b: an output has at most max_len_a × the tokens of its source + max_len_b tokens, the
                end tokens counted, beside what `max_new_tokens` allows: the names are fairseq's, and so is the use, an
                output that repeats itself ends early. One alone: the other is 0.

        Raises UsageError if the tokenizer has no such language, or a number is negative.
        """
        other = copy.copy(self)
        if prefix is not None:
            other.prefix = prefix
        check_range("max_len_a", max_len_a, low=0.0)
        check_range("max_len_b", max_len_b, low=0)
        if max_len_a is not None:
            other.max_len_a = max_len_a
        if max_len_b is not None:
            other.max_len_b = max_len_b
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

    def drafter(self, shortlist: Sequence[int] | None = None) -> LittleModel:
        """This model as the little one of another: `Assisted(little.drafter())`.

        With a `shortlist` of token ids it proposes no others, see `LittleModel.scoring`; None: that of its folder
        (shortlist.json), if there is one; empty: every token.
        """
        return LittleModel(self.model, self.tokenizer).scoring(self.shortlist if shortlist is None else shortlist)

    def early_exit(self, layers: int | None = None) -> LittleModel:
        """The first `layers` of this model's own decoder, with its encoder and its head, as its little model.

        None: as many as it was trained for (`model.early_exit` of a recipe). Raises UsageError if it was not.
        """
        layers = getattr(self.config, "early_exit", None) if layers is None else layers
        if layers is None:
            raise UsageError("this model was not trained for an early exit; give the number of layers")
        return LittleModel(self.model.first_layers(layers), self.tokenizer)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what `AutoModelForSeq2SeqLM.from_pretrained` and `Seq2Seq.from_pretrained` load back; the weights of
        an int8 model as they are, for `Seq2Seq.from_pretrained(folder, "int8")` alone.

        Raises Spec2SeqError if `folder` exists. It appears whole or not at all.
        """
        saving.save(folder, self.model, self.config, [self.tokenizer, self.generation_config, self.extractor],
                    self.shortlist)  # fmt: skip

    def engine(
        self, method: Speculative | None = None, slots: int = 8, *, trace: bool = False, profile: bool = False,
        scores: bool = False, at_end: AtEnd | None = None,
    ) -> Engine:  # fmt: skip
        """An engine for a server: requests come and go while up to `slots` rows are decoded, as the generation config
        says. `method` is Greedy() by default; `trace`, `profile` and `scores` are `generate`'s, `at_end` is `Engine`'s.

        Raises UsageError for Beam and OfficialBiLD, which run in none.
        """
        method = method or Greedy()
        if not isinstance(method, Speculative):
            raise UsageError(f"{type(method).__name__} runs in no engine; use generate")
        method = method.completed(self.settings)
        check_whole("slots", slots, low=1)
        if isinstance(method.drafter, LittleModel):
            check_pair(self, method.drafter)
        return Engine(self.model, method, slots, self.processors(), eos_token_ids=self.eos_token_ids, trace=trace,
                      profile=profile, scores=scores, at_end=at_end)  # fmt: skip

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
        streamer: Any = None,
        prompts: Sequence[str] | Sequence[Sequence[int]] | None = None,
        scores: bool = False,
    ) -> Generation:
        """Generate an output for every source.

        Args:
            sources: texts, or token ids with the end token; of a model that hears samples `[n]`, or features of them.
            method: Greedy() by default; any preset or Speculative, Beam, or OfficialBiLD.
            max_new_tokens: the most tokens of an output; by default what the model's generation config says.
            batch_size: rows in flight; a finished row's place is taken by the next source.
            truncate: cut sources that are longer than the model allows; otherwise they are an error.
            trace: say for each token which model wrote it.
            profile: time each phase (waits for the device, so it costs time).
            streamer: a streamer of Transformers (`put`, `end`), for one source; not with Beam and OfficialBiLD.
            prompts: what each output begins with, texts or token ids: it is no part of what is returned.
            scores: give each token's log-probability, as the generation config has it: one more pass for every row.
        """
        if isinstance(sources, str):
            raise UsageError("sources is one string; pass a list of them")
        ids = [self.source_ids(source, f"source {index + 1}", truncate) for index, source in enumerate(sources)]
        begins = begun(checks.prompt_ids(self, prompts, len(ids)))
        found, stats = complete(
            self, method or Greedy(), ids, begins, max_new_tokens=max_new_tokens, batch_size=batch_size, trace=trace,
            profile=profile, scores=scores, streamer=streamer,
        )  # fmt: skip
        return Generation([self._row(completion, trace) for completion in found], stats)

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
        prompts: Sequence[str] | Sequence[Sequence[int]] | None = None,
    ) -> Iterator[Row]:
        """Like `generate`, for a source of any length: rows come in order, a window of sources at a time, each
        line alone at batch size 1. Counts are added to `stats` as it goes; `prompts` are of the first sources."""
        if isinstance(sources, str):
            raise UsageError("sources is one string; pass a list of them")
        check_whole("batch_size", batch_size, low=1)
        begins = begun(checks.prompt_ids(self, prompts, None))
        size = 1 if batch_size == 1 else batch_size * WINDOW
        window: list[tuple[int, list[int]]] = []
        run: Runner | None = None

        def flush() -> Iterator[Row]:
            nonlocal run
            if run is None:  # of fewer sources than a batch has these are all
                rows = min(batch_size, len(window))
                run = Runner(self, method or Greedy(), max_new_tokens, rows, trace, False, begins=begins)
                run.stats = run.stats if stats is None else stats
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
            where = f"output {number}"
            ids = self.encode_text(output, target=True) if isinstance(output, str) else checks.listed(output, where)
            checks.check_output(ids, where, self.model.architecture)
            scores.append(log_probability(self.model, self.source_ids(source, f"source {number}"), ids))
        return scores

    @property
    def settings(self) -> dict[str, Any]:
        """The model's generation config."""
        return {} if self.generation_config is None else dict(vars(self.generation_config))  # to_dict copies deeply

    def processors(self) -> list[Processor]:
        """What the model's generation config asks for. Raises Spec2SeqError for what is not supported."""
        a, settings = self.model.architecture, self.settings
        own, start = a.decoder_start_token_id, settings.get("decoder_start_token_id")
        if start not in (None, own, [own]):
            raise Spec2SeqError(
                f"generation setting decoder_start_token_id={start!r} is not supported; the model's own is {own}"
            )
        if a.sound is not None:  # what these say is in the prompts
            settings = {name: value for name, value in settings.items() if name not in OF_SPEECH}
        return [*processors_from(settings, self.eos_token_ids, a.vocabulary), *self.more_processors]

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """What ends an output: one token or several, as the generation config says, else the model's own. Raises
        Spec2SeqError for an id that the vocabulary does not have."""
        return checks.end_tokens(self.settings.get("eos_token_id"), self.model.architecture)

    def max_new_tokens(self, asked: int | None = None, given: int = 0) -> int:
        """The cap in force behind a prompt of `given` tokens. Raises UsageError if `asked` is not possible."""
        return limits.cap(asked, self.generation_config, self.model.architecture.max_positions, given)

    def most_tokens(self, source: Sequence[int], cap: int) -> int:
        """Of an output of `source`: `cap`, or what `for_task` left of it."""
        return limits.of_source(source, cap, self.max_len_a, self.max_len_b)

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

    def source_ids(self, source: str | Sequence[int] | Any, where: str, truncate: bool = False) -> Source:
        """Token ids of a source, end token included, cut to what the model allows if `truncate` says so; of a model
        that hears a spectrogram `[places, 2 * bins]`.

        Raises UsageError for ids that are not the vocabulary's, or what is no sound; Spec2SeqError for too much; both
        name `where`.
        """
        a = self.model.architecture
        if a.sound is not None:
            return checks.spectrogram(source, where, a.sound, self.extractor)
        ids = self.encode_text(source) if isinstance(source, str) else source
        return checks.source_ids(ids, where, a, truncate)

    def _row(self, completion: Completion, trace: bool) -> Row:
        # Where fewer are possible than were asked for the rest is none; the drop-in keeps the shape of its tensors.
        possible = [found for place, found in enumerate(completion.hypotheses) if not place or found[0] > IMPOSSIBLE]
        hypotheses = tuple(Hypothesis(self._text(ids), ids, score) for score, ids in possible)
        text = hypotheses[0].text if hypotheses else self._text(completion.tokens)
        return Row(text, completion.tokens, completion.counts, completion.trace if trace else None, hypotheses,
                   completion.log_probabilities)  # fmt: skip

    def _text(self, ids: list[int]) -> str | None:
        return None if self.tokenizer is None else self.tokenizer.decode(ids, skip_special_tokens=True)
