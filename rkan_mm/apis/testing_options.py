"""What mm's options of a test change in a config: predictions to files or windows, test-time augmentation."""

from __future__ import annotations

import argparse
import copy
import inspect
import os
import sys
from collections.abc import Sequence
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import HOOKS, METRICS, Registry

from rkan_mm.preflight import PreflightError
from rkan_mm.preflight.config import built_from, dicts_with, is_mm, kind, library
from rkan_mm.preflight.datasets import data_sets

from .command_line import file_to_write, folder_to_write, positive

META_KEYS = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')


def add_test_options(parser: argparse.ArgumentParser) -> None:
    """The options of mmdet's and mmpretrain's tools/test.py."""
    parser.add_argument('--out', type=file_to_write,
                        help='file for the predictions (.pkl), or for what --out-item says')
    parser.add_argument('--out-item', choices=['pred', 'metrics'],
                        help='what goes into --out: predictions (default), or the metrics (.json, .yaml or .pkl)')
    parser.add_argument('--show', action='store_true', help='show each picture with its predictions in a window')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds for which --show shows a picture')
    parser.add_argument('--show-dir', type=folder_to_write,
                        help='folder for pictures of the predictions, of detectors within the work dir')
    parser.add_argument('--interval', type=positive, default=1, help='show or draw every n-th picture')
    parser.add_argument('--classwise', action='store_true', help='COCO: log the AP of each class, too')
    parser.add_argument('--tta', action='store_true',
                        help="test-time augmentation by the config's tta_model and tta_pipeline, else by flipping")
    parser.add_argument('--amp', action='store_true', help='half precision')
    parser.add_argument('--no-pin-memory', action='store_true', help='leave the data in pageable memory')


def check_test(cfg: Config) -> None:
    """Raise `PreflightError` if a config does not say by what to test."""
    if not cfg.get('test_dataloader') or cfg.get('test_evaluator') in (None, {}) or cfg.get('test_cfg') is None:
        raise PreflightError('The config has no test_dataloader, test_evaluator and test_cfg: to test it on its '
                             'validation data, write test_dataloader = val_dataloader, and so on.')


def use_test_options(cfg: Config, args: argparse.Namespace) -> None:
    """Change ``cfg`` as the options ask.

    Raises:
        PreflightError: the config lacks what an option needs, a file name has the wrong ending, or options contradict.
    """
    check_test(cfg)
    _check_out(args)
    _check_use(cfg, args)
    if args.show or args.show_dir:
        _show(cfg, args)
    evaluators = evaluators_of(cfg)
    if args.classwise:
        able = [evaluator for evaluator in evaluators if 'classwise' in _arguments(evaluator['type'], cfg, METRICS)]
        if not able:
            raise PreflightError('--classwise: no test evaluator of the config has an argument classwise, as '
                                 f'CocoMetric has; there is {", ".join(map(kind, evaluators))}.')
        for evaluator in able:
            evaluator['classwise'] = True
    if args.out and args.out_item != 'metrics':
        _dump(cfg, args.out)
    if args.tta:
        if library(cfg) == 'mmpretrain' and cfg.get('default_hooks', {}).get('visualization', {}).get('enable'):
            raise PreflightError('--tta: mmpretrain cannot draw several views of one picture. Leave out --show and '
                                 '--show-dir, and default_hooks.visualization.enable=True of the config.')
        _use_tta(cfg)
    if args.amp:
        cfg.test_cfg['fp16'] = True


def _dump(cfg: Config, path: str) -> None:
    given = cfg.test_evaluator
    if kind(given if isinstance(given, dict) else None) == 'MultiDatasetsEvaluator':
        raise PreflightError('--out: MultiDatasetsEvaluator has one metric for each of its data sets, and none for the '
                             'predictions of all: test one data set, or add --out-item metrics for the figures.')
    dump = 'mmdet.DumpDetResults' if library(cfg) == 'mmdet' else 'DumpResults'
    metrics = [*evaluators_of(cfg), dict(type=dump, out_file_path=path)]
    cfg.test_evaluator = {**given, 'metrics': metrics} if isinstance(given, dict) and 'metrics' in given else metrics


def evaluators_of(cfg: Config) -> list[dict]:
    evaluators = cfg.test_evaluator
    evaluators = evaluators.get('metrics', evaluators) if isinstance(evaluators, dict) else evaluators
    return list(evaluators) if isinstance(evaluators, (list, tuple)) else [evaluators]


def _check_out(args: argparse.Namespace) -> None:
    if args.out_item and not args.out:
        raise PreflightError('--out-item: name the file by --out.')
    endings: Sequence[str] = ('.json', '.yaml', '.yml', '.pkl') if args.out_item == 'metrics' else ('.pkl', '.pickle')
    if args.out and not args.out.endswith(tuple(endings)):
        raise PreflightError(f'--out: {args.out!r} must end in {" or ".join(endings)}, for '
                             + ('metrics.' if args.out_item == 'metrics' else 'predictions; metrics go into .json by '
                                '--out-item metrics.'))


