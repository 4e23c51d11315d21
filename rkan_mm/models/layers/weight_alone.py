"""Parts of mm and torch that compute with a layer's weight by themselves: in a KAN layer, the base branch alone."""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from rkan_mm.teaching import teach

from .folding import Folding

PARTS = (
    ('mmpretrain.models.backbones.repvgg', 'RepVGGBlock', 'switch_to_deploy'),
    ('mmpretrain.models.backbones.mobileone', 'MobileOneBlock', 'switch_to_deploy'),
    ('mmpretrain.models.backbones.repmlp', 'RepMLPBlock', 'local_inject'),
    ('mmpretrain.models.backbones.sparse_resnet', 'SparseResNet', 'dense_model_to_sparse'),
    ('mmdet.models.dense_heads.tood_head', 'TaskDecomposition', '__init__'),
    ('mmcv.cnn.rfsearch.operator', 'Conv2dRFSearchOp', '__init__'),
    ('mmpretrain.models.backbones.levit', 'LinearBatchNorm', 'fuse'),
    ('mmpretrain.models.heads.levit_head', 'BatchNormLinear', 'fuse'),
)
"""Module, class, and the method from which on functions would be left out."""

ATTENTION: tuple[tuple[str, str, tuple[str, ...], bool], ...] = (
    ('torch.nn', 'MultiheadAttention', ('out_proj',), True),
    ('torchvision.models.swin_transformer', 'ShiftedWindowAttention', ('qkv', 'proj'), True),
    ('torchvision.models.video.swin_transformer', 'ShiftedWindowAttention3d', ('qkv', 'proj'), True),
    ('mmpretrain.models.utils.attention', 'WindowMSAV2', ('qkv',), True),
    ('mmpretrain.models.utils.attention', 'BEiTAttention', ('qkv',), False),
    ('mmpretrain.models.utils.attention', 'CrossMultiheadAttention', ('q', 'k', 'v'), True),
    ('mmpretrain.models.multimodal.chinese_clip.chinese_clip', 'AttentionPool2d',
     ('q_proj', 'k_proj', 'v_proj', 'c_proj'), True),
    ('timm.models.beit', 'Attention', ('qkv',), False),
    ('timm.models.eva', 'EvaAttention', ('qkv',), False),
    ('timm.models.swin_transformer_v2', 'WindowAttention', ('qkv',), False),
)
"""Module, class, layers whose weight it takes without a call, and whether it always does: else with q_bias alone."""

OR_ELSE = {
    'Conv2dRFSearchOp': ' (conv_cfg=None), or pass over these by RFSearchHook(config=dict(search=dict('
                        'skip_layer=[...])))',
    'LinearBatchNorm': '', 'BatchNormLinear': '',
}
"""What else helps than conv_cfg."""


def teach_parts() -> None:
    """Have them refuse KAN layers, those that are imported by now; each new KAN layer asks again."""
    for module, cls, method in PARTS:
        if (part := getattr(sys.modules.get(module), cls, None)) is not None:
            teach(part, method, _refuse_kan)
    for module, cls, names, always in ATTENTION:
        if (part := getattr(sys.modules.get(module), cls, None)) is not None:
            for method in ('__setattr__', 'add_module'):
                teach(part, method, partial(_refuse_in_attention, names, always))
    if 'torch.utils.mkldnn' not in sys.modules:
        _import_mkldnn()
    if (mkldnn := sys.modules.get('torch.utils.mkldnn')) is not None:
        teach(mkldnn, 'to_mkldnn', _leave_kan)


@functools.cache
def _import_mkldnn() -> None:
    """Before a user does, whose model would not be known to it; it takes some ms."""
    with warnings.catch_warnings(), contextlib.suppress(ImportError, OSError):  # older torch compiles it, from source
        warnings.filterwarnings('ignore', r'`?torch\.jit')
        importlib.import_module('torch.utils.mkldnn')


def _leave_kan(plain: Callable, module: nn.Module, *args, **kwargs) -> nn.Module:
    """It takes KAN layers for those of their parent class; they know tensors in MKL-DNN's layout as they are."""
    if isinstance(module, Folding):
        return module
    held = [(parent, name, child) for parent in module.modules() for name, child in parent._modules.items()
            if isinstance(child, Folding)]
    for parent, name, _ in held:
        parent._modules[name] = nn.Identity()
    try:
        return plain(module, *args, **kwargs)
    finally:
        for parent, name, child in held:
            parent._modules[name] = child


def _refuse_in_attention(names: tuple[str, ...], always: bool, plain: Callable, part: Any, name: str,
                         module: Any) -> None:
    if name in names and isinstance(module, Folding) and (always or (
            getattr(part, 'q_bias', None) is not None and not getattr(part, 'qkv_bias_separate', False))):
        raise TypeError(f'{type(part).__name__} takes the weight of its {name} without a call of the layer, and in a '
                        f'{type(module).__name__} that is the base branch alone: the functions would be left out. '
                        'Leave an ordinary layer there')
    plain(part, name, module)


def _refuse_kan(plain: Callable, part: Any, *args, **kwargs) -> Any:
    builds = plain.__name__ == '__init__'
    if builds:
        plain(part, *args, **kwargs)
    for layer in part.modules():
        if isinstance(layer, Folding):
            who = type(part).__name__ + ('' if builds else f'.{plain.__name__}')
            raise TypeError(f'{who} computes with the weight of each layer itself, which in a '
                            f'{type(layer).__name__} is the base branch alone: the functions would be left out. Do '
                            'without it, or take ordinary layers there'
                            + OR_ELSE.get(type(part).__name__, ' (conv_cfg=None)'))
    return None if builds else plain(part, *args, **kwargs)
