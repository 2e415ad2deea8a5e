"""Padded rows without their padding, which the compiled executor does not compute."""

import torch
from torch import Tensor, nn

from spec2seq.kernels import library as c


class RealTokens:
    """Which places of rows `[rows, length]` are real, by `lengths[rows]`; None: all."""

    def __init__(self, lengths: Tensor | None, length: int):
        self.places: Tensor | None = None
        if lengths is None or (len(lengths) == 1 and int(lengths[0]) >= length):
            return
        self.count, lengths = len(lengths) * length, lengths.clamp(max=length)
        self.places = (torch.arange(length) < lengths[:, None]).view(-1).nonzero()[:, 0]
        self.row_of, self.first = self.places // length, nn.functional.pad(lengths.cumsum(0), (1, 0))

    def of(self, states: Tensor) -> Tensor:
        """States `[rows * length, width]` → those of the real places, behind one another."""
        return states.contiguous() if self.places is None else states.index_select(0, self.places)

    def padded(self, states: Tensor) -> Tensor:
        """States of the real places → `[rows * length, width]`, zeros elsewhere."""
        if self.places is None:
            return states
        return states.new_zeros(self.count, states.shape[1]).index_copy_(0, self.places, states)

    def name_rows(self, run: c.Pass) -> None:
        """Tell C which row each token is of; they must live as long as the call."""
        if self.places is not None:
            run.row_of, run.first = self.row_of.data_ptr(), self.first.data_ptr()
