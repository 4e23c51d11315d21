"""Checkpoints of plain backbones in older forms, which the backbone, or a module in it, translates."""

import copy
import pickle

import pytest
import torch
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.runner.checkpoint import load_state_dict
from test_rkanet import BACKBONES, NARROW, build, flat
from torch import nn

from rkan_mm.models import RKANet
from rkan_mm.models.backbones.place import places_of

RESNET = dict(type='mmdet.ResNet', depth=18, **NARROW)


def load_by_torch(model, state_dict):
    missing, unexpected = model.load_state_dict(state_dict, strict=False)
    return [key for key in missing if 'bridges' not in key], unexpected


def load_by_mmengine(model, state_dict):
    load_state_dict(model, state_dict, strict=False)
    return [], []


LOADERS = pytest.mark.parametrize('load', [load_by_torch, load_by_mmengine], ids=['torch', 'mmengine'])
PREFIX = pytest.mark.parametrize('prefix', ['', 'backbone.'], ids=['alone', 'in a model'])


def within(net, prefix):
    return nn.ModuleDict(dict(backbone=net)) if prefix else net


@LOADERS
@PREFIX
@pytest.mark.parametrize('wrapped', [False, True])
def test_norm_of_mmclss_swin(load, prefix, wrapped):
    cfg, stages = copy.deepcopy(BACKBONES['swin'])
    cfg['out_indices'] = (3,)
    state = {prefix + key.replace('norm3.', 'norm.'): torch.full_like(value, 3) if 'norm3.' in key else value
             for key, value in MMENGINE_MODELS.build(copy.deepcopy(cfg)).state_dict().items()}
    state[f'{prefix}stages.0.blocks.1.attn_mask'] = torch.zeros(1)
    net = RKANet(cfg, stages) if wrapped else MMENGINE_MODELS.build(cfg)
    assert load(within(net, prefix), state) == ([], [])
    assert net.norm3.weight.eq(3).all()


def rename(state_dict, prefix, old, new):
    for key in [key for key in state_dict if key.startswith(prefix + old)]:
        state_dict[prefix + new + key.removeprefix(prefix + old)] = state_dict.pop(key)


@LOADERS
@PREFIX
@pytest.mark.parametrize('place', ['backbone', 'stage'])
@pytest.mark.parametrize('wrapped', [False, True])
def test_renamed_by_hooks(load, prefix, place, wrapped):
    """As older deformable convolutions and absolute positions of Swin are."""
    net = RKANet(copy.deepcopy(RESNET)) if wrapped else MMENGINE_MODELS.build(copy.deepcopy(RESNET))
    old, new, holder = {'backbone': ('res5.', 'layer4.', getattr(net, 'backbone', net)),
                        'stage': ('first.', '0.', net.layer4)}[place]
    holder.register_load_state_dict_pre_hook(lambda module, state, prefix, *args: rename(state, prefix, old, new))
    plain = MMENGINE_MODELS.build(RESNET).state_dict()
    state = {prefix + key: torch.full_like(value, 3) for key, value in plain.items()}
    rename(state, prefix, *(('layer4.', 'res5.') if place == 'backbone' else ('layer4.0.', 'layer4.first.')))
    state.update({f'{prefix}fc.weight': torch.zeros(1)} if not prefix else {})
    assert load(within(net, prefix), state) == ([], [] if prefix or load is load_by_mmengine else ['fc.weight'])
    assert net.layer4[0].conv1.weight.eq(3).all()
    assert net.layer1[0].conv1.weight.eq(3).all()


def test_a_model_that_was_saved_whole_before_places_kept_their_ids():
    net, x = build('mmdet-resnet18').eval(), torch.rand(1, 3, 64, 64)
    expected = flat(net(x))
    for module in net.modules():
        for place in places_of(module):
            place.__dict__.pop('_keys', None)
    torch.testing.assert_close(flat(pickle.loads(pickle.dumps(net))(x)), expected)
