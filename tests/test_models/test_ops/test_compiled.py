import ctypes
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from mmengine.logging import MMLogger

from rkan_mm.models.ops import compiled, pointer

SOURCE = """
#include <omp.h>
#include "twice.h"
extern "C" void twice(const float* x, float* y, long n, int threads) {
#pragma omp parallel for num_threads(threads)
    for (long i = 0; i < n; ++i) y[i] = FACTOR * x[i];
}
"""


@pytest.fixture
def source(tmp_path, monkeypatch) -> Path:
    """A source with a header, an empty cache, and a log to read."""
    if not compiled.shutil.which('c++'):
        pytest.skip('no compiler')
    for name in ('CXX', 'RKAN_MM_KERNELS'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    path = tmp_path / 'twice.cpp'
    path.write_text(SOURCE)
    path.with_suffix('.h').write_text('#define FACTOR 2')
    compiled._load.cache_clear()
    yield path
    compiled._load.cache_clear()


@pytest.fixture
def messages(monkeypatch) -> list[str]:
    found = []
    monkeypatch.setattr(MMLogger, 'log', lambda self, level, message: found.append(message))
    return found


def cached(source: Path) -> list[Path]:
    return list((source.parent / 'cache' / 'rkan_mm' / 'kernels').iterdir())


def twice(library: ctypes.CDLL) -> torch.Tensor:
    x, y = torch.arange(1000.0), torch.empty(1000)
    library.twice(pointer(x, 1000), pointer(y, 1000), ctypes.c_long(1000), torch.get_num_threads())
    return y


def test_compiles_once_and_shares_the_openmp_runtime(source, messages):
    before = compiled._loaded_openmp()
    library = compiled.load_kernels(source)
    assert twice(library).equal(2 * torch.arange(1000.0))
    assert compiled.load_kernels(source) is library
    assert compiled._loaded_openmp() == before
    path, = cached(source)
    compiled._load.cache_clear()
    written = path.stat().st_mtime_ns
    assert compiled.load_kernels(source) is not None
    assert (cached(source), path.stat().st_mtime_ns, messages) == ([path], written, [])


@pytest.mark.parametrize('suffix', ['.cpp', '.h'])
def test_a_changed_source_is_compiled_anew(source, suffix):
    compiled.load_kernels(source)
    compiled._load.cache_clear()
    path = source.with_suffix(suffix)
    path.write_text(path.read_text().replace('2', '3').replace('FACTOR * x', '1.5f * FACTOR * x'))
    assert twice(compiled.load_kernels(source)).equal(3 * torch.arange(1000.0))
    assert len(cached(source)) == 2


@pytest.mark.parametrize('break_it', [
    lambda whole: b'', lambda whole: b'\x7fELF', *(lambda whole, part=part: whole[:int(part * len(whole))]
                                                   for part in (0.1, 0.5, 0.9)),
    lambda whole: whole[:4096] + bytes(len(whole) - 4096)], ids=['empty', 'magic', '10%', '50%', '90%', 'zeros'])
def test_a_library_that_is_not_whole_is_compiled_anew(source, messages, break_it):
    """As after a power cut or on a full disk. The loader would end the process by SIGBUS."""
    compiled.load_kernels(source)
    compiled._load.cache_clear()
    path, = cached(source)
    whole = path.read_bytes()
    path.unlink()  # the memory of the loaded one stays as it is
    path.write_bytes(break_it(whole))
    assert not compiled._is_whole(path)
    assert twice(compiled.load_kernels(source)).equal(2 * torch.arange(1000.0))
    assert compiled._is_whole(path)
    assert len(path.read_bytes()) == len(whole)
    assert messages == []


def test_switched_off(source, messages, monkeypatch):
    monkeypatch.setenv('RKAN_MM_KERNELS', '0')
    assert compiled.load_kernels(source) is None
    assert messages == []
    monkeypatch.setenv('RKAN_MM_KERNELS', '1')
    assert compiled.load_kernels(source) is not None


@pytest.mark.parametrize(('compiler', 'message'), [
    ('/nowhere/c++', "no compiler '/nowhere/c\\+\\+'"), ('false', '`false .*twice.cpp.*` failed')])
def test_without_a_compiler_that_works(source, messages, monkeypatch, compiler, message):
    monkeypatch.setenv('CXX', compiler)
    for _ in range(2):
        assert compiled.load_kernels(source) is None
    assert len(messages) == 1
    assert re.search(message, messages[0])


def test_a_source_that_does_not_compile(source, messages):
    source.write_text('int broken(')
    assert compiled.load_kernels(source) is None
    assert 'without the kernels of twice.cpp' in messages[0]
    assert 'error:' in messages[0]
    assert cached(source) == []


def test_results_that_differ(source, messages):
    def check(library):
        return twice(library).equal(torch.zeros(1000))

    assert compiled.load_kernels(source, check) is None
    assert 'their results differ' in messages[0]


def test_elsewhere_than_on_linux(source, messages, monkeypatch):
    monkeypatch.setattr(sys, 'platform', 'darwin')
    assert compiled.load_kernels(source) is None
    assert 'not on darwin' in messages[0]


def test_a_home_that_cannot_be_written_to(source, messages, monkeypatch):
    (source.parent / 'file').touch()
    monkeypatch.setenv('XDG_CACHE_HOME', str(source.parent / 'file'))
    assert twice(compiled.load_kernels(source)).equal(2 * torch.arange(1000.0))
    assert messages == []


@pytest.mark.filterwarnings('ignore:.*fork:DeprecationWarning')
def test_two_processes_at_once(source):
    children = []
    for _ in range(2):
        children.append(os.fork())
        if children[-1] == 0:
            torch.set_num_threads(1)
            os._exit(not twice(compiled.load_kernels(source)).equal(2 * torch.arange(1000.0)))
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert len(cached(source)) == 1
