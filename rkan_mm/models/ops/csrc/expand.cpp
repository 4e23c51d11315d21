// Every element of x becomes the values of P functions: a base function of x, and functions of u(x), u = tanh or nothing.
//
// x is (rows, n), the result (rows, P, n). A grid belongs to a row (row % grids), or, where there is one for each of the
// n elements, to the element; then its arrays hold the elements last, so that a vector of them can be loaded.
#include <omp.h>

#include <algorithm>
#include <cstdint>

#include "vectors.h"

namespace {

constexpr int64_t kParallelFloats = 1 << 14;  // fewer values are not worth a second thread
constexpr int kMaxFunctions = 64;

inline Vec positive(Vec x) { return x <= 0.0f ? Vec{} : x; }  // NaN stays NaN

struct Grid {
    const float *points, *inverse;  // (F, or F x n if each element has its own), 1 / h (1, or n)
    int64_t stride;                 // from a function to the next
    bool own;

    Vec point(int64_t f, int64_t i) const { return own ? load_some(points + f * stride + i, stride - i) : splat(points[f]); }
    Vec scale(int64_t i) const { return own ? load_some(inverse + i, stride - i) : splat(*inverse); }

    static Vec load_some(const float* from, int64_t left) { return first_lanes(from, left, from + left); }
};

// Each kind calls put(f, value) for its functions of u, or, for derivatives, put(f, slope) with respect to u.

// points: a_n, b_n, c_n of P_{n+1} = (a u + b) P_n - c P_{n-1}; P_0 = 1 is left out.
struct Polynomial {
    template <bool Slope, class Put>
    static void visit(Vec u, int64_t functions, const Grid& grid, int64_t, const Put& put) {
        const float *a = grid.points, *b = a + functions, *c = b + functions;
        Vec before{}, value = splat(1.0f), slope_before{}, slope{};
        for (int64_t n = 0; n < functions; ++n) {
            const Vec factor = a[n] * u + b[n];
            if (Slope) {
                const Vec next = factor * slope + a[n] * value - c[n] * slope_before;
                slope_before = slope, slope = next;
            }
            const Vec next = factor * value - c[n] * before;
            before = value, value = next;
            put(n, Slope ? slope : value);
        }
    }
};

// Cardinal B-splines around their middles, as sums of truncated powers of the distance.
template <int Order>
struct Spline {
    template <bool Slope, class Put>
    static void visit(Vec u, int64_t functions, const Grid& grid, int64_t i, const Put& put) {
        const Vec scale = grid.scale(i);
        for (int64_t f = 0; f < functions; ++f) {
            const Vec z = (u - grid.point(f, i)) * scale, distance = z < 0.0f ? -z : z;
            const Vec outer = positive((Order + 1) * 0.5f - distance), inner = positive((Order - 1) * 0.5f - distance);
            if (!Slope) {
                put(f, Order == 1 ? outer
                       : Order == 2 ? 0.5f * outer * outer - 1.5f * inner * inner
                                    : outer * outer * outer * (1.0f / 6) - inner * inner * inner * (2.0f / 3));
            } else {
                const Vec fall = Order == 1   ? (outer > 0.0f ? (z == 0.0f ? Vec{} : splat(1.0f)) : outer)
                                 : Order == 2 ? outer - 3.0f * inner
                                              : 0.5f * outer * outer - 2.0f * inner * inner;
                put(f, (z < 0.0f ? fall : -fall) * scale);
            }
        }
    }
};

struct Gaussian {
    template <bool Slope, class Put>
    static void visit(Vec u, int64_t functions, const Grid& grid, int64_t i, const Put& put) {
        const Vec scale = grid.scale(i), limit = splat(30.0f);
        for (int64_t f = 0; f < functions; ++f) {
            Vec z = (u - grid.point(f, i)) * scale;
            if (Slope) z = z > limit ? limit : z < -limit ? -limit : z;  // whose product with the value is no number
            const Vec value = exp(-z * z);
            put(f, Slope ? -2.0f * z * scale * value : value);
        }
    }
};

struct Switch {  // 1 - tanh^2
    template <bool Slope, class Put>
    static void visit(Vec u, int64_t functions, const Grid& grid, int64_t i, const Put& put) {
        const Vec scale = grid.scale(i);
        for (int64_t f = 0; f < functions; ++f) {
            const Vec t = tanh((u - grid.point(f, i)) * scale), value = 1.0f - t * t;
            put(f, Slope ? -2.0f * t * scale * value : value);
        }
    }
};

struct Problem {
    int64_t rows, n, functions, base, grids;  // base: 0 none, 1 x itself, 2 SiLU. grids: 0 is one for each element
    bool squash, centre;

