"""Our model over the storage of a live Transformers module: no second copy of its weights.

Our layers have in one tensor what Transformers has in two or three (query, key and value; both halves of a gate). Such
tensors are moved next to each other, into one storage, and the module's parameters become views of it: the same
`Parameter` objects with the same names, values and gradients, so that an optimizer, a state dict and the module itself
go on as before. The other way, layers that keep the parts apart, would cost three small products instead of one in
every layer of every pass.
"""

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from spec2seq.errors import Spec2SeqError
from spec2seq.models import families
from spec2seq.models.encoder_decoder import EncoderDecoder
from spec2seq.models.family import NameMap

BIAS = "final_logits_bias"  # a buffer, in every family that has it

# Zeros that a module does not have, as long as it is there: once they lie between its own tensors they stay there.
_zeros: WeakKeyDictionary[torch.nn.Module, dict[str, Tensor]] = WeakKeyDictionary()


class Shared:
    """`model` on a module's weights, as long as `current(module)` says that they still lie where they did."""

    def __init__(self, module: torch.nn.Module):
        """Raises Spec2SeqError for another family, or weights that are not all there in one dtype on one device."""
        where = type(module).__name__
        family = families.family_of(module.config, where)
        architecture = family.architecture(module.config)
        names = family.names(architecture)
        live = _tensors(module)
        used = [part for parts in names.values() for part in parts if not part.endswith(family.zeros)]
        _check(live, used, where, half=family.half)
        live |= _missing(module, live, names, family.zeros)
        ours = {name: _whole([live[part] for part in parts]) for name, parts in names.items()}
        self.biased = _has_bias(live)
        if self.biased:
            used.append(BIAS)
            ours["head.bias"] = live[BIAS].detach().flatten()
        if family.positions is not None:
            table = family.positions(architecture).to(ours["target_embedding"])
            ours["encoder.positions"] = ours["decoder.positions"] = _same_as(table, module)
        target, source = ours["target_embedding"].data_ptr(), ours.get("source_embedding")
        self.model: EncoderDecoder = families.assemble(
            architecture, ours,
            # Equal numbers in two storages may be trained apart: what counts is where they lie.
            shared_table=source is not None and source.data_ptr() == target,
            tied_head=ours["head.weight"].data_ptr() == target,
        )  # fmt: skip
        self.places = {name: _place(live[name]) for name in used}

    def current(self, module: torch.nn.Module, *, values: bool = False) -> bool:
        """Whether the module's weights are still in the storage they were in; with `values`, also unchanged in it."""
        live = _tensors(module)
        if _has_bias(live) != self.biased:
            return False
        for name, (address, dtype, version) in self.places.items():
            tensor = live.get(name)
            if tensor is None or (tensor.data_ptr(), tensor.dtype) != (address, dtype):
                return False
            if values and tensor._version != version:
                return False
        return True


def _tensors(module: torch.nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by all its names; tied ones have several."""
    named = dict(module.named_parameters(remove_duplicate=False))
    return named | dict(module.named_buffers(remove_duplicate=False))


def _missing(
    module: torch.nn.Module, live: dict[str, Tensor], names: NameMap, endings: tuple[str, ...]
) -> dict[str, Tensor]:
    """What the family's names have and the module has not, as it is zero: of the shape of the last one beside it."""
    known = _zeros.setdefault(module, {})
    for parts in names.values():
        for part in parts:
            like = live.get(parts[-1])
            if part.endswith(endings) and (part not in known or known[part].dtype != like.dtype
                                           or known[part].device != like.device):  # fmt: skip
                known[part] = torch.zeros_like(like.detach())
    return known


def _has_bias(live: dict[str, Tensor]) -> bool:
    """A bias of zeros is none, as everywhere: it would be an addition over the whole vocabulary for nothing."""
    return BIAS in live and bool(live[BIAS].any())


def _place(tensor: Tensor) -> tuple[int, torch.dtype, int]:
    return tensor.data_ptr(), tensor.dtype, tensor._version


def _check(live: dict[str, Tensor], used: list[str], where: str, *, half: bool) -> None:
    missing = next((name for name in used if name not in live), None)
    if missing is not None:
        raise Spec2SeqError(f"{where}: it has no tensor {missing}; allowed: a model without adapters (merge them)")
    first = live[used[0]]
    for name in used:
        tensor = live[name]
        if (tensor.dtype, tensor.device) != (first.dtype, first.device) or not tensor.is_floating_point():
            raise Spec2SeqError(
                f"{where}: {used[0]} is {first.dtype} on {first.device} and {name} {tensor.dtype} on {tensor.device}; "
                "allowed: one floating-point type on one device"
            )
    if first.device.type == "meta":
        raise Spec2SeqError(f"{where}: its weights are on the device meta; allowed: loaded weights")
    if first.dtype == torch.float16 and not half:
        raise Spec2SeqError(f"{where}: this family overflows in float16; use bfloat16 or float32")


@torch.no_grad()
def _whole(parts: list[Tensor]) -> Tensor:
    """The tensors as one, behind each other in dimension 0; they become views of it unless they are already."""
    if len(parts) == 1:
        return parts[0].detach()
    first, rows = parts[0], sum(len(part) for part in parts)
    place = first.storage_offset()
    together = True
    for part in parts:
        together &= part.is_contiguous() and part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        together &= part.storage_offset() == place
        place += part.numel()
    if together:
        return first.detach().as_strided((rows, *first.shape[1:]), first.stride(), first.storage_offset())
    packed = torch.cat([part.detach() for part in parts])
    for part, view in zip(parts, packed.split([len(part) for part in parts]), strict=True):
        part.data = view
    return packed


def _same_as(table: Tensor, module: torch.nn.Module) -> Tensor:
    """The module's own buffer where it has these numbers in one, else the table."""
    for buffer in module.buffers():
        if buffer.shape == table.shape and buffer.dtype == table.dtype and torch.equal(buffer, table):
            return buffer.detach()
    return table
