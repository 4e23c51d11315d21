"""What of a checkpoint enters a model: a report in the log, and an error where it would give a wrong result."""

from __future__ import annotations

import copy
from collections.abc import Collection
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper
from mmengine.runner import CheckpointLoader, Runner
from mmengine.runner.checkpoint import _load_checkpoint_to_model
from torch import Tensor, nn

from rkan_mm.engine.safe_loading import read, safe_loading
from rkan_mm.models import RKANet

from .building import checking
from .checks import PreflightError, check_checkpoint, load_weights, state_dict_in
from .config import kind
from .fit import Fit, fit, innermost, summary
from .origin import differences, other_batches, other_beginning
from .red import warn_in_red
from .resuming import check_resumed


def check_fit(model: nn.Module, path: str) -> None:
    """Raise `PreflightError` if a checkpoint on disk has not one entry for the model.

    mmengine only logs what does not fit, and would go on with random weights.
    """
    if '://' not in path and not Path(path).expanduser().is_dir():  # a folder is of a sharded strategy
        _refuse_nothing(model, fit(model, weights := load_weights(path)), weights, path, 'the model')


def _refuse_nothing(module: nn.Module, result: Fit, weights: dict[str, Tensor], path: str, where: str,
                    prefix: str = '') -> None:
    if not result.loaded:
        mine = sorted(module.state_dict())
        cure = ''
        if any(f'backbone.{name}' in mine for name in weights):
            cure = (" Its weights are those of the backbone alone: give them by model.backbone.init_cfg=dict(type="
                    f"'Pretrained', checkpoint={path!r}).")
        elif any(name.startswith('backbone.') and name.removeprefix('backbone.') in mine for name in weights):
            cure = f" They are of a model around it: prefix='{prefix}backbone.' takes them."
        raise PreflightError(f'Checkpoint {path!r} fits nothing of {where}: it has {_first(list(weights))}; '
                             f'{where} has {_first(mine)}.{cure}')


def check_whole(model: nn.Module, state_dict: dict[str, Tensor], path: str, allow_partial: bool = False) -> str | None:
    """Whether a model that is to be tested, or to predict, gets all its weights from a checkpoint, and it has no more.

    RKAN blocks that start at zero and are all new change nothing and pass. So does what only training needs, and, with
    a warning, a part beside those of the model, such as the classifier behind a backbone.

    Args:
        model: with the weights with which it was built.
        state_dict: of the checkpoint.
        path: of the checkpoint, for the message.
        allow_partial: return what is wrong instead of raising it.

    Returns:
        What the user must know of the result, or None.

    Raises:
        PreflightError: entries of the model are missing or do not fit, or the checkpoint has more of one of its parts.
    """
    model = innermost(model)
    result = fit(model, state_dict)
    harmless = _zero_blocks(model, result.new)
    new = [name for name in result.new if name not in harmless]
    more = [name for name in result.left if 'loss' not in name and not name.startswith('ema_')
            and getattr(state_dict.get(name), 'is_floating_point', lambda: True)()]
    parts = set(dict(model.named_children()))
    serious = [name for name in more if name.partition('.')[0] in parts]
    lines = []
    for names, what, everything in ((new, 'entries of the model are not in it', model.state_dict()),
                                    (result.unfit, 'do not fit', ()),
                                    (serious or more, 'of its entries have no place in the model', state_dict)):
        if names:
            everything = {name for name in everything if not name.endswith('num_batches_tracked')}
            shown = _first(summary(names, {*everything, *names}).split(', ') if everything else names)
            lines.append(f'{len(names)} {what} ({shown})')
    if not lines:
        return None
    text = f'Checkpoint {path!r}: {", ".join(lines)}'
    if not (new or result.unfit or serious):
        return f'{text}.'
    _refuse_nothing(model, result, state_dict, path, 'the model')
    if not allow_partial:
        raise PreflightError(f'{text}. The result would be that of another model: give the config that it was trained '
                             'with, or --allow-partial for a result all the same.')
    return f'{text}. This is the result of another model than the one that was trained.'


def _first(names: list[str], separator: str = ', ') -> str:
    return separator.join(names[:5]) + (f'{separator}... ({len(names)})' if len(names) > 5 else '')


