"""Places in a tensor, as sums of loop variables, and the loops that run over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Variable:
    """Of a loop: ``low <= name < high``."""

    name: str
    low: int
    high: int


@dataclass(frozen=True)
class Index:
    """``constant + sum of factor * variable``."""

    constant: int = 0
    terms: dict[Variable, int] = field(default_factory=dict, hash=False)

    def __add__(self, other: int | Index) -> Index:
        other = other if isinstance(other, Index) else Index(other)
        terms = dict(self.terms)
        for variable, factor in other.terms.items():
            terms[variable] = terms.get(variable, 0) + factor
        return Index(self.constant + other.constant, {v: factor for v, factor in terms.items() if factor})

    def __mul__(self, factor: int) -> Index:
        return Index(self.constant * factor, {v: f * factor for v, f in self.terms.items()} if factor else {})

    @property
    def low(self) -> int:
        return self.constant + sum(f * (v.low if f > 0 else v.high - 1) for v, f in self.terms.items())

    @property
    def last(self) -> int:
        return self.constant + sum(f * (v.high - 1 if f > 0 else v.low) for v, f in self.terms.items())

    def __str__(self) -> str:
        text = ''
        for variable, factor in self.terms.items():
            term = variable.name if abs(factor) == 1 else f'{abs(factor)} * {variable.name}'
            sign = '-' if factor < 0 else '+' if text else ''
            text += f' {sign} {term}' if text else sign + term
        if not text:
            return str(self.constant)
        return text + (f' {"-" if self.constant < 0 else "+"} {abs(self.constant)}' if self.constant else '')


class Split(Exception):
    """An expression is another one from some values of a variable on."""

    def __init__(self, index: Index, bounds: Sequence[int]) -> None:
        """``bounds``: values of the index at which something else begins."""
        super().__init__()
        (self.variable, factor), *_ = sorted(index.terms.items(), key=lambda item: -abs(item[1]))
        rest = index + Index(0, {self.variable: -factor})
        if len(index.terms) > 1 or abs(factor) != 1:  # by every value, until the others decide
            cuts = set(range(self.variable.low + 1, self.variable.high))
        elif factor > 0:
            cuts = {bound - rest.constant for bound in bounds}
        else:
            cuts = {rest.constant - bound + 1 for bound in bounds}
        self.cuts = sorted(cut for cut in cuts if self.variable.low < cut < self.variable.high)


def part_of(index: Index, sizes: Sequence[int]) -> tuple[int, int]:
    """Which of the parts, laid one behind the other, an index is in, and where that part begins.

    Raises:
        Split: it is not one part for all values of the loops.
    """
    begin, bounds = 0, []
    for number, size in enumerate(sizes):
        if begin <= index.low and index.last < begin + size:
            return number, begin
        begin += size
        bounds.append(begin)
    raise Split(index, bounds)
