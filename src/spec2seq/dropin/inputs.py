"""What a call of Transformers' `generate` brings along, as our engine wants it; what it cannot take is refused."""

import copy
import dataclasses
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from spec2seq.api import Method, Seq2Seq
from spec2seq.decoding.methods import Beam, Speculative
from spec2seq.errors import Spec2SeqError, UsageError
from spec2seq.models.encoder_decoder import Encoded, EncoderDecoder

# Of the arguments for the model: what is read here, and what changes nothing about the tokens.
_READ = {"attention_mask", "encoder_outputs", "decoder_input_ids"}
_HARMLESS = {"use_cache", "logits_to_keep", "past_key_values", "cache_position", "return_dict"}
_SETTINGS = {"output_attentions", "output_hidden_states"}  # refused as such


_variants: WeakKeyDictionary[EncoderDecoder, dict[int, EncoderDecoder]] = WeakKeyDictionary()


def refuse_outputs(config: Any, method: Method) -> None:
    """Raises Spec2SeqError for outputs that there are not with a method. `output_scores` of beam search asks for
    `sequences_scores`, which there are."""
    refused, where = ["output_attentions", "output_hidden_states"], ""
    if isinstance(method, Beam):
        refused, where = [*refused, "output_logits"], " in beam search"
    elif method.sampling is not None:  # its scores would be those of the filtered distribution
        refused, where = [*refused, "output_scores"], " in sampling"
    for name in refused:
        if getattr(config, name, None):
            raise Spec2SeqError(f"{name}=True is not supported by custom_generate{where}; allowed: False")


def refuse_inputs(model_kwargs: dict[str, Any]) -> None:
    """Raises Spec2SeqError for an argument of the model that the engine has no place for."""
    for name, value in model_kwargs.items():
        if value is not None and name not in _READ | _HARMLESS | _SETTINGS:
            raise Spec2SeqError(f"{name} is not supported by custom_generate; allowed: input_ids and attention_mask")
    cache = model_kwargs.get("past_key_values")
    if cache is not None and cache.get_seq_length():
        raise Spec2SeqError("past_key_values that hold something are not supported by custom_generate")


def sources(inputs_tensor: Tensor, model_kwargs: dict[str, Any]) -> tuple[list[list[int]], Tensor | None]:
    """The token ids of each source, and the states `[batch, length, width]` that Transformers' encoder has made of
    them already.

    `inputs_tensor` `[batch, length]` are the ids; the mask and the states are repeated for beams. Raises
    Spec2SeqError where there are no ids, or a mask is not ones and then zeros.
    """
    if inputs_tensor.is_floating_point() or inputs_tensor.dim() != 2 or bool((inputs_tensor < 0).any()):
        raise Spec2SeqError("custom_generate reads input_ids [batch, length]; inputs_embeds alone, or encoder_outputs "
                            "alone, are not supported")  # fmt: skip
    batch, length = inputs_tensor.shape
    mask, encoded = model_kwargs.get("attention_mask"), model_kwargs.get("encoder_outputs")
    rows = inputs_tensor.tolist()
    if mask is not None:
        mask = mask[:: len(mask) // batch]
        lengths = mask.sum(1).tolist()
        for row, (kept, count) in enumerate(zip(mask.tolist(), lengths, strict=True)):
            if kept != [1] * count + [0] * (length - count) or not count:
                raise Spec2SeqError(f"attention_mask of row {row} is not ones and then zeros; pad sources on the right")
        rows = [ids[:count] for ids, count in zip(rows, lengths, strict=True)]
    states = None if encoded is None else encoded[0]
    return rows, states if states is None else states[:: len(states) // batch]


def configured(model: Seq2Seq, config: Any, decoder_input_ids: Tensor) -> Seq2Seq:
    """The same weights under the generation config of a call, and with the decoder start token of this call.

    Raises Spec2SeqError for decoder inputs `[rows, length]` that are more than one start token, the same for all rows.
    """
    start = int(decoder_input_ids[0, 0])
    if decoder_input_ids.shape[1] != 1 or bool((decoder_input_ids != start).any()):
        raise Spec2SeqError("decoder_input_ids are not supported by custom_generate; allowed: one start token for all")
    other = copy.copy(model)
    other.generation_config = copy.deepcopy(config)
    other.generation_config.decoder_start_token_id = start
    other.model = with_start(model.model, start)
    return other


def with_start(model: EncoderDecoder, start: int) -> EncoderDecoder:
    """A model with another decoder start token, its weights shared; the same object each time, so that what is learned
    of it stays."""
    if model.architecture.decoder_start_token_id == start:
        return model
    known = _variants.setdefault(model, {})
    if start not in known:
        known[start] = copy.copy(model)
        known[start].architecture = dataclasses.replace(model.architecture, decoder_start_token_id=start)
    return known[start]


def with_states(model: Seq2Seq, method: Method, sources: list[list[int]], states: Tensor) -> Seq2Seq:
    """The model, except that it does not encode these sources: their `states` `[batch, length, width]` are given."""
    known = {tuple(source): row for row, source in enumerate(sources)}

    def encode(tokens: Tensor, lengths: Tensor) -> Encoded:
        length = tokens.shape[1]
        pairs = zip(tokens.tolist(), lengths.tolist(), strict=True)
        rows = [known.get(tuple(ids[:count])) for ids, count in pairs]
        if None in rows:  # made-up ones, of which costs are measured
            return model.model.encode(tokens, lengths)
        return Encoded(tokens, lengths, states[rows, :length].to(tokens.device))

    other, inner = copy.copy(model), copy.copy(model.model)
    other.model, inner.encode = inner, encode
    if isinstance(method, Speculative):  # what the length rule has learned of the model holds for its copy
        method._choosers[inner] = method._choosers.setdefault(model.model, {})
    return other


def room(model: Seq2Seq, config: Any) -> int:
    """The most new tokens: `max_length`, the decoder start included, as far as the model has positions."""
    most = model.model.architecture.max_positions
    asked = config.max_length - 1
    if asked < 1 or (most is not None and asked > most):
        allowed = "at least 2" if most is None else f"2 to {most + 1}, the model's positions and the start"
        raise UsageError(
            f"max_length is {config.max_length} (max_new_tokens and the decoder start); allowed: {allowed}"
        )
    return asked


def padding(config: Any, beams: bool) -> int:
    """What Transformers pads outputs with: without a padding token the end token, and in beam search the end token
    also where padding is token 0."""
    pad, end = config.pad_token_id, config.eos_token_id
    return pad if pad or (pad == 0 and not beams) else end[0] if isinstance(end, list) else end
