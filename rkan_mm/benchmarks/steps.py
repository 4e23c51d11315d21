"""One training step and one prediction of whole configs at their own image size: CPU seconds and peak memory."""

from __future__ import annotations

import gc
import hashlib
import json
import math
import multiprocessing
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import init_default_scope
from rich.console import Console
from rich.table import Table

from rkan_mm.apis.command_line import command_line, file_to_write, positive
from rkan_mm.apis.configs import find_config, read_config
from rkan_mm.engine.provenance import processor
from rkan_mm.preflight import PreflightError
from rkan_mm.preflight.building import building
from rkan_mm.preflight.config import kind, scope
from rkan_mm.preflight.datasets import data_sets

from .models import MIB


def without_pretrained(node):
    """A copy of a nested config whose models start from random weights."""
    if isinstance(node, dict):
        return ConfigDict({key: None if key == 'init_cfg' and 'Pretrained' in str(value) else without_pretrained(value)
                           for key, value in node.items()})
    return [without_pretrained(child) for child in node] if isinstance(node, (list, tuple)) else node


def build(cfg: Config) -> BaseModel:
    """The model of a config with random weights."""
    init_default_scope(scope(cfg) or 'mmengine')
    model_cfg = without_pretrained(cfg.model)
    if cfg.get('data_preprocessor'):
        model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor)
    with building('The model cannot be built'):
        model = MMENGINE_MODELS.build(model_cfg)
    model.init_weights()
    return model


NATIVE = dict(MNIST=28, FashionMNIST=28, CIFAR10=32, CIFAR100=32)
"""Sizes of images that come in one size."""


def image_size(cfg: Config) -> tuple[int, int]:
    """Height and width of the images that the config tests on, landscape where it keeps their ratio."""
    for dataset in data_sets(cfg.get('test_dataloader')):
        for step in reversed(dataset.get('pipeline') or ()):
            size = step.get('crop_size') or step.get('scale') or step.get('size')
            if size:
                return (size, size) if isinstance(size, int) else (min(size), max(size))
        if kind(dataset) in NATIVE:
            return (NATIVE[kind(dataset)],) * 2
    raise PreflightError(f'No step of the test pipeline of {cfg.filename} gives a size.')


def batch(cfg: Config, images: int, size: tuple[int, int]) -> dict:
    """Random images with what a training step asks for: eight boxes and masks each, or a label."""
    rng = np.random.default_rng(0)
    preprocessor = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    channels = len(preprocessor.get('mean') or (0, 0, 0))
    inputs = [torch.from_numpy(rng.integers(0, 256, (channels, *size), np.uint8)) for _ in range(images)]
    if scope(cfg) == 'mmpretrain':
        from mmpretrain.structures import DataSample
        return dict(inputs=torch.stack(inputs), data_samples=[DataSample().set_gt_label(0) for _ in range(images)])
    num_classes = int(re.findall(r"'num_classes': (\d+)", str(cfg.model.to_dict()))[0])
    return dict(annotated(images, size, 8, num_classes, 'mask_head' in cfg.model.get('roi_head', {})), inputs=inputs)


def annotated(images: int, size: tuple[int, int], objects: int, num_classes: int, with_mask: bool = True) -> dict:
    """Random images with annotated objects of any class, as detectors of mmdet take them."""
    from mmdet.testing import demo_mm_inputs
    demo = demo_mm_inputs(images, [[3, *size]] * images, num_items=[objects] * images, num_classes=2,
                          with_mask=with_mask)  # which gives labels from 1 on, and none to a single class
    rng = np.random.default_rng(0)
    for sample in demo['data_samples']:
        sample.gt_instances.labels = torch.from_numpy(rng.integers(0, num_classes, objects))
    return demo


def run(cfg: Config, images: int, size: tuple[int, int]) -> dict:
    """CPU seconds of both steps, which do not grow by what else a machine does, and the loss.

    Raises:
        FloatingPointError: a loss is not finite.
    """
    torch.manual_seed(0)
    np.random.seed(0)
    model = build(cfg)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    data = batch(cfg, images, size)
    model.train()
    start = time.process_time()
    logged = {name: value.item() for name, value in model.train_step(data, wrapper).items()}
    trained = time.process_time()
    if not all(math.isfinite(value) for value in logged.values()):
        raise FloatingPointError(f'{cfg.filename}: {logged}')
    gc.collect()
    model.eval()
    with torch.no_grad():
        predicted = model.test_step(data)
    done = time.process_time()
    assert len(predicted) == images
    return dict(train_s=round(trained - start, 1), test_s=round(done - trained, 1), loss=round(logged['loss'], 3))