def _check_use(cfg: Config, args: argparse.Namespace) -> None:
    """Without a metric, a test is of use by what it writes or shows; drawing hooks and the user's own code do, too."""
    if cfg.test_evaluator or args.show or args.show_dir or (args.out and args.out_item != 'metrics'):
        return
    hooks = [*(cfg.get('default_hooks') or {}).values(), *(cfg.get('custom_hooks') or ())]
    if not cfg.test_cfg.get('type') and not any(_may_show(hook, cfg) for hook in hooks if hook):
        raise PreflightError('test_evaluator is empty, and nothing would be measured, written or shown: give a metric, '
                             'or add --out FILE.pkl for the predictions, --show or --show-dir.')


def _may_show(hook: Any, cfg: Config) -> bool:
    if not isinstance(hook, dict):
        return True
    cls = built_from(hook.get('type', ''), HOOKS, cfg)
    return bool(hook.get('draw') or hook.get('enable')) or cls is None or not is_mm(cls)


def _show(cfg: Config, args: argparse.Namespace) -> None:
    if args.show and sys.platform.startswith('linux') and not (os.environ.get('DISPLAY') or os.environ.get(
            'WAYLAND_DISPLAY')):
        raise PreflightError('--show needs a display and this machine has none: take --show-dir FOLDER.')
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    given = hooks.get('visualization') or {}
    hook = given if given.get('type') else dict(
        type='mmdet.DetVisualizationHook' if library(cfg) == 'mmdet' else 'mmpretrain.VisualizationHook')
    takes = _arguments(hook['type'], cfg)
    on = 'enable' if 'enable' in takes else 'draw'  # of mmpretrain, and of mmdet and others
    values = {on: True, 'show': args.show, 'wait_time': args.wait_time, 'interval': args.interval,
              'frame_interval': args.interval, 'test_out_dir': args.show_dir, 'out_dir': args.show_dir}
    hooks['visualization'] = {**hook, **{name: value for name, value in values.items() if name in takes or (
        name == 'wait_time' and {'enable', 'kwargs'} <= takes)}}
    if not cfg.get('visualizer'):
        name = 'mmdet.DetLocalVisualizer' if library(cfg) == 'mmdet' else 'mmpretrain.UniversalVisualizer'
        cfg.visualizer = dict(type=name, vis_backends=[dict(type='LocalVisBackend')])
    if args.show_dir and not {'test_out_dir', 'out_dir'} & takes:  # as mmsegmentation's
        cfg.visualizer['save_dir'] = args.show_dir


def _arguments(name: str | type, cfg: Config, registry: Registry = HOOKS) -> set[str]:
    """Of a class, and of the classes to which it hands on what it does not name."""
    takes: set[str] = set()
    for cls in getattr(built_from(name, registry, cfg), '__mro__', ()):
        if '__init__' in vars(cls):
            parameters = inspect.signature(cls.__init__).parameters
            takes.update(parameters)
            if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
                break
    return takes


def _use_tta(cfg: Config) -> None:
    """As mm's tools/test.py: what the config says, or the picture and its mirror image."""
    detector = library(cfg) == 'mmdet'
    if detector and any('segm' in str(evaluator.get('metric')) for evaluator in evaluators_of(cfg)):
        raise PreflightError('--tta: mmdet merges boxes alone, and the test evaluator asks for masks (segm): add '
                             '--cfg-options test_evaluator.metric=bbox')
    sets = [dataset for dataset in data_sets(cfg.test_dataloader) if dataset.get('pipeline')] or [
        dataset for _, dataset in dicts_with(cfg.test_dataloader, 'pipeline') if dataset['pipeline']]
    if not cfg.get('tta_model'):
        cfg.tta_model = dict(type='DetTTAModel', tta_cfg=dict(
            nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)) if detector else dict(
                type='mmpretrain.AverageClsScoreTTA')
    if kind(cfg.tta_model).rpartition('.')[2] == 'DetTTAModel':  # which stops where a model predicts masks, too
        cfg.tta_model = {**cfg.tta_model, 'type': 'rkan_mm.BoxTTAModel'}
    for dataset in sets:
        pipeline = cfg.get('tta_pipeline') or _flipped(dataset['pipeline'], detector)
        dataset['pipeline'] = copy.deepcopy(pipeline)
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)


def _flipped(pipeline: Sequence[dict], detector: bool) -> list[dict]:
    pack = dict(type='mmdet.PackDetInputs', meta_keys=META_KEYS) if detector else pipeline[-1]
    flips = [dict(type='mmdet.RandomFlip' if detector else 'RandomFlip', prob=prob) for prob in (1.0, 0.0)]
    steps, place = list(pipeline[:-1]), len(pipeline) - 1
    if detector:  # boxes are loaded for, and borders are added to, the picture as it is after the flip
        names = [kind(step).rpartition('.')[2] for step in steps]
        place = next((i for i, name in enumerate(names) if name == 'Pad' or name.endswith('Annotations')), place)
    return [*steps[:place], dict(type='TestTimeAug', transforms=[flips, *([step] for step in steps[place:]), [pack]])]
