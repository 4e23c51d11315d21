"""Graphs as files: written whole or not at all, read back as functions of arrays."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rkan_mm.engine.run_error import PreflightError

from .errors import UnsupportedModelError
from .rewrites import exportable

SUFFIXES = {'onnx': '.onnx', 'pt2': '.pt2', 'torchscript': '.pt', 'c': '.c'}
"""Formats, and how their files end."""

OPSET = 17
"""Of ONNX, where not given: LayerNorm is one node from here on."""

Function = Callable[[np.ndarray], tuple[np.ndarray, ...]]


def check_place(path: str | Path, form: str) -> None:
    """Whether a file of this format can be written there; called before anything that takes time.

    Raises:
        PreflightError: it is a folder, its name ends otherwise, or its folder cannot be written to.
    """
    path = Path(path)
    if path.suffix != SUFFIXES[form]:
        raise PreflightError(f'{str(path)!r}: a file of --format {form} ends with {SUFFIXES[form]}.')
    try:
        if path.is_dir():
            raise PreflightError(f'{str(path)!r} is a folder: give the name of a file.')
        tempfile.TemporaryFile(dir=next(folder for folder in path.absolute().parents if folder.exists())).close()
    except OSError as error:
        raise PreflightError(f'{str(path)!r} cannot be written ({error.strerror}).') from error


@contextlib.contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A path, in a folder of its own beside ``path``, whose file takes the place of ``path`` if all goes well.

    Else nothing is left, no folder either.

    Raises:
        PreflightError: there is no space.
    """
    path = Path(path)
    missing = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f'.{path.name}.') as hidden:
            unfinished = Path(hidden, path.name)
            yield unfinished
            unfinished.replace(path)
    except BaseException as error:
        for folder in missing:
            with contextlib.suppress(OSError):  # somebody else uses it by now
                folder.rmdir()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PreflightError(f'{str(path)!r} cannot be written ({error.strerror}).') from error
        raise


def write(graph: nn.Module, image: torch.Tensor, path: str | Path, form: str, info: dict[str, Any],
          dynamic: bool = False, opset: int = OPSET) -> None:
    """Export a graph.

    Args:
        graph: with ``outputs``, their names.
        image: (B, C, H, W), an example.
        path: of the file.
        form: one of `SUFFIXES`.
        info: metadata, what json can write.
        dynamic: whether batch, height and width may differ from the example's.
        opset: of ONNX.

    Raises:
        UnsupportedModelError: the exporter cannot express the model.
    """
    path, texts = str(path), {key: json.dumps(value) for key, value in info.items()}
    axes, memory = {0: 'batch', 2: 'height', 3: 'width'} if dynamic else {}, io.BytesIO()
    with exportable(graph), torch.no_grad(), _no_listing(), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # tracers doubt every number; parity is measured
        try:
            if form == 'onnx':
                names = {'image': axes, **{name: {0: 'batch'} for name in graph.outputs if dynamic}}
                torch.onnx.export(graph, (image,), path, dynamo=False, opset_version=opset, input_names=['image'],
                                  output_names=list(graph.outputs), dynamic_axes=names if dynamic else None)
            elif form == 'torchscript':
                traced = torch.jit.trace(graph, image, check_trace=False)
                torch.jit.save(traced, memory, _extra_files=texts)
            elif form == 'c':
                Path(path).write_text(_source(graph, image, Path(path).stem, info))
            else:
                sizes = (dict.fromkeys(axes, torch.export.Dim.AUTO),) if dynamic else None
                with _any_size():
                    program = torch.export.export(graph, (image,), dynamic_shapes=sizes)
                torch.export.save(program, memory, extra_files=texts)
            if contents := memory.getvalue():  # on a full disk torch itself would end the process
                Path(path).write_bytes(contents)
        except (OSError, UnsupportedModelError):
            raise
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            name = type(graph.model).__name__
            raise UnsupportedModelError(f'{name} cannot be exported as {form}: {reason}') from error
    if form == 'onnx':
        describe(path, texts)


@contextlib.contextmanager
def _no_listing() -> Iterator[None]:
    """Else torch prints the whole graph, thousands of lines, before it says what it cannot export."""
    log = torch._C._jit_onnx_log
    torch._C._jit_onnx_log = lambda *given: None
    try:
        yield
    finally:
        torch._C._jit_onnx_log = log


def _any_size() -> contextlib.AbstractContextManager:
    """Else a program of `torch.export` refuses images of which a map deep inside has a height or width of 1."""
    from torch.fx.experimental import _config
    return _config.patch(backed_size_oblivious=True) if hasattr(_config, 'backed_size_oblivious') else (
        contextlib.nullcontext())


def _source(graph: nn.Module, image: torch.Tensor, name: str, info: dict[str, Any]) -> str:
    """In C, with what the metadata of other formats says in the comment at the head."""
    from .c import c_source
    steps = info['preparation']
    kind = '0 to 255, ' + ('gray' if info['channels'] == 1 else 'red, green and blue')
    prepared = 'as the config prepares them' if steps is None else json.dumps(steps) if steps else 'as they are'
    return c_source(graph, image, name, f'{info["config"]} of {info["task"]}', f'{kind}, pictures {prepared}',
                    info['classes'])


def describe(path: str, texts: dict[str, str]) -> None:
    """Write metadata into an ONNX file."""
    import onnx
    model = onnx.load(path)
    onnx.helper.set_model_props(model, texts)
    onnx.save(model, path)


def read(path: str | Path, form: str, threads: int | None = None) -> tuple[Function, dict[str, Any]]:
    """An exported file as a function of pictures, (B, C, H, W) of uint8, and its metadata.

    Args:
        path: of the file.
        form: one of `SUFFIXES`.
        threads: of onnxruntime; None as many as torch has.
    """
    if form == 'onnx':
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
        info = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
        return lambda image: tuple(session.run(None, {'image': image})), info
    if form == 'c':
        from .c.compiled import compiled
        return compiled(path), {}
    import torchvision  # noqa: F401  its operations
    texts = dict.fromkeys(INFO, '')
    module = torch.jit.load(str(path), _extra_files=texts) if form == 'torchscript' else torch.export.load(
        str(path), extra_files=texts).module()

    def run(image: np.ndarray) -> tuple[np.ndarray, ...]:
        with torch.no_grad():
            try:
                return tuple(out.numpy() for out in module(torch.from_numpy(image)))
            except AssertionError as error:
                raise PreflightError(
                    f'{path} takes no pictures of {image.shape[3]} x {image.shape[2]}: torch.export made it for others '
                    f'({error}). Larger ones may do, or one size, without --dynamic.') from error
    return run, {key: json.loads(text) for key, text in texts.items() if text}


INFO: Sequence[str] = ('task', 'classes', 'outputs', 'channels', 'preparation', 'size', 'blank', 'mask_threshold',
                       'config', 'made_by')
"""Names of the metadata: see docs/deploy.md."""
