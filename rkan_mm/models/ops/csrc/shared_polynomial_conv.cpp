// y = constant + sum over taps p of w_p x_p + sum_{n=1}^d c_{n,p} u(x_p)^n with u = tanh or nothing, one plane at a time.
//
// A plane (H, W) is split by the strides into `stride_h * stride_w` phases: the rows and columns that one tap can meet.
// All phases lie in a thread's scratch memory with the same row length (the pitch), zero padding included; the zeros
// right of one row are those left of the next. Then tap p of output i is element i + offset_p of its phase, for whatever
// kernel, stride, padding and dilation, and one loop over flat memory, a vector at a time, serves rows of any length.
// Planes that are large are taken a band of rows at a time. Where the channels of a pixel lie together in memory
// (channels_last), so do kGroup of them in the scratch memory: a plane of groups, treated as one of numbers is.
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "vectors.h"

namespace {

constexpr int kMaxDegree = 6;
constexpr int64_t kGroup = 16;                // a cache line; channels_last needs a multiple of so many channels
constexpr int64_t kBandFloats = 1 << 12;      // of one scratch array: a thread's arrays stay in its caches
constexpr int64_t kParallelFloats = 1 << 14;  // a smaller input is not worth a second thread
constexpr int64_t kMaxChunks = 64;            // parts of the planes, each with weight gradients of its own
constexpr int64_t kMaxSteps = 256;            // additions in single precision before they move on to a double
constexpr int64_t kMargin = 4 * kLanes;       // what loops over vectors may touch behind the last element

int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// One direction of the window. Of the input's elements, those with the same residue modulo the stride form a phase.
struct Axis {
    int64_t size, out, kernel, stride, padding, dilation;

    int64_t residue(int64_t tap) const {
        const int64_t position = tap * dilation - padding;
        return position - floor_div(position, stride) * stride;
    }
    int64_t shift(int64_t tap) const { return tap * dilation / stride; }  // from an output to what the tap meets there
    int64_t max_shift() const { return shift(kernel - 1); }
    int64_t lead(int64_t residue) const { return (residue + padding) / stride; }  // zeros before the data
    int64_t count(int64_t residue) const { return residue < size ? ceil_div(size - residue, stride) : 0; }
    int64_t extent() const {  // elements of the longest phase, zeros behind it left out
        int64_t longest = out;
        for (int64_t r = 0; r < stride; ++r) longest = std::max(longest, lead(r) + count(r));
        return longest;
    }
    int64_t pitch() const {  // as extent, and so that a tap that runs over the end meets zeros of the next row
        int64_t pitch = extent();
        for (int64_t tap = 0; tap < kernel; ++tap)
            pitch = std::max(pitch, out + shift(tap) - lead(residue(tap)));
        return pitch;
    }
};

struct Tap {
    int64_t phase, offset;
};

// How far the pixels of a plane are from each other in memory, and how many channels are taken together.
struct Layout {
    int64_t pixel, group;
};

struct Problem {
    int64_t degree;
    bool squash, base;
    Axis h, w;
    Layout layout;
    int64_t planes, pitch, phases, band;
    std::vector<Tap> taps;

    Problem(const int64_t* n, bool base)
        : degree(n[2]), squash(n[3]), base(base), h{n[4], n[6], n[8], n[10], n[12], n[14]},
          w{n[5], n[7], n[9], n[11], n[13], n[15]}, layout{n[1], n[1] == 1 ? 1 : kGroup}, planes(n[0] / layout.group),
          pitch(w.pitch() * layout.group), phases(h.stride * w.stride) {
        const int64_t floats = layout.group == 1 ? kBandFloats : 4 * kBandFloats;
        band = std::max<int64_t>(1, floats / (phases * pitch) - h.max_shift());
        for (int64_t i = 0; i < h.kernel; ++i)
            for (int64_t j = 0; j < w.kernel; ++j)
                taps.push_back({h.residue(i) * w.stride + w.residue(j), h.shift(i) * pitch + w.shift(j) * layout.group});
    }

