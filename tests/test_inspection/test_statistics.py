"""What is said of functions on real inputs, against a plain loop; straight lines; nothing left behind."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from rkan_mm.inspection import LayerFunctions, Recorder, kan_layers
from rkan_mm.inspection.swap import straightened, without_functions
from rkan_mm.models import KANConv1d, KANConv2d, KANConvTranspose2d, KANLinear, RKANBlock, SharedKANConv2d
from rkan_mm.models.layers.locked import Fixed, lock, unlock
from rkan_mm.models.layers.shared_kan_conv import PATCHWISE


def with_formulas(layer: nn.Module, *places: tuple[int, ...]) -> nn.Module:
    lock(layer, {place: Fixed(form, (1.0, 1.0, 0.0, 0.0)) for place, form in zip(places, ('sin', 'x^2'), strict=True)})
    return layer


LAYERS = {
    'shared': (lambda: SharedKANConv2d((2, 3), stride=2, padding=1, dilation=(1, 2)), (2, 3, 9, 8)),
    'shared-rbf': (lambda: SharedKANConv2d(2, basis=dict(type='GaussianRBF')), (2, 3, 9, 8)),
    'conv': (lambda: KANConv2d(4, 6, (2, 3), stride=(1, 2), padding=(1, 0), groups=2), (2, 4, 6, 7)),
    'conv-reflect': (lambda: KANConv2d(2, 3, 3, padding=1, padding_mode='reflect'), (2, 2, 6, 7)),
    'conv-1d': (lambda: KANConv1d(2, 3, 3, padding='same', basis=dict(type='Fourier')), (2, 2, 9)),
    'conv-norm': (lambda: KANConv2d(2, 3, 2, padding=1, normalization=dict(type='IN')), (2, 2, 6, 7)),
    'prelu-linear': (lambda: KANLinear(3, 4, base_act_cfg=dict(type='PReLU')), (5, 6, 3)),
    'linear': (lambda: KANLinear(3, 4, basis=dict(type='Legendre')), (5, 6, 3)),
    **{name: (lambda name=name: SharedKANConv2d(2, normalization=name, normalize_base=name == 'min-max'), (2, 3, 5, 5))
       for name in PATCHWISE},
    'formulas-shared': (lambda: with_formulas(SharedKANConv2d(2, padding=1), (0, 1), (1, 1)), (2, 3, 5, 5)),
    'formulas-conv': (lambda: with_formulas(KANConv2d(4, 6, (2, 3), groups=2, padding=1), (0, 1, 1, 2), (5, 0, 0, 1)),
                      (2, 4, 6, 7)),
    'formulas-linear': (lambda: with_formulas(KANLinear(3, 4), (2, 0), (3, 2)), (5, 6, 3)),
}


def made(kind: str) -> tuple[nn.Module, torch.Tensor]:
    make, shape = LAYERS[kind]
    layer = make().double().eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer, torch.randn(shape, dtype=torch.float64)


def arguments(layer: nn.Module, x: torch.Tensor) -> dict:
    """By function, its arguments (x, u) at every place, found by unfolding pads of the input."""
    functions = LayerFunctions(layer)
    if isinstance(layer, KANLinear):
        return {index: (x.flatten(0, -2)[:, index[1]],) * 2 for index in functions.indices()}
    one_d = x.dim() == 3
    if functions.shared:
        patches = F.unfold(x.flatten(0, 1).unsqueeze(1), layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        u = PATCHWISE.get(layer.normalization, lambda u, conv: u)(patches, layer).detach()
        return {index: (patches[:, tap].flatten(), u[:, tap].flatten())
                for tap, index in enumerate(functions.indices())}
    mode = 'constant' if layer.padding_mode == 'zeros' else layer.padding_mode
    both = [F.pad(t, layer._reversed_padding_repeated_twice, mode=mode)
            for t in (x, layer.seen(x) if functions.two_arguments else x)]
    both = [t.unsqueeze(2) if one_d else t for t in both]
    kernel, stride = ((1, *layer.kernel_size), (1, *layer.stride)) if one_d else (layer.kernel_size, layer.stride)
    both = [F.unfold(t, kernel, stride=stride).unflatten(1, (t.shape[1], -1)) for t in both]  # (B, C, taps, L)
    found = {}
    for index in functions.indices():
        tap = int(np.ravel_multi_index(index[2:], functions.taps))
        found[index] = tuple(t[:, functions.row(index), tap].flatten() for t in both)
    return found


@pytest.mark.parametrize('kind', LAYERS)
def test_statistics_against_a_loop(kind):
    layer, x = made(kind)
    with Recorder(layer, keep={'': LayerFunctions(layer).indices()}) as recorder:
        layer(x[:1])
        layer(x[1:])
    found, functions = recorder[''], LayerFunctions(layer)
    lines, share, rms = found.lines(), found.nonlinear_share(), found.rms()
    assert share.shape == functions.shape
    for index, (x_seen, u_seen) in arguments(layer, x).items():
        phi = functions.curve(index, x_seen, u_seen if functions.two_arguments else None)
        columns = [torch.ones_like(x_seen), x_seen, *([u_seen] if functions.two_arguments else [])]
        design = torch.stack(columns, 1)
        line, *_ = np.linalg.lstsq(design.numpy(), phi.numpy(), rcond=None)
        left = phi - design @ torch.from_numpy(line)
        assert_close(share[index], left.var(correction=0) / phi.var(correction=0), rtol=1e-6, atol=1e-9)
        assert_close(rms[index], phi.square().mean().sqrt())
        fitted = [lines.intercept[index], lines.slope[index], *([lines.slope_u[index]] if len(line) > 2 else [])]
        assert_close(design @ torch.stack(fitted), design @ torch.from_numpy(line), rtol=1e-6, atol=1e-8)
        argument = u_seen if functions.two_arguments else x_seen
        assert found.range(index) == (argument.min().item(), argument.max().item())
        kept = found.samples(index)[0]
        assert_close(kept.sort().values, x_seen.sort().values)


@pytest.mark.parametrize('kind', LAYERS)
def test_straight_layers_sum_their_lines(kind):
    layer, x = made(kind)
    with Recorder(layer) as recorder:
        before = layer(x)
    lines, functions = recorder[''].lines(), LayerFunctions(layer)
    total = torch.zeros_like(before)
    if layer.bias is not None:
        spread = functions.shared or kind.endswith('linear')
        total += layer.bias if spread else layer.bias.reshape(-1, *[1] * (x.dim() - 2))
    for index, (x_seen, u_seen) in arguments(layer, x).items():
        value = lines.intercept[index] + lines.slope[index] * x_seen
        if functions.two_arguments:
            value = value + lines.slope_u[index] * u_seen
        if functions.shared:
            total += value.reshape(total.shape)
        elif kind.endswith('linear'):
            total[..., index[0]] += value.reshape(total.shape[:-1])
        else:
            total[:, index[0]] += value.reshape(total.shape[0], *total.shape[2:])
    with straightened({layer: lines}):
        assert_close(layer(x), total)
    assert_close(layer(x), before, rtol=0, atol=0)
    assert 'forward' not in vars(layer)


def test_formulas_of_transposed_convolutions():
    layer = KANConvTranspose2d(4, 6, 3, stride=2, groups=2, basis=dict(type='Chebyshev')).double()
    with_formulas(layer, (0, 2, 1, 1), (3, 1, 0, 2))
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    with Recorder(layer) as recorder:
        layer(x)
    seen = x[:, 3].flatten()
    assert_close(recorder[''].rms()[3, 1, 0, 2], seen.pow(4).mean().sqrt())
    line = np.polyfit(seen.numpy(), seen.square().numpy(), 1)
    assert_close(recorder[''].lines().slope[3, 1, 0, 2].item(), line[0])


def test_transposed_convolutions():
    layer = KANConvTranspose2d(4, 6, 3, stride=2, groups=2, output_padding=1, basis=dict(type='Chebyshev')).double()
    nn.init.normal_(layer.basis_weight)
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    with Recorder(layer) as recorder:
        layer(x)
    found, functions = recorder[''], LayerFunctions(layer)
    share, lines = found.nonlinear_share(), found.lines()
    for index in [(0, 0, 0, 0), (3, 2, 1, 2)]:
        seen = x[:, index[0]].flatten()
        phi = functions.curve(index, seen)
        line = np.polyfit(seen.numpy(), phi.numpy(), 1)
        left = phi - torch.from_numpy(np.polyval(line, seen.numpy()))
        assert_close(share[index], left.var() / phi.var(), rtol=1e-6, atol=1e-9)
    plain = nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, output_padding=1, bias=False).double()
    plain.weight.data = lines.slope
    constant = F.conv_transpose2d(torch.ones_like(x), lines.intercept, None, 2, 0, 1, 2)
    with straightened({layer: lines}):
        assert_close(layer(x), plain(x) + constant + layer.bias.reshape(-1, 1, 1))
        assert layer(x, output_size=[11, 11]).shape[2:] == (11, 11)


def test_a_straight_function_is_called_straight():
    layer = KANLinear(1, 3, basis=dict(type='Chebyshev', degree=2), normalization='none', base_act_cfg=None)
    layer.basis_weight.data = torch.tensor([[0, 1.0, 0], [0, 0, 1], [1, 0, 0]])[:, None]
    layer.weight.data.zero_()
    x = torch.linspace(-1, 1, 101)[:, None]
    with Recorder(layer) as recorder:
        layer(x)
    share = recorder[''].nonlinear_share()[:, 0]
    assert share[0] < 1e-9
    assert share[1] > 1 - 1e-9  # a parabola over symmetric inputs has no slope
    assert share[2].isnan()  # a constant does not vary


@pytest.mark.parametrize(('mean', 'std'), [(1e4, 1), (-2e3, 1), (0, 1e-7), (3e-7, 1e-8)])
def test_a_straight_function_of_inputs_far_from_0_or_small(mean, std):
    layer = KANLinear(1, 1, base_act_cfg=None, basis=dict(type='BSpline', grid_range=(mean - 6 * std, mean + 6 * std)))
    nn.init.zeros_(layer.double().weight)
    layer.basis.reset_parameters()  # in double precision
    layer.basis_weight.data[:] = torch.arange(8)
    x = mean + std * torch.randn(500, 1, dtype=torch.float64)
    with Recorder(layer) as recorder:
        before = layer(x)
    assert recorder[''].nonlinear_share().item() < 1e-3
    with straightened({layer: recorder[''].lines()}):
        assert_close(layer(x), before, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('kind', ['shared', 'conv', 'conv-1d', 'linear', 'conv-norm', 'min-max', 'formulas-shared',
                                  'formulas-conv', 'formulas-linear'])
def test_without_functions_the_base_branch_stays(kind):
    layer, x = made(kind)
    with without_functions([layer]):
        found = layer(x)
    assert not torch.allclose(found, layer(x))
    coefficients = layer.weight if isinstance(layer, SharedKANConv2d) else layer.basis_weight
    coefficients.data.zero_()
    if kind.startswith('formulas'):
        assert not torch.allclose(found, layer(x))  # they were there, and off
        unlock(layer)
    assert_close(found, layer(x))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    block = RKANBlock(8, 8, last=True).to(dtype).eval()
    x = torch.randn(2, 8, 6, 6, dtype=dtype)
    with Recorder(block) as recorder:
        block(x)
    lines = {block.kan1: recorder['kan1'].lines(), block.kan2: recorder['kan2'].lines()}
    with straightened(lines):
        out = block(x)
    assert out.dtype == dtype
    assert out.isfinite().all()


def test_activations_with_parameters():
    layer = KANLinear(2, 1, base_act_cfg=dict(type='PReLU'))
    with Recorder(layer) as recorder:
        layer(torch.randn(9, 2))
    assert recorder[''].rms().dtype == torch.float64
    assert layer.base_act.weight.dtype == torch.float32


def test_inputs_of_a_large_shared_kernel_are_kept():
    layer = SharedKANConv2d(9)
    with Recorder(layer) as recorder:
        layer(torch.randn(1, 1, 10, 10))
    assert len(recorder[''].samples((8, 8))[0]) == 4


def test_many_inputs_are_drawn():
    layer = SharedKANConv2d(1).double()
    x = torch.randn(1, 4, 300, 300, dtype=torch.float64)
    with Recorder(layer) as recorder:
        layer(x)
    found = recorder['']
    assert found.count == x.numel()
    phi = LayerFunctions(layer).curve((0, 0), x.flatten())
    assert found.rms().item() == pytest.approx(phi.square().mean().sqrt().item(), rel=0.05)
    assert len(found.samples((0, 0))[0]) <= 100_000


def test_inputs_that_are_kept_are_of_all_calls():
    """In parts as they have inputs: figures and fits were of the first pictures, and of their upper rows."""
    layer = KANLinear(1, 1)
    calls = [torch.linspace(i, i + 0.99, n)[:, None] for i, n in enumerate((3000, 1000, 2000, 4000))]
    with Recorder(layer, num_samples=1000) as recorder:
        for x in calls:
            layer(x)
    kept = recorder[''].samples((0, 0))[0]
    assert len(kept) == 1000
    counts, _ = np.histogram(kept, 4, (0, 4))
    np.testing.assert_allclose(counts, [300, 100, 200, 400], atol=40)
    assert [kept[(kept >= i) & (kept < i + 1)].mean().item() for i in range(4)] == pytest.approx(
        [i + 0.495 for i in range(4)], abs=0.1)


def test_overflow():
    layer = KANLinear(1, 1, basis=dict(type='BSpline', grid_range=(-1, 1)))
    with Recorder(layer) as recorder:
        layer(torch.tensor([-2.0, -0.5, 0.5, 1.5])[:, None])
    assert recorder[''].overflow == 0.5
    layer = KANLinear(1, 1, basis=dict(type='Chebyshev'))
    with Recorder(layer) as recorder:
        layer(torch.tensor([-4.0, -0.5, 0.5, 1.5])[:, None])
    assert recorder[''].overflow == 0.25


def test_shared_layers_are_one_and_see_all_calls():
    layer = KANLinear(2, 2)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    assert list(kan_layers(model)) == ['0']
    with Recorder(model) as recorder:
        model(torch.rand(4, 2))
    assert recorder['0'].calls == 2
    assert not layer._forward_pre_hooks


def test_a_layer_that_never_ran():
    model = nn.ModuleList([KANLinear(2, 2), KANLinear(2, 2)])
    with Recorder(model) as recorder:
        model[0](torch.rand(4, 2))
    with pytest.raises(ValueError, match='^1: the layer has not run'):
        recorder['1'].lines()


def test_random_numbers_stay():
    layer = SharedKANConv2d(1)
    x = torch.randn(1, 4, 300, 300)
    state = torch.get_rng_state()
    with Recorder(layer) as recorder:
        layer(x)
    recorder[''].lines()
    assert torch.get_rng_state().equal(state)


def test_labels_name_channels():
    functions = LayerFunctions(KANConv2d(4, 6, 1, groups=2))
    assert functions.label((4, 1, 0, 0)) == 'in 3, out 4, tap (0, 0)'
    assert functions.label((0, 1, 0, 0)) == 'in 1, out 0, tap (0, 0)'
    transposed = LayerFunctions(KANConvTranspose2d(4, 6, 1, groups=2))
    assert transposed.label((3, 1, 0, 0)) == 'in 3, out 4, tap (0, 0)'
    assert LayerFunctions(SharedKANConv2d(3)).label((0, 2)) == 'tap (0, 2)'
    assert len(list(itertools.islice(functions.indices(), 3))) == 3


def test_inputs_that_were_not_kept_are_told_with_the_cure():
    """Those of a large layer are not, unless they are asked for; its functions were drawn up to a KeyError (0, 0)."""
    model = nn.Sequential(KANLinear(20, 20))
    with Recorder(model) as recorder:
        model(torch.rand(8, 20))
    with pytest.raises(KeyError, match=r"0: the inputs of function \(3, 1\) were not kept; .*keep={'0': \[\(3, 1\), "):
        recorder['0'].samples((3, 1))
