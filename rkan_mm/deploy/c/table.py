"""How each operation of PyTorch's core set is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from rkan_mm.deploy.errors import UnsupportedModelError

from . import operators as o
from .program import Program
from .values import Value

Handler = Callable[[Program, Sequence[Any], dict[str, Any], Any], Any]
"""Of the program, arguments, keyword arguments, and the shape of the result, or of each."""


def _elementwise(name: str) -> Handler:
    def handle(program: Program, args: Sequence[Any], kwargs: dict[str, Any], shape: Any) -> Value:
        values = [o.lifted(program, arg) for arg in args]
        if kwargs.get('alpha', 1) != 1:
            values[1] = o.elementwise(program, 'mul', [values[1], o.lifted(program, kwargs['alpha'])], values[1].shape)
        value = o.elementwise(program, name, values, shape)
        rounding = kwargs.get('rounding_mode')
        return value if rounding is None else o.elementwise(program, rounding, [value], shape)
    return handle


def _copy(program: Program, args: Sequence[Any], kwargs: dict[str, Any], shape: Any) -> Value:
    """As another type: all numbers here are real."""
    dtype = kwargs.get('dtype')
    if dtype is None or dtype.is_floating_point:
        return args[0]
    if dtype == torch.bool:
        return o.elementwise(program, 'ne', [args[0], o.lifted(program, 0)], shape)
    return o.elementwise(program, 'trunc', [args[0]], shape)


def _reduction(start: str, step: str) -> Handler:
    def handle(program: Program, args: Sequence[Any], kwargs: dict[str, Any], shape: Any) -> Value:
        x, dims, keepdim = [*args, [], False][:3] if len(args) < 3 else args[:3]
        return program.reduced(x, [dims] if isinstance(dims, int) else dims, bool(keepdim), start, step)
    return handle


def _clamp(program: Program, args: Sequence[Any], kwargs: dict[str, Any], shape: Any) -> Value:
    value, low, high = [*args, kwargs.get('min'), kwargs.get('max')][:3] if len(args) == 1 else [*args, None][:3]
    for limit, function in ((low, 'maximum'), (high if high is not None else kwargs.get('max'), 'minimum')):
        if limit is not None:
            value = o.elementwise(program, function, [value, o.lifted(program, limit)], shape)
    return value


def _stack(program: Program, args: Sequence[Any], kwargs: dict[str, Any], shape: Any) -> Value:
    dim = (args[1] if len(args) > 1 else kwargs.get('dim', 0)) % len(shape)
    one = [1 if d == dim else size for d, size in enumerate(shape)]
    return o.concatenated([o.viewed(program, value, one) for value in args[0]], dim, shape)


def _split(program: Program, args: Sequence[Any], kwargs: dict[str, Any], shape: Any) -> list[Value]:
    dim = args[2] if len(args) > 2 else 0
    starts = [sum(args[1][:i]) for i in range(len(args[1]))]
    return [o.sliced(args[0], size, dim, start) for start, size in zip(starts, shape, strict=True)]


def _index(program: Program, args: Sequence[Any], kwargs: dict[str, Any], shape: Any) -> Value:
    value = program.stored(args[0]) if args[0].cost else args[0]
    dim, places = o.at_places(value, args[1])
    return o.picked([(value, place) for place in places], dim, shape)


def _index_select(program: Program, args: Sequence[Any], kwargs: dict[str, Any], shape: Any) -> Value:
    return _index(program, [args[0], [*[None] * (args[1] % len(shape)), args[2]]], kwargs, shape)


def _index_put(program: Program, args: Sequence[Any], kwargs: dict[str, Any], shape: Any) -> Value:
    value, indices, new, *accumulate = args
    if any(accumulate):
        raise UnsupportedModelError('An index at which values are added up cannot be written in C.')
    dim, places = o.at_places(value, indices)
    new = new.broadcast([len(places) if d == dim else size for d, size in enumerate(shape)])
    parts = [(value, place) for place in range(shape[dim])]
    for i, place in enumerate(places):
        parts[place] = new, i
    return o.picked(parts, dim, shape)


def _transpose(program: Program, args: Sequence[Any], kwargs: dict[str, Any], shape: Any) -> Value:
    order = [*range(len(shape))]
    a, b = args[1:] or (0, 1)
    order[a], order[b] = order[b], order[a]
    return o.permuted(args[0], order, shape)


UNCHANGED: Handler = lambda program, args, kwargs, shape: args[0]  # noqa: E731
VIEW: Handler = lambda program, args, kwargs, shape: o.viewed(program, args[0], shape)  # noqa: E731
OPERATORS: dict[str, Handler] = {
    **{name: _elementwise(name) for name in o.ELEMENTWISE},
    **dict.fromkeys(('alias', 'clone', 'detach', 'lift_fresh_copy'), UNCHANGED),
    **dict.fromkeys(('view', '_unsafe_view', 'reshape', 'unsqueeze', 'squeeze', 'flatten'), VIEW),
    '_to_copy': _copy,
    'pow': lambda program, args, kwargs, shape: o.powered(
        program, o.lifted(program, args[0]), o.lifted(program, args[1]), shape),
    'clamp': _clamp,
    'clamp_min': lambda program, args, kwargs, shape: _clamp(program, args[:2], {}, shape),
    'clamp_max': lambda program, args, kwargs, shape: _clamp(program, [args[0], None], {'max': args[1]}, shape),
    'stack': _stack,
    'cat': lambda program, args, kwargs, shape: o.concatenated(args[0], args[1] if len(args) > 1 else 0, shape),
    'split_with_sizes': _split,
    'expand': lambda program, args, kwargs, shape: args[0].broadcast(shape),
    'constant_pad_nd': lambda program, args, kwargs, shape: o.padded(
        args[0], args[1], o.lifted(program, args[2] if len(args) > 2 else 0.0), shape),
    'permute': lambda program, args, kwargs, shape: o.permuted(args[0], args[1], shape),
    'transpose': _transpose,
    't': _transpose,
    'select': lambda program, args, kwargs, shape: o.selected(args[0], args[1], args[2], shape),
    'slice': lambda program, args, kwargs, shape: o.sliced(args[0], shape, *args[1:]),
    'index': _index,
    'index_select': _index_select,
    'index_put': _index_put,
    'flip': lambda program, args, kwargs, shape: o.flipped(args[0], args[1], shape),
    'mm': lambda program, args, kwargs, shape: program.product(args[0], args[1], shape),
    'bmm': lambda program, args, kwargs, shape: program.product(args[0], args[1], shape),
    'convolution': lambda program, args, kwargs, shape: o.convolution(program, shape, *args),
    'max_pool2d_with_indices': lambda program, args, kwargs, shape: o.max_pool(program, shape[0], *args),
    'avg_pool2d': lambda program, args, kwargs, shape: o.avg_pool(program, shape, *args),
    '_adaptive_avg_pool2d': lambda program, args, kwargs, shape: o.adaptive_avg_pool(program, shape, args[0]),
    'mean': lambda program, args, kwargs, shape: o.mean(program, *args[:3]),
    'var': lambda program, args, kwargs, shape: o.variance(program, *args, **kwargs),
    'sum': _reduction('0', '{} += {}'),
    'amax': _reduction('-INFINITY', '{0} = larger({0}, {1})'),
    'any': _reduction('0', '{0} = {0} || {1}'),
    '_native_batch_norm_legit_no_training': lambda program, args, kwargs, shape: [
        o.batch_norm(program, args[:5], args[6], shape[0])],
    '_native_batch_norm_legit': lambda program, args, kwargs, shape: [
        o.instance_norm(program, args[0], args[1], args[2], args[5], shape[0])],
    'native_layer_norm': lambda program, args, kwargs, shape: [o.layer_norm(program, *args)],
    'native_group_norm': lambda program, args, kwargs, shape: [o.group_norm(program, shape[0], *args)],
}
