"""Checks of a config before anything is built: what is missing is said in one sentence, with how to get it."""

from __future__ import annotations

import inspect
import os
import re
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.runner.checkpoint import get_external_models, get_mmcls_models, get_torchvision_models
from torch import Tensor

from rkan_mm.engine import safe_loading
from rkan_mm.engine.channels_last_hook import SHARDS
from rkan_mm.engine.run_error import PreflightError
from rkan_mm.registry import MODELS

from .annotations import some
from .building import KEPT, checking
from .config import built_from, dicts_with, kind
from .datasets import check_data_sets
from .outputs import check_outputs
from .precision import check_precision
from .red import warn_in_red
from .resuming import check_resumable
from .values import check_ranges


def check(cfg: Config, training: bool) -> None:
    """Raise `PreflightError` at the first thing that the run of ``cfg`` would miss.

    Args:
        cfg: config of a mmengine runner.
        training: whether the run trains (and validates) or tests.
    """
    _check_device()
    _tell_launcher(cfg)
    _check_layout(cfg)
    with checking('Values'):
        check_ranges(cfg, training)
    with checking('Arguments of the model'):
        _check_arguments(cfg)
    with checking('The data sets'):
        check_data_sets(cfg, ('train', 'val') if training else ('test',))
    with checking('Where results go'):
        check_outputs(cfg, training)
    if cfg.get('load_from'):
        check_checkpoint(cfg.load_from)
        if Path(cfg.load_from).expanduser().is_dir() and kind(dict(type=cfg.get('runner_type'))) != 'FlexibleRunner':
            raise PreflightError(f'Checkpoint {cfg.load_from!r} is a folder: give the name of a file.')
        if Path(cfg.load_from).expanduser().is_file():
            content = safe_loading.read(cfg.load_from, resume=cfg.get('resume', False))
            if cfg.get('resume'):
                check_resumable(content, cfg.load_from, cfg)
    if training:
        for _, init_cfg in dicts_with(cfg.get('model'), 'checkpoint'):
            if kind(init_cfg).startswith('Pretrained') and isinstance(init_cfg['checkpoint'], str):
                check_checkpoint(init_cfg['checkpoint'], cfg.get('weights_hint'))
                if '://' not in init_cfg['checkpoint']:
                    safe_loading.read(init_cfg['checkpoint'])
        check_precision(cfg)
    _check_work_dir(cfg.work_dir)


def _check_arguments(cfg: Config) -> None:
    """Arguments that a part of ours in the model does not have, as they come from a base that was not left out."""
    for path, part in dicts_with(cfg.get('model'), 'type'):
        cls: Any = MODELS.module_dict.get(kind(part))
        if cls is None or built_from(part['type'], MMENGINE_MODELS, cfg) is not cls:
            continue
        signature = inspect.signature(cls.__init__).parameters  # type: ignore[misc]  # it is a class
        read = {'type', '_scope_', *signature, *(['postfix'] if re.search(r'\bplugins\[\d+\]\.cfg$', path) else [])}
        extra = [name for name in part if name not in read]
        if extra and not any(each.kind is each.VAR_KEYWORD for each in signature.values()):
            where = '.'.join(filter(None, ('model', path)))
            cure = KEPT if '_delete_' in extra else (
                'If they are of the base config, with which yours is merged, write _delete_=True beside '
                f"type='rkan_mm.{kind(part)}'")
            raise PreflightError(f'{where}: {kind(part)} has no argument {", ".join(extra)}; it has '
                                 f'{", ".join([*signature][1:])}. {cure}.')


ZOOS = {
    'torchvision': ('torchvision', get_torchvision_models), 'open-mmlab': ('mmengine', get_external_models),
    'openmmlab': ('mmengine', get_external_models), 'mmcls': ('mmengine', get_mmcls_models),
}
"""Names of weights that mmengine knows addresses for."""


