"""Inputs without strides, and layers without inputs: as in PyTorch's layers."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils import mkldnn

from rkan_mm.models import GroupedKANConv2d, KANConv2d, KANConvTranspose2d, KANLinear, SharedKANConv2d

CONVOLUTIONS = dict(
    spline_conv=(KANConv2d(3, 8, 3), nn.Conv2d(3, 8, 3)), expand=(KANConv2d(3, 17, 3), nn.Conv2d(3, 17, 3)),
    transposed=(KANConvTranspose2d(3, 4, 3), nn.ConvTranspose2d(3, 4, 3)),
    shared=(SharedKANConv2d(3), nn.Conv2d(3, 3, 3, groups=3)),
    grouped=(GroupedKANConv2d(3, 3, kernel_size=3), nn.Conv2d(3, 3, 3, groups=3)))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason='this torch has no MKL-DNN')
@pytest.mark.parametrize('kind', CONVOLUTIONS)
def test_mkldnn(kind):
    layer, ordinary = CONVOLUTIONS[kind]
    x = torch.rand(2, 3, 9, 9)
    with torch.no_grad():
        y = layer(x.to_mkldnn())
        assert y.layout == ordinary(x.to_mkldnn()).layout
        assert_close(y.to_dense(), layer(x))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason='this torch has no MKL-DNN')
@pytest.mark.parametrize('options', [{}, dict(with_base=False), dict(normalization=dict(type='BN'))], ids=str)
def test_a_model_by_torchs_to_mkldnn(options):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), KANConv2d(4, 4, 3, **options), nn.Sequential(KANConvTranspose2d(4, 4, 2)),
                          nn.BatchNorm2d(4), nn.Flatten(), KANLinear(144, 3)).eval()
    x = torch.rand(2, 3, 9, 9)
    with torch.no_grad():
        expected = model(x)
        found = mkldnn.to_mkldnn(copy.deepcopy(model))
        assert [type(layer).__name__ for layer in found][:2] == ['MkldnnConv2d', 'KANConv2d']
        assert_close(found(x.to_mkldnn()).to_dense(), expected)
    layer = KANLinear(4, 3)
    assert mkldnn.to_mkldnn(layer) is layer


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason='this torch has no MKL-DNN')
def test_to_mkldnn_that_is_imported_after_the_model():
    program = """
import torch, warnings
from rkan_mm.models import KANConv2d
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter('always')
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), KANConv2d(4, 4, 3)).eval()
assert not [each for each in told if 'torch.jit' in str(each.message)]
from torch.utils import mkldnn
assert type(mkldnn.to_mkldnn(model)[1]) is KANConv2d
"""
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.filterwarnings('ignore:Sparse')
@pytest.mark.parametrize('to', ['to_sparse', 'to_sparse_csr', 'to_sparse_csc', 'to_mkldnn'])
def test_layouts_of_linear_layers(to):
    layer, ordinary, x = KANLinear(9, 4), nn.Linear(9, 4), torch.rand(6, 9) * (torch.rand(6, 9) > 0.5)
    with torch.no_grad():
        found = []
        for each in (ordinary, layer):
            try:
                found.append(each(getattr(x, to)()))
            except (RuntimeError, NotImplementedError) as error:
                found.append(error)
        expected, y = found
        assert type(y) is type(expected)
        if not isinstance(expected, Exception):
            assert y.layout == expected.layout
            assert_close(y.to_dense() if y.layout is not torch.strided else y, layer(x))


@pytest.mark.filterwarnings('ignore:The PyTorch API of nested tensors')
@pytest.mark.parametrize('kind', CONVOLUTIONS)
@pytest.mark.parametrize('make', [
    lambda x: torch.nested.nested_tensor([x[0], x[1]]), lambda x: x[0, 0].to_sparse_csr(), lambda x: x.numpy(),
    lambda x: None, lambda x: (x,), lambda x: x[0, 0], lambda x: x[None], lambda x: x > 0.5],
    ids=['nested', 'csr', 'numpy', 'none', 'tuple', '2d', '5d', 'bool'])
@pytest.mark.filterwarnings('ignore:Sparse')
def test_what_a_convolution_refuses(kind, make):
    layer, ordinary = CONVOLUTIONS[kind]
    x = make(torch.rand(2, 3, 9, 9))
    with pytest.raises((RuntimeError, TypeError)) as error:
        ordinary(x)
    with pytest.raises(error.type if kind in ('spline_conv', 'expand', 'transposed') else (RuntimeError, TypeError)):
        layer(x)


@pytest.mark.filterwarnings('ignore:Initializing zero-element tensors')
@pytest.mark.parametrize('basis', ['BSpline', 'GaussianRBF', 'Chebyshev', 'Fourier'])
@pytest.mark.parametrize(('inputs', 'outputs'), [(0, 3), (3, 0), (0, 0)])
def test_layers_of_nothing(basis, inputs, outputs):
    for ours, ordinary, shape in ((KANLinear, nn.Linear, (2, inputs)), (KANConv2d, nn.Conv2d, (2, inputs, 5, 5))):
        args = (inputs, outputs) if ours is KANLinear else (inputs, outputs, 3)
        layer, x = ours(*args, basis=dict(type=basis)), torch.rand(shape)
        try:
            expected = ordinary(*args)(x)
        except RuntimeError as error:  # convolutions without outputs
            with pytest.raises(RuntimeError, match=str(error)[:60]):
                layer(x)
            continue
        y = layer(x)
        assert y.shape == expected.shape
        if y.numel():
            assert_close(y, (layer.bias if ours is KANLinear else layer.bias[:, None, None]).expand_as(y))
