"""What of a checkpoint enters a model: a report in the log, and an error where nothing does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper
from mmengine.runner import CheckpointLoader, Runner
from torch import Tensor, nn

from rkan_mm.models import RKANet

from .checks import PreflightError, load_weights


def summary(names: Collection[str], everything: Collection[str]) -> str:
    """Names, with the whole module in their place where all of its entries are among them.

    Example:
        >>> summary(['fc.weight', 'fc.bias', 'neck.bias'], ['fc.weight', 'fc.bias', 'neck.bias', 'neck.weight'])
        'fc (2), neck.bias'
    """
    def parents(name: str) -> list[str]:
        parts = name.split('.')
        return ['.'.join(parts[:i + 1]) for i in range(len(parts))]

    here, there = (Counter(parent for name in each for parent in parents(name)) for each in (names, everything))
    shortest = Counter(next(parent for parent in parents(name) if here[parent] == there[parent]) for name in names)
    return ', '.join(f'{name} ({count})' if count > 1 else name for name, count in shortest.items())


@dataclass
class Fit:
    """What becomes of each entry of a checkpoint and of a model; counters of batches in norms are left out.

    Args:
        loaded: entries that the model takes.
        new: names in the model that are not in the checkpoint.
        left: names in the checkpoint that have no place in the model.
        unfit: names in both, with both shapes, where these differ.
        text: all of this in a few lines.
    """

    loaded: int
    new: list[str]
    left: list[str]
    unfit: list[str]
    text: str


def fit(module: nn.Module, state_dict: dict[str, Tensor]) -> Fit:
    """Compare a state_dict with a model that will load it, plain backbones' in a RKANet included."""
    source = {name.removeprefix('module.'): value for name, value in state_dict.items()}
    for prefix, child in module.named_modules():
        if isinstance(child, RKANet):
            child.take_plain(source, f'{prefix}.' if prefix else '')
    source, target = ({name: value for name, value in each.items() if not name.endswith('num_batches_tracked')}
                      for each in (source, module.state_dict()))
    both = [name for name in source if name in target]
    unfit = [f'{name} {tuple(source[name].shape)}, here {tuple(target[name].shape)}' for name in both
             if source[name].shape != target[name].shape]
    new, left = [name for name in target if name not in source], [name for name in source if name not in target]
    loaded = len(both) - len(unfit)
    lines = [f'{loaded} of {len(target)} entries of the model are loaded']
    if new:
        lines.append(f'{len(new)} are new: {summary(new, target)}')
    if unfit:
        lines.append(f'{len(unfit)} do not fit: {", ".join(unfit)}')
    if left:
        lines.append(f'{len(left)} of the checkpoint have no place: {summary(left, source)}')
    return Fit(loaded, new, left, unfit, '\n  '.join(lines))


class WeightReportHook(Hook):
    """Log what of the checkpoint that a run starts from enters its model.

    Args:
        model: names and shapes of the run's model, where its own weights are sharded.

    Raises:
        PreflightError: nothing does.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        self.model = model

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        model = self.model or (runner.model.module if is_model_wrapper(runner.model) else runner.model)
        _report(model, checkpoint.get('state_dict', checkpoint), str(runner._load_from), 'the model')


def check_pretrained(model: nn.Module) -> None:
    """Report in the log what each ``init_cfg=dict(type='Pretrained')`` in a model will load; call before init_weights.

    Raises:
        PreflightError: one fits nothing of its module; mmengine would go on with random weights.
    """
    for name, module in model.named_modules():
        init_cfgs = getattr(module, 'init_cfg', None) or []
        for init_cfg in [init_cfgs] if isinstance(init_cfgs, dict) else init_cfgs:
            if init_cfg.get('type') != 'Pretrained':
                continue
            path, prefix = init_cfg['checkpoint'], init_cfg.get('prefix') or ''
            if '://' in path:
                content = CheckpointLoader.load_checkpoint(path, map_location='cpu')
                state_dict = content.get('state_dict', content)
            else:
                state_dict = load_weights(path)
            where = f'{name or "the model"} ({type(module).__name__})'
            if prefix:
                prefix = f'{prefix.rstrip(".")}.'
                inside = {key[len(prefix):]: value for key, value in state_dict.items() if key.startswith(prefix)}
                if not inside:
                    raise PreflightError(f'init_cfg of {where}: nothing in {path!r} begins with {prefix!r}; it has '
                                         f'{summary(state_dict, [*state_dict, ""])}.')
                state_dict = inside
            _report(module, state_dict, path, where)


def _report(module: nn.Module, state_dict: dict[str, Tensor], path: str, where: str) -> None:
    result = fit(module, state_dict)
    if not result.loaded:
        raise PreflightError(f'Checkpoint {path!r} fits nothing of {where}:\n  {result.text}')
    MMLogger.get_current_instance().info(f'Weights of {path} for {where}:\n  {result.text}')
