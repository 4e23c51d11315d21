"""Formulas equal their layers, over all bases and kinds of layers."""

import itertools
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rkan_mm
from rkan_mm.engine.run_error import PreflightError
from rkan_mm.inspection import LayerFunctions, formula
from rkan_mm.inspection.closed_forms import ACTIVATIONS
from rkan_mm.models import (
    KANConv1d,
    KANConv2d,
    KANConv3d,
    KANConvTranspose2d,
    KANLinear,
    SharedKANConv2d,
)
from rkan_mm.models.layers import GroupedKANConv2d
from rkan_mm.models.layers.basis import GaussianRBF
from rkan_mm.models.layers.shared_kan_conv import PATCHWISE
from rkan_mm.registry import BASES

pytest.importorskip('sympy')

OTHERS = [dict(type='Chebyshev', kind=2, degree=2), dict(type='BSpline', order=1), dict(type='BSpline', order=5),
          dict(type='Jacobi', alpha=1.5, beta=-0.25), dict(type='Wavelet', wavelet='morlet'),
          dict(type='Wavelet', wavelet='dog'), dict(type='Fourier', period=3.0), dict(type='Rational', degree=3),
          dict(type='GaussianRBF', per_channel=True, trainable_width=True), dict(type='Legendre', degree=7)]
BASIS = [dict(type=name) for name in sorted(BASES.module_dict)] + OTHERS
every_basis = pytest.mark.parametrize('basis', BASIS, ids=lambda basis: '-'.join(map(str, basis.values())))


def randomised(layer: nn.Module) -> nn.Module:
    """With all parameters and per-channel grids away from where they begin, in float64."""
    layer = layer.double()
    for name, parameter in layer.named_parameters():
        if 'grid' not in name and 'width' not in name:
            nn.init.normal_(parameter)
    basis = layer.basis
    if getattr(basis, 'rows', 1) > 1:
        basis.set_interior(basis.interior() * torch.linspace(0.7, 1.9, basis.rows)[:, None].double() + 0.1)
    return layer.eval()


def close(found, expected) -> None:
    expected = expected.detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max())


@every_basis
def test_shared_kernel(basis):
    act = None if basis['type'] == 'Chebyshev' else dict(type='SiLU')
    conv = randomised(SharedKANConv2d((1, 3), stride=2, padding=1, basis=basis, with_scaler=True, bias=True,
                                      base_act_cfg=act))
    x = 2 * torch.randn(2, 3, 7, 7, dtype=torch.float64)
    found = formula(conv)
    assert len(found) == 3
    patches = F.unfold(x.flatten(0, 1).unsqueeze(1), (1, 3), padding=1, stride=2).numpy()
    total = sum(found[0, p](patches[:, p]) for p in range(3)) + found.constant
    close(total.reshape(2, 3, 5, 4), conv(x))


@every_basis
def test_layers_with_a_function_for_each_weight(basis):
    layer = randomised(KANLinear(3, 2, basis=basis, with_scaler=True))
    layer.keep(torch.tensor([[True, False, True], [True, True, True]]))
    x = 2 * torch.randn(40, 3, dtype=torch.float64)
    found = formula(layer)
    total = np.stack([sum(found[o, i](x[:, i].numpy()) for i in range(3)) + found.constant[o] for o in range(2)], 1)
    close(total, layer(x))
    assert str(found[0, 1]) == 'phi[0, 1] = 0'


@pytest.mark.parametrize('cls', [KANConv1d, KANConv2d, KANConv3d])
@pytest.mark.parametrize('basis', [dict(type='BSpline', grid_size=2, order=1), dict(type='Laguerre')])
def test_convolutions_with_groups(cls, basis):
    spatial = cls.spatial
    conv = randomised(cls(4, 4, 2, groups=2, padding=1, basis=basis))
    x = torch.randn(1, 4, *[4] * spatial, dtype=torch.float64)
    found, functions = formula(conv), LayerFunctions(conv)
    padded, out = F.pad(x, (1,) * 2 * spatial).numpy()[0], conv(x)
    total = np.zeros(out.shape[1:]) + found.constant.reshape(-1, *[1] * spatial)
    for index in itertools.product(*map(range, functions.shape)):
        window = tuple(slice(tap, tap + 5) for tap in index[2:])
        total[functions.output(index)] += found[index](padded[(functions.row(index), *window)])
    close(total[None], out)


def test_transposed_convolution():
    conv = randomised(KANConvTranspose2d(4, 6, 2, stride=2, groups=2, basis=dict(type='Chebyshev')))
    x = torch.randn(1, 4, 3, 3, dtype=torch.float64)
    found, functions, out = formula(conv), LayerFunctions(conv), conv(x)
    total = np.zeros(out.shape[1:]) + found.constant.reshape(-1, 1, 1)
    for index, function in found:
        i, j = index[2:]
        total[functions.output(index), i::2, j::2] += function(x[0, functions.row(index)].numpy())
    close(total[None], out)


