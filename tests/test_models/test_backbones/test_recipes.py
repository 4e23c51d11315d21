"""A RKANet in the recipes of mm: what heads, optimizers and other libraries ask of a backbone."""

import copy
import gc
import threading
import types
import weakref

import pytest
import torch
from mmdet.engine.hooks import NumClassCheckHook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import init_default_scope
from test_rkanet import BACKBONES, NARROW, build, flat
from torch import nn
from torch.testing import assert_close

from rkan_mm.models import RKANet

RESNET = dict(type='mmdet.ResNet', depth=18, **NARROW)
TRIDENT = dict(type='mmdet.TridentResNet', depth=50, num_branch=3, test_branch_idx=1, trident_dilations=(1, 2, 3),
               num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2,), **NARROW)
DETECTORS = dict(type='mmdet.DetectoRS_ResNet', depth=50, conv_cfg=dict(type='ConvAWS'), **NARROW)
CONVNEXT = dict(type='mmpretrain.ConvNeXt', arch=dict(depths=[1, 1, 4, 1], channels=[8, 8, 16, 16]),
                out_indices=[0, 1, 2, 3], gap_before_final_norm=False)


# -- attributes --------------------------------------------------------------------------------------------------------
def test_attributes_are_those_of_the_backbone_to_read_and_to_write():
    net = RKANet(dict(type='rkan_mm.PluggedBackbone', backbone=dict(RESNET, frozen_stages=1, norm_eval=True),
                      plugins=[dict(cfg=dict(type='rkan_mm.ECA'))]))
    plain = net.backbone
    assert (net.frozen_stages, net.norm_eval, net.out_indices, net.depth) == (1, True, (0, 1, 2, 3), 18)
    assert net.layer4 is plain.layer4
    net.frozen_stages = 2
    net.train()
    assert plain.frozen_stages == 2
    assert not any(p.requires_grad for p in plain.layer2.parameters())
    net.layer3 = nn.Sequential(plain.layer3)
    assert plain.layer3 is net.layer3
    net._freeze_stages()  # some recipes call what is not public
    assert net.norm1 is plain.norm1
    net.note = 'mine'
    assert not hasattr(plain, 'note')
    assert not hasattr(net, 'num_branch')
    with pytest.raises(AttributeError, match="'ResNet' object has no attribute 'num_branch'"):
        net.num_branch  # noqa: B018


def test_tridentnet_in_every_branch():
    net = RKANet(TRIDENT, ('layer3',), block=dict(type='RKANBlock', zero_init_residual=True))
    assert (net.num_branch, net.test_branch_idx) == (3, 1)
    for parameter in net.layer3.parameters():  # some are as memory had them
        nn.init.normal_(parameter, std=0.1)
    plain = copy.deepcopy(net.backbone)
    x = torch.rand(2, 3, 64, 64)
    for mode, batch in ((True, 6), (False, 2)):
        net.train(mode)
        plain.train(mode)
        assert net(x)[0].shape[0] == batch
        assert_close(net(x), plain(x))
    net.train()
    plain.train()
    nn.init.ones_(net.bridges['layer3'].block.norm2.weight)
    residuals = []
    net.bridges['layer3'].block.register_forward_hook(lambda module, args, out: residuals.append(out))
    out = net(x)[0]
    assert_close(out - plain(x)[0], torch.cat(residuals * 3), rtol=1e-3, atol=1e-4)


def test_detectors_runs_its_recursion_with_the_blocks():
    torch.manual_seed(0)
    net = RKANet(dict(DETECTORS, rfp_inplanes=8), ('layer2', 'layer4'))
    net.eval()
    x, feats = torch.rand(1, 3, 64, 64), [torch.rand(1, 8, size, size) for size in (16, 8, 4, 2)]
    for layer in (net.layer2, net.layer3, net.layer4):
        nn.init.normal_(layer[0].rfp_conv.weight, std=0.1)
    with torch.no_grad():
        with_blocks, plain = net.rfp_forward(x, feats), net.backbone.rfp_forward(x, feats)
        assert_close(with_blocks[0], plain[0])
        assert not torch.allclose(with_blocks[1], plain[1])
        for bridge in net.bridges.values():
            nn.init.zeros_(bridge.block.norm2.weight)
        assert_close(net.rfp_forward(x, feats), plain)
    with pytest.raises(ValueError, match=r'rfp_forward of DetectoRS_ResNet runs past stage .layer4.0.; take whole '
                                         'stages: layer1, layer2, layer3, layer4'):
        RKANet(dict(DETECTORS, rfp_inplanes=8), ('layer4.0',)).rfp_forward(x, feats)


