"""Tensors of a graph as C sees them: numbers, memory, or an expression that is computed where it is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .index import Index

At = Callable[[Sequence[Index]], str]


class Value:
    """A tensor.

    Args:
        shape: its sizes.
        at: the C expression of an element.
        cost: how much is computed for it; 0 if it is only read.
    """

    def __init__(self, shape: Sequence[int], at: At, cost: int = 0) -> None:
        self.shape, self.at, self.cost = tuple(shape), at, cost

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def mapped(self, shape: Sequence[int], move: Callable[[Sequence[Index]], Sequence[Index]]) -> Value:
        """Its elements at other places."""
        return Value(shape, lambda index: self.at(move(index)), self.cost)

    def broadcast(self, shape: Sequence[int]) -> Value:
        """As PyTorch does it."""
        if self.shape == tuple(shape):
            return self
        missing = len(shape) - len(self.shape)
        ones = [size == 1 for size in self.shape]
        return self.mapped(shape, lambda index: [
            Index(0) if one else i for one, i in zip(ones, index[missing:], strict=True)])


class Constant(Value):
    """Numbers that are known.

    Args:
        tensor: the numbers.
        name: gives the name of an array of the file that holds a tensor.

    Attributes:
        number: the one that all elements are, or None.
    """

    def __init__(self, tensor: Tensor, name: Callable[[Tensor], str]) -> None:
        self.tensor = tensor
        for dim in range(tensor.dim()):  # what is the same along a dimension is written once
            if tensor.shape[dim] > 1 and (tensor == tensor.narrow(dim, 0, 1)).all():
                tensor = tensor.narrow(dim, 0, 1)
        self.number = float(tensor) if tensor.numel() == 1 else None

        def at(index: Sequence[Index]) -> str:
            where = place(tensor.shape, index)
            return f'{name(tensor)}[{where}]' if where.terms else literal(tensor.flatten()[where.constant].item())
        super().__init__(self.tensor.shape, at)


class Memory(Value):
    """Elements that lie one behind the other.

    Args:
        shape: its sizes.
        name: of the pointer.
        read: is told that it is read.
    """

    def __init__(self, shape: Sequence[int], name: str, read: Callable[[str], None] = lambda name: None) -> None:
        self.name, self.read = name, read

        def at(index: Sequence[Index]) -> str:
            read(name)
            return f'{name}[{place(self.shape, index)}]'
        super().__init__(shape, at)

    def reshaped(self, shape: Sequence[int]) -> Memory:
        return Memory(shape, self.name, self.read)


def place(shape: Sequence[int], index: Sequence[Index]) -> Index:
    """Where an element of a contiguous tensor lies; dimensions of size 1 do not count."""
    result, stride = Index(0), 1
    for size, i in zip(reversed(shape), reversed(index), strict=True):
        if size > 1:
            result = i * stride + result
        stride *= size
    return result


def literal(number: float | int | bool) -> str:
    """A number of single precision in C."""
    number = float(torch.tensor(float(number), dtype=torch.float32))
    if math.isnan(number):
        return 'NAN'
    if math.isinf(number):
        return 'INFINITY' if number > 0 else '(-INFINITY)'
    text = f'{number:.9g}'
    text = text if any(mark in text for mark in '.en') else text + '.0'
    return f'({text}f)' if number < 0 else f'{text}f'
