// Blocks whose gates follow from a channel's own normalised values, on CPUs: NAM (Liu et al., arXiv 2111.12419) with
// the statistics of a channel over all images, SA (Zhang and Yang, arXiv 2102.00240) with those of each image.
//
//     z = (x - mean) / sqrt(variance + eps),   out = x * sigmoid(u * z + v)
//
// with a slope u and an offset v for each channel, which torch computes from the parameters. In the first half of each
// of SA's groups, z is the mean of the channel instead.
//
// What belongs together, a channel of all images or of one, is processed by one thread, as a list of runs: x is read
// from memory once and then stays in the cache, so further passes cost little. For backward, only x, the mean and the
// variance are kept. The gradients, with t = grad * x * sigmoid' and M values:
//
//     dv = sum t,   du = sum t * z,   dx = grad * sigmoid + u / sqrt(variance + eps) * (t - dv / M - z * du / M)

#include "common.h"

namespace yolov5_ema {
namespace {

// Runs of `length` values; the next one begins `step` values later.
struct Runs {
    int64_t count, length, step;

    double values() const { return static_cast<double>(count) * static_cast<double>(length); }
};

template <typename T> double mean_of(const T *x, const Runs &runs) {
    double total = 0;
    for (int64_t run = 0; run < runs.count; run++)
        total += sum_over<T>(runs.length, [=](auto n, int64_t p) { return load<T, n.value>(x + run * runs.step + p); });
    return total / runs.values();
}

template <typename T> double variance_of(const T *x, T mean, const Runs &runs) {
    double total = 0;
    for (int64_t run = 0; run < runs.count; run++)
        total += sum_over<T>(runs.length, [=](auto n, int64_t p) {
            const Lanes<T, n.value> away = load<T, n.value>(x + run * runs.step + p) - mean;
            return away * away;
        });
    return total / runs.values();
}

// The gate's argument: slope * (x - mean) + offset.
template <typename T> struct Gate {
    T mean, slope, offset, inverse;

    Gate(T mean, T variance, T u, T v, double eps)
        : mean(mean), offset(v), inverse(static_cast<T>(1 / std::sqrt(static_cast<double>(variance) + eps))) {
        slope = u * inverse;
    }

    T of(T x) const { return sigmoid((x - mean) * slope + offset); }
};

template <typename T> void open(const T *__restrict x, T *__restrict out, const Gate<T> &gate, int64_t count) {
#pragma omp simd
    for (int64_t p = 0; p < count; p++)
        out[p] = x[p] * gate.of(x[p]);
}

struct Sums {
    double t = 0, tz = 0; // dv and du
};

// The gradient without what comes through the mean and the variance, written to `out`, and the sums.
template <typename T>
Sums gradient(const T *grad, const T *x, T *out, const Gate<T> &gate, const Runs &runs) {
    Sums sums;
    for (int64_t run = 0; run < runs.count; run++)
        for (int64_t first = 0; first < runs.length; first += kRun) {
            const int64_t at = run * runs.step + first;
            const int64_t count = first + kRun < runs.length ? kRun : runs.length - first;
            const T *__restrict from = x + at, *__restrict above = grad + at;
            T *__restrict to = out + at;
            T all = 0, with_x = 0;
#pragma omp simd reduction(+ : all, with_x)
            for (int64_t p = 0; p < count; p++) {
                const T away = from[p] - gate.mean;
                const T open = sigmoid(away * gate.slope + gate.offset);
                const T straight = above[p] * open, t = straight * from[p] * (T(1) - open);
                to[p] = straight + gate.slope * t;
                all += t;
                with_x += t * away;
            }
            sums.t += all;
            sums.tz += static_cast<double>(with_x) * gate.inverse;
        }
    return sums;
}

// Add what comes through the mean and the variance.
template <typename T>
void add_statistics(T *__restrict out, const T *__restrict x, const Gate<T> &gate, const Sums &sums, double values,
                    int64_t count) {
    const T of_mean = static_cast<T>(gate.slope * sums.t / values);
    const T of_z = static_cast<T>(gate.slope * sums.tz * gate.inverse / values);
#pragma omp simd
    for (int64_t p = 0; p < count; p++)
        out[p] -= of_mean + (x[p] - gate.mean) * of_z;
}

// -- NAM ------------------------------------------------------------------------------------------

struct Batch {
    int64_t n, c, pixels;

