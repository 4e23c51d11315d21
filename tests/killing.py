"""Training runs in processes of their own that are killed at a random moment or in the middle of a write."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path

import torch

from rkan_mm.engine import allow_mmengine_globals

CONTEXT = multiprocessing.get_context('forkserver')  # imports once, then every run is a fork of it
CONTEXT.set_forkserver_preload(['rkan_mm.apis.runner', 'mmdet.models', 'mmdet.datasets.transforms', 'mmdet.evaluation',
                                'mmdet.engine'])


def _train(argv: list[str], started, kill_at_write: int | None) -> None:
    os.environ['OMP_NUM_THREADS'] = '1'
    torch.set_num_threads(1)
    from mmdet.utils import register_all_modules

    from rkan_mm.apis import runner
    register_all_modules(init_default_scope=False)
    if kill_at_write is not None:
        real, calls = os.fsync, []

        def fsync(number: int) -> None:
            calls.append(number)
            if len(calls) > kill_at_write:
                os.kill(os.getpid(), signal.SIGKILL)
            real(number)

        os.fsync = fsync
    started.set()
    runner.train(argv)


def run(argv: list[str], kill_after: float | None = None, kill_at_write: int | None = None) -> tuple[int, float]:
    """Exit code (-9: killed) and seconds of a training run.

    Args:
        kill_after: seconds after which it is killed.
        kill_at_write: how many flushes to the disk it makes before it is killed in the next; each file takes two.
    """
    started = CONTEXT.Event()
    process = CONTEXT.Process(target=_train, args=(argv, started, kill_at_write))
    process.start()
    assert started.wait(120)
    start = time.monotonic()
    process.join(600 if kill_after is None else kill_after)
    if process.exitcode is None:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    return process.exitcode, time.monotonic() - start


def in_ranks(function, *args, ranks: int = 2) -> None:
    """``function(rank, *args)`` in processes that end without taking Python down.

    Gloo's threads may still hold the last collective then, and need Python to let it go: PyTorch aborts at times, when
    all is done, in processes that ``spawn`` starts.
    """
    torch.multiprocessing.start_processes(function, args, ranks, start_method='forkserver')


def _train_rank(argv: list[str], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    from rkan_mm.apis import runner
    runner.train(argv)


def run_ranks(argv: list[str], ranks: int = 2) -> list[int]:
    """Exit codes of the ranks of a distributed training run on the CPU, started as torchrun does."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(ranks):
        environment = dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR='127.0.0.1',
                           MASTER_PORT=str(port))
        processes.append(CONTEXT.Process(target=_train_rank, args=([*argv, '--launcher', 'pytorch'], environment)))
        processes[-1].start()
    for process in processes:
        process.join(300)
        if process.exitcode is None:
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def differing(a: Path, b: Path) -> list[str]:
    """Names of the tensors in which two checkpoints differ in any bit: weights, averages, optimizer."""
    allow_mmengine_globals()
    first, second = (torch.load(path, map_location='cpu', weights_only=True) for path in (a, b))
    found = []

    def compare(x, y, name: str) -> None:
        if isinstance(x, torch.Tensor):
            if not torch.equal(x, y):
                found.append(name)
        elif isinstance(x, dict):
            assert x.keys() == y.keys(), name
            for key in x:
                compare(x[key], y[key], f'{name}.{key}')
        elif isinstance(x, (list, tuple)):
            assert len(x) == len(y), name
            for index, (left, right) in enumerate(zip(x, y, strict=True)):
                compare(left, right, f'{name}.{index}')
        elif isinstance(x, (int, float)) and x != y:
            found.append(name)

    for part in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers'):
        assert (part in first) == (part in second), part
        compare(first.get(part), second.get(part), part)
    return found
