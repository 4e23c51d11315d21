"""Functions in C that files of nets have where they call them."""

from __future__ import annotations

import re

FUNCTIONS: dict[str, str] = dict(
    larger='static REAL larger(REAL a, REAL b) { return a < b ? b : a; }',
    smaller='static REAL smaller(REAL a, REAL b) { return a > b ? b : a; }',
    relu='static REAL relu(REAL x) { return x < 0 ? 0 : x; }',
    sigmoid='static REAL sigmoid(REAL x) { return 1 / (1 + exp(-x)); }',
    silu='static REAL silu(REAL x) { return x / (1 + exp(-x)); }',
    sign='static REAL sign(REAL x) { return (REAL)((x > 0) - (x < 0)); }',
    power='''\
static REAL power(REAL x, int n)
{
    REAL y = 1;
    while (n-- > 0)
        y *= x;
    return y;
}''',
    conv2d='''\
/* images x channels x height x width -> images x outputs x rows x columns;
   weight is outputs x (channels / groups) x kh x kw */
static void conv2d(const REAL *x, const float *weight, const float *bias, int images, int channels, int height,
                   int width, int outputs, int rows, int columns, int kh, int kw, int sh, int sw, int ph, int pw,
                   int dh, int dw, int groups, REAL *y)
{
    const int inputs = channels / groups;
    for (int n = 0; n < images * outputs; ++n) {
        const int o = n % outputs;
        REAL *map = y + n * rows * columns;
        for (int i = 0; i < rows * columns; ++i)
            map[i] = bias ? bias[o] : 0;
        for (int c = 0; c < inputs; ++c) {
            const int channel = n / outputs * channels + o / (outputs / groups) * inputs + c;
            const REAL *from = x + channel * height * width;
            for (int ky = 0; ky < kh; ++ky) {
                for (int kx = 0; kx < kw; ++kx) {
                    const REAL w = weight[((o * inputs + c) * kh + ky) * kw + kx];
                    const int top = ky * dh - ph, left = kx * dw - pw;
                    int first = left < 0 ? (-left + sw - 1) / sw : 0, end = columns;
                    while (end > first && (end - 1) * sw + left >= width)
                        --end;
                    for (int r = 0; r < rows; ++r) {
                        const int row = r * sh + top;
                        if (row < 0 || row >= height)
                            continue;
                        for (int i = first; i < end; ++i)
                            map[r * columns + i] += w * from[row * width + left + i * sw];
                    }
                }
            }
        }
    }
}''',
    max_pool2d='''\
static void max_pool2d(const REAL *x, int channels, int height, int width, int rows, int columns, int kh, int kw,
                       int sh, int sw, int ph, int pw, int dh, int dw, REAL *y)
{
    for (int i = 0; i < channels * rows * columns; ++i) {
        const REAL *map = x + i / (rows * columns) * height * width;
        const int top = i / columns % rows * sh - ph, left = i % columns * sw - pw;
        REAL best = -INFINITY;
        for (int r = top; r < top + kh * dh; r += dh)
            for (int c = left; c < left + kw * dw; c += dw)
                if (r >= 0 && r < height && c >= 0 && c < width && !(map[r * width + c] <= best))
                    best = map[r * width + c];
        y[i] = best;
    }
}''',
    avg_pool2d='''\
/* with_padding: whether padded elements count */
static void avg_pool2d(const REAL *x, int channels, int height, int width, int rows, int columns, int kh, int kw,
                       int sh, int sw, int ph, int pw, int with_padding, REAL *y)
{
    for (int i = 0; i < channels * rows * columns; ++i) {
        const REAL *map = x + i / (rows * columns) * height * width;
        const int top = i / columns % rows * sh - ph, left = i % columns * sw - pw;
        const int down = top + kh < height + ph ? top + kh : height + ph;
        const int right = left + kw < width + pw ? left + kw : width + pw;
        int count = 0;
        REAL total = 0;
        for (int r = top; r < down; ++r)
            for (int c = left; c < right; ++c) {
                const int inside = r >= 0 && r < height && c >= 0 && c < width;
                count += inside || with_padding;
                if (inside)
                    total += map[r * width + c];
            }
        y[i] = total / (REAL)count;
    }
}''',
    adaptive_avg_pool2d='''\
static void adaptive_avg_pool2d(const REAL *x, int channels, int height, int width, int rows, int columns, REAL *y)
{
    for (int i = 0; i < channels * rows * columns; ++i) {
        const REAL *map = x + i / (rows * columns) * height * width;
        const int r = i / columns % rows, c = i % columns;
        const int top = r * height / rows, down = ((r + 1) * height + rows - 1) / rows;
        const int left = c * width / columns, right = ((c + 1) * width + columns - 1) / columns;
        REAL total = 0;
        for (int j = top; j < down; ++j)
            for (int k = left; k < right; ++k)
                total += map[j * width + k];
        y[i] = total / (REAL)((down - top) * (right - left));
    }
}''')


def used(body: str) -> list[str]:
    """The source of those that a body calls."""
    return [source for name, source in FUNCTIONS.items() if re.search(rf'\b{name}\(', body)]
