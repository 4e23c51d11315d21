"""What the operations of PyTorch's core set are in C."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch

from rkan_mm.deploy.errors import UnsupportedModelError

from .index import Index, part_of
from .program import Program
from .values import Constant, Memory, Value

ELEMENTWISE: dict[str, str] = {
    'add': '({} + {})', 'sub': '({} - {})', 'mul': '{} * {}', 'div': '{} / {}', 'neg': '(-{})', 'abs': 'fabs({})',
    'exp': 'exp({})', 'expm1': 'expm1({})', 'log': 'log({})', 'log1p': 'log1p({})', 'sqrt': 'sqrt({})',
    'rsqrt': '(1 / sqrt({}))', 'reciprocal': '(1 / {})', 'sin': 'sin({})', 'cos': 'cos({})', 'tan': 'tan({})',
    'atan': 'atan({})', 'tanh': 'tanh({})', 'sinh': 'sinh({})', 'cosh': 'cosh({})', 'erf': 'erf({})',
    'floor': 'floor({})', 'trunc': 'trunc({})', 'ceil': 'ceil({})', 'sign': 'sign({})', 'relu': 'relu({})',
    'sigmoid': 'sigmoid({})', 'silu': 'silu({})', 'maximum': 'larger({}, {})', 'minimum': 'smaller({}, {})',
    'ge': '({} >= {})', 'gt': '({} > {})', 'le': '({} <= {})', 'lt': '({} < {})', 'eq': '({} == {})',
    'ne': '({} != {})', 'logical_and': '({} && {})', 'logical_or': '({} || {})', 'logical_not': '(!{})',
    'bitwise_and': '({} && {})', 'bitwise_or': '({} || {})', 'bitwise_not': '(!{})', 'where': '({} ? {} : {})'}
NEUTRAL = dict(add=0, sub=0, mul=1, div=1)
LONGEST = 40
"""Operations in one expression; the next has its result from memory."""


def lifted(program: Program, value: Any) -> Value:
    """A number of the graph as a value."""
    return value if isinstance(value, Value) else program.constant(torch.tensor(float(value)))


def elementwise(program: Program, name: str, values: Sequence[Value], shape: Sequence[int]) -> Value:
    """Of values that are broadcast to a shape."""
    for value, other in (values, values[::-1]) if name in ('add', 'mul') else [values] if name in NEUTRAL else []:
        if isinstance(other, Constant) and other.number == NEUTRAL[name]:
            return value.broadcast(shape)
    inputs = []
    for value in values:
        repeated = value.cost > 0 and value.numel < math.prod(shape)
        inputs.append((program.stored(value) if repeated else value).broadcast(shape))
    cost = 1 + sum(value.cost for value in inputs)
    if cost > LONGEST:
        inputs = [program.stored(value) if value.cost > 1 else value for value in inputs]
        cost = 1 + sum(value.cost for value in inputs)
    return Value(shape, lambda index: ELEMENTWISE[name].format(*(bracketed(v.at(index)) for v in inputs)), cost)


def bracketed(text: str) -> str:
    """A product as an operand."""
    depth = 0
    for here, after in pairwise(text):
        depth += (here in '([') - (here in ')]')
        if depth == 0 and here == ' ' and after in '*/':
            return f'({text})'
    return text


def concatenated(values: Sequence[Value], dim: int, shape: Sequence[int]) -> Value:
    """One behind the other along a dimension."""
    dim %= len(shape)
    sizes = [value.shape[dim] for value in values]

    def at(index: Sequence[Index]) -> str:
        number, begin = part_of(index[dim], sizes)
        return values[number].at([*index[:dim], index[dim] + -begin, *index[dim + 1:]])
    return Value(shape, at, max(1, *(value.cost for value in values)))


def padded(value: Value, pads: Sequence[int], fill: Value, shape: Sequence[int]) -> Value:
    """With a number around it."""
    before = [0] * len(shape)
    for i in range(0, len(pads), 2):
        before[len(shape) - 1 - i // 2] = pads[i]

    def at(index: Sequence[Index]) -> str:
        moved = []
        for i, start, size in zip(index, before, value.shape, strict=True):
            part, _ = part_of(i, [max(start, 0), size, 1 << 30]) if start > 0 else (
                1 + part_of(i + -start, [size, 1 << 30])[0], 0)
            if part != 1:
                return fill.at([])
            moved.append(i + -start)
        return value.at(moved)
    return Value(shape, at, value.cost + 1)


def viewed(program: Program, value: Value, shape: Sequence[int]) -> Value:
    """The same elements in another shape."""
    if value.shape == tuple(shape):
        return value
    if isinstance(value, Constant):
        return program.constant(value.tensor.reshape(*shape))
    if [n for n in value.shape if n > 1] != [n for n in shape if n > 1]:
        return program.stored(value).reshaped(shape)
    if isinstance(value, Memory):
        return value.reshaped(shape)
    kept = [dim for dim, size in enumerate(shape) if size > 1]

    def move(index: Sequence[Index]) -> list[Index]:
        rest = iter([index[dim] for dim in kept])
        return [next(rest) if size > 1 else Index(0) for size in value.shape]
    return value.mapped(shape, move)


def replaced(value: Value, shape: Sequence[int], dim: int, change: Callable[[Index], Index]) -> Value:
    """With another index in one dimension."""
    return value.mapped(shape, lambda index: [change(i) if d == dim else i for d, i in enumerate(index)])


def permuted(value: Value, dims: Sequence[int], shape: Sequence[int]) -> Value:
    order = [dim % len(shape) for dim in dims]
    return value.mapped(shape, lambda index: [index[order.index(dim)] for dim in range(len(order))])


def selected(value: Value, dim: int, number: int, shape: Sequence[int]) -> Value:
    dim %= len(value.shape)
    number %= value.shape[dim]
    return value.mapped(shape, lambda index: [*index[:dim], Index(number), *index[dim:]])


def sliced(value: Value, shape: Sequence[int], dim: int = 0, start: int | None = None, end: int | None = None,
           step: int = 1) -> Value:
    dim %= len(value.shape)
    begin, *_ = slice(start, end, step).indices(value.shape[dim])
    return replaced(value, shape, dim, lambda i: i * step + begin)


def at_places(value: Value, indices: Sequence[Value | None]) -> tuple[int, list[int]]:
    """The dimension of which an index picks places that are known, and these.

    Raises:
        UnsupportedModelError: it is another kind of index.
    """
    (dim, index), *others = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    if others or not isinstance(index, Constant) or index.tensor.dim() != 1 or index.tensor.dtype == torch.bool:
        raise UnsupportedModelError('An index that is computed, or is no list of places in one dimension, cannot be '
                                    'written in C.')
    size = value.shape[dim]
    return dim, [place % size for place in index.tensor.tolist()]


def picked(parts: Sequence[tuple[Value, int]], dim: int, shape: Sequence[int]) -> Value:
    """Places of values, side by side in a dimension."""
    one = [1 if d == dim else size for d, size in enumerate(shape)]
    return concatenated([sliced(value, one, dim, place, place + 1) for value, place in parts], dim, shape)


def flipped(value: Value, dims: Sequence[int], shape: Sequence[int]) -> Value:
    turned = [dim % len(shape) for dim in dims]
    return value.mapped(shape, lambda index: [
        i * -1 + (shape[d] - 1) if d in turned else i for d, i in enumerate(index)])


def powered(program: Program, value: Value, exponent: Value, shape: Sequence[int]) -> Value:
    """Whole exponents up to 64 are products."""
    number = exponent.number if isinstance(exponent, Constant) else None
    form = 'pow({}, {})'
    if number is not None and number == int(number) and 0 < number <= 64:
        form = f'power({{0}}, {int(number)})'
    value, exponent = (program.stored(v).broadcast(shape) if v.cost > 0 and v.numel < math.prod(shape)
                       else v.broadcast(shape) for v in (value, exponent))
    return Value(shape, lambda index: form.format(value.at(index), exponent.at(index)), value.cost + 2)


def convolution(program: Program, shape: Sequence[int], x: Value, weight: Value, bias: Value | None,
                stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], transposed: bool,
                _: Sequence[int], groups: int) -> Value:
    if transposed or len(shape) > 4 or not isinstance(weight, Constant):
        kind = 'transposed' if transposed else f'{len(shape) - 2}-dimensional'
        raise UnsupportedModelError(f'A {kind} convolution cannot be written in C.')
    pair = [[1, *numbers] if len(shape) == 3 else [*numbers] for numbers in (stride, padding, dilation)]
    if len(shape) == 3:
        pair[1][0] = 0
    sizes = [[1, *s[2:]] if len(shape) == 3 else [*s[2:]] for s in (x.shape, shape, weight.shape)]
    return program.call(shape, 'conv2d', [x, weight, bias], *x.shape[:2], *sizes[0], shape[1], *sizes[1], *sizes[2],
                        *(n for numbers in pair for n in numbers), groups)


def pooled(program: Program, x: Value, shape: Sequence[int], function: str, kernel: Sequence[int],
           stride: Sequence[int], padding: Sequence[int], *more: int) -> Value:
    numbers = [[*n] * (3 - len(n)) for n in (kernel, stride or kernel, padding)]
    return program.call(shape, function, [x], math.prod(shape[:-2]), *x.shape[-2:], *shape[-2:],
                        *(n for pair in numbers for n in pair), *more)


def max_pool(program: Program, shape: Sequence[int], x: Value, kernel: Sequence[int], stride: Sequence[int] = (),
             padding: Sequence[int] = (0,), dilation: Sequence[int] = (1,), ceil_mode: bool = False) -> list[Value]:
    return [pooled(program, x, shape, 'max_pool2d', kernel, stride, padding, *[*dilation] * (3 - len(dilation)))]


def avg_pool(program: Program, shape: Sequence[int], x: Value, kernel: Sequence[int], stride: Sequence[int] = (),
             padding: Sequence[int] = (0,), ceil_mode: bool = False, count_include_pad: bool = True,
             divisor_override: int | None = None) -> Value:
    if divisor_override:
        raise UnsupportedModelError('An average pooling with a divisor of its own cannot be written in C.')
    return pooled(program, x, shape, 'avg_pool2d', kernel, stride, padding, int(count_include_pad))


def adaptive_avg_pool(program: Program, shape: Sequence[int], x: Value) -> Value:
    return program.call(shape, 'adaptive_avg_pool2d', [x], math.prod(shape[:-2]), *x.shape[-2:], *shape[-2:])


def batch_norm(program: Program, parts: Sequence[Any], eps: float, shape: Sequence[int]) -> Value:
    """With the statistics of the training: a factor and a shift for each channel."""
    x, weight, bias, mean, variance = parts
    factor = (variance.tensor.double() + eps).rsqrt() * (1 if weight is None else weight.tensor.double())
    shift = (0 if bias is None else bias.tensor.double()) - mean.tensor.double() * factor
    return scaled(program, x, *(program.constant(numbers.float().reshape(-1, *[1] * (len(shape) - 2)))
                                for numbers in (factor, shift)))


def mean(program: Program, x: Value, dims: Sequence[int], keepdim: bool = False) -> Value:
    count = math.prod(x.shape[dim] for dim in (dims or range(len(x.shape))))
    return program.reduced(x, dims, keepdim, '0', '{} += {}', f'{{}} / {count}')


def variance(program: Program, x: Value, dims: Sequence[int] | None = None, correction: int | None = 1,
             keepdim: bool = False) -> Value:
    x, dims = program.stored(x), [*(dims if dims else range(len(x.shape)))]
    apart = elementwise(program, 'sub', [x, mean(program, x, dims, True)], x.shape)
    count = math.prod(x.shape[dim] for dim in dims) - (1 if correction is None else correction)
    return program.reduced(powered(program, apart, program.constant(torch.tensor(2.0)), x.shape), dims, keepdim, '0',
                           '{} += {}', f'{{}} / {count}')


def normalized(program: Program, x: Value, dims: Sequence[int], eps: float) -> Value:
    """Of mean 0 and variance 1 over these dimensions."""
    x = program.stored(x)
    scale = variance(program, x, dims, 0, True)
    for name, more in (('add', [program.constant(torch.tensor(eps))]), ('rsqrt', [])):
        scale = elementwise(program, name, [scale, *more], scale.shape)
    apart = elementwise(program, 'sub', [x, mean(program, x, dims, True)], x.shape)
    return elementwise(program, 'mul', [apart, scale], x.shape)


def scaled(program: Program, x: Value, weight: Value | None, bias: Value | None) -> Value:
    for name, other in (('mul', weight), ('add', bias)):
        x = x if other is None else elementwise(program, name, [x, other], x.shape)
    return x


def instance_norm(program: Program, x: Value, weight: Value | None, bias: Value | None, eps: float,
                  shape: Sequence[int]) -> Value:
    """A batch norm without statistics of the training, over a batch of one."""
    dims = [dim for dim in range(len(shape)) if dim != 1]
    parts = [v if v is None else viewed(program, v, [v.numel, *[1] * (len(dims) - 1)]) for v in (weight, bias)]
    return scaled(program, normalized(program, x, dims, eps), *parts)


def layer_norm(program: Program, x: Value, sizes: Sequence[int], weight: Value | None, bias: Value | None,
               eps: float) -> Value:
    x = normalized(program, x, range(len(x.shape) - len(sizes), len(x.shape)), eps)
    return scaled(program, x, weight, bias)


def group_norm(program: Program, shape: Sequence[int], x: Value, weight: Value | None, bias: Value | None, batch: int,
               channels: int, pixels: int, groups: int, eps: float) -> Value:
    x = normalized(program, viewed(program, x, [batch, groups, channels // groups * pixels]), [2], eps)
    rest = [1] * (len(shape) - 2)
    weight, bias = (each if each is None else viewed(program, each, [channels, *rest]) for each in (weight, bias))
    return scaled(program, viewed(program, x, shape), weight, bias)
