"""Training and testing of mmdet and mmpretrain configs: the command lines of tools/train.py and tools/test.py."""

from __future__ import annotations

import argparse
import contextlib
import copy
import difflib
import fcntl
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import mmengine
import torch
from mmengine._strategy import FSDPStrategy
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_distributed, is_main_process
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper
from mmengine.registry import RUNNERS
from mmengine.runner import FlexibleRunner, Runner

from rkan_mm.engine import RunError
from rkan_mm.engine.safe_loading import safe_loading
from rkan_mm.engine.writing import plain
from rkan_mm.preflight import PreflightError, check, check_checkpoint, check_fit
from rkan_mm.preflight.building import building, of_import
from rkan_mm.preflight.classification import check_classification
from rkan_mm.preflight.config import kind
from rkan_mm.preflight.datasets import is_first_process
from rkan_mm.preflight.red import warn_in_red
from rkan_mm.preflight.run_hook import CheckRunHook
from rkan_mm.preflight.weights import WeightReportHook, check_pretrained
from rkan_mm.tables.table import NOTE, LockedError, locked

from .command_line import add_cfg_options, command_line
from .defaults import add_hooks, make_resumable
from .loading import READ, load_config, set_loaders
from .resume import newest_whole
from .testing_options import add_test_options, check_test, use_test_options


def _parser(description: str, example: str) -> argparse.ArgumentParser:
    parser = command_line(description, example)
    parser.add_argument('config', help='config file of mmdet or mmpretrain, or the name of one of ours')
    parser.add_argument('--work-dir', help='where logs and checkpoints go (default: work_dirs/<config>)')
    add_cfg_options(parser)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    return parser


def add_allow_partial(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--allow-partial', action='store_true',
                        help='go on, with a warning in red, where the checkpoint is of another model in part')


def _strategy(cfg: Config) -> str | None:
    """Class of the strategy of a FlexibleRunner, which stands in ``cfg`` then; None with the plain Runner."""
    if kind(dict(type=cfg.get('runner_type'))) != 'FlexibleRunner':
        return None
    cfg.setdefault('env_cfg', {})  # which that runner cannot do without
    if not cfg.get('strategy'):
        cfg.strategy = dict(type='SingleDeviceStrategy' if cfg.launcher == 'none' else 'DDPStrategy')
    return kind(cfg.strategy)


def _use_cpu_processes(cfg: Config) -> None:
    """Several processes of torchrun without a GPU: mmengine would ask for one device for each."""
    if cfg.launcher != 'pytorch' or get_device() != 'cpu' or is_distributed():
        return
    torch.distributed.init_process_group('gloo')
    if _strategy(cfg) == 'DDPStrategy':
        wrapper = cfg.strategy.get('model_wrapper') or {}
        cfg.strategy.model_wrapper = {'device_ids': None, 'broadcast_buffers': False, **wrapper}
    elif 'runner_type' not in cfg and not cfg.get('model_wrapper_cfg'):
        cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False,
                                     find_unused_parameters=cfg.get('find_unused_parameters', False))


def _fit_strategy(cfg: Config) -> None:
    """Give the strategy of a FlexibleRunner what the Runner takes from the command line."""
    strategy = _strategy(cfg)
    if strategy in ('DDPStrategy', 'FSDPStrategy', 'ResumableFSDPStrategy'):
        if cfg.launcher == 'none':
            cfg.strategy = dict(type='SingleDeviceStrategy')
            MMLogger.get_current_instance().warning(
                f'{strategy} needs a --launcher; this is one process, and its model stays whole')
        elif cfg.get('sync_bn'):
            cfg.strategy.setdefault('sync_bn', cfg.sync_bn)


