"""Other numbers for parameters, in another shape too, in the midst of a run."""

from __future__ import annotations

import weakref
from functools import partial

import torch
from torch import Tensor


def placed(data: Tensor, like: Tensor) -> Tensor:
    """Numbers in the dtype and on the device of another tensor, and spread over processes as it is (FSDP2)."""
    data = data.to(dtype=like.dtype, device=like.device)
    if hasattr(like, 'device_mesh'):
        from torch.distributed.tensor import distribute_tensor
        return distribute_tensor(data, like.device_mesh, like.placements)
    return data


def renew(tensor: Tensor, data: Tensor) -> None:
    """Give a parameter or buffer other numbers, in another shape too, while losses from before may be alive.

    What collects its gradients knows the old shape, and lives as long as such a loss; PyTorch makes a new one when the
    dtype changes. A gradient that comes from such a loss later is an error.

    Args:
        tensor: keeps its identity, dtype and device; its ``grad`` is dropped.
        data: the numbers.
    """
    data = placed(data, tensor)
    if tensor.requires_grad:
        tensor.grad = None
        if data.shape != tensor.shape:
            tensor.data = data.to(torch.float32 if data.dtype == torch.float64 else torch.float64)
            hooks = (tensor._backward_hooks or {}).values()
            if not any(isinstance(hook, partial) and hook.func is _of_this_shape for hook in hooks):
                tensor.register_hook(partial(_of_this_shape, weakref.ref(tensor)))
    tensor.data = data


def _of_this_shape(parameter: weakref.ref, grad: Tensor) -> None:
    now = parameter()
    if now is not None and grad.shape != now.shape:
        raise RuntimeError(f'backward() of a loss from before a grid was refined or grown: its gradient for the '
                           f'coefficients is {tuple(grad.shape)}, and they are {tuple(now.shape)} now. Call it before '
                           'the change, or compute the loss again')
