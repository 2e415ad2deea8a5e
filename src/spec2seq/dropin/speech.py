"""What Transformers' `generate` of a model that hears brings along: spectrograms, and processors of its own."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spec2seq.api import Seq2Seq
from spec2seq.decoding.processors import Processor, Suppress, Where
from spec2seq.decoding.score import logits_behind
from spec2seq.errors import Spec2SeqError
from spec2seq.runner import Begin
from spec2seq.speech.timestamps import TimestampRules

OF_WINDOWS = (
    "compression_ratio_threshold", "condition_on_prev_tokens", "force_unique_generate_call", "logprob_threshold",
    "no_speech_threshold", "num_frames",
)  # fmt: skip


def spectrograms(model: Seq2Seq, inputs_tensor: Tensor) -> list[Tensor]:
    """Features `[batch, bins, frames]` of one window each → `[places, 2 * bins]`. Raises Spec2SeqError for others."""
    shape = model.model.architecture.sound
    if inputs_tensor.dim() != 3 or tuple(inputs_tensor.shape[1:]) != (shape.bins, 2 * shape.places):
        raise Spec2SeqError(
            f"custom_generate hears input_features [batch, {shape.bins}, {2 * shape.places}], also beside "
            f"encoder_outputs; here is {[*inputs_tensor.shape]}"
        )
    return [sound.T.reshape(shape.places, -1) for sound in inputs_tensor]


def under(model: Seq2Seq, processors: Sequence[Any]) -> None:
    """Give a model, whose generation config is its own, our processors for those that Transformers' Whisper makes of
    its settings, in their order, and no settings of windows, which are its own `generate`'s matter.

    Raises Spec2SeqError for a processor that is not Whisper's.
    """
    model.more_processors = tuple(found for processor in processors for found in _rule(processor))
    for name in OF_WINDOWS:
        setattr(model.generation_config, name, None)


def _rule(processor: Any) -> list[Processor]:
    kind = type(processor).__name__
    match kind:
        case "SuppressTokensLogitsProcessor":
            return [Suppress(tuple(processor.suppress_tokens.tolist()))]
        case "SuppressTokensAtBeginLogitsProcessor":
            return [Suppress(tuple(processor.begin_suppress_tokens.tolist()), Where("written", 0, 1))]
        case "WhisperTimeStampLogitsProcessor" if processor._detect_timestamp_from_logprob:
            end, latest = processor.eos_token_id, processor.max_initial_timestamp_index
            return [TimestampRules(processor.no_timestamps_token_id, end, latest)]
        case "WhisperNoSpeechDetection":
            return []
    raise Spec2SeqError(f"logits_processor ({kind}) is not supported by custom_generate; allowed: settings of the "
                        "generation config")  # fmt: skip


@torch.no_grad()
def listen(
    model: Seq2Seq, processors: Sequence[Any], input_ids: Tensor, sources: Sequence[Tensor], begins: Sequence[Begin],
    beams: bool,
) -> None:  # fmt: skip
    """Let Whisper's detection of silence hear the first logits behind each prompt, as it would in Transformers' loop:
    `generate` asks it afterwards."""
    for processor in processors:
        if type(processor).__name__ != "WhisperNoSpeechDetection":
            continue
        first = torch.zeros(len(sources), 1)
        if processor.start_of_trans_offset <= 1:  # else it makes a pass of its own
            fed = [[begin.start, *begin.prompt] for begin in begins]
            pairs = zip(sources, fed, strict=True)
            first = torch.stack([logits_behind(model.model, source, ids)[0, -1] for source, ids in pairs])
        if beams:  # whose scores are log-probabilities
            first = first.log_softmax(-1)
        processor(input_ids, first.repeat_interleave(len(input_ids) // len(sources), 0))
