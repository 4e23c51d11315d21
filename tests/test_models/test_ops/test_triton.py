"""The Triton kernels without a GPU, in Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip('triton')
NAMES = ['shared_polynomial_conv', 'expand', 'fused']


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
@pytest.mark.parametrize('name', ['shared_polynomial_conv', 'fused'])
def test_in_the_interpreter_at_length(name, root):
    interpret(name, root, '-m', 'slow')


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
