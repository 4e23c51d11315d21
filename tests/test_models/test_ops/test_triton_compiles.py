"""The Triton kernels compiled for several GPUs (None: their launches alone): the interpreter takes more.

All values fit into registers, and nothing is added up in the order in which programs happen to run.
"""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from triton_compiler import TARGETS, compiled_launches

from rkan_mm.models import Chebyshev
from rkan_mm.models.ops.functions import KINDS, Functions

pytest.importorskip('triton')
SINGLE, HALF, BRAIN = torch.float32, torch.float16, torch.bfloat16
on_each_gpu = pytest.mark.parametrize('capability', [
    None, *(pytest.param(target, marks=pytest.mark.slow) for target in TARGETS)])


def meta(*shape: int, dtype: torch.dtype = SINGLE, channels_last: bool = False) -> torch.Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device='meta', memory_format=layout)


def functions(kind: str, count: int, grids: int, dtype: torch.dtype = SINGLE) -> Functions:
    """Splines by their knots, as a layer on a GPU has them."""
    if kind == 'polynomial':
        return Functions(kind, count, meta(3, count), steps=tuple(0.5 * n for n in range(3 * count)))
    knots = int(kind[-1]) + 1 if kind.startswith('spline') else 0
    return Functions(kind, count, meta(grids, count + knots, dtype=dtype), None if knots else meta(grids, dtype=dtype))


def check(module: ModuleType, capability: int, forward, backward, names: list[str]) -> None:
    with compiled_launches(module, capability) as reports:
        y = forward()
        backward(torch.empty_like(y))
    assert [report.name for report in reports] == names
    for report in reports:
        assert report.spills == 0, f'{report.name} spills {report.spills} bytes at {report.registers} registers'
        assert 'atom.' not in report.ptx
        assert 'red.' not in report.ptx.replace('shared.', '')


@on_each_gpu
@pytest.mark.parametrize('dtype', [SINGLE, HALF, BRAIN], ids=str)
@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize(('degree', 'channels'), [(3, 512), (6, 64)])
@pytest.mark.parametrize('act', [False, True])
def test_shared_polynomial_conv(dtype, channels_last, degree, channels, act, capability):
    from rkan_mm.models.ops import shared_polynomial_conv_triton as kernels
    from rkan_mm.models.ops.shared_polynomial_conv_torch import Window

    x, window = meta(8, channels, 14, 14, dtype=dtype, channels_last=channels_last), Window((2, 2), (1, 1))
    parameters, change = (meta(degree + 1, 3, 3), meta(3, 3), meta(3, 3)), Chebyshev(degree).change
    check(kernels, capability, lambda: kernels.forward(x, parameters, change, True, window, dtype, act),
          lambda grad: kernels.backward(x, parameters, change, True, window, grad, True, True, act),
          ['forward', 'backward_input', 'backward_weight', 'finish'])
    norm = *[meta(channels)] * 4, 1e-5
    check(kernels, capability, lambda: kernels.forward(x, parameters, change, True, window, dtype, act, norm),
          lambda grad: None, ['forward'])


EXPAND = [('spline3', 8, SINGLE, False), ('spline3', 8, BRAIN, True), ('spline2', 13, HALF, False),
          ('gaussian', 8, BRAIN, False), ('switch', 64, SINGLE, True), ('polynomial', 3, HALF, False),
          ('polynomial', 12, SINGLE, True)]


@on_each_gpu
@pytest.mark.parametrize(('kind', 'count', 'dtype', 'own'), EXPAND)
def test_expand(kind, count, dtype, own, capability):
    from rkan_mm.models.ops import expand_triton as kernels

    x = meta(4096, 784, dtype=dtype) if own else meta(32, 64, 3136, dtype=dtype)
    setting = 'silu', kind == 'polynomial', True
    of = functions(kind, count, x.shape[1])
    check(kernels, capability, lambda: kernels.forward(x, of, setting, dtype),
          lambda grad: kernels.backward(x, of, setting, grad), ['_forward', '_backward'])


FUSED = [
    # kind, functions, inputs, outputs, kernel, stride, dtype, channels_last
    ('spline3', 8, 64, 64, 3, 1, BRAIN, True), ('spline3', 8, 512, 512, 1, 1, BRAIN, True),
    ('gaussian', 8, 64, 64, 3, 2, HALF, False), ('gaussian', 8, 784, 256, 1, 1, SINGLE, True),
    ('polynomial', 3, 64, 128, 3, 1, HALF, True), ('switch', 16, 50, 70, 1, 1, HALF, True),
    ('spline1', 8, 64, 64, 1, 1, HALF, True),
    ('spline2', 7, 64, 64, 3, 1, SINGLE, False), ('spline3', 8, 1, 64, 3, 1, HALF, True)]


@on_each_gpu
@pytest.mark.parametrize(('kind', 'count', 'inputs', 'outputs', 'kernel', 'stride', 'dtype', 'channels_last'), FUSED)
def test_fused(kind, count, inputs, outputs, kernel, stride, dtype, channels_last, capability):
    from rkan_mm.models.ops import fused_triton as kernels

    x = meta(32, inputs, 56, 56, dtype=dtype, channels_last=channels_last) if kernel > 1 else meta(
        4096, inputs, dtype=dtype)[..., None, None]  # as a linear layer gives it
    polynomial, shape = kind == 'polynomial', (outputs, inputs, kernel, kernel)
    setting = kernels.Setting('silu', polynomial, polynomial, (kernel,) * 2, (stride,) * 2, (kernel // 2,) * 2)
    parameters = kernels.Parameters(meta(outputs, inputs, count + polynomial, kernel, kernel), meta(*shape),
                                    meta(*shape), None, meta(outputs))
    of = functions(kind, count, inputs)
    check(kernels, capability, lambda: kernels.forward(x, parameters, of, setting, dtype),
          lambda grad: kernels.backward(x, parameters, of, setting, grad, True, True),
          ['pack', 'forward', 'pack', 'backward_input', 'backward_weight', 'finish'])


def test_all_kinds_are_compiled():
    assert {case[0] for case in (*EXPAND, *FUSED)} == {*KINDS}
