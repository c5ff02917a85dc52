// The exact computation of EMA on CPUs (Ouyang et al., ICASSP 2023, arXiv 2305.13563).
//
// docs/exact-ema.md has the identities and the derivation. Each thread processes one group of one image at a time: it
// copies the group into padded scratch memory that fits into its cache, and does everything else there. So x is read
// once and the output is written once. For backward, only x and three numbers per channel are kept.
//
// Notation, for one group: k channels of H x W pixels; x is padded by a border of zeros; a (k, H) and c (k, W) are the
// gates of the 1x1 branch; y = x * a * c; p and q are the softmaxes; t = 3 u + v counts the taps of a 3x3 kernel.
//
// In scratch memory, a row of W pixels takes V values: W pixels and then zeros, at least one. The last zero of a row is
// also the left border of the next one. V is a multiple of kStep, so loops over rows have no remainder.

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
    int64_t steps;       // V / kStep
    int64_t steps_of_h;  // H / kStep, rounded up

    Shape(int64_t k, int64_t h, int64_t w)
        : k(k), h(h), w(w), steps((w + kStep) / kStep), steps_of_h((h + kStep - 1) / kStep) {}

    int64_t width() const { return steps * kStep; }                  // V
    int64_t padded() const { return (h + 3) * width() + 4 * kStep; } // values of a padded channel, with a margin
    int64_t first() const { return width() + 2 * kStep; }            // pixel (0, 0) of a padded channel
    int64_t columns() const { return steps_of_h * kStep; }           // where the columns begin in an array of sides
    int64_t sides() const { return columns() + width(); }
    // Rows are computed in blocks. What a loop writes is read by the next loop only after a whole block: a processor
    // waits where it reads, with another alignment, what it wrote a moment ago.
    int64_t block() const { return 1024 / width() + 1 < h ? 1024 / width() + 1 : h; }
    double pixels() const { return static_cast<double>(h) * static_cast<double>(w); }
};

constexpr int64_t kAhead = 512; // how many values before it is written a place in the output is fetched
constexpr int64_t kRows = 2;    // rows of a map that are computed at once

