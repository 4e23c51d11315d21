"""Faults of a data set, gathered by kind: the first five who have each, how many, and the cure."""

from __future__ import annotations

from rkan_mm.engine.run_error import PreflightError

SHOWN = 5


class Faults:
    """What is wrong with one file.

    Args:
        where: name of the file; messages begin with it.
        switch: the setting under ``preflight`` that leaves the check out.
    """

    def __init__(self, where: str, switch: str = 'annotations') -> None:
        self.where, self.switch = where, switch
        self._faults: dict[tuple[str, str], list[str]] = {}
        self._notes: dict[str, list[str]] = {}
        self._lines: list[str] = []

    def add(self, fault: str, who: str, cure: str) -> None:
        """One who has a fault that the run would fail at, or that would make its numbers wrong."""
        self._faults.setdefault((fault, cure), []).append(who)

    def note(self, fault: str, who: object) -> None:
        """One who has a fault that is passed over in silence."""
        self._notes.setdefault(fault, []).append(str(who))

    def say(self, line: str) -> None:
        self._lines.append(line)

    def notes(self) -> list[str]:
        return [f'{len(who)} {fault}: {_some(who)}' for fault, who in self._notes.items()]

    def stop(self) -> None:
        """Raise `PreflightError` if there are faults."""
        lines = [*self._lines]
        for (fault, cure), who in self._faults.items():
            lines.append(f'{_some(who)} {fault}{f" ({len(who)} are so)" if len(who) > 1 else ""}: {cure}')
        if not lines:
            return
        text = f'{self.where}: {lines[0]}' if len(lines) == 1 else '\n  '.join([f'{self.where}:', *lines])
        raise PreflightError(text if self._lines else f'{text}. To run all the same: --cfg-options preflight.'
                             f'{self.switch}=False')


def _some(who: list[str]) -> str:
    return ', '.join(who[:SHOWN]) + (f', ... ({len(who)})' if len(who) > SHOWN else '')
