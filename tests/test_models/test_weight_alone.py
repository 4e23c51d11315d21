"""Parts of mm and torch that compute with a layer's weight by themselves refuse KAN layers."""

import importlib

import pytest
import torch
from mmcv.cnn import Conv2dRFSearchOp, build_conv_layer
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import nn
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2

from rkan_mm.models import KANLinear
from rkan_mm.models.layers.weight_alone import ATTENTION, PARTS

KAN = dict(type='KANConv2d', basis=dict(type='BSpline', grid_size=3))


def tood_head(conv_cfg: dict | None) -> nn.Module:
    return MMENGINE_MODELS.build(dict(
        type='mmdet.TOODHead', num_classes=2, in_channels=8, stacked_convs=2, feat_channels=8, conv_cfg=conv_cfg,
        anchor_type='anchor_free', norm_cfg=dict(type='BN')))


def repmlp_block(conv_cfg: dict | None) -> None:
    from mmpretrain.models.backbones.repmlp import RepMLPBlock
    RepMLPBlock(8, 4, 4, reparam_conv_kernels=(1, 3), conv_cfg=conv_cfg).local_inject()


@pytest.mark.parametrize(('make', 'who'), [
    (lambda conv_cfg: MMENGINE_MODELS.build(dict(type='mmpretrain.RepVGG', arch='A0', conv_cfg=conv_cfg)
                                            ).switch_to_deploy(), r'RepVGGBlock\.switch_to_deploy'),
    (lambda conv_cfg: MMENGINE_MODELS.build(dict(type='mmpretrain.MobileOne', arch='s0', conv_cfg=conv_cfg)
                                            ).switch_to_deploy(), r'MobileOneBlock\.switch_to_deploy'),
    (lambda conv_cfg: MMENGINE_MODELS.build(dict(type='mmpretrain.SparseResNet', depth=50, base_channels=8,
                                                 stem_channels=8, norm_cfg=dict(type='BN'), conv_cfg=conv_cfg)),
     r'SparseResNet\.dense_model_to_sparse'),
    (repmlp_block, r'RepMLPBlock\.local_inject'),
    (tood_head, 'TaskDecomposition'),
    (lambda conv_cfg: Conv2dRFSearchOp(build_conv_layer(conv_cfg, 4, 4, 3), dict(
        num_branches=3, exp_rate=0.5, mmin=1, mmax=24, init_alphas=0.01)), 'Conv2dRFSearchOp'),
], ids=['repvgg', 'mobileone', 'sparse', 'repmlp', 'tood', 'rfsearch'])
def test_what_computes_with_the_weight_alone_is_refused(make, who):
    with pytest.raises(TypeError, match=f'{who} computes with the weight of each layer itself, which in a KAN'
                       ) as error:
        make(dict(KAN, type='rkan_mm.KANConv2d'))
    assert ('skip_layer=[...])))' in str(error.value)) is (who == 'Conv2dRFSearchOp')
    make(None)


def test_a_linear_layer_folded_by_its_weight_alone():
    from mmpretrain.models.backbones.levit import LinearBatchNorm
    pair = LinearBatchNorm(4, 4)
    pair.linear = KANLinear(4, 4, bias=False)
    with pytest.raises(TypeError, match=r'LinearBatchNorm\.fuse computes with the weight of each layer itself'):
        pair.fuse()


@pytest.mark.parametrize('part', [part[:2] for part in (*PARTS, *ATTENTION)], ids=lambda part: '.'.join(part))
def test_the_parts_that_are_refused_are_still_there(part):
    try:
        module = importlib.import_module(part[0])
    except (ImportError, KeyError) as error:  # of mmpretrain's multimodal models without their dependencies
        pytest.skip(f'{type(error).__name__}: {error}')
    assert hasattr(module, part[1])


def mm_attention(name: str, *args, **kwargs) -> nn.Module:
    from mmpretrain.models.utils import attention
    return getattr(attention, name)(*args, **kwargs)


def timm_attention(**kwargs) -> nn.Module:
    from timm.models.beit import Attention
    return Attention(8, num_heads=2, **kwargs)


@pytest.mark.parametrize(('make', 'names'), [
    (lambda: nn.MultiheadAttention(8, 2), ['out_proj']),
    (lambda: ShiftedWindowAttention(8, [2, 2], [0, 0], 2), ['qkv', 'proj']),
    (lambda: ShiftedWindowAttentionV2(8, [2, 2], [0, 0], 2), ['qkv', 'proj']),
    (lambda: mm_attention('WindowMSAV2', 8, (2, 2), 2), ['qkv']),
    (lambda: mm_attention('BEiTAttention', 8, 2, (2, 2), True), ['qkv']),
    (lambda: mm_attention('CrossMultiheadAttention', 8, 2), ['q', 'k', 'v']),
    (lambda: timm_attention(qkv_bias=True), ['qkv']),
], ids=['torch', 'torchvision', 'torchvision-v2', 'swin-v2', 'beit', 'cross', 'timm'])
def test_attention_that_takes_a_weight_without_a_call_refuses_the_layer(make, names):
    """Its functions would have no part in what comes out, without a word."""
    attention = make()
    for name in names:
        plain = getattr(attention, name)
        layer = KANLinear(plain.in_features, plain.out_features)
        for put in (setattr, type(attention).add_module, type(attention).register_module):
            with pytest.raises(TypeError, match=f'takes the weight of its {name} without a call of the layer'):
                put(attention, name, layer)
        assert getattr(attention, name) is plain
        setattr(attention, name, nn.Linear(plain.in_features, plain.out_features))


@pytest.mark.parametrize('make', [
    lambda: mm_attention('BEiTAttention', 8, 2, (2, 2), True, bias=True), lambda: timm_attention(qkv_bias=False),
    lambda: timm_attention(qkv_bias=True, qkv_bias_separate=True)], ids=['beit', 'timm', 'timm-separate'])
def test_attention_that_calls_a_layer_takes_it(make):
    attention, x = make(), torch.rand(2, 5, 8)
    attention.qkv = KANLinear(8, 24, bias=False)
    attention(x).sum().backward()
    assert attention.qkv.basis_weight.grad.any()


def test_attention_of_torch_is_scripted_as_before():
    KANLinear(2, 2)
    torch.jit.script(nn.MultiheadAttention(8, 2))
