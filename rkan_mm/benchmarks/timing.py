"""How models and layers are run for a measurement, and the clock: CUDA's events on a GPU, the wall's on a CPU."""

from __future__ import annotations

import argparse
import contextlib
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from rkan_mm.engine.channels_last_hook import to_channels_last

AMP = dict(fp16=torch.float16, bf16=torch.bfloat16)
SPAN = 2e-3
"""Seconds that a measurement on a GPU takes at least, by as many calls of the step as this needs."""
MOST_CALLS = 50
Step = Callable[[], object]


class Running(NamedTuple):
    """On which device, and in which of PyTorch's ways."""

    device: str = 'cpu'
    amp: str | None = None
    """``'fp16'`` or ``'bf16'``: under autocast"""
    channels_last: bool = False
    compile: bool = False
    cuda_graph: bool = False

    def place(self, thing: nn.Module | torch.Tensor) -> nn.Module | torch.Tensor:
        """A model or input on the device; what has four dimensions lies there as asked for."""
        thing = thing.to(self.device)
        if not self.channels_last:
            return thing
        if isinstance(thing, nn.Module):
            return to_channels_last(thing)
        return thing.to(memory_format=torch.channels_last) if thing.dim() == 4 else thing

    def autocast(self) -> contextlib.AbstractContextManager:
        """Without its cache of converted weights while a graph is captured, which would outlive it."""
        if self.amp is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.partition(':')[0], AMP[self.amp], cache_enabled=not self.cuda_graph)

    def compiled(self, model: nn.Module) -> nn.Module:
        return torch.compile(model) if self.compile else model

    def captured(self, step: Step) -> Step:
        """The step in a CUDA graph, if that is asked for, so many times that launching the graph costs nothing."""
        if not self.cuda_graph:
            return step
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        replay = Replay(step, 1)
        replay()
        calls = calls_in_span(_seconds(replay, self.device))
        return Replay(step, calls) if calls > 1 else replay

    def __str__(self) -> str:
        named = dict(channels_last='channels_last', compile='torch.compile', cuda_graph='CUDA graph')
        ways = [f'{self.amp} AMP' if self.amp else 'fp32', *(way for name, way in named.items() if getattr(self, name))]
        return ', '.join(ways)

    @property
    def where(self) -> str:
        """The name of the GPU, or how many threads of a CPU."""
        if self.device == 'cpu':
            return f'CPU, {torch.get_num_threads()} threads'
        return torch.cuda.get_device_name(self.device)


class Replay:
    """So many calls of a step as one launch of a CUDA graph."""

    def __init__(self, step: Step, calls: int) -> None:
        self.calls, self.graph = calls, torch.cuda.CUDAGraph()
        self.step = step  # the graph reads its tensors, and does not keep them
        with torch.cuda.graph(self.graph):
            for _ in range(calls):
                step()

    def __call__(self) -> None:
        self.graph.replay()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `Running`."""
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--amp', nargs='?', const='fp16', choices=AMP, help='autocast; without a value in fp16')
    parser.add_argument('--channels-last', action='store_true', help='channels side by side in memory')
    parser.add_argument('--compile', action='store_true', help='by torch.compile')
    parser.add_argument('--cuda-graph', action='store_true', help='replay captured CUDA graphs, without Python')


def running_of(args: argparse.Namespace, parser: argparse.ArgumentParser) -> Running:
    """What `add_arguments` has read; ends with a message if there is no such device, which is the present one then."""
    if args.device != 'cpu' and not torch.cuda.is_available():
        parser.error(f'--device {args.device}: torch {torch.__version__} finds no GPU')
    if args.cuda_graph and args.device == 'cpu':
        parser.error('--cuda-graph is for a GPU, not for --device cpu')
    if args.device != 'cpu':
        try:
            device = torch.device(args.device)
            if device.type == 'cuda':
                torch.cuda.set_device(device.index or 0)  # whose clock and memory are read
        except RuntimeError as error:
            parser.error(f'--device {args.device}: {str(error).splitlines()[0]}')
        if device.type != 'cuda':
            parser.error(f'--device {args.device}: what is measured is cpu, or cuda with or without a number')
    return Running(*(getattr(args, name) for name in Running._fields))


def compare(steps: dict[str, Step], rounds: int, device: str = 'cpu') -> dict[str, list[float]]:
    """Seconds of each step, measured in turns: A B A B ..., after two rounds that do not count.

    On a GPU a step is called so many times in a row that it takes `SPAN`, and its time is the mean of these.
    """
    seconds, calls = {name: [] for name in steps}, dict.fromkeys(steps, 1)
    for _ in range(2):
        for name, step in steps.items():
            took = _seconds(step, device)
            if device != 'cpu':
                calls[name] = calls_in_span(took * _calls_of(step))
    for _ in range(rounds):
        for name, step in steps.items():
            seconds[name].append(_seconds(step, device, calls[name]))
    return seconds


def calls_in_span(seconds: float) -> int:
    """How many calls of a step that takes so long are made in a row."""
    return min(MOST_CALLS, math.ceil(SPAN / seconds))


def _calls_of(step: Step) -> int:
    return step.calls if isinstance(step, Replay) else 1


def _seconds(step: Step, device: str, calls: int = 1) -> float:
    """Of one call of what is measured, of which a `Replay` makes several."""
    if device == 'cpu':
        start = time.perf_counter()
        step()
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        step()
    end.record()
    torch.cuda.synchronize()
    return 1e-3 * start.elapsed_time(end) / (calls * _calls_of(step))
