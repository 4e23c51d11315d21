"""Speed and memory of KAN layers beside the ordinary layer of the same shape and beside their naive form."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from rkan_mm.apis.command_line import command_line, folder_to_write, positive
from rkan_mm.models import SharedKANConv2d

from . import models as benchmark
from .cases import CASES, GPU_CASES, Case, Forced
from .timing import AMP, Running, Step, add_arguments, compare, running_of

NO_NAIVE = dict.fromkeys(('forward', 'training', 'saved'), float('nan'))
RKANET = 'configs/imagenet/rkan-resnet50_1xb128-100e_in1k.py'
CPU = Running()
PEAKS = 3  # measurements of peak memory, which is coarse on a CPU


MODELS = {
    'RKANet-50': ({}, dict(forward=0.96, training=0.95)),
    'RKANet-50-4xL': ({'model.backbone.block': dict(type='RKANBlock', expansion=4)}, dict(forward=0.75, training=0.72)),
}


def saved_bytes(layer: nn.Module, x: Tensor, running: Running = CPU) -> int:
    """Bytes that autograd keeps for the backward pass, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), running.autocast():
        layer(x.requires_grad_()).sum()
    return sum(kept.values())


def step_of(layer: nn.Module, x: Tensor, training: bool, running: Running = CPU) -> Step:
    """A forward pass without gradients, or one with the gradients of input and parameters."""
    layer = running.compiled(layer.train(training))
    if not training:
        def forward() -> None:
            with torch.no_grad(), running.autocast():
                layer(x)
        return running.captured(forward)
    with torch.no_grad(), running.autocast():
        gradient = torch.randn_like(layer(x))

    def forward_and_backward() -> None:
        x.grad = None
        layer.zero_grad(set_to_none=True)
        with running.autocast():
            y = layer(x.requires_grad_())
        y.backward(gradient)
    return running.captured(forward_and_backward)


def multiplications(layer: nn.Module, outputs: int) -> int:
    """Of a forward pass that gives so many numbers: one by each coefficient of each, but for those of constants."""
    if isinstance(layer, SharedKANConv2d):
        functions = layer.basis.num_functions - layer.basis.constant_first
        return outputs * (functions + 1) * math.prod(layer.kernel_size)
    own = sum(p[0].numel() for name, p in layer.named_parameters() if p.dim() > 1 and 'scaler' not in name)
    constants = layer.basis_weight[0, :, 0].numel() if getattr(layer, 'without_constant', False) else 0
    return outputs * (own - constants)


def reached(layer: nn.Module, x: Tensor, training: bool, seconds: float, running: Running) -> dict[str, float]:
    """GB/s of what must be moved, and TFLOP/s of what must be computed: the planes' values do not count."""
    with torch.no_grad(), running.autocast():
        y = layer(x)
    moved = x.nbytes + y.nbytes
    if training:  # input and gradient of the output are read, the gradient of the input is written
        moved += 2 * x.nbytes + y.nbytes
    flop = 2 * multiplications(layer, y.numel()) * (3 if training else 1)
    return dict(gbs=1e-9 * moved / seconds, tflops=1e-12 * flop / seconds)


def ratios(case: Case, layers: dict[str, nn.Module], rounds: int, running: Running = CPU,
           batch: int | None = None) -> dict[str, dict[str, float]]:
    """Of each layer: time over the rival's, forward and in training, medians of pairs; bytes saved over the input's."""
    x = running.place(torch.randn(batch or case.shape[0], *case.shape[1:]))
    x = x if running.amp is None else x.to(AMP[running.amp])
    result = {name: dict(saved=saved_bytes(layer, x.clone(), running) / x.nbytes) for name, layer in layers.items()}
    rival = running.place(case.rival())
    for mode, training in (('forward', False), ('training', True)):
        times = compare({'rival': step_of(rival, x.detach(), training, running),
                         **{name: step_of(layer, x.clone(), training, running) for name, layer in layers.items()}},
                        rounds, running.device)
        for name, layer in {'rival': rival, **layers}.items():
            pairs = [a / b for a, b in zip(times[name], times['rival'], strict=True)]
            seconds = statistics.median(times[name])
            row = result.setdefault(name, {})
            row.update({mode: statistics.median(pairs), f'{mode}_seconds': seconds})
            if name in ('rival', 'ours'):
                row.update({f'{mode}_{what}': value for what, value in reached(
                    layer, x.detach(), training, seconds, running).items()})
    if running.device != 'cpu':
        for name, layer in layers.items():
            result[name]['peak_bytes'] = peak_bytes(layer, x.detach().clone(), running)
        to = torch.empty_like(x)
        copy = running.captured(lambda: to.copy_(x.detach()))
        seconds = statistics.median(compare(dict(copy=copy), rounds, running.device)['copy'])
        result['copy'] = dict(forward_seconds=seconds, forward_gbs=2e-9 * x.nbytes / seconds)
    return result


