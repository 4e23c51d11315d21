import pytest
import torch
import torch.nn.functional as F
from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack
from torch import nn

from rkan_mm.benchmarks.macs import macs_of, macs_of_step


@pytest.mark.parametrize('kind', [DeformConv2dPack, ModulatedDeformConv2dPack])
def test_macs_of_deformable_convolutions(kind):
    """Mmengine has none for them, so that a backbone with DCN seemed to have less than the plain one."""
    pytest.importorskip('mmcv._ext', reason='needs the compiled ops of mmcv')
    conv = kind(8, 6, 3, stride=2, padding=1, groups=2)
    offsets = conv.conv_offset.out_channels * 8 * 9
    assert macs_of(nn.Sequential(conv), torch.rand(1, 8, 12, 10)) == 6 * 5 * (offsets + 6 * 4 * 9)


def test_macs_of_attention_and_of_what_is_not_known(capsys):
    class Attention(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, x[..., :4, :], x[..., :4, :6])

    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x @ x

    class Unknown(nn.Module):
        def forward(self, x):
            return Own.apply(x)

    assert macs_of(Attention(), torch.rand(2, 3, 5, 8)) == 2 * 3 * 5 * 4 * (8 + 6)
    assert capsys.readouterr().out == ''
    heads = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)  # one operation without gradients, else
    assert macs_of(heads, torch.rand(3, 5, 8)) >= 3 * 5 * (4 * 8 * 8 + 2 * 8 * 16 + 2 * 5 * 8)
    assert torch.backends.mha.get_fastpath_enabled()
    assert macs_of(Unknown(), torch.rand(4, 4)) == 0
    assert 'The MACs are without those of prim::PythonOp.Own, of which nothing is known.' in capsys.readouterr().out


def test_macs_of_a_training_step_by_hand():
    """What is frozen has no gradients, nor has the image: they were counted, a tenth of mmdet's ResNet-50 with FPN."""
    model = nn.Sequential(*(nn.Conv2d(channels, 4, 1, bias=False) for channels in (3, 4, 4)))
    image = torch.rand(1, 3, 5, 5)
    assert macs_of_step(model, image) == 25 * (12 * 2 + 16 * 3 + 16 * 3)
    model[0].requires_grad_(False)
    assert macs_of_step(model, image) == 25 * (12 + 16 * 2 + 16 * 3)


class Embedded(nn.Module):
    """As vision transformers are: a position for each place, and attention by keywords."""

    def __init__(self):
        super().__init__()
        self.inner, self.attention = nn.Conv2d(3, 4, 1, bias=False), nn.MultiheadAttention(4, 1, bias=False)
        self.positions = nn.Parameter(torch.zeros(25, 4))

    def forward(self, x):
        x = self.inner(x).flatten(2).permute(2, 0, 1) + self.positions[:, None]
        return self.attention(query=x, key=x, value=x)[0]


def test_multiplications_of_a_training_step_around_parameters_of_a_whole():
    """Parameters of a backbone itself say nothing of the layers in it; those had two thirds of their own."""
    attention = 25 * 4 * 4 * 4 + 2 * 25 * 25 * 4
    assert macs_of_step(Embedded(), torch.rand(1, 3, 5, 5)) == 25 * 12 * 2 + 3 * attention
