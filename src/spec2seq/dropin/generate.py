"""`model.generate(**inputs, custom_generate=…)` on a live Transformers module, over its own weights.

Transformers prepares what a call says (generation config, encoder, decoder start) and hands it to the callable instead
of its own loop. It prepares, but does not hand over, a streamer, an assistant, processors and criteria: see `Call`.
"""

import dataclasses
import sys
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from spec2seq.api import Method, Seq2Seq
from spec2seq.config import check_choice
from spec2seq.decoding.methods import Assisted, Beam, Speculative
from spec2seq.decoding.stats import Stats
from spec2seq.dropin import inputs as reading
from spec2seq.dropin import outputs, speech
from spec2seq.dropin.methods import asked_for, check_agrees, drawing, repeats, seed_of
from spec2seq.errors import Spec2SeqError, UsageError
from spec2seq.models import families, native
from spec2seq.models.sharing import Shared
from spec2seq.runner import complete

EXECUTORS = ("torch", "native")

# What was made of a module and of a little model, as long as they are there.
_shared: WeakKeyDictionary[Any, dict[str, tuple[Shared, Seq2Seq]]] = WeakKeyDictionary()
_assisted: WeakKeyDictionary[Seq2Seq, Speculative] = WeakKeyDictionary()


def share(module: Any, executor: str = "torch") -> Seq2Seq:
    """A `Seq2Seq` on the storage of a live Transformers module; the same one while its weights stay where they are.

    Changes of the weights in place (training, loading) are seen. `executor="native"` packs copies of the layers'
    weights, again after every change. Raises Spec2SeqError for a module whose weights cannot be used.
    """
    check_choice("executor", executor, EXECUTORS)
    if not families.knows(module.config):
        return _itself(module, executor)
    known = _shared.setdefault(module, {})
    if executor not in known or not known[executor][0].current(module, values=executor == "native"):
        shared = Shared(module)
        if executor == "native":
            native.attach(shared.model)
        known[executor] = shared, Seq2Seq(shared.model, module.config)
    found = known[executor][1]
    found.generation_config = module.generation_config
    return found


def _itself(module: Any, executor: str) -> Seq2Seq:
    """The same of a family that has no layers here, which runs in the module itself."""
    if executor == "native":
        raise UsageError("executor native is not for models that run in Transformers' own modules; allowed: torch")
    found = vars(module).get("_spec2seq")  # kept by the module: a table would keep the module alive
    if found is not None:
        a, rows = found.model.architecture, len(module.get_encoder().get_input_embeddings().weight)
        found = found if rows == (a.source_vocabulary or a.vocabulary) else None  # its vocabulary was resized
    if found is None:
        found = module._spec2seq = Seq2Seq.from_transformers(module)
    found.generation_config = module.generation_config
    return found


def custom_generate(
    method: Method | None = None, *, assistant_model: Any = None, executor: str = "torch", streamer: Any = None
) -> "CustomGenerate":
    """What `model.generate(**inputs, custom_generate=custom_generate())` calls instead of Transformers' own loop.

    Args:
        method: how to decode; None does what the generation config says: greedy, beam search, sampling, lookup
            (`prompt_lookup_num_tokens`), with `assistant_model` speculation that gives the same tokens.
        assistant_model: a live Transformers module or a `Seq2Seq`; another drafter comes with its method.
        executor: "torch", over the module's own weights; "native", faster on CPUs in float32, packs a copy of them.
        streamer: as `model.generate(streamer=...)`.

    Keep the object for many calls: a method learns its draft lengths. Its `stats` are the counts of the last call.
    """
    return CustomGenerate(method, assistant_model, executor, streamer)


def generate(
    model: Any, inputs: Tensor | None = None, *, method: Method | None = None, executor: str = "torch",
    assistant_model: Any = None, streamer: Any = None, **arguments: Any,
) -> Any:  # fmt: skip
    """`model.generate` with our engine: the same arguments (`input_ids`, `attention_mask`, settings), the same returns.

    `method`, `executor` and `assistant_model` are those of `custom_generate`.
    """
    from transformers import GenerationMixin

    callable_ = custom_generate(method, assistant_model=assistant_model, executor=executor)
    # Of the class: a model from a folder with custom_generate/generate.py has this very function as its own. That of
    # Whisper calls the mixin's for each window, which hands all of its arguments on to such a folder: there Whisper's
    # must not begin again.
    run = GenerationMixin.generate if "negative_prompt_ids" in arguments else type(model).generate
    given = () if inputs is None else (inputs,)
    return run(model, *given, streamer=streamer, custom_generate=callable_, **arguments)


@dataclass(frozen=True)
class Call:
    """Arguments of `model.generate` that Transformers gives its own loops only."""

    streamer: Any = None
    assistant_model: Any = None
    logits_processor: Any = None
    stopping_criteria: Any = None
    prefix_allowed_tokens_fn: Any = None
    negative_prompt_ids: Any = None

    @classmethod
    def of_caller(cls) -> "Call":
        """Those of the `generate` that called the caller of this.

        Transformers (5.23, `_extract_generation_mode_kwargs`) drops them on the way to a callable: a streamer would
        wait for ever, and a processor do nothing.
        """
        frame = sys._getframe(2)
        names = [field.name for field in dataclasses.fields(cls)]
        if frame.f_code.co_name != "generate" or not set(names) <= set(frame.f_locals):
            return cls()
        return cls(**{name: frame.f_locals[name] for name in names})

    def refuse(self, hears: bool) -> None:
        """Raises Spec2SeqError for what the engine has no place for. A model that hears gets processors from its own
        `generate`, see `speech.under`."""
        names = ("stopping_criteria", "prefix_allowed_tokens_fn", "negative_prompt_ids")
        for name in names if hears else ("logits_processor", *names):
            value = getattr(self, name)
            if value is not None and (not hasattr(value, "__len__") or len(value)):
                found = f" ({type(value[0]).__name__})" if isinstance(value, list) else ""
                raise Spec2SeqError(
                    f"{name}{found} is not supported by custom_generate; allowed: settings of the generation config"
                )


