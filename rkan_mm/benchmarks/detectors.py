"""Whole models beside their plain backbone: a prediction or a training step with all that mm does in it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper

from rkan_mm.preflight import PreflightError
from rkan_mm.preflight.building import building

from . import steps
from .models import CPU, configs_of
from .timing import Running, Step, compare


def step_of(model: BaseModel, cfg: Config, data: dict, training: bool, running: Running) -> Step:
    """A training step with the optimizer, or a prediction; from images in the memory of the CPU to what mm returns."""
    if not training:
        model.eval()

        def predict() -> None:
            with torch.no_grad(), running.autocast():
                model.test_step(data)
        return predict
    wrapper_cfg = dict(cfg.optim_wrapper)
    if running.amp and running.device != 'cpu':
        wrapper_cfg.update(type='AmpOptimWrapper', dtype=dict(fp16='float16', bf16='bfloat16')[running.amp])
    wrapper = build_optim_wrapper(model, wrapper_cfg)
    model.train()
    if running.amp and running.device == 'cpu':  # which mmengine's wrapper refuses

        def train() -> None:
            with running.autocast():
                model.train_step(data, wrapper)
        return train
    return lambda: model.train_step(data, wrapper)


def measure(config: str, shape: Sequence[int] | None, training: bool, rounds: int, running: Running = CPU,
            options: dict | None = None, baseline: str | None = None) -> dict:
    """One comparison, as `models.measure` gives it; peaks of memory are of all that a model has on a GPU.

    ``compile`` is for its backbone alone, since what the heads do depends on what they see.

    Args:
        shape: of the images, (B, C, H, W); None is one image of the size that the config tests on.

    Raises:
        PreflightError: a CUDA graph is asked for, which what a detector does with its regions does not allow.
    """
    if running.cuda_graph:
        raise PreflightError('--detector has no --cuda-graph: what a detector computes depends on what it sees.')
    *both, names = configs_of(config, options, baseline)
    cfgs = dict(zip(names, both, strict=True))
    images, _, height, width = shape or (1, 3, *steps.image_size(both[1]))
    models, rows = {}, {}
    for name, cfg in cfgs.items():
        torch.manual_seed(0)
        model = steps.build(cfg)
        rows[name] = dict(backbone=names[name], params=sum(p.numel() for p in model.parameters()))
        before = torch.cuda.memory_allocated() if running.device != 'cpu' else 0
        with building(f'{config} cannot be measured'):
            model = running.place(model)
            if running.compile:
                model.backbone.compile()
            models[name] = step_of(model, cfg, steps.batch(cfg, images, (height, width)), training, running)
            for _ in range(2):  # the first step makes what the optimizer keeps
                if running.device != 'cpu':
                    torch.cuda.reset_peak_memory_stats()
                models[name]()
        rows[name]['peak_bytes'] = torch.cuda.max_memory_allocated() - before if running.device != 'cpu' else 0
    times = compare(models, rounds, running.device)
    for name, seconds in times.items():
        took = statistics.median(seconds)
        rows[name].update(images_per_s=images / took, milliseconds=1e3 * took)
    ratio = statistics.median(a / b for a, b in zip(times['plain'], times['rkan'], strict=True))
    return dict(config=Path(config).stem, shape=[images, 3, height, width], device=running.where, running=str(running),
                mode='training step of all' if training else 'prediction', torch=torch.__version__, rounds=rounds,
                models=rows, throughput_ratio=ratio)
