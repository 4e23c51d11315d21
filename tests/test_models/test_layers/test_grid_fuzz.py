"""Grids never break a run: whatever is done to a layer in whatever order, on whatever data, it stays of use."""

import contextlib
import copy
import io
import os
import pickle

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from rkan_mm.models import KANConv1d, KANConv2d, KANConv3d, KANConvTranspose2d, KANLinear, SharedKANConv2d

NAN, INF = float('nan'), float('inf')
pick = st.sampled_from
LAYERS = dict(
    linear=(KANLinear, (4, 3), (9, 4)), conv1d=(KANConv1d, (4, 6, 2), (2, 4, 9)),
    conv=(KANConv2d, (4, 6, 3), (2, 4, 5, 6)),
    groups=(lambda *a, **k: KANConv2d(*a, groups=2, padding=1, **k), (4, 6, 3), (2, 4, 5, 6)),
    depthwise=(lambda *a, **k: KANConv2d(*a, groups=4, **k), (4, 4, 3), (2, 4, 5, 6)),
    conv3d=(KANConv3d, (2, 2, 2), (2, 2, 3, 3, 3)), transposed=(KANConvTranspose2d, (4, 6, 2), (2, 4, 5, 5)),
    shared=(SharedKANConv2d, (3,), (2, 4, 5, 5)))
DATA = dict(
    normal=lambda x: x, uniform=lambda x: x.sigmoid() * 10, constant=lambda x: torch.full_like(x, -7.3),
    constant_far=lambda x: torch.full_like(x, 1e30), zeros=torch.zeros_like, background=lambda x: x.relu(),
    few_bad=lambda x: x.flatten().index_fill(0, torch.arange(0, x.numel(), 7), NAN).view(x.shape),
    all_bad=lambda x: torch.full_like(x, INF), bad_channel=lambda x: x.index_fill(1, torch.tensor([0]), NAN),
    far=lambda x: x * 1e30, tiny=lambda x: x * 1e-40, shifted=lambda x: x + 1e6, outlier=lambda x: torch.cat(
        [x.flatten()[1:], torch.tensor([1e30])]).view(x.shape), one=lambda x: x[:1], none=lambda x: x[:0])
MODES = dict(grad=contextlib.nullcontext, no_grad=torch.no_grad, inference=torch.inference_mode,
             autocast=lambda: torch.autocast('cpu', torch.bfloat16))


@st.composite
def layers(draw):
    build, args, shape = draw(pick(list(LAYERS.values())))
    basis = dict(type=draw(pick(('BSpline', 'GaussianRBF', 'RSWAF', 'ReLUKAN', 'Wavelet'))),
                 grid_size=draw(pick((2, 3, 5, 8, 16))),
                 grid_range=draw(pick(((-1.0, 1.0), (1e-3, 2e-3), (-1e3, 1e3)))),
                 per_channel=draw(st.booleans()))
    if basis['type'] == 'BSpline':
        basis['order'] = draw(st.integers(1, 5))
    else:
        basis |= dict(trainable_grid=draw(st.booleans()), trainable_width=draw(st.booleans()))
    layer = build(*args, basis=basis, normalization=draw(pick((None, 'none', 'tanh'))))
    nn.init.normal_(layer.coefficient_parameter)
    return layer.to(draw(pick((torch.float32,) * 4 + (torch.float64, torch.float16, torch.bfloat16)))), shape


def functions(layer, points):
    """Values of the functions of all channels at points, (n, rows), in double precision."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast('cpu', enabled=False):
        weight = layer.by_channel(layer.coefficient_parameter.double())
        values = copy.deepcopy(layer.basis).double()(points.double())
        return torch.einsum('ncf,cfm->ncm', values.expand(-1, len(weight), -1), weight)


def stored(layer):
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = copy.deepcopy(layer)
    other.reset_parameters()
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


def prune(layer, x, share):
    with contextlib.suppress(ValueError):  # there are no finite samples
        layer.prune(share, x=x)
        assert layer.importance(x).isfinite().all()


def follow(layer, x):
    with torch.inference_mode(False):
        other, average = copy.deepcopy(layer), copy.deepcopy(layer)
    other.update_grid(x, followers=[average])
    assert alike(average.state_dict(), other.state_dict())
    layer.follow_grid(other)


def alike(a, b):
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


def walk(data):
    layer, shape = data.draw(layers())
    for _ in range(data.draw(st.integers(1, 5))):
        what = data.draw(pick(('update', 'update', 'grow', 'multiply', 'smaller', 'same', 'prune', 'follow', 'copy',
                               'train', 'reset')))
        mode, kind = data.draw(pick(list(MODES))), data.draw(pick(list(DATA)))
        x, size = DATA[kind](torch.randn(shape)).to(layer.coefficient_parameter.dtype), layer.basis.grid_size
        before, ends = copy.deepcopy(layer.state_dict()), layer.basis.interior()[:, [0, -1]].clone()
        points = ends[:, 0] + 0.999 * (ends[:, 1] - ends[:, 0]) * torch.rand(20, layer.basis.rows).to(ends)
        values = functions(layer, points)
        with MODES[mode]():
            if what in ('update', 'grow'):
                changed = layer.update_grid(x, uniform=data.draw(pick((1.0, 0.5, 0.0))), margin=data.draw(
                    pick((0.01, 0.0, 0.5))), outside=data.draw(pick((0.0, 0.0, 0.3))), grow=what == 'grow')
                assert isinstance(changed, bool)
                assert not (changed and kind in ('none', 'all_bad') and layer.normalization == 'none')
            elif what in ('multiply', 'smaller', 'same'):
                size = dict(multiply=2 * size, smaller=max(layer.basis.least, size - 1), same=size)[what]
                layer.refine_grid(size)
                changed = layer.basis.grid_size == size
            elif what == 'copy':
                with torch.inference_mode(False):
                    layer = data.draw(pick((copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each)), stored)))(
                        layer)
                assert alike(layer.state_dict(), before)
            elif what == 'train':
                layer.zero_grad()
                with torch.inference_mode(False), torch.enable_grad():
                    layer(torch.randn(shape).to(x)).sum().backward()
                assert all(p.grad.shape == p.shape for p in layer.parameters())
            elif what == 'prune':
                prune(layer, x, data.draw(pick((0.0, 0.3, 1.0))))
            elif what == 'follow':
                follow(layer, x)
            else:
                layer.reset_parameters()
        if what in ('update', 'grow', 'multiply', 'smaller', 'same') and not changed:
            assert alike(layer.state_dict(), before)
        exact = what == 'grow' or (what in ('multiply', 'same') and 'order' in layer.basis.__dict__)
        if exact and x.dtype in (torch.float32, torch.float64):
            assert (functions(layer, points) - values).norm() <= 2e-2 * values.norm()
        assert all(value.isfinite().all() for value in layer.state_dict().values())
        assert (layer.basis.interior().diff(dim=1) > 0).all()
        assert not any(t.is_inference() for t in (*layer.parameters(), *layer.buffers()))
        y = layer(torch.rand(shape).to(x))
        assert y.isfinite().all() or x.dtype == torch.float16


def fuzz(examples):
    return settings(max_examples=int(os.environ.get('RKAN_MM_EXAMPLES', examples)), deadline=None, derandomize=True,
                    database=None, suppress_health_check=list(HealthCheck))


@fuzz(150)
@given(st.data())
def test_any_order_of_changes(data):
    torch.manual_seed(0)
    walk(data)


@pytest.mark.slow
@fuzz(2000)
@given(st.data())
def test_any_order_of_changes_at_length(data):
    torch.manual_seed(1)
    walk(data)
