import math
import re

import numpy as np
import pytest
import scipy.interpolate
import scipy.special
import torch
from torch.testing import assert_close

from rkan_mm.models.layers import basis as module
from rkan_mm.models.layers.basis import BSpline, Chebyshev, GaussianRBF, GridBasis, Polynomial, Window
from rkan_mm.registry import BASES, build

DEGREE = 5


def polynomials(function, *args):
    """An oracle from scipy's coefficients of degree 0 to `DEGREE`."""
    return lambda x: [np.polyval(np.asarray(function(n, *args)), x) for n in range(DEGREE + 1)]


def gram(n, m=16):
    """Monic, orthogonal to all lower degrees on the middles of m intervals: by least squares on those points."""
    x = (2 * np.arange(m) + 1) / m - 1
    lower = np.linalg.lstsq(np.vander(x, n), x**n, rcond=None)[0] if n else []
    return [1, *(-np.asarray(lower))]


def bernstein(x):
    s = (x + 1) / 2
    return [math.comb(DEGREE, j) * s**j * (1 - s)**(DEGREE - j) for j in range(DEGREE + 1)]


def around(window, grid, width):
    return lambda x: [window((x - point) / width) for point in grid]


def rational(x):
    return [x**n / (1 + x**4) for n in range(6)]


POINTS = np.linspace(-2, 2, 8)
# name: (config, function of a complex array; complex, so that f(x + ih) gives the derivative to the last digit)
ORACLES = {
    'chebyshev': (dict(type='Chebyshev', degree=DEGREE), polynomials(scipy.special.chebyt)),
    'chebyshev second kind': (dict(type='Chebyshev', degree=DEGREE, kind=2), polynomials(scipy.special.chebyu)),
    'legendre': (dict(type='Legendre', degree=DEGREE), polynomials(scipy.special.legendre)),
    'hermite': (dict(type='Hermite', degree=DEGREE), polynomials(scipy.special.hermite)),
    'jacobi': (dict(type='Jacobi', degree=DEGREE), polynomials(scipy.special.jacobi, 0.5, 0.5)),
    'jacobi(1.5,-0.3)': (dict(type='Jacobi', degree=DEGREE, alpha=1.5, beta=-0.3),
                         polynomials(scipy.special.jacobi, 1.5, -0.3)),
    'jacobi(-0.5,-0.5)': (dict(type='Jacobi', degree=DEGREE, alpha=-0.5, beta=-0.5),
                          polynomials(scipy.special.jacobi, -0.5, -0.5)),
    'gegenbauer': (dict(type='Gegenbauer', degree=DEGREE, alpha=0.8), polynomials(scipy.special.gegenbauer, 0.8)),
    'laguerre': (dict(type='Laguerre', degree=DEGREE), polynomials(scipy.special.laguerre)),
    'laguerre(0.7)': (dict(type='Laguerre', degree=DEGREE, alpha=0.7), polynomials(scipy.special.genlaguerre, 0.7)),
    'gram': (dict(type='Gram', degree=DEGREE), polynomials(gram)),
    'bernstein': (dict(type='Bernstein', degree=DEGREE), bernstein),
    'gaussian': (dict(type='GaussianRBF'), around(lambda z: np.exp(-z**2), POINTS, 4 / 7)),
    'rswaf': (dict(type='RSWAF', width=0.9), around(lambda z: 1 / np.cosh(z)**2, POINTS, 0.9)),
    'relu-kan': (dict(type='ReLUKAN', grid_size=4, order=2, grid_range=(0, 1)),  # s = (i - k) / G, e = s + (k + 1) / G
                 lambda x: [np.where((np.real(x) > s) & (np.real(x) < s + 0.75), (x - s)**2 * (s + 0.75 - x)**2, 0)
                            * 16 / 0.75**4 for s in (np.arange(6) - 2) / 4]),
    'mexican hat': (dict(type='Wavelet'),
                    around(lambda z: 2 / np.sqrt(3 * np.sqrt(np.pi)) * (1 - z**2) * np.exp(-z**2 / 2), POINTS, 4 / 7)),
    'morlet': (dict(type='Wavelet', wavelet='morlet'),
               around(lambda z: np.cos(5 * z) * np.exp(-z**2 / 2), POINTS, 4 / 7)),
    'dog': (dict(type='Wavelet', wavelet='dog'), around(lambda z: -z * np.exp(-z**2 / 2), POINTS, 4 / 7)),
    'fourier': (dict(type='Fourier', num_frequencies=3, period=3.0),
                lambda x: [f(2 * np.pi * n * x / 3) for f in (np.cos, np.sin) for n in (1, 2, 3)]),
    'rational': (dict(type='Rational'), rational),
}
oracles = pytest.mark.parametrize('name', ORACLES)
every = pytest.mark.parametrize('name', sorted(BASES.module_dict))


def make(cfg: dict) -> torch.nn.Module:
    torch.set_default_dtype(torch.float64)  # the `_isolated` fixture resets it
    return build(BASES, cfg, 'test')


