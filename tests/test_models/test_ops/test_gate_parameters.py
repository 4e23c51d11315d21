"""Parameters that do not fit a layer get what the plain form gives, not what a kernel would read."""

import os
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rkan_mm.models import KANConv2d, KANLinear, SharedKANConv2d

LAYERS = dict(spline_conv=(lambda: KANConv2d(3, 8, 3), (2, 3, 9, 9)),
              expand=(lambda: KANConv2d(3, 17, 3), (2, 3, 9, 9)),
              linear=(lambda: KANLinear(3, 8), (5, 3)), shared=(lambda: SharedKANConv2d(3, bias=True), (2, 3, 9, 9)))
SHAPES = dict(  # the parameter, the dimension, and how much more or less it has there
    fewer_functions=('basis_weight', 2, -1), more_functions=('basis_weight', 2, 1), one_bias=('bias', 0, -7),
    fewer_knots=('basis.grid', 1, -1), more_knots=('basis.grid', 1, 1), fewer_grids=('basis.grid', 0, -1))
OTHERS = {f'{name}-{change}': (name, change) for name in ('basis_weight', 'weight', 'bias', 'basis.grid')
          for change in (torch.float64, torch.float16, 'meta')}


def outcomes(kind, name, change):
    """Of the layer with its kernels, and in plain PyTorch."""
    for kernels in '10':
        torch.manual_seed(0)
        layer, x = LAYERS[kind][0](), torch.randn(LAYERS[kind][1])
        owner, _, attribute = f'.{name}'.rpartition('.')
        owner = layer.get_submodule(owner.lstrip('.'))
        old = getattr(owner, attribute)
        new = change(old.detach())
        setattr(owner, attribute, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
        with patch.dict(os.environ, RKAN_MM_KERNELS=kernels):
            try:
                yield layer(x)
            except (RuntimeError, TypeError, IndexError) as error:
                yield error


def check(kind, name, change):
    ours, plain = outcomes(kind, name, change)
    if isinstance(plain, Exception):
        assert type(ours) is type(plain)
        assert str(ours) == str(plain)
    else:
        assert_close(ours, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('kind', [kind for kind in LAYERS if kind != 'shared'])
@pytest.mark.parametrize('case', SHAPES)
def test_in_another_shape(kind, case):
    name, dim, more = SHAPES[case]

    def change(old):
        size = old.shape[dim] + more
        return torch.cat([old, old.narrow(dim, 0, 1)], dim) if more > 0 else old.narrow(dim, 0, max(1, size)).clone()

    check(kind, name, change)


@pytest.mark.parametrize('kind', LAYERS)
@pytest.mark.parametrize('case', OTHERS)
def test_in_another_dtype_or_on_another_device(kind, case):
    name, change = OTHERS[case]
    if kind == 'shared' and name.startswith('basis'):
        pytest.skip('it has no such tensor')
    check(kind, name, lambda old: old.to(change))