def _zero_blocks(model: nn.Module, new: Collection[str]) -> set[str]:
    """Entries of RKAN blocks of which none was in the checkpoint and which add nothing: they started at zero."""
    found = set()
    for prefix, module in model.named_modules():
        if isinstance(module, RKANet):
            for key, bridge in module.bridges.items():
                start = f'{prefix}.bridges.{key}'.lstrip('.')
                own = {f'{start}.{name}' for name in bridge.state_dict() if not name.endswith('num_batches_tracked')}
                if bridge.starts_at_zero and own <= set(new):
                    found |= own
    return found


@safe_loading()
def load_for_testing(model: nn.Module, path: str, allow_partial: bool = False, cfg: Config | None = None) -> dict:
    """Load a checkpoint into a model that is to be tested, to predict, to be looked at or to be exported.

    Args:
        model: as its config builds it.
        path: file, or an address that mmengine knows.
        allow_partial: print a warning in red instead of raising where the model gets only part of its weights.
        cfg: of the model, to be compared with the one that the checkpoint was trained with.

    Returns:
        The checkpoint, with its ``state_dict`` and, where mm has saved it, ``meta``.

    Raises:
        PreflightError: see `check_whole`; there is no such file, or it holds more than plain data.
    """
    content = read_anywhere(path)
    warn_in_red(load_whole(model, content, path, allow_partial, cfg))
    return content


def load_whole(model: nn.Module, content: dict, path: str, allow_partial: bool = False,
               cfg: Config | None = None) -> str | None:
    """Load a checkpoint that has been read; see `check_whole` for arguments, result and errors."""
    state_dict = state_dict_in(content, path)
    warning = check_whole(model, state_dict, path, allow_partial)
    _load_checkpoint_to_model(model, dict(state_dict=state_dict))
    return _together(_no_numbers(state_dict, path), warning, _another_origin(content, cfg))


def _no_numbers(state_dict: dict[str, Tensor], path: str) -> str | None:
    names = [name for name, value in state_dict.items() if isinstance(value, Tensor) and value.is_floating_point()
             and value.isnan().any()]
    return f'Checkpoint {path!r} has NaN in {len(names)} entries ({_first(names)}).' if names else None


def _another_origin(content: dict, cfg: Config | None) -> str | None:
    if cfg is None:
        return None
    with checking('The config that the checkpoint was trained with'):
        return differences(content, cfg)
    return None


def _together(*warnings: str | None) -> str | None:
    return ' '.join(filter(None, warnings)) or None


def read_anywhere(path: str) -> dict:
    """A checkpoint from the disk or from an address that mmengine knows, as plain data."""
    check_checkpoint(path)
    return CheckpointLoader.load_checkpoint(path, map_location='cpu') if '://' in path else read(path)


class WeightReportHook(Hook):
    """Log what of the checkpoint that a run starts from enters its model.

    Args:
        model: names and shapes of the run's model, where its own weights are sharded.
        testing: whether it must be all of them, see `check_whole`.
        allow_partial: then what is wrong is kept as ``warning``.

    Raises:
        PreflightError: nothing does, or in testing and resuming not all.
    """

    priority = 'VERY_HIGH'

    def __init__(self, model: nn.Module | None = None, testing: bool = False, allow_partial: bool = False) -> None:
        self.model, self.testing, self.allow_partial = model, testing, allow_partial
        self.warning: str | None = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        model, path = self.model or innermost(runner.model), str(runner._load_from)
        weights = copy.copy(state_dict_in(checkpoint, path))  # a file of weights alone would hold itself
        checkpoint['state_dict'] = weights  # where mmengine and its EMAHook look
        if getattr(runner, '_resume', False):
            _check_same(model, checkpoint, runner.optim_wrapper, path)
            check_resumed(runner, checkpoint, path)
            with checking('The config that the checkpoint was trained with'):
                for line in filter(None, (differences(checkpoint, runner.cfg), other_batches(checkpoint, runner.cfg))):
                    warn_in_red(f'--resume: {line}')
        if self.testing:
            self.warning = _together(check_whole(model, weights, path, self.allow_partial), _no_numbers(weights, path),
                                     _another_origin(checkpoint, runner.cfg))
        elif not getattr(runner, '_resume', False):
            with checking('The config that the checkpoint was trained with'):
                if told := other_beginning(checkpoint, runner.cfg):
                    warn_in_red(f'load_from: {told}')
        _report(model, weights, path, 'the model')


