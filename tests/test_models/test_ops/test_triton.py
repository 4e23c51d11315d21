"""The Triton kernels without a GPU: in Triton's interpreter, and compiled for several GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from triton_compiler import TARGETS, compiled

from rkan_mm.models import Chebyshev

pytest.importorskip('triton')
NAMES = ['shared_polynomial_conv']


def interpret(name: str, root: Path, *args: str) -> None:
    """Tests in a process of its own, as Triton reads the wish for its interpreter when it is imported."""
    script = Path(__file__).with_name(f'interpreted_{name}.py')
    environment = dict(os.environ, TRITON_INTERPRET='1', PYTHONPATH=str(root))
    command = [sys.executable, '-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider', *args, str(script)]
    result = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize('name', NAMES)
def test_in_the_interpreter(name, root):
    interpret(name, root, '-m', 'not slow')


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_in_the_interpreter_at_length(name, root):
    interpret(name, root, '-m', 'slow')


@pytest.mark.slow
@pytest.mark.parametrize('capability', TARGETS)
@pytest.mark.parametrize('dtype', ['fp32', 'fp16', 'bf16'])
@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('degree', [3, 6])
def test_shared_polynomial_conv_compiles(dtype, channels_last, degree, capability):
    """The interpreter takes more than the compiler does. All fits into registers, and nothing is added up by chance."""
    from rkan_mm.models.ops import shared_polynomial_conv_triton as kernels

    constants = dict(SH=2, SW=2, PH=1, PW=1, DH=1, DW=1, KH=3, KW=3, DEGREE=degree, BASE=True, SCALED=True,
                     CHANGE=Chebyshev(degree).change, SQUASH=True, HARDWARE=dtype != 'fp32', LAST=channels_last,
                     TAPS=9, TERMS=8)
    _, _, tile = kernels._tiles(torch.empty(8, 64, 7, 7).to(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format))
    arrays = dict.fromkeys(('x', 'y', 'grad', 'grad_x'), f'*{dtype}')
    arrays |= dict.fromkeys(('weight', 'base_weight', 'scaler', 'sums', 'grad_weight', 'grad_base', 'grad_scaler'),
                            '*fp32')
    for kernel in (kernels._forward, kernels._backward_input, kernels._backward_weight, kernels._finish):
        report = compiled(kernel, arrays, constants | tile, capability, maxnreg=kernels.MAX_REGISTERS)
        assert report.spills == 0
        assert 'atom.' not in report.ptx


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_says_once_that_it_goes_on_without(monkeypatch):
    from mmengine.logging import MMLogger

    from rkan_mm.models.ops import shared_polynomial_conv_triton as kernels
    from rkan_mm.models.ops import triton_launch
    from rkan_mm.models.ops.shared_polynomial_conv_torch import Window

    messages = []
    monkeypatch.setattr(MMLogger, 'log', lambda self, level, message: messages.append(message))
    monkeypatch.setattr(triton_launch, '_known', {})
    triton_launch._tell.cache_clear()
    x, weight = torch.rand(1, 2, 5, 5), torch.rand(3, 3, 3)
    for dtype in (torch.float32, torch.float16):
        assert not kernels.is_there(x.to(dtype), (weight, None, None), None, True, Window(), dtype)
    assert len(messages) == 1
    assert 'goes on in plain PyTorch, without the Triton kernels' in messages[0]
    triton_launch._tell.cache_clear()
