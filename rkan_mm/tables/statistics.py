"""Whether rows of a table differ: paired differences with intervals, Student's t, Holm's correction, seeds needed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from rkan_mm.preflight.red import warn_in_red

from .record import disagreements
from .report import values
from .table import Table


@dataclass(frozen=True)
class Comparison:
    """A row against another, over the seeds that both have.

    ``difference`` is the mean, ``low`` and ``high`` bound its 95 % interval, ``p`` is of the paired t test, ``holm`` is
    p after Holm's correction for all comparisons made together; without two seeds these are nan.
    """

    row: str
    seeds: int
    difference: float
    low: float
    high: float
    p: float
    holm: float


def compare(table: Table, against: str | None = None, rows: Collection[str] | None = None,
            seeds: Collection[int] | None = None) -> list[Comparison]:
    """Rows that were run against one, by default the baseline, on the last value (of the test, where there is one).

    What of these runs does not go together is told in red.

    Args:
        rows: that alone are compared, and corrected for; default: all others.
        seeds: that alone count; default: all.

    Raises:
        ValueError: there is no such row, one is to be compared with itself, or the table has no baseline.
    """
    against = against or table.baseline
    rows = [name for name in table.rows if name != against] if rows is None else rows
    for name in (against, *rows):
        if name not in table.rows:
            raise ValueError(f'{table.path}: no row {name!r} to compare with; there are {", ".join(table.rows)}')
    if against in rows:
        raise ValueError(f'{table.path}: row {against!r} would be compared with itself')
    key, results = 'test' if table.test else 'last', table.results()
    compared = [line for line in results if line['row'] in (*rows, against)
                and (seeds is None or int(line['seed']) in seeds)]
    for sentence in disagreements(compared, against):
        warn_in_red(sentence)
    by_seed = {name: {line['seed']: values(table, [line], key)[0] for line in compared if line['row'] == name}
               for name in (*rows, against)}
    paired = {name: np.array([by_seed[name][seed] - theirs for seed, theirs in by_seed[against].items()
                              if seed in by_seed[name]]) for name in rows}
    paired = {name: differences for name, differences in paired.items() if len(differences)}
    tests = {name: _t_test(differences) for name, differences in paired.items()}
    corrected = holm([p for _, _, p in tests.values()])
    return [Comparison(name, len(paired[name]), float(paired[name].mean()), *tests[name], adjusted)
            for name, adjusted in zip(paired, corrected, strict=True)]


def _t_test(differences: np.ndarray) -> tuple[float, float, float]:
    """95 % interval of the mean, and p of its being 0."""
    from scipy import stats
    if len(differences) < 2:
        return np.nan, np.nan, np.nan
    freedom, error = len(differences) - 1, stats.sem(differences)
    reach = stats.t.ppf(0.975, freedom) * error
    mean = differences.mean()
    p = 2 * stats.t.sf(abs(mean) / error, freedom) if error else float(mean == 0)
    return float(mean - reach), float(mean + reach), float(p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Scandinavian Journal of Statistics 6, 1979); nan stays and does not count."""
    p = np.asarray(p_values, float)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind='stable')]
    corrected = np.full(len(p), np.nan)
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return corrected.tolist()


def seeds_needed(difference: float, spread: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """Seeds at which a paired two-sided t test finds a difference with the given power.

    Args:
        difference: that is to be found.
        spread: standard deviation of the paired differences.

    Raises:
        ValueError: ``difference`` is 0 or ``spread`` is not positive.
    """
    from scipy import stats
    if not difference or spread <= 0:
        raise ValueError('seeds_needed: needs a difference other than 0 and a positive spread, got '
                         f'{difference}, {spread}')
    for seeds in range(2, 100_000):
        shift = abs(difference) / spread * seeds ** 0.5
        limit = stats.t.ppf(1 - alpha / 2, seeds - 1)
        if stats.nct.sf(limit, seeds - 1, shift) + stats.nct.cdf(-limit, seeds - 1, shift) >= power:
            return seeds
    raise ValueError(f'seeds_needed: more than 100,000 for a difference of {difference} at a spread of {spread}')


def statistics(table: Table, against: str | None = None, rows: Collection[str] | None = None,
               seeds: Collection[int] | None = None) -> str:
    """`compare` as markdown."""
    against = against or table.baseline
    text = [f'| {table.title} | over {against} | 95 % interval | p | p after Holm | seeds |', '|---' * 6 + '|']
    for each in compare(table, against, rows, seeds):
        rest = '- | - | -'
        if each.seeds > 1:
            rest = f'{each.low:+.2f} to {each.high:+.2f} | {_p(each.p)} | {_p(each.holm)}'
        text.append(f'| {each.row} | {each.difference:+.2f} | {rest} | {each.seeds} |')
    return '\n'.join(text) + '\n'


def _p(value: float) -> str:
    return f'{value:.3f}' if not value < 0.0005 else '< 0.001'
