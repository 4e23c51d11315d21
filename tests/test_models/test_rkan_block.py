import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rkan_mm.models import RKANBlock, SharedKANConv2d


@pytest.mark.parametrize(('args', 'params'), [
    (dict(in_channels=1024, out_channels=2048, stride=2, last=True), 1_578_083),
    (dict(in_channels=512, out_channels=1024, stride=2), 395_830),
    (dict(in_channels=256, out_channels=512, stride=2, last=True), 99_683),
    (dict(in_channels=64, out_channels=256), 10_870),
    (dict(in_channels=1024, out_channels=2048, stride=2, last=True, expansion=4), 12_595_299),
    (dict(in_channels=1024, out_channels=2048, stride=2, last=True, shortcut=True), 1_578_083 + 2_101_248),
], ids=str)
def test_parameters(args, params):
    assert sum(p.numel() for p in RKANBlock(**args).parameters()) == params


def test_block_of_the_first_version():
    block = RKANBlock(4, 6, 2, reduction=1, act_cfg=None, norm_between=False).eval()
    x = torch.randn(2, 4, 8, 8)
    expected = block.norm2(block.expand(block.kan1(block.reduce(x))))
    assert torch.equal(block(x), expected)
    assert sum(p.numel() for p in block.parameters()) == 4 * 4 + 54 + 4 * 6 + 2 * 6


@pytest.mark.parametrize(('stride', 'size'), [(1, (7, 10)), (2, (4, 5)), ((1, 2), (7, 5))])
@pytest.mark.parametrize('last', [False, True])
def test_shapes(stride, size, last):
    block = RKANBlock(8, 12, stride, last=last, shortcut=True)
    assert block(torch.rand(2, 8, 7, 10)).shape == (2, 12, *size)


def test_second_convolution_takes_the_first_basis_at_degree_two():
    block = RKANBlock(8, 8, last=True, basis=dict(type='Jacobi', degree=4, alpha=1.0))
    assert (block.kan2.basis.degree, block.kan2.basis.alpha) == (2, 1.0)
    block = RKANBlock(8, 8, last=True, basis=dict(type='Legendre', degree=4), second_basis=dict(degree=3))
    assert block.kan2.basis.degree == 3


@pytest.mark.parametrize('shortcut', [False, True])
def test_zero_init_residual(shortcut):
    block = RKANBlock(8, 12, 2, last=True, shortcut=shortcut, zero_init_residual=True)
    assert not block(torch.rand(2, 8, 6, 6)).any()
    block.init_weights()
    assert not block(torch.rand(2, 8, 6, 6)).any()


@pytest.mark.parametrize('shortcut', [False, True])
def test_residual_init_scales_the_published_start(shortcut):
    torch.manual_seed(0)
    published = RKANBlock(8, 12, 2, last=True, shortcut=shortcut)
    scaled = RKANBlock(8, 12, 2, last=True, shortcut=shortcut, residual_init=0.01)
    scaled.init_weights()
    weights = {**published.state_dict(), **{name: value for name, value in scaled.state_dict().items()
                                            if name in ('norm2.weight', 'shortcut.1.weight')}}
    scaled.load_state_dict(weights)
    x = torch.rand(2, 8, 6, 6)
    torch.testing.assert_close(scaled(x), 0.01 * published(x))


@pytest.mark.parametrize('size', [1, 5, 11])
def test_kernels_of_any_odd_size(size):
    block = RKANBlock(8, 12, 2, last=True, kernel_size=size)
    assert block(torch.rand(2, 8, 7, 9)).shape == (2, 12, 4, 5)
    three = sum(p.numel() for p in RKANBlock(8, 12, 2, last=True).parameters())
    per_tap = (4 + 1 + 1) + (3 + 1 + 1)  # functions of degree 3 and 2, scaler and base of both
    assert sum(p.numel() for p in block.parameters()) == three + (size ** 2 - 9) * per_tap
    with pytest.raises(ValueError, match='RKANBlock: kernel_size must be odd, got 4'):
        RKANBlock(8, 12, kernel_size=4)


