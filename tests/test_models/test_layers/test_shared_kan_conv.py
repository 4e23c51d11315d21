import copy

import golden
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from rkan_mm.models import GroupedKANConv2d, SharedKANConv2d
from rkan_mm.models.ops import shared_polynomial_conv_torch

BASES = [
    dict(type='Chebyshev', degree=3),
    dict(type='Legendre', degree=4),
    dict(type='Jacobi', degree=3, alpha=0.2, beta=1.0),
    dict(type='Hermite', degree=2),
    dict(type='Chebyshev', degree=1),
]
bases = pytest.mark.parametrize('basis', BASES, ids=lambda basis: f'{basis["type"]}{basis["degree"]}')
windows = pytest.mark.parametrize('window', [
    dict(kernel_size=3, padding=1),
    dict(kernel_size=3, padding=1, stride=2),
    dict(kernel_size=(1, 3), padding=(0, 1), stride=(2, 1)),
    dict(kernel_size=3, padding=(2, 3), dilation=2),
    dict(kernel_size=2, padding=0, stride=(1, 2)),
], ids=str)


def oracle(conv: SharedKANConv2d, x: torch.Tensor) -> torch.Tensor:
    """Unfold the padded input into patches, then apply the one function of k taps to each of them."""
    b, c, h, w = x.shape
    window = [getattr(conv, name) for name in ('kernel_size', 'dilation', 'padding', 'stride')]
    kh, kw = conv.kernel_size
    patches = F.unfold(x.reshape(b * c, 1, h, w), *window)  # (B * C, taps, L)
    basis = conv.basis(patches.tanh() if conv.normalization == 'tanh' else patches)  # (B * C, taps, L, d + 1)
    weight = conv.weight.reshape(-1, kh * kw)
    if conv.scaler is not None:
        weight = weight * conv.scaler.reshape(-1)
    out = torch.einsum('bplj,jp->bl', basis, weight)
    if conv.base_weight is not None:
        base = patches if conv.base_act is None else conv.base_act(patches)
        out = out + torch.einsum('bpl,p->bl', base, conv.base_weight.reshape(-1))
    size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, d, p, s in zip((h, w), *window, strict=True)]
    return out.reshape(b, c, *size)


def randomised(**args) -> SharedKANConv2d:
    conv = SharedKANConv2d(**args).double()
    for parameter in conv.parameters():
        torch.nn.init.normal_(parameter)
    return conv


@bases
@windows
@pytest.mark.parametrize('size', [(6, 9), (7, 7)])
def test_equals_unfold_and_einsum(basis, window, size):
    conv = randomised(basis=basis, **window)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    assert_close(conv(x), oracle(conv, x), rtol=1e-10, atol=1e-10)


@bases
@windows
@pytest.mark.parametrize('rows', [1, 2, 100])
def test_without_gradients_parts_of_the_batch_give_the_same(basis, window, rows, monkeypatch):
    conv = randomised(basis=basis, **window)
    x = torch.randn(5, 3, 6, 7, dtype=torch.float64)
    monkeypatch.setattr(shared_polynomial_conv_torch, 'CHUNK_BYTES', rows * x[:1].numel() * 8)
    before = x.clone()
    with torch.no_grad():
        out = conv(x)
    assert_close(out, oracle(conv, x), rtol=1e-10, atol=1e-10)
    assert_close(x, before, rtol=0, atol=0)


@pytest.mark.parametrize('normalization', ['tanh', 'none'])
@pytest.mark.parametrize('grad', [False, True])
def test_empty_batch_and_untouched_input(normalization, grad):
    conv = SharedKANConv2d(3, padding=1, normalization=normalization, basis=dict(type='Hermite', degree=4))
    with torch.set_grad_enabled(grad):
        assert conv(torch.rand(0, 3, 6, 7)).shape == (0, 3, 6, 7)
        x = torch.rand(2, 3, 6, 7)
        before = x.clone()
        conv(x)
    assert_close(x, before, rtol=0, atol=0)


