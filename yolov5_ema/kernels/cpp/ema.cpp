// The exact computation of EMA on CPUs (Ouyang et al., ICASSP 2023, arXiv 2305.13563).
//
// docs/exact-ema.md has the identities and the derivation. Each thread processes one group of one image at a time: it
// copies the group into padded scratch memory that fits into its cache, and does everything else there. So x is read
// once and the output is written once. For backward, only x and three numbers per channel are kept.
//
// Notation, for one group: k channels of H x W pixels; x is padded by a border of zeros; a (k, H) and c (k, W) are the
// gates of the 1x1 branch; y = x * a * c; p and q are the softmaxes; t = 3 u + v counts the taps of a 3x3 kernel.

#include "common.h"

namespace yolov5_ema {
namespace {

template <typename T> struct Parameters {
    const T *w1;    // (k, k)
    const T *b1;    // (k)
    const T *gamma; // (k)
    const T *beta;  // (k)
    const T *w3;    // (k, k, 9)
    const T *b3;    // (k)
    T eps;
};

// The gradients of the parameters, summed over the groups of one thread. They are in one array, in the order of the
// parameters.
struct Gradients {
    double *w1, *b1, *gamma, *beta, *w3, *b3;

    Gradients(double *all, int64_t k)
        : w1(all), b1(w1 + k * k), gamma(b1 + k), beta(gamma + k), w3(beta + k), b3(w3 + 9 * k * k) {}

