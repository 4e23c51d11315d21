import re

import numpy as np
import pytest
import scipy.special
import torch
from torch.testing import assert_close

from rkan_mm.models import Chebyshev, Hermite, Jacobi, Legendre
from rkan_mm.registry import BASES, build

FAMILIES = {
    'chebyshev': (Chebyshev, {}, scipy.special.eval_chebyt),
    'legendre': (Legendre, {}, scipy.special.eval_legendre),
    'hermite': (Hermite, {}, scipy.special.eval_hermite),
    'jacobi': (Jacobi, {}, lambda n, x: scipy.special.eval_jacobi(n, 0.5, 0.5, x)),
    'jacobi(1.5,-0.3)': (Jacobi, dict(alpha=1.5, beta=-0.3), lambda n, x: scipy.special.eval_jacobi(n, 1.5, -0.3, x)),
    'jacobi(-0.5,-0.5)': (Jacobi, dict(alpha=-0.5, beta=-0.5),
                          lambda n, x: scipy.special.eval_jacobi(n, -0.5, -0.5, x)),
}
families = pytest.mark.parametrize('name', FAMILIES)


@families
@pytest.mark.parametrize('degree', [1, 2, 3, 7])
def test_values_equal_scipy(name, degree):
    cls, args, oracle = FAMILIES[name]
    x = np.linspace(-1.5, 1.5, 61).reshape(1, 61)
    expected = np.stack([oracle(n, x) for n in range(degree + 1)], -1)
    assert_close(cls(degree, **args)(torch.from_numpy(x)), torch.from_numpy(expected), rtol=1e-12, atol=1e-12)


@families
def test_monomials_give_the_same_function(name):
    cls, args, _ = FAMILIES[name]
    basis = cls(5, **args)
    x, weight = torch.linspace(-1.2, 1.2, 31, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    powers = torch.stack([x**n for n in range(6)], -1)
    assert_close(powers @ basis.to_monomials(weight), basis(x) @ weight, rtol=1e-12, atol=1e-12)


@families
def test_gradcheck(name):
    cls, args, _ = FAMILIES[name]
    x = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(cls(4, **args), x)


@pytest.mark.parametrize('degree', [0, -1, 2.0])
def test_degree_below_one_is_refused(degree):
    with pytest.raises(ValueError, match=rf'Chebyshev: degree must be an integer of at least 1, got {degree}'):
        Chebyshev(degree=degree)


def test_jacobi_exponents():
    with pytest.raises(ValueError, match=re.escape('alpha=-1, beta=0.5')):
        Jacobi(alpha=-1)


def test_unknown_basis_lists_what_there_is():
    with pytest.raises(ValueError, match=r"SharedKANConv2d: no basis 'Chebychev'; there are Chebyshev, Hermite, "
                                         r"Jacobi, Legendre.*Did you mean 'Chebyshev'\?"):
        build(BASES, dict(type='Chebychev'), 'SharedKANConv2d')


def test_unknown_argument_names_the_basis():
    with pytest.raises(TypeError, match=r"basis Legendre with \{'order': 3\}.*'order'"):
        build(BASES, dict(type='Legendre', order=3), 'x')


@pytest.mark.parametrize('cfg', ['Chebyshev', dict(degree=3)])
def test_a_basis_is_a_dict_with_a_type(cfg):
    with pytest.raises(TypeError, match="a basis must be a dict with a 'type'"):
        build(BASES, cfg, 'x')
