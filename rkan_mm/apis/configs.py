"""Configs by path or by name, and those of this package as bases of others."""

from __future__ import annotations

import difflib
import re
import tempfile
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.config.lazy import LazyAttr, LazyObject
from mmengine.utils import get_object_from_string

from rkan_mm.engine.run_error import PreflightError
from rkan_mm.preflight.annotations import some
from rkan_mm.preflight.config import MM

SHIPPED = Path(__file__).parents[1] / '.mim/configs'
SCOPE = 'rkan_mm::'
OPS = ('nms', 'roi_layer')
"""Parts of a config whose type mm looks up in mmcv.ops, by its name alone."""


def find_config(config: str) -> str:
    """Path of a config that is given by its path, or by the name of one of this package's.

    Raises:
        PreflightError: there is neither; the message names configs that are called alike.
    """
    if Path(config).is_file():
        return config
    shipped = {path.stem: path for path in sorted(SHIPPED.rglob('*.py')) if '_base_' not in path.parts}
    name = config.removeprefix(SCOPE).removesuffix('.py')
    if Path(name).name in shipped and (name == Path(name).name or str(shipped[Path(name).name]).endswith(f'{name}.py')):
        return str(shipped[Path(name).name])
    if Path(config).is_dir():
        inside = sorted(path.name for path in Path(config).glob('*.py'))
        raise PreflightError(f'Config {config!r} is a folder' + (f': give one of its files, {some(inside)}.' if inside
                                                                else ', and has no config in it.'))
    near = difflib.get_close_matches(Path(name).name, shipped, n=3)
    raise PreflightError(f'Config {config!r} does not exist' + (
        f'; did you mean {" or ".join(near)}? rkan_mm has these by name.' if near else '.'))


def read_config(config: str) -> Config:
    """Read a config, by path or name; its bases may be ours, as in ``_base_ = 'rkan_mm::mask-rcnn_...py'``.

    mmengine looks bases up by a folder and a name, and ours on top of ``configs/`` have no folder: in a copy of the
    file these are written out as paths.

    Raises:
        PreflightError: there is no such config, or no such base.
    """
    path = find_config(config)
    if not _has_ours(Path(path)):
        cfg = Config.fromfile(path)
    else:
        with tempfile.TemporaryDirectory() as folder:
            cfg = Config.fromfile(_with_paths(Path(path), Path(folder)))
        cfg = Config(cfg._cfg_dict, cfg_text=cfg.text, filename=path)
    _name_ops(cfg._cfg_dict)
    return cfg


def _name_ops(node: Any) -> None:
    """Name what mm finds only by another name; a pure Python config has classes, and once dumped their paths."""
    if isinstance(node, dict):
        for key, part in dict.items(node):  # without importing what the config imports
            cls = dict.get(part, 'type') if isinstance(part, dict) and key in OPS else None
            path = f'{cls.module}.{cls}' if isinstance(cls, (LazyObject, LazyAttr)) else cls
            if isinstance(path, str) and path.startswith('mmcv.ops.'):
                part['type'] = path.rpartition('.')[2]
            elif key == 'type' and isinstance(part, str) and part.partition('.')[0] in MM:
                node[key] = _reachable(part)
            _name_ops(part)
    elif isinstance(node, (list, tuple)):
        for part in node:
            _name_ops(part)


def _reachable(name: str) -> str:
    """A name by which mmengine finds a class that it does not find by its module, hidden by a function of one name.

    Example:
        >>> _reachable('mmdet.models.losses.smooth_l1_loss.L1Loss')
        'mmdet.models.losses.L1Loss'
    """
    module, _, cls = name.rpartition('.')
    package = module.rpartition('.')[0]
    if not package or get_object_from_string(name) is not None:
        return name
    shorter = f'{package}.{cls}'
    return shorter if get_object_from_string(shorter) is not None else name


def _bases(path: Path) -> dict[str, Path]:
    """Bases of a config, as written and as files, but for those of other packages."""
    if path.suffix != '.py':
        return {}
    return {base: Path(find_config(base)) if base.startswith(SCOPE) else (path.parent / base).resolve()
            for base in Config._get_base_files(str(path)) if base.startswith(SCOPE) or '::' not in base}


def _has_ours(path: Path) -> bool:
    return any(base.startswith(SCOPE) or _has_ours(file) for base, file in _bases(path).items() if file.is_file())


def _with_paths(path: Path, folder: Path) -> Path:
    """A copy of a config in which every base is an absolute path, or of another package."""
    text = re.sub(r'\{\{\s*fileDirname\s*\}\}', lambda _: str(path.parent.absolute()), path.read_text())
    for base, file in _bases(path).items():
        new = repr(str(_with_paths(file, folder) if _has_ours(file) else file))
        text = text.replace(f"'{base}'", new).replace(f'"{base}"', new)
    copy = Path(tempfile.mkdtemp(dir=folder), path.name)
    copy.write_text(text)
    return copy
