"""Where metrics and hooks of a config write to: most of them do so when the work is done, and would fail only then."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import HOOKS, METRICS

from rkan_mm.engine.run_error import PreflightError
from rkan_mm.engine.writing import why_not_written

from .config import built_from, dicts_with, is_mm, kind, switches

FOLDERS = ('out_dir', 'output_dir', 'save_dir')
FILES = ('outfile_prefix', 'out_file_path', 'outfile_path', 'file_path', 'json_trace_path')
"""What mm's metrics and hooks call the places that they write to; of a file its folder is made with it."""

MADE_BY_NOBODY = ('outfile_path', 'json_trace_path')
"""Files whose folder must be there."""


def check_outputs(cfg: Config, training: bool) -> None:
    """Raise `PreflightError` if a metric or hook of mm's could not write what it is to write.

    Args:
        cfg: config of a mmengine runner.
        training: whether the run trains (and validates) or tests.
    """
    if not switches(cfg)['paths']:
        return
    split = 'val' if training else 'test'
    evaluators = {f'{split}_evaluator': cfg.get(f'{split}_evaluator')} if cfg.get(f'{split}_cfg') is not None else {}
    hooks = {name: cfg.get(name) for name in ('default_hooks', 'custom_hooks')}
    for parts, registry in ((evaluators, METRICS), (hooks, HOOKS)):
        for path, part in dicts_with(parts, 'type'):
            cls = built_from(part['type'], registry, cfg)
            if isinstance(cls, type) and is_mm(cls):
                for key, place in _places(part, cfg, training):
                    _check(f'{path}.{key}={part[key]!r}', key, place)


def _places(part: dict, cfg: Config, training: bool) -> Iterator[tuple[str, Path]]:
    """Arguments that name a place on this machine, with the place."""
    name, backend = kind(part), part.get('backend_args') or part.get('file_client_args') or {}
    if name.endswith('VisualizationHook') and not (part.get('draw') or part.get('enable')):
        return
    for key in (*FOLDERS, *FILES, *(() if training else ('test_out_dir', ))):
        value: Any = part.get(key)
        if not isinstance(value, (str, os.PathLike)) or not str(value) or '://' in str(value) or backend.get(
                'backend', 'local') != 'local':
            continue
        place = Path(value)
        if name in ('CheckpointHook', 'ResumableCheckpointHook', 'LoggerHook'):
            place /= Path(cfg.work_dir).name
        elif key == 'test_out_dir':
            place = Path(cfg.work_dir) / place
        yield key, place


def _check(what: str, key: str, place: Path) -> None:
    folder, cure, reason = place, 'choose another', None
    if key in FILES:
        folder = place.parent
        if key != 'outfile_prefix' and place.exists() and not (place.is_file() and os.access(place, os.W_OK)):
            reason = 'it is a folder' if place.is_dir() else 'Permission denied'
    if not reason and key in MADE_BY_NOBODY and not folder.exists():
        reason, cure = f'there is no folder {str(folder)!r}', 'make it first'
    if reason := reason or why_not_written(folder):
        raise PreflightError(f'{what} cannot be written ({reason}): {cure}. To run all the same: --cfg-options '
                             'preflight.paths=False')
