"""The page: one HTML file that needs nothing else, its figures as PNG and its data as json."""

from __future__ import annotations

import base64
import html
import itertools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..formulas import Formula

MOST_BYTES = 18_000_000
"""Of figures and formulas within the page; those beyond it stay in their files."""
DPI = 110
TEMPLATE = Path(__file__).with_name('page.html')


@dataclass
class Section:
    """A part of the page: a heading and its blocks, each of which is HTML."""

    title: str
    level: int = 2
    blocks: list[str] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        return re.sub(r'\W+', '-', self.title.lower()).strip('-')

    def text(self, text: str, strong: bool = False) -> None:
        """A paragraph."""
        self.blocks.append(f'<p{" class=verdict" if strong else ""}>{html.escape(text)}</p>')

    def table(self, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table; numbers stand to the right."""
        def cell(value: Any) -> str:
            number = isinstance(value, (int, float))
            text = '–' if value is None or (number and math.isnan(value)) else f'{value:,}' if isinstance(
                value, int) else f'{value:.4g}' if number else str(value)
            return f'<td{" class=number" if number or value is None else ""}>{html.escape(text)}</td>'

        names = ''.join(f'<th>{html.escape(name)}</th>' for name in head)
        body = ''.join(f'<tr>{"".join(map(cell, row))}</tr>' for row in rows)
        self.blocks.append(f'<div class=wide><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>')


class Page:
    """Collects sections and figures, and writes them to a folder.

    Args:
        folder: where ``index.html``, ``data.json`` and ``figures/`` go; it is made.
        title: of the page.
        facts: what it is about, by name.
    """

    def __init__(self, folder: str | Path, title: str, facts: dict[str, str]) -> None:
        self.folder, self.title, self.facts = Path(folder), title, facts
        (self.folder / 'figures').mkdir(parents=True, exist_ok=True)
        self.sections: list[Section] = []
        self.short: list[str] = []
        self.data: dict[str, Any] = dict(title=title, **facts)
        self._bytes = 0
        self._names: set[str] = set()

    def section(self, title: str, level: int = 2) -> Section:
        self.sections.append(Section(title, level))
        return self.sections[-1]

    def figure(self, section: Section, figure: Figure, name: str, caption: str) -> None:
        """Save a figure, and show it in the page while there is room."""
        path = self.folder / 'figures' / f'{self._name(name)}.png'
        figure.savefig(path, dpi=DPI)
        caption = html.escape(caption)
        encoded = base64.b64encode(path.read_bytes()).decode()
        self._show(section, f'<figure><img alt="{caption}" src="data:image/png;base64,{encoded}">'
                            f'<figcaption>{caption}</figcaption></figure>', f'{caption} In figures/{path.name}')

    def formulas(self, section: Section, found: Sequence[Formula], notes: Sequence[str], name: str) -> None:
        """Formulas as such, and what can be copied of them: NumPy and LaTeX; in files where there is no room."""
        shown = [f'<div class=formula><span class=name>{html.escape(one.label)} =</span> {one.mathml()}</div>'
                 for one in found] + [f'<p class=name>{html.escape(note)}</p>' for note in notes]
        code = '\n\n'.join(one.source(re.sub(r'\W+', '_', one.label).strip('_')).strip() for one in found)
        latex = '\n'.join(rf'{one.label} = {one.latex()} \\' for one in found)
        shown += [f'<details><summary>All digits, as {kind}</summary><pre>{html.escape(text)}</pre></details>'
                  for kind, text in (('NumPy', code), ('LaTeX', latex))]
        if not self._show(section, ''.join(shown), f'{len(found)} formulas are in formulas/, as NumPy and LaTeX'):
            stem = self.folder / 'formulas' / self._name(name)
            stem.parent.mkdir(exist_ok=True)
            for suffix, text in (('py', code), ('tex', latex)):
                Path(f'{stem}.{suffix}').write_text(f'{text}\n', encoding='utf-8')

    def _show(self, section: Section, block: str, otherwise: str) -> bool:
        """Whether there is room for a block; if not, the page says where to find it."""
        fits = self._bytes + len(block) <= MOST_BYTES
        self._bytes += len(block) if fits else 0
        section.blocks.append(block if fits else f'<p class=note>{otherwise}: the page would be too large.</p>')
        return fits

    def _name(self, name: str) -> str:
        """Of a file, and of no other of this page: data sets have pictures of one name in several folders."""
        stem = re.sub(r'[^A-Za-z0-9_.-]+', '-', name)
        for number in itertools.count(2):
            if stem not in self._names:
                break
            stem = f'{re.sub("[^A-Za-z0-9_.-]+", "-", name)}-{number}'
        self._names.add(stem)
        return stem

    def write(self) -> Path:
        """Write the page and its data.

        Returns:
            Path of the page.
        """
        facts = ''.join(f'<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>'
                        for name, value in self.facts.items())
        contents = ''.join(f'<li><a href="#{section.anchor}">{html.escape(section.title)}</a></li>'
                           for section in self.sections if section.level == 2)
        body = ''.join(f'<section><h{section.level} id="{section.anchor}">{html.escape(section.title)}'
                       f'</h{section.level}>{"".join(section.blocks)}</section>' for section in self.sections)
        short = ''.join(f'<li>{html.escape(sentence)}</li>' for sentence in self.short)
        page = TEMPLATE.read_text()
        for name, value in dict(title=html.escape(self.title), facts=facts, contents=contents, short=short).items():
            page = page.replace(f'{{{{ {name} }}}}', value)
        path = self.folder / 'index.html'
        path.write_text(page.replace('{{ body }}', body), encoding='utf-8')
        (self.folder / 'data.json').write_text(json.dumps(_plain(self.data), indent=1), encoding='utf-8')
        return path


def _plain(value: Any) -> Any:
    """For json: numbers that are none become null."""
    if isinstance(value, dict):
        return {str(key): _plain(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(child) for child in value]
    if hasattr(value, 'tolist'):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
