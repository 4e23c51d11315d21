"""The kernels under gcc's AddressSanitizer, which reports every access to memory that is not theirs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BEYOND = """
import ctypes, torch
from rkan_mm.models import KANConv2d
from rkan_mm.models.ops import load_kernels
from rkan_mm.models.ops.expand import _is_right
x, points, inverse, y = torch.rand(1, 100), torch.rand(8), torch.ones(1), torch.empty(8, 100)
numbers = (ctypes.c_int64 * 8)(1, 1, 101, 8, 0, 1, 0, 0)  # one element more than there are
load_kernels('expand.cpp', _is_right).expand_forward(*(ctypes.c_void_p(t.data_ptr()) for t in (x, points, inverse, y)),
                                                     numbers, ctypes.c_int64(1))
"""


@pytest.mark.slow
def test_under_the_address_sanitizer(tmp_path):
    """The same tests in a process whose kernels are compiled to report every access beyond what is theirs."""
    compiler = shutil.which('g++')
    libraries = compiler and [subprocess.run([compiler, f'-print-file-name={name}'], capture_output=True, text=True,
                                             check=True).stdout.strip() for name in ('libasan.so', 'libstdc++.so')]
    if not libraries or not all(Path(library).is_absolute() for library in libraries):
        pytest.skip('needs g++ and its libasan')
    root = Path(__file__).parents[3]
    environment = dict(
        os.environ, CXX=f'{compiler} -fsanitize=address -g', LD_PRELOAD=' '.join(libraries), PYTHONMALLOC='malloc',
        XDG_CACHE_HOME=str(tmp_path), RKAN_MM_EXAMPLES='300', PYTHONPATH=str(root),
        ASAN_OPTIONS='detect_leaks=0:alloc_dealloc_mismatch=0:allocator_may_return_null=1')
    beyond = subprocess.run([sys.executable, '-c', BEYOND], cwd=root, capture_output=True, text=True, env=environment)
    assert 'ERROR: AddressSanitizer' in beyond.stderr  # it sees what it is there for
    tests = ('test_gate.py', 'test_expand.py', 'test_spline_conv.py', 'test_shared_polynomial_conv.py')
    result = subprocess.run(
        [sys.executable, '-m', 'pytest', '-x', '-q', '-p', 'no:cacheprovider', '-m', 'not slow',
         *(str(Path(__file__).with_name(test)) for test in tests)],
        cwd=root, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-5000:]
    built = list((tmp_path / 'rkan_mm' / 'kernels').glob('*.so'))
    assert len(built) == 3
    assert all(b'__asan_report' in each.read_bytes() for each in built)
