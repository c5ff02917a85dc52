// The exact computation of EMA on CPUs (Ouyang et al., ICASSP 2023, arXiv 2305.13563).
//
// docs/exact-ema.md has the identities and the derivation. Each thread processes one group of one image at a time, in
// several passes while the group is in its cache. So x is read from memory once and the output is written once. For
// backward, only x and three numbers per channel are kept.
//
// Notation, for one group: k channels of H x W pixels; x is padded by a border of zeros; a (k, H) and c (k, W) are the
// gates of the 1x1 branch; y = x * a * c; p and q are the softmaxes; t = 3 u + v counts the taps of a 3x3 kernel.
//
// x is not copied, so its rows have no border. Sums over the taps are computed separately for the left, the middle and
// the right column of the taps, and these sums are shifted and added; they are one channel each.

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
// parameters. Behind them are two sums over the groups, from which `finish` computes what goes through p.
struct Gradients {
    double *w1, *b1, *gamma, *beta, *w3, *b3, *taps, *sum_d;

    Gradients(double *all, int64_t k)
        : w1(all), b1(w1 + k * k), gamma(b1 + k), beta(gamma + k), w3(beta + k), b3(w3 + 9 * k * k), taps(b3 + k),
          sum_d(taps + 9 * k) {}

    static int64_t count_of_parameters(int64_t k) { return 10 * k * k + 4 * k; }
    static int64_t count(int64_t k) { return count_of_parameters(k) + 9 * k + 1; }
};

struct Shape {
    int64_t k, h, w;
    int64_t columns; // where the columns begin in an array of sides: H, rounded up to kStep
    int64_t sides;   // H and W, each rounded up to kStep

    Shape(int64_t k, int64_t h, int64_t w)
        : k(k), h(h), w(w), columns(padded_to_step(h)), sides(columns + padded_to_step(w)) {}

    int64_t channel() const { return h * w; }
    int64_t pitch() const { return w + 2 * kMargin; } // of a row of `parts`
    int64_t lead() const { return (w + kMargin) / kMargin * kMargin; } // more than a row of zeros
    int64_t shifted() const { return channel() + 2 * lead(); }
    // Rows are computed in blocks. What a loop writes is read by the next loop only after a whole block: a processor
    // waits where it reads, with another alignment, what it wrote a moment ago.
    int64_t block() const { return 384 / w + 2 * kRows < h ? (384 / w + 2 * kRows) / kRows * kRows : h; }
    // Rows of which all channels are processed before the next rows, so that what they share stays in the first cache.
    int64_t small_block() const { return 384 / w + 4 < h ? (384 / w + 4) / 4 * 4 : h; }
    double pixels() const { return static_cast<double>(h) * static_cast<double>(w); }

    static constexpr int64_t kMargin = 16;
#if defined(__AVX512F__) || defined(__aarch64__)
    static constexpr int kRows = 4; // rows that are computed at once; limited by the 32 registers
#else
    static constexpr int kRows = 2; // 16 registers
#endif
};

constexpr int kRows = Shape::kRows;

