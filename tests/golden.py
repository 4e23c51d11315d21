"""Recorded outputs of the RKAN reference: loading, and the rule that rebuilds weights and inputs from names."""

from __future__ import annotations

import gzip
import json
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import torch

DATA = Path(__file__).parent / 'data'


@cache
def models() -> dict:
    return json.loads(gzip.decompress((DATA / 'residualkan_models.json.gz').read_bytes()))


@cache
def kan_convs() -> dict:
    return json.loads((DATA / 'residualkan_kan_conv.json').read_text())


@cache
def _arrays(name: str):
    return np.load(DATA / name)


def model_array(case: str, name: str) -> torch.Tensor:
    return torch.from_numpy(_arrays('residualkan_models.npz')[f'{case}/{name}'])


def kan_conv_arrays(case: str) -> dict[str, torch.Tensor]:
    arrays = _arrays('residualkan_kan_conv.npz')
    found = {name[len(case) + 1:]: torch.from_numpy(arrays[name]) for name in arrays.files
             if name.startswith(f'{case}/')}
    return dict(found, x=torch.from_numpy(arrays['x']))


def state_dict(case: str) -> dict[str, torch.Tensor]:
    """The reference's state_dict of a case: each entry is drawn from a seed that its name gives."""
    entries = models()['state_dicts'][models()['cases'][case]['state_dict']]
    shapes = {name: tuple(shape) for name, shape, _ in entries}
    return {name: _grid(name, shapes) if name.endswith('.grid') else _fill(name, shape)
            for name, shape in shapes.items()}


def _grid(name: str, shapes: dict[str, tuple[int, ...]]) -> torch.Tensor:
    """As the reference's constructors build it on [-1, 1]: centres of Gaussians (G,), or knots (taps, G + 2k + 1)."""
    if len(shapes[name]) == 1:
        return torch.linspace(-1, 1, *shapes[name])
    taps, knots = shapes[name]
    functions = shapes[name.replace('grid', 'spline_weight')][-1]
    order = knots - 1 - functions
    size = functions - order
    return (torch.arange(-order, size + order + 1) * (2 / size) - 1).expand(taps, -1)


def _fill(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    last = name.rpartition('.')[2]
    if last == 'num_batches_tracked':
        return torch.zeros((), dtype=torch.int64)
    n = np.random.RandomState(zlib.crc32(name.encode()) & 0xffffffff).standard_normal(shape)
    if last == 'running_var':
        n = 1 + 0.1 * np.abs(n)
    elif last in ('scaler', 'spline_scaler'):
        n = 1 + 0.1 * n
    elif last in ('weight', 'base_weight') and not name.endswith('spline_linear.weight'):
        n = 1 + 0.1 * n if n.size == shape[0] else n * np.sqrt(1.3 / np.prod(shape[1:]))
    else:  # running_mean, polynomial_weight, spline_weight, bias
        n = 0.1 * n
    return torch.from_numpy(n.astype(np.float32))


def image(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(0).standard_normal(shape).astype(np.float32))


def logit_gradient() -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(2).standard_normal((2, 10)))