class CustomGenerate:
    """The callable; see `custom_generate`."""

    def __init__(self, method: Method | None, assistant_model: Any, executor: str, streamer: Any):
        check_choice("executor", executor, EXECUTORS)
        if method is not None and assistant_model is not None:
            raise UsageError("method and assistant_model are both given; a method brings its own drafter")
        self.method, self.assistant_model, self.executor, self.streamer = method, assistant_model, executor, streamer
        self.stats: Stats | None = None

    def __call__(
        self, model: Any, input_ids: Tensor, *, inputs_tensor: Tensor, generation_config: Any,
        logits_processor: Any = None, stopping_criteria: Any = None, **model_kwargs: Any,
    ) -> Any:  # fmt: skip
        """Called by `GenerationMixin.generate` with the decoder's `input_ids` `[rows, length]`, repeated for beams; the
        source is `inputs_tensor` `[batch, length]`, or of sounds `[batch, bins, frames]`. `logits_processor` and
        `stopping_criteria` are those that Transformers made of the config and of `Call`'s, which are read there.

        Raises Spec2SeqError and UsageError naming what cannot be honoured.
        """
        call = Call.of_caller()
        shared = share(model, self.executor)
        hears = shared.model.architecture.sound is not None
        call.refuse(hears)
        reading.refuse_inputs(model_kwargs)
        if model.training:
            raise UsageError(f"{type(model).__name__} is in training mode, where it drops out; call model.eval() first")
        sources, states = reading.sources(shared, inputs_tensor, model_kwargs)
        begins = reading.begins(shared, input_ids, model_kwargs.get("decoder_attention_mask"), len(sources))
        shared = reading.configured(shared, generation_config)
        if hears:
            processors = call.logits_processor or ()
            speech.under(shared, processors)
        method = self._method(shared, model, call)
        reading.refuse_outputs(generation_config, method)
        times = repeats(method, shared.generation_config)
        if states is not None:
            shared = reading.with_states(shared, method, sources, states)
        if hears:
            speech.listen(shared, processors, input_ids, sources, begins, isinstance(method, Beam))
        told = input_ids[:: len(input_ids) // len(sources)].tolist()
        sources, begins, told = ([one for one in many for _ in range(times)] for many in (sources, begins, told))
        found, self.stats = complete(
            shared, method, sources, dict(enumerate(begins)), batch_size=len(sources),
            max_new_tokens=reading.room(shared, generation_config, input_ids.shape[1]),
            streamer=_AfterPrompt(call.streamer) if call.streamer is not None else self.streamer,
        )  # fmt: skip
        beams = isinstance(method, Beam)
        pad = reading.padding(generation_config, beams)
        sequences = outputs.sequences(found, told, pad, beams).to(input_ids.device)
        if not generation_config.return_dict_in_generate:
            return sequences
        if beams:
            return outputs.of_beams(shared, generation_config, sources, begins, found, sequences)
        return outputs.of_rows(shared, generation_config, method, sources, begins, found, sequences)

    def _method(self, shared: Seq2Seq, model: Any, call: Call) -> Method:
        settings = shared.settings
        seed = seed_of(settings)
        assistant = call.assistant_model if self.assistant_model is None else self.assistant_model
        if self.method is not None:
            if assistant is not None:
                raise UsageError("assistant_model is given, and a method with custom_generate; leave one of them out")
            # What the model's own config says, the method overrides; what this call says, it may not.
            if shared.model.architecture.sound is not None and settings.get("do_sample"):
                drawn = drawing(self.method, settings, seed)  # a doubtful window is drawn anew
                if drawn is not None:
                    return drawn
            own = model.generation_config
            said = {name: settings.get(name) for name in ("num_beams", "do_sample")}
            check_agrees(self.method, {name: v for name, v in said.items() if v != getattr(own, name, None)})
            return self.method
        return asked_for(settings, None if assistant is None else assisted(assistant, self.executor), seed)


def assisted(assistant: Any, executor: str = "torch") -> Speculative:
    """`Assisted` with the drafter that a Transformers module (over its own weights) or a `Seq2Seq` makes. The same
    object each time, so that it keeps the draft lengths it has learned. Raises UsageError for anything else.
    """
    model = assistant
    if isinstance(assistant, torch.nn.Module) and hasattr(assistant, "generation_config"):
        model = share(assistant, executor)
    if not isinstance(model, Seq2Seq):
        raise UsageError(
            f"assistant_model is {type(assistant).__name__}; allowed: a Transformers model or a Seq2Seq (a drafter "
            "goes into a method, such as SpecDec(drafter))"
        )
    if model not in _assisted:
        _assisted[model] = Assisted(model.drafter())
    return _assisted[model]


class _AfterPrompt:
    """A streamer that has got the prompt from Transformers already."""

    def __init__(self, streamer: Any):
        self.streamer, self.prompted, self.end = streamer, False, streamer.end

    def put(self, tokens: Tensor) -> None:
        if self.prompted:
            self.streamer.put(tokens)
        self.prompted = True