def peak_bytes(layer: nn.Module, x: Tensor, running: Running) -> int:
    """Of the GPU's memory, what a training step takes beside its input."""
    step = step_of(layer, x, True, running._replace(compile=False, cuda_graph=False))
    step()
    x.grad = None
    layer.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return torch.cuda.max_memory_allocated() - before


def measure(case: Case, rounds: int, running: Running = CPU, batch: int | None = None) -> dict:
    ours = running.place(case.ours())
    layers = {'ours': ours}
    if not isinstance(ours, SharedKANConv2d):
        layers['ours, low memory'] = running.place(case.ours(memory='low'))
        if running.device != 'cpu' and not running.compile:  # compiled, both would be PyTorch's form
            layers |= {'fused': Forced(ours, True), 'by planes': Forced(ours, False)}
    result = ratios(case, layers, rounds, running, batch)
    if case.naive is not None:
        naive = {'naive': case.naive(running.place(case.ours()))}
        result['naive'] = ratios(case, naive, max(3, rounds // 10), running, batch)['naive']
    return dict(case=case.name, goals=case.goals, forms=result)


def scaling(rounds: int, running: Running) -> dict[str, list[tuple[int, float, float]]]:
    """Seconds of the shared kernel, forward and training, by degree, channels and pixels; all else is fixed."""
    rows = {}
    for name, cases in {
            'degree': [(d, (4, 512, 14, 14), d) for d in range(1, 7)],
            'channels': [(c, (4, c, 14, 14), 3) for c in (128, 256, 512, 1024, 2048)],
            'pixels': [(n * n, (2, 256, n, n), 3) for n in (7, 14, 28, 42, 56)]}.items():
        rows[name] = []
        for value, shape, degree in cases:
            layer, x = SharedKANConv2d(3, padding=1, basis=dict(type='Chebyshev', degree=degree)), torch.randn(shape)
            layer, x = running.place(layer), running.place(x)
            times = compare({mode: step_of(layer, x.clone(), mode == 'training', running)
                             for mode in ('forward', 'training')}, rounds, running.device)
            rows[name].append((value, *(statistics.median(times[mode]) for mode in ('forward', 'training'))))
    return rows


def models(rounds: int, running: Running) -> Iterable[dict]:
    for name, (options, goals) in MODELS.items():
        row = dict(case=f'{name} over ResNet-50, 224 px', goals=goals)
        for mode, batch in (('forward', 8), ('training', 4)):
            found = benchmark.measure(RKANET, (batch, 3, 224, 224), mode == 'training', rounds, running, options,
                                      memory=False)
            row[mode] = found['throughput_ratio']
        yield row
    peaks = [benchmark.measure(RKANET, (1, 3, 800, 1344), True, 0, running)['models'] for _ in range(PEAKS)]
    yield dict(case='peak training memory, RKANet-50 over ResNet-50, 1x3x800x1344', goals=dict(memory=1.05),
               memory=statistics.median(found['rkan']['peak_bytes'] / found['plain']['peak_bytes'] for found in peaks))


def show(results: dict, console: Console) -> None:
    where = f'{results["device"]}, {results["running"]}, torch {results["torch"]}, {results["rounds"]} rounds'
    table = Table(title=f'KAN layers: multiples of the ordinary layer, medians of pairs ({where})')
    for column in ('case', 'form', 'forward', 'goal', 'ms', 'GB/s', 'TFLOP/s', 'forward + backward', 'goal', 'ms',
                   'saved / input', 'goal'):
        table.add_column(column, justify='left' if column in ('case', 'form') else 'right')
    for row in results['layers']:
        for form, values in row['forms'].items():
            saves = 'ours, low memory' if 'ours, low memory' in row['forms'] else 'ours'
            goals = {mode: f'<= {goal:g}' for mode, goal in row['goals'].items()
                     if form == (saves if mode == 'saved' else 'ours')}
            cells = {name: '' if value is None else f'{value * factor:.{digits}f}' for name, factor, digits in (
                ('forward', 1, 2), ('training', 1, 2), ('saved', 1, 2), ('forward_seconds', 1e3, 3),
                ('training_seconds', 1e3, 3), ('forward_gbs', 1, 0), ('forward_tflops', 1, 1))
                for value in (values.get(name), )}
            table.add_row(row['case'] if form == 'ours' else '', form, cells['forward'], goals.get('forward', ''),
                          cells['forward_seconds'], cells['forward_gbs'], cells['forward_tflops'], cells['training'],
                          goals.get('training', ''), cells['training_seconds'], cells['saved'], goals.get('saved', ''))
    if results['layers']:
        console.print(table)
    if results['models']:
        table = Table(title=f'Whole models: throughput over the plain backbone ({where} for layers, a fifth here)')
        for column in ('case', 'measured', 'ratio', 'goal'):
            table.add_column(column, justify='left' if column in ('case', 'measured') else 'right')
        for row in results['models']:
            for mode, goal in row['goals'].items():
                table.add_row(row['case'], mode, f'{row[mode]:.3f}', f'{"<=" if mode == "memory" else ">="} {goal:g}')
        console.print(table)


def markdown(results: dict) -> str:
    """The same as tables for a README."""
    lines = ['| multiples of the ordinary layer | forward (naive) | forward + backward (naive) | saved / input: ours, '
             'low memory (naive) |', '|---|---|---|---|']
    for row in results['layers']:
        ours, naive = row['forms']['ours'], row['forms'].get('naive', NO_NAIVE)
        cells = [f'{ours[mode]:.2f} ({naive[mode]:.1f})' for mode in ('forward', 'training')]
        low = row['forms'].get('ours, low memory', ours)
        saved = '' if low is ours else f'{ours["saved"]:.1f}, '
        lines.append(f'| {row["case"]} | {" | ".join(cells)} | {saved}{low["saved"]:.2f} ({naive["saved"]:.1f}) |')
    lines += ['', '| over ResNet-50 | ratio |', '|---|---|']
    for row in results['models']:
        case = row['case'].replace(' over ResNet-50', '')
        lines += [f'| {case}{"" if mode == "memory" else ", throughput, " + mode} | {row[mode]:.3f} |'
                  for mode in row['goals']]
    return '\n'.join(lines)


def plot(rows: dict[str, list], path: Path) -> None:
    """Time against degree, channels and pixels, with the straight line through the first and the last point."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout='constrained')
    for axes, (name, values) in zip(figure.subplots(1, len(rows)), rows.items(), strict=True):
        for index, mode in ((1, 'forward'), (2, 'forward + backward')):
            x, y = [row[0] for row in values], [1e3 * row[index] for row in values]
            (line,) = axes.plot(x, y, 'o-', label=mode)
            axes.plot([x[0], x[-1]], [y[0], y[-1]], ':', color=line.get_color())
        axes.set(xlabel=name, ylabel='ms' if name == 'degree' else '', xlim=(0, None), ylim=(0, None))
    axes.legend()
    figure.suptitle('SharedKANConv2d 3x3 (dotted: a straight line)')
    figure.savefig(path, dpi=150)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of tools/benchmark_layers.py."""
    parser = command_line('Measure KAN layers beside ordinary ones, in turns', 'models --rounds 25')
    known = (*CASES, *GPU_CASES, 'models', 'scaling')
    parser.add_argument('rows', nargs='*', metavar='ROWS',
                        help=f'of {", ".join(known)}; without any, all but those of {", ".join(GPU_CASES)}')
    parser.add_argument('--rounds', type=positive, default=100, help='of each layer; models take a fifth')
    parser.add_argument('--threads', type=positive, default=torch.get_num_threads())
    parser.add_argument('--batch', type=positive, help='in the place of the batch of each layer')
    add_arguments(parser)
    parser.add_argument('--out', type=folder_to_write, default='work_dirs/benchmark_layers',
                        help='folder for the results (default: work_dirs/benchmark_layers)')
    args = parser.parse_args(argv)
    rows = args.rows or [name for name in known if name not in GPU_CASES]
    if unknown := set(rows) - set(known):
        parser.error(f'no rows {", ".join(sorted(unknown))}; there are {", ".join(known)}')
    running = running_of(args, parser)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    results = dict(device=running.where, running=str(running), torch=torch.__version__, rounds=args.rounds)
    results['layers'] = [measure(case, args.rounds, running, args.batch)
                         for name, cases in {**CASES, **GPU_CASES}.items() if name in rows for case in cases]
    results['models'] = list(models(max(3, args.rounds // 5), running)) if 'models' in rows else []
    results['scaling'] = scaling(max(3, args.rounds // 4), running) if 'scaling' in rows else {}
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / 'layers.json').write_text(json.dumps(results, indent=1))
    (out / 'layers.md').write_text(markdown(results) + '\n')
    show(results, Console(width=200))
    if results['scaling']:
        plot(results['scaling'], out / 'scaling.png')
    Console(width=150).print(f'written to {args.out}')