    static int64_t count(int64_t k) { return 10 * k * k + 4 * k; }
};

struct Shape {
    int64_t k, h, w;
    int64_t width() const { return w + 2; }                  // of a padded row
    int64_t padded() const { return (h + 2) * width(); }     // pixels of a padded channel
    int64_t first() const { return width() + 1; }            // pixel (0, 0) of a padded channel
    int64_t sides() const { return h + w; }
    // Number of rows processed by one loop, which also runs over the padding between them: loops over short rows would
    // not fill the processor's vectors.
    int64_t block() const { return 1024 / width() + 1 < h ? 1024 / width() + 1 : h; }
    int64_t rows_from(int64_t row) const { return row + block() < h ? block() : h - row; }
    double pixels() const { return static_cast<double>(h) * static_cast<double>(w); }
};

// Everything that forward needs for one group.
template <typename T> struct Group {
    T *x;      // (k, H + 2, W + 2)
    T *sides;  // (k, H + W): means of rows, then of columns
    T *gates;  // (k, H + W): a, then c
    T *means;  // T (k, 9): means of x shifted by each tap
    T *mu;     // (k)
    T *rstd;   // (k)
    T *q;      // (k)
    T *branch; // a block of rows, as wide as padded rows: the factor by which the 1x1 branch multiplies x
    T *map;    // the map of the same rows, later its sigmoid

    Group(Arena &arena, const Shape &s)
        : x(arena.take<T>(s.k * s.padded() + 16)), sides(arena.take<T>(s.k * s.sides())),
          gates(arena.take<T>(s.k * s.sides())), means(arena.take<T>(s.k * 9)), mu(arena.take<T>(s.k)),
          rstd(arena.take<T>(s.k)), q(arena.take<T>(s.k)), branch(arena.take<T>(s.block() * s.width())),
          map(arena.take<T>(s.block() * s.width())) {}
};

// What is the same for all groups. p = softmax(beta), because the mean of a normalised channel is its beta.
template <typename T> struct Shared {
    T *p;      // (k)
    T *kernel; // (k, 9): the 3x3 convolution's output channels, weighted by p and added to a single one
    T bias;

    Shared(Arena &arena, int64_t k) : p(arena.take<T>(k)), kernel(arena.take<T>(k * 9)), bias(0) {}
};

template <typename T> void softmax(T *values, int64_t count) {
    T top = values[0];
    for (int64_t i = 1; i < count; i++)
        top = values[i] > top ? values[i] : top;
    T total = 0;
    for (int64_t i = 0; i < count; i++)
        total += values[i] = std::exp(values[i] - top);
    for (int64_t i = 0; i < count; i++)
        values[i] /= total;
}

template <typename T> void prepare_shared(Shared<T> &shared, const Parameters<T> &par, int64_t k) {
    std::memcpy(shared.p, par.beta, k * sizeof(T));
    softmax(shared.p, k);
    for (int64_t j = 0; j < 9 * k; j++) {
        double sum = 0;
        for (int64_t o = 0; o < k; o++)
            sum += static_cast<double>(shared.p[o]) * par.w3[o * 9 * k + j];
        shared.kernel[j] = static_cast<T>(sum);
    }
    double bias = 0;
    for (int64_t o = 0; o < k; o++)
        bias += static_cast<double>(shared.p[o]) * par.b3[o];
    shared.bias = static_cast<T>(bias);
}

// Copy a group into the scratch memory, and compute the means of its rows and columns. The border is never written, so
// it stays zero.
template <typename T> void load(Group<T> &g, const T *x, const Shape &s) {
    for (int64_t i = 0; i < s.k; i++) {
        T *rows = g.sides + i * s.sides(), *columns = rows + s.h;
        std::memset(columns, 0, s.w * sizeof(T));
        for (int64_t h = 0; h < s.h; h++) {
            const T *from = x + (i * s.h + h) * s.w;
            T *to = g.x + i * s.padded() + s.first() + h * s.width();
            T sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t w = 0; w < s.w; w++) {
                to[w] = from[w];
                sum += from[w];
                columns[w] += from[w];
            }
            rows[h] = sum / static_cast<T>(s.w);
        }
        for (int64_t w = 0; w < s.w; w++)
            columns[w] /= static_cast<T>(s.h);
    }
}

// sum += R rows of x times their weights. Several rows at once, because each pass reads and writes the whole sum.
template <typename T, int R>
void add_scaled(T *__restrict sum, const T *__restrict x, int64_t step, const T *__restrict weights, int64_t count) {
#pragma omp simd
    for (int64_t j = 0; j < count; j++) {
        T part = 0;
        for (int r = 0; r < R; r++)
            part += weights[r] * x[r * step + j];
        sum[j] += part;
    }
}

// sum += R rows of x times R rows of y, pixel by pixel.
template <typename T, int R>
void add_products(T *__restrict sum, const T *__restrict x, int64_t x_step, const T *__restrict y, int64_t y_step,
                  int64_t count) {
#pragma omp simd
    for (int64_t j = 0; j < count; j++) {
        T part = 0;
        for (int r = 0; r < R; r++)
            part += x[r * x_step + j] * y[r * y_step + j];
        sum[j] += part;
    }
}

// sigmoid(W1 means + b1), for rows and columns at once.
template <typename T>
void open_gates(T *out, const T *means, const Parameters<T> &par, int64_t k, int64_t length) {
    for (int64_t o = 0; o < k; o++) {
        T *row = out + o * length;
        for (int64_t j = 0; j < length; j++)
            row[j] = par.b1[o];
        const T *weights = par.w1 + o * k;
        int64_t i = 0;
        for (; i + 4 <= k; i += 4)
            add_scaled<T, 4>(row, means + i * length, length, weights + i, length);
        for (; i < k; i++)
            add_scaled<T, 1>(row, means + i * length, length, weights + i, length);
#pragma omp simd
        for (int64_t j = 0; j < length; j++)
            row[j] = sigmoid(row[j]);
    }
}

// The mean of each channel shifted by each tap and filled up with zeros. It is computed from sums; nothing is shifted.
template <typename T> void shifted_means(Group<T> &g, const Shape &s) {
    for (int64_t i = 0; i < s.k; i++) {
        const T *x = g.x + i * s.padded() + s.first();
        const T *rows = g.sides + i * s.sides(), *columns = rows + s.h;
        double total = 0;
        for (int64_t h = 0; h < s.h; h++)
            total += rows[h];
        total *= static_cast<double>(s.w);
        // a tap above the centre (u = 0) never reads the last row, a tap below it (u = 2) never the first
        const int64_t lost_row[3] = {s.h - 1, -1, 0}, lost_column[3] = {s.w - 1, -1, 0};
        for (int u = 0; u < 3; u++)
            for (int v = 0; v < 3; v++) {
                const int64_t row = lost_row[u], column = lost_column[v];
                double sum = total;
                if (row >= 0)
                    sum -= static_cast<double>(rows[row]) * s.w;
                if (column >= 0)
                    sum -= static_cast<double>(columns[column]) * s.h;
                if (row >= 0 && column >= 0)
                    sum += x[row * s.width() + column];
                g.means[i * 9 + 3 * u + v] = static_cast<T>(sum / s.pixels());
            }
    }
}

// q = softmax of the means of the 3x3 convolution, which are linear in the shifted means.
template <typename T> void weights_of_1x1(Group<T> &g, const Parameters<T> &par, int64_t k) {
    for (int64_t o = 0; o < k; o++) {
        const T *w3 = par.w3 + o * 9 * k;
        double sum = par.b3[o];
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < 9 * k; j++)
            sum += static_cast<double>(w3[j]) * g.means[j];
        g.q[o] = static_cast<T>(sum);
    }
    softmax(g.q, k);
}

