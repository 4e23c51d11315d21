"""What is checked and measured on a GPU, most important first, and what is to be reached."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / 'tests'
IMAGENET, LARGE = 'rkan-resnet50_1xb128-100e_in1k', 'rkan-resnet50-4xl_1xb128-100e_in1k'
DETECTOR = 'mask-rcnn_rkanet50_fpn_1x_coco'
TINY_NET, TINY_DETECTOR = 'rkanet18-w8_1xb128-4e_fmnist', 'mask-rcnn_rkanet18_fpn_shapes'
NOISE = f'noise: {IMAGENET} beside itself'
SHARED = {
    'shared kernel': ('--cuda-graph',),
    'shared kernel, channels_last': ('--cuda-graph', '--channels-last'),
    'shared kernel, eager': (),
    'shared kernel, eager, channels_last': ('--channels-last',),
}
"""Steps and their ways: in a graph a kernel of 10 us is measured itself, elsewhere the Python before it."""
IN_GRAPHS = [name for name, flags in SHARED.items() if '--cuda-graph' in flags]


class Step(NamedTuple):
    """A command of its own, which another one's failure does not touch."""

    name: str
    arguments: tuple[str, ...]
    """of `rkan-mm`; of pytest, where they begin with its name"""
    seconds: int
    """after which it is ended"""
    needs_ops: bool = False
    """whether it needs the compiled ops of mmcv"""

    def command(self, out: Path) -> list[str]:
        """Its results are written to ``out``."""
        if self.arguments[0] == 'pytest':
            return [sys.executable, '-m', *self.arguments, f'--junitxml={out}']
        return [sys.executable, '-m', 'rkan_mm', *self.arguments, '--out', str(out)]


def _pytest(name: str, seconds: int, *arguments: str, needs_ops: bool = False, most: int = 16) -> Step:
    given = [str(TESTS / argument) if argument.endswith('.py') else argument for argument in arguments]
    # each test compiles kernels, on a core of its own where pytest-xdist is there; to begin takes a process long, too
    cores = ('-n', str(max(1, min(most, os.cpu_count() or 1) - 1))) if find_spec('xdist') else ()
    short = '-q', '--tb=short', '-p', 'no:logging', '-p', 'no:cacheprovider'  # the reasons are last in the output
    return Step(name, ('pytest', *short, '-m', 'gpu', *cores, *given), seconds, needs_ops)


def steps(dry: bool = False) -> list[Step]:
    """All of them; ``dry`` with tiny nets and sizes, for a CPU."""
    net, large, detector = (TINY_NET, TINY_NET, TINY_DETECTOR) if dry else (IMAGENET, LARGE, DETECTOR)
    gray = '1' if dry else '3'

    def shape(batch: int, height: int, width: int, channels: str = '3') -> tuple[str, ...]:
        return ('--shape', '2', channels, '32', '32') if dry else (
            '--shape', *map(str, (batch, 3, height, width)))

    def running(*flags: str) -> tuple[str, ...]:
        if not dry:
            return ('--device', 'cuda', *flags)
        flags = tuple('bf16' if flag == 'fp16' else flag for flag in flags if flag not in ('--compile', '--cuda-graph'))
        return ('--device', 'cpu', *flags)

    def rounds(number: int) -> tuple[str, ...]:
        return '--rounds', '1' if dry else str(number)

    flags = '--amp', 'fp16', '--channels-last'
    fast, images = running(*flags), shape(128, 224, 224, gray)
    one = ('benchmark', detector, *shape(1, 640, 1066), *rounds(25))
    small = ('--batch', '1') if dry else ()
    half = () if dry else ('--amp', 'fp16')  # in which mmcv's NMS does not run on a CPU
    conv, linear = (('conv',), ('linear',)) if dry else (('conv-gpu',), ('linear-gpu', 'linear'))
    of_shared = {name: Step(name, ('benchmark-layers', 'shared' if dry else 'shared-gpu', *small, *rounds(20),
                                   *running('--amp', 'fp16', *flags)), 40) for name, flags in SHARED.items()}
    found = [
        _pytest('tests of the kernels', 120, 'test_models/test_ops/test_gpu_kernels.py'),
        Step('inference', ('benchmark', net, large, *images, *rounds(15), *fast), 50),
        Step('training', ('benchmark', net, large, '--train', *images, *rounds(10), *fast), 50),
        *(of_shared[name] for name in IN_GRAPHS),
        Step('one image', (*one, *running()), 40, True),
        Step('one image, CUDA graph', (*one, *running('--cuda-graph')), 40, True),
        Step('linear layers', ('benchmark-layers', *linear, *small, *rounds(15), *running('--amp', 'bf16')), 60),
        Step('convolutions', ('benchmark-layers', *conv, *small, *rounds(15), *running('--amp', 'fp16')), 45),
        Step('detector, training', ('benchmark', detector, '--detector', '--train', *shape(8, 640, 640), *rounds(8),
                                    *running(*half)), 45, True),
        Step(NOISE, ('benchmark', net, '--baseline', net, *images, *rounds(15), *fast), 30),
        _pytest('tests of training', 75, 'test_models/test_gpu_training.py', 'test_models/test_parity.py', '-k',
                'not compile', needs_ops=True),
        Step('detector, training in fp32', ('benchmark', detector, '--detector', '--train', *shape(8, 640, 640),
                                            *rounds(3), *running()), 45, True),
        Step('memory by count', ('memory', detector, '--batch', '8', *(('--size', '64') if dry else ())), 40, True),
        Step('one image, compiled', (*one, *running('--compile')), 150, True),
        *(step for name, step in of_shared.items() if name not in IN_GRAPHS),
        Step('detector, prediction', ('benchmark', detector, '--detector', *shape(1, 640, 1066), *rounds(8),
                                      *running()), 40, True),
        Step('training, compiled', ('benchmark', net, '--train', *images, *rounds(10), *running(*flags, '--compile')),
             150),
        _pytest('test of torch.compile', 240, 'test_models/test_gpu_training.py', '-k', 'compile', most=4),
    ]
    return [step._replace(seconds=20 * step.seconds) for step in found] if dry else found