@bases
@pytest.mark.parametrize('stride', [1, 2])
def test_gradcheck(basis, stride):
    conv = randomised(kernel_size=3, stride=stride, padding=1, basis=basis)
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)

    def function(x, *parameters):
        return torch.func.functional_call(conv, dict(zip(dict(conv.named_parameters()), parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *conv.parameters()))


@pytest.mark.parametrize('options', [
    dict(with_base=False), dict(with_scaler=False), dict(base_act_cfg=dict(type='SiLU')), dict(normalization='none'),
    dict(padding='same'), dict(padding='same', kernel_size=(1, 5), dilation=2),
], ids=str)
def test_options(options):
    conv = randomised(**{'kernel_size': 3, 'padding': 1, **options})
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    assert_close(conv(x), oracle(conv, x), rtol=1e-10, atol=1e-10)
    assert conv(x).shape == x.shape


KINDS = dict(
    # the reference's kan_type: (our config from its arguments, its names of our parameters and buffers)
    rbf=(lambda args: dict(type='GaussianRBF', grid_size=args.get('grid_size', 3),
                           grid_range=tuple(args.get('grid_range', (-1, 1)))),
         {'weight': 'spline_linear.weight', 'base_weight': 'base_linear.weight', 'bias': 'base_linear.bias',
          'basis.grid': 'rbf.grid'}),
    b_spline=(lambda args: dict(type='BSpline', grid_size=args.get('grid_size', 3), order=args.get('spline_order', 3),
                                grid_range=tuple(args.get('grid_range', (-1, 1)))),
              {'weight': 'spline_weight', 'scaler': 'spline_scaler', 'base_weight': 'base_weight',
               'basis.grid': 'grid'}),
)
POLYNOMIAL_NAMES = {'weight': 'polynomial_weight', 'scaler': 'scaler', 'base_weight': 'base_linear.weight'}
PATCHWISE_NAMES = {'arctan_scale': 'arctan_scale', 'tap_norm.weight': 'layernorm.weight',
                   'tap_norm.bias': 'layernorm.bias'}


def from_reference(args: dict, arrays: dict, prefix: str) -> tuple[SharedKANConv2d, dict[str, str]]:
    """Our layer with the reference's weights, and its names of our parameters."""
    kind = args['kan_type']
    basis, names = KINDS.get(kind, (lambda args: dict(type=kind.capitalize(), degree=args.get('spline_order', 3)),
                                    POLYNOMIAL_NAMES))
    normalization = 'layer_norm' if args.get('use_layernorm') else None if kind in KINDS else args.get('normalization')
    conv = SharedKANConv2d(
        tuple(args.get('kernel_size', (3, 3))), tuple(args['stride']), tuple(args.get('padding', (1, 1))),
        tuple(args.get('dilation', (1, 1))), basis=basis(args), normalization=normalization,
        with_base=args.get('use_linear', True),
        with_scaler=None if kind == 'rbf' else args.get('weight_scaler', True),
        # the reference's B-splines do not pass skip_activation on, and normalise what the base branch sees too
        base_act_cfg=None if args.get('skip_activation', True) or kind == 'b_spline' else dict(type='SiLU'),
        normalize_base=kind == 'b_spline').double()
    names = {**names, **PATCHWISE_NAMES}
    for name, value in (*conv.named_parameters(), *conv.named_buffers()):
        if name in names:
            value.data.copy_(ours(arrays[f'param/{prefix}{names[name]}'], name, value.shape))
    return conv, names


def ours(array: torch.Tensor, name: str, shape: torch.Size) -> torch.Tensor:
    """An array of the reference in our layout, where the functions come before the taps."""
    if name == 'basis.grid':
        return array.reshape(-1, shape[1])[:1]
    if name == 'weight':
        return array.reshape(-1, shape[0]).T.reshape(shape)  # (1, taps, F) or (1, taps * F) -> (F, kh, kw)
    return array.reshape(shape)


@pytest.mark.parametrize('case', [case for case, meta in golden.kan_convs().items() if 'failed' not in meta])
def test_equals_the_reference(case):
    args = golden.kan_convs()[case]['kwargs']
    arrays = golden.kan_conv_arrays(case)
    # several kernels are several convolutions, whose outputs the reference concatenates
    convs = [(prefix, *from_reference(args, arrays, prefix))
             for prefix in [f'convs.{i}.conv.' for i in range(args.get('n_convs', 1))]]
    x = arrays['x'].double().requires_grad_()
    out = torch.cat([conv(x) for _, conv, _ in convs], 1)
    assert_close(out, arrays['y_f64'], rtol=1e-10, atol=1e-10)
    out.backward(arrays['g'].double())
    assert_close(x.grad, arrays['dx_f64'], rtol=1e-10, atol=1e-10)
    for prefix, conv, names in convs:
        for name, parameter in conv.named_parameters():
            expected = ours(arrays[f'dparam_f64/{prefix}{names[name]}'], name, parameter.shape)
            assert_close(parameter.grad, expected, rtol=1e-10, atol=1e-10)
    gradients = sum(len(list(conv.parameters())) for _, conv, _ in convs)
    assert sum(name.startswith('dparam_f64/') for name in arrays) == gradients


@bases
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_autocast_is_finite_and_close(basis, dtype):
    conv = SharedKANConv2d(3, padding=1, basis=basis)
    x = torch.randn(2, 8, 9, 9) * 3
    exact = conv(x)
    with torch.autocast('cpu', dtype):
        out = conv(x)
        low = conv(x.to(dtype))
        with torch.no_grad():
            evaluated = conv(x)
    for result in (out, low, evaluated):
        assert result.isfinite().all()
        assert ((result.float() - exact).norm() / exact.norm()) < (2e-2 if dtype is torch.bfloat16 else 4e-3)
    out.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in conv.parameters())