// Mean and inverse standard deviation of y, in two passes: E[y^2] - E[y]^2 would lose all digits if the mean is large.
template <typename T> void statistics(Group<T> &g, const Shape &s, T eps) {
    for (int64_t i = 0; i < s.k; i++) {
        const T *x = g.x + i * s.padded() + s.first();
        const T *a = g.gates + i * s.sides(), *c = a + s.h;
        double total = 0;
        for (int64_t h = 0; h < s.h; h++) {
            const T *row = x + h * s.width();
            T sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t w = 0; w < s.w; w++)
                sum += row[w] * c[w];
            total += static_cast<double>(sum) * a[h];
        }
        const T mu = static_cast<T>(total / s.pixels());
        double squares = 0;
        for (int64_t h = 0; h < s.h; h++) {
            const T *row = x + h * s.width();
            const T gate = a[h];
            T sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t w = 0; w < s.w; w++) {
                const T away = row[w] * c[w] * gate - mu;
                sum += away * away;
            }
            squares += sum;
        }
        g.mu[i] = mu;
        g.rstd[i] = static_cast<T>(1 / std::sqrt(squares / s.pixels() + eps));
    }
}

// Compute everything about a group except its map.
template <typename T>
void describe(Group<T> &g, const T *x, const Parameters<T> &par, const Shape &s) {
    load(g, x, s);
    open_gates(g.gates, g.sides, par, s.k, s.sides());
    shifted_means(g, s);
}

// weight * a * c for some rows, as wide as padded rows; the padding between them stays zero.
template <typename T>
void multiply_gates(T *__restrict out, const T *a, const T *__restrict c, T weight, int64_t rows, const Shape &s) {
    for (int64_t row = 0; row < rows; row++) {
        const T factor = weight * a[row];
        T *__restrict to = out + row * s.width();
#pragma omp simd
        for (int64_t w = 0; w < s.w; w++)
            to[w] = factor * c[w];
    }
}

// The constant that the normalised branch adds to every pixel.
template <typename T> T constant_of_map(const Group<T> &g, const Parameters<T> &par, T bias, int64_t k) {
    double sum = bias;
    for (int64_t i = 0; i < k; i++) {
        const double weight = static_cast<double>(par.gamma[i]) * g.rstd[i];
        sum += g.q[i] * (par.beta[i] - weight * g.mu[i]);
    }
    return static_cast<T>(sum);
}

// Write a block of rows of sigmoid(map) to g.map. The loop runs from one row into the next, because a border of zeros
// separates them; the values computed on the border are not used.
template <typename T>
void gate_rows(Group<T> &g, const Parameters<T> &par, const Shared<T> &shared, const Shape &s, T constant,
               int64_t first_row) {
    const int64_t rows = s.rows_from(first_row), width = s.width(), count = rows * width - 2;
    T *__restrict map = g.map;
    const T *__restrict branch = g.branch;
    for (int64_t j = 0; j < count; j++)
        map[j] = constant;
    for (int64_t i = 0; i < s.k; i++) {
        const T *a = g.gates + i * s.sides() + first_row;
        multiply_gates(g.branch, a, g.gates + i * s.sides() + s.h, g.q[i] * par.gamma[i] * g.rstd[i], rows, s);
        const T *__restrict middle = g.x + i * s.padded() + s.first() + first_row * width;
        const T *__restrict above = middle - width;
        const T *__restrict below = middle + width;
        const T *t = shared.kernel + i * 9;
        const T t0 = t[0], t1 = t[1], t2 = t[2], t3 = t[3], t4 = t[4], t5 = t[5], t6 = t[6], t7 = t[7], t8 = t[8];
#pragma omp simd
        for (int64_t j = 0; j < count; j++) {
            const T high = t0 * above[j - 1] + t1 * above[j] + t2 * above[j + 1];
            const T mid = t3 * middle[j - 1] + (t4 + branch[j]) * middle[j] + t5 * middle[j + 1];
            const T low = t6 * below[j - 1] + t7 * below[j] + t8 * below[j + 1];
            map[j] += high + mid + low;
        }
    }
#pragma omp simd
    for (int64_t j = 0; j < count; j++)
        map[j] = sigmoid(map[j]);
}