def _check_same(model: nn.Module, checkpoint: dict, wrapper: Any, path: str) -> None:
    """A training goes on with the weights that it was begun with; buffers that it has more or less are told in red."""
    result = fit(model, checkpoint['state_dict'])
    weights = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    differ = [name for name in (*result.unfit, *result.new) if name.partition(' ')[0] in weights]
    if result.left and not _same_optimizer(checkpoint, wrapper):
        differ += result.left  # no buffers, as far as can be known
    if differ:
        raise PreflightError(f'--resume: {path!r} is of another model; they differ in {_first(differ)}. To begin a '
                             f'training with its weights: --cfg-options load_from={path}')
    if begun := [*result.unfit, *result.new]:
        warn_in_red(f'--resume: buffers of the model are not so in {path!r} and begin anew: {_first(begun)}.')
    if result.left:
        warn_in_red(f'--resume: buffers in {path!r} have no place in the model and are left out: '
                    f'{_first(result.left)}.')


def _same_optimizer(checkpoint: dict, wrapper: Any) -> bool:
    """Whether the optimizer of a checkpoint has as many parameters as a run's, in as many groups."""
    saved = (checkpoint.get('optimizer') or {}).get('param_groups')
    if not saved or not isinstance(wrapper, OptimWrapper):
        return False
    return [len(group['params']) for group in saved] == [len(group['params'])
                                                         for group in wrapper.optimizer.param_groups]


def check_pretrained(model: nn.Module, cfg: Config | None = None) -> None:
    """Report in the log what each ``init_cfg=dict(type='Pretrained')`` in a model will load; call before init_weights.

    Weights that a ``cfg`` means otherwise than the one that they were trained by are told in red.

    Raises:
        PreflightError: one fits nothing of its module; mmengine would go on with random weights.
    """
    for name, module in model.named_modules():
        init_cfgs = getattr(module, 'init_cfg', None) or []
        for init_cfg in [init_cfgs] if isinstance(init_cfgs, dict) else init_cfgs:
            if not kind(init_cfg).startswith('Pretrained'):
                continue
            path, prefix = init_cfg['checkpoint'], init_cfg.get('prefix') or ''
            content = read_anywhere(path)
            state_dict = state_dict_in(content, path) if not isinstance(content, dict) else content.get(
                'state_dict', content)  # no more than mmengine looks at here
            where = f'{name or "the model"} ({type(module).__name__})'
            if prefix:
                prefix = f'{prefix.rstrip(".")}.'
                inside = {key[len(prefix):]: value for key, value in state_dict.items() if key.startswith(prefix)}
                if not inside:
                    cure = ' Leave prefix out.' if {*state_dict} & {*module.state_dict()} else ''
                    raise PreflightError(f'init_cfg of {where}: nothing in {path!r} begins with {prefix!r}; it has '
                                         f'{summary(state_dict, [*state_dict, ""]) or "nothing"}.{cure}')
                state_dict = inside
            owner = type(module).init_weights.__module__.partition('.')[0]
            if owner in ('mmengine', 'mmpretrain', 'rkan_mm'):  # others may rename first, as mmdet's Swin does
                _report(module, state_dict, path, where, prefix)
            if cfg is not None:
                with checking('The config that the checkpoint was trained with'):
                    if told := other_beginning(content, cfg, name, prefix.rstrip('.')):
                        warn_in_red(f'init_cfg of {where}: {told}')


def _report(module: nn.Module, state_dict: dict[str, Tensor], path: str, where: str, prefix: str = '') -> None:
    result = fit(module, state_dict)
    _refuse_nothing(module, result, state_dict, path, where, prefix)
    unfit = [name for name in result.unfit if 'head' not in name]  # heads are often of other classes
    if 10 * len(unfit) > result.loaded + len(result.new) + len(result.unfit):
        warn_in_red(f'{path!r} is of other shapes than {where}: {len(unfit)} entries do not fit and start at random, '
                    f'such as {unfit[0]}; {result.loaded} are loaded.')
    MMLogger.get_current_instance().info(f'Weights of {path} for {where}:\n  {result.text}')
