"""Multiplications of a forward pass and of a training step."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.analysis.jit_handles import get_shape
from torch import nn

from rkan_mm.preflight.red import warn_in_red


def _attention_macs(inputs: list, outputs: list) -> int:
    query, key, value = (get_shape(each) for each in inputs[:3])  # (..., places, channels)
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _deformable_macs(inputs: list, outputs: list) -> int:
    """Of mmcv's convolutions: the weight, (out, in / groups, height, width), is behind offsets and, in v2, a mask."""
    weight = get_shape(inputs[3 if len(inputs) > 3 else 2])
    return math.prod(get_shape(outputs[0])) * math.prod(weight[1:])


UNKNOWN_TO_MMENGINE = {
    'aten::scaled_dot_product_attention': _attention_macs,
    'prim::PythonOp.DeformConv2dFunction': _deformable_macs,
    'prim::PythonOp.ModulatedDeformConv2dFunction': _deformable_macs,
}


@contextlib.contextmanager
def _attention_in_parts() -> Iterator[None]:
    """PyTorch has one operation for all of a ``nn.MultiheadAttention`` without gradients."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _counted(model: nn.Module, image: torch.Tensor) -> FlopAnalyzer:
    with torch.no_grad(), _attention_in_parts():  # mm's blocks in activation checkpoints would be one operation each
        found = FlopAnalyzer(model.eval(), image).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        found.set_op_handle(**UNKNOWN_TO_MMENGINE).total()  # which it keeps
    return found


def macs_of(model: nn.Module, image: torch.Tensor) -> int:
    """MACs of a forward pass, as mmengine counts them, and of attention and deformable convolutions, which it does not.

    Other operations outside of PyTorch, of which nothing is known, are told in red.
    """
    found = _counted(model, image)
    if unknown := [name for name in found.unsupported_ops() if not name.startswith('aten::')]:
        warn_in_red(f'The MACs are without those of {", ".join(unknown)}, of which nothing is known.')
    return int(found.total())


def macs_of_step(model: nn.Module, image: torch.Tensor) -> int:
    """MACs of a training step: forward, for the gradients of inputs, and for those of weights, where they have any."""
    found, gradients, handles = _counted(model, image), {}, []
    model.train()  # where some backbones of mm freeze their stages
    for name, module in model.eval().named_modules():
        if any(own.dim() > 1 for own in module.parameters(recurse=False)):
            gradients[name] = 2

            def note(module: nn.Module, args: tuple, kwargs: dict, name: str = name) -> None:
                tensors = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, torch.Tensor)]
                gradients[name] = sum(any(each.requires_grad for each in given)
                                      for given in (tensors, list(module.parameters())))

            handles.append(module.register_forward_pre_hook(note, with_kwargs=True))
    model(image)
    for handle in handles:
        handle.remove()
    macs = found.by_module()
    without = 0  # of gradients that nobody needs
    for name, number in gradients.items():
        prefix = f'{name}.' if name else ''
        inside = sum(macs[prefix + child] for child, _ in model.get_submodule(name).named_children())
        without += (2 - number) * (macs[name] - inside)
    return int(3 * found.total() - without)