// Everything that forward needs for one group.
template <typename T> struct Group {
    T *x;       // (k, padded)
    T *sides;   // (k, sides): means of rows, then of columns
    T *gates;   // (k, sides): a, then c
    T *factors; // (k, sides): a times the weight of the 1x1 branch
    T *means;   // T (k, 9): means of x shifted by each tap
    T *mu;      // (k)
    T *rstd;    // (k)
    T *q;       // (k)
    T *shift;   // V: an estimate of the mean of y, then zeros
    T *map;     // (block, V): sigmoid of the map
    T *parts;   // (3, block, V + 2 steps): the map's sums over the taps of the left, the middle and the right column
    const T *next; // where the input of the next group is fetched from while this group is processed

    Group(Arena &arena, const Shape &s)
        : x(arena.take<T>(s.k * s.padded())), sides(arena.take<T>(s.k * s.sides())),
          gates(arena.take<T>(s.k * s.sides())), factors(arena.take<T>(s.k * s.sides())),
          means(arena.take<T>(s.k * 9)), mu(arena.take<T>(s.k)), rstd(arena.take<T>(s.k)), q(arena.take<T>(s.k)),
          shift(arena.take<T>(s.width())), map(arena.take<T>(s.block() * s.width())),
          parts(arena.take<T>(3 * s.block() * (s.width() + 2 * kStep))), next(nullptr) {}

    const T *row(const Shape &s, int64_t i, int64_t h) const { return x + i * s.padded() + s.first() + h * s.width(); }
    const T *a(const Shape &s, int64_t i) const { return gates + i * s.sides(); }
    const T *c(const Shape &s, int64_t i) const { return gates + i * s.sides() + s.columns(); }
    T *part(const Shape &s, int64_t v, int64_t row) const {
        return parts + (v * s.block() + row) * (s.width() + 2 * kStep) + kStep;
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
    const int64_t height = s.steps_of_h * kStep, width = s.steps * kStep;
    T *columns = sides + height;
    for (int64_t h = 0; h < height; h++)
        sides[h] *= of_rows;
    for (int64_t w = 0; w < width; w++)
        columns[w] *= of_columns;
}

// The sums of R rows; they are also added to the sums of the columns.
template <int R, typename T> void sum_rows(T *rows, T *columns, const T *x, int64_t width) {
    RowSum<T> sums[R];
    over_padded_row<T>(width, [&](auto n, int64_t w) {
        constexpr int N = n.value;
        Lanes<T, N> column = load<T, N>(columns + w);
        for (int r = 0; r < R; r++) {
            const Lanes<T, N> values = load<T, N>(x + r * width + w);
            sums[r].add(values, n);
            column += values;
        }
        store<N>(columns + w, column);
    });
    for (int r = 0; r < R; r++)
        rows[r] = sums[r].total();
}

// Copy a group into the scratch memory, and compute the means of its rows and columns. The border is never written, so
// it stays zero.
template <typename T> void load_group(Group<T> &g, const T *x, const Shape &s) {
    const int64_t width = s.width();
    for (int64_t i = 0; i < s.k; i++) {
        T *rows = g.sides + i * s.sides(), *columns = rows + s.columns();
        std::memset(columns, 0, width * sizeof(T));
        for (int64_t h = 0; h < s.h; h++) {
            const T *from = x + (i * s.h + h) * s.w;
            T *to = g.x + i * s.padded() + s.first() + h * width;
            over_row<kWide<T>>(s.w, [=](auto n, int64_t w) { store<n.value>(to + w, load<T, n.value>(from + w)); });
        }
        int64_t h = 0;
        for (; h + 4 <= s.h; h += 4)
            sum_rows<4>(rows + h, columns, g.row(s, i, h), width);
        for (; h < s.h; h++)
            sum_rows<1>(rows + h, columns, g.row(s, i, h), width);
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
    const int64_t length = (s.steps_of_h + s.steps) * kStep;
    multiply(g.gates, g.sides, par.w1, s.k, 1, par.b1, s.k, length);
    for (int64_t i = 0; i < s.k; i++) {
        T *row = g.gates + i * length;
#pragma omp simd
        for (int64_t j = 0; j < length; j++)
            row[j] = sigmoid(row[j]);
        for (int64_t h = s.h; h < s.columns(); h++)
            row[h] = 0;
        for (int64_t w = s.w; w < s.width(); w++)
            row[s.columns() + w] = 0;
    }
}

// The mean of each channel shifted by each tap and filled up with zeros. It is computed from sums; nothing is shifted.
template <typename T> void shifted_means(Group<T> &g, const Shape &s) {
    for (int64_t i = 0; i < s.k; i++) {
        const T *x = g.row(s, i, 0);
        const T *rows = g.sides + i * s.sides(), *columns = rows + s.columns();
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
    const T *rows = g.sides + i * s.sides(), *columns = rows + s.columns(), *a = g.a(s, i), *c = g.c(s, i);
    const int64_t height = s.steps_of_h * kStep, width = s.steps * kStep;
    T sum_x = 0, sum_a = 0, sum_ax = 0, sum_c = 0, sum_cx = 0;
#pragma omp simd reduction(+ : sum_x, sum_a, sum_ax)
    for (int64_t h = 0; h < height; h++) {
        sum_x += rows[h];
        sum_a += a[h];
        sum_ax += a[h] * rows[h];
    }
#pragma omp simd reduction(+ : sum_c, sum_cx)
    for (int64_t w = 0; w < width; w++) {
        sum_c += c[w];
        sum_cx += c[w] * columns[w];
    }
    const double h = static_cast<double>(s.h), w = static_cast<double>(s.w);
    return (sum_ax * static_cast<double>(sum_c) + sum_a * static_cast<double>(sum_cx) -
            sum_x / h * static_cast<double>(sum_a) * sum_c) /
           (h * w);
}

// The sums of y minus `shift` and of its square over R rows.
template <int R, typename T>
inline void add_distances(RowSum<T> &part, RowSum<T> &square, const T *x, const T *a, const T *c, const T *shift,
                          int64_t width) {
    RowSum<T> parts[R], squares[R];
    over_padded_row<T>(width, [&](auto n, int64_t w) {
        constexpr int N = n.value;
        const Lanes<T, N> gates = load<T, N>(c + w), guesses = load<T, N>(shift + w);
        for (int r = 0; r < R; r++) {
            const Lanes<T, N> away = load<T, N>(x + r * width + w) * gates * a[r] - guesses;
            parts[r].add(away, n);
            squares[r].add(away * away, n);
        }
    });
    for (int r = 0; r < R; r++) {
        part.values += parts[r].values;
        square.values += squares[r].values;
    }
}

// Mean and inverse standard deviation of y. What is squared is the distance from an estimate of the mean: from zero,
// all digits would be lost if the mean is large.
template <typename T> void statistics(Group<T> &g, const Shape &s, T eps) {
    const int64_t width = s.width(), rows = 4096 / width + 1;
    T *shift = g.shift;
    for (int64_t i = 0; i < s.k; i++) {
        const T *a = g.a(s, i), *c = g.c(s, i);
        const T guess = static_cast<T>(estimate_of_mean(g, s, i));
        for (int64_t w = 0; w < s.w; w++)
            shift[w] = guess;
        double sum = 0, squares = 0;
        for (int64_t first = 0; first < s.h; first += rows) {
            RowSum<T> part, square;
            const int64_t end = first + rows < s.h ? first + rows : s.h;
            int64_t h = first;
            for (; h + kRows <= end; h += kRows)
                add_distances<kRows>(part, square, g.row(s, i, h), a + h, c, shift, width);
            for (; h < end; h++)
                add_distances<1>(part, square, g.row(s, i, h), a + h, c, shift, width);
            sum += part.total();
            squares += square.total();
        }
        const double away = sum / s.pixels(), variance = squares / s.pixels() - away * away;
        g.mu[i] = static_cast<T>(guess + away);
        g.rstd[i] = static_cast<T>(1 / std::sqrt((variance < 0 ? 0 : variance) + eps));
    }
}

// Compute everything about a group except its map.
template <typename T> void describe(Group<T> &g, const T *x, const Parameters<T> &par, const Shape &s) {
    load_group(g, x, s);
    open_gates(g, par, s);
    shifted_means(g, s);
}

// The constant that the normalised branch adds to every pixel. It also prepares the factors of that branch.
template <typename T> T constant_of_map(Group<T> &g, const Parameters<T> &par, T bias, const Shape &s) {
    double sum = bias;
    for (int64_t i = 0; i < s.k; i++) {
        const double weight = static_cast<double>(par.gamma[i]) * g.rstd[i];
        sum += g.q[i] * (par.beta[i] - weight * g.mu[i]);
        const T factor = g.q[i] * par.gamma[i] * g.rstd[i];
        for (int64_t h = 0; h < s.columns(); h++)
            g.factors[i * s.sides() + h] = factor * g.a(s, i)[h];
    }
    return static_cast<T>(sum);
}

// For R rows of the map and N columns: the sums over the channels, separately for the left, the middle and the right
// column of the taps. So each value of x is loaded once for three taps of each row. `to` is a row in the block.
template <int N, int R, typename T>
void sum_taps(Group<T> &g, const Shared<T> &shared, const Shape &s, int64_t row, int64_t to, int64_t column) {
    Lanes<T, N> left[R] = {}, middle[R] = {}, right[R] = {};
    const T *x = g.row(s, 0, row - 1) + column, *c = g.c(s, 0) + column, *factors = g.factors + row;
    const T *t = shared.kernel, *next = g.next;
    const int64_t width = s.width(), step = s.padded(), sides = s.sides();
    for (int64_t i = 0; i < s.k; i++, x += step, c += sides, factors += sides, t += 9) {
        Lanes<T, N> rows[R + 2];
        for (int r = 0; r < R + 2; r++)
            rows[r] = load<T, N>(x + r * width);
        const Lanes<T, N> gates = load<T, N>(c);
        for (int r = 0; r < R; r++, next += N) {
            fetch_line(next);
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
    }
    g.next = next;
    for (int r = 0; r < R; r++) {
        store<N>(g.part(s, 0, to + r) + column, left[r]);
        store<N>(g.part(s, 1, to + r) + column, middle[r]);
        store<N>(g.part(s, 2, to + r) + column, right[r]);
    }
}

// Write some rows of sigmoid(map) to g.map.
template <typename T>
void gate_rows(Group<T> &g, const Shared<T> &shared, const Shape &s, T constant, int64_t first, int64_t rows) {
    const int64_t width = s.steps * kStep;
    over_padded_row<T>(width, [&](auto n, int64_t column) {
        int64_t r = 0;
        for (; r + kRows <= rows; r += kRows)
            sum_taps<n.value, kRows>(g, shared, s, first + r, r, column);
        for (; r < rows; r++)
            sum_taps<n.value, 1>(g, shared, s, first + r, r, column);
    });
    for (int64_t r = 0; r < rows; r++) {
        T *__restrict map = g.map + r * width;
        const T *__restrict left = g.part(s, 0, r) - 1, *__restrict middle = g.part(s, 1, r);
        const T *__restrict right = g.part(s, 2, r) + 1;
#pragma omp simd
        for (int64_t w = 0; w < width; w++)
            map[w] = sigmoid(left[w] + middle[w] + right[w] + constant);
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
                   const Shape &s) {
    describe(g, x, par, s);
    weights_of_1x1(g, par, s.k);
    statistics(g, s, par.eps);
    over_gates(g, par, shared, s, [&](int64_t first, int64_t rows) {
        for (int64_t i = 0; i < s.k; i++)
            for (int64_t r = 0; r < rows; r++) {
                const T *from = g.row(s, i, first + r), *gate = g.map + r * s.width();
                T *to = out + (i * s.h + first + r) * s.w;
                over_row<kWide<T>>(s.w, [=](auto n, int64_t w) {
                    fetch_line_to_write(to + w + kAhead);
                    store<n.value>(to + w, load<T, n.value>(from + w) * load<T, n.value>(gate + w));
                });
            }
    });
    std::memcpy(stats, g.mu, s.k * sizeof(T));
    std::memcpy(stats + s.k, g.rstd, s.k * sizeof(T));
    std::memcpy(stats + 2 * s.k, g.q, s.k * sizeof(T));
}

// What backward needs for one group in addition to `Group`.
template <typename T> struct Reverse {
    T *gate;      // sigmoid(map) (H, V)
    T *d;         // gradient of the map, as a padded channel
    T *taps;      // R (k, 9): sums of d times x shifted
    T *inner;     // F (k): sums of d times the normalised y
    T *logits_q;  // (k): gradient of q's logits
    T *edges;     // V (k, 9): gradient of the shifted means
    T *sides;     // gradients of the means of rows and columns (k, sides), divided by the pixels of each mean
    T *arguments; // gradients of the gates before their sigmoid (k, sides)
    T *rest;      // (2, sides): for one channel, sums of y minus its mean times the gated x
    T *ends;      // (3, V): what is added to each pixel of the first row, of a row in the middle, and of the last row
    double sum_d;

    Reverse(Arena &arena, const Shape &s)
        : gate(arena.take<T>(s.h * s.width())), d(arena.take<T>(s.padded())), taps(arena.take<T>(s.k * 9)),
          inner(arena.take<T>(s.k)), logits_q(arena.take<T>(s.k)), edges(arena.take<T>(s.k * 9)),
          sides(arena.take<T>(s.k * s.sides())), arguments(arena.take<T>(s.k * s.sides())), rest(arena.take<T>(s.sides())),
          ends(arena.take<T>(3 * s.width())), sum_d(0) {}
};

template <typename T>
void gradient_of_map(Reverse<T> &r, Group<T> &g, const T *grad, const Parameters<T> &par, const Shared<T> &shared,
                     const Shape &s) {
    const int64_t width = s.steps * kStep, channel = s.h * s.w;
    r.sum_d = 0;
    over_gates(g, par, shared, s, [&](int64_t first, int64_t rows) {
        for (int64_t h = first; h < first + rows; h++) {
            const T *x = g.row(s, 0, h), *from = grad + h * s.w;
            T *to = r.d + s.first() + h * width;
            over_row<kWide<T>>(s.w, [&](auto n, int64_t w) {
                constexpr int N = n.value;
                Lanes<T, N> sum{};
                for (int64_t i = 0; i < s.k; i++)
                    sum += load<T, N>(x + i * s.padded() + w) * load<T, N>(from + i * channel + w);
                store<N>(to + w, sum);
            });
        }
        std::memcpy(r.gate + first * width, g.map, rows * width * sizeof(T));
        for (int64_t h = first; h < first + rows; h++) {
            T *__restrict d = r.d + s.first() + h * width;
            const T *__restrict gate = r.gate + h * width;
            T sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t w = 0; w < width; w++) {
                d[w] *= gate[w] * (T(1) - gate[w]);
                sum += d[w];
            }
            r.sum_d += sum;
        }
    });
}

// For C channels: the sums of d times x shifted by each of the nine taps. Instead of x, d is shifted in the opposite
// direction. The loop runs from one row into the next, because zeros separate them.
template <int C, typename T> void correlate(Reverse<T> &r, const Group<T> &g, const Shape &s, int64_t channel) {
    constexpr int N = kWide<T>;
    const int64_t count = s.h * s.width(), run = 4096; // short enough for sums in T, which stay accurate
    const T *x = g.row(s, channel, 0);
    for (int64_t u = 0; u < 3; u++) {
        const T *d = r.d + s.first() + (1 - u) * s.width();
        double sums[C][3] = {};
        for (int64_t first = 0; first < count; first += run) {
            Lanes<T, N> parts[C][3] = {};
            for (int64_t j = first; j < first + run && j < count; j += N) {
                const Lanes<T, N> d0 = load<T, N>(d + j + 1), d1 = load<T, N>(d + j), d2 = load<T, N>(d + j - 1);
                for (int i = 0; i < C; i++) {
                    const Lanes<T, N> values = load<T, N>(x + i * s.padded() + j);
                    parts[i][0] += values * d0;
                    parts[i][1] += values * d1;
                    parts[i][2] += values * d2;
                }
            }
            for (int i = 0; i < C; i++)
                for (int v = 0; v < 3; v++)
                    sums[i][v] += total<N, T>(parts[i][v]);
        }
        for (int i = 0; i < C; i++)
            for (int v = 0; v < 3; v++)
                r.taps[(channel + i) * 9 + 3 * u + v] = static_cast<T>(sums[i][v]);
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
    const T *d, *a, *c, *mu; // mu: V values, then zeros on the padding
    T *rows, *rows_rest, *columns, *columns_rest;
    T mean_d;

    // Add R rows, of which h is the first. The result is the sum of y minus its mean.
    template <int R> T add(const T *x, int64_t h, int64_t width) const {
        const T *from = d + h * width;
        RowSum<T> sums[R], rests[R], all;
        over_padded_row<T>(width, [&](auto n, int64_t w) {
            constexpr int N = n.value;
            const Lanes<T, N> gates = load<T, N>(c + w), mean = load<T, N>(mu + w);
            Lanes<T, N> column = load<T, N>(columns + w), column_rest = load<T, N>(columns_rest + w);
            for (int q = 0; q < R; q++) {
                const Lanes<T, N> values = load<T, N>(x + q * width + w), by_column = values * gates;
                const Lanes<T, N> by_row = values * a[h + q], away = by_column * a[h + q] - mean;
                const Lanes<T, N> from_d = load<T, N>(from + q * width + w) - mean_d;
                sums[q].add(from_d * by_column, n);
                rests[q].add(away * by_column, n);
                all.add(away, n);
                column += from_d * by_row;
                column_rest += away * by_row;
            }
            store<N>(columns + w, column);
            store<N>(columns_rest + w, column_rest);
        });
        for (int q = 0; q < R; q++) {
            rows[h + q] = sums[q].total();
            rows_rest[h + q] = rests[q].total();
        }
        return all.total();
    }
};

// Gradients of the gates of one channel, before their sigmoid, and F. Both parts of dy are summed in one pass, because
// `slope` follows from F, which follows from the sums of the first part.
template <typename T>
void gradient_of_gates(Reverse<T> &r, const Group<T> &g, const Parameters<T> &par, const Shape &s, int64_t i) {
    const int64_t width = s.steps * kStep, height = s.steps_of_h * kStep;
    const T *__restrict a = g.a(s, i), *__restrict c = g.c(s, i);
    T *rows = r.arguments + i * s.sides(), *rows_rest = r.rest;
    T *__restrict columns = rows + s.columns(), *__restrict columns_rest = rows_rest + s.columns();
    const T mean_d = static_cast<T>(r.sum_d / s.pixels());
    for (int64_t w = 0; w < s.w; w++)
        g.shift[w] = g.mu[i];
    std::memset(columns, 0, width * sizeof(T));
    std::memset(columns_rest, 0, width * sizeof(T));
    double inner = 0;
    const GateSums<T> sums{r.d + s.first(), a, c, g.shift, rows, rows_rest, columns, columns_rest, mean_d};
    int64_t h = 0;
    for (; h + kRows <= s.h; h += kRows)
        inner += static_cast<double>(mean_d) * sums.template add<kRows>(g.row(s, i, h), h, width);
    for (; h < s.h; h++)
        inner += static_cast<double>(mean_d) * sums.template add<1>(g.row(s, i, h), h, width);
    for (h = 0; h < s.h; h++)
        inner += static_cast<double>(a[h]) * rows[h];
    r.inner[i] = static_cast<T>(inner * g.rstd[i]);
    const Normalised<T> norm(r, g, par, s, i);
#pragma omp simd
    for (int64_t h = 0; h < height; h++)
        rows[h] = (norm.scale * rows[h] - norm.slope * rows_rest[h]) * a[h] * (T(1) - a[h]);
#pragma omp simd
    for (int64_t w = 0; w < width; w++)
        columns[w] = (norm.scale * columns[w] - norm.slope * columns_rest[w]) * c[w] * (T(1) - c[w]);
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

// The backward of the 1x1 convolution, which is applied to the means.
template <typename T>
void gradient_of_means(Reverse<T> &r, const Group<T> &g, const Parameters<T> &par, const Shape &s, Gradients &grads) {
    const int64_t k = s.k, length = (s.steps_of_h + s.steps) * kStep;
    for (int64_t o = 0; o < k; o++) {
        const T *__restrict argument = r.arguments + o * length;
        T bias = 0;
#pragma omp simd reduction(+ : bias)
        for (int64_t j = 0; j < length; j++)
            bias += argument[j];
        grads.b1[o] += bias;
        int64_t i = 0;
        for (; i + 4 <= k; i += 4) {
            const T *__restrict mean = g.sides + i * length;
            T s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
            for (int64_t j = 0; j < length; j++) {
                s0 += argument[j] * mean[j];
                s1 += argument[j] * mean[length + j];
                s2 += argument[j] * mean[2 * length + j];
                s3 += argument[j] * mean[3 * length + j];
            }
            grads.w1[o * k + i] += s0;
            grads.w1[o * k + i + 1] += s1;
            grads.w1[o * k + i + 2] += s2;
            grads.w1[o * k + i + 3] += s3;
        }
        for (; i < k; i++) {
            const T *__restrict mean = g.sides + i * length;
            T sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t j = 0; j < length; j++)
                sum += argument[j] * mean[j];
            grads.w1[o * k + i] += sum;
        }
    }
    multiply<T>(r.sides, r.arguments, par.w1, 1, k, nullptr, k, length);
    for (int64_t i = 0; i < s.k; i++)
        scale_sides(r.sides + i * length, T(1) / static_cast<T>(s.w), T(1) / static_cast<T>(s.h), s);
}

// What is added to each pixel of three kinds of rows of a channel: the gradient of the mean of its column, and that of
// the shifted means, to which a pixel contributes through those taps whose output pixel lies inside.
template <typename T> void prepare_ends(Reverse<T> &r, const Shape &s, int64_t i) {
    const T *__restrict columns = r.sides + i * s.sides() + s.columns();
    const T *v = r.edges + i * 9;
    const int64_t width = s.steps * kStep;
    for (int64_t kind = 0; kind < 3; kind++) {
        const bool is_first = kind == 0, is_last = kind == 2 || s.h == 1;
        T *__restrict to = r.ends + kind * width;
        T left = 0, right = 0, base = 0;
        for (int u = is_last ? 1 : 0; u < (is_first ? 2 : 3); u++) {
            base += v[3 * u] + v[3 * u + 1] + v[3 * u + 2];
            right += v[3 * u];
            left += v[3 * u + 2];
        }
#pragma omp simd
        for (int64_t w = 0; w < width; w++)
            to[w] = columns[w] + base;
        to[0] -= left;
        to[s.w - 1] -= right;
    }
}

// What the gradient of one channel is computed from.
template <typename T> struct Channel {
    const T *t;                     // the taps (9)
    const T *d;                     // the row above the first
    const T *x, *gate;              // first row
    const T *a, *c, *rows, *ends;   // gates; gradients of the means of rows, and of everything else
    const T *grad;                  // (H, W)
    T *out;                         // (H, W)
    T scale, slope, offset;         // GroupNorm's backward: dy = scale * d - slope * y + offset
    int64_t h, w, width;

    Channel(T *out, const T *grad, const Reverse<T> &r, const Group<T> &g, const Parameters<T> &par, const T *t,
            const Shape &s, int64_t i)
        : t(t), d(r.d + s.first() - s.width()), x(g.row(s, i, 0)), gate(r.gate), a(g.a(s, i)), c(g.c(s, i)),
          rows(r.sides + i * s.sides()), ends(r.ends), grad(grad + i * s.h * s.w), out(out + i * s.h * s.w), h(s.h),
          w(s.w), width(s.width()) {
        const Normalised<T> norm(r, g, par, s, i);
        scale = norm.scale;
        slope = norm.slope;
        offset = norm.slope * g.mu[i] - norm.scale * norm.mean_d;
    }

    // Some rows and N columns. What does not change is kept in variables: for all that the compiler knows, writing the
    // output may change the arrays.
    template <int N> void gradient(int64_t first, int64_t end, int64_t column) const {
        typedef Lanes<T, N> V;
        const V gates = load<T, N>(c + column), top = load<T, N>(ends + column);
        const V middle = load<T, N>(ends + width + column), bottom = load<T, N>(ends + 2 * width + column);
        const T t0 = t[0], t1 = t[1], t2 = t[2], t3 = t[3], t4 = t[4], t5 = t[5], t6 = t[6], t7 = t[7], t8 = t[8];
        const T by_d = scale, by_y = slope, constant = offset;
        const int64_t step = width, out_step = w;
        const T *above = d + first * step + column, *from_x = x + first * step + column;
        const T *from_gate = gate + first * step + column, *from = grad + first * out_step + column;
        T *to = out + first * out_step + column;
        for (int64_t row = first; row < end; row++) {
            const T *same = above + step, *below = same + step;
            const V here = load<T, N>(same);
            V low = t0 * load<T, N>(below + 1), mid = t1 * load<T, N>(below), high = t2 * load<T, N>(below - 1);
            low += t3 * load<T, N>(same + 1);
            mid += t4 * here;
            high += t5 * load<T, N>(same - 1);
            low += t6 * load<T, N>(above + 1);
            mid += t7 * load<T, N>(above);
            high += t8 * load<T, N>(above - 1);
            const V both = gates * a[row];
            const V dy = by_d * here + constant - by_y * (load<T, N>(from_x) * both);
            low += dy * both;
            mid += load<T, N>(from) * load<T, N>(from_gate);
            high += row == 0 ? top : row == h - 1 ? bottom : middle;
            high += rows[row];
            fetch_line(from + 6 * out_step);
            fetch_line_to_write(to + 6 * out_step);
            store<N>(to, low + mid + high);
            above = same;
            from_x += step;
            from_gate += step;
            from += out_step;
            to += out_step;
        }
    }
};

template <typename T>
void gradient_of_input(T *out, const T *grad, Reverse<T> &r, const Group<T> &g, const Parameters<T> &par,
                       const Shared<T> &shared, const Shape &s, int64_t i) {
    prepare_ends(r, s, i);
    const Channel<T> channel(out, grad, r, g, par, shared.kernel + i * 9, s, i);
    for (int64_t first = 0; first < s.h; first += s.block()) {
        const int64_t end = first + s.block() < s.h ? first + s.block() : s.h;
        over_row<kWide<T>>(s.w, [&](auto n, int64_t column) {
            channel.template gradient<n.value>(first, end, column);
        });
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
    int64_t channel = 0;
    for (; channel + 4 <= s.k; channel += 4)
        correlate<4>(r, g, s, channel);
    for (; channel < s.k; channel++)
        correlate<1>(r, g, s, channel);
    for (int64_t i = 0; i < s.k; i++)
        gradient_of_gates(r, g, par, s, i);
    gradient_of_weights(r, g, par, s, grads);
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
        for (int64_t n = 0; n < groups; n++) {
            g.next = x + (n + 1) * pixels;
            forward_group(g, x + n * pixels, out + n * pixels, stats + n * 3 * s.k, par, shared, s);
        }
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
        for (int64_t n = 0; n < groups; n++) {
            g.next = x + (n + 1) * pixels;
            backward_group(r, g, grad + n * pixels, x + n * pixels, stats + n * 3 * s.k, out + n * pixels, par, shared,
                           s, own);
        }
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