    Runs channel() const { return {n, pixels, c * pixels}; }
    int64_t values() const { return n * c * pixels; }
};

// If `known`, mean and variance are given in stats (2, C), else they are computed and written there.
template <typename T>
void nam(const T *x, const T *u, const T *v, T *stats, T *out, const Batch &b, double eps, bool known, int threads) {
#pragma omp parallel for num_threads(threads_for(b.values(), threads)) schedule(static)
    for (int64_t c = 0; c < b.c; c++) {
        const T *from = x + c * b.pixels;
        if (!known) {
            stats[c] = static_cast<T>(mean_of(from, b.channel()));
            stats[b.c + c] = static_cast<T>(variance_of(from, stats[c], b.channel()));
        }
        const Gate<T> gate(stats[c], stats[b.c + c], u[c], v[c], eps);
        for (int64_t n = 0; n < b.n; n++)
            open(from + n * b.c * b.pixels, out + (n * b.c + c) * b.pixels, gate, b.pixels);
    }
}

template <typename T>
void nam_backward(const T *grad, const T *x, const T *stats, const T *u, const T *v, T *dx, T *du, T *dv,
                  const Batch &b, double eps, bool known, int threads) {
#pragma omp parallel for num_threads(threads_for(b.values(), threads)) schedule(static)
    for (int64_t c = 0; c < b.c; c++) {
        const Gate<T> gate(stats[c], stats[b.c + c], u[c], v[c], eps);
        const int64_t first = c * b.pixels;
        const Sums sums = gradient(grad + first, x + first, dx + first, gate, b.channel());
        dv[c] = static_cast<T>(sums.t);
        du[c] = static_cast<T>(sums.tz);
        for (int64_t n = 0; n < b.n && !known; n++) {
            const int64_t at = (n * b.c + c) * b.pixels;
            add_statistics(dx + at, x + at, gate, sums, b.channel().values(), b.pixels);
        }
    }
}

// -- SA -------------------------------------------------------------------------------------------

// Channels are in groups of 2 k; the first k of a group get a gate from their mean. At the end, channels c and c + C/2
// become neighbours.
struct Halves {
    int64_t n, c, k, pixels;

    bool is_first(int64_t channel) const { return channel % (2 * k) < k; }
    int64_t shuffled(int64_t row) const {
        const int64_t image = row / c, channel = row % c;
        return image * c + channel % (c / 2) * 2 + channel / (c / 2);
    }
    int64_t values() const { return n * c * pixels; }
};

template <typename T>
void sa(const T *x, const T *u, const T *v, T *out, T *stats, const Halves &s, double eps, int threads) {
    const int64_t rows = s.n * s.c;
#pragma omp parallel for num_threads(threads_for(s.values(), threads)) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const int64_t c = row % s.c;
        const T *__restrict from = x + row * s.pixels;
        T *__restrict to = out + s.shuffled(row) * s.pixels;
        const Runs runs{1, s.pixels, s.pixels};
        const T mean = stats[row] = static_cast<T>(mean_of(from, runs));
        if (s.is_first(c)) {
            stats[rows + row] = 0;
            const T gate = sigmoid(u[c] * mean + v[c]);
#pragma omp simd
            for (int64_t p = 0; p < s.pixels; p++)
                to[p] = from[p] * gate;
            continue;
        }
        stats[rows + row] = static_cast<T>(variance_of(from, mean, runs));
        open(from, to, Gate<T>(mean, stats[rows + row], u[c], v[c], eps), s.pixels);
    }
}

template <typename T>
void sa_backward(const T *grad, const T *x, const T *stats, const T *u, const T *v, T *dx, T *du, T *dv,
                 const Halves &s, double eps, int threads) {
    const int64_t rows = s.n * s.c;
    const double count = static_cast<double>(s.pixels);
#pragma omp parallel for num_threads(threads_for(s.values(), threads)) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const int64_t c = row % s.c;
        const T *__restrict above = grad + s.shuffled(row) * s.pixels, *__restrict from = x + row * s.pixels;
        T *__restrict to = dx + row * s.pixels;
        const Runs runs{1, s.pixels, s.pixels};
        if (s.is_first(c)) {
            const T open = sigmoid(u[c] * stats[row] + v[c]);
            const double sum = sum_over<T>(s.pixels, [=](auto n, int64_t p) {
                return load<T, n.value>(above + p) * load<T, n.value>(from + p);
            });
            const T d = static_cast<T>(sum) * (open * (T(1) - open));
            dv[row] = d;
            du[row] = d * stats[row];
            const T more = d * u[c] / static_cast<T>(count);
#pragma omp simd
            for (int64_t p = 0; p < s.pixels; p++)
                to[p] = above[p] * open + more;
            continue;
        }
        const Gate<T> gate(stats[row], stats[rows + row], u[c], v[c], eps);
        const Sums sums = gradient(above, from, to, gate, runs);
        dv[row] = static_cast<T>(sums.t);
        du[row] = static_cast<T>(sums.tz);
        add_statistics(to, from, gate, sums, count, s.pixels);
    }
}

} // namespace
} // namespace yolov5_ema