def test_a_backbone_that_takes_more_than_images():
    arch = dict(embed_dims=8, depths=[2, 2, 2, 2], num_heads=[1] * 4)
    cfg = dict(type='mmpretrain.SimMIMSwinTransformer', arch=arch, img_size=64, pad_small_map=True, drop_path_rate=0,
               stage_cfgs=dict(block_cfgs=dict(window_size=2)))
    net = RKANet(cfg, ('stages.1.blocks.0:stages.1.blocks.1',))
    mask = torch.randint(0, 2, (1, 16, 16))
    x = torch.rand(1, 3, 64, 64)
    for other in (net, copy.deepcopy(net)):
        other.eval()
        assert_close(other(x, mask), net(x, mask=mask))
        assert not torch.allclose(flat(other(x, mask))[0], flat(other(x, 0 * mask))[0])


# -- optimizers --------------------------------------------------------------------------------------------------------
def layer_scales(model, cfg):
    wrapper = build_optim_wrapper(model, copy.deepcopy(cfg))
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)].replace('backbone.backbone.', 'backbone.'): (group['lr'], group['weight_decay'])
            for group in wrapper.optimizer.param_groups for p in group['params']}


@pytest.mark.parametrize('backbone', [
    (CONVNEXT, ('stages.2', 'stages.3')), (CONVNEXT, ('stages.1:downsample_layers.2', 'stages.3')), BACKBONES['swin'],
    BACKBONES['mmpretrain-resnet34'],
    (dict(type='rkan_mm.PluggedBackbone', backbone=BACKBONES['mmpretrain-resnet34'][0],
          plugins=[dict(cfg=dict(type='rkan_mm.ECA'))]), ('layer3', 'layer4'))],
    ids=['convnext', 'convnext-span', 'swin', 'resnet', 'plugged'])
def test_layer_wise_decay_of_mmpretrain(backbone):
    init_default_scope('mmpretrain')
    cfg = dict(optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05),
               constructor='LearningRateDecayOptimWrapperConstructor',
               paramwise_cfg=dict(layer_decay_rate=0.5, norm_decay_mult=0.0))
    plain, stages = backbone
    found = []
    for each in (plain, dict(type='rkan_mm.RKANet', backbone=plain, stages=stages)):
        model = MMENGINE_MODELS.build(dict(type='ImageClassifier', backbone=copy.deepcopy(each),
                                           head=dict(type='LinearClsHead', in_channels=16, num_classes=2)))
        found.append(layer_scales(model, cfg))
    plain, ours = found
    assert {name: value for name, value in ours.items() if 'bridges' not in name} == plain
    blocks = {name: lr for name, (lr, _) in ours.items() if 'bridges' in name}
    assert len(set(blocks.values())) > len(stages) - 2
    for lr in blocks.values():  # not that of the head, nor of the stem
        assert min(value for value, _ in plain.values()) < lr <= 1.0


@pytest.mark.parametrize('decay_type', ['layer_wise', 'stage_wise'])
def test_layer_wise_decay_of_mmdet(decay_type):
    init_default_scope('mmdet')
    cfg = dict(optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05),
               constructor='LearningRateDecayOptimizerConstructor',
               paramwise_cfg=dict(decay_rate=0.5, decay_type=decay_type, num_layers=6))
    found = []
    for each in (CONVNEXT, dict(type='rkan_mm.RKANet', backbone=CONVNEXT, stages=('stages.1', 'stages.3'))):
        model = nn.ModuleDict(dict(backbone=MMENGINE_MODELS.build(copy.deepcopy(each)), head=nn.Linear(8, 2)))
        model.__dict__['backbone'] = model['backbone']  # as an attribute, which detectors have
        found.append(layer_scales(model, cfg))
    plain, ours = found
    assert {name: value for name, value in ours.items() if 'bridges' not in name} == plain
    for stage in ('1', '3'):
        lr = {plain[name] for name in plain if name.startswith(f'backbone.stages.{stage}.')}
        assert {value for name, value in ours.items() if f'bridges.stages_{stage}.' in name} == lr


