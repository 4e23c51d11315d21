"""Checks of a config before anything is built: what is missing is said in one sentence, with how to get it."""

from __future__ import annotations

import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.fileio import list_from_file
from mmengine.registry import DATASETS
from torch import Tensor

from rkan_mm.engine import safe_loading
from rkan_mm.engine.run_error import PreflightError

from .annotations import check_annotations

DOWNLOADING = {'CIFAR10', 'CIFAR100', 'FashionMNIST', 'MNIST', 'SVHN'}  # data sets that fetch themselves


def check(cfg: Config, training: bool) -> None:
    """Raise `PreflightError` at the first thing that the run of ``cfg`` would miss.

    Args:
        cfg: config of a mmengine runner.
        training: whether the run trains (and validates) or tests.
    """
    _check_device()
    splits = ('train', 'val') if training else ('test',)
    for split in splits:
        if cfg.get(f'{split}_dataloader') is None:
            continue
        for dataset in _dicts_with(cfg[f'{split}_dataloader'], 'type', 'pipeline'):
            _check_dataset(dataset, cfg.get('data_hint'))
            if training:
                _check_annotations(dataset, **cfg.get('preflight', {}))
        for evaluator in _dicts_with(cfg.get(f'{split}_evaluator'), 'ann_file'):
            _check_path(evaluator['ann_file'], f'{evaluator["type"]}: annotation file', cfg.get('data_hint'))
    if cfg.get('load_from'):
        check_checkpoint(cfg.load_from)
        if Path(cfg.load_from).expanduser().is_file():
            safe_loading.read(cfg.load_from, resume=cfg.get('resume', False))
    if training:
        for init_cfg in _dicts_with(cfg.get('model'), 'checkpoint'):
            check_checkpoint(init_cfg['checkpoint'], cfg.get('weights_hint'))
            if '://' not in init_cfg['checkpoint']:
                safe_loading.read(init_cfg['checkpoint'])
        _check_work_dir(cfg.work_dir)
        if cfg.optim_wrapper.get('type', '').startswith('Amp') and get_device() == 'cpu':
            raise PreflightError('AMP in float16 (--amp, AmpOptimWrapper) needs a GPU and this machine has none: leave '
                                 'it out, or take --amp-dtype bfloat16.')


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
        return
    scheme, _, rest = name.partition('://')
    if scheme == 'torchvision':
        from mmengine.runner.checkpoint import get_torchvision_models
        models = get_torchvision_models()
        if rest not in models:
            raise PreflightError(f'Checkpoint {name!r}: torchvision has no such weights.')
        address = models[rest]
    elif scheme in ('http', 'https'):
        address = name
    else:
        return
    cache = Path(torch.hub.get_dir()) / 'checkpoints'
    if (cache / Path(address).name).exists():
        return
    try:
        urllib.request.urlopen(urllib.request.Request(address, method='HEAD'), timeout=10).close()
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, 'reason', error)
        raise PreflightError(f'Checkpoint {name!r} is not in {cache} and cannot be downloaded ({reason}): put '
                             f'{Path(address).name} there, or start from random weights by setting its init_cfg to '
                             'None with --cfg-options.') from error


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
        raise PreflightError(f'Checkpoint {path!r} holds no state_dict.')
    return content


def _dicts_with(node: Any, *keys: str) -> Iterator[dict]:
    """All dicts in a nested config that have all of the keys, with a string in the first."""
    if isinstance(node, dict):
        if all(key in node for key in keys) and isinstance(node[keys[0]], str):
            yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from _dicts_with(child, *keys)


def _check_dataset(dataset: dict, hint: str | None) -> None:
    root, kind = dataset.get('data_root') or '', dataset['type'].rpartition('.')[2]
    if kind in DOWNLOADING:
        return
    prefixes = dataset.get('data_prefix') or {}
    parts = [('data root', ''), ('annotation file', dataset.get('ann_file'))]
    parts += [('image folder', prefix) for prefix in (prefixes.values() if isinstance(prefixes, dict) else [prefixes])]
    if kind == 'ImageNet' and not prefixes:
        parts.append(('image folder', dataset.get('split')))
    for what, part in parts:
        if root if what == 'data root' else part:
            _check_path(f'{root}{part}' if '://' in root else str(Path(root) / part), f'{kind}: {what}', hint)


def _check_annotations(dataset: dict, annotations: bool = True, allow_unknown: bool = False) -> None:
    """Look into the annotations of a COCO data set on the local disk; the first process does so for all.

    Args:
        annotations, allow_unknown: the config's ``preflight``; False leaves this check out, which reads the file once.
    """
    first = all(os.environ.get(name, '0') == '0' for name in ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'))
    root, kind = Path(dataset.get('data_root') or ''), dataset['type'].rpartition('.')[2]
    if kind != 'CocoDataset' or not annotations or not first or not (root / dataset['ann_file']).is_file():
        return
    images = root / dataset.get('data_prefix', {}).get('img', '')
    classes = (dataset.get('metainfo') or {}).get('classes') or DATASETS.get('mmdet.CocoDataset').METAINFO['classes']
    classes = list_from_file(classes) if isinstance(classes, str) else classes
    check_annotations(str(root / dataset['ann_file']), str(images), classes, allow_unknown)


def _check_device() -> None:
    asked = os.environ.get('CUDA_VISIBLE_DEVICES', '').strip()
    if asked not in ('', '-1') and not torch.cuda.is_available():
        raise PreflightError(f'CUDA_VISIBLE_DEVICES={asked} asks for a GPU, and torch {torch.__version__} finds none: '
                             'check nvidia-smi and that torch is built with CUDA, or unset it to run on the CPU.')


def _check_work_dir(work_dir: str) -> None:
    try:
        Path(work_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=work_dir) as file:
            file.write(b'0')
            file.flush()
    except OSError as error:
        raise PreflightError(f'The work dir {work_dir!r} cannot be written to ({error.strerror}): choose another by '
                             '--work-dir.') from error


def _check_path(path: str, what: str, hint: str | None) -> None:
    if '://' not in path and not Path(path).expanduser().exists():
        raise PreflightError(f'{what} {path!r} does not exist. {hint or "Set its path in the config."}')