    int64_t inputs() const { return h.size * w.size; }
    int64_t outputs() const { return h.out * w.out; }
    // Where a plane starts in an array whose planes have so many pixels.
    int64_t start(int64_t plane, int64_t pixels) const {
        const int64_t groups = layout.pixel / layout.group;
        return plane / groups * pixels * layout.pixel + plane % groups * layout.group;
    }
    int64_t end(int64_t pixels) const { return planes * layout.group * pixels; }
    int64_t terms() const { return degree + base; }
    int threads(int64_t wanted) const { return end(inputs()) < kParallelFloats ? 1 : static_cast<int>(wanted); }
    int64_t phase_floats(int64_t rows) const {
        return ceil_div(rows * pitch + w.max_shift() * layout.group + kMargin, kLanes) * kLanes;
    }
};

// Zeroed scratch memory of one thread, handed out in vectors.
class Arena {
public:
    Arena(float* memory, int64_t floats) : memory_(memory) { std::memset(memory_, 0, 4 * floats); }
    float* take(int64_t floats) {
        float* start = memory_ + used_;
        used_ += floats;
        return start;
    }

private:
    float* memory_;
    int64_t used_ = 0;
};

void copy_few(float* to, const float* from, int64_t count) {
    for (int64_t i = 0; i < count; ++i) to[i] = from[i];
}

// `Stride` rows of phases from (split) or into (join) one row of the input; 0 is any stride, and any layout. What is read as a whole
// vector ends before `from_end` and what is written before `to_end`, but for splitting, where zeros follow a row.
template <int Stride>
struct Row;

template <>
struct Row<1> {
    static void split(int64_t size, int64_t, Layout, const float* from, const float* from_end, float* to, const int64_t* starts) {
        to += starts[0];
        int64_t i = 0;
        for (; i + kLanes <= size; i += kLanes) store(to + i, load(from + i));
        if (i < size) store(to + i, first_lanes(from + i, size - i, from_end));
    }

    static void join(int64_t size, int64_t, Layout, const float* from, const int64_t* starts, float* to, const float* to_end) {
        from += starts[0];
        int64_t i = 0;
        for (; i + kLanes <= size; i += kLanes) store(to + i, load(from + i));
        if (i == size) return;
        if (to + i + kLanes <= to_end)
            store(to + i, load(from + i));
        else
            copy_few(to + i, from + i, size - i);
    }
};

template <>
struct Row<2> {
    static void split(int64_t size, int64_t, Layout, const float* from, const float* from_end, float* to,
                      const int64_t* starts) {
        for (int64_t i = 0; 2 * i < size; i += kLanes) {
            const int64_t left = size - 2 * i;
            const Vec a = first_lanes(from + 2 * i, left, from_end);
            const Vec b = left > kLanes ? first_lanes(from + 2 * i + kLanes, left - kLanes, from_end) : Vec{};
            store(to + starts[0] + i, even_lanes(a, b));
            store(to + starts[1] + i, odd_lanes(a, b));
        }
    }

    static void join(int64_t size, int64_t, Layout, const float* from, const int64_t* starts, float* to, const float* to_end) {
        for (int64_t i = 0; 2 * i < size; i += kLanes) {
            const Vec even = load(from + starts[0] + i), odd = load(from + starts[1] + i);
            const Vec parts[2] = {low_pairs(even, odd), high_pairs(even, odd)};
            for (int half = 0; half < 2; ++half) {
                const int64_t start = 2 * i + half * kLanes, left = size - start;
                if (left <= 0) break;
                if (left >= kLanes || to + start + kLanes <= to_end) {
                    store(to + start, parts[half]);
                } else {
                    float last[kLanes];
                    store(last, parts[half]);
                    copy_few(to + start, last, left);
                }
            }
        }
    }
};

template <>
struct Row<0> {
    static void split(int64_t size, int64_t stride, Layout layout, const float* from, const float*, float* to,
                      const int64_t* starts) {
        for (int64_t r = 0; r < stride; ++r)
            for (int64_t i = r, j = starts[r]; i < size; i += stride, j += layout.group)
                copy_group(to + j, from + i * layout.pixel, layout.group);
    }