template <typename T>
void forward_group(Group<T> &g, const T *x, T *out, T *stats, const Parameters<T> &par,
                   const Shared<T> &shared, const Shape &s) {
    describe(g, x, par, s);
    weights_of_1x1(g, par, s.k);
    statistics(g, s, par.eps);
    const T constant = constant_of_map(g, par, shared.bias, s.k);
    for (int64_t first = 0; first < s.h; first += s.block()) {
        gate_rows(g, par, shared, s, constant, first);
        const int64_t rows = s.rows_from(first);
        for (int64_t i = 0; i < s.k; i++)
            for (int64_t row = 0; row < rows; row++) {
                const T *from = g.x + i * s.padded() + s.first() + (first + row) * s.width();
                const T *gate = g.map + row * s.width();
                T *to = out + (i * s.h + first + row) * s.w;
#pragma omp simd
                for (int64_t w = 0; w < s.w; w++)
                    to[w] = from[w] * gate[w];
            }
    }
    std::memcpy(stats, g.mu, s.k * sizeof(T));
    std::memcpy(stats + s.k, g.rstd, s.k * sizeof(T));
    std::memcpy(stats + 2 * s.k, g.q, s.k * sizeof(T));
}

// What backward needs for one group in addition to `Group`.
template <typename T> struct Reverse {
    T *gate;      // sigmoid(map) (H, W)
    T *d;         // gradient of the map (H + 2, W + 2), with a border of zeros
    T *taps;      // R (k, 9): sums of d times x shifted
    T *inner;     // F (k): sums of d times the normalised y
    T *logits_q;  // (k): gradient of q's logits
    T *edges;     // V (k, 9): gradient of the shifted means
    T *sides;     // gradients of the means of rows and columns (k, H + W), divided by the number of pixels of each mean
    T *arguments; // gradients of the gates before their sigmoid (k, H + W)
    T *run;       // a block of rows of a channel's gradient, as wide as padded rows
    double sum_d;

    Reverse(Arena &arena, const Shape &s)
        : gate(arena.take<T>(s.h * s.w)), d(arena.take<T>(s.padded() + 16)), taps(arena.take<T>(s.k * 9)),
          inner(arena.take<T>(s.k)), logits_q(arena.take<T>(s.k)), edges(arena.take<T>(s.k * 9)),
          sides(arena.take<T>(s.k * s.sides())), arguments(arena.take<T>(s.k * s.sides())),
          run(arena.take<T>(s.block() * s.width())), sum_d(0) {}
};

template <typename T>
void gradient_of_map(Reverse<T> &r, Group<T> &g, const T *grad, const Parameters<T> &par,
                     const Shared<T> &shared, const Shape &s) {
    const T constant = constant_of_map(g, par, shared.bias, s.k);
    r.sum_d = 0;
    for (int64_t h = 0; h < s.h; h++) {
        if (h % s.block() == 0)
            gate_rows(g, par, shared, s, constant, h);
        T *__restrict d = r.d + s.first() + h * s.width();
        T *__restrict gate = r.gate + h * s.w;
        std::memcpy(gate, g.map + h % s.block() * s.width(), s.w * sizeof(T));
        std::memset(d, 0, s.w * sizeof(T));
        const T *x = g.x + s.first() + h * s.width(), *from = grad + h * s.w;
        const int64_t x_step = s.padded(), from_step = s.h * s.w;
        int64_t i = 0;
        for (; i + 4 <= s.k; i += 4)
            add_products<T, 4>(d, x + i * x_step, x_step, from + i * from_step, from_step, s.w);
        for (; i < s.k; i++)
            add_products<T, 1>(d, x + i * x_step, x_step, from + i * from_step, from_step, s.w);
        T sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t w = 0; w < s.w; w++) {
            d[w] *= gate[w] * (T(1) - gate[w]);
            sum += d[w];
        }
        r.sum_d += sum;
    }
}