// The functions that Python calls, for each dtype. All arrays are contiguous. The gradients of u and v of SA are
// (N, C), to be summed over the images. Each function returns 0.
#define YOLOV5_EMA_NORMS(T, NAME)                                                                                     \
    EMA_EXPORT int norms_nam_##NAME(const T *x, const T *u, const T *v, T *out, T *stats, int64_t n, int64_t c,       \
                                    int64_t pixels, double eps, int threads) {                                        \
        yolov5_ema::nam(x, u, v, stats, out, {n, c, pixels}, eps, false, threads);                                    \
        return 0;                                                                                                     \
    }                                                                                                                 \
    EMA_EXPORT int norms_nam_frozen_##NAME(const T *x, const T *u, const T *v, T *stats, T *out, int64_t n,           \
                                           int64_t c, int64_t pixels, double eps, int threads) {                      \
        yolov5_ema::nam(x, u, v, stats, out, {n, c, pixels}, eps, true, threads);                                     \
        return 0;                                                                                                     \
    }                                                                                                                 \
    EMA_EXPORT int norms_nam_backward_##NAME(const T *grad, const T *x, const T *stats, const T *u, const T *v,       \
                                             T *dx, T *du, T *dv, int64_t n, int64_t c, int64_t pixels, double eps,   \
                                             double frozen, int threads) {                                            \
        yolov5_ema::nam_backward(grad, x, stats, u, v, dx, du, dv, {n, c, pixels}, eps, frozen != 0, threads);        \
        return 0;                                                                                                     \
    }                                                                                                                 \
    EMA_EXPORT int norms_sa_##NAME(const T *x, const T *u, const T *v, T *out, T *stats, int64_t n, int64_t c,        \
                                   int64_t k, int64_t pixels, double eps, int threads) {                              \
        yolov5_ema::sa(x, u, v, out, stats, {n, c, k, pixels}, eps, threads);                                         \
        return 0;                                                                                                     \
    }                                                                                                                 \
    EMA_EXPORT int norms_sa_backward_##NAME(const T *grad, const T *x, const T *stats, const T *u, const T *v,        \
                                            T *dx, T *du, T *dv, int64_t n, int64_t c, int64_t k, int64_t pixels,     \
                                            double eps, int threads) {                                                \
        yolov5_ema::sa_backward(grad, x, stats, u, v, dx, du, dv, {n, c, k, pixels}, eps, threads);                   \
        return 0;                                                                                                     \
    }

YOLOV5_EMA_NORMS(float, float32)
YOLOV5_EMA_NORMS(double, float64)