@pytest.mark.parametrize('family', ['Chebyshev', 'Hermite'])
@pytest.mark.parametrize(('degree', 'make'), [
    *((degree, lambda **args: SharedKANConv2d(3, **args)) for degree in (6, 8, 12, 20)),
    *((degree, lambda **args: SharedKANConv2d(3, base_act_cfg=dict(type='SiLU'), **args)) for degree in (5, 6, 8)),
    *((degree, lambda **args: GroupedKANConv2d(8, 2, kernel_size=3, **args)) for degree in (3, 5, 6, 8)),
])
def test_monomials_do_not_cancel(family, degree, make):
    torch.manual_seed(1)
    conv, x = make(basis=dict(type=family, degree=degree), padding=1), 2 * torch.randn(2, 8, 9, 9)
    exact = copy.deepcopy(conv).double()(x.double())

    def wrong(y):
        return ((y.double() - exact).norm() / exact.norm()).item()

    half = copy.deepcopy(conv).bfloat16()
    assert wrong(conv(x)) < 2e-6
    with torch.autocast('cpu', torch.bfloat16):
        results = [conv(x), conv.eval()(x)]
        with torch.no_grad():
            results.append(conv(x))
        assert half(x).dtype is torch.bfloat16
    assert max(map(wrong, results)) < 8e-3
    assert all(y.dtype is torch.bfloat16 for y in results)
    if degree <= 8:  # beyond, tanh in half precision is what matters
        right = copy.deepcopy(half).double()(x.bfloat16().double())  # of the parameters as they are
        assert ((half(x.bfloat16()).double() - right).norm() / right.norm()) < 8e-3
    results[0].float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in conv.parameters())


def test_parameters_are_those_of_the_paper():
    assert sum(p.numel() for p in SharedKANConv2d(basis=dict(type='Chebyshev', degree=3)).parameters()) == 54
    assert sum(p.numel() for p in SharedKANConv2d(basis=dict(type='Chebyshev', degree=2)).parameters()) == 45


def test_initialisation():
    torch.manual_seed(3)
    convs = [SharedKANConv2d(basis=dict(type='Chebyshev', degree=3)) for _ in range(400)]
    for name, std in (('weight', 1 / 6), ('base_weight', (2 / 9)**0.5)):
        values = torch.stack([getattr(conv, name) for conv in convs])
        assert abs(values.std() / std - 1) < 0.03
        assert abs(values.mean()) < 0.1 * std
    assert all((conv.scaler == 1).all() for conv in convs)
    before = convs[0].weight.clone()
    convs[0].init_weights()
    assert not before.equal(convs[0].weight)


def test_unknown_normalization():
    with pytest.raises(ValueError, match="SharedKANConv2d: no normalization 'minmax'; there are tanh, none, min-max, "):
        SharedKANConv2d(normalization='minmax')


@pytest.mark.parametrize('args', [dict(padding='reflect'), dict(padding='same', stride=2),
                                  dict(padding='same', kernel_size=(3, 2))], ids=str)
def test_padding_by_a_word(args):
    assert SharedKANConv2d(3, padding='valid')(torch.rand(1, 2, 5, 6)).shape == (1, 2, 3, 4)
    with pytest.raises(ValueError, match="SharedKANConv2d: padding must be one or two numbers, 'valid' or, with"):
        SharedKANConv2d(**args)


def test_repr_shows_what_it_computes():
    text = repr(SharedKANConv2d(3, dilation=2, basis=dict(type='Jacobi', degree=2)))
    assert 'dilation=(2, 2)' in text
    assert 'Jacobi(degree=2, alpha=0.5, beta=0.5)' in text.replace('\n', '')
