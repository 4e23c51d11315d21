"""Speed and memory of KAN layers beside the ordinary layer of the same shape and beside their naive form."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from rkan_mm.apis.command_line import command_line
from rkan_mm.models import KANConv2d, KANLinear, SharedKANConv2d
from rkan_mm.models.ops.shared_polynomial_conv_torch import Window

from . import models as benchmark

RKANET = 'configs/imagenet/rkan-resnet50_1xb128-100e_in1k.py'
PEAKS = 3  # measurements of peak memory, which is coarse on a CPU


class Unfolded(nn.Module):
    """A shared KAN convolution as its definition has it: patches, functions, sum (what the reference computes)."""

    def __init__(self, conv: SharedKANConv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        assert conv.base_weight is not None
        window = conv.kernel_size, conv.dilation, conv.padding, conv.stride
        patches = F.unfold(x.flatten(0, 1).unsqueeze(1), *window)  # (B * C, taps, L)
        out = torch.einsum('npfl,fp->nl', conv.basis(patches.tanh(), 1), (conv.weight * conv.scaler).flatten(1))
        out = out + torch.einsum('npl,p->nl', patches, conv.base_weight.flatten())
        return out.reshape(*x.shape[:2], *Window(conv.stride, conv.padding, conv.dilation).output_size(x, conv.weight))


class Autograd(nn.Module):
    """A KAN layer in plain PyTorch, of which autograd keeps what it likes; splines by the recursion of their knots."""

    def __init__(self, layer: KANConv2d | KANLinear) -> None:
        super().__init__()
        self.layer = layer
        if hasattr(layer.basis, 'uniform'):
            layer.basis.uniform = False

    def forward(self, x: Tensor) -> Tensor:
        layer, coefficients = self.layer, self.layer.coefficients()
        kernel = layer.kernel(coefficients)
        if isinstance(layer, KANLinear):
            return F.linear(layer._planes(x, None, -1, False).flatten(-2), kernel.flatten(1), layer.bias)
        bias = layer.bias + layer.constant(coefficients, layer.basis.at_zero(coefficients))
        return F.conv2d(layer._planes(x, None, 1, True).flatten(1, 2), kernel.flatten(1, 2), bias, layer.stride,
                        layer.padding, layer.dilation, layer.groups)


@dataclass
class Case:
    """A row: how to make the rival, our layer and its naive form, and what is to be reached."""

    name: str
    shape: tuple[int, ...]
    rival: Callable[[], nn.Module]
    ours: Callable[..., nn.Module]
    naive: Callable[[nn.Module], nn.Module]
    goals: dict[str, float] = field(default_factory=dict)


def shared(batch: int, channels: int, height: int, width: int, stride: int, degree: int) -> Case:
    return Case(
        f'shared kernel, degree {degree}, {batch}x{channels}x{height}x{width}, stride {stride}',
        (batch, channels, height, width),
        lambda: nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False),
        lambda **_: SharedKANConv2d(3, stride, 1, basis=dict(type='Chebyshev', degree=degree)), Unfolded,
        dict(forward=1.5, training=2.0, saved=1.05))


def conv(name: str, basis: dict, forward: float, training: float) -> Case:
    return Case(f'KANConv2d 32 -> 32, {name}, 2x32x32x32', (2, 32, 32, 32), lambda: nn.Conv2d(32, 32, 3, padding=1),
                lambda **args: KANConv2d(32, 32, 3, padding=1, basis=basis, **args), Autograd,
                dict(forward=forward, training=training, saved=1.1))


def linear(name: str, basis: dict) -> Case:
    return Case(f'KANLinear 784 -> 256, {name}, batch 512', (512, 784), lambda: nn.Linear(784, 256),
                lambda **args: KANLinear(784, 256, basis=basis, **args), Autograd)


CASES = dict(
    shared=[shared(8, 512, 14, 14, 2, 3), shared(8, 2048, 7, 7, 1, 2), shared(1, 2048, 25, 42, 1, 2)],
    conv=[conv('Chebyshev, degree 3', dict(type='Chebyshev', degree=3), 4.2, 3.8),
          conv('8 Gaussians', dict(type='GaussianRBF', grid_size=8), 10, 7),
          conv('cubic B-spline, grid 5', dict(type='BSpline', grid_size=5), 11, 9)],
    linear=[linear('cubic B-spline, grid 5', dict(type='BSpline', grid_size=5)),
            linear('8 Gaussians', dict(type='GaussianRBF', grid_size=8)),
            linear('8 switches', dict(type='RSWAF', grid_size=8))],
)
MODELS = {
    'RKANet-50': ({}, dict(forward=0.96, training=0.95)),
    'RKANet-50-4xL': ({'model.backbone.block': dict(type='RKANBlock', expansion=4)}, dict(forward=0.75, training=0.72)),
}


def saved_bytes(layer: nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps for the backward pass, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x.requires_grad_()).sum()
    return sum(kept.values())


def step_of(layer: nn.Module, x: Tensor, training: bool) -> Callable[[], None]:
    """A forward pass without gradients, or one with the gradients of input and parameters."""
    if not training:
        layer = layer.eval()

        def forward():
            with torch.no_grad():
                layer(x)
        return forward
    with torch.no_grad():
        gradient = torch.randn_like(layer(x))

    def forward_and_backward():
        x.grad = None
        layer.zero_grad(set_to_none=True)
        layer(x.requires_grad_()).backward(gradient)
    return forward_and_backward


def ratios(case: Case, layers: dict[str, nn.Module], rounds: int, device: str) -> dict[str, dict[str, float]]:
    """Of each layer: time over the rival's, forward and in training, medians of pairs; bytes saved over the input's."""
    x = torch.randn(case.shape, device=device)
    result = {name: dict(saved=saved_bytes(layer, x.clone()) / x.nbytes) for name, layer in layers.items()}
    rival = case.rival().to(device)
    for mode, training in (('forward', False), ('training', True)):
        times = benchmark.compare({'rival': step_of(rival, x, training),
                                   **{name: step_of(layer, x.clone(), training) for name, layer in layers.items()}},
                                  rounds, device)
        for name in layers:
            pairs = [a / b for a, b in zip(times[name], times['rival'], strict=True)]
            result[name][mode] = statistics.median(pairs)
            result[name][f'{mode}_seconds'] = statistics.median(times[name])
        result.setdefault('rival', {})[f'{mode}_seconds'] = statistics.median(times['rival'])
    return result


def measure(case: Case, rounds: int, device: str) -> dict:
    ours = case.ours().to(device)
    layers = {'ours': ours}
    if not isinstance(ours, SharedKANConv2d):
        layers['ours, low memory'] = case.ours(memory='low').to(device)
    result = ratios(case, layers, rounds, device)
    naive = {'naive': case.naive(case.ours().to(device))}
    result['naive'] = ratios(case, naive, max(3, rounds // 10), device)['naive']
    return dict(case=case.name, goals=case.goals, forms=result)


def scaling(rounds: int, device: str) -> dict[str, list[tuple[int, float, float]]]:
    """Seconds of the shared kernel, forward and training, by degree, channels and pixels; all else is fixed."""
    rows = {}
    for name, cases in {
            'degree': [(d, (4, 512, 14, 14), d) for d in range(1, 7)],
            'channels': [(c, (4, c, 14, 14), 3) for c in (128, 256, 512, 1024, 2048)],
            'pixels': [(n * n, (2, 256, n, n), 3) for n in (7, 14, 28, 42, 56)]}.items():
        rows[name] = []
        for value, shape, degree in cases:
            layer, x = SharedKANConv2d(3, padding=1, basis=dict(type='Chebyshev', degree=degree)), torch.randn(shape)
            layer, x = layer.to(device), x.to(device)
            times = benchmark.compare({mode: step_of(layer, x.clone(), mode == 'training')
                                       for mode in ('forward', 'training')}, rounds, device)
            rows[name].append((value, *(statistics.median(times[mode]) for mode in ('forward', 'training'))))
    return rows


def models(rounds: int, device: str) -> Iterable[dict]:
    for name, (options, goals) in MODELS.items():
        row = dict(case=f'{name} over ResNet-50, 224 px', goals=goals)
        for mode, batch in (('forward', 8), ('training', 4)):
            found = benchmark.measure(RKANET, (batch, 3, 224, 224), mode == 'training', rounds, device, options,
                                      memory=False)
            row[mode] = found['throughput_ratio']
        yield row
    peaks = [benchmark.measure(RKANET, (1, 3, 800, 1344), True, 0, device)['models'] for _ in range(PEAKS)]
    yield dict(case='peak training memory, RKANet-50 over ResNet-50, 1x3x800x1344', goals=dict(memory=1.05),
               memory=statistics.median(found['rkan']['peak_bytes'] / found['plain']['peak_bytes'] for found in peaks))


def show(results: dict, console: Console) -> None:
    where = f'{results["device"]}, torch {results["torch"]}, {results["rounds"]} rounds'
    table = Table(title=f'KAN layers: multiples of the ordinary layer, medians of pairs ({where})')
    for column in ('case', 'form', 'forward', 'goal', 'forward + backward', 'goal', 'saved / input', 'goal'):
        table.add_column(column, justify='left' if column in ('case', 'form') else 'right')
    for row in results['layers']:
        for form, values in row['forms'].items():
            if form == 'rival':
                continue
            saves = 'ours, low memory' if 'ours, low memory' in row['forms'] else 'ours'
            goals = {mode: goal for mode, goal in row['goals'].items()
                     if form == (saves if mode == 'saved' else 'ours')}
            table.add_row(row['case'] if form == 'ours' else '', form, *[
                cell for mode in ('forward', 'training', 'saved')
                for cell in (f'{values[mode]:.2f}', f'<= {goals[mode]:g}' if mode in goals else '')])
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
        ours, naive = row['forms']['ours'], row['forms']['naive']
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
    parser.add_argument('rows', nargs='*', metavar='ROWS', help=f'of {", ".join((*CASES, "models", "scaling"))}; all')
    parser.add_argument('--rounds', type=int, default=100, help='of each layer; models take a fifth')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmark_layers'))
    args = parser.parse_args(argv)
    known = (*CASES, 'models', 'scaling')
    rows = args.rows or known
    if unknown := set(rows) - set(known):
        parser.error(f'no rows {", ".join(sorted(unknown))}; there are {", ".join(known)}')
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.cuda.get_device_name() if args.device != 'cpu' else f'CPU, {args.threads} threads'
    results = dict(device=device, torch=torch.__version__, rounds=args.rounds)
    results['layers'] = [measure(case, args.rounds, args.device) for name, cases in CASES.items() if name in rows
                         for case in cases]
    results['models'] = list(models(max(3, args.rounds // 5), args.device)) if 'models' in rows else []
    results['scaling'] = scaling(max(3, args.rounds // 4), args.device) if 'scaling' in rows else {}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / 'layers.json').write_text(json.dumps(results, indent=1))
    (args.out / 'layers.md').write_text(markdown(results) + '\n')
    show(results, Console(width=150))
    if results['scaling']:
        plot(results['scaling'], args.out / 'scaling.png')
    Console(width=150).print(f'written to {args.out}')
