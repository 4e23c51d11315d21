"""Stride, padding and dilation that are set after a layer was built count as in PyTorch's layers."""

import os
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rkan_mm.models import KANConv1d, KANConv2d, KANConv3d, KANConvTranspose2d, SharedKANConv2d

LAYERS = dict(
    spline_conv=(lambda: KANConv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1), 2),
    expand=(lambda: KANConv2d(3, 17, 3, padding=1), nn.Conv2d(3, 17, 3, padding=1), 2),
    transposed=(lambda: KANConvTranspose2d(3, 8, 3), nn.ConvTranspose2d(3, 8, 3), 2),
    shared=(lambda: SharedKANConv2d(3, padding=1), nn.Conv2d(3, 3, 3, padding=1, groups=3), 2),
    one=(lambda: KANConv1d(3, 8, 3), nn.Conv1d(3, 8, 3), 1), three=(lambda: KANConv3d(3, 8, 3), nn.Conv3d(3, 8, 3), 3))
SET = [('padding', 0), ('padding', 2), ('padding', [2]), ('padding', (2,)), ('padding', 'same'), ('padding', 'no such'),
       ('padding', (-1, -1)), ('padding', (1.0, 1.0)), ('padding', True), ('padding', np.int64(2)),
       ('stride', torch.tensor(2)), ('stride', 1), ('stride', 2), ('stride', [2]),
       ('stride', 0), ('dilation', 2), ('dilation', [2]), ('kernel_size', 5)]


def result(layer, x):
    try:
        return layer(x)
    except (TypeError, RuntimeError, AssertionError) as error:
        return error


@pytest.mark.parametrize('kind', LAYERS)
@pytest.mark.parametrize(('name', 'value'), SET, ids=str)
def test_as_in_pytorch(kind, name, value):
    """The size of its output or the kind of its error; values, first and second derivatives of the plain form."""
    make, ordinary, dims = LAYERS[kind]
    shape, found = (2, 3, *[7] * dims), []
    for kernels in '10':
        torch.manual_seed(0)
        layer, x = make(), torch.randn(shape).requires_grad_()
        with patch.dict(os.environ, RKAN_MM_KERNELS=kernels):
            setattr(layer, name, value)
            y = result(layer, x)
            if not isinstance(y, torch.Tensor):
                found.append(y)
                continue
            first, = torch.autograd.grad(y.square().sum(), x, create_graph=True)
            found.append([y, first, *torch.autograd.grad(first.square().sum(), [x, *layer.parameters()],
                                                         allow_unused=True)])
    ours, plain = found
    assert type(ours) is type(plain)
    with patch.object(ordinary, name, value):
        expected = result(ordinary, torch.zeros(shape))
    if not isinstance(ours, list):
        assert isinstance(ours, type(expected)) or isinstance(expected, AssertionError)
        return
    if not isinstance(expected, AssertionError):  # of transposed ones, which want tuples
        assert ours[0].shape == expected.shape
    for a, b in zip(ours, plain, strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_padding_of_a_layer_with_another_mode_stays_as_in_pytorch():
    layer, ordinary = KANConv2d(3, 8, 3, padding=1, padding_mode='reflect'), nn.Conv2d(3, 8, 3, padding=1,
                                                                                       padding_mode='reflect')
    layer.padding = ordinary.padding = 2
    x = torch.rand(1, 3, 7, 7)
    assert layer(x).shape == ordinary(x).shape


def test_padded_zeros_are_samples_of_a_grid():
    x = 3 + torch.rand(1, 3, 7, 7)
    for layer in (KANConv2d(3, 8, 3), SharedKANConv2d(3, basis=dict(type='BSpline', per_channel=False))):
        layer.padding = 1
        layer.update_grid(x)
        assert layer.basis.interior()[0, 0] < 0
