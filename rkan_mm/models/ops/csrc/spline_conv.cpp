// KAN convolution with B-splines on equal intervals: of the F functions of a pixel only `order + 1` differ from 0, and only
// those are computed and multiplied, instead of a convolution over all F.
//
// Pixels scatter into an image of the full correlation, (H + kh - 1, W + kw - 1, O), of which the middle is the result. With
// the taps of a row in reverse order, a pixel adds to kw * O floats in one piece. Weights are (C, planes, kh, R), R being
// kw * O rounded up to whole vectors; plane 0 is the base function, `order` zero planes stand before and behind the splines.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "vectors.h"

namespace {

struct Problem {
    int64_t batch, channels, height, width, outputs, kh, kw, pad_h, pad_w, functions, base, grids;

    int64_t rows() const { return height + 2 * pad_h; }  // of the padded image
    int64_t columns() const { return width + 2 * pad_w; }
    int64_t pixels() const { return rows() * columns(); }
    int64_t vectors() const { return (kw * outputs + kLanes - 1) / kLanes; }  // of a row of taps
    int64_t pitch() const { return (columns() + kw - 1) * outputs; }          // of a row of the full correlation
    int64_t full() const { return (rows() + kh - 1) * pitch() + kLanes; }     // a vector may end behind the last row
    int64_t plane() const { return kh * vectors() * kLanes; }
    int64_t out_rows() const { return rows() - kh + 1; }
    int64_t out_columns() const { return columns() - kw + 1; }
};

int64_t whole_vectors(int64_t floats) { return (floats + kLanes - 1) / kLanes * kLanes; }

// What a channel's pixels are worth: the first of their planes, the weights of the base and of `order + 1` splines.
template <int Order>
struct Values {
    const int64_t padded;
    float *const x, *const base, *const weights;
    int32_t* const first;

    Values(const Problem& p, float* scratch)
        : padded(whole_vectors(p.pixels())), x(scratch), base(x + padded), weights(base + padded),
          first(reinterpret_cast<int32_t*>(weights + padded * (Order + 1))) {
        std::fill(base, base + padded, 0.0f);
    }

    static int64_t needs(const Problem& p) { return whole_vectors(p.pixels()) * (Order + 4); }

    void fill(const Problem& p, const float* image, float start, float inverse, bool slope) {
        std::fill(x, x + padded, 0.0f);
        for (int64_t row = 0; row < p.height; ++row)
            std::memcpy(&x[(row + p.pad_h) * p.columns() + p.pad_w], image + row * p.width, p.width * sizeof(float));
        const Vec one = splat(1.0f), end = splat(static_cast<float>(p.functions + Order));
        for (int64_t i = 0; i < padded; i += kLanes) {
            const Vec v = load(&x[i]);
            if (p.base == 1) store(&base[i], slope ? one : v);
            if (p.base == 2) {
                const Vec s = sigmoid(v);
                store(&base[i], slope ? s * (1.0f + v * (1.0f - s)) : v * s);
            }
            const Vec t = (v - start) * inverse;
            const Lanes inside = (Lanes)(t >= 0.0f) & (Lanes)(t < end), nan = (Lanes)(v != v);
            const Vec u = (Vec)((Lanes)t & inside);
            const Lanes cell = __builtin_convertvector(u, Lanes);
            const Vec r = u - __builtin_convertvector(cell, Vec), q = one - r;
            Vec w[Order + 1];
            if constexpr (Order == 1) {
                const Vec rise = r == 0.0f ? Vec{} : one;  // on a knot, both sides count for nothing, as in PyTorch
                w[0] = slope ? -rise : q, w[1] = slope ? rise : r;
            } else if constexpr (Order == 2) {
                w[0] = slope ? -q : 0.5f * q * q, w[1] = slope ? 1.0f - 2.0f * r : 0.5f + r * q, w[2] = slope ? r : 0.5f * r * r;
            } else {
                w[0] = slope ? -0.5f * q * q : q * q * q * (1.0f / 6);
                w[1] = slope ? r * (1.5f * r - 2.0f) : (2.0f / 3) - r * r * (1.0f - 0.5f * r);
                w[2] = slope ? -q * (1.5f * q - 2.0f) : (2.0f / 3) - q * q * (1.0f - 0.5f * q);
                w[3] = slope ? 0.5f * r * r : r * r * r * (1.0f / 6);
            }
            for (int j = 0; j <= Order; ++j) {
                const Vec kept = (Vec)(((Lanes)(slope ? w[j] * inverse : w[j]) & inside) | nan);
                for (int lane = 0; lane < kLanes; ++lane) weights[(i + lane) * (Order + 1) + j] = kept[lane];
            }
            for (int lane = 0; lane < kLanes; ++lane) first[i + lane] = cell[lane];
        }
    }
};

// Floats of scratch memory for each part of a batch.
template <int Order>
int64_t needs(const Problem& p, bool backward) {
    return (1 + backward) * Values<Order>::needs(p) + whole_vectors(p.full());
}

// Pictures that have their turn in one piece of scratch memory, one after the other.
struct Part {
    int64_t from, to;

