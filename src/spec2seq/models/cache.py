"""Preallocated keys and values per slot.

The rows in flight are the slots 0…n-1, so that a pass works on views and never gathers. The cache knows nothing
of lengths: its user does, and rolling a row back is using a smaller length.
"""

import copy
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from spec2seq.models.architecture import StackShape

GRAIN = 32  # capacities are multiples of this, so that growing is rare and shapes are few
AHEAD = 256  # so much more than is asked for at the most
SPARE = 1 << 29  # bytes that a model keeps of a cache at most


class Spare:
    """The tensors of a model's last cache, for its next one with as many slots: fresh pages, and copies while a cache
    grows, are a sixth of the time of a batch of short lines. Only for an executor that reads no place that was not
    written: what the last user left there may be anything."""

    def __init__(self) -> None:
        self.kept: deque[tuple[Tensor, Tensor]] = deque(maxlen=1)  # taken and kept by any thread

    def take(self, kinds: tuple[tuple[int, torch.dtype], ...]) -> tuple[Tensor, Tensor] | None:
        """Of so many slots and such a dtype each; None where there are none that fit."""
        try:
            found = self.kept.pop()
        except IndexError:
            return None
        if tuple((tensor.shape[2], tensor.dtype) for tensor in found) != kinds:
            return None
        # Outside of inference mode nobody may write to a tensor that was made in it.
        usable = torch.is_inference_mode_enabled() or not any(tensor.is_inference() for tensor in found)
        return found if usable else None

    def keep(self, own: Tensor, source: Tensor) -> None:
        if own.nbytes + source.nbytes <= SPARE:
            self.kept.append((own, source))

    def __reduce__(self) -> tuple:
        return Spare, ()  # a copy begins without