// Everything that forward needs for one group.
template <typename T> struct Group {
    const T *x; // (k, H, W)
    T *sides;   // (k, sides): means of rows, then of columns
    T *gates;   // (k, sides): a, then c
    T *factors; // (k, columns): a times the weight of the 1x1 branch
    T *means;   // T (k, 9): means of x shifted by each tap
    T *mu;      // (k)
    T *rstd;    // (k)
    T *q;       // (k)
    T *map;     // (H, W): sigmoid of the map
    T *parts;   // (3, block, pitch): the map's sums over the taps of the left, the middle and the right column
    T *zeros;   // as many as a register holds
    const T *next; // (k, H, W): fetched from memory while the map is computed, because it is needed next

    Group(Arena &arena, const Shape &s)
        : x(nullptr), sides(arena.take<T>(s.k * s.sides)), gates(arena.take<T>(s.k * s.sides)),
          factors(arena.take<T>(s.k * s.columns)), means(arena.take<T>(s.k * 9)), mu(arena.take<T>(s.k)),
          rstd(arena.take<T>(s.k)), q(arena.take<T>(s.k)), map(arena.take<T>(s.channel())),
          parts(arena.take<T>(3 * s.block() * s.pitch())), zeros(arena.take<T>(kWide<T>)), next(nullptr) {}

    const T *row(const Shape &s, int64_t i, int64_t h) const { return x + (i * s.h + h) * s.w; }
    const T *a(const Shape &s, int64_t i) const { return gates + i * s.sides; }
    const T *c(const Shape &s, int64_t i) const { return gates + i * s.sides + s.columns; }
    T *part(const Shape &s, int64_t v, int64_t row) const {
        return parts + (v * s.block() + row) * s.pitch() + Shape::kMargin;
    }
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

// Multiply what belongs to the rows of a channel by one factor, and what belongs to its columns by another.
template <typename T> void scale_sides(T *sides, T of_rows, T of_columns, const Shape &s) {
    for (int64_t h = 0; h < s.columns; h++)
        sides[h] *= of_rows;
    for (int64_t w = s.columns; w < s.sides; w++)
        sides[w] *= of_columns;
}

// The sums of R rows; they are also added to the sums of the columns.
template <int R, typename T> void sum_rows(T *rows, T *columns, const T *x, int64_t width) {
    RowSum<T> sums[R];
    over_parts<kWide<T>>(width, [&](auto n, int64_t w) {
        constexpr int N = n.value;
        Lanes<T, N> column = load<T, N>(columns + w);
        for (int r = 0; r < R; r++) {
            const Lanes<T, N> values = load<T, N>(x + r * width + w);
            sums[r].add(values, n);
            column += values;
        }
        store<N>(columns + w, column);
    });
    store_totals<R>(rows, sums);
}

// The means of the rows and columns of all channels. What fills them up to a multiple of kStep stays zero.
template <typename T> void means_of_sides(Group<T> &g, const Shape &s) {
    for (int64_t i = 0; i < s.k; i++) {
        T *rows = g.sides + i * s.sides, *columns = rows + s.columns;
        std::memset(columns, 0, s.w * sizeof(T));
        over_rows<4>(s.h, [&](auto n, int64_t h) { sum_rows<n.value>(rows + h, columns, g.row(s, i, h), s.w); });
        scale_sides(rows, T(1) / static_cast<T>(s.w), T(1) / static_cast<T>(s.h), s);
    }
}

// out[o] = bias[o] + the sum over i of weights[o * o_step + i * i_step] * in[i], for rows of `length` values.
template <typename T, int R>
void multiply_rows(T *out, const T *in, const T *weights, int64_t o_step, int64_t i_step, const T *bias, int64_t k,
                   int64_t length) {
    over_padded_row<T>(length, [=](auto n, int64_t j) {
        constexpr int N = n.value;
        Lanes<T, N> sums[R];
        for (int r = 0; r < R; r++)
            sums[r] = Lanes<T, N>{} + (bias ? bias[r] : T(0));
        for (int64_t i = 0; i < k; i++) {
            const Lanes<T, N> values = load<T, N>(in + i * length + j);
            for (int r = 0; r < R; r++)
                sums[r] += weights[r * o_step + i * i_step] * values;
        }
        for (int r = 0; r < R; r++)
            store<N>(out + r * length + j, sums[r]);
    });
}

template <typename T>
void multiply(T *out, const T *in, const T *weights, int64_t o_step, int64_t i_step, const T *bias, int64_t k,
              int64_t length) {
    int64_t o = 0;
    for (; o + 4 <= k; o += 4)
        multiply_rows<T, 4>(out + o * length, in, weights + o * o_step, o_step, i_step, bias ? bias + o : nullptr, k,
                            length);
    for (; o < k; o++)
        multiply_rows<T, 1>(out + o * length, in, weights + o * o_step, o_step, i_step, bias ? bias + o : nullptr, k,
                            length);
}

// sigmoid(W1 means + b1), for rows and columns at once.
template <typename T> void open_gates(Group<T> &g, const Parameters<T> &par, const Shape &s) {
    multiply(g.gates, g.sides, par.w1, s.k, 1, par.b1, s.k, s.sides);
    over_padded_row<T>(s.k * s.sides, [&](auto n, int64_t j) {
        store<n.value>(g.gates + j, sigmoids<n.value, T>(load<T, n.value>(g.gates + j)));
    });
    for (int64_t i = 0; i < s.k; i++) {
        T *row = g.gates + i * s.sides;
        for (int64_t h = s.h; h < s.columns; h++)
            row[h] = 0;
        for (int64_t j = s.columns + s.w; j < s.sides; j++)
            row[j] = 0;
    }
}

// The mean of each channel shifted by each tap and filled up with zeros. It is computed from sums, and nothing is
// shifted: a tap above the centre (u = 0) never reads the last row, a tap below it (u = 2) never the first.
template <typename T> void shifted_means(Group<T> &g, const Shape &s) {
    const double h = static_cast<double>(s.h), w = static_cast<double>(s.w), part = 1 / s.pixels();
    for (int64_t i = 0; i < s.k; i++) {
        const T *first = g.row(s, i, 0), *last = g.row(s, i, s.h - 1);
        const T *rows = g.sides + i * s.sides, *columns = rows + s.columns;
        double total = 0;
#pragma omp simd reduction(+ : total)
        for (int64_t j = 0; j < s.h; j++)
            total += rows[j];
        const double row[3] = {w * rows[s.h - 1], 0, w * rows[0]};
        const double column[3] = {h * columns[s.w - 1], 0, h * columns[0]};
        const double corner[3][3] = {{last[s.w - 1], 0, last[0]}, {0, 0, 0}, {first[s.w - 1], 0, first[0]}};
        for (int u = 0; u < 3; u++)
            for (int v = 0; v < 3; v++)
                g.means[i * 9 + 3 * u + v] = static_cast<T>((w * total - row[u] - column[v] + corner[u][v]) * part);
    }
}

// The means of R channels of the 3x3 convolution.
template <int R, typename T>
void means_of_3x3(T *out, const T *w3, const T *b3, const T *means, int64_t count) {
    RowSum<T> sums[R];
    over_parts<kWide<T>>(count, [&](auto n, int64_t j) {
        constexpr int N = n.value;
        const Lanes<T, N> values = load<T, N>(means + j);
        for (int r = 0; r < R; r++)
            sums[r].add(values * load<T, N>(w3 + r * count + j), n);
    });
    for (int r = 0; r < R; r++)
        out[r] = b3[r] + sums[r].total();
}

// q = softmax of the means of the 3x3 convolution, which are linear in the shifted means.
template <typename T> void weights_of_1x1(Group<T> &g, const Parameters<T> &par, int64_t k) {
    int64_t o = 0;
    for (; o + 4 <= k; o += 4)
        means_of_3x3<4>(g.q + o, par.w3 + o * 9 * k, par.b3 + o, g.means, 9 * k);
    for (; o < k; o++)
        means_of_3x3<1>(g.q + o, par.w3 + o * 9 * k, par.b3 + o, g.means, 9 * k);
    softmax(g.q, k);
}

// An estimate of the mean of y: exact if the rows of x are multiples of each other plus constants.
template <typename T> double estimate_of_mean(const Group<T> &g, const Shape &s, int64_t i) {
    const T *rows = g.sides + i * s.sides, *a = g.a(s, i);
    T sum_x = 0, sum_a = 0, sum_ax = 0, sum_c = 0, sum_cx = 0;
#pragma omp simd reduction(+ : sum_x, sum_a, sum_ax)
    for (int64_t h = 0; h < s.columns; h++) {
        sum_x += rows[h];
        sum_a += a[h];
        sum_ax += a[h] * rows[h];
    }
#pragma omp simd reduction(+ : sum_c, sum_cx)
    for (int64_t w = s.columns; w < s.sides; w++) {
        sum_c += a[w];
        sum_cx += a[w] * rows[w];
    }
    const double h = static_cast<double>(s.h), w = static_cast<double>(s.w);
    return (sum_ax * static_cast<double>(sum_c) + sum_a * static_cast<double>(sum_cx) -
            sum_x / h * static_cast<double>(sum_a) * sum_c) /
           (h * w);
}

// The sums of y minus `shift` and of its square over N columns.
template <int N, typename T>
inline void add_distances(RowSum<T> &sum, RowSum<T> &square, const T *x, const T *a, const T *c, T shift,
                          const Shape &s) {
    Lanes<T, N> sums[4] = {}, squares[4] = {};
    const Lanes<T, N> gates = load<T, N>(c);
    over_rows<4>(s.h, [&](auto rows, int64_t h) {
        for (int r = 0; r < rows.value; r++) {
            const Lanes<T, N> away = load<T, N>(x + (h + r) * s.w) * gates * a[h + r] - shift;
            sums[r] += away;
            squares[r] += away * away;
        }
    });
    sum.add(sums[0] + sums[1] + (sums[2] + sums[3]), Width<N>());
    square.add(squares[0] + squares[1] + (squares[2] + squares[3]), Width<N>());
}

// Mean and inverse standard deviation of y. What is squared is the distance from an estimate of the mean: from zero,
// all digits would be lost if the mean is large.
template <typename T> void statistics(Group<T> &g, const Shape &s, T eps) {
    for (int64_t i = 0; i < s.k; i++) {
        const T *x = g.row(s, i, 0), *a = g.a(s, i), *c = g.c(s, i);
        const T guess = static_cast<T>(estimate_of_mean(g, s, i));
        RowSum<T> sum, square;
        over_parts<kWide<T>>(s.w, [&](auto n, int64_t w) {
            add_distances<n.value>(sum, square, x + w, a, c + w, guess, s);
        });
        const double away = sum.total() / s.pixels(), variance = square.total() / s.pixels() - away * away;
        g.mu[i] = static_cast<T>(guess + away);
        g.rstd[i] = static_cast<T>(1 / std::sqrt((variance < 0 ? 0 : variance) + eps));
    }
}

// Compute everything about a group except its map.
template <typename T> void describe(Group<T> &g, const T *x, const Parameters<T> &par, const Shape &s) {
    g.x = x;
    means_of_sides(g, s);
    open_gates(g, par, s);
    shifted_means(g, s);
}

// The constant that the normalised branch adds to every pixel. It also prepares the factors of that branch.
template <typename T> T constant_of_map(Group<T> &g, const Parameters<T> &par, T bias, const Shape &s) {
    double sum = bias;
    for (int64_t i = 0; i < s.k; i++) {
        const double weight = static_cast<double>(par.gamma[i]) * g.rstd[i];
        sum += g.q[i] * (par.beta[i] - weight * g.mu[i]);
        const T factor = g.q[i] * par.gamma[i] * g.rstd[i], *a = g.a(s, i);
        for (int64_t h = 0; h < s.columns; h++)
            g.factors[i * s.columns + h] = factor * a[h];
    }
    return static_cast<T>(sum);
}

// For R rows of the map and N columns: the sums over the channels, separately for the left, the middle and the right
// column of the taps. So each value of x is loaded once for three taps of each row. `to` is a row in the block.
template <int N, int R, typename T>
void sum_taps(const Group<T> &g, const Shared<T> &shared, const Shape &s, int64_t row, int64_t to, int64_t column) {
    Lanes<T, N> left[R] = {}, middle[R] = {}, right[R] = {};
    const bool is_first = row == 0, is_last = row + R == s.h;
    const int64_t width = s.w, step = s.channel(), step_above = is_first ? 0 : step, step_below = is_last ? 0 : step;
    const T *x = g.x + row * width + column, *c = g.c(s, 0) + column, *factors = g.factors + row;
    const T *above = is_first ? g.zeros : x - width, *below = is_last ? g.zeros : x + R * width;
    const T *t = shared.kernel, *next = g.next + row * width + column;
    for (int64_t i = 0; i < s.k; i++) {
        Lanes<T, N> rows[R + 2];
        rows[0] = load<T, N>(above);
        for (int r = 0; r < R; r++)
            rows[r + 1] = load<T, N>(x + r * width);
        rows[R + 1] = load<T, N>(below);
        const Lanes<T, N> gates = load<T, N>(c);
        for (int r = 0; r < R; r++) {
            fetch_line(next + r * width);
            left[r] += t[0] * rows[r];
            middle[r] += t[1] * rows[r];
            right[r] += t[2] * rows[r];
            left[r] += t[3] * rows[r + 1];
            middle[r] += (factors[r] * gates + t[4]) * rows[r + 1];
            right[r] += t[5] * rows[r + 1];
            left[r] += t[6] * rows[r + 2];
            middle[r] += t[7] * rows[r + 2];
            right[r] += t[8] * rows[r + 2];
        }
        x += step;
        next += step;
        above += step_above;
        below += step_below;
        c += s.sides;
        factors += s.columns;
        t += 9;
    }
    for (int r = 0; r < R; r++) {
        store<N>(g.part(s, 0, to + r) + column, left[r]);
        store<N>(g.part(s, 1, to + r) + column, middle[r]);
        store<N>(g.part(s, 2, to + r) + column, right[r]);
    }
}

// Write some rows of sigmoid(map) to g.map.
template <typename T>
void gate_rows(Group<T> &g, const Shared<T> &shared, const Shape &s, T constant, int64_t first, int64_t rows) {
    over_row<kWide<T>>(s.w, [&](auto n, int64_t column) {
        over_rows<kRows>(rows, [&](auto count, int64_t r) {
            sum_taps<n.value, count.value>(g, shared, s, first + r, r, column);
        });
    });
    for (int64_t r = 0; r < rows; r++) {
        T *map = g.map + (first + r) * s.w;
        const T *left = g.part(s, 0, r) - 1, *middle = g.part(s, 1, r), *right = g.part(s, 2, r) + 1;
        over_row<kWide<T>>(s.w, [=](auto n, int64_t w) {
            constexpr int N = n.value;
            const Lanes<T, N> sum = load<T, N>(left + w) + load<T, N>(middle + w) + load<T, N>(right + w) + constant;
            store<N>(map + w, sigmoids<N, T>(sum));
        });
    }
}

// Call f(first row, number of rows), with sigmoid(map) of these rows in g.map, for all rows.
template <typename T, typename F>
void over_gates(Group<T> &g, const Parameters<T> &par, const Shared<T> &shared, const Shape &s, const F &f) {
    const T constant = constant_of_map(g, par, shared.bias, s);
    for (int64_t first = 0; first < s.h; first += s.block()) {
        const int64_t rows = first + s.block() < s.h ? s.block() : s.h - first;
        gate_rows(g, shared, s, constant, first, rows);
        f(first, rows);
    }
}

template <typename T>
void forward_group(Group<T> &g, const T *x, T *out, T *stats, const Parameters<T> &par, const Shared<T> &shared,
                   const Shape &s, bool past_caches) {
    describe(g, x, par, s);
    weights_of_1x1(g, par, s.k);
    statistics(g, s, par.eps);
    over_gates(g, par, shared, s, [&](int64_t first, int64_t rows) {
        const T *gate = g.map + first * s.w;
        for (int64_t i = 0; i < s.k; i++) {
            const T *from = g.row(s, i, first);
            write_out(out + (i * s.h + first) * s.w, rows * s.w, past_caches, [=](auto n, int64_t j) EMA_INLINE {
                return load<T, n.value>(from + j) * load<T, n.value>(gate + j);
            });
        }
    });
    std::memcpy(stats, g.mu, s.k * sizeof(T));
    std::memcpy(stats + s.k, g.rstd, s.k * sizeof(T));
    std::memcpy(stats + 2 * s.k, g.q, s.k * sizeof(T));
}

// What backward needs for one group in addition to `Group`.
template <typename T> struct Reverse {
    T *d;         // gradient of the map, three times, each with zeros around it: see `shifted`
    T *centred;   // (H, W): the same minus its mean
    T *taps;      // R (k, 9): sums of d times x shifted
    T *inner;     // F (k): sums of d times the normalised y
    T *logits_q;  // (k): gradient of q's logits
    T *edges;     // V (k, 9): gradient of the shifted means
    T *sides;     // gradients of the means of rows and columns (k, sides), divided by the pixels of each mean
    T *arguments; // gradients of the gates before their sigmoid (k, sides)
    T *rest;      // (sides): for one channel, sums of y minus its mean times the gated x
    T *gradient;  // (2, small_block, W): the result for some rows of two channels
    double sum_d;

    Reverse(Arena &arena, const Shape &s)
        : d(arena.take<T>(3 * s.shifted())), centred(arena.take<T>(s.channel())), taps(arena.take<T>(s.k * 9)),
          inner(arena.take<T>(s.k)), logits_q(arena.take<T>(s.k)), edges(arena.take<T>(s.k * 9)),
          sides(arena.take<T>(s.k * s.sides)), arguments(arena.take<T>(s.k * s.sides)), rest(arena.take<T>(s.sides)),
          gradient(arena.take<T>(2 * s.small_block() * s.w)), sum_d(0) {}

    // Pixel (0, 0) of the gradient of the map as the taps of column v meet it: at (h, w) is d at (h, w + 1 - v), or
    // zero if that is outside. More than a row of zeros is before the first row and behind the last one.
    T *shifted(const Shape &s, int64_t v) const { return d + v * s.shifted() + s.lead(); }
};

// The gradient of the map at B times N pixels, from pixel j on. Its sum is added to `sum`.
template <int B, int N, typename T>
inline void gradient_at(T *d, const T *x, const T *grad, const T *gate, int64_t k, int64_t step, RowSum<T> &sum) {
    Lanes<T, N> sums[B] = {};
    for (int64_t i = 0; i < k; i++, x += step, grad += step)
        for (int b = 0; b < B; b++)
            sums[b] += load<T, N>(x + b * N) * load<T, N>(grad + b * N);
    for (int b = 0; b < B; b++) {
        const Lanes<T, N> gates = load<T, N>(gate + b * N), values = sums[b] * (gates - gates * gates);
        store<N>(d + b * N, values);
        sum.add(values, Width<N>());
    }
}

template <typename T>
void gradient_of_map(Reverse<T> &r, Group<T> &g, const T *grad, const Parameters<T> &par, const Shared<T> &shared,
                     const Shape &s) {
    constexpr int N = kWide<T>;
    const int64_t step = s.channel();
    T *d = r.shifted(s, 1), *left = r.shifted(s, 0), *right = r.shifted(s, 2);
    r.sum_d = 0;
    g.next = grad;
    over_gates(g, par, shared, s, [&](int64_t first, int64_t rows) {
        RowSum<T> sum;
        int64_t j = first * s.w;
        const int64_t end = j + rows * s.w;
        for (; j + 4 * N <= end; j += 4 * N)
            gradient_at<4, N>(d + j, g.x + j, grad + j, g.map + j, s.k, step, sum);
        over_parts<N>(end - j, [&](auto n, int64_t more) {
            const int64_t at = j + more;
            gradient_at<1, n.value>(d + at, g.x + at, grad + at, g.map + at, s.k, step, sum);
        });
        r.sum_d += sum.total();
    });
    const T mean = static_cast<T>(r.sum_d / s.pixels());
    T *centred = r.centred;
    over_row<N>(step, [=](auto n, int64_t j) {
        store<n.value>(centred + j, load<T, n.value>(d + j) - mean);
        store<n.value>(left + j, load<T, n.value>(d + j + 1));
        store<n.value>(right + j, load<T, n.value>(d + j - 1));
    });
    for (int64_t h = 0; h < s.h; h++)
        left[h * s.w + s.w - 1] = right[h * s.w] = 0;
}

// For C channels: the sums of d times x shifted by each of the nine taps, U rows of taps at once. Instead of x, d is
// shifted in the opposite direction.
template <int C, int U, typename T>
void correlate(Reverse<T> &r, const Group<T> &g, const Shape &s, int64_t channel) {
    constexpr int kCount = C * U * 3, kRound = (kCount + 3) / 4 * 4;
    const int64_t step = s.channel();
    const T *d[3] = {r.shifted(s, 0), r.shifted(s, 1), r.shifted(s, 2)};
    for (int64_t top = 0; top < 3; top += U) {
        double sums[kCount] = {};
        for (int64_t first = 0; first < step; first += kRun) {
            RowSum<T> parts[kRound];
            const T *x = g.row(s, channel, 0) + first, *from[3 * U];
            for (int t = 0; t < 3 * U; t++)
                from[t] = d[t % 3] + (1 - top - t / 3) * s.w + first;
            over_parts<kWide<T>>(first + kRun < step ? kRun : step - first, [&](auto n, int64_t j) EMA_INLINE {
                constexpr int N = n.value;
                Lanes<T, N> values[C];
                for (int i = 0; i < C; i++) {
                    values[i] = load<T, N>(x + i * step + j);
                    fetch_line(x + (i + s.k) * step + j); // of the next group
                }
                unrolled<3 * U>([&](auto t) EMA_INLINE {
                    const Lanes<T, N> gradient = load_once<T, N>(from[t.value] + j);
                    for (int i = 0; i < C; i++)
                        parts[i * 3 * U + t.value].add(values[i] * gradient, n);
                });
            });
            T totals[kRound];
            store_totals<kRound>(totals, parts);
            for (int t = 0; t < kCount; t++)
                sums[t] += totals[t];
        }
        for (int i = 0; i < C; i++)
            for (int t = 0; t < 3 * U; t++)
                r.taps[(channel + i) * 9 + 3 * top + t] = static_cast<T>(sums[i * 3 * U + t]);
    }
}

// GroupNorm's backward for one channel: dy = scale * (d - mean(d)) - slope * (y - mu).
template <typename T> struct Normalised {
    T scale, mean_d, slope;

    Normalised(const Reverse<T> &r, const Group<T> &g, const Parameters<T> &par, const Shape &s, int64_t i)
        : scale(g.rstd[i] * par.gamma[i] * g.q[i]), mean_d(static_cast<T>(r.sum_d / s.pixels())),
          slope(static_cast<T>(scale * g.rstd[i] * r.inner[i] / s.pixels())) {}
};

// Sums for the gradients of the gates of one channel: of d minus its mean times x times the other gate, and of y minus
// its mean times the same.
template <typename T> struct GateSums {
    const T *centred, *a, *c;
    T *rows, *rows_rest, *columns, *columns_rest;
    T mu;

    // Add R rows, of which h is the first; to `all`, y minus its mean.
    template <int R> void add(RowSum<T> &all, const T *x, int64_t h, int64_t width) const {
        const T *from = centred + h * width;
        RowSum<T> sums[R], rests[R];
        over_parts<kWide<T>>(width, [&](auto n, int64_t w) {
            constexpr int N = n.value;
            const Lanes<T, N> gates = load<T, N>(c + w);
            Lanes<T, N> column = load<T, N>(columns + w), column_rest = load<T, N>(columns_rest + w);
            for (int q = 0; q < R; q++) {
                const Lanes<T, N> values = load_once<T, N>(x + q * width + w), by_column = values * gates;
                const Lanes<T, N> by_row = values * a[h + q], away = by_column * a[h + q] - mu;
                const Lanes<T, N> from_d = load_once<T, N>(from + q * width + w);
                sums[q].add(from_d * by_column, n);
                rests[q].add(away * by_column, n);
                all.add(away, n);
                column += from_d * by_row;
                column_rest += away * by_row;
            }
            store<N>(columns + w, column);
            store<N>(columns_rest + w, column_rest);
        });
        store_totals<R>(rows + h, sums);
        store_totals<R>(rows_rest + h, rests);
    }
};

// Gradients of the gates of one channel, before their sigmoid, and F. Both parts of dy are summed in one pass, because
// `slope` follows from F, which follows from the sums of the first part.
template <typename T>
void gradient_of_gates(Reverse<T> &r, const Group<T> &g, const Parameters<T> &par, const Shape &s, int64_t i) {
    T *sums = r.arguments + i * s.sides, *rests = r.rest;
    const T *a = g.a(s, i), *c = g.c(s, i);
    std::memset(sums + s.columns, 0, s.w * sizeof(T));
    std::memset(rests + s.columns, 0, s.w * sizeof(T));
    const GateSums<T> gates{r.centred, a, c, sums, rests, sums + s.columns, rests + s.columns, g.mu[i]};
    double rest = 0;
    const int64_t run = kRun / s.w / kRows * kRows + kRows;
    for (int64_t first = 0; first < s.h; first += run) {
        RowSum<T> all;
        over_rows<kRows>(first + run < s.h ? run : s.h - first, [&](auto n, int64_t h) {
            gates.template add<n.value>(all, g.row(s, i, first + h), first + h, s.w);
        });
        rest += all.total();
    }
    T by_row = 0;
#pragma omp simd reduction(+ : by_row)
    for (int64_t h = 0; h < s.h; h++)
        by_row += a[h] * sums[h];
    r.inner[i] = static_cast<T>((r.sum_d / s.pixels() * rest + by_row) * g.rstd[i]);
    const Normalised<T> norm(r, g, par, s, i);
    const T scale = norm.scale, slope = norm.slope;
#pragma omp simd
    for (int64_t j = 0; j < s.sides; j++) // the gates are zero where nothing belongs to them
        sums[j] = (scale * sums[j] - slope * rests[j]) * a[j] * (T(1) - a[j]);
}

template <typename T>
void gradient_of_weights(Reverse<T> &r, const Group<T> &g, const Parameters<T> &par, const Shape &s,
                         Gradients &grads) {
    const int64_t k = s.k;
    double dq_mean = 0;
    for (int64_t o = 0; o < k; o++) {
        r.logits_q[o] = par.gamma[o] * r.inner[o] + par.beta[o] * static_cast<T>(r.sum_d); // of q, for now
        dq_mean += static_cast<double>(g.q[o]) * r.logits_q[o];
    }
    for (int64_t o = 0; o < k; o++) {
        r.logits_q[o] = static_cast<T>(g.q[o] * (r.logits_q[o] - dq_mean));
        grads.gamma[o] += static_cast<double>(g.q[o]) * r.inner[o];
        grads.beta[o] += g.q[o] * r.sum_d;
        grads.b3[o] += r.logits_q[o];
    }
    for (int64_t j = 0; j < 9 * k; j++)
        grads.taps[j] += r.taps[j];
    *grads.sum_d += r.sum_d;
    std::memset(r.edges, 0, 9 * k * sizeof(T));
    for (int64_t o = 0; o < k; o++) {
        const T *__restrict w3 = par.w3 + o * 9 * k, *__restrict means = g.means;
        double *__restrict to = grads.w3 + o * 9 * k;
        T *__restrict edges = r.edges;
        const double from_q = r.logits_q[o];
        const T weight = static_cast<T>(from_q / s.pixels());
#pragma omp simd
        for (int64_t j = 0; j < 9 * k; j++) {
            to[j] += from_q * means[j];
            edges[j] += weight * w3[j];
        }
    }
}

// The parts of the gradients that go through p, which is the same for all groups.
template <typename T> void finish(Gradients &grads, const Parameters<T> &par, const Shared<T> &shared, int64_t k) {
    double mean = 0;
    for (int64_t turn = 0; turn < 2; turn++)
        for (int64_t o = 0; o < k; o++) {
            double dp = static_cast<double>(par.b3[o]) * *grads.sum_d;
            for (int64_t j = 0; j < 9 * k; j++)
                dp += static_cast<double>(par.w3[o * 9 * k + j]) * grads.taps[j];
            if (turn == 0)
                mean += dp * shared.p[o];
            else
                grads.beta[o] += shared.p[o] * (dp - mean);
        }
    for (int64_t o = 0; o < k; o++) {
        grads.b3[o] += shared.p[o] * *grads.sum_d;
        for (int64_t j = 0; j < 9 * k; j++)
            grads.w3[o * 9 * k + j] += shared.p[o] * grads.taps[j];
    }
}

// Gradients of weights of the 1x1 convolution: of one output channel for R input channels.
template <int R, typename T> void add_products(double *to, const T *argument, const T *means, int64_t length) {
    RowSum<T> sums[R];
    over_padded_row<T>(length, [&](auto n, int64_t j) {
        constexpr int N = n.value;
        const Lanes<T, N> values = load<T, N>(argument + j);
        for (int r = 0; r < R; r++)
            sums[r].add(values * load<T, N>(means + r * length + j), n);
    });
    T totals[R];
    store_totals<R>(totals, sums);
    for (int r = 0; r < R; r++)
        to[r] += totals[r];
}

// The backward of the 1x1 convolution, which is applied to the means.
template <typename T>
void gradient_of_means(Reverse<T> &r, const Group<T> &g, const Parameters<T> &par, const Shape &s, Gradients &grads) {
    const int64_t k = s.k, length = s.sides;
    for (int64_t o = 0; o < k; o++) {
        const T *argument = r.arguments + o * length;
        RowSum<T> bias;
        over_padded_row<T>(length, [&](auto n, int64_t j) { bias.add(load<T, n.value>(argument + j), n); });
        grads.b1[o] += bias.total();
        over_rows<4>(k, [&](auto n, int64_t i) {
            add_products<n.value>(grads.w1 + o * k + i, argument, g.sides + i * length, length);
        });
    }
    multiply<T>(r.sides, r.arguments, par.w1, 1, k, nullptr, k, length);
    for (int64_t i = 0; i < s.k; i++)
        scale_sides(r.sides + i * s.sides, T(1) / static_cast<T>(s.w), T(1) / static_cast<T>(s.h), s);
}

constexpr int64_t kInside = -1; // any row but the first and the last

// The sum over those taps, of the columns from `from` to `to`, through which a pixel of a row contributes to T: in the
// first row those below the centre do not count, because their output pixel is outside, in the last row those above it.
template <typename T> T sum_of_edges(const T *edges, const Shape &s, int64_t row, int from, int to) {
    T sum = 0;
    for (int u = row == s.h - 1 ? 1 : 0; u < (row == 0 ? 2 : 3); u++)
        for (int v = from; v < to; v++)
            sum += edges[3 * u + v];
    return sum;
}

// What the gradient of one channel is computed from, apart from x, d, the gradient of the output and the map.
// GroupNorm's backward is dy = scale * d - slope * y + offset.
template <typename T> struct Terms {
    const T *a, *c;          // the gates
    const T *rows, *columns; // what is added to each row, and to each column
    T scale, slope, offset;

    Terms(const Reverse<T> &r, const Group<T> &g, const Parameters<T> &par, const Shape &s, int64_t i)
        : a(g.a(s, i)), c(g.c(s, i)), rows(r.sides + i * s.sides), columns(rows + s.columns) {
        const Normalised<T> norm(r, g, par, s, i);
        scale = norm.scale;
        slope = norm.slope;
        offset = slope * g.mu[i] - scale * norm.mean_d;
    }
};

// Add to what each row and each column of a channel gets what comes from T.
template <typename T> void add_edges(const Reverse<T> &r, const Shape &s, int64_t i) {
    const T *edges = r.edges + i * 9;
    T *rows = r.sides + i * s.sides, *columns = rows + s.columns;
    const T inside = sum_of_edges(edges, s, kInside, 0, 3);
    for (int64_t h = 1; h < s.h - 1; h++)
        rows[h] += inside;
    rows[0] += sum_of_edges(edges, s, 0, 0, 3);
    if (s.h > 1)
        rows[s.h - 1] += sum_of_edges(edges, s, s.h - 1, 0, 3);
    columns[0] -= sum_of_edges(edges, s, kInside, 2, 3);
    columns[s.w - 1] -= sum_of_edges(edges, s, kInside, 0, 1);
}

// The gradient of one channel for the rows from `first` on and N columns. Pointers are to the first row. Each value of
// d is loaded once and stays in registers for three rows.
template <int N, typename T>
EMA_INLINE inline void gradient_of_columns(T *to, const T *grad, const T *x, const T *gate, const T *d0, const T *d1,
                                           const T *d2, const T *t, const Terms<T> &terms, int64_t width,
                                           int64_t first, int64_t rows, int64_t column) {
    typedef Lanes<T, N> V;
    struct Row {
        V left, middle, right;
    };
    const V c = load<T, N>(terms.c + column), sum = load<T, N>(terms.columns + column);
    const T t0 = t[0], t1 = t[1], t2 = t[2], t3 = t[3], t4 = t[4], t5 = t[5], t6 = t[6], t7 = t[7], t8 = t[8];
    const T scale = terms.scale, slope = terms.slope, offset = terms.offset;
    const T *a = terms.a + first, *of_row = terms.rows + first;
    const auto row_of_d = [&](int64_t row) EMA_INLINE {
        const int64_t at = row * width;
        return Row{load_once<T, N>(d0 + at), load_once<T, N>(d1 + at), load_once<T, N>(d2 + at)};
    };
    const auto add = [&](const Row &above, const Row &here, Row &below, int64_t row) EMA_INLINE {
        const int64_t at = row * width;
        below = row_of_d(row + 1);
        const V gates = a[row] * c;
        const V dy = scale * here.middle + offset - slope * (gates * load<T, N>(x + at));
        V low = sum + of_row[row], high = load<T, N>(grad + at) * load<T, N>(gate + at);
        low += t6 * above.left;
        high += t7 * above.middle;
        low += t8 * above.right;
        high += t3 * here.left;
        low += t4 * here.middle;
        high += t5 * here.right;
        low += t0 * below.left;
        high += t1 * below.middle;
        low += t2 * below.right;
        high += gates * dy;
        store<N>(to + at, low + high);
    };
    Row one = row_of_d(-1), two = row_of_d(0), three;
    int64_t row = 0;
    for (; row + 3 <= rows; row += 3) {
        add(one, two, three, row);
        add(two, three, one, row + 1);
        add(three, one, two, row + 2);
    }
    if (row < rows)
        add(one, two, three, row);
    if (row + 1 < rows)
        add(two, three, one, row + 1);
}

// The gradient of some rows of one channel, which is written to `to`.
template <typename T>
void gradient_of_rows(T *to, const T *grad, const Reverse<T> &r, const Group<T> &g, const Parameters<T> &par,
                      const Shared<T> &shared, const Shape &s, int64_t i, int64_t first, int64_t rows) {
    const Terms<T> terms(r, g, par, s, i);
    const T *d0 = r.shifted(s, 0), *d1 = r.shifted(s, 1), *d2 = r.shifted(s, 2), *t = shared.kernel + i * 9;
    const T *x = g.row(s, i, 0), *edges = r.edges + i * 9;
    grad += i * s.channel();
    over_long_blocks<kWide<T>>(s.w, [&](auto n, int64_t column) EMA_INLINE {
        const int64_t at = first * s.w + column;
        gradient_of_columns<n.value>(to + column, grad + at, x + at, g.map + at, d0 + at, d1 + at, d2 + at, t, terms,
                                     s.w, first, rows, column);
    });
    const auto correct = [=](T *corners, int64_t row) { // `add_edges` treats them as if they were inside
        corners[0] += sum_of_edges(edges, s, kInside, 2, 3) - sum_of_edges(edges, s, row, 2, 3);
        corners[s.w - 1] += sum_of_edges(edges, s, kInside, 0, 1) - sum_of_edges(edges, s, row, 0, 1);
    };
    if (first == 0)
        correct(to, 0);
    if (first + rows == s.h && s.h > 1)
        correct(to + (rows - 1) * s.w, s.h - 1);
}

// The gradient is computed into scratch memory, because rows are not aligned to registers and lines of the cache. It is
// copied from there when the next channel is computed: not while it is still on its way into the cache.
template <typename T>
void gradient_of_input(T *out, const T *grad, const Reverse<T> &r, const Group<T> &g, const Parameters<T> &par,
                       const Shared<T> &shared, const Shape &s, bool past_caches) {
    for (int64_t i = 0; i < s.k; i++)
        add_edges(r, s, i);
    for (int64_t first = 0; first < s.h; first += s.small_block()) {
        const int64_t rows = first + s.small_block() < s.h ? s.small_block() : s.h - first, count = rows * s.w;
        for (int64_t i = 0; i <= s.k; i++) {
            if (i < s.k)
                gradient_of_rows(r.gradient + i % 2 * count, grad, r, g, par, shared, s, i, first, rows);
            if (i == 0)
                continue;
            const T *from = r.gradient + (i - 1) % 2 * count;
            write_out(out + (i - 1) * s.channel() + first * s.w, count, past_caches,
                      [=](auto n, int64_t j) EMA_INLINE { return load<T, n.value>(from + j); });
        }
    }
}

template <typename T>
void backward_group(Reverse<T> &r, Group<T> &g, const T *grad, const T *x, const T *stats, T *out,
                    const Parameters<T> &par, const Shared<T> &shared, const Shape &s, Gradients &grads,
                    bool past_caches) {
    describe(g, x, par, s);
    std::memcpy(g.mu, stats, s.k * sizeof(T));
    std::memcpy(g.rstd, stats + s.k, s.k * sizeof(T));
    std::memcpy(g.q, stats + 2 * s.k, s.k * sizeof(T));
    gradient_of_map(r, g, grad, par, shared, s);
    // as many sums at once as there are registers for
    constexpr int kChannels = kRows == 4 ? 2 : 3, kTapRows = kRows == 4 ? 3 : 1;
    over_rows<kChannels>(s.k, [&](auto n, int64_t i) { correlate<n.value, kTapRows>(r, g, s, i); });
    for (int64_t i = 0; i < s.k; i++)
        gradient_of_gates(r, g, par, s, i);
    gradient_of_weights(r, g, par, s, grads);
    gradient_of_means(r, g, par, s, grads);
    gradient_of_input(out, grad, r, g, par, shared, s, past_caches);
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
    const int64_t pixels = s.k * s.channel();
    const bool past_caches = groups * pixels * static_cast<int64_t>(sizeof(T)) > kPastCaches;
#pragma omp parallel num_threads(threads)
    {
        Arena arena(memory.of_thread(thread_number()));
        Group<T> g(arena, s);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < groups; n++) {
            g.next = x + (n + 1) * pixels;
            forward_group(g, x + n * pixels, out + n * pixels, stats + n * 3 * s.k, par, shared, s, past_caches);
        }
        finish_stores();
    }
    return 0;
}