    Part(const Problem& p, int64_t parts, int64_t part) {
        const int64_t each = p.batch / parts, more = p.batch % parts;
        from = part * each + std::min(part, more), to = from + each + (part < more);
    }
};

int64_t parts(const Problem& p, int64_t threads) { return std::min(threads, p.batch); }

// Whoever has no part is in the team, too: OpenMP ends threads that are left out, and the next operation begins them anew.
int team(const Problem& p, int64_t threads) { return static_cast<int>(p.batch > 1 ? threads : 1); }

// Adds what a channel's pixels are worth. Behind a row of taps, the zeros of its last vector meet other pixels: harmless,
// but for NaN and inf, which leave these alone with `Exact`.
template <int Order, bool Exact>
void scatter(const Problem& p, const Values<Order>& values, const float* own, float* full) {
    const int64_t plane = p.plane(), vectors = p.vectors();
    Lanes kept{};
    for (int64_t i = 0; i < p.kw * p.outputs - (vectors - 1) * kLanes; ++i) kept[i] = -1;
    for (int64_t row = 0, i = 0; row < p.rows(); ++row)
        for (int64_t column = 0; column < p.columns(); ++column, ++i) {
            const float *w = &values.weights[i * (Order + 1)], *from = own + (values.first[i] + 1) * plane;
            const float *first = own, base = values.base[i];
            for (int64_t ky = 0; ky < p.kh; ++ky) {
                float* to = &full[(row - ky + p.kh - 1) * p.pitch() + column * p.outputs];
                for (int64_t v = 0; v < vectors; ++v, first += kLanes, from += kLanes, to += kLanes) {
                    const Vec before = load(to);
                    Vec sum = before + base * load(first);
                    for (int j = 0; j <= Order; ++j) sum += w[j] * load(from + j * plane);
                    if (Exact && v == vectors - 1) sum = (Vec)(((Lanes)sum & kept) | ((Lanes)before & ~kept));
                    store(to, sum);
                }
            }
        }
}

bool is_finite(const float* from, int64_t count) {
    Lanes strange{};
    for (int64_t i = 0; i + kLanes <= count; i += kLanes) strange |= load(from + i) - load(from + i) != 0.0f;
    for (int lane = 0; lane < kLanes; ++lane)
        if (strange[lane]) return false;
    return true;
}

template <int Order>
void forward(const Problem& p, const float* x, const float* weight, const float* start, const float* inverse, float* y,
             float* scratch, int64_t threads) {
    const int64_t planes = p.functions + 2 * Order + 1, count = parts(p, threads);
#pragma omp parallel for schedule(static, 1) num_threads(team(p, threads))
    for (int64_t part = 0; part < count; ++part) {
        float* const own_scratch = scratch + part * needs<Order>(p, false);
        Values<Order> values(p, own_scratch);
        float* const full = own_scratch + Values<Order>::needs(p);
        const Part pictures(p, count, part);
        for (int64_t b = pictures.from; b < pictures.to; ++b) {
            const auto add = [&](auto exact) {
                std::fill(full, full + p.full(), 0.0f);
                for (int64_t c = 0; c < p.channels; ++c) {
                    const int64_t grid = p.grids == 1 ? 0 : c;
                    values.fill(p, x + (b * p.channels + c) * p.height * p.width, start[grid], inverse[grid], false);
                    scatter<Order, decltype(exact)::value>(p, values, weight + c * planes * p.plane(), full);
                }
            };
            add(std::false_type());
            if (!is_finite(full, p.full())) add(std::true_type());
            for (int64_t o = 0; o < p.outputs; ++o)
                for (int64_t row = 0; row < p.out_rows(); ++row) {
                    const float* from = &full[(row + p.kh - 1) * p.pitch() + (p.kw - 1) * p.outputs + o];
                    float* to = y + ((b * p.outputs + o) * p.out_rows() + row) * p.out_columns();
                    for (int64_t column = 0; column < p.out_columns(); ++column) to[column] = from[column * p.outputs];
                }
        }
    }
}

// gx may be null. gw is of the form of the weights, one for each part of the batch, and zero.
template <int Order>
void backward(const Problem& p, const float* x, const float* weight, const float* start, const float* inverse,
              const float* gy, float* gx, float* gw, float* scratch, int64_t threads) {
    const int64_t planes = p.functions + 2 * Order + 1, plane = p.plane(), vectors = p.vectors();
    const int64_t count = parts(p, threads);
#pragma omp parallel for schedule(static, 1) num_threads(team(p, threads))
    for (int64_t part = 0; part < count; ++part) {
        float* const own_scratch = scratch + part * needs<Order>(p, true);
        Values<Order> values(p, own_scratch), slopes(p, own_scratch + Values<Order>::needs(p));
        float* const full = own_scratch + 2 * Values<Order>::needs(p);
        std::fill(full, full + p.full(), 0.0f);
        float* sums = gw + part * p.channels * planes * plane;
        const Part pictures(p, count, part);
        for (int64_t b = pictures.from; b < pictures.to; ++b) {
            for (int64_t o = 0; o < p.outputs; ++o)
                for (int64_t row = 0; row < p.out_rows(); ++row) {
                    float* to = &full[(row + p.kh - 1) * p.pitch() + (p.kw - 1) * p.outputs + o];
                    const float* from = gy + ((b * p.outputs + o) * p.out_rows() + row) * p.out_columns();
                    for (int64_t column = 0; column < p.out_columns(); ++column) to[column * p.outputs] = from[column];
                }
            for (int64_t c = 0; c < p.channels; ++c) {
                const int64_t grid = p.grids == 1 ? 0 : c, image = (b * p.channels + c) * p.height * p.width;
                values.fill(p, x + image, start[grid], inverse[grid], false);
                if (gx) slopes.fill(p, x + image, start[grid], inverse[grid], true);
                const int64_t own = c * planes * plane;
                for (int64_t row = 0, i = 0; row < p.rows(); ++row)
                    for (int64_t column = 0; column < p.columns(); ++column, ++i) {
                        const float* w = &values.weights[i * (Order + 1)];
                        const int64_t offset = own + (values.first[i] + 1) * plane;
                        float *to = sums + offset, *to_base = sums + own;
                        for (int64_t ky = 0; ky < p.kh; ++ky) {
                            const float* g = &full[(row - ky + p.kh - 1) * p.pitch() + column * p.outputs];
                            for (int64_t v = 0; v < vectors; ++v, to += kLanes, to_base += kLanes, g += kLanes) {
                                const Vec gradient = load(g);
                                store(to_base, load(to_base) + values.base[i] * gradient);
                                for (int j = 0; j <= Order; ++j)
                                    store(to + j * plane, load(to + j * plane) + w[j] * gradient);
                            }
                        }
                        const int64_t at_row = row - p.pad_h, at_column = column - p.pad_w;
                        if (!gx || at_row < 0 || at_row >= p.height || at_column < 0 || at_column >= p.width) continue;
                        const float *s = &slopes.weights[i * (Order + 1)], *from = weight + offset, *first = weight + own;
                        Vec sum{};
                        for (int64_t ky = 0; ky < p.kh; ++ky) {
                            const float* g = &full[(row - ky + p.kh - 1) * p.pitch() + column * p.outputs];
                            for (int64_t v = 0; v < vectors; ++v, from += kLanes, first += kLanes, g += kLanes) {
                                Vec slope = slopes.base[i] * load(first);
                                for (int j = 0; j <= Order; ++j) slope += s[j] * load(from + j * plane);
                                sum += slope * load(g);
                            }
                        }
                        float total = 0;
                        for (int lane = 0; lane < kLanes; ++lane) total += sum[lane];
                        gx[image + at_row * p.width + at_column] = total;
                    }
            }
        }
    }
}

template <class Call>
auto choose(int64_t order, const Call& call) {
    switch (order) {
        case 1: return call(std::integral_constant<int, 1>());
        case 2: return call(std::integral_constant<int, 2>());
        default: return call(std::integral_constant<int, 3>());
    }
}

Problem read(const int64_t* n) { return {n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10], n[11], n[12]}; }

}  // namespace