class Cache:
    """Self-attention `[layers, 2, slots, heads, capacity, head_width]` and the source's keys and values."""

    spare: Spare | None = None

    def __init__(
        self, shape: StackShape, slots: int, dtype: torch.dtype, device: torch.device, spare: Spare | None = None,
        sources: int | None = None, source_dtype: torch.dtype | None = None,
    ):  # fmt: skip
        """`spare` gives the tensors, if it has some, and gets them back. `sources`: so many slots have a source, where
        several rows share one; None: all. `source_dtype`: of the source's keys and values; None: `dtype`."""
        sources = slots if sources is None else sources
        kinds = (slots, dtype), (sources, source_dtype or dtype)
        found = None if spare is None else spare.take(kinds)
        self.own, self.source = found or (
            torch.zeros(shape.layers, 2, count, shape.heads, 0, shape.head_width, dtype=kind, device=device)
            for count, kind in kinds
        )
        self.source_lengths = torch.zeros(sources, dtype=torch.long, device=device)
        self.origins: Tensor | None = None  # `[slots, capacity]`, see `reorder`
        self.spare = spare

    def __del__(self) -> None:
        if self.spare is not None:
            self.spare.keep(self.own, self.source)

    @property
    def slots(self) -> int:
        return self.own.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of both tensors."""
        return self.own.nbytes + self.source.nbytes

    def reserve(self, length: int) -> None:
        """Make room for `length` target positions in every slot."""
        if length > self.own.shape[4]:
            self.own = self._grown(self.own, max(length, min(2 * self.own.shape[4], length + AHEAD)))
            if self.origins is not None:
                known = self.origins
                self.origins = self._own_rows()
                self.origins[:, : known.shape[1]] = known

    def reserve_source(self, length: int) -> None:
        if length > self.source.shape[4]:
            self.source = self._grown(self.source, length)

    def put_source(self, first_slot: int, key_value: Tensor, lengths: Tensor) -> None:
        """Fill the slots from `first_slot` on with `[layers, 2, rows, heads, source length, head_width]`."""
        self.source_places(first_slot, lengths, key_value.shape[4])[:] = key_value

    def source_places(self, first_slot: int, lengths: Tensor, longest: int) -> Tensor:
        """Where the slots from `first_slot` on get their sources of `lengths[rows]`: a view of the shape above."""
        rows = slice(first_slot, first_slot + lengths.shape[0])
        self.reserve_source(longest)
        self.source_lengths[rows] = lengths
        return self.source[:, :, rows, :, :longest]

    def move(self, source: int, target: int, length: int, source_length: int) -> None:
        """Copy slot `source` over slot `target`, so many places of each: the last row in flight takes the place of a
        finished one."""
        self.own[:, :, target, :, :length] = self.own[:, :, source, :, :length]
        self.move_source(source, target, source_length)

    def move_source(self, source: int, target: int, length: int) -> None:
        """The same for what the slot has of its source alone."""
        self.source[:, :, target, :, :length] = self.source[:, :, source, :, :length]
        self.source_lengths[target] = self.source_lengths[source]

    def reorder(self, rows: Tensor, horizon: int) -> None:
        """Row i becomes what row `rows[i]` was, up to position `horizon` (beam search only).

        Keys and values stay where they are; `origins` says in which slot those of each place of a row lie. What comes
        behind `horizon` is each row's own again, so no row may be rolled back to before it.
        """
        if self.origins is None:
            self.origins = self._own_rows()
        self.origins[: rows.shape[0], :horizon] = self.origins[rows, :horizon]

    def slots_of(self, rows: Tensor, places: Tensor) -> Tensor:
        """In which slots the keys and values of rows at places lie, two tensors that broadcast; so does the result."""
        return rows if self.origins is None else self.origins[rows, places]

    def _grown(self, tensor: Tensor, length: int) -> Tensor:
        capacity = -(-length // GRAIN) * GRAIN
        make = tensor.new_zeros if self.spare is None else tensor.new_empty  # pages that nobody uses are never made
        grown = make(*tensor.shape[:4], capacity, tensor.shape[5])
        grown[:, :, :, :, : tensor.shape[4]] = tensor
        return grown

    def _own_rows(self) -> Tensor:
        return torch.arange(self.slots, device=self.own.device)[:, None].repeat(1, self.own.shape[4])

    def slots_from(self, first: int) -> "Cache":
        """The same tensors without the slots before `first`, for a pass over the last rows; they must not grow."""
        other = copy.copy(self)
        other.spare = None
        other.own, other.source = self.own[:, :, first:], self.source[:, :, first:]
        other.source_lengths = self.source_lengths[first:]
        return other

    def beside(self, slot: int) -> "Cache":
        """One row with this slot's source and nothing else yet, which may grow."""
        other = self.slots_from(slot)
        other.own = self.own[:, :, :1, :, :0].clone()
        return other

    def window(self, source: int) -> "Cache":
        """These tensors with `source` places of every source: a pass that is given no source horizon then looks at so
        many, and hides what lies behind a source's own end."""
        other = copy.copy(self)
        other.spare = None
        other.source = self.source[:, :, :, :, :source]
        return other

    def writer(self, rows: int, lengths: Tensor | None, length: int, horizon: int) -> Callable:
        """The `store` of one pass of `length` new tokens on rows 0…rows-1.

        `lengths[rows]` says where each row's new positions start; None: all start at `horizon - length`.
        """
        self.reserve(horizon)
        seen = self._reader(rows, horizon)
        if lengths is None:
            target = self.own[:, :, :rows, :, horizon - length : horizon].unbind(0)

            def store(layer: int, key_value: Tensor) -> tuple[Tensor, Tensor]:
                target[layer].copy_(key_value.permute(2, 0, 3, 1, 4))
                return seen(layer)

        else:
            row = torch.arange(rows, device=self.own.device)[:, None]
            position = lengths[:, None] + torch.arange(length, device=self.own.device)

            def store(layer: int, key_value: Tensor) -> tuple[Tensor, Tensor]:
                self.own[layer][:, row, :, position] = key_value
                return seen(layer)

        return store

    def _reader(self, rows: int, horizon: int) -> Callable[[int], tuple[Tensor, Tensor]]:
        """Of a layer all keys and values of the rows, each `[rows, heads, horizon, head_width]`."""
        if self.origins is None:
            visible = self.own[:, :, :rows, :, :horizon].unbind(0)
            return lambda layer: visible[layer].unbind(0)
        slot, place = self.origins[:rows, :horizon], torch.arange(horizon, device=self.own.device)
        return lambda layer: tuple(self.own[layer, half][slot, :, place].transpose(1, 2) for half in (0, 1))