@pytest.mark.parametrize('normalization', PATCHWISE)
def test_normalization_over_patches(normalization):
    conv = randomised(SharedKANConv2d(3, padding=1, normalization=normalization,
                                      normalize_base=normalization == 'arctan'))
    x = torch.randn(1, 2, 5, 5, dtype=torch.float64)
    found = formula(conv)
    patches = F.unfold(x.flatten(0, 1).unsqueeze(1), 3, padding=1)
    u = PATCHWISE[normalization](patches, conv).detach().numpy()
    total = sum(found[divmod(p, 3)](patches[:, p].numpy(), u[:, p]) for p in range(9)) + found.constant
    close(total.reshape(1, 2, 5, 5), conv(x))
    assert 'over the taps of a patch' in str(found)


def test_norm_layer_before_the_functions():
    layer = randomised(KANLinear(4, 1, basis=dict(type='GaussianRBF'), normalization=dict(type='LN')))
    x = torch.randn(9, 4, dtype=torch.float64)
    found, u = formula(layer), layer.norm(x).detach().numpy()
    close(sum(found[0, i](x[:, i].numpy(), u[:, i]) for i in range(4))[:, None] + found.constant, layer(x))


@pytest.mark.parametrize('act', ACTIVATIONS, ids=lambda act: act.__name__)
def test_activations(act):
    layer = randomised(KANLinear(1, 1, bias=False, basis=dict(type='Chebyshev')))
    layer.base_act = act()
    x = torch.linspace(-8, 8, 101, dtype=torch.float64)[:, None]
    found = formula(layer)
    close(found[0, 0](x[:, 0].numpy())[:, None] + found.constant, layer(x))


def test_a_layer_of_several_kernels_says_so():
    with pytest.raises(TypeError, match=r'got GroupedKANConv2d; its parts are, e.g. \[0\]'):
        formula(GroupedKANConv2d(4, 2))


def test_what_a_subclass_computes_otherwise_has_no_closed_form():
    class Halves(GaussianRBF):
        def window(self, z):
            return super().window(z).clamp(max=0.5)

    class Named(GaussianRBF):
        pass

    class Flat(nn.ReLU):
        def forward(self, x):
            return x.clamp(0, 1)

    layer = KANLinear(1, 1, basis=dict(type='GaussianRBF'))
    layer.basis.__class__ = Named
    assert formula(layer)[0, 0]
    layer.basis.__class__ = Halves
    with pytest.raises(ValueError, match='no closed form is known of basis Halves'):
        formula(layer)
    layer.basis.__class__, layer.base_act = GaussianRBF, Flat()
    with pytest.raises(ValueError, match='no closed form is known of activation Flat'):
        formula(layer)


def test_forms_agree():
    conv = randomised(SharedKANConv2d(3))
    found = formula(conv)[0, 2]
    x = np.linspace(-3, 3, 7)
    space = {}
    exec(found.source('f'), space)
    np.testing.assert_allclose(space['f'](x), found(x), rtol=1e-14)
    import sympy
    symbol = found.symbols[0]
    np.testing.assert_allclose([float(found.sympy().subs(symbol, value)) for value in x], found(x), rtol=1e-12)
    powers = sympy.Poly(found.sympy(), sympy.tanh(symbol), symbol).monoms()
    assert set(powers) == {(3, 0), (2, 0), (1, 0), (0, 1)}  # no constant, no x tanh(x)
    assert r'\tanh' in found.latex(3)
    assert found.mathml().startswith('<math><')
    assert len(found.text(2)) < len(found.text())


@pytest.mark.parametrize('act', [*(act() for act in ACTIVATIONS), nn.GELU('tanh')], ids=str)
def test_source_takes_arrays_whatever_the_activation(act):
    layer = randomised(KANLinear(1, 1, basis=dict(type='Chebyshev')))
    layer.base_act = act
    found, x, space = formula(layer)[0, 0], np.linspace(-3, 3, 7), {}
    exec(found.source('f'), space)
    np.testing.assert_allclose(space['f'](x), found(x), rtol=1e-12)


def test_splines_are_polynomials_between_knots():
    layer = randomised(KANLinear(2, 1, basis=dict(type='BSpline', grid_size=4), with_base=False))
    import sympy
    expression = formula(layer, [(0, 1)])[0, 1].sympy()
    assert isinstance(expression, sympy.Piecewise)
    assert len(expression.args) == 1 + 4 + 2 * 3 + 1  # below, intervals, above
    assert formula(layer, [(0, 1)])[0, 1].mathml().count('<mtr>') == 12


def test_errors():
    with pytest.raises(TypeError, match='expected a KAN layer .* got Linear'):
        formula(nn.Linear(2, 2))
    with pytest.raises(ValueError, match='KANLinear has 10000 functions; choose some by indices'):
        formula(KANLinear(100, 100))
    assert len(formula(KANLinear(100, 100), [(3, 4)])) == 1
    layer = KANLinear(2, 2)
    layer.base_act = nn.Mish()
    with pytest.raises(ValueError, match='no closed form is known of activation Mish; known are Identity, SiLU'):
        formula(layer)
    with pytest.raises(TypeError, match=r'phi\[0, 0\]: takes x, got 2 arguments'):
        formula(KANLinear(1, 1))[0, 0](np.zeros(1), np.zeros(1))
    assert rkan_mm.formula is formula


def test_missing_packages_are_named(monkeypatch):
    for name in ('sympy', 'sympy.printing.numpy'):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PreflightError, match=r"needs the package sympy.*pip install 'rkan_mm\[inspect\]'"):
        formula(KANLinear(1, 1))
