"""Registries of rkan_mm.

They are children of mmengine's registries with scope ``rkan_mm``, so mm configs find ``type='rkan_mm.RKANet'``.
`BASES` and `FUSIONS` hold the parts that only rkan_mm's own layers build.
"""

from __future__ import annotations

import difflib
from importlib.util import find_spec

from mmengine import registry as mmengine_registry
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import DefaultScope
from mmengine.registry import Registry as MMRegistry
from mmengine.utils import is_installed

SCOPE = 'rkan_mm'
MODULE2PACKAGE.setdefault(SCOPE, SCOPE)  # mmengine looks up configs by name in packages that stand here
if find_spec('mmseg') and not is_installed(MODULE2PACKAGE.get('mmseg', 'mmseg')):
    MODULE2PACKAGE['mmseg'] = 'mmseg'  # the fork's package has another name, by which mmengine does not find `mmseg::`


class Registry(MMRegistry):
    """A registry that also finds the names of mmdet and mmpretrain while ``rkan_mm`` is the default scope.

    mmengine's inferencers make the package of a config's name the default scope: ``DetInferencer(name,
    scope='rkan_mm')``. Our configs name mmdet's classes without a prefix.
    """

    def get(self, key: str) -> type | None:
        """Class of a name, or None."""
        scope = DefaultScope.get_current_instance()
        if '.' not in key and key not in self._module_dict and scope is not None and scope.scope_name == SCOPE:
            for other in ('mmdet', 'mmpretrain'):  # before mmengine: mmcv has a LoadAnnotations of its own there
                if (found := self.parent.get(f'{other}.{key}')) is not None:
                    return found
        return super().get(key)


def _child(name: str, location: str = 'rkan_mm.models') -> Registry:
    parent = getattr(mmengine_registry, name)
    return Registry(parent.name, parent=parent, scope=SCOPE, locations=[location])


MODELS = _child('MODELS', 'rkan_mm.models')
HOOKS = _child('HOOKS', 'rkan_mm.engine')
DATASETS = _child('DATASETS', 'rkan_mm.datasets')
LOOPS = _child('LOOPS', 'rkan_mm.engine')
OPTIM_WRAPPERS = _child('OPTIM_WRAPPERS', 'rkan_mm.engine')
STRATEGIES = _child('STRATEGIES', 'rkan_mm.engine')
FUNCTIONS = _child('FUNCTIONS', 'rkan_mm.engine')
METRICS = _child('METRICS', 'rkan_mm.evaluation')
# nothing of ours is in these
TRANSFORMS, TASK_UTILS, VISUALIZERS = _child('TRANSFORMS'), _child('TASK_UTILS'), _child('VISUALIZERS')
BASES = MMRegistry('basis', scope=SCOPE, locations=['rkan_mm.models'])
FUSIONS = MMRegistry('fusion', scope=SCOPE, locations=['rkan_mm.models'])


def build(registry: MMRegistry, cfg: dict, caller: str, **defaults):
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