def _build(cfg: Config, **testing: bool) -> tuple[Runner | FlexibleRunner, WeightReportHook]:
    _use_cpu_processes(cfg)
    _fit_strategy(cfg)
    config = Path(cfg.work_dir, Path(cfg.filename).name)
    before = config.read_bytes() if testing and config.is_file() else None
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    if before is not None and is_main_process():  # over which mmengine has written that of the test
        config.write_bytes(before)
    if isinstance(runner, FlexibleRunner):  # it would build the model in training, too late to look at it
        runner.model = runner.strategy.build_model(runner.model)
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    if cfg.get('load_from') and not testing:
        check_fit(model, cfg.load_from)
    shards = isinstance(getattr(runner, 'strategy', None), FSDPStrategy)
    report = WeightReportHook(copy.deepcopy(model).to('meta') if shards else None, **testing)
    runner.register_hook(report)
    return runner, report


def _use_amp(cfg: Config, dtype: str | None) -> None:
    if (name := kind(cfg.optim_wrapper)) not in ('', 'OptimWrapper', 'AmpOptimWrapper', 'AutocastOptimWrapper'):
        raise PreflightError('--amp puts AmpOptimWrapper in the place of optim_wrapper.type, and the config has '
                             f'{name} there: leave --amp out, or set optim_wrapper.type=OptimWrapper.')
    if dtype == 'bfloat16' and get_device() == 'cpu':  # mmengine's wrapper refuses to be built there
        rest = {name: value for name, value in cfg.optim_wrapper.items() if name not in ('loss_scale', 'dtype')}
        cfg.optim_wrapper = {**rest, 'type': 'rkan_mm.AutocastOptimWrapper'}
        return
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if dtype:
        cfg.optim_wrapper.dtype = dtype


@contextlib.contextmanager
def _alone(work_dir: Path) -> Iterator[None]:
    """Hold the lock of a work dir; warn in red where another training does. A table has that of its runs."""
    lock = None
    with contextlib.ExitStack() as stack:
        if is_first_process() and not (work_dir / NOTE).exists():
            try:
                lock = stack.enter_context(locked(work_dir, wait=False))
            except LockedError:
                warn_in_red(f'Another process is training in {work_dir}, and both write checkpoints of the same names: '
                            'give one of them another --work-dir.')
        try:
            yield
        finally:
            if lock is not None:
                with contextlib.suppress(OSError):  # of disks without locks
                    fcntl.flock(lock, fcntl.LOCK_UN)  # workers that load data would keep it


