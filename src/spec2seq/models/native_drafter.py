"""The cached block drafter in the compiled executor."""

import ctypes

import torch
from torch import Tensor, nn

from spec2seq.kernels import library as c
from spec2seq.models.cached_drafter import CachedDrafter
from spec2seq.models.encoder_decoder import EncoderDecoder
from spec2seq.models.native import Weights, call, relative_table


class NativeChooser:
    """`CachedDrafter.choose` in one call, where the likeliest tokens are picked; `head` is what `guess_head` gave."""

    def __init__(self, drafter: CachedDrafter, verifier: EncoderDecoder, head: nn.Module):
        self.weights, self.guessable = Weights(), head.weight.shape[0]
        network = drafter.follow
        parts = {} if network is None else {name: getattr(network, name) for name in ("state", "token", "out")}
        self.chooser = c.Chooser(
            **{name: self.weights.linear(part) for name, part in parts.items()}, head=self.weights.linear(head),
            embedding=self.weights.pointer(verifier.target_embedding), width=drafter.architecture.width,
            shortlist=self.weights.pointer(drafter.shortlist) if drafter.shape.shortlist else None,
        )  # fmt: skip

    def __call__(self, states: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        """States `[rows, k, width]` and last tokens `[rows]` → tokens `[rows, k]`, logits `[rows, k, guessable]`."""
        (rows, k, _), states, previous = states.shape, states.contiguous(), previous.clone()
        tokens, logits = previous.new_empty(rows, k), states.new_empty(rows, k, self.guessable)
        call("spec2seq_choose", self.chooser, states.data_ptr(), rows, k, previous.data_ptr(), tokens.data_ptr(),
              logits.data_ptr())  # fmt: skip
        return tokens, logits


class NativeDrafter:
    """A whole draft, for `spec2seq_iterate`: inputs, layers and choice."""

    def __init__(self, drafter: CachedDrafter, chooser: NativeChooser):
        self.weights, self.chooser, self.stack = Weights(), chooser, drafter.native
        stack = c.Stack.from_buffer_copy(self.stack.stack)
        if (relative := relative_table(drafter)) is not None:
            stack.relative, stack.reach = self.weights.pointer(relative), relative.shape[1] // 2
        layers = torch.tensor(drafter.shape.hidden_layers, dtype=torch.long)
        self.drafter = c.Drafter(
            stack=ctypes.pointer(stack), mix=drafter.native_mix.linear, slots=self.weights.pointer(drafter.slots),
            chooser=ctypes.pointer(chooser.chooser), hidden_layers=self.weights.pointer(layers), hidden=len(layers),
        )  # fmt: skip
