// Vectors of floats in the compiler's own terms (GCC and Clang), as wide as the machine has them; tanh, exp, sigmoid.
#pragma once

#include <cstdint>

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t Lanes __attribute__((vector_size(4 * kLanes)));

static inline Vec splat(float value) { return value - Vec{}; }

static inline Vec load(const float* from) {
    Vec v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
}

static inline void store(float* to, Vec v) { __builtin_memcpy(to, &v, sizeof v); }

// The first `count` lanes, zeros in the others; only from `end` on, nothing is read.
static inline Vec first_lanes(const float* from, int64_t count, const float* end) {
    if (count >= kLanes) return load(from);
    if (from + kLanes <= end) {
        Lanes index;
        for (int i = 0; i < kLanes; ++i) index[i] = i;
        return (Vec)((Lanes)load(from) & (index < static_cast<int32_t>(count)));
    }
    Vec v{};
    for (int64_t i = 0; i < count; ++i) v[i] = from[i];
    return v;
}

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Lanes{__VA_ARGS__})
#endif
#if defined(__AVX512F__)
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#else
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define ODD 1, 3, 5, 7, 9, 11, 13, 15
#define LOW 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH 4, 12, 5, 13, 6, 14, 7, 15
#endif

// Of two vectors that follow each other; and back: of `even` and `odd`, the first and the second vector.
static inline Vec even_lanes(Vec a, Vec b) { return SHUFFLE(a, b, EVEN); }
static inline Vec odd_lanes(Vec a, Vec b) { return SHUFFLE(a, b, ODD); }
static inline Vec low_pairs(Vec even, Vec odd) { return SHUFFLE(even, odd, LOW); }
static inline Vec high_pairs(Vec even, Vec odd) { return SHUFFLE(even, odd, HIGH); }

#undef EVEN
#undef ODD
#undef LOW
#undef HIGH
#undef SHUFFLE

// y / (y + 2) with y = expm1(2 |x|) = 2^n expm1(r) + 2^n - 1, n being 2 |x| / ln 2 rounded, by a minimax fit of
// (expm1(r) - r) / r^2. The relative error is below 2e-7, the result never above 1. NaN stays NaN, +-0 stays +-0.
static inline Vec tanh(Vec x) {
    const Vec limit = splat(18.1f), shift = splat(12582912.0f);  // tanh(9.05) is 1; adding 1.5 * 2^23 rounds to integers
    Vec z = (Vec)((Lanes)(x + x) & 0x7fffffff);
    z = z > limit ? limit : z;
    const Vec shifted = z * 1.4426950408889634f + shift;
    const Vec r = z - (shifted - shift) * 0.6931471805599453f;
    const Vec p = (((1.3946448350274122e-3f * r + 8.366584326384902e-3f) * r + 4.1666282047572945e-2f) * r +
                   0.16666542988837843f) * r + 0.5000000061932239f;
    const Vec power = (Vec)(((Lanes)shifted << 23) + 0x3f800000);
    const Vec y = (p * r * r + r) * power + (power - 1.0f);
    return (Vec)((Lanes)(y / (y + 2.0f)) | ((Lanes)x & INT32_MIN));
}

// Relative error below 2e-7; 1e-38 below -87 and finite above 88. NaN stays NaN.
static inline Vec exp(Vec x) {
    const Vec low = splat(-87.3f), high = splat(88.3f), magic = splat(12582912.0f);  // 1.5 * 2^23 rounds to integers
    x = x < low ? low : x;
    x = x > high ? high : x;
    const Vec shifted = x * 1.44269504f + magic, n = shifted - magic;
    const Vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    const Vec p = ((((1.9875691500e-4f * r + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r +
                   1.6666665459e-1f) * r + 5.0000001201e-1f;
    const Lanes power = ((Lanes)shifted - (Lanes)magic + 127) << 23;
    return (p * r * r + r + 1.0f) * (Vec)power;
}

// 0 below -88, however far: x sigmoid(x) is 0 there, too.
static inline Vec sigmoid(Vec x) {
    const Vec y = 1.0f / (1.0f + exp(-x));
    return x < -88.0f ? Vec{} : y;
}
