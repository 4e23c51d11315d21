"""What pruning the functions of KAN layers would cost, and how much of it a short training gets back."""

from __future__ import annotations

import copy
import itertools
from collections import deque
from collections.abc import Sequence

from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from torch import nn

from rkan_mm.models.layers import prune

from .metric import Metric
from .subject import Subject
from .swap import same_random_numbers

LR_FACTOR = 0.1
"""By which the config's learning rate is lowered for a short training of trained weights."""


def pruning_curves(subject: Subject, metric: Metric, sparsities: Sequence[float], finetune_iters: int = 0,
                   batch_size: int = 1) -> dict[str, list[tuple[float, dict[str, float]]]]:
    """The metric over the part of functions that is pruned, by importance over all KAN layers. The model stays whole.

    Args:
        subject: the model; importance is measured on the images that are looked at.
        metric: evaluates it.
        sparsities: parts of the functions to be pruned, 0 to 1.
        finetune_iters: iterations of training after pruning, on the config's training set with its optimizer at a
            tenth of its learning rate; 0 for none.
        batch_size: images at a time.

    Returns:
        By name, ``'pruned'`` and ``'pruned, then trained N iterations'``, pairs of the sparsity that was reached and
        metrics: first as the model is, then from there on.

    Raises:
        ValueError: the images do not reach all KAN layers.
    """
    trained = f'pruned, then trained {finetune_iters} iterations'
    curves = {'pruned': [], **({trained: []} if finetune_iters else {})}
    present = prune(copy.deepcopy(subject.model), 0.0)
    for sparsity in [present, *sorted({wanted for wanted in sparsities if wanted > present})]:
        model = copy.deepcopy(subject.model)
        if sparsity > present:
            sparsity = prune(model, sparsity, lambda model=model: deque(
                subject.predict(batch_size=batch_size, model=model), 0))
        curves['pruned'].append((sparsity, metric(model)[0]))
        if finetune_iters:
            finetune(subject, model, finetune_iters)
            curves[trained].append((sparsity, metric(model)[0]))
    return curves


def finetune(subject: Subject, model: nn.Module, iterations: int) -> None:
    """Train a copy of the subject's model for a few iterations, in place; it is in eval mode afterwards."""
    cfg = subject.cfg
    with same_random_numbers():
        loader = Runner.build_dataloader(copy.deepcopy(cfg.train_dataloader), seed=0)
        wrapper = build_optim_wrapper(model, dict(type='OptimWrapper', **{
            key: copy.deepcopy(cfg.optim_wrapper[key])
            for key in ('optimizer', 'clip_grad', 'paramwise_cfg', 'constructor') if cfg.optim_wrapper.get(key)}))
        for group in wrapper.optimizer.param_groups:
            group['lr'] *= LR_FACTOR
        model.train()
        for data in itertools.islice(itertools.chain.from_iterable(itertools.repeat(loader)), iterations):
            model.train_step(data, wrapper)
        model.eval()