def check_checkpoint(name: str, hint: str | None = None) -> None:
    """Raise `PreflightError` unless the checkpoint is on disk, in torch's cache, or answers at its address.

    ``hint`` tells how to get it, and ends the message of one that should be on disk.
    """
    if '://' not in name:
        path = Path(name).expanduser()
        if not path.exists():
            there = sorted(p.name for p in path.parent.glob('*.pth'))
            raise PreflightError(f'Checkpoint {name!r} does not exist; ' + (
                f'{path.parent} has {", ".join(there)}.' if there else f'there is no .pth file in {path.parent}.')
                + (f' {hint}' if hint else ''))
        inside = sorted(p.name for p in path.glob('*.pth') if not p.name.startswith('rank'))  # those are of FSDP
        if path.is_dir() and inside:
            raise PreflightError(f'Checkpoint {name!r} is a folder; give one of its files, such as {some(inside)}.')
        return
    scheme, _, rest = name.partition('://')
    if scheme in ZOOS:
        who, zoo = ZOOS[scheme]
        models = zoo()
        if rest not in models:
            raise PreflightError(f'Checkpoint {name!r}: {who} has no such weights.')
        address = models[rest]
    else:
        address = name
    if not address.startswith(('http://', 'https://')):
        return
    cache = Path(torch.hub.get_dir()) / 'checkpoints'
    if (cache / Path(address).name).exists():
        return
    try:
        urllib.request.urlopen(urllib.request.Request(address, method='HEAD'), timeout=10).close()
    except (urllib.error.URLError, OSError) as error:
        if getattr(error, 'code', 404) not in (404, 410):
            return  # there is a server, which does not like to be asked
        reason = getattr(error, 'reason', error)
        raise PreflightError(f'Checkpoint {name!r} is not in {cache} and cannot be downloaded ({reason}): put '
                             f'{Path(address).name} there, or give no weights by --cfg-options: load_from=None, or '
                             'init_cfg=None of the part of the model that names them.') from error


def load_weights(path: str) -> dict[str, Tensor]:
    """The state_dict in a checkpoint file, read without running any code that may be in it.

    Raises:
        PreflightError: there is no such file, it is torn, holds other than plain data, or no state_dict.
    """
    check_checkpoint(path)
    return state_dict_in(safe_loading.read(path), path)


def state_dict_in(content: Any, path: str) -> dict[str, Tensor]:
    """What of a checkpoint's content is the state_dict; `PreflightError` if nothing is."""
    for name in ('state_dict', 'model_state_dict', 'model'):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        has = some(content) if isinstance(content, dict) else f'a {type(content).__name__}'
        raise PreflightError(f'Checkpoint {path!r} holds no state_dict, but {has or "nothing"}: save the weights '
                             "alone, or as 'state_dict'.")
    return content


def _check_device() -> None:
    asked = os.environ.get('CUDA_VISIBLE_DEVICES', '').strip()
    if re.match(r'\d|GPU-|MIG-', asked) and not torch.cuda.is_available():  # Slurm may write NoDevFiles
        raise PreflightError(f'CUDA_VISIBLE_DEVICES={asked} asks for a GPU, and torch {torch.__version__} finds none: '
                             'check nvidia-smi and that torch is built with CUDA, or unset it to run on the CPU.')


def _tell_launcher(cfg: Config) -> None:
    if cfg.get('launcher', 'none') == 'none' and os.environ.get('RANK') == '0' and os.environ.get(
            'WORLD_SIZE', '1') != '1':
        warn_in_red(f'torchrun has begun {os.environ["WORLD_SIZE"]} processes, and --launcher is none: each runs all '
                    'by itself, and all write to one work dir. Give --launcher pytorch.')


def _check_layout(cfg: Config) -> None:
    shards = kind(cfg.get('strategy')) in ('FSDPStrategy', 'ResumableFSDPStrategy') and cfg.get('launcher') != 'none'
    if shards and any(kind(hook) == 'ChannelsLastHook' for hook in cfg.get('custom_hooks') or []):
        raise PreflightError(SHARDS)


def _check_work_dir(work_dir: str) -> None:
    try:
        Path(work_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=work_dir) as file:
            file.write(b'0')
            file.flush()
    except OSError as error:
        raise PreflightError(f'The work dir {work_dir!r} cannot be written to ({error.strerror}): choose another by '
                             '--work-dir.') from error
