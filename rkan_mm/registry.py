"""Registries of rkan_mm.

`MODELS`, `HOOKS`, `LOOPS`, `STRATEGIES`, `OPTIM_WRAPPERS`, `DATASETS`, `METRICS` and `FUNCTIONS` are children of
mmengine's registries with scope ``rkan_mm``, so mm configs find ``type='rkan_mm.RKANet'``.
`BASES` and `FUSIONS` hold the parts that only rkan_mm's own layers build.
"""

from __future__ import annotations

import difflib

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import FUNCTIONS as MMENGINE_FUNCTIONS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import LOOPS as MMENGINE_LOOPS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import STRATEGIES as MMENGINE_STRATEGIES
from mmengine.registry import Registry

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='rkan_mm', locations=['rkan_mm.models'])
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='rkan_mm', locations=['rkan_mm.engine'])
DATASETS = Registry('dataset', parent=MMENGINE_DATASETS, scope='rkan_mm', locations=['rkan_mm.datasets'])
LOOPS = Registry('loop', parent=MMENGINE_LOOPS, scope='rkan_mm', locations=['rkan_mm.engine'])
OPTIM_WRAPPERS = Registry('optim_wrapper', parent=MMENGINE_OPTIM_WRAPPERS, scope='rkan_mm',
                          locations=['rkan_mm.engine'])
STRATEGIES = Registry('strategy', parent=MMENGINE_STRATEGIES, scope='rkan_mm', locations=['rkan_mm.engine'])
FUNCTIONS = Registry('function', parent=MMENGINE_FUNCTIONS, scope='rkan_mm', locations=['rkan_mm.engine'])
METRICS = Registry('metric', parent=MMENGINE_METRICS, scope='rkan_mm', locations=['rkan_mm.evaluation'])
BASES = Registry('basis', scope='rkan_mm', locations=['rkan_mm.models'])
FUSIONS = Registry('fusion', scope='rkan_mm', locations=['rkan_mm.models'])


def build(registry: Registry, cfg: dict, caller: str, **defaults):
    """Build ``cfg`` from one of our own registries, whatever the default scope is.

    Args:
        registry: where ``cfg['type']`` is looked up.
        cfg: ``type`` and the arguments of its constructor.
        caller: who asks; error messages begin with it.
        defaults: arguments that ``cfg`` may override.

    Raises:
        TypeError: ``cfg`` is not a dict with a ``type``, or names an argument that the class does not have.
        ValueError: ``type`` is not registered; the message lists what is.
    """
    if not isinstance(cfg, dict) or 'type' not in cfg:
        raise TypeError(f"{caller}: a {registry.name} must be a dict with a 'type', e.g. "
                        f'dict(type={next(iter(registry.module_dict))!r}), got {cfg!r}')
    args = {**defaults, **cfg}
    kind = args.pop('type')
    try:
        cls = registry.get(kind) if isinstance(kind, str) else kind
    except RuntimeError:  # mmengine tried to import it as a module path
        cls = None
    if cls is None:
        known = sorted(registry.module_dict)
        near = difflib.get_close_matches(kind, known, n=1)
        raise ValueError(f'{caller}: no {registry.name} {kind!r}; there are {", ".join(known)}'
                         + (f'. Did you mean {near[0]!r}?' if near else ''))
    try:
        return cls(**args)
    except TypeError as error:
        raise TypeError(f'{caller}: {registry.name} {cls.__name__} with {args}: {error}') from error
