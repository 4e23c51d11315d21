"""What training through this package adds to a config that asks for mmengine's own hooks and loops."""

from __future__ import annotations

from mmengine._strategy import FSDPStrategy
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop

from rkan_mm.preflight.config import kind


def _is(kind: str | type | None, cls: type) -> bool:
    return kind is cls or (isinstance(kind, str) and kind.rpartition('.')[2] == cls.__name__)


def make_resumable(cfg: Config) -> None:
    """Change ``cfg`` so that it survives kills, torn files and bad losses; classes of the user's own stay.

    mmengine's CheckpointHook, EpochBasedTrainLoop, IterBasedTrainLoop and FSDPStrategy give way to ours, which take the
    same arguments and do the same in a run that is not interrupted; LossCheckHook joins the custom hooks.
    """
    hooks = cfg.get('default_hooks') or {}
    checkpoint = hooks.get('checkpoint', dict(type='CheckpointHook', interval=1))  # mmengine's default
    if checkpoint and _is(checkpoint.get('type'), CheckpointHook):
        cfg.default_hooks = {**hooks, 'checkpoint': {**checkpoint, 'type': 'rkan_mm.ResumableCheckpointHook'}}
    loop = dict(cfg.get('train_cfg') or {})
    by_epoch = loop.pop('by_epoch', True) if 'type' not in loop else None
    if by_epoch or _is(loop.get('type'), EpochBasedTrainLoop):
        loop['type'] = 'rkan_mm.ResumableEpochLoop'
    elif by_epoch is False or _is(loop.get('type'), IterBasedTrainLoop):
        loop['type'] = 'rkan_mm.ResumableIterLoop'
    cfg.train_cfg = loop
    if _is((cfg.get('strategy') or {}).get('type'), FSDPStrategy):
        cfg.strategy.type = 'rkan_mm.ResumableFSDPStrategy'
    add_hooks(cfg, 'LossCheckHook')
    imports = cfg.get('custom_imports') or dict(imports=[], allow_failed_imports=False)
    modules = [imports['imports']] if isinstance(imports['imports'], str) else list(imports['imports'])
    if 'rkan_mm' not in modules:  # for who runs the dumped config with mm's own tools
        cfg.custom_imports = {**imports, 'imports': [*modules, 'rkan_mm']}


def add_hooks(cfg: Config, *names: str) -> None:
    """Let hooks of ours join the custom hooks, where they are not there already, as in the config of a work dir."""
    given = list(cfg.get('custom_hooks') or [])
    there = {kind(hook) for hook in given if isinstance(hook, dict)}
    cfg.custom_hooks = [*given, *(dict(type=f'rkan_mm.{name}') for name in names if name not in there)]
