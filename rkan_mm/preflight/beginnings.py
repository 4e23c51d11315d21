"""What a training begins with and cannot make good: random weights that stay so, pictures in the order of classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from mmengine.dataset import DefaultSampler
from mmengine.runner import Runner
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, SequentialSampler

from rkan_mm.engine.resume_state import sampler_of

from .classification import labels_of
from .config import is_mm, kind
from .fit import innermost
from .red import warn_in_red


def tell_random(runner: Runner) -> None:
    """Warn in red of mm's backbones whose random weights are frozen, or whose norms are without statistics."""
    if runner._load_from or runner._resume:
        return
    for name, backbone in _kept(innermost(runner.model)):
        frozen, norms = _frozen(backbone), _settled(backbone)
        found = {'frozen_stages=-1': f'frozen_stages={backbone.frozen_stages} keeps some as they are' if frozen else '',
                 'norm_eval=False': 'norm_eval=True keeps its norms at mean 0 and variance 1' if norms else ''}
        cures = [cure for cure, text in found.items() if text]
        if cures:
            warn_in_red(f'model.{name} ({type(backbone).__name__}) begins with random weights: '
                        f'{", ".join(found[cure] for cure in cures)}. Load weights by its init_cfg or by load_from, or '
                        f'set {" and ".join(cures)}.')


def _kept(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Backbones of mm that no pretrained weights are loaded into, by their own config or that of what they are in."""
    loaded = [name for name, module in model.named_modules() if _is_pretrained(module)]
    for name, module in model.named_modules():
        if not hasattr(type(module), 'init_weights') or not is_mm(type(module), '__init__', 'init_weights', 'train'):
            continue
        inside = any(f'{name}.'.startswith(f'{each}.') or not each or f'{each}.'.startswith(f'{name}.')
                     for each in loaded)
        elsewhere = inside or any(part.startswith(('teacher', 'bridges')) for part in name.split('.'))
        if name and not elsewhere and {'frozen_stages', 'norm_eval'} & set(vars(module)):
            yield name, module


def _is_pretrained(module: nn.Module) -> bool:
    given = getattr(module, 'init_cfg', None) or []
    return any(kind(each).startswith('Pretrained') for each in ([given] if isinstance(given, dict) else given))


def _frozen(backbone: nn.Module) -> bool:
    stages = vars(backbone).get('frozen_stages', -1)
    weights = [layer.weight for layer in backbone.modules() if isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear))]
    return isinstance(stages, int) and stages >= 0 and not all(weight.requires_grad for weight in weights)


def _settled(backbone: nn.Module) -> bool:
    norms = [each for each in backbone.modules() if isinstance(each, _BatchNorm) and each.running_mean is not None]
    return bool(vars(backbone).get('norm_eval') and norms and all(not each.running_mean.any() for each in norms))


def tell_order(loader: Any) -> None:
    """Warn in red if a training takes its pictures class by class, always in the same order."""
    if not isinstance(loader, DataLoader) or not hasattr(loader.dataset, 'get_gt_labels'):
        return
    sampler = sampler_of(loader)
    if type(sampler) is not SequentialSampler and not (type(sampler) is DefaultSampler and not sampler.shuffle):
        return
    labels = labels_of(loader.dataset)
    if labels is None or len(labels) <= (loader.batch_size or 1):
        return
    if 1 < len(np.unique(labels)) == np.count_nonzero(np.diff(labels)) + 1:
        warn_in_red("The training takes its pictures class by class: give train_dataloader.sampler=dict(type='Default"
                    "Sampler', shuffle=True).")
