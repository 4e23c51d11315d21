"""What the Triton kernels are compared with, in `definition`, is what the layers compute."""

from unittest.mock import patch

import pytest
import torch
from torch.testing import assert_close

from rkan_mm.models import KANConv2d, KANLinear
from rkan_mm.models.layers import kan_layer
from rkan_mm.models.ops import Functions
from rkan_mm.models.ops.definition import conv_by_definition, expand_by_definition

BASES = [dict(type='BSpline', order=1), dict(type='BSpline', order=2, per_channel=False), dict(type='BSpline'),
         dict(type='GaussianRBF', per_channel=True), dict(type='RSWAF'), dict(type='Chebyshev', degree=4),
         dict(type='Laguerre')]
each_basis = pytest.mark.parametrize('basis', BASES, ids=lambda basis: '-'.join(map(str, basis.values())))
OPTIONS = [dict(), dict(with_base=False), dict(base_act_cfg=None, normalization='tanh'),
           dict(with_scaler=True, normalization='none')]


def prepare(layer):
    """Another grid for each channel, another factor for each function, and some of them pruned."""
    if hasattr(layer.basis, 'grid'):
        layer.basis.grid.data = layer.basis.grid * (1 + 0.2 * torch.rand(len(layer.basis.grid), 1))
    if layer.scaler is not None:
        torch.nn.init.normal_(layer.scaler)
    layer.mask = (torch.rand(layer.basis_weight[:, :, 0].shape) > 0.3).double()
    return layer.double()


def by_definition(x, parameters, functions, layer, tf32):
    base, squash, constant, _, stride, padding = layer
    if functions.kind.startswith('spline'):  # on a GPU the kernels take the knots as they are
        functions = Functions(functions.kind, functions.count, knots(functions))
        assert functions.knots
    return conv_by_definition(x, *parameters, functions, base, squash, constant, stride, padding)


def knots(functions):
    order = int(functions.kind[-1])
    step = 1 / functions.inverse[:, None]
    return functions.points[:, :1] + step * (torch.arange(functions.count + order + 1) - (order + 1) / 2)


@each_basis
@pytest.mark.parametrize('options', OPTIONS, ids=str)
@pytest.mark.parametrize(('kernel', 'stride', 'padding'), [(3, 1, 1), (3, 2, (1, 0)), (1, 2, 0)])
def test_convolution(basis, options, kernel, stride, padding):
    layer = prepare(KANConv2d(3, 4, kernel, stride, padding, basis=basis, **options))
    x = torch.randn(2, 3, 7, 6).double()
    with patch.object(kan_layer, 'fused_conv2d', by_definition):
        assert_close(layer._fused(x), layer(x), rtol=1e-6, atol=1e-6)


@each_basis
@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_linear(basis, options):
    layer, x = prepare(KANLinear(5, 4, basis=basis, **options)), torch.randn(6, 5).double()
    with patch.object(kan_layer, 'fused_conv2d', by_definition):
        assert_close(layer.fused(x[..., None, None], True)[..., 0, 0], layer(x), rtol=1e-6, atol=1e-6)


@each_basis
@pytest.mark.parametrize('centre', [False, True])
def test_planes(basis, centre):
    layer, x = prepare(KANConv2d(3, 4, 3, basis=basis)), torch.randn(2, 3, 7).double()
    functions, squash = layer.basis.functions(), layer.normalization == 'tanh'
    found = expand_by_definition(x, functions, 'silu', squash, centre)
    assert_close(found, layer._planes(x, None, 1, centre), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('changes', [dict(dilation=2), dict(groups=2), dict(padding_mode='reflect'),
                                     dict(padding='same'), dict(normalization=dict(type='GN', num_groups=1))], ids=str)
def test_what_the_fused_form_does_not_have(changes):
    layer = KANConv2d(4, 4, 3, **{'padding': 1, **changes})
    with patch.object(kan_layer, 'fused_conv2d', lambda *args: pytest.fail('it was taken')):
        assert layer._fused(torch.randn(1, 4, 7, 7)) is None
