"""Compile a C++ source of this package when it is first needed, and load it."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mmengine.logging import MMLogger

SOURCES = Path(__file__).with_name('csrc')
FLAGS = ('-O3', '-march=native', '-std=c++17', '-fno-exceptions', '-fopenmp', '-shared', '-fPIC')
OPENMP = ('libgomp', 'libiomp', 'libomp')
TIMEOUT = 300  # seconds


def kernels_wanted() -> bool:
    """Whether the environment allows kernels of this package's own: ``RKAN_MM_KERNELS=0`` does not."""
    return os.environ.get('RKAN_MM_KERNELS') != '0'


def load_kernels(source: str | Path, check: Callable[[ctypes.CDLL], bool] | None = None) -> ctypes.CDLL | None:
    """The functions (``extern "C"``, no torch headers) of a C++ source, compiled at first use by ``$CXX`` or ``c++``.

    The library is kept in ``$XDG_CACHE_HOME/rkan_mm/kernels`` (else ``~/.cache``) under a hash of all that it depends
    on, and shares torch's OpenMP runtime. Several processes may ask for it at once. Call its functions with
    `gate.pointer` for tensors, and pass :func:`torch.get_num_threads` on to ``num_threads``.

    Args:
        source: a file of ``csrc``, or a path. All headers (``.h``) beside it count as parts of it.
        check: tells of the loaded library whether its results are right. One function a source, not a lambda: what
            was found is remembered for both. It runs in a thread of its own; the default dtype is still the caller's.

    Returns:
        The library; None where it is not wanted (``RKAN_MM_KERNELS=0``) or cannot be had (no Linux, no compiler, it
        fails, the check fails), of which the log tells once. Then take the PyTorch form.
    """
    return _load(source, check) if kernels_wanted() else None


@functools.cache
def _load(source: str | Path, check: Callable[[ctypes.CDLL], bool] | None) -> ctypes.CDLL | None:
    source = SOURCES / source
    try:
        if sys.platform != 'linux':
            raise OSError(f'they are compiled on Linux only, not on {sys.platform}')
        library = _library(source)
        if check is not None and not alone(check, library):
            raise OSError('their results differ from those of PyTorch')
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        MMLogger.get_current_instance().log(
            logging.WARNING, f'rkan_mm goes on in plain PyTorch, without the kernels of {source.name}: {error}')
        return None
    return library


def alone(check: Callable[..., bool], *args: Any) -> bool:
    """``check(*args)`` in its own thread, out of reach of the caller's grad mode, autocast, devices and hooks."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(check, *args).result()


def _library(source: Path) -> ctypes.CDLL:
    """The cached library, compiled if it is not there, not whole or does not load."""
    command = _command(source)
    cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'rkan_mm' / 'kernels'
    path = cache / f'{source.stem}-{_fingerprint(source, command)}.so'
    with contextlib.suppress(OSError):
        if _is_whole(path):
            return ctypes.CDLL(str(path))
    try:
        cache.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=cache)
    except OSError:  # a home that cannot be written to: compile for this process alone
        folder = tempfile.TemporaryDirectory()
        path = Path(folder.name) / path.name
    with folder:
        fresh = Path(folder.name) / 'fresh.so'
        result = subprocess.run([*command, '-o', str(fresh)], capture_output=True, text=True, timeout=TIMEOUT)
        if result.returncode or not fresh.exists():
            raise OSError(f'`{shlex.join(command)}` failed: {result.stderr.strip()[-2000:]}')
        with fresh.open('r+b') as file:
            digest = hashlib.sha256(file.read()).digest()
            file.write(digest)
        os.replace(fresh, path)
        return ctypes.CDLL(str(path))


def _is_whole(path: Path) -> bool:
    """Whether a library ends with the hash of what is before; the loader dies of one that was cut short."""
    content = path.read_bytes()
    return hashlib.sha256(content[:-32]).digest() == content[-32:]


def _command(source: Path) -> list[str]:
    """The compiler's command line but for the output, linking the OpenMP runtime that this process already has."""
    compiler = shlex.split(os.environ.get('CXX') or 'c++')
    if shutil.which(compiler[0]) is None:
        raise OSError(f'no compiler {compiler[0]!r}; install one or name it in CXX')
    return [*compiler, *FLAGS, '-Wl,--as-needed', str(source), *_loaded_openmp()[:1]]


def _loaded_openmp() -> list[str]:
    """Paths of the OpenMP runtimes in this process: torch brings one, and a second one would have its own threads."""
    maps = Path('/proc/self/maps').read_text().splitlines()
    paths = dict.fromkeys(line.split(maxsplit=5)[-1].strip() for line in maps)
    return [path for path in paths if Path(path).name.startswith(OPENMP)]


def _fingerprint(source: Path, command: list[str]) -> str:
    parts = [source.read_bytes(), *(header.read_bytes() for header in sorted(source.parent.glob('*.h')))]
    parts += [part.encode() for part in command]
    parts.append(subprocess.run([*command[:1], '--version'], capture_output=True, timeout=TIMEOUT).stdout)
    parts += sorted({line for line in Path('/proc/cpuinfo').read_bytes().splitlines()
                     if line.startswith((b'model name', b'flags', b'Features', b'CPU part'))})
    return hashlib.sha256(b'\0'.join(parts)).hexdigest()[:20]