    static void join(int64_t size, int64_t stride, Layout layout, const float* from, const int64_t* starts, float* to,
                     const float*) {
        for (int64_t r = 0; r < stride; ++r)
            for (int64_t i = r, j = starts[r]; i < size; i += stride, j += layout.group)
                copy_group(to + i * layout.pixel, from + j, layout.group);
    }

private:
    static void copy_group(float* to, const float* from, int64_t group) {
        if (group == 1)
            *to = *from;
        else
            for (int64_t k = 0; k < kGroup; k += kLanes) store(to + k, load(from + k));
    }
};

// Rows [first, first + rows) of all phases of a plane, x, and of their u(x), t. In memory there are zeros between them.
class Phases {
public:
    struct Range {
        int64_t begin, start, vectors;  // first row with data, its place in x and t, and how much data follows
    };
    const int64_t floats;  // of one phase
    float *const x, *const t;
    std::vector<Range> ranges;  // of each phase

    // `floats` for each phase, kMargin of them behind the last row.
    Phases(const Axis& h, const Axis& w, Layout layout, int64_t pitch, int64_t floats, bool squash, Arena& arena)
        : floats(floats), x(arena.take(h.stride * w.stride * floats)),
          t(squash ? arena.take(h.stride * w.stride * floats) : x), h_(h), w_(w), layout_(layout),
          pitch_(pitch) {
        for (int64_t c = 0; c < w.stride; ++c) starts_.push_back(c * floats + w.lead(c) * layout.group);
    }

    static int64_t needs(const Problem& problem, int64_t floats) {
        return (1 + problem.squash) * problem.phases * floats;
    }

    // Work out where everything lies. The same rows of another plane lie in the same places.
    void choose_rows(int64_t first, int64_t rows) {
        if (first == first_ && rows == rows_) return;
        first_ = first, rows_ = rows;
        rows_of_plane_.clear();
        ranges.clear();
        std::memset(x, 0, 4 * h_.stride * w_.stride * floats);
        std::memset(t, 0, 4 * h_.stride * w_.stride * floats);
        const int64_t last = std::min(h_.size, (first + rows) * h_.stride - h_.padding);
        for (int64_t row = std::max<int64_t>(0, first * h_.stride - h_.padding); row < last; ++row) {
            const int64_t r = row % h_.stride, i = row / h_.stride + h_.lead(r) - first;
            rows_of_plane_.push_back({row * w_.size * layout_.pixel, r * w_.stride * floats + i * pitch_});
        }
        for (int64_t r = 0; r < h_.stride; ++r) {
            const int64_t begin = std::clamp<int64_t>(h_.lead(r) - first, 0, rows);
            const int64_t end = std::clamp<int64_t>(h_.lead(r) + h_.count(r) - first, 0, rows);
            for (int64_t c = 0; c < w_.stride; ++c)
                ranges.push_back({begin, (r * w_.stride + c) * floats + begin * pitch_,
                                  ceil_div((end - begin) * pitch_, kLanes)});
        }
    }

    void load(const float* plane, const float* end) {
        const int64_t stride = layout_.group == 1 ? w_.stride : 0;
        stride == 1 ? split<1>(plane, end) : stride == 2 ? split<2>(plane, end) : split<0>(plane, end);
        if (t == x) return;
        for (const Range& range : ranges)
            for (int64_t i = range.start; i < range.start + range.vectors * kLanes; i += kLanes)
                store(t + i, tanh(::load(x + i)));
    }

    // What lies in `from` as the rows do in x, into their plane.
    void save(const float* from, float* plane, const float* end) const {
        const int64_t stride = layout_.group == 1 ? w_.stride : 0;
        stride == 1 ? join<1>(from, plane, end) : stride == 2 ? join<2>(from, plane, end) : join<0>(from, plane, end);
    }

private:
    struct Places {
        int64_t in_plane, in_phases;
    };
    const Axis h_, w_;
    const Layout layout_;
    const int64_t pitch_;
    int64_t first_ = -1, rows_ = -1;
    std::vector<int64_t> starts_;        // of the rows in the phases of one row
    std::vector<Places> rows_of_plane_;  // in their order: a vector may run over a row's end

    template <int Stride>
    void split(const float* plane, const float* end) {
        for (const auto& [in_plane, in_phases] : rows_of_plane_)
            Row<Stride>::split(w_.size, w_.stride, layout_, plane + in_plane, end, x + in_phases, starts_.data());
    }

