"""Whole RKANets leave PyTorch by every exporter and compute the same there, at sizes that were not traced."""

from __future__ import annotations

import io
import itertools

import pytest
import torch
from mmengine.utils import digit_version
from torch import Tensor, nn
from torch.export import Dim

from rkan_mm.deploy import exportable
from rkan_mm.models import RKANBlock, RKANet, SharedKANConv2d
from rkan_mm.models.layers.shared_kan_conv import PATCHWISE
from rkan_mm.registry import BASES

runtime = pytest.importorskip('onnxruntime')
onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxscript')

pytestmark = pytest.mark.filterwarnings('ignore:You are using the legacy TorchScript-based ONNX export')

TRACED = (2, 3, 96, 128)
OTHERS = ((1, 3, 128, 96), (3, 3, 107, 133))
EVEN = (3, 3, 160, 224)
DYNAMIC = {0: 'batch', 2: 'height', 3: 'width'}
NARROW = dict(type='mmpretrain.ResNet', depth=18, base_channels=4, stem_channels=4)

BACKBONES = dict(
    resnet=(dict(NARROW, out_indices=(2, 3)), ('layer3', 'layer4')),
    densenet=(dict(type='mmpretrain.DenseNet', arch=dict(growth_rate=4, depths=[1, 1, 2, 2], init_channels=8)),
              ('stages.2:transitions.2', 'stages.3:transitions.3')),
    regnety=(dict(type='rkan_mm.RegNetY', arch=dict(w0=8, wa=8.0, wm=2.0, group_w=4, depth=6, bot_mul=1.0)),
             ('layer4',)),
    swin=(dict(type='mmpretrain.SwinTransformer', window_size=2, pad_small_map=True,
               arch=dict(embed_dims=8, depths=[1, 1, 1, 2], num_heads=[1, 1, 2, 2])),
          ('stages.3.blocks.0:stages.3.blocks.1',)),
    timm=(dict(type='mmpretrain.TIMMBackbone', model_name='resnet10t', features_only=True, pretrained=False),
          ('timm_model.layer4',)),
)
BLOCKS = [dict(basis=dict(type=basis), normalization=normalization)
          for basis, normalization in itertools.product(sorted(BASES.module_dict), (None, 'layer_norm'))]
BLOCKS += [dict(normalization=normalization) for normalization in (*PATCHWISE, 'none')] + [dict(with_base=False)]
CASES = {**BACKBONES,  # then every basis and normalisation, four to a model
         **{f'blocks{i}': (NARROW, {f'layer{j + 1}': block for j, block in enumerate(BLOCKS[i:i + 4])})
            for i in range(0, len(BLOCKS), 4)}}


class Stacked(nn.Module):
    """A backbone whose maps come as one tensor."""

    def __init__(self, name: str) -> None:
        super().__init__()
        backbone, stages = CASES[name]
        self.backbone = RKANet(backbone=backbone, stages=stages)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([out.flatten(1) for out in self.backbone(x)], 1)


def session(path):
    run = runtime.InferenceSession(path, providers=['CPUExecutionProvider']).run
    return lambda x: torch.from_numpy(run(None, {'image': x.numpy()})[0])


def by_torchscript(model, x, dynamic, path, opset):
    torch.onnx.export(model, (x,), path, dynamo=False, opset_version=opset, input_names=['image'],
                      dynamic_axes={'image': DYNAMIC} if dynamic else None)
    return session(path)


def by_torch_export(model, x, dynamic, path, opset):
    torch.onnx.export(model, (x,), path, dynamo=True, opset_version=opset, input_names=['image'], verbose=False,
                      dynamic_shapes=(DYNAMIC,) if dynamic else None)
    return session(path)


def exported(model, x, dynamic, path=None):
    sizes = (dict.fromkeys(DYNAMIC, Dim.AUTO),) if dynamic else None
    return torch.export.export(model, (x,), dynamic_shapes=sizes)


def compiled(model, x, dynamic, path):
    path = path.replace('.onnx', '.pt2')
    torch._inductor.aoti_compile_and_package(exported(model, x, dynamic), package_path=path)
    return torch._inductor.aoti_load_package(path)


