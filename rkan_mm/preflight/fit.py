"""What a checkpoint would bring into a model, found without loading it."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import Tensor, nn


def summary(names: Collection[str], everything: Collection[str]) -> str:
    """Names, with the whole module in their place where all of its entries are among them.

    Example:
        >>> summary(['fc.weight', 'fc.bias', 'neck.bias'], ['fc.weight', 'fc.bias', 'neck.bias', 'neck.weight'])
        'fc (2), neck.bias'
    """
    def parents(name: str) -> list[str]:
        parts = name.split('.')
        return ['.'.join(parts[:i + 1]) for i in range(len(parts))]

    here, there = (Counter(parent for name in each for parent in parents(name)) for each in (names, everything))
    shortest = Counter(next(parent for parent in parents(name) if here[parent] == there[parent]) for name in names)
    return ', '.join(f'{name} ({count})' if count > 1 else name for name, count in shortest.items())


@dataclass
class Fit:
    """What becomes of each entry of a checkpoint and of a model; counters of batches in norms are left out.

    Args:
        loaded: entries that the model takes.
        new: names in the model that are not in the checkpoint.
        left: names in the checkpoint that have no place in the model.
        unfit: names in both, with both shapes, where these differ.
        text: all of this in a few lines.
    """

    loaded: int
    new: list[str]
    left: list[str]
    unfit: list[str]
    text: str


def innermost(model: nn.Module) -> nn.Module:
    """The model within wrappers for several processes and for test-time augmentation, which add nothing to names."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def fit(module: nn.Module, state_dict: dict[str, Tensor]) -> Fit:
    """What mmengine would load of a state_dict into a model, which stays as it is.

    The modules' own loading is run, so names that they rewrite (a teacher and a student, a plain backbone in a RKANet)
    and tensors that they resize (position embeddings, grids) count as they will.
    """
    module = innermost(module)
    source = {name.removeprefix('module.'): value for name, value in state_dict.items() if isinstance(value, Tensor)}
    missing, unexpected, errors = [], [], []
    target = [name for name in module.state_dict() if not name.endswith('num_batches_tracked')]
    with _dry(module):
        _load(module, source, '', getattr(state_dict, '_metadata', {}), missing, unexpected, errors)
    new = [name for name in target if name in set(missing)]
    left = [name for name in unexpected if not name.endswith('num_batches_tracked')]
    unfit = [re.sub(SIZES, _sizes, error.strip()) for error in errors]
    loaded = len(target) - len(new) - len(unfit)
    lines = [f'{loaded} of {len(target)} entries of the model are loaded']
    if new:
        lines.append(f'{len(new)} are new: {summary(new, target)}')
    if unfit:
        lines.append(f'{len(unfit)} do not fit: {", ".join(unfit)}')
    if left:
        lines.append(f'{len(left)} of the checkpoint have no place: {summary(left, {*source, *left})}')
    return Fit(loaded, new, left, unfit, '\n  '.join(lines))


SIZES = (r'size mismatch for (.*): copying a param with shape torch.Size\(\[(.*)\]\) from checkpoint, the shape in '
         r'current model is torch.Size\(\[(.*)\]\).')


def _sizes(match: re.Match) -> str:
    theirs, ours = (tuple(map(int, filter(None, group.split(', ')))) for group in match.groups()[1:])
    return f'{match[1]} {theirs}, here {ours}'


def _load(module: nn.Module, source: dict[str, Tensor], prefix: str, metadata: dict, *found: list[str]) -> None:
    """As load_state_dict of mmengine, which keeps the lists of what is missing, unexpected and unfit to itself."""
    module = innermost(module)
    module._load_from_state_dict(source, prefix, metadata.get(prefix[:-1], {}), True, *found)
    for name, child in module._modules.items():
        if child is not None:
            inside = f'{prefix}{name}.'
            part = {key: value for key, value in source.items() if key.startswith(inside)}
            _load(child, part, inside, metadata, *found)


@contextlib.contextmanager
def _dry(model: nn.Module) -> Iterator[None]:
    """Meanwhile the parameters have no values and the buffers are copies; afterwards all is as it was."""
    before, stand_ins = {module: {**vars(module)} for module in model.modules()}, {}

    def stand_in(value: Tensor | None) -> Tensor | None:
        if value is None or isinstance(value, nn.parameter.UninitializedParameter):
            return value
        if value not in stand_ins:
            stand_ins[value] = nn.Parameter(value.detach().to('meta'), value.requires_grad) if isinstance(
                value, nn.Parameter) else value.detach().clone()
        return stand_ins[value]

    try:
        for module in before:
            for kind in ('_parameters', '_buffers'):
                vars(module)[kind] = {name: stand_in(value) for name, value in vars(module)[kind].items()}
            vars(module)['_modules'] = {**module._modules}
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # torch says that copying into such parameters does nothing
            yield
    finally:
        for module, attributes in before.items():
            vars(module).clear()
            vars(module).update(attributes)