    template <int Stride>
    void join(const float* from, float* plane, const float* end) const {
        for (const auto& [in_plane, in_phases] : rows_of_plane_)
            Row<Stride>::join(w_.size, w_.stride, layout_, from + in_phases, starts_.data(), plane + in_plane, end);
    }
};

// Calls `block` for as many blocks of `Count` vectors as there are, then for one block of the rest.
template <int Count, class Block>
void in_blocks(int64_t vectors, const Block& block, int64_t done = 0) {
    for (; done + Count <= vectors; done += Count) block(std::integral_constant<int, Count>(), done);
    if constexpr (Count > 1)
        if (done < vectors) in_blocks<Count - 1>(vectors, block, done);
}

// Coefficients by tap: w if there is a base, then c_1 ... c_d, each times its power if they are for the derivative.
std::vector<float> by_tap(const Problem& problem, const float* weight, const float* base_weight, bool derivative) {
    const int64_t taps = problem.taps.size();
    std::vector<float> result;
    for (int64_t k = 0; k < taps; ++k) {
        if (problem.base) result.push_back(base_weight[k]);
        for (int64_t n = 1; n <= problem.degree; ++n) result.push_back((derivative ? n : 1) * weight[n * taps + k]);
    }
    return result;
}

// `Kernels::get<Degree, Base>()` for the degree and the base of a problem.
template <class Kernels, int Degree = 1>
auto select(const Problem& problem) {
    if constexpr (Degree < kMaxDegree)
        if (problem.degree > Degree) return select<Kernels, Degree + 1>(problem);
    return problem.base ? Kernels::template get<Degree, true>() : Kernels::template get<Degree, false>();
}

// ---------------------------------------------------------------------------------------------------------- forward

struct Evaluate {
    // `Count` vectors of outputs. The taps' elements for the first output are at taps[k] in x and t.
    template <int Degree, bool Base, int Count>
    static void block(const float* x, const float* t, const int64_t* taps, int64_t count, const float* coefficients,
                      float constant, float* y) {
        Vec sum[Count];
#pragma GCC unroll 8
        for (int i = 0; i < Count; ++i) sum[i] = splat(constant);
        for (int64_t k = 0; k < count; ++k, coefficients += Degree + Base) {
            const float *c = coefficients + Base, *u = t + taps[k], *v = x + taps[k];
#pragma GCC unroll 8
            for (int i = 0; i < Count; ++i) {
                const Vec power = load(u + i * kLanes);
                if (Base) sum[i] += coefficients[0] * load(v + i * kLanes);
                Vec value = splat(c[Degree - 1]);
#pragma GCC unroll 8
                for (int n = Degree - 2; n >= 0; --n) value = value * power + c[n];
                sum[i] += value * power;
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < Count; ++i) store(y + i * kLanes, sum[i]);
    }

    template <int Degree, bool Base>
    static void run(const float* x, const float* t, const int64_t* taps, int64_t count, const float* coefficients,
                    float constant, float* y, int64_t vectors) {
        in_blocks<Degree < 4 ? 7 : 4>(vectors, [&](auto size, int64_t i) {
            block<Degree, Base, size>(x + i * kLanes, t + i * kLanes, taps, count, coefficients, constant,
                                      y + i * kLanes);
        });
    }

    template <int Degree, bool Base>
    static auto get() {
        return run<Degree, Base>;
    }
};

struct ForwardScratch {
    int64_t max_rows, x_floats, y_floats, total;  // of the outputs, at a time; of each array; of a thread

