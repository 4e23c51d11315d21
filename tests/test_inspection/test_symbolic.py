"""A planted truth: layers trained where the answer is known show it, the fit names it, putting it in costs nothing."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rkan_mm.inspection import Recorder
from rkan_mm.inspection.symbolic import Fit, best, fit_forms, fit_layer, substituted
from rkan_mm.models import KANConv2d, KANLinear, SharedKANConv2d
from rkan_mm.models.layers.locked import FORMS, lock

pytest.importorskip('scipy')

TRUTHS = {
    'x': lambda x: 2 * x - 1,
    'x^2': lambda x: 0.5 * (x - 0.3)**2,
    'x^3': lambda x: (x + 0.2)**3,
    '|x|': lambda x: -(x - 0.5).abs(),
    'sin': lambda x: 3 * torch.sin(2 * x + 1) + 2,
    'exp': lambda x: torch.exp(-1.5 * x),
    'tanh': lambda x: torch.tanh(3 * x - 1),
    'gaussian': lambda x: torch.exp(-(2 * x - 1)**2),
    'constant': lambda x: 0 * x + 4,
}


@pytest.mark.parametrize('name', TRUTHS)
def test_forms_are_named(name):
    x = 1.2 * torch.randn(3000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = TRUTHS[name](x)
    found = best(fit_forms(x, y))
    assert found.form == name
    assert found.r2 > 0.9999
    assert_close(found(x), y, rtol=1e-2, atol=1e-2 * y.std().item() + 1e-9)


def test_r2_is_of_all_inputs():
    """It was of the 2,000 that are fitted, and of inputs with long tails too good by 0.06."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, generator=generator).double() * 3 * torch.rand(20_000, generator=generator)**3
    y = torch.sin(3 * x) + x**2
    for fit in fit_forms(torch.cat([x, torch.tensor([math.inf])]), torch.cat([y, torch.tensor([math.nan])])):
        assert fit.r2 == pytest.approx(1 - ((fit(x) - y).square().mean() / y.var(correction=0)).item(), abs=1e-9)


def test_all_forms_are_tried_from_simple_to_complex():
    fits = fit_forms(torch.linspace(-1, 1, 50), torch.linspace(-1, 1, 50)**2)
    assert {fit.form for fit in fits} == set(FORMS)
    assert [fit.complexity for fit in fits] == sorted(fit.complexity for fit in fits)
    with pytest.raises(ValueError, match='at least four inputs are needed, got 2'):
        fit_forms(torch.ones(2), torch.ones(2))


def trained(layer: nn.Module, target, inputs) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Fit a layer to a target by LBFGS; part of the target's variance that it explains on other inputs."""
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn='strong_wolfe')
    x = inputs(0)

    def step():
        optimizer.zero_grad()
        loss = (layer(x) - target(x)).square().mean()
        loss.backward()
        return loss

    optimizer.step(step)
    x = inputs(1)
    return r2(layer, x, target(x)), x, target(x)


def r2(layer: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    with torch.no_grad():
        return (1 - (layer(x) - y).square().mean() / y.var()).item()


def normal(*shape):
    return lambda seed: torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def shared_target(x):
    x = nn.functional.pad(x, (1, 1, 1, 1))
    return torch.sin(2 * x[..., :-2, 1:-1]) + 0.5 * x[..., 1:-1, 1:-1]**2 - 0.7 * x[..., 2:, 2:]


def pairs_target(x):
    return torch.stack([torch.sin(2 * x[:, 0]) + 0.1 * x[:, 2], 0.5 * x[:, 1]**2], 1)


@pytest.mark.parametrize(('layer', 'target', 'inputs', 'truth'), [
    (lambda: SharedKANConv2d(3, padding=1, basis=dict(type='BSpline', grid_size=12, grid_range=(-4, 4))),
     shared_target, normal(2, 4, 16, 16), {(0, 1): 'sin', (1, 1): 'x^2', (2, 2): 'x'}),
    (lambda: KANConv2d(3, 2, 1, basis=dict(type='BSpline', grid_size=12, grid_range=(-4, 4))),
     pairs_target, normal(4, 3, 12, 12), {(0, 0, 0, 0): 'sin', (0, 2, 0, 0): 'x', (1, 1, 0, 0): 'x^2'}),
    (lambda: KANLinear(3, 2, basis=dict(type='GaussianRBF', grid_size=16, grid_range=(-4, 4))),
     pairs_target, normal(1500, 3), {(0, 0): 'sin', (0, 2): 'x', (1, 1): 'x^2'}),
], ids=['shared', 'conv', 'linear'])
def test_planted_truth(layer, target, inputs, truth):
    layer = layer().double()
    score, x, y = trained(layer, target, inputs)
    assert score > 0.999
    with Recorder(layer, keep={'': list(truth)}) as recorder:
        layer(x)
    share = recorder[''].nonlinear_share()
    rms = recorder[''].std()
    for index, form in truth.items():  # the curves: crooked where the truth is, and nothing elsewhere
        assert (share[index] > 0.3) == (form != 'x')
    others = torch.ones(rms.shape, dtype=torch.bool)
    for index in truth:
        others[index] = False
    assert rms[others].max() < 0.1 * rms[~others].max()
    fits = {index: best(found) for index, found in fit_layer(recorder[''], list(truth)).items()}
    assert {index: fit.form for index, fit in fits.items()} == truth
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    with substituted({layer: fits}):
        assert r2(layer, x, y) > 0.99 * score
        assert r2(layer, x, y) != score
    assert r2(layer, x, y) == score
    assert all(value.equal(state[name]) for name, value in layer.state_dict().items())
    assert not hasattr(layer, 'locked')
    lock(layer, fits)
    after, *_ = trained(layer, target, inputs)  # its constants, too
    assert after > 0.999


def test_formulas_beside_those_that_are_locked():
    layer, x = KANLinear(2, 1).double(), normal(50, 2)(0)
    lock(layer, {(0, 1): Fit('sin', (3.0, 2.0, 0.0, 0.5))})
    with substituted({layer: {(0, 0): Fit('x', (2.0, 1.0, 0.0, 0.0))}}):
        assert_close(layer(x)[:, 0], 2 * x[:, 0] + 3 * torch.sin(2 * x[:, 1]) + 0.5 + layer.bias)
    with substituted({layer: {(0, 1): Fit('x', (2.0, 1.0, 0.0, 0.0))}}):
        other = layer(x)[:, 0]
    assert_close(other - layer(x)[:, 0], 2 * x[:, 1] - 3 * torch.sin(2 * x[:, 1]) - 0.5)
    assert list(layer.locked.functions()) == [(0, 1)]


def test_functions_of_two_arguments_are_refused():
    layer = SharedKANConv2d(2, normalization='min-max')
    with Recorder(layer) as recorder:
        layer(torch.randn(1, 2, 5, 5))
    with pytest.raises(ValueError, match="take x and what its normalization 'min-max' makes of it"):
        fit_layer(recorder[''], [(0, 0)])


def test_text():
    assert Fit('sin', (3.0, 2.0, 1.0, 0.5)).text() == '3 sin(2 x +1) +0.5'
    assert Fit('x', (2.0, 2.0, 1.0, 0.5)).text() == '4 x +2.5'
    assert Fit('x^2', (1.0, 1.0, -1.0, 0.0)).text() == '1 (1 x -1)^2 +0'
    assert Fit('constant', (0.0, 1.0, 0.0, 2.0)).text() == '2'
