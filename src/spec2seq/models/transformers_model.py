"""A model of a family that has no layers here, run by Transformers' own modules.

It offers the decoding loop what `EncoderDecoder` does. Rows of different lengths run in one pass where positions are
relative or can be given, else those of one length at a time.
"""

import functools
import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from spec2seq.errors import Spec2SeqError, UsageError, first_line
from spec2seq.models import transformers_check as check
from spec2seq.models.architecture import Architecture, StackShape
from spec2seq.models.cache import Cache
from spec2seq.models.encoder_decoder import Decoded, Encoded
from spec2seq.models.family import token_ids

RELATIVE = {"longt5": 16384, "switch_transformers": None}  # attention knows distances alone; longest sources


class TransformersModel(nn.Module):
    """A Transformers module with the contract of `EncoderDecoder`; no compiled executor and no hidden states."""

    native, graphs = None, False

    def __init__(self, module: Any, where: str):
        """Raises Spec2SeqError, naming `where` and why, for a module that cannot be decoded in drafts; UsageError for
        one in training mode."""
        super().__init__()
        config = module.config
        check.check_kind(config, where)
        if module.training:
            raise UsageError(f"{where} is in training mode, where it drops out; call model.eval() first")
        self.module = module
        self.gives_positions = "decoder_position_ids" in inspect.signature(module.forward).parameters
        self.together = self.gives_positions or config.model_type in RELATIVE
        self.attention_type = getattr(config, "attention_type", None)  # BigBird's, which a short source changes
        # An expert of Switch Transformers turns away what is beyond its capacity in a pass.
        self.longest = getattr(config, "expert_capacity", None) if self.together else None
        try:
            self.architecture = self._read_architecture()
            difference, allowed = check.difference(self), check.TOLERANCE[self.dtype]
        except Spec2SeqError:
            raise
        except Exception as error:  # of any kind: what a module does that was made for something else
            raise Spec2SeqError(
                f"{where}: {type(module).__name__} cannot be decoded here: {first_line(error)}"
            ) from error
        if not difference <= allowed:
            raise Spec2SeqError(
                f"{where}: {type(module).__name__} cannot be decoded here: over a cache it gives several tokens other "
                f"logits than one at a time (by {difference:.1g} of the largest)"
            )
        _warn(config.model_type)

    @property
    def dtype(self) -> torch.dtype:
        return self.module.dtype

    @property
    def device(self) -> torch.device:
        return self.module.device

    def first_layers(self, count: int) -> "TransformersModel":
        raise UsageError(f"early_exit is {count}; a {self.module.config.model_type} model runs whole, in Transformers")

    def new_cache(self, slots: int, sources: int | None = None) -> Cache:
        return Cache(self.architecture.decoder, slots, self.dtype, self.device, sources=sources)

    def encode(self, tokens: Tensor, lengths: Tensor) -> Encoded:
        """As `EncoderDecoder.encode`, each source by itself: local attention and experts may see padding."""
        encoder, rows = self.module.get_encoder(), []
        for ids, length in zip(tokens, lengths.tolist(), strict=True):
            if hasattr(encoder, "set_attention_type"):
                encoder.set_attention_type(self.attention_type)
            ids = ids[None, :length]
            rows.append(encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0])
        return Encoded(tokens, lengths, nn.utils.rnn.pad_sequence(rows, batch_first=True))

    def admit(self, cache: Cache, first_slot: int, encoded: Encoded) -> None:
        """As `EncoderDecoder.admit`, by a pass over the decoder's start whose self-attention is thrown away."""
        from spec2seq.models import transformers_cache as theirs

        filled = theirs.empty()
        start = torch.full_like(encoded.lengths[:, None], self.architecture.decoder_start_token_id)
        self.run(encoded.states, encoded.lengths, decoder_input_ids=start, past_key_values=filled)
        cache.put_source(first_slot, theirs.source_keys_values(filled), encoded.lengths)

    def decode_block(
        self,
        cache: Cache,
        tokens: Tensor,
        lengths: Tensor,
        horizon: int,
        *,
        uniform: bool = False,
        source_horizon: int | None = None,
        sources: int | None = None,
        visible: Tensor | None = None,
        logit_positions: Tensor | None = None,
        hidden_layers: tuple[int, ...] = (),
    ) -> Decoded:
        """As `EncoderDecoder.decode_block`. Raises UsageError for `visible` and `hidden_layers`."""
        if visible is not None or hidden_layers:
            raise UsageError(f"a {self.module.config.model_type} model has no hidden states for a block drafter")
        cache.reserve(horizon)
        rows, length = tokens.shape
        repeats = rows // (sources or rows)
        logits = torch.zeros(rows, length, self.architecture.vocabulary, dtype=self.dtype, device=self.device)
        step = self.longest or length
        for at in range(0, length, step):
            starts, part = lengths + at, tokens[:, at : at + step]
            for some, past in self._groups(starts, horizon - length + at, uniform):
                # Padding of a ragged block may lie beyond the last position; its output is never used.
                most = horizon if self.together else self.architecture.max_positions or horizon
                new = part[some, : max(0, most - past)]
                if new.shape[1]:
                    found = self._pass(cache, new, some, starts[some], past, some // repeats, source_horizon)
                    logits[some, at : at + new.shape[1]] = found
        if logit_positions is not None:
            logits = logits.gather(1, logit_positions[:, :, None].expand(-1, -1, logits.shape[2]))
        return Decoded(logits, logits[:, :, :0], {})

    def _groups(self, lengths: Tensor, past: int, uniform: bool) -> Iterator[tuple[Tensor, int]]:
        """Rows that go into one pass, with the most places that any of them has."""
        everything = torch.arange(len(lengths), device=lengths.device)
        if uniform or self.together:
            yield everything, past
        else:
            for length in lengths.unique().tolist():
                yield everything[lengths == length], length

    def _pass(
        self, cache: Cache, tokens: Tensor, rows: Tensor, starts: Tensor, past: int, sources: Tensor,
        source_horizon: int | None,
    ) -> Tensor:  # fmt: skip
        """Logits `[n, length, vocabulary]` of new tokens `[n, length]` for the slots `rows[n]`."""
        from spec2seq.models import transformers_cache as theirs

        length = tokens.shape[1]
        longest = cache.source.shape[4] if source_horizon is None else source_horizon
        shift = past - starts[:, None]
        more: dict[str, Tensor] = {}
        if self.together:
            steps = torch.arange(past + length, device=tokens.device)
            more["decoder_attention_mask"] = (steps >= shift).long()
            if self.gives_positions:
                more["decoder_position_ids"] = steps[past:] - shift
        slots = theirs.over_slots(cache, rows, starts, past, length, sources, longest)
        blank = cache.source.new_zeros(1, 1, 1).expand(len(rows), longest, self.architecture.width)
        return self.run(
            blank, cache.source_lengths[sources], decoder_input_ids=tokens, past_key_values=slots, **more
        ).logits

    def run(self, states: Tensor, lengths: Tensor, **inputs: Any) -> Any:
        """What the module returns over the encoder's `states` `[rows, source length, width]`."""
        from spec2seq.models.transformers_cache import encoder_output

        real = torch.arange(states.shape[1], device=states.device) < lengths[:, None]
        return self.module(encoder_outputs=encoder_output(states), attention_mask=real.long(), use_cache=True, **inputs)

    @torch.inference_mode()
    def _read_architecture(self) -> Architecture:
        """What the engine reads of a model; the module knows the rest. Its shapes are those of one pass."""
        from spec2seq.models import transformers_cache as theirs

        config = self.module.config
        ids = token_ids(config)
        for name, token in ids.items():
            if token is None:
                raise ValueError(f"its configuration has no {name}")
        start = torch.tensor([[ids["decoder_start_token_id"]]], device=self.device)
        end, filled = torch.full_like(start, ids["eos_token_id"]), theirs.empty()
        encoded = self.encode(end, torch.ones_like(end[0]))
        found = self.run(encoded.states, encoded.lengths, decoder_input_ids=start, past_key_values=filled)
        sides = filled.self_attention_cache, filled.cross_attention_cache
        keys = [layer.keys for side in sides for layer in side.layers]
        if len({(tensor.shape[1], tensor.shape[3]) for tensor in keys}) > 1:
            raise ValueError("its layers do not all have the same heads")
        shape = StackShape(len(keys) // 2, keys[0].shape[1], keys[0].shape[3], 0)
        vocabulary, source = found.logits.shape[2], self.module.get_encoder().get_input_embeddings().weight.shape[0]
        encoder, decoder = (getattr(config, side, config) for side in ("encoder", "decoder"))
        return Architecture(
            vocabulary=vocabulary,
            source_vocabulary=None if source == vocabulary else source,
            width=encoded.states.shape[2],
            encoder=shape,
            decoder=shape,
            activation="",
            position_rows=_positions(decoder, "max_decoder_position_embeddings"),
            source_positions=RELATIVE.get(config.model_type) or _positions(encoder, "max_encoder_position_embeddings"),
            **ids,
        )


def notice(kind: str) -> str:
    """What a user is told of a model type."""
    return f"{kind} models run in Transformers' own modules: no compiled executor, no int8, no make-drafter"


@functools.cache
def _warn(kind: str) -> None:
    """Once for each model type."""
    warnings.warn(notice(kind), stacklevel=2)


def _positions(config: Any, name: str) -> int | None:
    return getattr(config, name, None) or getattr(config, "max_position_embeddings", None)