    explicit ForwardScratch(const Problem& problem)
        : max_rows(std::min(problem.band, problem.h.out)),
          x_floats(problem.phase_floats(max_rows + problem.h.max_shift())), y_floats(problem.phase_floats(max_rows)),
          total(Phases::needs(problem, x_floats) + y_floats) {}
};

void forward(const Problem& problem, const float* x, const float* weight, const float* base_weight, float* y,
             float* scratch, int64_t threads) {
    const Axis &h = problem.h, &w = problem.w;
    const ForwardScratch sizes(problem);
    const int64_t max_rows = sizes.max_rows, x_floats = sizes.x_floats, y_floats = sizes.y_floats;
    const auto coefficients = by_tap(problem, weight, base_weight, false);
    double constant = 0;
    for (size_t k = 0; k < problem.taps.size(); ++k) constant += weight[k];
    const auto evaluate = select<Evaluate>(problem);
    const Layout layout = problem.layout;
    const float* x_end = x + problem.end(problem.inputs());

#pragma omp parallel num_threads(problem.threads(threads))
    {
        Arena arena(scratch + omp_get_thread_num() * sizes.total, sizes.total);
        Phases phases(h, w, layout, problem.pitch, x_floats, problem.squash, arena);
        float* flat = arena.take(y_floats);
        std::vector<int64_t> taps;
        for (const Tap& tap : problem.taps) taps.push_back(tap.phase * x_floats + tap.offset);
        const int64_t start = 0;
#pragma omp for schedule(static)
        for (int64_t plane = 0; plane < problem.planes; ++plane) {
            float *to = y + problem.start(plane, problem.outputs()), *to_end = to + problem.outputs();
            for (int64_t first = 0; first < h.out; first += max_rows) {
                const int64_t rows = std::min(max_rows, h.out - first);
                phases.choose_rows(first, rows + h.max_shift());
                phases.load(x + problem.start(plane, problem.inputs()), x_end);
                evaluate(phases.x, phases.t, taps.data(), taps.size(), coefficients.data(), constant, flat,
                         ceil_div((rows - 1) * problem.pitch + w.out * layout.group, kLanes));
                const auto save = [&](auto row) {
                    for (int64_t i = 0; i < rows; ++i)
                        decltype(row)::join(w.out, 1, layout, flat + i * problem.pitch, &start,
                                            to + (first + i) * w.out * layout.pixel, to_end);
                };
                layout.group == 1 ? save(Row<1>()) : save(Row<0>());
            }
        }
    }
}

// --------------------------------------------------------------------------------------------------------- backward

struct InputGradient {
    // `Count` vectors of gradients of the input from the outputs' at g - taps[k].
    template <int Degree, bool Base, int Count>
    static void block(const float* t, const float* g, const int64_t* taps, int64_t count, const float* coefficients,
                      bool squash, float* gradient) {
        Vec sum[Degree + Base][Count] = {};
        for (int64_t k = 0; k < count; ++k, coefficients += Degree + Base) {
#pragma GCC unroll 8
            for (int i = 0; i < Count; ++i) {
                const Vec value = load(g - taps[k] + i * kLanes);
#pragma GCC unroll 8
                for (int n = 0; n < Degree + Base; ++n) sum[n][i] += coefficients[n] * value;
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < Count; ++i) {
            const Vec power = load(t + i * kLanes);
            Vec value = sum[Degree + Base - 1][i];
#pragma GCC unroll 8
            for (int n = Degree + Base - 2; n >= Base; --n) value = value * power + sum[n][i];
            if (squash) value = value * (1.0f - power * power);
            if (Base) value = value + sum[0][i];
            store(gradient + i * kLanes, value);
        }
    }

    template <int Degree, bool Base>
    static void run(const float* t, const float* g, const int64_t* taps, int64_t count, const float* coefficients,
                    bool squash, float* gradient, int64_t vectors) {
        in_blocks<std::clamp(12 / (Degree + Base), 1, 4)>(vectors, [&](auto size, int64_t i) {
            block<Degree, Base, size>(t + i * kLanes, g + i * kLanes, taps, count, coefficients, squash,
                                      gradient + i * kLanes);
        });
    }

    template <int Degree, bool Base>
    static auto get() {
        return run<Degree, Base>;
    }
};

struct WeightGradient {
    // Adds, for `Count` taps, the products of x, t, t^2 ... t^Degree with the outputs' gradients at g - taps[k].
    template <int Degree, bool Base, int Count>
    static void group(const float* x, const float* t, const float* g, const int64_t* taps, int64_t vectors, Vec* sums) {
        constexpr int kTerms = Degree + Base;
        Vec sum[Count * kTerms];
        std::copy(sums, sums + Count * kTerms, sum);
        for (int64_t i = 0; i < vectors * kLanes; i += kLanes) {
            Vec terms[kTerms];
            if (Base) terms[0] = load(x + i);
            terms[Base] = load(t + i);
#pragma GCC unroll 8
            for (int n = Base + 1; n < kTerms; ++n) terms[n] = terms[n - 1] * terms[Base];
#pragma GCC unroll 4
            for (int k = 0; k < Count; ++k) {
                const Vec value = load(g - taps[k] + i);
#pragma GCC unroll 8
                for (int n = 0; n < kTerms; ++n) sum[k * kTerms + n] += terms[n] * value;
            }
        }
        std::copy(sum, sum + Count * kTerms, sums);
    }