    int64_t planes() const { return functions + (base > 0); }
    int threads(int64_t wanted) const { return rows * n * planes() < kParallelFloats ? 1 : static_cast<int>(wanted); }
    Grid grid(const float* points, const float* inverse, int64_t row) const {
        if (grids == 0) return {points, inverse, n, true};
        if (inverse == nullptr) return {points, inverse, 1, false};
        return {points + row % grids * functions, inverse + row % grids, 1, false};
    }
};

inline void store_some(float* to, Vec v, int64_t left) {
    if (left >= kLanes) return store(to, v);
    for (int64_t i = 0; i < left; ++i) to[i] = v[i];
}

template <class Kind>
void forward(const Problem& problem, const float* x, const float* points, const float* inverse, float* y,
             int64_t threads) {
    const int64_t rows = problem.rows, n = problem.n, functions = problem.functions, planes = problem.planes();
    const bool base = problem.base, squash = problem.squash;
#pragma omp parallel for num_threads(problem.threads(threads)) schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        const Grid grid = problem.grid(points, inverse, row);
        const float* from = x + row * n;
        float* to = y + row * planes * n;
        float zero[kMaxFunctions] = {};
        if (problem.centre)
            Kind::template visit<false>(Vec{}, functions, grid, 0, [&](int64_t f, Vec value) { zero[f] = value[0]; });
        for (int64_t i = 0; i < n; i += kLanes) {
            const int64_t left = n - i;
            const Vec value = first_lanes(from + i, left, from + n);
            if (base) store_some(to + i, problem.base == 1 ? value : value * sigmoid(value), left);
            float* plane = to + base * n + i;
            Kind::template visit<false>(squash ? tanh(value) : value, functions, grid, i, [&](int64_t f, Vec v) {
                store_some(plane + f * n, v - zero[f], left);
            });
        }
    }
}

template <class Kind>
void backward(const Problem& problem, const float* x, const float* points, const float* inverse, const float* gy,
              float* gx, int64_t threads) {
    const int64_t rows = problem.rows, n = problem.n, functions = problem.functions, planes = problem.planes();
    const bool base = problem.base, squash = problem.squash;
#pragma omp parallel for num_threads(problem.threads(threads)) schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        const Grid grid = problem.grid(points, inverse, row);
        const float* from = x + row * n;
        const float *g = gy + row * planes * n, *end = g + planes * n;
        for (int64_t i = 0; i < n; i += kLanes) {
            const int64_t left = n - i;
            const Vec value = first_lanes(from + i, left, from + n), u = squash ? tanh(value) : value;
            const float* plane = g + base * n + i;
            Vec sum{};
            Kind::template visit<true>(u, functions, grid, i, [&](int64_t f, Vec slope) {
                sum += slope * first_lanes(plane + f * n, left, end);
            });
            if (squash) sum *= 1.0f - u * u;
            if (base) {
                const Vec gradient = first_lanes(g + i, left, end);
                const Vec s = sigmoid(value);
                sum += problem.base == 1 ? gradient : gradient * s * (1.0f + value * (1.0f - s));
            }
            store_some(gx + row * n + i, sum, left);
        }
    }
}

template <class Call>
void choose(int64_t kind, const Call& call) {
    switch (kind) {
        case 0: return call(Polynomial());
        case 1: return call(Spline<1>());
        case 2: return call(Spline<2>());
        case 3: return call(Spline<3>());
        case 4: return call(Gaussian());
        case 5: return call(Switch());
    }
}

Problem read(const int64_t* numbers) {
    return {numbers[1], numbers[2], numbers[3], numbers[4], numbers[5], numbers[6] != 0, numbers[7] != 0};
}

}  // namespace

// Contiguous single-precision arrays: x (rows, n), y (rows, P, n); points and inverse as `Grid` and the kinds want them.
// `numbers`: kind (0 polynomial, 1 to 3 splines of that order, 4 Gaussian, 5 switch), rows, n, functions (up to 64), base
// (0 none, 1 identity, 2 SiLU), grids (0: one for each element), whether u is tanh, whether the values at 0 are subtracted.
extern "C" void expand_forward(const float* x, const float* points, const float* inverse, float* y,
                               const int64_t* numbers, int64_t threads) {
    choose(numbers[0], [&](auto kind) { forward<decltype(kind)>(read(numbers), x, points, inverse, y, threads); });
}

extern "C" void expand_backward(const float* x, const float* points, const float* inverse, const float* gy, float* gx,
                                const int64_t* numbers, int64_t threads) {
    choose(numbers[0], [&](auto kind) { backward<decltype(kind)>(read(numbers), x, points, inverse, gy, gx, threads); });
}
