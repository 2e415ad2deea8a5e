"""The compiled executor: a whole stack of layers in one call, in float32 or int8, on a CPU.

It reads the same description of a pass (`Block`, `CrossAttention`) as the layers in PyTorch and writes the same cache.
A row's result is the same bit for bit, whichever block or batch it travels in.
"""

import contextlib
import copy
import ctypes
import mmap
import threading
from collections.abc import Sequence
from ctypes import Structure

import torch
from torch import Tensor, nn

from spec2seq.errors import Spec2SeqError
from spec2seq.kernels import library as c
from spec2seq.models import threads
from spec2seq.models.architecture import Architecture
from spec2seq.models.cached_drafter import CachedDrafter
from spec2seq.models.encoder_decoder import EncoderDecoder
from spec2seq.models.layers import Block, CrossAttention, Layer, Stack
from spec2seq.models.quantize import QuantizedLinear
from spec2seq.models.real_tokens import RealTokens

LINEARS = ("self_qkv", "self_out", "cross_query", "cross_key_value", "cross_out", "ffn_in", "ffn_out")
NORMS = ("self_norm", "cross_norm", "ffn_norm")


def unavailable(architecture: Architecture | None = None) -> str:
    """Why the executor cannot be used on this machine, or for such a model; empty where it can."""
    if architecture is not None and architecture.activation not in c.ACTIVATIONS:
        return f"the activation is {architecture.activation}; it knows {', '.join(c.ACTIVATIONS)}"
    return c.find()[1]


def attach(model: EncoderDecoder | CachedDrafter) -> None:
    """Let the compiled executor run a model's layers and head, of which it packs a copy: after a change of weights call
    it again.

    Raises Spec2SeqError where it cannot: no compiler, another device than a CPU, another dtype than float32 or int8.
    """
    reason = unavailable(model.architecture)
    if not reason and (model.device.type, model.dtype) != ("cpu", torch.float32):
        reason = f"it runs float32 and int8 on a CPU, not {str(model.dtype).removeprefix('torch.')} on {model.device}"
    if reason:
        raise Spec2SeqError(f"the native executor is not available: {reason}")
    if isinstance(model, CachedDrafter):  # its masks bring the relative bias along
        model.native = NativeStack(model.layers, model.final_norm, model.architecture, None)
        model.native_mix = NativeLinear(model.mix)
        return
    for stack in (model.encoder, model.decoder):
        stack.native = NativeStack(stack.layers, stack.final_norm, stack.architecture, relative_table(stack))
    model.native_head = NativeLinear(model.head)
    model.native = NativeDecoder(model)


_CHUNK = 1 << 24  # bytes
_chunk: list = []  # the present one, and how much of it is used
_placing = threading.Lock()