Results = dict[str, Any]
"""Of each step by its name."""


class Goal(NamedTuple):
    """A number that is to be reached."""

    measure: str
    found: Callable[[Results], float]
    """Raises KeyError where a step is missing."""
    bound: str
    """``'>='`` or ``'<='``"""
    goal: float

    def is_met(self, value: float) -> bool:
        return value >= self.goal if self.bound == '>=' else value <= self.goal


def _ratio(step: str, row: int = 0) -> Callable[[Results], float]:
    return lambda results: results[step][row]['throughput_ratio']


def _form(step: str, row: int, field: str, over: str | None = None) -> Callable[[Results], float]:
    """A number of our form of a layer; with ``over``, divided by that of another form."""
    def found(results: Results) -> float:
        forms = results[step]['layers'][row]['forms']
        return forms['ours'][field] / (forms[over][field] if over else 1)
    return found


def _off_by(results: Results) -> float:
    """How far the peak of a training step in fp32 is from the count, as a part of it."""
    peak = results['detector, training in fp32'][0]['models']['rkan']['peak_bytes']
    return abs(peak / results['memory by count']['bytes'] - 1)


def _noise(results: Results) -> float:
    return abs(results[NOISE][0]['throughput_ratio'] - 1)


LINEAR, CONV = 'linear layers', 'convolutions'
GOALS = [
    Goal('noise of the clock: RKANet-50 beside itself, off by', _noise, '<=', 0.01),
    Goal('RKANet-50 / ResNet-50, images/s, batch 128, inference', _ratio('inference'), '>=', 0.96),
    Goal('the same, training step', _ratio('training'), '>=', 0.95),
    Goal('RKANet-50-4xL / ResNet-50, inference', _ratio('inference', 1), '>=', 0.76),
    Goal('the same, training step', _ratio('training', 1), '>=', 0.74),
    Goal('batch 1, 640 x 1066, backbone and neck, fp32', _ratio('one image'), '>=', 0.95),
    Goal('the same, CUDA graph', _ratio('one image, CUDA graph'), '>=', 0.96),
    Goal('the same, torch.compile', _ratio('one image, compiled'), '>=', 0.96),
    Goal('Mask R-CNN RKANet-50 / R-50, training step, 640 px, batch 8', _ratio('detector, training'), '>=', 0.97),
    Goal('its peak memory beside the count, fp32, off by', _off_by, '<=', 0.1),
    *(Goal(f'{step} {row + 1} / depthwise Conv2d, {name}', _form(step, row, mode), '<=', goal)
      for step in IN_GRAPHS for row in range(3)
      for mode, name, goal in (('forward', 'forward', 1.2), ('training', 'both', 1.5))),
    *(Goal(f'{step} {row + 1}, bandwidth / copy', _form(step, row, 'forward_gbs', 'copy'), '>=', 0.6)
      for step in IN_GRAPHS for row in range(3)),
    Goal('KANLinear 512 -> 512, 2^20 rows, bf16, seconds', _form(LINEAR, -1, 'forward_seconds'), '<=', 0.012),
    Goal('the same / nn.Linear', _form(LINEAR, -1, 'forward'), '<=', 10),
    Goal('KANLinear 784 -> 256, batch 512, both, / PyTorch form', _form(LINEAR, 0, 'training_seconds', 'naive'), '<=',
         1 / 3),
    Goal('KANConv2d 64 -> 64 3x3, training, / nn.Conv2d', _form(CONV, 0, 'training'), '<=', 10),
    Goal('the same, time / PyTorch form', _form(CONV, 0, 'training_seconds', 'naive'), '<=', 1 / 3),
    Goal('the same, memory / PyTorch form', _form(CONV, 0, 'peak_bytes', 'naive'), '<=', 1 / 3),
]