// The sums of d times x shifted by each of the nine taps. The loop runs from one row into the next, because a border of
// zeros separates them.
template <typename T> void correlate(T *sums, const T *x, const T *d, const Shape &s) {
    const int64_t rows = 4096 / s.width() + 1; // few enough for sums of about 4096 floats, which stay accurate
    double total[9] = {0};
    for (int64_t first = 0; first < s.h; first += rows) {
        const int64_t count = (first + rows < s.h ? rows : s.h - first) * s.width();
        const T *__restrict middle = x + s.first() + first * s.width();
        const T *__restrict above = middle - s.width();
        const T *__restrict below = middle + s.width();
        const T *__restrict from = d + s.first() + first * s.width();
        T s0 = 0, s1 = 0, s2 = 0, s3 = 0, s4 = 0, s5 = 0, s6 = 0, s7 = 0, s8 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3, s4, s5, s6, s7, s8)
        for (int64_t j = 0; j < count; j++) {
            const T value = from[j];
            s0 += value * above[j - 1];
            s1 += value * above[j];
            s2 += value * above[j + 1];
            s3 += value * middle[j - 1];
            s4 += value * middle[j];
            s5 += value * middle[j + 1];
            s6 += value * below[j - 1];
            s7 += value * below[j];
            s8 += value * below[j + 1];
        }
        const T found[9] = {s0, s1, s2, s3, s4, s5, s6, s7, s8};
        for (int t = 0; t < 9; t++)
            total[t] += found[t];
    }
    for (int t = 0; t < 9; t++)
        sums[t] = static_cast<T>(total[t]);
}

// GroupNorm's backward for one channel: dy = scale * (d - mean(d)) - slope * (y - mu).
template <typename T> struct Normalised {
    T scale, mean_d, slope;

    Normalised(const Reverse<T> &r, const Group<T> &g, const Parameters<T> &par, const Shape &s, int64_t i)
        : scale(g.rstd[i] * par.gamma[i] * g.q[i]), mean_d(static_cast<T>(r.sum_d / s.pixels())),
          slope(static_cast<T>(scale * g.rstd[i] * r.inner[i] / s.pixels())) {}
};

template <typename T> T sum_with_normalised(const Reverse<T> &r, const Group<T> &g, const Shape &s, int64_t i) {
    const T *a = g.gates + i * s.sides(), *c = a + s.h;
    const T mu = g.mu[i];
    double total = 0;
    for (int64_t h = 0; h < s.h; h++) {
        const T *x = g.x + i * s.padded() + s.first() + h * s.width();
        const T *d = r.d + s.first() + h * s.width();
        const T gate = a[h];
        T sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t w = 0; w < s.w; w++)
            sum += d[w] * (x[w] * c[w] * gate - mu);
        total += sum;
    }
    return static_cast<T>(total * g.rstd[i]);
}

// Gradients of the gates of one channel, before their sigmoid.
template <typename T>
void gradient_of_gates(Reverse<T> &r, const Group<T> &g, const Parameters<T> &par, const Shape &s, int64_t i) {
    const Normalised<T> norm(r, g, par, s, i);
    const T *a = g.gates + i * s.sides();
    const T *__restrict c = a + s.h;
    T *rows = r.arguments + i * s.sides();
    T *__restrict columns = rows + s.h;
    const T mu = g.mu[i];
    std::memset(columns, 0, s.w * sizeof(T));
    for (int64_t h = 0; h < s.h; h++) {
        const T *__restrict x = g.x + i * s.padded() + s.first() + h * s.width();
        const T *__restrict d = r.d + s.first() + h * s.width();
        const T gate = a[h];
        T sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t w = 0; w < s.w; w++) {
            const T gated = x[w] * c[w];
            const T dy = norm.scale * (d[w] - norm.mean_d) - norm.slope * (gated * gate - mu);
            sum += dy * gated;
            columns[w] += dy * x[w] * gate;
        }
        rows[h] = sum * gate * (T(1) - gate);
    }
    for (int64_t w = 0; w < s.w; w++)
        columns[w] *= c[w] * (T(1) - c[w]);
}

