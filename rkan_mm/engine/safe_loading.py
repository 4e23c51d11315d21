"""Checkpoints are data: whatever code a file holds, it does not run."""

from __future__ import annotations

import contextlib
import os
import pickle
import zipfile
from collections.abc import Iterator
from typing import Any

import torch

from rkan_mm.engine import allow_mmengine_globals
from rkan_mm.engine.run_error import PreflightError

FORCE, FORBID = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'  # torch's own switches


def _reason(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    line = next((line for line in lines if 'unsupported' in line.lower()), lines[0])
    line, objects, _ = line.partition(' was not an allowed global')
    if objects:
        line += (', an object and no plain data. Where you trust the file, load it by torch.load(PATH, weights_only='
                 'False) and keep its weights alone: torch.save(dict(state_dict=...), PATH), of a whole model '
                 'model.state_dict()')
    return line.strip().removeprefix('WeightsUnpickler error: ')


def _what_it_is(path: str) -> str | None:
    """What a file is that torch does not read, and what helps; None for what torch may have saved."""
    with open(path, 'rb') as file:
        start = file.read(512)
    if start[:2] == b'PK':  # of a zip archive
        if not zipfile.is_zipfile(path):
            return 'the file is torn: get it anew'
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith('/constants.pkl') for name in names):
            return ("it is of TorchScript, with code: torch.save(torch.jit.load('NAME.pt').state_dict(), 'NAME.pth') "
                    'keeps the weights alone')
        if names and all(name.endswith('.npy') for name in names):
            return ("it is of NumPy: torch.save({name: torch.from_numpy(array) for name, array in numpy.load('NAME.npz'"
                    ").items()}, 'NAME.pth') makes one of it")
        return None if any(name.endswith('data.pkl') for name in names) else (
            f'it is an archive of other files ({", ".join(names[:3])}): unpack it, and give the one inside')
    for is_so, what in ((not start, 'it is empty: get it anew'),
                        (start.startswith(b'version https://git-lfs'),
                         'it is a pointer of Git LFS: git lfs pull fetches the file'),
                        (start.lstrip().startswith(b'<'), 'it is a web page: take the address of the file itself'),
                        (start[8:9] == b'{', "it is of safetensors: torch.save(safetensors.torch.load_file('NAME."
                         "safetensors'), 'NAME.pth') makes one of it"),
                        (start.startswith(b'\x1f\x8b'), 'it is packed by gzip: unpack it')):
        if is_so:
            return what
    return None if start.startswith(b'\x80') else 'torch has not saved this file'


def read(path: str, resume: bool = False) -> Any:
    """What is in a checkpoint file, read without running any code that may be in it.

    Args:
        path: file on the local disk.
        resume: whether mmengine will resume from it, which would run a config that it finds within.

    Raises:
        PreflightError: the file is torn or holds other than plain data.
    """
    allow_mmengine_globals()
    try:
        content = torch.load(os.path.expanduser(path), map_location='cpu', weights_only=True)
    except Exception as error:
        if os.path.isdir(os.path.expanduser(path)):
            raise PreflightError(f'Checkpoint {path!r} is a folder: give the name of a file.') from error
        if what := _what_it_is(os.path.expanduser(path)):
            raise PreflightError(f'{path!r} is no checkpoint: {what}.') from error
        raise PreflightError(f'Checkpoint {path!r} cannot be read as plain weights: {_reason(error)}') from error
    if resume and isinstance(content, dict) and 'config' in (content.get('meta') or {}):
        raise PreflightError(f'Checkpoint {path!r} brings a config (meta.config), which would be run as code. Take its '
                             'weights alone, by load_from.')
    return content


@contextlib.contextmanager
def safe_loading() -> Iterator[None]:
    """Meanwhile every ``torch.load`` takes plain data only, also where its caller asks for more.

    mmengine 0.10.7 leaves it to the torch version, and onedl's falls back to running what a file holds; both obey the
    switch that torch itself has for this.

    Raises:
        PreflightError: a file that was loaded holds other than plain data.
    """
    allow_mmengine_globals()
    before = {name: os.environ.pop(name, None) for name in (FORCE, FORBID)}
    os.environ[FORCE] = '1'
    try:
        yield
    except pickle.UnpicklingError as error:
        raise PreflightError(f'A checkpoint was refused, for it holds more than plain weights: {_reason(error)}') \
            from error
    finally:
        os.environ.pop(FORCE)
        os.environ.update({name: value for name, value in before.items() if value is not None})
