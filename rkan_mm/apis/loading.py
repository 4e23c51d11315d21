"""The config of a run: read, with the options of the command line applied, and made to run on this machine."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.runner import FlexibleRunner, Runner
from mmengine.utils import import_modules_from_strings

from rkan_mm.preflight import PreflightError
from rkan_mm.preflight.building import building
from rkan_mm.preflight.config import scope, switches
from rkan_mm.preflight.red import warn_in_red
from rkan_mm.preflight.values import check_types

from .configs import read_config

READ = {*inspect.signature(Runner.__init__).parameters, *inspect.signature(FlexibleRunner.__init__).parameters,
        'runner_type', 'sync_bn', 'model_wrapper_cfg', 'find_unused_parameters', 'preflight', 'data_hint',
        'weights_hint', 'custom_imports', 'tta_model', 'tta_pipeline', 'compile', 'activation_checkpointing',
        'efficient_conv_bn_eval', 'data_root', 'strategy', 'data_fingerprints', 'wanted_metrics'}
"""What of the top of a config is read after the file has been."""


def load_config(config: str, cfg_options: dict | None = None, work_dir: str | None = None,
                launcher: str = 'none') -> Config:
    """Config of a run, with mm's command line options applied.

    ``cfg_options['data_root']`` replaces the config's data root wherever a path begins with it; a warning in red says
    where none does. ``work_dir`` is ``work_dirs/<config name>`` unless it or the config says otherwise.

    Raises:
        PreflightError: there is no such config file, it cannot be read, or an option would change nothing.
    """
    with building(f'Config {config!r} cannot be read', reading=True):
        cfg = read_config(config)
    _check_options(cfg, cfg_options or {})
    old_root = cfg.get('data_root')
    with building('--cfg-options do not fit the config', reading=True):
        cfg.merge_from_dict(_with_dotted_keys(cfg_options or {}))
        # mmengine has imported those of the file alone
        if any(name.startswith('custom_imports') for name in cfg_options or {}):
            import_modules_from_strings(**cfg.custom_imports)
    check_types(cfg)
    if isinstance(old_root, str) and not isinstance(cfg.data_root, str):
        digits = ': before a name of digits write ./, as in data_root=./2024' if type(cfg.data_root) is int else ''
        raise PreflightError(f'--cfg-options data_root={cfg.data_root!r} is of type {type(cfg.data_root).__name__}, '
                             f'and a folder is wanted{digits}')
    if cfg.get('env_cfg', {}) is None:
        cfg.pop('env_cfg')
    if 'launcher' in (cfg_options or {}):
        raise PreflightError('--cfg-options launcher changes nothing here: give --launcher.')
    if isinstance(old_root, str) and cfg.data_root != old_root:
        object.__setattr__(cfg, '_cfg_dict', _move(cfg._cfg_dict, old_root, cfg.data_root))  # it knows how it was read
        if not _any_below(str(Path(cfg.data_root)), {name: cfg[name] for name in READ & {*cfg} - {'data_root'}}):
            warn_in_red(f'--cfg-options data_root={cfg.data_root} has moved nothing: no path that the run reads begins '
                        f'with the {old_root!r} of the config. Set those of its data sets, e.g. '
                        'train_dataloader.dataset.data_root.')
    cfg.launcher = launcher
    cfg.work_dir = work_dir or cfg.get('work_dir') or str(Path('work_dirs') / Path(config).stem)
    for loader in _loaders(cfg):  # of a base of an installed mm; mmengine would hand its scope to the function
        if isinstance(collate := loader.get('collate_fn'), dict):
            collate.pop('_scope_', None)
    if scope(cfg) == 'mmpretrain':
        for loader in _loaders(cfg):  # mmpretrain's own entry points add these to every config
            for name, value in dict(pin_memory=torch.cuda.is_available(), collate_fn=dict(type='default_collate'),
                                    persistent_workers=loader.get('num_workers', 0) > 0).items():
                loader.setdefault(name, value)
    if not torch.cuda.is_available() and (
            (cfg.get('env_cfg') or {}).get('dist_cfg') or {}).get('backend') == 'nccl':
        cfg.env_cfg.dist_cfg.backend = 'gloo'
    return cfg


def _with_dotted_keys(options: dict) -> dict:
    """Options in which the keys of ``custom_keys``, which are parts of names of parameters, keep their dots.

    Example:
        >>> _with_dotted_keys({'a.custom_keys.backbone.bridges.lr_mult': 1.0})
        {'a.custom_keys': {'backbone.bridges': {'lr_mult': 1.0}}}
    """
    found: dict[str, Any] = {}
    for option, value in options.items():
        path, inside, rest = option.partition('.custom_keys.')
        key, _, setting = rest.rpartition('.')
        group = found.setdefault(path + inside.rstrip('.'), {}) if inside else found
        (group.setdefault(key, {}) if key else group)[setting if inside else option] = value
    return found


def _check_options(cfg: Config, options: dict) -> None:
    """An option that nothing reads would leave the run as it was, and its user would not know.

    Raises:
        PreflightError: an option is one that the config has, but for a slip or the part before it, such as ``model.``.
    """
    on = switches({'preflight': {**(cfg.get('preflight') or {}), **{
        name.partition('.')[2]: value for name, value in options.items() if name.startswith('preflight.')}}})
    for option in options:
        top, _, rest = option.partition('.')
        if top in READ and (top != 'data_root' or 'data_root' in cfg):
            continue
        if top in cfg:
            warn_in_red(f'--cfg-options {option}: {top!r} is a variable of the config file, which mmengine does not '
                        'read after the file; set what it was used for, e.g. train_cfg.max_epochs.')
            continue
        near = difflib.get_close_matches(top, {*cfg, *READ}, n=1, cutoff=0.8)
        inner = [f'{name}.{option}' for name, part in cfg.items() if isinstance(part, dict) and top in part]
        guess = inner[0] if inner else f'{near[0]}.{rest}'.rstrip('.') if near else ''
        said = f'--cfg-options {option}: the config has no {top!r}, and mmengine would not read it'
        if guess and on['options']:
            raise PreflightError(f'{said}; did you mean {guess}? To run all the same: --cfg-options '
                                 'preflight.options=False')
        warn_in_red(f'{said}.')


def set_loaders(cfg: Config, pin_memory: bool, persistent_workers: bool = True) -> None:
    """Switch off what the command line does not want; workers that do not exist cannot persist."""
    for loader in _loaders(cfg):
        if not pin_memory:
            loader['pin_memory'] = False
        if not persistent_workers or not loader.get('num_workers', 0):
            loader['persistent_workers'] = False
        if not loader.get('num_workers', 0):
            loader.pop('prefetch_factor', None)


def _loaders(cfg: Config) -> Iterator[dict]:
    """All loaders of a config; loops of the user's own may have several for a split."""
    for split in ('train', 'val', 'test'):
        given = cfg.get(f'{split}_dataloader')
        yield from (loader for loader in (given if isinstance(given, (list, tuple)) else [given])
                    if isinstance(loader, dict) and loader)


def _move(node, old: str, new: str):
    """A copy of a nested config in which paths below ``old`` lie below ``new``."""
    if isinstance(node, dict):
        inside = dict.items(node)  # without importing the classes of a pure Python config
        return ConfigDict({key: _move(value, old, new) for key, value in inside})
    if isinstance(node, (list, tuple)):
        return type(node)(_move(value, old, new) for value in node)
    if _any_below(old, node):
        rest = node[len(old):].lstrip('/')
        return f'{new.rstrip("/")}/{rest}'.rstrip('/') if '://' in new else str(Path(new) / rest)
    return node


def _any_below(root: str, node) -> bool:
    if isinstance(node, (dict, list, tuple)):
        return any(_any_below(root, each) for each in (node.values() if isinstance(node, dict) else node))
    return isinstance(node, str) and (
        node == root or (node != '' and f'{node}/'.startswith(f'{root.rstrip("/")}/')))