def _in_huge_pages(tensor: Tensor) -> Tensor:
    """A copy that lies beside the others of its kind: a pass reads all of them, and with pages of 4 KiB it would wait
    for the translation of their addresses."""
    size = -(-tensor.nbytes // 64) * 64
    with _placing:
        if not _chunk or _chunk[1] + size > len(_chunk[0]):
            # Private: a forked process that goes on in the same chunk must not write into its parent's.
            memory = mmap.mmap(-1, max(_CHUNK, size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                with contextlib.suppress(OSError):  # a kernel without them
                    memory.madvise(mmap.MADV_HUGEPAGE)
            _chunk[:] = [memory, 0]
        memory, used = _chunk
        _chunk[1] += size
    placed = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=used).view(tensor.shape)
    return placed.copy_(tensor)


class Weights:
    """What C points to, kept alive: packed weights of its own, and the model's other tensors where they lie."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []

    def pointer(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        self.kept.append(tensor.detach().contiguous())
        return self.kept[-1].data_ptr()

    def packed(self, weight: Tensor, group: int, whole: int = 1) -> int:
        """Of `_panels`."""
        return self.pointer(_in_huge_pages(_panels(weight, group, whole)))

    def linear(self, module: nn.Module) -> c.Linear:
        bias = self.pointer(module.bias)
        outputs, inputs = module.weight.shape
        if isinstance(module, QuantizedLinear):
            rest = (0, -outputs % c.PANEL)
            scales = nn.functional.pad(module.scale, rest)
            sums = nn.functional.pad(module.weight.sum(1, dtype=torch.int32), rest)
            codes = self.packed(module.weight, 4, c.CODES)
            return c.Linear(None, codes, self.pointer(scales), self.pointer(sums), bias, inputs, outputs)
        return c.Linear(self.packed(module.weight, 1), None, None, None, bias, inputs, outputs)

    def norm(self, module: nn.Module) -> c.Norm:
        return c.Norm(self.pointer(module.weight), self.pointer(getattr(module, "bias", None)))


class NativeLinear:
    """One linear layer, such as the head."""

    def __init__(self, module: nn.Module):
        self.weights = Weights()
        self.linear, self.outputs = self.weights.linear(module), module.weight.shape[0]

    def __call__(self, x: Tensor) -> Tensor:
        """x `[..., inputs]` → `[..., outputs]`."""
        x = x.contiguous()
        y = x.new_empty(*x.shape[:-1], self.outputs)
        call("spec2seq_linear", self.linear, x.data_ptr(), x.numel() // x.shape[-1], y.data_ptr())
        return y

    @classmethod
    def over(cls, linear: c.Linear) -> "NativeLinear":
        """Of weights that somebody else has packed, and keeps."""
        made = cls.__new__(cls)
        made.linear, made.outputs = linear, linear.outputs
        return made

    def __deepcopy__(self, memo: dict) -> None:
        return None


class NativeStack:
    """The layers of an encoder, a decoder or a drafter. `relative` is their bias by distance, for all layers
    `[heads, 2 * reach + 1]` or `[layers * heads, ...]`: the distances of query minus key from -reach to reach."""

    def __init__(
        self, layers: Sequence[Layer], final_norm: nn.Module | None, architecture: Architecture, relative: Tensor | None
    ):
        self.weights, first = Weights(), layers[0]
        self.layers = (c.Layer * len(layers))(*(self._layer(layer) for layer in layers))
        scale = architecture.attention_scale
        # In int8 the keys and values of sources have 16 bits: of long ones they are most of what a pass reads.
        int8 = isinstance(first.self_qkv, QuantizedLinear)
        self.source_dtype = torch.float16 if int8 else torch.float32
        self.shape = (len(layers), first.heads, first.head_width)
        self.stack = c.Stack(
            layers=self.layers, count=len(layers), width=architecture.width, heads=first.heads,
            head_width=first.head_width, ffn_width=first.ffn_out.weight.shape[1],
            activation=c.ACTIVATIONS[architecture.activation], gated=first.gated, pre_norm=first.pre_norm,
            cross=hasattr(first, "cross_query"), eps=architecture.norm_eps,
            scale=first.head_width**-0.5 if scale is None else scale,
            final_norm=None if final_norm is None else ctypes.pointer(self.weights.norm(final_norm)),
            relative=self.weights.pointer(relative), reach=0 if relative is None else relative.shape[1] // 2,
            relative_layer=0 if relative is None or len(relative) == first.heads else first.heads * relative.shape[1],
        )  # fmt: skip

    def _layer(self, layer: Layer) -> c.Layer:
        linears = {name: self.weights.linear(getattr(layer, name)) for name in LINEARS if hasattr(layer, name)}
        norms = {name: self.weights.norm(getattr(layer, name)) for name in NORMS if hasattr(layer, name)}
        return c.Layer(**linears, **norms)

    def first_layers(self, count: int) -> "NativeStack":
        """The first `count` layers and the final norm, with the same packed weights."""
        made = copy.copy(self)
        made.stack, made.shape = c.Stack.from_buffer_copy(self.stack), (count, *self.shape[1:])
        made.stack.count, made.whole = count, self.stack  # which holds what the copy points to
        return made

    def __deepcopy__(self, memo: dict) -> None:
        """A copy is made to be changed, so it runs in PyTorch until `attach`."""
        return None

    @staticmethod
    def takes(x: Tensor) -> bool:
        """Whether it can run on these states; another dtype or device, and training, are PyTorch's."""
        return x.dtype == torch.float32 and x.device.type == "cpu" and not (x.requires_grad and torch.is_grad_enabled())

    def __call__(
        self, x: Tensor, block: Block, cross: CrossAttention | None, hidden_layers: tuple[int, ...] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """What `Stack.forward` does."""
        real = RealTokens(block.lengths, block.length)
        x = real.of(x)
        out, hidden = torch.empty_like(x), {layer: torch.empty_like(x) for layer in hidden_layers}
        kept = [x]
        run = self.describe(block, cross, out, hidden, kept)
        run.input = x.data_ptr()
        real.name_rows(run)
        call("spec2seq_stack", self.stack, run)
        return real.padded(out), {layer: real.padded(states) for layer, states in hidden.items()}

    def describe(
        self, block: Block, cross: CrossAttention | None, out: Tensor, hidden: dict[int, Tensor], kept: list
    ) -> c.Pass:
        """A pass in C's terms; `kept` gets what has to live as long as the call."""
        run = c.Pass(
            output=out.data_ptr(), rows=block.rows, length=block.length, horizon=block.horizon,
            causal=block.causal, starts=_integers(block.starts, kept),
        )  # fmt: skip
        if hidden:
            pointers = (ctypes.c_void_p * (self.shape[0] + 1))()
            for layer, tensor in hidden.items():
                pointers[layer] = tensor.data_ptr()
            run.hidden = ctypes.addressof(pointers)
            kept.append(pointers)
        if block.cache is not None:
            block.cache.reserve(block.horizon)
            run.own = places_of(block.cache.own)
            if block.cache.origins is not None:
                run.origins, run.origin_stride = block.cache.origins.data_ptr(), block.cache.origins.stride(0)
        ends = block.ends if block.lengths is None else block.lengths[:, None]
        if ends is not None:
            ends = ends.expand(block.rows, block.length)
            run.ends = _integers(ends, kept, contiguous=False)
            run.ends_row, run.ends_query = ends.stride()
        if block.mask is not None:
            mask = block.mask.expand(block.rows, self.shape[1], block.length, block.horizon)
            mask = mask if mask.stride(3) == 1 else mask.contiguous()
            kept.append(mask)
            run.mask, (run.mask_row, run.mask_head, run.mask_query, _) = mask.data_ptr(), mask.stride()
        if cross is not None:
            run.source, run.source_lengths = places_of(cross.key_value), _integers(cross.lengths, kept)
            run.sources, run.source_horizon = cross.key_value.shape[2], cross.key_value.shape[4]
        return run

    def keys_values(self, states: Tensor, lengths: Tensor, to: Tensor) -> None:
        """What `cross_keys_values` does, of states `[rows, length, width]`, of which `lengths[rows]` are real, into
        `to`; what is behind them stays as it is."""
        rows, length, width = states.shape
        real = RealTokens(lengths, length)
        states = real.of(states.reshape(-1, width))
        run = c.Pass(output=states.data_ptr(), rows=rows, length=length)
        real.name_rows(run)
        call("spec2seq_source", self.stack, run, places_of(to))


class NativeDecoder:
    """A decoder with its embedding and its head: from token ids to states, logits and the likeliest next tokens."""

    def __init__(self, model: EncoderDecoder):
        a, decoder, self.weights = model.architecture, model.decoder, Weights()
        norm = decoder.embedding_norm
        positions = None if a.position_rows is None else decoder.positions
        self.stack, self.vocabulary = decoder.native, a.vocabulary
        self.takes = self.stack.takes
        embedding = c.Embedding(
            table=self.weights.pointer(model.target_embedding), positions=self.weights.pointer(positions),
            places=a.position_rows or 0, offset=a.position_offset, pad=a.pad_token_id if a.skip_padding else -1,
            scale=a.embedding_scale, norm=None if norm is None else ctypes.pointer(self.weights.norm(norm)),
        )  # fmt: skip
        self.decoder = c.Decoder(
            stack=ctypes.pointer(self.stack.stack), embedding=embedding, head=model.native_head.linear,
            logit_scale=a.logit_scale,
        )  # fmt: skip

    def first_layers(self, count: int) -> "NativeDecoder":
        """As `EncoderDecoder.first_layers`."""
        made = copy.copy(self)
        made.stack = self.stack.first_layers(count)
        made.decoder = c.Decoder.from_buffer_copy(self.decoder)
        made.decoder.stack, made.whole = ctypes.pointer(made.stack.stack), self
        return made

    def with_head(self, head: nn.Module) -> tuple["NativeDecoder", NativeLinear]:
        """This with another head, and that head: see `EncoderDecoder.scoring`."""
        made, linear = copy.copy(self), NativeLinear(head)
        made.decoder = c.Decoder.from_buffer_copy(self.decoder)
        made.decoder.head, made.vocabulary, made.whole = linear.linear, linear.outputs, (self, linear)
        return made, linear

    def little(self) -> c.LittleDraft:
        """A little model's draft, of which only the model is told."""
        asked = c.LittleDraft()
        asked.decoder.contents = self.decoder
        return asked

    def __deepcopy__(self, memo: dict) -> None:
        return None

    def __call__(
        self, tokens: Tensor, block: Block, cross: CrossAttention, hidden_layers: tuple[int, ...], scored: bool
    ) -> tuple[Tensor, dict[int, Tensor], Tensor | None]:
        """Tokens `[rows, length]` → states and those of `hidden_layers` `[rows * length, width]`; with `scored` also
        logits `[rows * length, vocabulary]`."""
        size, width = tokens.numel(), self.stack.stack.width
        tokens = tokens if tokens.stride(1) == 1 else tokens.contiguous()
        out = torch.empty(size, width, dtype=torch.float32)  # whatever PyTorch's default is: C writes it
        hidden = {layer: torch.empty_like(out) for layer in hidden_layers}
        logits = out.new_empty(size, self.vocabulary) if scored else None
        kept: list = []
        run = self.stack.describe(block, cross, out, hidden, kept)
        asked = c.Scored(tokens.data_ptr(), tokens.stride(0), None if logits is None else logits.data_ptr())
        call("spec2seq_decode", self.decoder, run, asked)
        return out, hidden, logits


def call(name: str, *arguments) -> None:
    """Call a function of the library. Raises Spec2SeqError where there is none, MemoryError where memory is short."""
    library, reason = c.find()
    if library is None:
        raise Spec2SeqError(f"the native executor is not available: {reason}")
    if getattr(library, name)(*arguments, threads.count()):
        raise MemoryError(f"{name}: not enough memory for its buffers")


def places_of(key_value: Tensor) -> c.Places:
    """Keys and values `[layers, 2, rows, heads, places, head_width]`, a place's numbers together."""
    *steps, place, one = key_value.stride()
    assert (place, one) == (key_value.shape[5], 1) and key_value.dtype in (torch.float32, torch.float16)
    return c.Places(key_value.data_ptr(), *steps, key_value.dtype == torch.float16)


def point_to(structure: Structure, name: str, key_value: Tensor, known: dict[str, Tensor]) -> None:
    """Let a structure's places be those of a cache, which move when it grows; `known` are the last ones by name."""
    if known.get(name) is not key_value:
        known[name] = key_value
        setattr(structure, name, places_of(key_value))


def _integers(tensor: Tensor | None, kept: list[Tensor], contiguous: bool = True) -> int | None:
    if tensor is None:
        return None
    kept.append(tensor.contiguous() if contiguous else tensor)
    return kept[-1].data_ptr()


def _panels(weight: Tensor, group: int, whole: int = 1) -> Tensor:
    """Weights `[outputs, inputs]` → `[outputs / PANEL, inputs / group, PANEL, group]`, filled up with zeros to
    multiples of PANEL outputs and of `whole` inputs."""
    outputs, inputs = weight.shape
    padded = nn.functional.pad(weight.detach(), (0, -inputs % whole, 0, -outputs % c.PANEL))
    return padded.view(-1, c.PANEL, padded.shape[1] // group, group).transpose(1, 2).contiguous()


def relative_table(stack: Stack | CachedDrafter) -> Tensor | None:
    """The relative bias of every distance that matters, see `NativeStack`; None where there is none."""
    if stack.architecture.position_rows is not None:
        return None
    reach = stack.architecture.relative_max_distance
    return stack.bias_by_distance(torch.arange(-reach, reach + 1)[None, None])[0, :, 0].contiguous()