template <typename T>
void gradient_of_weights(Reverse<T> &r, const Group<T> &g, const Parameters<T> &par, const Shared<T> &shared,
                         const Shape &s, Gradients &grads) {
    const int64_t k = s.k;
    double dp_mean = 0, dq_mean = 0;
    for (int64_t o = 0; o < k; o++) {
        r.logits_q[o] = par.gamma[o] * r.inner[o] + par.beta[o] * static_cast<T>(r.sum_d); // of q, for now
        dq_mean += static_cast<double>(g.q[o]) * r.logits_q[o];
    }
    for (int64_t o = 0; o < k; o++) {
        r.logits_q[o] = static_cast<T>(g.q[o] * (r.logits_q[o] - dq_mean));
        grads.gamma[o] += static_cast<double>(g.q[o]) * r.inner[o];
        grads.b3[o] += shared.p[o] * r.sum_d + r.logits_q[o];
    }
    T *dp = r.edges; // free until the end of this function
    for (int64_t o = 0; o < k; o++) {
        const T *w3 = par.w3 + o * 9 * k;
        double *to = grads.w3 + o * 9 * k;
        const double from_p = shared.p[o], from_q = r.logits_q[o];
        double sum = par.b3[o] * r.sum_d;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < 9 * k; j++) {
            sum += static_cast<double>(w3[j]) * r.taps[j];
            to[j] += from_p * r.taps[j] + from_q * g.means[j];
        }
        dp[o] = static_cast<T>(sum);
        dp_mean += sum * shared.p[o];
    }
    for (int64_t o = 0; o < k; o++)
        grads.beta[o] += shared.p[o] * (dp[o] - dp_mean) + g.q[o] * r.sum_d;
    std::memset(r.edges, 0, 9 * k * sizeof(T));
    for (int64_t o = 0; o < k; o++) {
        const T *w3 = par.w3 + o * 9 * k;
        const T weight = static_cast<T>(r.logits_q[o] / s.pixels());
#pragma omp simd
        for (int64_t j = 0; j < 9 * k; j++)
            r.edges[j] += weight * w3[j];
    }
}

// The backward of the 1x1 convolution, which is applied to the means.
template <typename T>
void gradient_of_means(Reverse<T> &r, const Group<T> &g, const Parameters<T> &par, const Shape &s, Gradients &grads) {
    const int64_t k = s.k, length = s.sides();
    std::memset(r.sides, 0, k * length * sizeof(T));
    for (int64_t o = 0; o < k; o++) {
        const T *__restrict argument = r.arguments + o * length;
        T bias = 0;
#pragma omp simd reduction(+ : bias)
        for (int64_t j = 0; j < length; j++)
            bias += argument[j];
        grads.b1[o] += bias;
        for (int64_t i = 0; i < k; i++) {
            const T weight = par.w1[o * k + i];
            T *__restrict to = r.sides + i * length;
            const T *__restrict mean = g.sides + i * length;
            T sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t j = 0; j < length; j++) {
                to[j] += weight * argument[j];
                sum += argument[j] * mean[j];
            }
            grads.w1[o * k + i] += sum;
        }
    }
    for (int64_t i = 0; i < k; i++) {
        T *rows = r.sides + i * length, *columns = rows + s.h;
        for (int64_t h = 0; h < s.h; h++)
            rows[h] /= static_cast<T>(s.w);
        for (int64_t w = 0; w < s.w; w++)
            columns[w] /= static_cast<T>(s.h);
    }
}

