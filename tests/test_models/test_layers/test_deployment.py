"""What is done with modules besides calling them, with every layer on every basis."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
import torch.distributed as dist
from killing import in_ranks
from mmengine.utils import digit_version
from torch import nn
from torch.testing import assert_close

from rkan_mm.models import KANConv1d, KANConv2d, KANConv3d, KANConvTranspose2d, KANLinear, SharedKANConv2d
from rkan_mm.models.layers.shared_kan_conv import PATCHWISE
from rkan_mm.models.layers.sparsity import Sparsity
from rkan_mm.registry import BASES

LAYERS = {
    'conv1d': (lambda **a: KANConv1d(4, 2, 3, padding=1, groups=2, **a), (3, 4, 6)),
    'conv2d': (lambda **a: KANConv2d(2, 3, 3, stride=2, padding=1, **a), (3, 2, 5, 6)),
    'conv3d': (lambda **a: KANConv3d(2, 2, 2, **a), (3, 2, 4, 5, 6)),
    'transposed': (lambda **a: KANConvTranspose2d(2, 2, 2, 2, **a), (3, 2, 5, 4)),
    'linear': (lambda **a: KANLinear(4, 3, **a), (3, 4)),
    'low memory': (lambda **a: KANConv2d(2, 3, 3, memory='low', **a), (3, 2, 5, 6)),
    'shared': (lambda **a: SharedKANConv2d(3, 2, 1, **a), (3, 2, 5, 6)),
}
layers = pytest.mark.parametrize('kind', LAYERS)
# compilers take seconds for each layer: one kind with every basis in each run of the tests, the others in the long one
some = pytest.mark.parametrize('kind', [
    kind if kind == 'conv2d' else pytest.param(kind, marks=pytest.mark.slow) for kind in LAYERS])


class EveryBasis(nn.Module):
    """The same layer on all bases, side by side."""

    def __init__(self, kind: str, **a):
        super().__init__()
        self.layers = nn.ModuleList(LAYERS[kind][0](basis=dict(type=name), **a) for name in sorted(BASES.module_dict))

    def forward(self, x):
        return [layer(x) for layer in self.layers]


def gradients(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    x = x.detach().clone().requires_grad_()
    outs = model(x)
    sum((out * out).sum() for out in outs).backward()
    return [*outs, x.grad, *[parameter.grad.clone() for parameter in model.parameters()]]


@layers
def test_is_one_graph_for_all_sizes(kind):
    torch._dynamo.reset()
    model, shape = EveryBasis(kind), LAYERS[kind][1]
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend='eager')
    assert_close(compiled(torch.ones(shape)), model(torch.ones(shape)), rtol=1e-4, atol=1e-5)
    x = torch.randn(5, *shape[1:-1], shape[-1] + (2 if kind != 'linear' else 0))
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


@some
@pytest.mark.parametrize('dynamic', [True, pytest.param(False, marks=pytest.mark.slow)])
def test_compiled_gradients(kind, dynamic):
    torch._dynamo.reset()
    model, shape = EveryBasis(kind), LAYERS[kind][1]
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend='aot_eager')
    x = torch.randn(shape)
    assert_close(gradients(compiled, x), gradients(model, x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@layers
def test_inductor(kind):
    torch._dynamo.reset()
    model, x = EveryBasis(kind), torch.randn(LAYERS[kind][1])
    compiled = torch.compile(model, fullgraph=True)
    assert_close(gradients(compiled, x), gradients(model, x), rtol=1e-4, atol=1e-5)


@some
def test_exports(kind):
    model, shape = EveryBasis(kind).eval(), LAYERS[kind][1]
    sizes = {0: torch.export.Dim('batch', max=64)}
    # torch 2.12 does not see that (C, P) may be viewed as one dimension whatever the width is
    dynamic_width = kind != 'linear' and digit_version(torch.__version__) >= digit_version('2.13')
    if dynamic_width:
        sizes[len(shape) - 1] = torch.export.Dim('width', min=4, max=512)
    exported = torch.export.export(model, (torch.randn(shape),), dynamic_shapes=(sizes,)).module()
    for x in (torch.randn(shape), torch.randn(5, *shape[1:-1], shape[-1] + (2 if dynamic_width else 0))):
        assert_close(exported(x), model(x), rtol=1e-4, atol=1e-5)


@some
def test_onnx_gives_the_same(kind, tmp_path):
    pytest.importorskip('onnxscript')
    runtime = pytest.importorskip('onnxruntime')
    model, x = EveryBasis(kind).eval(), torch.randn(LAYERS[kind][1])
    path = str(tmp_path / 'model.onnx')
    torch.onnx.export(model, (x,), dynamo=True, verbose=False).save(path)
    session = runtime.InferenceSession(path, providers=['CPUExecutionProvider'])
    outs = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    for out, expected in zip(outs, model(x), strict=True):
        np.testing.assert_allclose(out, expected.detach().numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('pruned', [False, True])
@pytest.mark.parametrize('kind', [*LAYERS, *PATCHWISE])
def test_a_trace_is_converted_and_moved_as_that_of_a_plain_net(kind, pruned):
    """As C++ has it by `module.to(torch::kHalf)`: no dtype and no device of the trace stands in it."""
    model = EveryBasis(kind) if kind in LAYERS else EveryBasis('shared', normalization=kind)
    x = torch.randn(LAYERS.get(kind, LAYERS['shared'])[1])
    for layer in model.modules():
        if pruned and isinstance(layer, Sparsity):
            layer.prune(0.4)
    traced, file = torch.jit.trace(model.eval(), x, strict=False, check_trace=False), io.BytesIO()
    assert 'Device = prim' not in str(traced.inlined_graph)
    torch.jit.save(traced, file)
    for dtype, tolerance in ((torch.float64, 1e-5), (torch.float16, 2e-2)):
        file.seek(0)
        outs = torch.jit.load(file).to(dtype)(x.to(dtype))
        for out, expected in zip(outs, model(x), strict=True):
            assert out.dtype == dtype
            assert (out - expected).norm() <= tolerance * expected.norm()


@layers
@pytest.mark.parametrize('copied', [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies(kind, copied):
    model, x = EveryBasis(kind), torch.randn(LAYERS[kind][1])
    other = copied(model)
    assert_close(gradients(other, x), gradients(model, x))
    for parameter in other.parameters():
        parameter.data += 1
    assert not any(a.equal(b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@layers
@pytest.mark.parametrize('copied', [copy.deepcopy, lambda model: model])
def test_saved_whole_is_what_is_in_the_model_and_nothing_more(kind, copied):
    """What is kept between calls may be on a GPU that is not there when the model is loaded."""
    model, x, file, found = EveryBasis(kind), torch.randn(LAYERS[kind][1]), io.BytesIO(), []
    gradients(model, x)
    torch.save(copied(model.zero_grad() or model), file)
    file.seek(0)
    torch.load(file, weights_only=False, map_location=lambda storage, location: found.append(storage) or storage)
    assert len(found) == len([*model.parameters(), *model.buffers()])


def train_in_ranks(rank: int, store: str) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=2)
    for kind, (_, shape) in LAYERS.items():
        whole = EveryBasis(kind)
        model = nn.parallel.DistributedDataParallel(copy.deepcopy(whole))  # without find_unused_parameters
        x = torch.randn(4, *shape[1:])
        for _ in range(2):
            model.zero_grad()
            sum((out * out).mean() for out in model(x[2 * rank:2 * rank + 2])).backward()
        sum((out * out).mean() for out in whole(x)).backward()
        for ours, alone in zip(model.parameters(), whole.parameters(), strict=True):
            assert_close(ours.grad, alone.grad, rtol=1e-3, atol=1e-5)
    dist.destroy_process_group()


def test_two_ranks_equal_one(tmp_path):
    in_ranks(train_in_ranks, str(tmp_path / 'store'))
