"""Looking into configs, whose types are names or, in pure Python configs, classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, Registry
from mmengine.utils import get_object_from_string

from rkan_mm.engine.run_error import PreflightError
from rkan_mm.registry import SCOPE

from .building import building


def kind(cfg: dict | None) -> str:
    """Name of the class that a config builds, without its scope or module; '' where there is no type.

    Example:
        >>> kind(dict(type='mmdet.CocoDataset')), kind(dict(type=Config)), kind(None)
        ('CocoDataset', 'Config', '')
    """
    cls = (cfg or {}).get('type') or ''
    return (cls if isinstance(cls, str) else getattr(cls, '__name__', str(cls))).rpartition('.')[2]


def scope(cfg: Config) -> str | None:
    """The package whose registries a config asks: its ``default_scope``, else the first that its model inherits of.

    Raises:
        PreflightError: the model's type is the path of a class whose module fails.
    """
    if cfg.get('default_scope'):
        return cfg.default_scope
    cls = (cfg.get('model') or {}).get('type') or ''
    if isinstance(cls, str):
        package, dot, _ = cls.partition('.')
        own = None
        if dot and package not in MM:
            with building(f'model.type={cls!r} cannot be imported'):
                own = get_object_from_string(cls)
        if not callable(own):
            return package if dot else None
        cls = own
    packages = [base.__module__.partition('.')[0] for base in getattr(cls, '__mro__', (cls,))]
    with_registries = {*LIBRARIES, *MODELS.children} - {SCOPE}
    return next((package for package in packages if package in with_registries), packages[0])


LIBRARIES = ('mmdet', 'mmpretrain', 'mmseg', 'mmrotate')
"""Those with models of their own."""

MM = ('mmengine', 'mmcv', *LIBRARIES, 'rkan_mm')


def library(cfg: Config) -> str | None:
    """The library of mm whose hooks and metrics a config's model goes with: its scope, or that of which it inherits."""
    name, model = scope(cfg), cfg.get('model') or {}
    if name in LIBRARIES or 'type' not in model:
        return name
    packages = [base.__module__.partition('.')[0] for base in getattr(
        built_from(model['type'], MODELS, cfg), '__mro__', ())]
    return next((package for package in packages if package in LIBRARIES), name)


def is_mm(cls: Callable, *methods: str) -> bool:
    """Whether a class or function, or all methods of these names, are mm's or ours: others may do as they please."""
    owners = [getattr(getattr(cls, name), '__module__', None) or '' for name in methods] or [cls.__module__]
    return all(owner.partition('.')[0] in MM for owner in owners)


def reads_as_mm(cls: type) -> bool:
    """Whether mm's own code finds the pictures and labels of a data set; one of the user's own may but name classes."""
    methods = [name for name in ('load_data_list', 'parse_data_info', 'get_data_info') if hasattr(cls, name)]
    return is_mm(cls) or (bool(methods) and is_mm(cls, *methods))


def built_from(cls: str | Callable, registry: Registry, cfg: Config) -> Callable | None:
    """What stands for a type in a config: found as mm does it; None if there is none."""
    if not isinstance(cls, str):
        return cls
    try:
        with registry.switch_scope_and_registry(scope(cfg)) as here:
            return here.get(cls)
    except (KeyError, ImportError, TypeError, ValueError):
        return None


def dicts_with(node: Any, *keys: str, path: str = '') -> Iterator[tuple[str, dict]]:
    """All dicts in a nested config that have all of the keys, each behind its path in the config.

    Example:
        >>> list(dicts_with(dict(a=[dict(type='x', n=1), dict(n=2)]), 'type', 'n'))
        [('a[0]', {'type': 'x', 'n': 1})]
    """
    if isinstance(node, dict):
        if all(key in node for key in keys):
            yield path, node
        for name, child in node.items():
            yield from dicts_with(child, *keys, path=f'{path}.{name}'.lstrip('.'))
    elif isinstance(node, (list, tuple)):
        for i, child in enumerate(node):
            yield from dicts_with(child, *keys, path=f'{path}[{i}]')


SWITCHES = dict(
    options=True, paths=True, annotations=True, images=True, classes=True, evaluator=True, trial=True,
    allow_unknown=False)
"""What can be set under ``preflight`` in a config; see docs/checks.md."""


def switches(cfg: Config) -> dict[str, bool]:
    """The checks that a config leaves on; `PreflightError` if it names one that does not exist."""
    given = dict(cfg.get('preflight') or {})
    if unknown := set(given) - set(SWITCHES):
        raise PreflightError(f'preflight has no {", ".join(sorted(unknown))}; there are {", ".join(SWITCHES)}.')
    return {**SWITCHES, **given}