def test_every_basis_is_checked():
    checked = {cfg['type'] for cfg, _ in ORACLES.values()} | {'BSpline'}
    assert checked == set(BASES.module_dict)


@oracles
def test_values_and_derivatives(name):
    cfg, oracle = ORACLES[name]
    basis = make(cfg)
    points = np.linspace(-1.7, 1.7, 62)
    x = torch.from_numpy(points).requires_grad_()
    values = basis(x)
    assert values.shape == (62, basis.num_functions)
    assert_close(values, torch.from_numpy(np.stack(oracle(points), -1)), rtol=1e-11, atol=1e-11)
    expected = np.stack([value.imag / 1e-30 for value in oracle(points + 1e-30j)], -1)
    derivatives = torch.stack([torch.autograd.grad(column.sum(), x, retain_graph=True)[0]
                               for column in values.unbind(-1)], -1)
    assert_close(derivatives, torch.from_numpy(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('order', [1, 2, 3, 4, 6])
@pytest.mark.parametrize('uniform', [True, False])
def test_bspline_equals_scipy(order, uniform):
    basis = make(dict(type='BSpline', grid_size=5, order=order, grid_range=(-1, 2)))
    if not uniform:
        basis.set_interior(torch.tensor([[-1.0, -0.9, 0.1, 0.2, 1.5, 2.0]]))
        assert not basis.uniform
    knots = basis.grid[0].numpy()
    points = np.linspace(knots[0] + 1e-9, knots[-1] - 1e-9, 71)
    x = torch.from_numpy(points).requires_grad_()
    values = basis(x)
    assert values.shape == (71, 5 + order)
    for i, column in enumerate(values.unbind(-1)):
        oracle = scipy.interpolate.BSpline.basis_element(knots[i:i + order + 2], extrapolate=False)
        assert_close(column, torch.from_numpy(np.nan_to_num(oracle(points))), rtol=1e-11, atol=1e-11)
        if order > 1:  # the derivative of linear splines jumps
            grad = torch.autograd.grad(column.sum(), x, retain_graph=True)[0]
            assert_close(grad, torch.from_numpy(np.nan_to_num(oracle(points, 1))), rtol=1e-9, atol=1e-9)
    inside = basis(torch.linspace(-1, 2, 50))
    assert_close(inside.sum(-1), torch.ones(50))
    assert_close(basis(torch.tensor([knots[0] - 1e-6, knots[-1] + 1e-6, 1e6])), torch.zeros(3, 5 + order))


@pytest.mark.parametrize('order', [1, 2, 3, 4, 5])
def test_closed_form_of_uniform_splines(order):
    basis = BSpline(grid_size=20, order=order)
    x = torch.linspace(-1.5, 1.5, 400)
    fast, x64 = basis(x), x.double().requires_grad_()
    exact = basis.double()(x64)
    assert_close(fast.double(), exact, rtol=0, atol=2e-6)
    x32 = x.requires_grad_()
    (grad,) = torch.autograd.grad((basis.float()(x32) * torch.arange(20 + order)).sum(), x32)
    (grad64,) = torch.autograd.grad((exact * torch.arange(20 + order)).sum(), x64)
    if order > 1:
        assert_close(grad.double(), grad64, rtol=0, atol=2e-4 * grad64.abs().max().item())


@every
def test_gradcheck_of_input_and_every_parameter(name):
    options = dict(trainable_grid=True, trainable_width=True) if issubclass(BASES.get(name), Window) else {}
    basis = make(dict(type=name, **options))
    for parameter in basis.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    parameters = dict(basis.named_parameters())
    x = torch.randn(4, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, *values: torch.func.functional_call(basis, dict(zip(parameters, values, strict=True)), x),
        (x, *parameters.values()))


def test_width_changes_rswaf():
    """In the published FasterKAN it does not."""
    x = torch.linspace(-1, 1, 9)
    assert not make(dict(type='RSWAF', width=0.5))(x).allclose(make(dict(type='RSWAF', width=2.0))(x))


@every
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_finite_far_outside(name, dtype):
    basis = build(BASES, dict(type=name), 'test').to(dtype)
    x = torch.tensor([-1e5, -300.0, -40.0, 0.0, 40.0, 300.0, 1e5], dtype=dtype, requires_grad=True)
    values = basis(x)
    values.sum().backward()
    assert values.isfinite().all()
    assert x.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in basis.parameters())


@every
@pytest.mark.parametrize(('shape', 'dim', 'expected'), [
    ((2, 3, 4, 5), 1, (2, 3, -1, 4, 5)), ((2, 3, 4, 5), -3, (2, 3, -1, 4, 5)), ((2, 3), -1, (2, 3, -1)),
    ((2, 3), 1, (2, 3, -1)), ((3,), 0, (3, -1)), ((2, 0, 3), 2, (2, 0, 3, -1)),
])
def test_place_of_the_functions(name, shape, dim, expected):
    basis = build(BASES, dict(type=name), 'test')
    basis.spread(3)
    x = torch.randn(shape)
    values = basis(x, dim)
    assert values.shape == tuple(basis.num_functions if size == -1 else size for size in expected)
    alone = build(BASES, dict(type=name), 'test')  # without channels
    assert_close(values.movedim(dim % x.dim() + 1, -1), alone(x))


@every
def test_at_zero(name):
    basis = build(BASES, dict(type=name), 'test')
    x = torch.zeros(1)
    assert_close(basis.at_zero(x), basis(x))
    basis.spread(4)
    rows = 4 if getattr(basis, 'per_channel', False) else 1
    assert basis.at_zero(x).shape == (rows, basis.num_functions)


@pytest.mark.parametrize('name', [name for name, (cfg, _) in ORACLES.items()
                                  if issubclass(BASES.get(cfg['type']), Polynomial)])
def test_monomials_give_the_same_function(name):
    basis = make(ORACLES[name][0])
    x, weight = torch.linspace(-1.2, 1.2, 31), torch.randn(DEGREE + 1, 2)
    powers = torch.stack([x**n for n in range(DEGREE + 1)], -1)
    assert_close(powers @ basis.to_monomials(weight), basis(x) @ weight, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize('grid_size', [5, 10, 20])
def test_spline_initialisation_is_small_noise(grid_size):
    """std(c) is about 0.96 noise / (2 G), and the splines go through the noise at the points of the grid."""
    basis = make(dict(type='BSpline', grid_size=grid_size, noise_scale=0.1))
    weight = torch.empty(50, 40, grid_size + 3)
    basis.init_weight(weight, 40)
    assert abs(weight.std() / (0.96 * 0.1 / (2 * grid_size)) - 1) < 0.15
    at_points = torch.einsum('oif,pf->oip', weight, basis(torch.linspace(-1, 1, grid_size + 1)))
    assert at_points.abs().max() <= 0.05 / grid_size + 1e-12


@pytest.mark.parametrize(('cfg', 'message'), [
    (dict(type='Chebyshev', degree=0), 'Chebyshev: degree must be an integer of at least 1, got 0'),
    (dict(type='Chebyshev', degree=2.0), 'Chebyshev: degree must be an integer of at least 1, got 2.0'),
    (dict(type='Chebyshev', kind=3), 'Chebyshev: kind must be 1 or 2, got 3'),
    (dict(type='Jacobi', alpha=-1), 'alpha=-1, beta=0.5'),
    (dict(type='Gegenbauer', alpha=0), 'Gegenbauer: alpha must be above -0.5 and not 0, got 0'),
    (dict(type='Laguerre', alpha=-1), 'Laguerre: alpha must be above -1, got -1'),
    (dict(type='Gram', degree=4, points=4), 'Gram: polynomials up to degree 4 need at least 5 points, got 4'),
    (dict(type='BSpline', grid_size=0), 'BSpline: grid_size must be an integer of at least 1, got 0'),
    (dict(type='BSpline', order=0), 'BSpline: order must be an integer of at least 1, got 0'),
    (dict(type='BSpline', grid_range=(1, -1)), 'BSpline: grid_range must be (low, high) with low < high, got (1, -1)'),
    (dict(type='GaussianRBF', grid_size=1), 'GaussianRBF: grid_size must be an integer of at least 2, got 1'),
    (dict(type='RSWAF', width=0), 'RSWAF: width must be above 0, got 0'),
    (dict(type='Wavelet', wavelet='haar'), "Wavelet: no wavelet 'haar'; there are mexican_hat, morlet, dog"),
    (dict(type='Fourier', num_frequencies=0), 'Fourier: num_frequencies must be an integer of at least 1, got 0'),
    (dict(type='Rational', denominator=0), 'Rational: degree and denominator must be at least 1, got 5 and 0'),
], ids=str)
def test_wrong_arguments(cfg, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build(BASES, cfg, 'x')


def test_unknown_basis_lists_what_there_is():
    with pytest.raises(ValueError, match=r"SharedKANConv2d: no basis 'Chebychev'; there are BSpline, Bernstein, "
                                         r"Chebyshev, .*Did you mean 'Chebyshev'\?"):
        build(BASES, dict(type='Chebychev'), 'SharedKANConv2d')


def test_unknown_argument_names_the_basis():
    with pytest.raises(TypeError, match=r"basis Legendre with \{'order': 3\}.*'order'"):
        build(BASES, dict(type='Legendre', order=3), 'x')


@pytest.mark.parametrize('cfg', ['Chebyshev', dict(degree=3)])
def test_a_basis_is_a_dict_with_a_type(cfg):
    with pytest.raises(TypeError, match="a basis must be a dict with a 'type'"):
        build(BASES, cfg, 'x')


@pytest.mark.parametrize('name', sorted(set(module.__all__) & set(BASES.module_dict)))
def test_repr_can_be_read(name):
    text = repr(build(BASES, dict(type=name), 'x'))
    assert text.startswith(f'{name}(')
    assert text != f'{name}()'


def test_grids_of_each_channel():
    basis = BSpline(per_channel=True)
    basis.spread(3)
    assert isinstance(basis, GridBasis)
    assert basis.rows == 3
    assert GaussianRBF().rows == 1
    assert Chebyshev(degree=2).num_functions == 3
