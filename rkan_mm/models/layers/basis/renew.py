"""Other numbers for parameters, in another shape too, in the midst of a run."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.graph import increment_version

M = TypeVar('M', bound=nn.Module)


def has_numbers(t: Tensor) -> bool:
    """Whether there is something to read: not on the meta device, nor in what was built under ``FakeTensorMode``."""
    return not (t.is_meta or isinstance(t, FakeTensor))


def placed(data: Tensor, like: Tensor) -> Tensor:
    """Numbers in the dtype and on the device of another tensor, and spread over processes as it is (FSDP2)."""
    data = data.to(dtype=like.dtype, device=like.device)
    if hasattr(like, 'device_mesh'):
        from torch.distributed.tensor import distribute_tensor
        return distribute_tensor(data, like.device_mesh, like.placements)
    return data


def placed_as(like: Tensor, module: M) -> M:
    """A module converted to the dtype and device of a tensor, if there is anything to convert: fakes cannot be."""
    tensors = (*module.parameters(), *module.buffers())
    alike = all(t.device == like.device and t.dtype == (like.dtype if t.is_floating_point() else t.dtype)
                for t in tensors)
    return module if alike else module.to(like)


def renew(tensor: Tensor, data: Tensor) -> None:
    """Give a parameter or buffer other numbers, in another shape too, while losses from before may be alive.

    What collects its gradients knows the old shape, and lives as long as such a loss; PyTorch makes a new one when the
    dtype changes. A gradient that comes from such a loss later is an error, as is one that needs the old parameter. The
    numbers lie side by side, as others expect of a parameter (``LBFGS``, ``parameters_to_vector``).

    Args:
        tensor: keeps its identity, dtype and device; its ``grad`` is dropped.
        data: the numbers.
    """
    data = placed(data, tensor).contiguous()
    if tensor.requires_grad:
        tensor.grad = None
        if data.shape != tensor.shape:
            tensor.data = data.to(torch.float32 if data.dtype == torch.float64 else torch.float64)
            for hook in (tensor._backward_hooks or {}).values():
                if isinstance(hook, _OfThisShape):
                    hook.shape = data.shape
                    break
            else:
                tensor.register_hook(_OfThisShape(data.shape))
    tensor.data = data
    if isinstance(tensor, nn.Parameter) and not tensor.is_inference():
        increment_version(tensor)


class _OfThisShape:
    """A hook of a parameter, which it does not hold: torch could not swap it then (``torch.utils.swap_tensors``)."""

    def __init__(self, shape: torch.Size) -> None:
        self.shape = shape

    def __call__(self, grad: Tensor) -> None:
        if grad.shape != self.shape:
            raise RuntimeError(f'backward() of a loss from before a grid was refined or grown: its gradient for the '
                               f'coefficients is {tuple(grad.shape)}, and they are {tuple(self.shape)} now. Call it '
                               'before the change, or compute the loss again')
