"""Channels that nothing reads, as pruning leaves them: dropped from the layer that computes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm

from rkan_mm.models.layers import KANConv2d, KANLinear, SharedKANConv2d
from rkan_mm.models.layers.basis import GridBasis
from rkan_mm.models.layers.folding import put

LAYERS = (nn.Conv2d, nn.Linear, KANConv2d, KANLinear)
BY_CHANNEL = (nn.Identity, nn.ReLU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.LeakyReLU, nn.ELU, nn.Hardswish, nn.ReLU6,
              nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Dropout, nn.Dropout2d)
FUNCTIONS = (F.relu, torch.relu, F.silu, torch.tanh, torch.sigmoid, F.gelu)


def drop_unread(nodes: Sequence[Node], module: Callable[[Any], Any],
                report: Callable[[Node, str], None]) -> None:
    """Drop channels of layers whose one reader has only zeros for them.

    Args:
        nodes: of a trace, in order.
        module: what a node calls, None where it must not be changed.
        report: is told the node and what was dropped.
    """
    for node in reversed(nodes):
        layer = module(node)
        if type(layer) not in LAYERS or getattr(layer, 'groups', 1) != 1:
            continue
        between, reader, features = _way(node, module)
        if reader is None or (features and not isinstance(reader, nn.Linear)):
            continue
        outputs = len(layer.bias) if layer.bias is not None else (
            layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features)
        read = _is_read(reader).reshape(outputs, -1)  # behind a flattening, pixels of a channel lie side by side
        keep = read.any(1)
        if keep.all() or not keep.any():
            continue
        _keep_outputs(layer, keep)
        for each in between:
            if isinstance(each, _BatchNorm):
                _keep_norm(each, keep)
        _keep_inputs(reader, keep[:, None].expand_as(read).flatten())
        report(node, f'channels dropped: {int((~keep).sum())} of {outputs}, which nothing reads')


def _way(node: Node, module: Callable[[Any], Any]) -> tuple[list[nn.Module], Any, bool]:
    """What lies between a layer and its one reader, by channel; this reader, or None; whether pixels are flattened."""
    between: list[nn.Module] = []
    flat = False
    while len(node.users) == 1:
        node = next(iter(node.users))
        each = module(node)
        if type(each) in LAYERS:
            usable = getattr(each, 'groups', 1) == 1 and getattr(each, 'norm', None) is None
            return between, each if usable else None, flat
        if isinstance(each, nn.Flatten) and each.start_dim == 1 and each.end_dim == -1:
            flat = True
        elif (isinstance(each, _BatchNorm) or type(each) is SharedKANConv2d) and not flat:
            between.append(each)
        elif type(each) not in BY_CHANNEL and not (node.op == 'call_function' and node.target in FUNCTIONS):
            break
    return between, None, flat


def _is_read(reader: Any) -> Tensor:
    """By input channel or feature."""
    read = torch.zeros(reader.in_channels if isinstance(reader, nn.Conv2d) else reader.in_features, dtype=torch.bool)
    for weight in (reader.weight, getattr(reader, 'basis_weight', None)):
        if weight is not None:
            read |= weight.transpose(0, 1).flatten(1).ne(0).any(1).cpu()
    return read


def _keep_outputs(layer: Any, keep: Tensor) -> None:
    for name in ('weight', 'basis_weight', 'bias'):
        value = getattr(layer, name, None)
        if value is not None:
            put(layer, name, value[keep.to(value.device)])
    setattr(layer, 'out_channels' if isinstance(layer, nn.Conv2d) else 'out_features', int(keep.sum()))


def _keep_inputs(layer: Any, keep: Tensor) -> None:
    for name in ('weight', 'basis_weight'):
        value = getattr(layer, name, None)
        if value is not None:
            put(layer, name, value[:, keep.to(value.device)])
    basis = getattr(layer, 'basis', None)
    if isinstance(basis, GridBasis) and basis.rows > 1:
        for name in ('grid', 'inv_width'):
            rows = getattr(basis, name, None)
            if rows is not None and len(rows) == len(keep):
                store = basis._buffers if name in basis._buffers else basis._parameters
                kept = rows[keep.to(rows.device)]
                store[name] = nn.Parameter(kept) if store is basis._parameters else kept
        basis.refresh()
    setattr(layer, 'in_channels' if isinstance(layer, nn.Conv2d) else 'in_features', int(keep.sum()))


def _keep_norm(norm: Any, keep: Tensor) -> None:
    for name in ('weight', 'bias'):
        if getattr(norm, name) is not None:
            put(norm, name, getattr(norm, name)[keep])
    for name in ('running_mean', 'running_var'):
        norm._buffers[name] = getattr(norm, name)[keep]
    norm.num_features = int(keep.sum())
