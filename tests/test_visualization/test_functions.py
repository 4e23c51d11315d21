"""Curves of functions: what is drawn is what the layer computes."""

import numpy as np
import pytest
import torch
from torch import nn

from rkan_mm.inspection import Branch, LayerFunctions, Recorder
from rkan_mm.models import KANConv2d, KANLinear, SharedKANConv2d
from rkan_mm.visualization import draw_branch, draw_functions


def curves(axis) -> dict:
    return {line.get_label(): line.get_xydata() for line in axis.lines}


def test_a_kernel_is_laid_out_as_it_is(tmp_path):
    conv = SharedKANConv2d((2, 3))
    x = torch.randn(2, 4, 8, 8)
    with Recorder(conv) as recorder:
        conv(x)
    figure = draw_functions(conv, recorder[''], title='kernel')
    axes = np.array(figure.axes).reshape(2, 3)
    functions, lines = LayerFunctions(conv), recorder[''].lines()
    for index in functions.indices():
        drawn = curves(axes[index])
        points, values = drawn['function'].T
        np.testing.assert_allclose(functions.curve(index, points), values)
        points, values = drawn['best straight line'].T
        np.testing.assert_allclose(lines.intercept[index] + lines.slope[index] * points, values)
        left = recorder[''].nonlinear_share()[index]
        assert axes[index].get_title() == f'tap ({index[0]}, {index[1]})   {100 * left:.1f} % not straight'
        low, high = axes[index].get_xlim()
        assert low < x.min()
        assert high > x.max()
    figure.savefig(tmp_path / 'kernel.png')


@pytest.mark.parametrize('layer', [
    KANConv2d(2, 3, 3, basis=dict(type='BSpline')), KANLinear(5, 1),
    KANConv2d(2, 3, 1, normalization=dict(type='IN'), basis=dict(type='GaussianRBF')),
    SharedKANConv2d(2, normalization='min-max'), SharedKANConv2d(2, basis=dict(type='BSpline')),
], ids=lambda layer: type(layer).__name__)
@pytest.mark.parametrize('with_data', [False, True])
def test_every_kind_is_drawn(layer, with_data, tmp_path):
    with Recorder(layer) as recorder:
        if with_data:
            layer(torch.randn(2, 5) if isinstance(layer, KANLinear) else torch.randn(2, 2, 5, 5))
    figure = draw_functions(layer, recorder[''] if with_data else None)
    assert len([axis for axis in figure.axes if axis.lines]) in (4, 5, 6, 9)
    figure.savefig(tmp_path / 'functions.png')


@pytest.mark.parametrize('bad', [float('inf'), -float('inf'), float('nan')])
@pytest.mark.parametrize('basis', ['Chebyshev', 'BSpline'])
@pytest.mark.parametrize('everywhere', [False, True])
def test_inputs_that_are_no_numbers_are_left_out(bad, basis, everywhere, tmp_path):
    layer, x = KANLinear(1, 1, basis=dict(type=basis)), 5 * torch.rand(64, 1) + 1
    x[:64 if everywhere else 1] = bad
    with Recorder(layer) as recorder:
        layer(x)
    figure = draw_functions(layer, recorder[''])
    figure.savefig(tmp_path / 'functions.png')
    low, high = figure.axes[0].get_xlim()
    assert -4 < low < high < 8
    assert (high > 5) != everywhere


def test_chosen_functions():
    layer = KANLinear(8, 8)
    figure = draw_functions(layer, indices=[(3, 4), (0, 1)])
    assert [axis.get_title() for axis in figure.axes] == ['in 4, out 3', 'in 1, out 0']
    with pytest.raises(TypeError, match='expected a KAN layer'):
        draw_functions(nn.Linear(2, 2))


def test_channels_in_which_the_stage_gives_little():
    """They stand at the end of the histogram; those in which it gives nothing were left out."""
    branch, out = Branch('layer4'), torch.ones(1, 5, 2, 2)
    out[:, 0] = out[:, 4] = 0
    added = torch.tensor([0.5, 20, 0.5, 0.5, 0])[:, None, None]
    branch.add(out, out + added)
    axis = draw_branch(branch).axes[0]
    assert sum(bar.get_height() for bar in axis.patches) == 4  # in one neither gives anything
    assert axis.get_xlabel().endswith('by channel; 2 are above 10')
