"""Statements of C, and the memory that they need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .index import Index, Split, Variable
from .values import Constant, Memory, Value

Body = Callable[[list[Index]], list[str]]


@dataclass
class Statement:
    """Lines of C.

    Args:
        lines: of them.
        reads, writes: names of memory.
        origin: the module of the net that it comes from.
    """

    lines: list[str]
    reads: set[str]
    writes: str
    origin: str


class Program:
    """What is written while a graph is read.

    Attributes:
        statements: in their order.
        arrays: numbers of the net, by name.
        sizes: elements of each memory, by name.
        origin: the module that is being read.
    """

    def __init__(self) -> None:
        self.statements: list[Statement] = []
        self.arrays: dict[str, Tensor] = {}
        self.sizes: dict[str, int] = {}
        self.origin = ''
        self._names: dict[bytes, str] = {}
        self._reads: set[str] = set()

    # -- values ------------------------------------------------------------------------------------------------------
    def constant(self, tensor: Tensor) -> Constant:
        return Constant(tensor.detach(), self.array)

    def array(self, tensor: Tensor) -> str:
        """Name of an array with these numbers; equal ones are the same."""
        tensor = tensor.detach().to(torch.float32).contiguous()
        key = tensor.numpy().tobytes()
        if key not in self._names:
            name = f'w{len(self._names)}'
            self._names[key], self.arrays[name] = name, tensor
        return self._names[key]

    def memory(self, shape: Sequence[int]) -> Memory:
        name = f'm{len(self.sizes)}'
        value = Memory(shape, name, self._reads.add)
        self.sizes[name] = value.numel
        return value

    def pointer(self, value: Value) -> str:
        """The name of a value's memory, for a function that reads it."""
        if isinstance(value, Constant):
            return self.array(value.tensor)
        memory = self.stored(value)
        self._reads.add(memory.name)
        return memory.name

    # -- statements --------------------------------------------------------------------------------------------------
    def add(self, out: Memory, lines: Callable[[], list[str]]) -> Memory:
        """A statement that writes ``out``."""
        self._reads.clear()
        written = lines()
        self.statements.append(Statement(written, self._reads - {out.name}, out.name, self.origin))
        return out

    def call(self, shape: Sequence[int], function: str, inputs: Sequence[Value | None], *numbers: int) -> Memory:
        """``function(pointers to inputs, numbers, pointer to the result)``."""
        inputs = [value if value is None or isinstance(value, Constant) else self.stored(value) for value in inputs]
        out = self.memory(shape)
        return self.add(out, lambda: [f'{function}(' + ', '.join([
            *('NULL' if value is None else self.pointer(value) for value in inputs), *map(str, numbers), out.name])
            + ');'])

    def stored(self, value: Value) -> Memory:
        """Compute an expression into memory; what lies there already remains."""
        if isinstance(value, Memory):
            return value
        out = self.memory(value.shape)
        return self.add(out, lambda: nest(variables(value.shape), lambda index: [
            f'{_element(out, index)} = {unbracketed(value.at(index))};']))

    def reduced(self, value: Value, dims: Sequence[int], keepdim: bool, start: str, step: str,
                end: str = '{}') -> Memory:
        """Sums and the like.

        Args:
            value: of what.
            dims: over which dimensions.
            keepdim: as in PyTorch.
            start, step, end: C of the first value, of the statement that takes an element ``{1}`` into ``{0}``,
                and of the result.
        """
        dims = [dim % len(value.shape) for dim in dims] if dims else [*range(len(value.shape))]
        shape = [1 if dim in dims else size for dim, size in enumerate(value.shape)]
        inner = [value.shape[dim] if dim in dims else 1 for dim in range(len(value.shape))]
        out = self.memory([size for dim, size in enumerate(shape) if keepdim or dim not in dims])

        def element(index: list[Index]) -> list[str]:
            def add(more: list[Index]) -> list[str]:
                at = value.at([a + b for a, b in zip(index, more, strict=True)])
                return [step.format('total', unbracketed(at)) + ';']
            place = [i for dim, i in enumerate(index) if keepdim or dim not in dims]
            return [f'REAL total = {start};', *nest(variables(inner, 'k'), add),
                    f'{_element(out, place)} = {end.format("total")};']
        return self.add(out, lambda: nest(variables(shape), element))

    def product(self, a: Value, b: Value, shape: Sequence[int]) -> Memory:
        """Of matrices, (..., n, k) and (..., k, m)."""
        a, b = (value if value.cost == 0 else self.stored(value) for value in (a, b))
        out = self.memory(shape)

        def element(index: list[Index]) -> list[str]:
            *batch, i, j = index

            def add(k: list[Index]) -> list[str]:
                return [f'total += {a.at([*batch, i, *k])} * {b.at([*batch, *k, j])};']
            return ['REAL total = 0;', *nest(variables([a.shape[-1]], 'k'), add), f'{_element(out, index)} = total;']
        return self.add(out, lambda: nest(variables(shape), element))

    # -- memory ------------------------------------------------------------------------------------------------------
    def layout(self, kept: str) -> tuple[dict[str, int], int]:
        """Places of all memory in one array, and its size: what is read no more gives way; ``kept`` is the output."""
        first: dict[str, int] = {}
        last: dict[str, int] = {}
        for number, statement in enumerate(self.statements):
            first[statement.writes] = last[statement.writes] = number
            for name in statement.reads & set(self.sizes):
                last[name] = number
        last[kept] = len(self.statements)
        places: dict[str, int] = {}
        for name in first:
            others = sorted((places[other], places[other] + self.sizes[other]) for other in places
                            if first[other] <= last[name] and first[name] <= last[other])
            place = 0
            for begin, end in others:
                if place + self.sizes[name] <= begin:
                    break
                place = max(place, end)
            places[name] = place
        return places, max((places[name] + self.sizes[name] for name in places), default=1)


def unbracketed(text: str) -> str:
    """Without brackets around all of it."""
    if not (text.startswith('(') and text.endswith(')')):
        return text
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == '(') - (letter == ')')
        if depth == 0 and i < len(text) - 1:
            return text
    return text[1:-1]


def _element(memory: Memory, index: list[Index]) -> str:
    return Memory(memory.shape, memory.name).at(index)


def variables(shape: Sequence[int], letter: str = 'i') -> list[Variable]:
    return [Variable(f'{letter}{dim}', 0, size) for dim, size in enumerate(shape)]


def nest(loops: list[Variable], body: Body) -> list[str]:
    """Loops around a body, split where it is another one from some values on."""
    try:
        lines = body([Index(v.low) if v.high - v.low == 1 else Index(0, {v: 1}) for v in loops])
    except Split as split:
        if split.variable not in loops:
            raise
        at = loops.index(split.variable)
        parts = [split.variable.low, *split.cuts, split.variable.high]
        return [line for low, high in pairwise(parts) for line in nest(
            [*loops[:at], Variable(split.variable.name, low, high), *loops[at + 1:]], body)]
    loops = [v for v in loops if v.high - v.low != 1]
    for depth, v in reversed([*enumerate(loops)]):
        closing = [] if len(lines) == 1 or depth < len(loops) - 1 else ['}']
        head = f'for (int {v.name} = {v.low}; {v.name} < {v.high}; ++{v.name})' + (' {' if closing else '')
        lines = [head, *('    ' + line for line in lines), *closing]
    return lines if loops or len(lines) == 1 else ['{', *('    ' + line for line in lines), '}']