template <typename T>
int backward(const T *grad, const T *x, const T *stats, const Parameters<T> &par, T *out, double *grads,
             int64_t groups, const Shape &s, int threads) {
    const int64_t pixels = s.k * s.channel(), count = Gradients::count(s.k);
    const bool past_caches = groups * pixels * static_cast<int64_t>(sizeof(T)) > kPastCaches;
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
        for (int64_t n = 0; n < groups; n++) {
            backward_group(r, g, grad + n * pixels, x + n * pixels, stats + n * 3 * s.k, out + n * pixels, par, shared,
                           s, own, past_caches);
        }
        finish_stores();
    }
    double *all = reinterpret_cast<double *>(memory.of_thread(0));
    for (int n = 1; n < threads; n++) { // always in this order, so that the sums are identical in every run
        const double *own = reinterpret_cast<const double *>(memory.of_thread(n));
        for (int64_t j = 0; j < count; j++)
            all[j] += own[j];
    }
    Gradients sums(all, s.k);
    finish(sums, par, shared, s.k);
    for (int64_t j = 0; j < Gradients::count_of_parameters(s.k); j++)
        grads[j] += all[j];
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
    EMA_EXPORT int ema_forward_##NAME(const T *x, const T *parameters, T *out, T *stats, int64_t groups, int64_t k,   \
                                      int64_t h, int64_t w, double eps, int threads) {                                \
        return yolov5_ema::forward<T>(x, NAME##_parameters(parameters, k, eps), out, stats, groups, {k, h, w},        \
                                      threads);                                                                       \
    }                                                                                                                 \
    EMA_EXPORT int ema_backward_##NAME(const T *grad, const T *x, const T *stats, const T *parameters, T *out,        \
                                       double *grads, int64_t groups, int64_t k, int64_t h, int64_t w, double eps,    \
                                       int threads) {                                                                 \
        return yolov5_ema::backward<T>(grad, x, stats, NAME##_parameters(parameters, k, eps), out, grads, groups,     \
                                       {k, h, w}, threads);                                                           \
    }

YOLOV5_EMA_DEFINE(float, float32)
YOLOV5_EMA_DEFINE(double, float64)
