"""Formulas as browsers show them."""

from __future__ import annotations

from typing import Any

from .missing import require


def mathml(expression: Any) -> str:
    """A sympy expression as MathML; pieces of a function stand below each other, behind a brace."""
    base: Any = require('sympy.printing.mathml', 'A formula').MathMLPresentationPrinter

    class Printer(base):
        def _print_Piecewise(self, piecewise: Any) -> Any:
            row, brace, table = (self.dom.createElement(name) for name in ('mrow', 'mo', 'mtable'))
            brace.appendChild(self.dom.createTextNode('{'))
            table.setAttribute('columnalign', 'left')
            for value, condition in piecewise.args:
                line = self.dom.createElement('mtr')
                text = self.dom.createElement('mtext')
                text.appendChild(self.dom.createTextNode('\u2003otherwise' if condition == True else '\u2003for '))  # noqa: E712
                where = [text] if condition == True else [text, self._print(condition)]  # noqa: E712 - sympy's true
                for parts in ([self._print(value)], where):
                    cell, inner = self.dom.createElement('mtd'), self.dom.createElement('mrow')
                    for part in parts:
                        inner.appendChild(part)
                    cell.appendChild(inner)
                    line.appendChild(cell)
                table.appendChild(line)
            row.appendChild(brace)
            row.appendChild(table)
            return row

    return f'<math>{Printer()._print(expression).toxml()}</math>'