extern "C" int64_t spline_conv_lanes() { return kLanes; }

// How many floats of scratch memory the two functions below need for each part of a batch; it has as many as pictures or
// threads, whichever are fewer.
extern "C" int64_t spline_conv_scratch(const int64_t* numbers, int64_t backward) {
    return choose(numbers[0], [&](auto order) { return needs<decltype(order)::value>(read(numbers), backward); });
}

// Contiguous single-precision arrays: x (B, C, H, W), y (B, O, H', W'), weight as above; start and inverse, (grids,), the
// first knot and one over the width of an interval. `numbers`: order (1 to 3), batch, channels, height, width, outputs,
// kernel height and width, padding of both, functions, base (0 none, 1 identity, 2 SiLU), grids (1 or C).
extern "C" void spline_conv_forward(const float* x, const float* weight, const float* start, const float* inverse,
                                    float* y, float* scratch, const int64_t* numbers, int64_t threads) {
    choose(numbers[0], [&](auto order) {
        forward<decltype(order)::value>(read(numbers), x, weight, start, inverse, y, scratch, threads);
    });
}

extern "C" void spline_conv_backward(const float* x, const float* weight, const float* start, const float* inverse,
                                     const float* gy, float* gx, float* gw, float* scratch, const int64_t* numbers,
                                     int64_t threads) {
    choose(numbers[0], [&](auto order) {
        backward<decltype(order)::value>(read(numbers), x, weight, start, inverse, gy, gx, gw, scratch, threads);
    });
}
