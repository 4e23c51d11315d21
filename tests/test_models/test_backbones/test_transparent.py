"""What is done to a plain backbone can be done to a RKANet and a PluggedBackbone over it: operations times backbones.

An operation that leaves the outputs of a plain backbone as they are leaves those of the RKANet over it.
"""

import copy
import io
import pickle

import pytest
import torch
from mmcv.cnn import fuse_conv_bn
from mmengine.model import convert_sync_batchnorm, revert_sync_batchnorm
from mmengine.registry import MODELS as MMENGINE_MODELS
from test_rkanet import BACKBONES, build, flat
from torch import nn
from torch.fx.experimental.optimization import fuse as fx_fuse
from torch.testing import assert_close
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names


def reverted(net):
    net = revert_sync_batchnorm(convert_sync_batchnorm(net))
    net.eval()
    return net


def torch_converted(net):
    net = revert_sync_batchnorm(nn.SyncBatchNorm.convert_sync_batchnorm(net))
    net.eval()
    return net


def saved(net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def feature_extractor(net):
    torch.fx.symbolic_trace(net)
    if net.train(False) is None:  # mm's own: torchvision's functions go on with what train() returns
        return net
    extractor = create_feature_extractor(net, {get_graph_node_names(net)[1][-1]: 'out'})
    return lambda x: extractor(x)['out']


def replaced(net):
    """Every norm by a copy that computes the same, as someone's own conversion may do."""
    for module in list(net.modules()):
        for name, child in list(module._modules.items()):
            if type(child) is nn.BatchNorm2d:
                module._modules[name] = nn.Sequential(copy.deepcopy(child))
    return net


def wrapped(net):
    """Every container and block in a wrapper that hands on its attributes, as FSDP and activation checkpointing do."""
    for name, child in list(getattr(net, 'backbone', net)._modules.items()):
        if isinstance(child, nn.Sequential):
            setattr(net, name, Handing(child)) if not hasattr(net, 'bridges') else net.backbone.__setattr__(
                name, Handing(child))
    return net


class Handing(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.module, name)

    def __iter__(self):
        return iter(self.module)

    def __getitem__(self, index):
        return self.module[index]

    def __len__(self):
        return len(self.module)


OPERATIONS = dict(  # of a network in eval mode, each gives one that computes the same
    reverted=reverted, torch_converted=torch_converted, mmcv_fuse=fuse_conv_bn,
    fx=torch.fx.symbolic_trace, fx_fuse=fx_fuse, feature_extractor=feature_extractor,
    deepcopy=copy.deepcopy, pickle=lambda net: pickle.loads(pickle.dumps(net)), save=saved,
    trace=lambda net: torch.jit.trace(net, torch.rand(2, 3, 64, 64)), replaced=replaced, wrapped=wrapped,
    fuse_then_copy=lambda net: copy.deepcopy(fuse_conv_bn(net)),
    copy_then_fuse=lambda net: fuse_conv_bn(copy.deepcopy(net)),
    reverted_then_fx=lambda net: torch.fx.symbolic_trace(reverted(net)),
    double=lambda net: lambda x, net=net: [y.float() for y in flat(net.double()(x.double()))],
    channels_last=lambda net: net.to(memory_format=torch.channels_last),
)
FAST_NETS = ('mmdet-resnet18', 'ecanet', 'densenet', 'swin', 'vgg')
FAST_OPERATIONS = ('reverted', 'mmcv_fuse', 'fx')
MATRIX = [pytest.param(operation, name, id=f'{operation}-{name}', marks=[] if name in FAST_NETS or
                       operation in FAST_OPERATIONS else pytest.mark.slow)
          for operation in OPERATIONS for name in BACKBONES]


def alive(net):
    """Statistics that matter and blocks that act."""
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.copy_(torch.rand(module.running_mean.shape, generator=generator) - 0.5)
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
            nn.init.constant_(module.weight, 0.8)
            nn.init.constant_(module.bias, 0.1)
    net.eval()
    return net


def outcome(operation, net, x):
    try:
        with torch.no_grad():
            return flat(OPERATIONS[operation](net)(x))
    except Exception as error:
        return error


@pytest.mark.parametrize(('operation', 'name'), MATRIX)
def test_operations_on_backbones(operation, name):
    torch.manual_seed(0)
    plain = alive(MMENGINE_MODELS.build(copy.deepcopy(BACKBONES[name][0])))
    net = alive(build(name))
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected, expected_plain = flat(net(x)), flat(plain(x))
    of_plain = outcome(operation, plain, x)
    if isinstance(of_plain, Exception):
        pytest.skip(f'{name} itself: {type(of_plain).__name__}')
    if BACKBONES[name][0]['type'] == 'rkan_mm.PluggedBackbone':  # which is ours, too
        for result, right in zip(of_plain, expected_plain, strict=operation != 'feature_extractor'):
            assert_close(result, right, rtol=1e-4, atol=1e-4)
    found = outcome(operation, net, x)
    assert not isinstance(found, Exception), found
    if operation == 'feature_extractor':  # the last node alone
        expected, expected_plain, of_plain = expected[-1:], expected_plain[-1:], of_plain[-1:]
    for result, right, result_plain, right_plain in zip(found, expected, of_plain, expected_plain, strict=True):
        far = (result_plain - right_plain).abs().max().item()  # an operation may change the plain backbone itself
        assert_close(result, right, rtol=1e-4, atol=1e-4 * right.abs().max().item() + 2 * far)


def graphs(net, x):
    """What `torch.compile` makes of a net: between two graphs Python runs, and what is left of the gain is small."""
    found = []
    torch.compiler.reset()
    with torch.no_grad():
        torch.compile(net, backend=lambda graph, inputs: found.append(graph) or graph.forward)(x)
    return len(found)


@pytest.mark.parametrize('training', [False, True], ids=['eval', 'train'])
@pytest.mark.parametrize('name', [pytest.param(name, marks=[] if name == 'mmdet-resnet18' else pytest.mark.slow)
                                  for name in BACKBONES])
def test_a_compiled_net_has_no_more_graphs(name, training):
    plain, x = MMENGINE_MODELS.build(copy.deepcopy(BACKBONES[name][0])), torch.rand(2, 3, 64, 64)
    plain.train(training)
    net = build(name)
    net.train(training)
    assert 1 <= graphs(net, x) <= graphs(plain, x)


def test_a_net_whose_weights_are_loaded_is_not_compiled_again():
    net, x, found = build('mmdet-resnet18'), torch.rand(2, 3, 64, 64), []
    torch.compiler.reset()
    compiled = torch.compile(net, backend=lambda graph, inputs: found.append(graph) or graph.forward)
    for _ in range(2):
        compiled(x)
        net.load_state_dict(net.state_dict())
    assert len(found) == 1
