"""Frozen linear layers laid out for the CPU.

torch lays a weight out anew at each product; oneDNN, which it brings along, can take one that was laid out once.
`just bench extraction` shows what that gains on a machine.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["PackedLinear", "can_pack", "pack"]

ROWS = 512  # typical rows of an input, a hint for the layout


def can_pack(weight: Tensor) -> bool:
    """Say whether this torch can pack such a weight."""
    ops = torch.ops.mkldnn
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
        and hasattr(ops, "_reorder_linear_weight")
        and hasattr(ops, "_linear_pointwise")
    )


class PackedLinear(nn.Module):
    """``nn.Linear`` for inference, equal up to rounding; its weight has left the module's parameters.

    Args:
        weight: [out, in], on the CPU.
        bias: [out], or None.
        gelu: apply it to the output.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, gelu: bool = False):
        super().__init__()
        self.gelu = gelu
        self.weight = weight.detach()  # plain attributes: nothing trains, moves or saves them
        self.bias = None if bias is None else bias.detach()
        self.packed = None
        if can_pack(self.weight):
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous(), ROWS)
            self.weight = weight.new_empty(0)  # free what was copied; a slice would hold on to it

    def forward(self, x: Tensor) -> Tensor:
        """Return x [..., in] times the weight, plus the bias: [..., out]."""
        if self.packed is None:
            out = F.linear(x, self.weight, self.bias)
            return F.gelu(out) if self.gelu else out
        then, variant = ("gelu", "none") if self.gelu else ("none", "")
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, then, [], variant)


def pack(module: nn.Module) -> None:
    """Replace every linear layer inside ``module``, in place; it can no longer train.

    In the blocks of transformers' encoders, the first layer takes over the activation that follows it.
    """
    for dense, activation in (("intermediate_dense", "intermediate_act_fn"), ("fc1", "activation_fn")):
        if type(getattr(module, activation, None)).__name__ == "GELUActivation":
            layer = getattr(module, dense)
            setattr(module, dense, PackedLinear(layer.weight, layer.bias, gelu=True))
            setattr(module, activation, nn.Identity())
    for name, child in module.named_children():
        if type(child) is nn.Linear and can_pack(child.weight):
            setattr(module, name, PackedLinear(child.weight, child.bias))
        else:
            pack(child)