FORMS = {
    'onnx, TorchScript, opset 11': lambda *args: by_torchscript(*args, 11),
    'onnx, TorchScript, opset 17': lambda *args: by_torchscript(*args, 17),
    'onnx, TorchScript, opset 20': lambda *args: by_torchscript(*args, 20),
    'onnx, torch.export, opset 18': lambda *args: by_torch_export(*args, 18),
    'onnx, torch.export, opset 20': lambda *args: by_torch_export(*args, 20),
    'torch.jit.trace': lambda model, x, dynamic, path: torch.jit.trace(model, x),
    'torch.export': lambda *args: exported(*args).module(),
    'AOTInductor': compiled,
}
FAST = {('onnx, TorchScript, opset 11', 'resnet'), ('torch.jit.trace', 'densenet'), ('torch.export', 'resnet'),
        ('onnx, torch.export, opset 20', 'resnet'),
        *itertools.product(['onnx, TorchScript, opset 20'], CASES)}


@pytest.mark.parametrize('dynamic', [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize(('form', 'name'), [
    pytest.param(*case, marks=[] if case in FAST else pytest.mark.slow) for case in itertools.product(FORMS, CASES)])
def test_computes_the_same(form, name, dynamic, tmp_path):
    if (form, name, dynamic) == ('AOTInductor', 'swin', True):
        pytest.skip("torch 2.14 simplifies Swin's sizes for more than ten minutes, those of the plain backbone too")
    model, x = Stacked(name).eval(), torch.randn(TRACED)
    with exportable(model), torch.no_grad():
        run = FORMS[form](model, x, dynamic, str(tmp_path / 'model.onnx'))
    others = list(OTHERS)
    if form in ('torch.export', 'AOTInductor') and digit_version(torch.__version__) < digit_version('2.13'):
        others[1] = EVEN  # what torch 2.12 exports of a max pool, in plain backbones too, is for odd or for even maps
    if (form, name) == ('AOTInductor', 'timm'):
        others[1] = EVEN  # garbage from odd maps on, by ceil_mode, in the plain backbone too (torch 2.14)
    for image in (x, *(torch.randn(size) for size in others if dynamic)):
        with torch.no_grad():
            expected, out = model(image), run(image)
        assert out.shape == expected.shape
        assert (out - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize('form', [form for form in FORMS if form.startswith('onnx')])
@pytest.mark.parametrize('last', [True, False])
def test_a_block_is_few_nodes(form, last, tmp_path):
    path = tmp_path / 'model.onnx'
    FORMS[form](RKANBlock(16, 32, 2, last).eval(), torch.randn(2, 16, 12, 12), False, str(path))
    nodes = [node for node in onnx.load(path).graph.node if node.op_type not in ('Constant', 'Identity')]
    assert len(nodes) <= (27 if last else 19), sorted(node.op_type for node in nodes)


def test_a_model_with_a_module_at_two_places():
    """`torch.export` then shows each module through stand-ins; detectors as a graph are such."""
    model, x = Stacked('resnet').eval(), torch.randn(TRACED)
    model.again = nn.ModuleList([model.backbone.backbone.bn1])
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(exported(model, x, False).module()(x), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(x), expected)


def test_what_was_rewritten_is_itself_again():
    model, x = Stacked('swin').eval(), torch.randn(OTHERS[1])
    with torch.no_grad():
        before = model(x)
        with exportable(model):
            torch.testing.assert_close(model(x), before)
    assert not any('forward' in vars(module) for module in model.modules())


def test_patches_leave_for_any_size():
    """By `torch.export`, whose sizes are symbols, and at the oldest opset, which has no einsum."""
    conv = SharedKANConv2d(3, 2, 1, normalization='min-max').eval()
    example, other = torch.rand(2, 3, 16, 18), torch.rand(1, 3, 23, 12)
    sizes = {0: Dim('b', max=64), 2: Dim('h', min=8, max=640), 3: Dim('w', min=8, max=640)}
    program = torch.export.export(conv, (example,), dynamic_shapes=(sizes,), strict=False)
    torch.testing.assert_close(program.module()(other), conv(other))
    torch.onnx.export(conv, (example,), io.BytesIO(), dynamo=False, opset_version=11)