def test_ssd_whose_hook_counts_classes():
    """It asks all modules for their number of classes but a VGG, which has another one."""
    vgg = dict(type='mmdet.SSDVGG', depth=11, with_last_pool=False, ceil_mode=True, out_indices=(3, 4),
               out_feature_indices=(15, 24))
    net = RKANet(vgg, stages=('features.11:features.15',), input_size=(300, 300))
    data = types.SimpleNamespace(metainfo=dict(classes=('a', 'b', 'c')))
    NumClassCheckHook()._check_head(types.SimpleNamespace(
        model=nn.ModuleDict(dict(backbone=net)), train_dataloader=types.SimpleNamespace(dataset=data)), 'train')
    assert net.backbone.num_classes == -1


# -- training ----------------------------------------------------------------------------------------------------------
def test_frozen_blocks_and_norms_in_eval_mode():
    net = RKANet(RESNET, ('layer2', 'layer3', 'layer4'), fusion=dict(type='SE'), frozen_stages=('layer2', 'layer4'))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    for _ in range(2):
        net.train()
        sum(out.sum() for out in net(torch.rand(2, 3, 64, 64))).backward()
        torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1).step()
    changed = {name.split('.')[1] for name, value in net.state_dict().items()
               if name.startswith('bridges') and not value.equal(before[name])}
    assert changed == {'layer3'}
    net = RKANet(RESNET, norm_eval=True)
    net.train()
    assert not any(m.training for m in net.bridges.modules() if isinstance(m, nn.BatchNorm2d))
    assert net.bridges['layer4'].block.training
    assert all(p.requires_grad for p in net.bridges.parameters())
    with pytest.raises(ValueError, match=r"frozen_stages=\('layer1',\), but the stages are layer4"):
        RKANet(RESNET, frozen_stages=('layer1',))


def test_one_image_with_maps_of_one_pixel():
    x = torch.rand(1, 3, 32, 32)
    plain = MMENGINE_MODELS.build(RESNET)  # norm_eval by default
    plain.train()
    plain(x)
    net = RKANet(RESNET)
    net.train()
    with pytest.raises(ValueError, match=r"RKANet: stage 'layer4': .*norm_cfg=dict\(type='GN', .*norm_eval=True"):
        net(x)
    for options in (dict(norm_eval=True), dict(block=dict(type='RKANBlock', norm_cfg=dict(type='GN', num_groups=1)))):
        net = RKANet(RESNET, **options)
        net.train()
        net(x)[-1].sum().backward()


@pytest.mark.parametrize('name', ['mmdet-resnet18', 'densenet', 'swin', 'ecanet', 'vgg'])
def test_threads_in_one_model(name):
    net = build(name)
    net.eval()
    images = [torch.rand(1 + i % 3, 3, 64, 64) for i in range(8)]
    with torch.no_grad():
        expected = [flat(net(image))[-1] for image in images]
    start, found = threading.Barrier(8), [[] for _ in images]

    def run(i):
        start.wait()
        with torch.no_grad():
            for _ in range(4):
                found[i].append(flat(net(images[i]))[-1])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for results, right in zip(found, expected, strict=True):
        assert len(results) == 4
        for result in results:
            assert_close(result, right, rtol=1e-4, atol=1e-4)


def test_an_error_in_a_stage_leaves_nothing_behind():
    net = build('densenet')
    net.eval()
    x = torch.rand(1, 3, 64, 64)
    expected = net(x)[-1]
    failing = net.stages[0].register_forward_hook(lambda *_: 1 / 0)
    image = torch.rand(2, 3, 64, 64)
    with pytest.raises(ZeroDivisionError):
        net(image)
    failing.remove()
    copy.deepcopy(net)
    assert_close(net(x)[-1], expected)
    reference = weakref.ref(image)
    del image
    gc.collect()
    assert reference() is None
