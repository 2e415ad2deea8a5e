"""int8 for CPUs: a scale for every output of a weight, and one for every token that comes in.

Sums of products are integers and exact, so that a row's result does not depend on the rows beside it.
"""

import torch
from torch import Tensor, nn

from spec2seq.models.fingerprint import fingerprint

LARGEST = 127  # of a code; symmetric, so -128 is not used


class QuantizedLinear(nn.Module):
    """A linear layer with weights `[outputs, inputs]` in int8 and `scale[outputs]`."""

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None):
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    @classmethod
    def of(cls, linear: nn.Linear) -> "QuantizedLinear":
        weight, scale = codes(linear.weight.detach())
        return cls(weight, scale[:, 0].contiguous(), None if linear.bias is None else linear.bias.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        """x `[..., inputs]` → `[..., outputs]`. The compiled executor's arithmetic, in PyTorch."""
        code, scale = codes(x)
        # float64 holds these sums exactly; PyTorch has no product of int8 matrices of every shape.
        y = (code.double() @ self.weight.double().T).float() * (scale * self.scale)
        return y if self.bias is None else y + self.bias


def weights_of(*modules: nn.Module) -> list[Tensor]:
    """The weights of modules, each once: parameters, and what linear layers in int8 have instead."""
    parts = [part for module in modules for part in module.modules() if isinstance(part, QuantizedLinear)]
    found = [weight for module in modules for weight in module.parameters()]
    found += [weight for part in parts for weight in part.buffers()]
    return list({id(weight): weight for weight in found}.values())


def some_outputs(linear: nn.Module, outputs: Tensor | slice, scale: float = 1.0) -> nn.Module:
    """A linear layer, of either kind, with some of its outputs `[count]` alone, in their order, its weights (not the
    bias) times `scale`."""
    bias = None if linear.bias is None else linear.bias[outputs]
    if isinstance(linear, QuantizedLinear):
        return QuantizedLinear(linear.weight[outputs], linear.scale[outputs] * scale, bias)
    made, weight = nn.Linear(1, 1, bias=bias is not None, device="meta"), linear.weight[outputs]
    made.weight = nn.Parameter(weight if scale == 1.0 else weight * scale, False)
    made.bias = None if bias is None else nn.Parameter(bias, False)
    return made


def codes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of x `[..., n]` in int8, and the scale `[..., 1]` of each row: codes * scale is nearly x."""
    x = x.float()
    most = x.abs().amax(-1, keepdim=True)
    inverse = torch.where(most > 0, LARGEST / most, 0.0)
    return (x * inverse).round().clamp(-LARGEST, LARGEST).to(torch.int8), most / LARGEST


def quantize(model: nn.Module) -> None:
    """Replace every linear layer of a model by its int8 form, in place. Its fingerprint stays what it was."""
    model.fingerprint = fingerprint(model)
    _replace(model)


def _replace(model: nn.Module) -> None:
    for name, child in model.named_children():
        if isinstance(child, nn.Linear):
            setattr(model, name, QuantizedLinear.of(child))
        else:
            _replace(child)
