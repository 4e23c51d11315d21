"""A net as the text of a file in C."""

from __future__ import annotations

import re
from collections.abc import Sequence
from textwrap import indent, wrap

from torch import Tensor, nn

import rkan_mm
from rkan_mm.deploy.errors import UnsupportedModelError

from .functions import used
from .graph import Reader, traced
from .program import Program
from .values import literal

MOST_NUMBERS = 1_000_000
"""Of a file: it is text, and meant for small nets."""

HEAD = '''/*
 * {title}, written by rkan_mm {version}.
 *
 * int {name}_predict(const float *image, float *scores)
 *     image: {channels} x {height} x {width} numbers, {kind}, row by row{planes}
 *     scores: {outputs} numbers{meaning}
 *     returns the place of the largest of them
 *
 * C99, standard library alone: cc -std=c99 -O2 -c {name}.c, and -lm for the program. It keeps {working} numbers between
 * its steps in static memory, so two threads must not call it at once. With -DREAL=double it computes in double
 * precision, with -D{main} it is a program for pictures in PGM or PPM of this size: ./{name} picture.ppm
 */
#include <math.h>
#include <stddef.h>
#include <tgmath.h>
#ifdef {main}
#include <stdio.h>
#endif

#ifndef REAL
#define REAL float
#endif

#define {upper}_CHANNELS {channels}
#define {upper}_HEIGHT {height}
#define {upper}_WIDTH {width}
#define {upper}_OUTPUTS {outputs}

int {name}_predict(const float *image, float *scores);
'''
MAIN = '''
#ifdef {main}
static int number(FILE *file)
{{
    int n = 0, c = getc(file);
    while (c == '#' || c == ' ' || c == '\\t' || c == '\\r' || c == '\\n') {{
        if (c == '#')
            while (c != '\\n' && c != EOF)
                c = getc(file);
        c = getc(file);
    }}
    for (; c >= '0' && c <= '9'; c = getc(file))
        n = 10 * n + c - '0';
    return n;
}}

int main(int argc, char **argv)
{{
    static float image[{upper}_CHANNELS * {upper}_HEIGHT * {upper}_WIDTH], scores[{upper}_OUTPUTS];
    const int pixels = {upper}_HEIGHT * {upper}_WIDTH;
    FILE *file = argc == 2 ? fopen(argv[1], "rb") : NULL;
    if (file == NULL || getc(file) != 'P' || getc(file) != ({upper}_CHANNELS == 1 ? '5' : '6')
        || number(file) != {upper}_WIDTH || number(file) != {upper}_HEIGHT || number(file) != 255) {{
        fprintf(stderr, "give a binary {format} of %d x %d pixels\\n", {upper}_WIDTH, {upper}_HEIGHT);
        return 2;
    }}
    for (int i = 0; i < {upper}_CHANNELS * pixels; ++i)
        image[i % {upper}_CHANNELS * pixels + i / {upper}_CHANNELS] = (float)getc(file);
    fclose(file);
    const int best = {name}_predict(image, scores);
    for (int i = 0; i < {upper}_OUTPUTS; ++i)
        printf("%s%s %.6f\\n", i == best ? "* " : "  ", {label}, (double)scores[i]);
    return 0;
}}
#endif
'''


def c_source(net: nn.Module, image: Tensor, name: str = 'net', title: str | None = None, kind: str = 'float',
             classes: Sequence[str] = ()) -> str:
    """A net as one file of C99.

    Args:
        net: in eval mode, whose result is one tensor, or a tuple of one.
        image: (1, C, H, W) or (1, features), an example.
        name: what its functions are called after.
        title, kind: of the net and its input, for the comment at the head.
        classes: names of the results.

    Raises:
        UnsupportedModelError: an operation is not known in C, or the net has too many numbers.

    Example:
        >>> print(c_source(KANLinear(2, 1), torch.zeros(1, 2)))
    """
    name = re.sub(r'\W', '_', name, flags=re.ASCII)
    name = f'net_{name}' if not name[:1].isalpha() else name
    program = Program()
    given, result = Reader(traced(net, image), program).read()
    places, working = program.layout(result.name)
    body, origin = [], None
    for statement in program.statements:
        if statement.origin != origin:
            origin = statement.origin
            body += [f'/* {origin} */'] if origin else []
        body += statement.lines
    arrays = {key: array for key, array in program.arrays.items() if re.search(rf'\b{key}\b', '\n'.join(body))}
    count = sum(array.numel() for array in arrays.values())
    if count > MOST_NUMBERS:
        raise UnsupportedModelError(f'{type(net).__name__} has {count:,} numbers; a file in C holds {MOST_NUMBERS:,} '
                                    'at most: export it as onnx.')
    pointers = [f'REAL *const {memory} = working + {place}; /* {program.sizes[memory]} */'
                for memory, place in places.items()]
    shape = [1] * (4 - len(given.shape)) + [*given.shape] if len(given.shape) > 2 else [1, 1, 1, given.numel]
    upper, outputs = name.upper(), result.numel
    words = dict(name=name, upper=upper, main=f'{upper}_MAIN', channels=shape[1], height=shape[2], width=shape[3],
                 outputs=outputs, working=working, title=title or type(net).__name__, kind=kind,
                 planes=', one channel after the other' if shape[1] > 1 else '',
                 version=rkan_mm.__version__, format='PGM' if shape[1] == 1 else 'PPM', meaning='',
                 label=f'{name}_classes[i]' if classes else '""')
    if classes:
        words['meaning'] = f', probabilities of the classes that {name}_classes names'
    text = HEAD.format(**words)
    if classes:
        names = ', '.join(_quoted(each) for each in classes)
        text += f'extern const char *const {name}_classes[{outputs}];\n'
        text += f'const char *const {name}_classes[{outputs}] = {{\n{_lines(names)}\n}};\n'
    text += ''.join(f'\nstatic const float {key}[{array.numel()}] = {{ /* {" x ".join(map(str, array.shape))} */\n'
                    f'{_lines(", ".join(literal(number).strip("()") for number in array.flatten().tolist()))}\n}};\n'
                    for key, array in arrays.items())
    unread = [] if re.search(r'\bimage\b', '\n'.join(body)) else ['(void)image;']
    lines = [f'static REAL working[{working}];', *pointers, *unread, *body,
             'int best = 0;', f'for (int i = 0; i < {outputs}; ++i) {{', f'    scores[i] = (float){result.name}[i];',
             f'    if ({result.name}[i] > {result.name}[best])', '        best = i;', '}', 'return best;']
    function = '\n'.join(lines)
    text += ''.join(f'\n{source}\n' for source in used(function))
    text += f'\nint {name}_predict(const float *image, float *scores)\n{{\n{indent(function, "    ")}\n}}\n'
    return text + MAIN.format(**words)


def _quoted(text: str) -> str:
    """As a string of C."""
    safe = [chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\?' else f'\\{byte:03o}' for byte in text.encode()]
    return f'"{"".join(safe)}"'


def _lines(numbers: str) -> str:
    return '\n'.join(wrap(numbers, 116, initial_indent='    ', subsequent_indent='    ', break_long_words=False,
                          break_on_hyphens=False))
