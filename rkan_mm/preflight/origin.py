"""What a checkpoint was trained as, beside the config that it is tested with: weights of one shape fit either."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import MODELS, TASK_UTILS

from rkan_mm.registry import MODELS as OURS

from .annotations import some
from .config import built_from, kind

OF_TRAINING = {'init_cfg', 'pretrained', 'train_cfg', 'test_cfg', 'frozen_stages', 'norm_eval', 'requires_grad',
               'with_cp', 'memory', 'topk', 'cal_acc', 'augments', 'batch_augments', 'drop_path_rate', 'drop_rate',
               'attn_drop_rate', 'dropout', 'dropout_ratio', 'dn_cfg', 'reg_decoded_bbox', 'sync_num_pos',
               'input_size', 'momentum', 'zero_init_residual', '_scope_', '_delete_'}
"""Arguments of models that leave predictions as they are, and ``test_cfg``, which a test may change."""

OF_TASK = {'out_indices', 'out_type', 'final_norm', 'gap_before_final_norm', 'img_size', 'pretrain_img_size', 'stages',
           'strides', 'dilations', 'plugins', 'dcn', 'stage_with_dcn', 'layer_scale_init_value'}
"""Arguments of backbones that a training for another task has otherwise on purpose."""


def differences(content: dict, cfg: Config) -> str | None:
    """Where the model of a config is another than the one that a checkpoint was trained as, in a sentence; else None.

    Args:
        content: a checkpoint with the text of its config in ``meta``, as mmengine saves it; the text is not run.
        cfg: by which its weights will be used.
    """
    before, now = _model(_read((content.get('meta') or {}).get('cfg'))), _model(cfg)
    if kind(now) != kind(before) and isinstance(before.get('detector'), dict):  # a teacher and a student
        before = before['detector']
    if not before or kind(before) != kind(now):
        return None
    return _told(list(_differ(before, now, 'model', cfg)))


def _told(found: list[str]) -> str | None:
    if not found:
        return None
    return f'The checkpoint was trained with {some(found)}. Its weights fit, but mean something else.'


def other_beginning(content: dict, cfg: Config, name: str = 'backbone', prefix: str = 'backbone') -> str | None:
    """Where a training begins with weights of a backbone of other arguments, or for other pixels; else None.

    Heads may differ: a training for another task has its own.

    Args:
        content, cfg: see `differences`.
        name: of the part of the model that the weights are for.
        prefix: of the part of the checkpoint's model that they are from.
    """
    before, now = _model(_read((content.get('meta') or {}).get('cfg'))), _model(cfg)
    old, new = _part(before, prefix), _part(now, name)
    if not old or kind(old) not in (kind(new), kind(new.get('backbone') if kind(new) == 'RKANet' else new)):
        return None  # of another net; what of it fits is told otherwise
    return _told([*_differ(old, new, f'model.{name}', cfg, OF_TRAINING | OF_TASK),
                  *_other_pixels(before.get('data_preprocessor') or {}, now.get('data_preprocessor') or {})])


def _part(model: Any, name: str) -> dict:
    for key in filter(None, name.split('.')):
        model = model.get(key) if isinstance(model, dict) else None
    return model if isinstance(model, dict) else {}


def _other_pixels(before: dict, now: dict) -> Iterator[str]:
    """Mean, std and order of colours, however the kinds of preprocessors call it."""
    for name in ('mean', 'std'):
        old, new = ([float(value) for value in each.get(name) or ()] for each in (before, now))
        if len(old) == len(new) and not np.allclose(old, new, rtol=0.02):
            yield f'model.data_preprocessor.{name}={_short(old)} (here {_short(new)})'
    flags = [bool(each.get('bgr_to_rgb') or each.get('to_rgb')) for each in (before, now)]
    if before.get('mean') and now.get('mean') and flags[0] != flags[1]:
        yield f'pictures in {" (here in ".join("RGB" if flag else "BGR" for flag in flags)})'


def other_batches(content: dict, cfg: Config) -> str | None:
    """By how many pictures a step was taken where the checkpoint of a training comes from, if by others; else None."""
    before = _read((content.get('meta') or {}).get('cfg'))
    for part, key, default in (('train_dataloader', 'batch_size', None), ('optim_wrapper', 'accumulative_counts', 1)):
        old, new = ((each.get(part) or {}).get(key, default) for each in (before, cfg))
        if before and None not in (old, new) and old != new:
            return (f'the checkpoint comes from {part}.{key}={old}, here it is {new}: iterations, and schedules that '
                    'count them, are of other numbers of pictures.')
    return None


def _model(cfg: dict | Config) -> dict:
    model = cfg.get('model')
    if not isinstance(model, dict):
        return {}
    while isinstance(model.get('module'), dict):  # for test-time augmentation
        model = model['module']
    outside = cfg.get('data_preprocessor')
    return {'data_preprocessor': outside, **model} if isinstance(outside, dict) else dict(model)


def _read(text: Any) -> dict:
    """The literals in the text of a config; {} if it is none."""
    try:
        lines = ast.parse(text).body if isinstance(text, str) else ()
        return {line.targets[0].id: _value(line.value) for line in lines
                if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name)}
    except (SyntaxError, ValueError, RecursionError):
        return {}


def _value(node: ast.AST) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict':
        return {word.arg: _value(word.value) for word in node.keywords}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(each) for each in node.elts]
    if isinstance(node, ast.Dict):
        return {_value(key): _value(value) for key, value in zip(node.keys, node.values, strict=True) if key}
    return ast.literal_eval(node)


def _differ(before: Any, now: Any, path: str, cfg: Config, left_out: Collection[str] = OF_TRAINING) -> Iterator[str]:
    """Each argument with another value, as a text of path, value and value here."""
    if isinstance(before, dict) and isinstance(now, dict):
        if kind(now) == 'RKANet' != kind(before) and isinstance(now.get('backbone'), dict):
            now, path = now['backbone'], f'{path}.backbone'  # weights of the plain backbone
        kinds = {kind(before), kind(now)} - {''}  # mm fills in the type of a data preprocessor that names none
        if len(kinds) > 1 and kinds != {'BN', 'SyncBN'}:
            yield f'{path}.type={kind(before)} (here {kind(now)})'
            return
        default = _defaults(now, cfg)
        for name in {**before, **now}:
            if name == 'type' or name in left_out or name.startswith('loss'):
                continue
            old, new = (each.get(name, default.get(name, _UNKNOWN)) for each in (before, now))
            if old is not _UNKNOWN and new is not _UNKNOWN:
                yield from _differ(old, new, f'{path}.{name}', cfg, left_out)
    elif isinstance(before, (list, tuple)) and isinstance(now, (list, tuple)) and len(before) == len(now) and any(
            isinstance(each, dict) for each in now):
        for i, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from _differ(old, new, f'{path}[{i}]', cfg, left_out)
    elif _plain(before) != _plain(now):
        yield f'{path}={_short(before)} (here {_short(now)})'


_UNKNOWN = object()


def _plain(value: Any) -> Any:
    """Lists and tuples alike; classes by name; a sequence of one as what is in it."""
    if isinstance(value, (list, tuple)):
        values = [_plain(each) for each in value]
        return values[0] if len(values) == 1 else values
    return value.__name__ if isinstance(value, type) else value


def _short(value: Any) -> str:
    text = str(_plain(value))
    return text if len(text) < 60 else f'{text[:57]}...'


def _defaults(part: dict, cfg: Config) -> dict[str, Any]:
    """Arguments of the class that a config names, and of those it inherits from, where they have a default."""
    found = [built_from(part['type'], registry, cfg) for registry in (MODELS, TASK_UTILS) if part.get('type')]
    cls: Any = next(filter(None, [*found, OURS.module_dict.get(kind(part))]), None)
    if cls is None:
        return {}
    inits = [vars(base).get('__init__') for base in reversed(cls.__mro__)] if isinstance(cls, type) else [cls]
    return {name: each.default for init in inits if inspect.isfunction(init)
            for name, each in inspect.signature(init).parameters.items() if each.default is not each.empty}