def test_norms_before_the_functions_bring_their_inputs_to_unit_variance():
    seen = []
    block = RKANBlock(16, 12, last=True, norm_before=True, with_base=False, act_cfg=None)
    assert block.kan1.base_weight is None
    assert block.kan2.base_weight is None
    for kan in (block.kan1, block.kan2):
        kan.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    block(0.05 * torch.randn(4, 16, 12, 12))
    for x in seen:
        torch.testing.assert_close(x.std((0, 2, 3)), torch.ones(x.shape[1]), atol=0.02, rtol=0)
    plain = RKANBlock(16, 12, last=True)
    assert set(plain.state_dict()) == {name for name in block.state_dict() if 'norm_before' not in name} | {
        'kan1.base_weight', 'kan2.base_weight'}


@pytest.mark.parametrize('degree', [2, 3, 5])
@pytest.mark.parametrize('size', [3, 7])
def test_an_orthonormal_start_keeps_the_variance_and_bends(degree, size):
    torch.manual_seed(0)
    x = torch.randn(1, 1, 400, 400)
    outs, shares = [], []
    for _ in range(200):
        conv = SharedKANConv2d(size, basis=dict(type='Chebyshev', degree=degree), start='orthonormal')
        outs.append(conv(x[..., :30, :30]).var().item())
        assert not conv.base_weight.any()
        values = torch.einsum('nf,f->n', conv.basis(x[0, 0, 0].tanh()), conv.weight[:, 0, 0])
        line = torch.corrcoef(torch.stack([x[0, 0, 0], values]))[0, 1] ** 2
        shares.append(1 - line.item())
    assert abs(sum(outs) / 200 - 1) < 0.12  # in the mean over draws, of inputs of unit variance
    assert sum(shares) / 200 > 0.3  # not explained by a straight line
    with pytest.raises(ValueError, match="start must be 'published' or, with an element-wise normalization"):
        SharedKANConv2d(3, start='orthogonal')
    with pytest.raises(ValueError, match="got 'orthonormal' with 'min-max'"):
        SharedKANConv2d(3, start='orthonormal', normalization='min-max')


def test_the_start_reaches_both_convolutions_of_a_block():
    block = RKANBlock(8, 12, last=True, norm_before=True, start='orthonormal', basis=dict(type='GaussianRBF'))
    block.init_weights()
    assert not block.kan1.base_weight.any()
    assert not block.kan2.base_weight.any()


def test_norm_cfg_is_the_blocks_own():
    block = RKANBlock(8, 16, norm_cfg=dict(type='GN', num_groups=2))
    assert isinstance(block.norm1, nn.GroupNorm)
    assert isinstance(block.norm2, nn.GroupNorm)


def test_init_weights_draws_anew_in_torchs_way():
    block = RKANBlock(64, 64, last=True)
    for parameter in block.parameters():
        nn.init.constant_(parameter, 7)
    block.init_weights()
    assert block.reduce.weight.abs().max() <= 64**-0.5  # kaiming-uniform with a = sqrt(5)
    assert (block.norm2.weight == 1).all()
    assert block.kan1.weight.std() < 1


def test_reduction_beyond_the_channels():
    with pytest.raises(ValueError, match='RKANBlock: reduction 16 leaves none of 8 input channels'):
        RKANBlock(8, 8, reduction=16)


def test_unknown_basis():
    with pytest.raises(ValueError, match="no basis 'Fourrier'; there are BSpline"):
        RKANBlock(8, 8, basis=dict(type='Fourrier'))


def test_a_block_without_kan_is_linear_in_its_convolutions():
    linear = dict(type='Chebyshev', degree=1)
    block = RKANBlock(8, 16, last=True, basis=linear, second_basis=dict(degree=1), normalization='none')
    x = torch.randn(2, 8, 6, 6)
    for conv in (block.kan1, block.kan2):
        constant = conv(torch.zeros_like(x))
        assert_close(conv(2 * x) - constant, 2 * (conv(x) - constant))
    whole = RKANBlock(8, 16, last=True)
    missing = sum(p.numel() for p in whole.parameters()) - sum(p.numel() for p in block.parameters())
    assert missing == 27  # two functions of nine taps in the first, one in the second