// Write to r.run the gradient that reaches a block of rows of a channel through the map: through the 3x3 branch, and
// through y of the 1x1 branch.
template <typename T>
void gradient_through_map(Reverse<T> &r, Group<T> &g, const Normalised<T> &norm, const Shared<T> &shared,
                          const Shape &s, int64_t i, int64_t first_row) {
    const int64_t rows = s.rows_from(first_row), width = s.width(), count = rows * width - 2;
    const T *a = g.gates + i * s.sides();
    multiply_gates(g.branch, a + first_row, a + s.h, T(1), rows, s);
    const T *__restrict gates = g.branch;
    const T *__restrict x = g.x + i * s.padded() + s.first() + first_row * width;
    const T *__restrict middle = r.d + s.first() + first_row * width;
    const T *__restrict above = middle - width;
    const T *__restrict below = middle + width;
    T *__restrict run = r.run;
    const T *t = shared.kernel + i * 9;
    const T t0 = t[0], t1 = t[1], t2 = t[2], t3 = t[3], t4 = t[4], t5 = t[5], t6 = t[6], t7 = t[7], t8 = t[8];
    const T mu = g.mu[i];
#pragma omp simd
    for (int64_t j = 0; j < count; j++) {
        const T low = t0 * below[j + 1] + t1 * below[j] + t2 * below[j - 1];
        const T mid = t3 * middle[j + 1] + t4 * middle[j] + t5 * middle[j - 1];
        const T high = t6 * above[j + 1] + t7 * above[j] + t8 * above[j - 1];
        const T dy = norm.scale * (middle[j] - norm.mean_d) - norm.slope * (x[j] * gates[j] - mu);
        run[j] = low + mid + high + dy * gates[j];
    }
}

template <typename T>
void gradient_of_input(T *out, const T *grad, Reverse<T> &r, Group<T> &g, const Parameters<T> &par,
                       const Shared<T> &shared, const Shape &s, int64_t i) {
    const Normalised<T> norm(r, g, par, s, i);
    const T *rows = r.sides + i * s.sides();
    const T *__restrict columns = rows + s.h;
    const T *v = r.edges + i * 9;
    for (int64_t h = 0; h < s.h; h++) {
        if (h % s.block() == 0)
            gradient_through_map(r, g, norm, shared, s, i, h);
        const T *__restrict run = r.run + h % s.block() * s.width();
        const T *__restrict from = grad + (i * s.h + h) * s.w;
        const T *__restrict gate = r.gate + h * s.w;
        T *__restrict to = out + (i * s.h + h) * s.w;
        T left = 0, right = 0, base = rows[h];
        for (int u = h + 1 < s.h ? 0 : 1; u < (h > 0 ? 3 : 2); u++) { // only taps whose output pixel lies inside
            base += v[3 * u] + v[3 * u + 1] + v[3 * u + 2];
            right += v[3 * u];
            left += v[3 * u + 2];
        }
#pragma omp simd
        for (int64_t w = 0; w < s.w; w++)
            to[w] = from[w] * gate[w] + run[w] + columns[w] + base;
        to[0] -= left;
        to[s.w - 1] -= right;
    }
}

template <typename T>
void backward_group(Reverse<T> &r, Group<T> &g, const T *grad, const T *x, const T *stats, T *out,
                    const Parameters<T> &par, const Shared<T> &shared, const Shape &s, Gradients &grads) {
    describe(g, x, par, s);
    std::memcpy(g.mu, stats, s.k * sizeof(T));
    std::memcpy(g.rstd, stats + s.k, s.k * sizeof(T));
    std::memcpy(g.q, stats + 2 * s.k, s.k * sizeof(T));
    gradient_of_map(r, g, grad, par, shared, s);
    for (int64_t i = 0; i < s.k; i++) {
        correlate(r.taps + i * 9, g.x + i * s.padded(), r.d, s);
        r.inner[i] = sum_with_normalised(r, g, s, i);
        gradient_of_gates(r, g, par, s, i);
    }
    gradient_of_weights(r, g, par, shared, s, grads);
    gradient_of_means(r, g, par, s, grads);
    for (int64_t i = 0; i < s.k; i++)
        gradient_of_input(out, grad, r, g, par, shared, s, i);
}

// One allocation: first what the threads share, then a piece of equal size for each thread.
class Memory {
  public:
    Memory(int64_t common, int64_t each, int threads)
        : each_(each), common_(common), raw_(static_cast<char *>(std::calloc(common + threads * each + 64, 1))) {}
    ~Memory() { std::free(raw_); }
    Memory(const Memory &) = delete;
    Memory &operator=(const Memory &) = delete;

