import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from shared_polynomial_cases import CASES, check, settings, tensors

from rkan_mm.models.ops import shared_polynomial_conv2d

pytest.importorskip('triton')


def test_equals_the_oracle_in_the_interpreter(root):
    """In a process of its own, as Triton reads the wish for its interpreter when it is imported."""
    script = Path(__file__).with_name('triton_interpreter.py')
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(root), str(root / 'tests')]))
    result = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.parametrize('dtype', ['fp32', 'fp16', 'bf16'])
def test_compiles_for_a_gpu(dtype):
    """The interpreter takes more than the compiler does. No GPU is needed for this; no atomic operations come out."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from rkan_mm.models.ops import shared_polynomial_conv_triton as kernels

    constants = dict(SH=2, SW=2, PH=1, PW=1, DH=1, DW=1, KH=3, KW=3, DEGREE=3, BASE=True, SQUASH=True, BLOCK=1024,
                     TERMS=8)
    arrays = dict.fromkeys(('x', 'y', 'grad', 'grad_x'), f'*{dtype}')
    arrays |= dict.fromkeys(('coefficients', 'constant', 'sums'), '*fp32')
    for kernel in (kernels._forward, kernels._backward_input, kernels._backward_weight):
        signature = {name: 'constexpr' if name in constants else arrays.get(name, 'i32') for name in kernel.arg_names}
        used = {name: value for name, value in constants.items() if name in kernel.arg_names}
        source = ASTSource(fn=kernel, signature=signature, constexprs=used)
        assembly = triton.compile(source, target=GPUTarget('cuda', 90, 32)).asm
        assert assembly['cubin']
        assert 'atom.' not in assembly['ptx']


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
@pytest.mark.parametrize('case', CASES.values(), ids=CASES.keys())
def test_equals_the_oracle_on_a_gpu(case):
    from rkan_mm.models.ops import shared_polynomial_conv_triton as kernels

    assert kernels.is_there()
    inputs = [None if t is None else t.cuda() for t in tensors(**case)]
    check(shared_polynomial_conv2d, inputs, settings(**case))


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_says_once_that_it_goes_on_without(monkeypatch):
    from mmengine.logging import MMLogger

    from rkan_mm.models.ops import shared_polynomial_conv_triton as kernels

    messages = []
    monkeypatch.setattr(MMLogger, 'log', lambda self, level, message: messages.append(message))
    kernels._runs.cache_clear()
    assert not kernels.is_there()
    assert not kernels.is_there()
    assert len(messages) == 1
    assert 'goes on in plain PyTorch, without the Triton kernels' in messages[0]
    kernels._runs.cache_clear()