def _in_process(queue, config: str, images: int, threads: int) -> None:
    torch.set_num_threads(threads)
    cfg = read_config(config)
    size = image_size(cfg)
    result = run(cfg, images, size)
    peak = 1024 * next(int(line.split()[1]) for line in Path('/proc/self/status').read_text().splitlines()
                       if line.startswith('VmHWM:'))
    queue.put(dict(config=Path(config).stem, images=images, size=list(size), **result, peak_bytes=peak,
                   processor=processor(), threads=threads, torch=torch.__version__))


def measure(config: str, images: int, threads: int) -> dict:
    """`run` in a process of its own, and the peak of what was resident in it."""
    context = multiprocessing.get_context('spawn')
    queue = context.SimpleQueue()
    process = context.Process(target=_in_process, args=(queue, config, images, threads))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f'{config}: the process ended with {process.exitcode}')
    return queue.get()


def _state(cfg: Config) -> str:
    """Of a config; another one wherever something of it is changed."""
    def plain(node: Any) -> Any:
        if isinstance(node, dict):
            return {key if isinstance(key, str) else repr(key): plain(value) for key, value in node.items()}
        if isinstance(node, (set, frozenset)):
            return sorted(map(repr, node))
        return [plain(each) for each in node] if isinstance(node, (list, tuple)) else node

    def named(value: Any) -> str:  # by what is the same in the next process
        return getattr(value, '__name__', None) or re.sub(' at 0x[0-9a-f]+', '', repr(value))

    text = json.dumps(plain(cfg.to_dict()), sort_keys=True, default=named)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of tools/benchmark_steps.py.

    What is in ``--out`` for so many images, of the config as it is now, is not measured again.

    Raises:
        PreflightError: ``--out`` holds what was measured on another machine, by other threads or PyTorch.
    """
    parser = command_line('One training step and one prediction of each config on the CPU',
                          'configs/mask-rcnn_rkanet50_fpn_1x_coco.py')
    parser.add_argument('config', nargs='+')
    parser.add_argument('--images', type=positive, default=1, help='images in the batch')
    parser.add_argument('--out', type=file_to_write, help='json file for the results')
    args = parser.parse_args(argv)
    args.config = [find_config(config) for config in args.config]
    states = {}
    for config in args.config:  # before any is measured
        image_size(cfg := read_config(config))
        states[config] = _state(cfg)
    out = Path(args.out) if args.out else None
    this = dict(processor=processor(), threads=torch.get_num_threads(), torch=torch.__version__)
    try:
        results = json.loads(out.read_text()) if out and out.is_file() else []
        results = [result for result in results if result['images'] != args.images or result.get('state') in (
            None, *states.values()) or result['config'] not in [Path(config).stem for config in states]]
        done = {(result['config'], result['images'], result.get('state')) for result in results}
        others = [here for result in results if (here := {name: result.get(name, mine) for name, mine in this.items()})
                  != this]
    except (ValueError, KeyError, TypeError) as error:
        raise PreflightError(f'{args.out!r} holds no results of this command, or is torn: name another file by --out.'
                             ) from error
    if others:
        theirs, mine = (f'{each["processor"]}, {each["threads"]} threads, torch {each["torch"]}'
                        for each in (others[0], this))
        raise PreflightError(f'{args.out!r} has what was measured on {theirs}, this is {mine}, and they would stand in '
                             'one table: name another file by --out.')
    for config in args.config:
        if {(Path(config).stem, args.images, state) for state in (None, states[config])} & done:  # older ones have none
            continue
        results.append(measure(config, args.images, torch.get_num_threads()) | dict(state=states[config]))
        if out:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text('[\n' + ',\n'.join(f' {json.dumps(result)}' for result in results) + '\n]\n')
    table = Table(title='one training step with the optimizer, one prediction; random weights and images')
    for column in ('config', 'images', 'size', 'training, CPU s', 'prediction, CPU s', 'peak, MiB'):
        table.add_column(column, justify='left' if column == 'config' else 'right')
    for result in results:
        table.add_row(result['config'], str(result['images']), 'x'.join(map(str, result['size'])),
                      str(result['train_s']), str(result['test_s']), f'{result["peak_bytes"] / MIB:.0f}')
    Console(width=120).print(table)