    bool missing() const { return raw_ == nullptr; }
    char *common() const { return raw_ + (64 - reinterpret_cast<uintptr_t>(raw_) % 64); }
    char *of_thread(int thread) const { return common() + common_ + thread * each_; }

  private:
    int64_t each_, common_;
    char *raw_;
};

template <typename T> int64_t size_of_shared(int64_t k) {
    Arena dry(nullptr);
    Shared<T>(dry, k);
    return dry.used();
}

template <typename T>
int forward(const T *x, const Parameters<T> &par, T *out, T *stats, int64_t groups, const Shape &s, int threads) {
    Arena dry(nullptr);
    Group<T>(dry, s);
    const Memory memory(size_of_shared<T>(s.k), dry.used(), threads);
    if (memory.missing())
        return 1;
    Arena common(memory.common());
    Shared<T> shared(common, s.k);
    prepare_shared(shared, par, s.k);
    const int64_t pixels = s.k * s.h * s.w;
#pragma omp parallel num_threads(threads)
    {
        Arena arena(memory.of_thread(thread_number()));
        Group<T> g(arena, s);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < groups; n++)
            forward_group(g, x + n * pixels, out + n * pixels, stats + n * 3 * s.k, par, shared, s);
    }
    return 0;
}

template <typename T>
int backward(const T *grad, const T *x, const T *stats, const Parameters<T> &par, T *out, double *grads,
             int64_t groups, const Shape &s, int threads) {
    const int64_t pixels = s.k * s.h * s.w, count = Gradients::count(s.k);
    Arena dry(nullptr);
    dry.take<double>(count);
    Group<T>(dry, s);
    Reverse<T>(dry, s);
    const Memory memory(size_of_shared<T>(s.k), dry.used(), threads);
    if (memory.missing())
        return 1;
    Arena common(memory.common());
    Shared<T> shared(common, s.k);
    prepare_shared(shared, par, s.k);
#pragma omp parallel num_threads(threads)
    {
        Arena arena(memory.of_thread(thread_number()));
        Gradients own(arena.take<double>(count), s.k);
        Group<T> g(arena, s);
        Reverse<T> r(arena, s);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < groups; n++)
            backward_group(r, g, grad + n * pixels, x + n * pixels, stats + n * 3 * s.k, out + n * pixels, par, shared,
                           s, own);
    }
    for (int n = 0; n < threads; n++) { // always in this order, so that the sums are identical in every run
        const double *own = reinterpret_cast<const double *>(memory.of_thread(n));
        for (int64_t j = 0; j < count; j++)
            grads[j] += own[j];
    }
    return 0;
}

} // namespace
} // namespace yolov5_ema

// The functions that Python calls, for each dtype. The parameters are in one array in the order w1, b1, gamma, beta,
// w3, b3. The gradients are in an array of the same order, and are added to its values. All arrays are contiguous.
// Each function returns 0, or 1 if memory runs out.
#define YOLOV5_EMA_DEFINE(T, NAME)                                                                                    \
    static yolov5_ema::Parameters<T> NAME##_parameters(const T *p, int64_t k, double eps) {                           \
        return {p,                 p + k * k,         p + k * k + k, p + k * k + 2 * k,                               \
                p + k * k + 3 * k, p + 10 * k * k + 3 * k, static_cast<T>(eps)};                                      \
    }                                                                                                                 \
    extern "C" int ema_forward_##NAME(const T *x, const T *parameters, T *out, T *stats, int64_t groups, int64_t k,   \
                                      int64_t h, int64_t w, double eps, int threads) {                                \
        return yolov5_ema::forward<T>(x, NAME##_parameters(parameters, k, eps), out, stats, groups, {k, h, w},        \
                                      threads);                                                                       \
    }                                                                                                                 \
    extern "C" int ema_backward_##NAME(const T *grad, const T *x, const T *stats, const T *parameters, T *out,        \
                                       double *grads, int64_t groups, int64_t k, int64_t h, int64_t w, double eps,    \
                                       int threads) {                                                                 \
        return yolov5_ema::backward<T>(grad, x, stats, NAME##_parameters(parameters, k, eps), out, grads, groups,     \
                                       {k, h, w}, threads);                                                           \
    }

YOLOV5_EMA_DEFINE(float, float32)
YOLOV5_EMA_DEFINE(double, float64)
