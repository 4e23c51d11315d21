"""A written file in C as a function here, by the machine's compiler."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from rkan_mm.deploy.files import Function

FLAGS = ('-std=c99', '-pedantic', '-Wall', '-Wextra', '-Werror', '-O2')


def compiler() -> str | None:
    """The path of ``cc``; None if there is none."""
    return shutil.which('cc')


def compiled(path: str | Path, options: tuple[str, ...] = ()) -> Function:
    """Compile a file of `c_source` and load it: pictures (1, C, H, W) -> (scores,).

    Args:
        path: of the file; its name is that of its functions.
        options: more of the compiler's, e.g. ``-DREAL=double``.

    Raises:
        RuntimeError: the compiler has something against it.
    """
    path = Path(path)
    text = path.read_text()
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, 'net.so')
        done = subprocess.run([compiler() or 'cc', *FLAGS, *options, '-shared', '-fPIC', str(path), '-o', str(library),
                               '-lm'], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f'{path} does not compile: {done.stderr}')
        functions = ctypes.CDLL(str(library))  # which stays where its file goes
    name = text.split('_predict(', 1)[0].rpartition(' ')[2]
    predict = getattr(functions, f'{name}_predict')
    outputs = int(text.split(f'#define {name.upper()}_OUTPUTS ', 1)[1].split()[0])
    pointer = ctypes.POINTER(ctypes.c_float)

    def run(image: np.ndarray) -> tuple[np.ndarray, ...]:
        scores = np.empty((len(image), outputs), np.float32)
        for one, out in zip(np.ascontiguousarray(image, np.float32), scores, strict=True):
            predict(one.ctypes.data_as(pointer), out.ctypes.data_as(pointer))
        return (scores,)
    return run
