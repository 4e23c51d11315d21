"""Parts of a config of another type than mmengine asks for, and values with which a run gives nothing."""

from __future__ import annotations

import inspect
import re

from mmengine.config import Config
from mmengine.registry import HOOKS, LOOPS, MODELS

from rkan_mm.engine.run_error import PreflightError

from .config import built_from, dicts_with, is_mm, kind, switches
from .red import warn_in_red

TYPES: dict[str, type] = {
    **dict.fromkeys(('model', 'train_dataloader', 'val_dataloader', 'test_dataloader', 'train_cfg', 'val_cfg',
                     'test_cfg', 'optim_wrapper', 'default_hooks', 'env_cfg', 'randomness', 'log_processor',
                     'auto_scale_lr', 'visualizer', 'tta_model', 'preflight'), dict), 'custom_hooks': list}
"""What the top of a config holds, where it is given."""

UNLIMITED = {'YOLACTHead', 'PAAHead', 'GARetinaHead', 'CenterNetHead', 'CornerHead', 'SOLOHead'}
"""Heads that read 0 as no limit, and so do those that inherit from them."""

OF_PRECISION = ('CocoMetric', 'FasterCocoMetric', 'VOCMetric', 'LVISMetric')
"""Metrics that go through all scores."""

NUMBER = re.compile(r'[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?', re.I)

HIGH = 0.2
"""From which on a score_thr is for pictures; those of mm's configs that are measured so are 0.1 at most."""

IN_QUESTION = ' To run all the same: --cfg-options preflight.options=False'


def check_types(cfg: Config) -> None:
    """Raise `PreflightError` if a part on top of a config has another type than mmengine asks for."""
    for name, wanted in TYPES.items():
        value = cfg.get(name)
        right = isinstance(value, (list, tuple) if wanted is list else wanted)
        if value is None or right or _is_of_own_loop(name, cfg):
            continue
        if name == 'preflight' and value is False:
            raise PreflightError('preflight=False is no switch; there is one for each check, such as '
                                 'preflight.trial=False: see docs/checks.md')
        example = "[dict(type='EMAHook')]" if wanted is list else 'dict(...)'
        raise PreflightError(f'{name} is of type {type(value).__name__}, {str(value)[:60]!r}; mmengine wants a '
                             f'{wanted.__name__}: {name}={example}')


def _is_of_own_loop(name: str, cfg: Config) -> bool:
    """Whether a part is a loader that a loop of the user's own takes, in whatever form."""
    split, _, part = name.partition('_')
    loop = cfg.get(f'{split}_cfg')
    if part != 'dataloader' or not isinstance(loop, dict) or 'type' not in loop:
        return False
    cls = built_from(loop['type'], LOOPS, cfg)
    return cls is None or not is_mm(cls)


def check_ranges(cfg: Config, training: bool) -> None:
    """Raise `PreflightError` at a value with which nothing is predicted, validated or measured.

    Args:
        cfg: config of a mmengine runner.
        training: whether the run trains (and validates) or tests.
    """
    if not switches(cfg)['options']:
        return
    if training and cfg.get('val_cfg') is not None and (cfg.get('train_cfg') or {}).get('val_interval') == 0:
        raise PreflightError('train_cfg.val_interval=0: give at least 1, or --no-validate for no validation.')
    if training:
        _check_texts(cfg)
    check_predictions(cfg)
    for split in ('val',) if training else ('test',):
        evaluators = list(dicts_with(cfg.get(f'{split}_evaluator'), 'type'))
        if any(kind(evaluator) in OF_PRECISION for _, evaluator in evaluators):
            _warn_of_high_scores(cfg)
        for path, evaluator in evaluators:
            if kind(evaluator).endswith('CocoMetric') and evaluator.get('metric', 'bbox') in ([], (), ''):
                raise PreflightError(f'{".".join(filter(None, (f"{split}_evaluator", path)))}: metric is empty, and '
                                     f'nothing would be measured: give bbox, or [bbox,segm].{IN_QUESTION}')


def _check_texts(cfg: Config) -> None:
    """A number in quotes, for which mm's hooks and loops have a default: most of them fail at it epochs later."""
    for name, registry in dict(train_cfg=LOOPS, default_hooks=HOOKS, custom_hooks=HOOKS).items():
        for path, part in dicts_with(cfg.get(name), 'type'):
            cls = built_from(part['type'], registry, cfg)
            defaults = {key: each.default for base in getattr(cls, '__mro__', ())[::-1] if is_mm(base)
                        for key, each in inspect.signature(base.__init__).parameters.items()}
            for key, value in part.items() if isinstance(cls, type) and is_mm(cls) else ():
                if isinstance(value, str) and type(defaults.get(key)) in (int, float) and NUMBER.fullmatch(value):
                    where = f'{name}{"" if not path or path.startswith("[") else "."}{path}.{key}'
                    raise PreflightError(f'{where}={value!r} is a text, and a number is wanted there: leave the '
                                         f'quotes out.{IN_QUESTION}')


def _warn_of_high_scores(cfg: Config) -> None:
    for path, part in dicts_with((cfg.get('model') or {}), 'score_thr'):
        value = part['score_thr']
        if 'test_cfg' in path and isinstance(value, (int, float)) and HIGH <= value <= 1:
            warn_in_red(f'model.{path}.score_thr={value} leaves out boxes that AP counts: it comes out lower than by '
                        'the 0.05 or less of mm\'s own configs.')


def check_predictions(cfg: Config) -> None:
    """Raise `PreflightError` if the test_cfg of a detector leaves no box."""
    if not switches(cfg)['options']:
        return
    for key, is_idle, cure in (('score_thr', lambda value: value > 1, 'scores are from 0 to 1'),
                               ('nms_pre', lambda value: value == 0, 'give at least 1'),
                               ('max_per_img', lambda value: value == 0, 'give at least 1')):
        for path, part in dicts_with((cfg.get('model') or {}), key):
            where, value = f'model.{path}.{key}', part[key]
            unlimited = key != 'score_thr' and _takes_zero_as_no_limit(cfg, key, path)
            if 'test_cfg' in path and isinstance(value, (int, float)) and is_idle(value) and not unlimited:
                raise PreflightError(f'{where}={value} leaves no prediction: {cure}.{IN_QUESTION}')


def _takes_zero_as_no_limit(cfg: Config, key: str, path: str) -> bool:
    """Whether 0 is no limit, as for proposals before NMS, boxes of RoI heads, some heads of mmdet and all of others."""
    stage, model = {'max_per_img': 'rcnn', 'nms_pre': 'rpn'}[key], cfg.model
    if path.endswith(stage) or (key == 'nms_pre' and kind(model) == 'RPN'):
        return True
    for head in (model.get('bbox_head'), model.get('mask_head')):
        cls = built_from(head['type'], MODELS, cfg) if isinstance(head, dict) and 'type' in head else None
        if isinstance(cls, type) and (not is_mm(cls) or UNLIMITED & {base.__name__ for base in cls.__mro__}):
            return True
    return False