def train(argv: Sequence[str] | None = None) -> Runner:
    """Train a config; ``argv`` is the command line of tools/train.py.

    The run can be stopped at any moment: see `make_resumable`.

    Raises:
        PreflightError: a file or device that the run needs is missing; nothing has been built or written then.
        RunError: the loss is no number, or a checkpoint cannot be written; the one before is kept.
    """
    parser = _parser('Train a model of mmdet or mmpretrain', 'configs/mask-rcnn_rkanet50_fpn_1x_coco.py --amp')
    parser.add_argument('--resume', nargs='?', const='auto', metavar='CHECKPOINT',
                        help='go on from a checkpoint, or from the latest in the work dir')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument('--amp-dtype', choices=['float16', 'bfloat16'],
                        help='float16 where not given; bfloat16 also on a CPU, but not with RoI heads or focal loss')
    parser.add_argument('--sync-bn', action='store_true', help='batch norms over all GPUs, in RKAN blocks too')
    parser.add_argument('--channels-last', action='store_true', help='images and features as (B, H, W, C) in memory')
    parser.add_argument('--no-validate', action='store_true', help='do not evaluate during training')
    parser.add_argument('--test', action='store_true', help='test the last weights when training is over')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the lr to the batch size of this run')
    parser.add_argument('--no-pin-memory', action='store_true', help='leave the data in pageable memory')
    parser.add_argument('--no-persistent-workers', action='store_true', help='start the workers anew each epoch')
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = load_config(args.config, args.cfg_options, args.work_dir, args.launcher)
    if missing := [name for name in ('train_dataloader', 'train_cfg', 'optim_wrapper') if cfg.get(name) is None]:
        near = {name: difflib.get_close_matches(name, cfg, n=1, cutoff=0.8) for name in missing}
        raise PreflightError(f'{args.config} has no {" and no ".join(missing)} to train by'
                             + ''.join(f'; it has {names[0]}, is {name} meant?' for name, names in near.items()
                                       if names and names[0] not in READ))
    if args.test:
        check_test(cfg)
    if args.amp or args.amp_dtype:
        _use_amp(cfg, args.amp_dtype)
    set_loaders(cfg, not args.no_pin_memory, not args.no_persistent_workers)
    if args.sync_bn:
        cfg.sync_bn = 'torch'
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise PreflightError(f'--auto-scale-lr: {args.config} does not say for which auto_scale_lr.base_batch_size '
                                 'its lr is meant.')
        cfg.auto_scale_lr.enable = True
    make_resumable(cfg)
    add_hooks(cfg, 'RunSummaryHook', 'AbsentFiguresHook', 'CheckpointFormHook',
              *(['ChannelsLastHook'] if args.channels_last else []))
    given = cfg.get('resume', False), cfg.get('load_from')
    if args.resume and args.resume != 'auto':
        cfg.resume, cfg.load_from = True, args.resume
    elif args.resume or (cfg.get('resume') and not cfg.get('load_from')):
        newest = newest_whole(cfg)
        cfg.resume, cfg.load_from = newest is not None, newest or cfg.get('load_from')
        MMLogger.get_current_instance().info(f'Resuming from {newest}' if newest else
                                             f'No whole checkpoint in {cfg.work_dir}: starting from the beginning')
    check(cfg, training=True)
    if args.test:
        check(cfg, training=False)
    check_classification(cfg, training=True)
    checks = CheckRunHook(test=args.test)
    with safe_loading(), building('The training cannot begin', checks.has_begun), _alone(Path(cfg.work_dir)):
        runner, _ = _build(cfg)
        runner.cfg.resume, runner.cfg.load_from = given  # the config in the work dir is that of the whole training
        runner.dump_config()
        runner.register_hook(checks)
        check_pretrained(runner.model, cfg)
        runner.train()
        if args.test:
            runner.test()
    return runner


def test(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Test a config with a checkpoint; ``argv`` is the command line of tools/test.py.

    Returns:
        The metrics.

    Raises:
        PreflightError: as in `train`.
    """
    parser = _parser('Test a model of mmdet or mmpretrain',
                     'configs/mask-rcnn_rkanet50_fpn_1x_coco.py epoch_12.pth --classwise')
    parser.add_argument('checkpoint')
    add_allow_partial(parser)
    add_test_options(parser)
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = load_config(args.config, args.cfg_options, args.work_dir, args.launcher)
    check_checkpoint(args.checkpoint)
    cfg.resume, cfg.load_from = False, args.checkpoint
    use_test_options(cfg, args)
    set_loaders(cfg, pin_memory=not args.no_pin_memory)
    check(cfg, training=False)
    check_classification(cfg, training=False)
    checks = CheckRunHook()
    with safe_loading(), building('The test cannot begin', checks.has_begun):
        runner, report = _build(cfg, testing=True, allow_partial=args.allow_partial)
        runner.register_hook(checks)
        metrics = runner.test()
    warn_in_red(report.warning)
    if args.out and args.out_item == 'metrics':
        mmengine.dump(metrics if args.out.endswith('.pkl') else plain(metrics), args.out)
    return metrics


def main(function, argv: Sequence[str] | None = None) -> None:
    """Run a command line; what its user can mend is one message and exit code 2, not a traceback."""
    try:
        function(argv)
    except Exception as error:
        text = str(error) if isinstance(error, RunError) else (cure := of_import(error)) and f'{error} ({cure}).'
        if not text:
            raise
        print(f'{Path(sys.argv[0]).name}: {text}', file=sys.stderr)
        sys.exit(2)
