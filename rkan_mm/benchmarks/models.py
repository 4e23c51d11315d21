"""Parameters, MACs, speed and memory of a config's model beside the same model on its plain backbone."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import json
import math
import multiprocessing
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import init_default_scope
from rich.console import Console
from rich.table import Table
from torch import nn

from rkan_mm.apis.command_line import add_cfg_options, command_line, file_to_write, positive
from rkan_mm.apis.configs import find_config
from rkan_mm.apis.loading import load_config
from rkan_mm.preflight import PreflightError
from rkan_mm.preflight.building import building
from rkan_mm.preflight.config import kind
from rkan_mm.preflight.config import scope as scope_of

from .macs import macs_of, macs_of_step
from .timing import Running, Step, add_arguments, compare, running_of

MIB = 2**20
CPU = Running()


def plain(model_cfg: dict) -> dict:
    """Parts of the config without RKAN: what a RKANet in the place of backbone or neck goes around."""
    inside = {part: model_cfg[part]['backbone'] for part in ('backbone', 'neck') if _name(model_cfg, part) == 'RKANet'}
    if not inside:
        raise PreflightError(f'The backbone is {_name(model_cfg, "backbone") or "not there"}; only a RKANet has a '
                             'plain one inside. To compare with another config: --baseline CONFIG')
    return inside


def _name(model_cfg: dict, part: str) -> str:
    """Of the class of a part, of which a neck may have several."""
    given = model_cfg.get(part)
    return ', '.join(map(kind, given if isinstance(given, (list, tuple)) else [given]))


def build(model_cfg: dict, scope: str) -> nn.Module:
    """What is measured: all of a classifier; backbone and neck of a detector, whose heads depend on what is seen."""
    init_default_scope(scope)
    model_cfg = copy.deepcopy(model_cfg)
    parts = ('backbone', 'neck', 'head') if scope == 'mmpretrain' else ('backbone', 'neck')
    modules = [MMENGINE_MODELS.build(model_cfg[part]) for part in parts if model_cfg.get(part)]
    return nn.Sequential(*modules)


def runner_of(model: nn.Module, image: torch.Tensor, training: bool, running: Running = CPU) -> Step:
    """A forward pass in eval mode, or a training step without the optimizer."""
    model = running.compiled(model.train(training))

    def step() -> None:
        if not training:
            with torch.no_grad(), running.autocast():
                model(image)
            return
        with running.autocast():
            outputs = model(image)
            outputs = outputs if isinstance(outputs, (tuple, list)) else [outputs]
            loss = sum(out.float().mean() for out in outputs)
        loss.backward()
        model.zero_grad(set_to_none=True)

    return running.captured(step)


def _resident(field: str) -> int:
    return 1024 * next(int(line.split()[1]) for line in Path('/proc/self/status').read_text().splitlines()
                       if line.startswith(f'{field}:'))


def _peak_of_process(queue, model_cfg: dict, scope: str, shape: tuple, training: bool, threads: int,
                     running: Running) -> None:
    torch.set_num_threads(threads)
    model, image = running.place(build(model_cfg, scope)), running.place(torch.rand(shape))
    step = runner_of(model, image, training, running)
    with contextlib.suppress(ValueError):  # norms of a single number
        runner_of(model, image[:1, :, :64, :64], training, running)()  # threads and code that are made once
    if hasattr(libc := ctypes.CDLL(None), 'malloc_trim'):
        libc.malloc_trim(0)  # what is free but not given back would hide what the step takes
    Path('/proc/self/clear_refs').write_text('5')  # Linux: the peak starts from here
    before = _resident('VmRSS')
    step()
    queue.put(_resident('VmHWM') - before)


def peak_memory(model_cfg: dict, scope: str, shape: tuple, training: bool, running: Running = CPU) -> float:
    """Bytes that one step takes on top of the model: allocated on a GPU, resident in a process of its own on a CPU.

    They are nan where that process comes to no end, as for want of memory. What is compiled, or in a graph, is not.
    """
    running = running._replace(compile=False, cuda_graph=False)
    if running.device != 'cpu':
        model, image = running.place(build(model_cfg, scope)), running.place(torch.rand(shape))
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        runner_of(model, image, training, running)()
        return torch.cuda.max_memory_allocated() - before
    context = multiprocessing.get_context('spawn')
    queue = context.SimpleQueue()
    process = context.Process(target=_peak_of_process,
                              args=(queue, model_cfg, scope, shape, training, torch.get_num_threads(), running))
    process.start()
    process.join()
    return queue.get() if process.exitcode == 0 else math.nan


def configs_of(config: str, options: dict | None, baseline: str | None) -> tuple[Config, Config, dict[str, str]]:
    """The config without RKAN or the other one to compare with, the config itself, and what their rows are called.

    Raises:
        PreflightError: there is no such config, it cannot be read, or it has no model, or none with a plain one inside.
    """
    cfg = _read(config, options)
    if baseline:
        return _read(baseline), cfg, dict(plain=Path(baseline).stem, rkan=Path(config).stem)
    without, inside = copy.deepcopy(cfg), plain(cfg.model)
    for part in inside:
        without.model[part] = copy.deepcopy(inside[part])
    return without, cfg, {name: ' and '.join(_name(each.model, part) for part in inside)
                          for name, each in (('plain', without), ('rkan', cfg))}


def _read(config: str, options: dict | None = None) -> Config:
    cfg = load_config(config, options)
    if not cfg.get('model'):
        raise PreflightError(f'Config {config!r} has no model to measure: it wants model = dict(...).')
    return cfg


def measure(config: str, shape: tuple[int, ...], training: bool, rounds: int, running: Running = CPU,
            options: dict | None = None, memory: bool = True, baseline: str | None = None) -> dict:
    """One comparison, as plain data; see `main`. Without rounds there are no times, without ``memory`` no peaks."""
    *both, names = configs_of(config, options, baseline)
    scope = scope_of(both[1]) or 'mmengine'
    cfgs = {name: cfg.model for name, cfg in zip(names, both, strict=True)}
    rows = {}
    with building(f'{config} cannot be measured'):
        models = {name: running.place(build(part, scope)) for name, part in cfgs.items()}
        image = running.place(torch.rand(shape))
        for name, model in models.items():
            rows[name] = dict(backbone=names[name], params=sum(p.numel() for p in model.parameters()),
                              macs=macs_of(model, image[:1]))
    ratio = None
    if rounds:
        times = compare({name: runner_of(model, image, training, running) for name, model in models.items()}, rounds,
                        running.device)
        ratio = statistics.median(a / b for a, b in zip(times['plain'], times['rkan'], strict=True))
        for name, seconds in times.items():
            took = statistics.median(seconds)
            macs = macs_of_step(models[name], image[:1]) if training else rows[name]['macs']
            rows[name].update(images_per_s=shape[0] / took, milliseconds=1e3 * took,
                              tflops=2e-12 * macs * shape[0] / took)
    models.clear()
    if memory:
        for name, row in rows.items():
            row['peak_bytes'] = peak_memory(cfgs[name], scope, shape, training, running)
    mode = ('training step' if training else 'forward') + ('' if scope == 'mmpretrain' else ' of backbone and neck')
    return dict(config=Path(config).stem, shape=list(shape), mode=mode,
                device=running.where, running=str(running), torch=torch.__version__, rounds=rounds, models=rows,
                throughput_ratio=ratio)


def show(result: dict) -> None:
    table = Table(title=f'{result["config"]}: {result["mode"]}, {"x".join(map(str, result["shape"]))}, '
                        f'{result["running"]}, {result["device"]}, torch {result["torch"]}, '
                        f'median of {result["rounds"]} rounds A B A B')
    for column in ('', 'params', 'GMACs', 'images/s', 'ms', 'TFLOP/s', 'peak MiB'):
        table.add_column(column, justify='left' if not column else 'right')
    for row in result['models'].values():
        macs = (f'{row["macs"] / 1e9:.3f}', f'{row["tflops"]:.3g}') if 'macs' in row else ('-', '-')
        peak = f'{row["peak_bytes"] / MIB:.0f}' if row['peak_bytes'] else '-'
        table.add_row(row['backbone'], f'{row["params"]:,}', macs[0], f'{row["images_per_s"]:.2f}',
                      f'{row["milliseconds"]:.2f}', macs[1], peak)
    a, b = result['models'].values()
    table.add_row('ratio', f'{b["params"] / a["params"]:.3f}', f'{b["macs"] / a["macs"]:.3f}' if 'macs' in a else '-',
                  f'{result["throughput_ratio"]:.3f}', f'{b["milliseconds"] / a["milliseconds"]:.3f}', '',
                  f'{b["peak_bytes"] / a["peak_bytes"]:.3f}' if a['peak_bytes'] else '-')
    Console(width=120).print(table)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of tools/benchmark.py."""
    parser = command_line('Measure a RKANet config beside its plain backbone, in turns',
                          'configs/imagenet/rkan-resnet50_1xb128-100e_in1k.py --train')
    parser.add_argument('config', nargs='+')
    parser.add_argument('--shape', type=positive, nargs=4, metavar=('B', 'C', 'H', 'W'),
                        help='of the images; 8 3 224 224, with --detector one image of the size of the recipe')
    parser.add_argument('--baseline', help='another config to compare with, instead of the plain backbone')
    parser.add_argument('--train', action='store_true', help='a training step instead of a forward pass')
    parser.add_argument('--detector', action='store_true',
                        help='all of a model with its pre- and post-processing, losses and optimizer, in place of '
                             'backbone and neck')
    parser.add_argument('--rounds', type=positive, default=25)
    add_arguments(parser)
    add_cfg_options(parser)
    parser.add_argument('--out', type=file_to_write, help='json file for the results')
    args = parser.parse_args(argv)
    running = running_of(args, parser)
    for config in filter(None, (*args.config, args.baseline)):  # before any is measured
        find_config(config)
    results = []
    for config in args.config:
        if args.detector:
            from .detectors import measure as whole
            results.append(whole(config, args.shape, args.train, args.rounds, running, args.cfg_options, args.baseline))
        else:
            results.append(measure(config, tuple(args.shape or (8, 3, 224, 224)), args.train, args.rounds, running,
                                   args.cfg_options, baseline=args.baseline))
        show(results[-1])
        if args.out:
            Path(args.out).parent.mkdir(parents=True, exist_ok=True)
            Path(args.out).write_text(json.dumps(results, indent=1))