    template <int Degree, bool Base>
    static void run(const float* x, const float* t, const float* g, const int64_t* taps, int64_t count, int64_t vectors,
                    Vec* sums) {
        constexpr int kTerms = Degree + Base;
        in_blocks<kTerms < 5 ? 3 : 2>(count, [&](auto size, int64_t k) {
            group<Degree, Base, size>(x, t, g, taps + k, vectors, sums + k * kTerms);
        });
    }

    template <int Degree, bool Base>
    static auto get() {
        return run<Degree, Base>;
    }
};

// Sums lane by lane in single precision, every now and then moved on to double precision.
struct Sums {
    std::vector<Vec> lanes;
    double* totals;
    int64_t steps = 0;

    Sums(int64_t count, double* totals) : lanes(count), totals(totals) {}
    ~Sums() { move_on(); }

    void count(int64_t more) {
        steps += more;
        if (steps >= kMaxSteps) move_on();
    }
    void move_on() {
        for (size_t i = 0; i < lanes.size(); ++i) {
            double sum = 0;
            for (int lane = 0; lane < kLanes; ++lane) sum += lanes[i][lane];
            totals[i] += sum;
            lanes[i] = Vec{};
        }
        steps = 0;
    }
};

// The taps of each phase: their places in the sums (the order of coefficients too) and offsets.
struct ByPhase {
    std::vector<int64_t> order, offsets, starts;

    explicit ByPhase(const Problem& problem) {
        for (int64_t phase = 0; phase < problem.phases; ++phase) {
            starts.push_back(order.size());
            for (size_t k = 0; k < problem.taps.size(); ++k)
                if (problem.taps[k].phase == phase) {
                    order.push_back(k);
                    offsets.push_back(problem.taps[k].offset);
                }
        }
        starts.push_back(order.size());
    }
};

struct BackwardScratch {
    int64_t max_rows, x_floats, g_floats, front, total;  // of the phases, at a time; of each array; of a thread

