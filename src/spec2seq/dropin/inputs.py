"""What a call of Transformers' `generate` brings along, as our engine wants it; what it cannot take is refused."""

import copy
from typing import Any

from torch import Tensor

from spec2seq import checks
from spec2seq.api import Method, Seq2Seq
from spec2seq.decoding.methods import Beam, Speculative
from spec2seq.decoding.scheduler import Source
from spec2seq.dropin import speech
from spec2seq.errors import Spec2SeqError, UsageError
from spec2seq.models.encoder_decoder import Encoded
from spec2seq.runner import Begin

# Of the arguments for the model: what is read here, and what changes nothing about the tokens.
_READ = {"attention_mask", "encoder_outputs", "decoder_input_ids", "decoder_attention_mask"}
_HARMLESS = {"use_cache", "logits_to_keep", "past_key_values", "cache_position", "return_dict"}
_SETTINGS = {"output_attentions", "output_hidden_states"}  # refused as such


def refuse_outputs(config: Any, method: Method) -> None:
    """Raises Spec2SeqError for outputs that there are not with a method. `output_scores` of beam search asks for
    `sequences_scores`, which there are."""
    refused, where = ["output_attentions", "output_hidden_states"], ""
    if isinstance(method, Beam):
        refused, where = [*refused, "output_logits"], " in beam search"
    for name in refused:
        if getattr(config, name, None):
            raise Spec2SeqError(f"{name}=True is not supported by custom_generate{where}; allowed: False")


def refuse_inputs(model_kwargs: dict[str, Any]) -> None:
    """Raises Spec2SeqError for an argument of the model that the engine has no place for."""
    for name, value in model_kwargs.items():
        if value is not None and name not in _READ | _HARMLESS | _SETTINGS:
            raise Spec2SeqError(
                f"{name} is not supported by custom_generate; allowed: input_ids, decoder_input_ids and masks"
            )
    cache = model_kwargs.get("past_key_values")
    if cache is not None and cache.get_seq_length():
        raise Spec2SeqError("past_key_values that hold something are not supported by custom_generate")


def sources(model: Seq2Seq, inputs_tensor: Tensor, model_kwargs: dict[str, Any]) -> tuple[list[Source], Tensor | None]:
    """The token ids of each source, or what is heard of it, and the states `[batch, length, width]` that Transformers'
    encoder has made of them already.

    `inputs_tensor` `[batch, length]` are the ids, or `[batch, bins, frames]` features; the mask and the states are
    repeated for beams. Raises Spec2SeqError where there are no ids, or a mask is not ones and then zeros.
    """
    encoded = model_kwargs.get("encoder_outputs")
    states = None if encoded is None else encoded[0][:: len(encoded[0]) // len(inputs_tensor)]
    if model.model.architecture.sound is not None:  # a mask of sounds changes nothing
        return speech.spectrograms(model, inputs_tensor), states
    if inputs_tensor.is_floating_point() or inputs_tensor.dim() != 2 or bool((inputs_tensor < 0).any()):
        raise Spec2SeqError("custom_generate reads input_ids [batch, length]; inputs_embeds alone, or encoder_outputs "
                            "alone, are not supported")  # fmt: skip
    batch, length = inputs_tensor.shape
    mask, rows = model_kwargs.get("attention_mask"), inputs_tensor.tolist()
    if mask is not None:
        mask = mask[:: len(mask) // batch]
        lengths = mask.long().sum(1).tolist()
        for row, (kept, count) in enumerate(zip(mask.tolist(), lengths, strict=True)):
            if kept != [1] * count + [0] * (length - count) or not count:
                raise Spec2SeqError(f"attention_mask of row {row} is not ones and then zeros; pad sources on the right")
        rows = [ids[:count] for ids, count in zip(rows, lengths, strict=True)]
    return rows, states


def begins(model: Seq2Seq, decoder_input_ids: Tensor, mask: Tensor | None, batch: int) -> list[Begin]:
    """How each output of a batch begins, by `decoder_input_ids` `[rows, length]`, repeated for beams, padded on the
    left by `mask`. Raises Spec2SeqError for another number of rows, another mask, or a row without a token; UsageError
    for ids that the vocabulary does not have."""
    count, length = decoder_input_ids.shape
    repeats, rest = divmod(count, batch)
    if not repeats or rest or (mask is not None and mask.shape != decoder_input_ids.shape):
        raise Spec2SeqError(
            f"decoder_input_ids have {count} rows for {batch} sources; allowed: one for each, masked by their own shape"
        )
    masks = [[1] * length] * batch if mask is None else mask[::repeats].tolist()
    found = []
    for number, (row, kept) in enumerate(zip(decoder_input_ids[::repeats].tolist(), masks, strict=True)):
        own = int(sum(kept))
        if [bool(one) for one in kept] != [False] * (length - own) + [True] * own or not own:
            raise Spec2SeqError(
                f"decoder_attention_mask of row {number} is not zeros and then ones; where all rows begin with padding "
                "Transformers puts the decoder's start before it"
            )
        start, *prompt = row[length - own :]
        checks.check_ids([start, *prompt], f"row {number} of decoder_input_ids", model.model.architecture.vocabulary)
        found.append(Begin(prompt, start))
    return found


def configured(model: Seq2Seq, config: Any) -> Seq2Seq:
    """The same weights under the generation config of a call; the start of an output is told with its prompt."""
    other = copy.copy(model)
    other.generation_config = copy.deepcopy(config)
    other.generation_config.decoder_start_token_id = model.model.architecture.decoder_start_token_id
    return other


def with_states(model: Seq2Seq, method: Method, sources: list[Source], states: Tensor) -> Seq2Seq:
    """The model, except that it does not encode these sources: their `states` `[batch, length, width]` are given."""
    known = {_key(source): row for row, source in enumerate(sources)}

    def encode(tokens: Tensor, lengths: Tensor) -> Encoded:
        length = tokens.shape[1]
        pairs = zip(tokens if tokens.dim() == 3 else tokens.tolist(), lengths.tolist(), strict=True)
        rows = [known.get(_key(source[:count])) for source, count in pairs]
        if None in rows:  # made-up ones, of which costs are measured
            return model.model.encode(tokens, lengths)
        return Encoded(tokens, lengths, states[rows, :length].to(tokens.device))

    other, inner = copy.copy(model), copy.copy(model.model)
    other.model, inner.encode = inner, encode
    if isinstance(method, Speculative):  # what the length rule has learned of the model holds for its copy
        method._choosers[inner] = method._choosers.setdefault(model.model, {})
    return other


def _key(source: Source) -> Any:
    return source.float().cpu().contiguous().numpy().tobytes() if isinstance(source, Tensor) else tuple(source)


def room(model: Seq2Seq, config: Any, length: int) -> int:
    """The most new tokens behind `length` of the decoder's inputs, as `max_length` and the model's positions allow."""
    most = model.model.architecture.max_positions
    if config.max_length <= length or (most is not None and config.max_length > most + 1):
        allowed = f"{length + 1} or more" if most is None else f"{length + 1} to {most + 1}, one more than positions"
        raise UsageError(
            f"max_length is {config.max_length} (max_new_tokens and the decoder's inputs); allowed: {allowed}"
        )
    return config.max_length - length


def padding(config: Any, beams: bool) -> int:
    """What Transformers pads outputs with: without a padding token the end token, and in beam search the end token
    also where padding is token 0."""
    pad, end = config.pad_token_id, config.eos_token_id
    return pad if pad or (pad == 0 and not beams) else end[0] if isinstance(end, list) else end