    explicit BackwardScratch(const Problem& problem)
        : max_rows(std::min(problem.band, problem.h.extent())), x_floats(problem.phase_floats(max_rows)),
          g_floats(problem.phase_floats(max_rows + problem.h.max_shift())),
          front(ceil_div(problem.w.max_shift() * problem.layout.group, kLanes) * kLanes),
          total(Phases::needs(problem, x_floats) + problem.phases * x_floats + front + g_floats) {}
};

void backward(const Problem& problem, const float* x, const float* weight, const float* base_weight, const float* gy,
              float* gx, float* gweight, float* gbase, float* scratch, int64_t threads) {
    const Axis &h = problem.h, &w = problem.w;
    const int64_t extent = h.extent(), halo = h.max_shift();
    const BackwardScratch sizes(problem);
    const int64_t max_rows = sizes.max_rows, x_floats = sizes.x_floats, g_floats = sizes.g_floats;
    const int64_t taps = problem.taps.size(), terms = problem.terms(), pitch = problem.pitch;
    const ByPhase by_phase(problem);
    std::vector<float> coefficients;
    const auto unordered = by_tap(problem, weight, base_weight, true);
    for (int64_t k : by_phase.order)
        coefficients.insert(coefficients.end(), &unordered[k * terms], &unordered[k * terms] + terms);
    const auto input_gradient = select<InputGradient>(problem);
    const auto weight_gradient = select<WeightGradient>(problem);
    const float *x_end = x + problem.end(problem.inputs()), *gy_end = gy + problem.end(problem.outputs());
    // The gradients of the outputs lie like a phase; before the first row, there are as many zeros as a tap reaches back.
    const Axis output_h{h.out, 0, 0, 1, halo, 1}, output_w{w.out, 0, 0, 1, 0, 1};

    const int64_t chunks = std::min(problem.planes, kMaxChunks), sums_count = taps * terms + 1;
    std::vector<double> totals(chunks * sums_count);

#pragma omp parallel num_threads(problem.threads(threads))
    {
        Arena arena(scratch + omp_get_thread_num() * sizes.total, sizes.total);
        Phases phases(h, w, problem.layout, pitch, x_floats, problem.squash, arena);
        float* gradients = arena.take(problem.phases * x_floats);
        arena.take(sizes.front);
        Phases outputs(output_h, output_w, problem.layout, pitch, g_floats, false, arena);
        const float* g = outputs.x + halo * pitch;  // the output at the first input
#pragma omp for schedule(static)
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            Sums sums(sums_count, &totals[chunk * sums_count]);
            const int64_t last = (chunk + 1) * problem.planes / chunks;
            for (int64_t plane = chunk * problem.planes / chunks; plane < last; ++plane) {
                float *to = gx + problem.start(plane, problem.inputs()), *to_end = to + problem.inputs();
                for (int64_t first = 0; first < extent; first += max_rows) {
                    const int64_t rows = std::min(max_rows, extent - first);
                    phases.choose_rows(first, rows);
                    phases.load(x + problem.start(plane, problem.inputs()), x_end);
                    outputs.choose_rows(first, rows + halo);
                    outputs.load(gy + problem.start(plane, problem.outputs()), gy_end);
                    for (int64_t phase = 0; phase < problem.phases; ++phase) {
                        const auto [begin, start, vectors] = phases.ranges[phase];
                        const int64_t k = by_phase.starts[phase], count = by_phase.starts[phase + 1] - k;
                        if (gweight)
                            weight_gradient(phases.x + start, phases.t + start, g + begin * pitch,
                                            &by_phase.offsets[k], count, vectors, &sums.lanes[k * terms]);
                        if (gx)
                            input_gradient(phases.t + start, g + begin * pitch, &by_phase.offsets[k], count,
                                           &coefficients[k * terms], problem.squash, gradients + start, vectors);
                    }
                    if (gweight) {
                        const int64_t vectors = ceil_div(rows * pitch, kLanes);
                        for (int64_t i = 0; i < vectors; ++i) sums.lanes.back() += load(g + i * kLanes);
                        sums.count(vectors);
                    }
                    if (gx) phases.save(gradients, to, to_end);
                }
            }
        }
    }

    if (!gweight) return;
    std::vector<double> sum(sums_count);
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
        for (int64_t i = 0; i < sums_count; ++i) sum[i] += totals[chunk * sums_count + i];
    for (int64_t i = 0; i < taps; ++i) {
        const int64_t k = by_phase.order[i];
        gweight[k] = sum[taps * terms];
        if (problem.base) gbase[k] = sum[i * terms];
        for (int64_t n = 1; n <= problem.degree; ++n) gweight[n * taps + k] = sum[i * terms + problem.base + n - 1];
    }
}

}  // namespace

// Single-precision arrays: x (B, C, H, W), weight (degree + 1, kh, kw), base_weight (kh, kw) or null, y (B, C, H', W').
// `numbers`: B * C, from pixel to pixel (1, or C for channels_last, a multiple of kGroup), degree (1 to kMaxDegree),
// whether u is tanh, then for height and width each: size, output size, kernel, stride, padding, dilation.
extern "C" void shared_polynomial_conv_forward(const float* x, const float* weight, const float* base_weight, float* y,
                                               float* scratch, const int64_t* numbers, int64_t threads) {
    forward(Problem(numbers, base_weight), x, weight, base_weight, y, scratch, threads);
}

// Gradients of what the first four arguments gave, each into an array of the shape of what it belongs to. gx may be
// null, or gweight (and then gbase_weight), if it is not wanted.
extern "C" void shared_polynomial_conv_backward(const float* x, const float* weight, const float* base_weight,
                                                const float* gy, float* gx, float* gweight, float* gbase_weight,
                                                float* scratch, const int64_t* numbers, int64_t threads) {
    backward(Problem(numbers, base_weight), x, weight, base_weight, gy, gx, gweight, gbase_weight, scratch, threads);
}

// How many floats of scratch memory the two functions above need for each thread.
extern "C" int64_t shared_polynomial_conv_scratch(const int64_t* numbers, int64_t backward) {
    const Problem problem(numbers, false);
    return backward ? BackwardScratch(problem).total : ForwardScratch(problem).total;
}
