// CBAM's passes over the feature map, on CPUs (Woo et al., ECCV 2018, arXiv 1807.06521).
//
// torch computes the small parts: the MLP and the norm of the spatial gate. This file holds what reads all of x (two
// reductions and a product in forward, two reductions and the gradient of x in backward), and the spatial convolution.
// Nothing of the size of x is written except the output and the gradient of x.
//
// Notation: x (N, C, P) with P pixels; a (N, C) is the channel gate, s (N, P) the spatial gate. y = x * a is computed
// again wherever it is needed, so that y == top holds bit for bit. top and mean (N, P) are the maximum and the mean of
// y over the channels. Work is split into tiles: a tile is a run of pixels of one image, with all channels. It is short
// enough for its maps to stay in the cache, and long enough for x to be read in long runs. Loops over channels process
// four channels at once, so that the processor can work on several sums at the same time.
//
// Maxima ignore NaN, as the processor's maximum does; sums do not. So wherever a sum is NaN, the values are searched
// for a NaN, and if there is one, the maximum is NaN.

#include "common.h"

#include <memory>
#include <new>

namespace yolov5_ema {
namespace {

template <typename T> using Array = std::unique_ptr<T[]>;

constexpr int64_t kTile = 8192;     // pixels
constexpr int64_t kLanes = 32;      // partial sums and maxima of a run

struct Shape {
    int64_t n, c, pixels;
    int threads;

    Shape(int64_t n, int64_t c, int64_t pixels, int threads)
        : n(n), c(c), pixels(pixels), threads(n * c * pixels < kSmall ? 1 : threads) {}
};

struct Tile {
    int64_t image, first, count;
};

// The tiles of all images. Their sizes are equal, and there are several for each thread if the maps are large enough.
class Tiles {
  public:
    explicit Tiles(const Shape &s) : pixels_(s.pixels) {
        const int64_t wanted = (2 * s.threads + s.n - 1) / s.n; // for each image
        int64_t size = ((s.pixels + wanted - 1) / wanted + 63) / 64 * 64;
        size_ = size < kTile ? size : kTile;
        each_ = (s.pixels + size_ - 1) / size_;
        count_ = s.n * each_;
    }

    int64_t count() const { return count_; }
    int64_t of_image() const { return each_; }

    Tile operator[](int64_t index) const {
        const int64_t image = index / each_, first = index % each_ * size_;
        return {image, first, first + size_ < pixels_ ? size_ : pixels_ - first};
    }

  private:
    int64_t pixels_, size_, each_, count_;
};

// While a chunk of four rows is processed, prefetch the same chunk of the next four rows: rows are too short for the
// processor to predict this by itself. In loops that compute more for each value, prefetching costs more than it saves.
constexpr int64_t kChunk = 64;

template <typename T> void fetch_next_rows(const T *x, int64_t step) {
    for (int64_t row = 4; row < 8; row++) {
        const uintptr_t from = reinterpret_cast<uintptr_t>(x) + static_cast<uintptr_t>(row * step) * sizeof(T);
        for (uintptr_t line = 0; line < kChunk * sizeof(T); line += 64)
            __builtin_prefetch(reinterpret_cast<const void *>(from + line), 0, 2);
    }
}

template <typename T> bool is_nan(T value) { return value != value; }

template <typename T> T larger(T value, T than) { return value > than ? value : than; }

template <typename T> bool holds_nan(const T *x, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        if (is_nan(x[i]))
            return true;
    return false;
}

template <typename T> struct Pooled {
    double sum;
    T top;
};

// Sum and maximum of a row.
template <typename T> Pooled<T> pool_row(const T *__restrict x, int64_t count) {
    double total = 0;
    T tops[kLanes];
    for (int64_t j = 0; j < kLanes; j++)
        tops[j] = -INFINITY;
    for (int64_t first = 0; first < count; first += kRun) {
        const int64_t end = first + kRun < count ? first + kRun : count;
        T sums[kLanes] = {0};
        int64_t i = first;
        for (; i + kLanes <= end; i += kLanes)
            for (int64_t j = 0; j < kLanes; j++) {
                sums[j] += x[i + j];
                tops[j] = larger(x[i + j], tops[j]);
            }
        for (int64_t j = 0; i + j < end; j++) {
            sums[j] += x[i + j];
            tops[j] = larger(x[i + j], tops[j]);
        }
        for (int64_t half = kLanes / 2; half; half /= 2)
            for (int64_t j = 0; j < half; j++)
                sums[j] += sums[j + half];
        total += sums[0];
    }
    for (int64_t half = kLanes / 2; half; half /= 2)
        for (int64_t j = 0; j < half; j++)
            tops[j] = larger(tops[j + half], tops[j]);
    if (is_nan(total) && holds_nan(x, count))
        tops[0] = NAN;
    return {total, tops[0]};
}

template <typename T> T count_equal(const T *x, T value, int64_t count) {
    int64_t found = 0;
    for (int64_t first = 0; first < count; first += kRun) {
        const int64_t end = first + kRun < count ? first + kRun : count;
        int32_t part = 0;
#pragma omp simd reduction(+ : part)
        for (int64_t i = first; i < end; i++)
            part += x[i] == value;
        found += part;
    }
    return static_cast<T>(found);
}

template <typename T> void pool(const T *x, T *mean, T *top, T *ties, const Shape &s) {
#pragma omp parallel for num_threads(s.threads) schedule(static)
    for (int64_t row = 0; row < s.n * s.c; row++) {
        const T *from = x + row * s.pixels;
        const Pooled<T> found = pool_row(from, s.pixels);
        mean[row] = static_cast<T>(found.sum / static_cast<double>(s.pixels));
        top[row] = found.top;
        if (ties)
            ties[row] = count_equal(from, found.top, s.pixels);
    }
}

// Update a pixel's maximum over the channels, and the number of channels that have it, with one more value of y.
template <bool kTies, typename T> inline void take(T y, T &top, T &ties) {
    if (kTies)
        ties = y > top ? T(1) : ties + (y == top ? T(1) : T(0));
    top = larger(y, top);
}

template <bool kTies, typename T> struct TileMaps {
    T top[kTile], ties[kTile];
    double sum[kTile];

    void reset(int64_t count) {
        for (int64_t p = 0; p < count; p++) {
            top[p] = -INFINITY;
            ties[p] = 0;
            sum[p] = 0;
        }
    }

    void add(const T *__restrict x, T a, int64_t count) {
#pragma omp simd
        for (int64_t p = 0; p < count; p++) {
            const T y = x[p] * a;
            take<kTies>(y, top[p], ties[p]);
            sum[p] += y;
        }
    }

    void add_four(const T *__restrict x0, int64_t step, const T *a, int64_t count) {
        const T *__restrict x1 = x0 + step, *__restrict x2 = x1 + step, *__restrict x3 = x2 + step;
        const T a0 = a[0], a1 = a[1], a2 = a[2], a3 = a[3];
        for (int64_t first = 0; first < count; first += kChunk) {
            const int64_t end = first + kChunk < count ? first + kChunk : count;
            fetch_next_rows(x0 + first, step);
#pragma omp simd
            for (int64_t p = first; p < end; p++) {
                const T y0 = x0[p] * a0, y1 = x1[p] * a1, y2 = x2[p] * a2, y3 = x3[p] * a3;
                T most = top[p], many = ties[p];
                take<kTies>(y0, most, many);
                take<kTies>(y1, most, many);
                take<kTies>(y2, most, many);
                take<kTies>(y3, most, many);
                top[p] = most;
                ties[p] = many;
                sum[p] += (y0 + y1) + (y2 + y3);
            }
        }
    }
};

template <bool kTies, typename T>
void maps_of_tile(const T *x, const T *a, T *maps, T *ties, const Tile &tile, const Shape &s) {
    TileMaps<kTies, T> found;
    found.reset(tile.count);
    int64_t c = 0;
    for (; c + 4 <= s.c; c += 4)
        found.add_four(x + c * s.pixels, s.pixels, a + c, tile.count);
    for (; c < s.c; c++)
        found.add(x + c * s.pixels, a[c], tile.count);
    for (int64_t p = 0; p < tile.count; p++) {
        T top = found.top[p];
        if (is_nan(found.sum[p]))
            for (c = 0; c < s.c; c++)
                if (is_nan(x[c * s.pixels + p] * a[c]))
                    top = NAN;
        maps[p] = top;
        maps[s.pixels + p] = static_cast<T>(found.sum[p] / static_cast<double>(s.c));
        if (kTies)
            ties[p] = is_nan(top) ? T(0) : found.ties[p];
    }
}

template <typename T> void maps(const T *x, const T *a, T *out, T *ties, const Shape &s) {
    const Tiles tiles(s);
#pragma omp parallel for num_threads(s.threads) schedule(static)
    for (int64_t i = 0; i < tiles.count(); i++) {
        const Tile tile = tiles[tiles.count() - 1 - i]; // backwards: what `pool` read last may still be in the cache
        const T *from = x + tile.image * s.c * s.pixels + tile.first;
        T *to = out + tile.image * 2 * s.pixels + tile.first;
        if (ties)
            maps_of_tile<true>(from, a + tile.image * s.c, to, ties + tile.image * s.pixels + tile.first, tile, s);
        else
            maps_of_tile<false>(from, a + tile.image * s.c, to, ties, tile, s);
    }
}

template <typename T> void apply(const T *x, const T *a, const T *gate, T *out, const Shape &s) {
    const Tiles tiles(s);
#pragma omp parallel for num_threads(s.threads) schedule(static)
    for (int64_t i = 0; i < tiles.count(); i++) {
        const Tile tile = tiles[i];
        const T *__restrict spatial = gate + tile.image * s.pixels + tile.first;
        for (int64_t c = 0; c < s.c; c++) {
            const int64_t at = (tile.image * s.c + c) * s.pixels + tile.first;
            const T *__restrict from = x + at;
            T *__restrict to = out + at;
            const T channel = a[tile.image * s.c + c];
#pragma omp simd
            for (int64_t p = 0; p < tile.count; p++)
                to[p] = from[p] * channel * spatial[p];
        }
    }
}

// Sums over pixels, for each tile and channel. They are added in the order of the tiles, whichever thread made them.
class ChannelSums {
  public:
    ChannelSums(const Tiles &tiles, const Shape &s)
        : c_(s.c), each_(tiles.of_image()), parts_(new (std::nothrow) double[tiles.count() * s.c]) {}

    bool missing() const { return !parts_; }
    double *of_tile(int64_t tile) { return parts_.get() + tile * c_; }

    template <typename T> void write(T *out, int64_t images) {
        for (int64_t n = 0; n < images; n++)
            for (int64_t c = 0; c < c_; c++) {
                double sum = 0;
                for (int64_t i = 0; i < each_; i++)
                    sum += of_tile(n * each_ + i)[c];
                out[n * c_ + c] = static_cast<T>(sum);
            }
    }

  private:
    int64_t c_, each_;
    Array<double> parts_;
};

template <typename T>
void apply_backward_of_tile(const T *x, const T *grad, const T *a, const T *__restrict gate, T *d_gate, double *d_a,
                            const Tile &tile, const Shape &s) {
    double sums[kTile] = {0};
    int64_t c = 0;
    for (; c + 4 <= s.c; c += 4) {
        const int64_t step = s.pixels;
        const T *__restrict x0 = x + c * step, *__restrict x1 = x0 + step;
        const T *__restrict x2 = x1 + step, *__restrict x3 = x2 + step;
        const T *__restrict g0 = grad + c * step, *__restrict g1 = g0 + step;
        const T *__restrict g2 = g1 + step, *__restrict g3 = g2 + step;
        const T a0 = a[c], a1 = a[c + 1], a2 = a[c + 2], a3 = a[c + 3];
        T sum0 = 0, sum1 = 0, sum2 = 0, sum3 = 0;
#pragma omp simd reduction(+ : sum0, sum1, sum2, sum3)
        for (int64_t p = 0; p < tile.count; p++) {
            const T t0 = g0[p] * x0[p], t1 = g1[p] * x1[p], t2 = g2[p] * x2[p], t3 = g3[p] * x3[p];
            sum0 += t0 * gate[p];
            sum1 += t1 * gate[p];
            sum2 += t2 * gate[p];
            sum3 += t3 * gate[p];
            sums[p] += (t0 * a0 + t1 * a1) + (t2 * a2 + t3 * a3);
        }
        d_a[c] = sum0;
        d_a[c + 1] = sum1;
        d_a[c + 2] = sum2;
        d_a[c + 3] = sum3;
    }
    for (; c < s.c; c++) {
        const T *__restrict x0 = x + c * s.pixels, *__restrict g0 = grad + c * s.pixels;
        T sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t p = 0; p < tile.count; p++) {
            const T t = g0[p] * x0[p];
            sum += t * gate[p];
            sums[p] += t * a[c];
        }
        d_a[c] = sum;
    }
    for (int64_t p = 0; p < tile.count; p++)
        d_gate[p] = static_cast<T>(sums[p]);
}

// From the gradient of the output: the whole gradient of the spatial gate, and the part of the channel gate's gradient
// that comes from the product.
template <typename T>
int apply_backward(const T *x, const T *grad, const T *a, const T *gate, T *d_a, T *d_gate, const Shape &s) {
    const Tiles tiles(s);
    ChannelSums sums(tiles, s);
    if (sums.missing())
        return 1;
#pragma omp parallel for num_threads(s.threads) schedule(static)
    for (int64_t i = 0; i < tiles.count(); i++) {
        const Tile tile = tiles[i];
        const int64_t map = tile.image * s.pixels + tile.first, all = tile.image * s.c * s.pixels + tile.first;
        apply_backward_of_tile(x + all, grad + all, a + tile.image * s.c, gate + map, d_gate + map, sums.of_tile(i),
                               tile, s);
    }
    sums.write(d_a, s.n);
    return 0;
}

// The gradient that a value of y gets from the maps of a tile: one for the maxima, one for all other values.
template <typename T> struct Shares {
    T top[kTile], at_top[kTile], elsewhere[kTile];

    // d_maps and maps hold first the map of the maximum, then that of the mean.
    Shares(const T *d_maps, const T *maps, const T *ties, int64_t count, const Shape &s) {
        const T channels = static_cast<T>(s.c);
        for (int64_t p = 0; p < count; p++) {
            top[p] = maps[p];
            // Equal maxima share the gradient evenly. Without a maximum (NaN), or if the gradient is not finite, the
            // term 0 * gradient / ties gives NaN, as in torch.
            elsewhere[p] = d_maps[s.pixels + p] / channels + d_maps[p] * T(0) / ties[p];
            at_top[p] = elsewhere[p] + d_maps[p] / ties[p];
        }
    }

    T of(T y, int64_t p) const { return y == top[p] ? at_top[p] : elsewhere[p]; }
};

template <typename T>
int maps_backward(const T *x, const T *d_maps, const T *a, const T *maps, const T *ties, T *d_a, const Shape &s) {
    const Tiles tiles(s);
    ChannelSums sums(tiles, s);
    if (sums.missing())
        return 1;
#pragma omp parallel for num_threads(s.threads) schedule(static)
    for (int64_t back = 0; back < tiles.count(); back++) {
        const int64_t i = tiles.count() - 1 - back; // as in `maps`
        const Tile tile = tiles[i];
        const int64_t map = tile.image * s.pixels + tile.first;
        const Shares<T> shares(d_maps + map + tile.image * s.pixels, maps + map + tile.image * s.pixels, ties + map,
                               tile.count, s);
        const T *from = x + tile.image * s.c * s.pixels + tile.first, *channels = a + tile.image * s.c;
        double *to = sums.of_tile(i);
        int64_t c = 0;
        for (; c + 4 <= s.c; c += 4) {
            const T *__restrict x0 = from + c * s.pixels, *__restrict x1 = x0 + s.pixels;
            const T *__restrict x2 = x1 + s.pixels, *__restrict x3 = x2 + s.pixels;
            const T a0 = channels[c], a1 = channels[c + 1], a2 = channels[c + 2], a3 = channels[c + 3];
            T sum0 = 0, sum1 = 0, sum2 = 0, sum3 = 0;
#pragma omp simd reduction(+ : sum0, sum1, sum2, sum3)
            for (int64_t p = 0; p < tile.count; p++) {
                sum0 += shares.of(x0[p] * a0, p) * x0[p];
                sum1 += shares.of(x1[p] * a1, p) * x1[p];
                sum2 += shares.of(x2[p] * a2, p) * x2[p];
                sum3 += shares.of(x3[p] * a3, p) * x3[p];
            }
            to[c] = sum0;
            to[c + 1] = sum1;
            to[c + 2] = sum2;
            to[c + 3] = sum3;
        }
        for (; c < s.c; c++) {
            const T *__restrict x0 = from + c * s.pixels;
            T sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t p = 0; p < tile.count; p++)
                sum += shares.of(x0[p] * channels[c], p) * x0[p];
            to[c] = sum;
        }
    }
    sums.write(d_a, s.n);
    return 0;
}

// The tensors of forward, and the gradients of the small parts.
template <typename T> struct Known {
    const T *a, *gate, *maps, *map_ties, *top, *ties; // (N, C), (N, P), (N, 2, P), (N, P), (N, C), (N, C)
    const T *d_mean, *d_top, *d_maps;                 // (N, C), (N, C), (N, 2, P)
};

template <typename T> void input_backward(const T *x, const Known<T> &k, const T *grad, T *out, const Shape &s) {
    const Tiles tiles(s);
#pragma omp parallel for num_threads(s.threads) schedule(static)
    for (int64_t i = 0; i < tiles.count(); i++) {
        const Tile tile = tiles[i];
        const int64_t map = tile.image * s.pixels + tile.first;
        const Shares<T> shares(k.d_maps + map + tile.image * s.pixels, k.maps + map + tile.image * s.pixels,
                               k.map_ties + map, tile.count, s);
        const T *__restrict gate = k.gate + map;
        for (int64_t c = 0; c < s.c; c++) {
            const int64_t row = tile.image * s.c + c, at = row * s.pixels + tile.first;
            const T *__restrict from = x + at;
            const T *__restrict above = grad + at;
            T *__restrict to = out + at;
            const T channel = k.a[row], top = k.top[row];
            const T elsewhere = k.d_mean[row] / static_cast<T>(s.pixels) + k.d_top[row] * T(0) / k.ties[row];
            const T at_top = elsewhere + k.d_top[row] / k.ties[row];
#pragma omp simd
            for (int64_t p = 0; p < tile.count; p++) {
                const T share = from[p] * channel == shares.top[p] ? shares.at_top[p] : shares.elsewhere[p];
                to[p] = (above[p] * gate[p] + share) * channel + (from[p] == top ? at_top : elsewhere);
            }
        }
    }
}

// The convolution of the spatial gate: k x k, stride 1, padded by r = k / 2, from two planes to one. The planes are
// small, but a general convolution takes longer for them than all passes above take for x.
struct Window {
    int64_t n, h, w, k;
    int threads;

    Window(int64_t n, int64_t h, int64_t w, int64_t k, int threads)
        : n(n), h(h), w(w), k(k), threads(n * h * w * k * k < 4 * kSmall ? 1 : threads) {}

    int64_t r() const { return k / 2; }
    int64_t width() const { return w + 2 * r(); } // of a padded row
};

// The bands of all images. A band is a run of rows of one image; each is copied into scratch memory with r rows above
// and below it and r columns at each side.
class Bands {
  public:
    explicit Bands(const Window &s) : h_(s.h) {
        const int64_t wanted = (2 * s.threads + s.n - 1) / s.n; // for each image
        rows_ = (s.h + wanted - 1) / wanted;
        each_ = (s.h + rows_ - 1) / rows_;
        count_ = s.n * each_;
    }

    int64_t count() const { return count_; }
    int64_t image(int64_t band) const { return band / each_; }
    int64_t first(int64_t band) const { return band % each_ * rows_; }
    int64_t rows(int64_t band) const { return first(band) + rows_ < h_ ? rows_ : h_ - first(band); }
    // Number of values of a padded plane, with a margin, because blocks may read beyond its end.
    int64_t plane(const Window &s) const { return (rows_ + 2 * s.r() + 1) * s.width() + kBlock; }

    static constexpr int64_t kBlock = 64;

  private:
    int64_t h_, rows_, each_, count_;
};

// Copy the rows from first - above to first + rows + above of a plane; rows outside the plane are zeros.
template <typename T>
void load_rows(T *to, const T *plane, int64_t first, int64_t rows, int64_t above, const Window &s) {
    for (int64_t h = first - above; h < first + rows + above; h++, to += s.width()) {
        std::memset(to, 0, s.width() * sizeof(T));
        if (h >= 0 && h < s.h)
            std::memcpy(to + s.r(), plane + h * s.w, s.w * sizeof(T));
    }
}

// Convolve several planes to one. The loop runs from one row into the next; the values computed between them are not
// stored.
template <typename T>
void convolve_rows(T *out, const T *in, int64_t planes, int64_t plane, const T *weights, int64_t rows,
                   const Window &s) {
    constexpr int64_t kBlock = Bands::kBlock;
    const int64_t width = s.width();
    for (int64_t first = 0; first < rows * width; first += kBlock) {
        T sums[kBlock] = {0};
        const T *weight = weights;
        for (int64_t i = 0; i < planes; i++)
            for (int64_t u = 0; u < s.k; u++)
                for (int64_t v = 0; v < s.k; v++) {
                    const T *__restrict from = in + i * plane + first + u * width + v;
                    const T factor = *weight++;
                    for (int64_t j = 0; j < kBlock; j++)
                        sums[j] += factor * from[j];
                }
        for (int64_t j = 0; j < kBlock && first + j < rows * width; j++) {
            const int64_t row = (first + j) / width, column = (first + j) % width;
            if (column < s.w)
                out[row * s.w + column] = sums[j];
        }
    }
}

// Sum of the products of two runs of values.
template <typename T> double dot(const T *__restrict x, const T *__restrict y, int64_t count) {
    double total = 0;
    for (int64_t first = 0; first < count; first += kRun) {
        const int64_t end = first + kRun < count ? first + kRun : count;
        T sums[kLanes] = {0};
        int64_t i = first;
        for (; i + kLanes <= end; i += kLanes)
            for (int64_t j = 0; j < kLanes; j++)
                sums[j] += x[i + j] * y[i + j];
        for (int64_t j = 0; i + j < end; j++)
            sums[j] += x[i + j] * y[i + j];
        for (int64_t half = kLanes / 2; half; half /= 2)
            for (int64_t j = 0; j < half; j++)
                sums[j] += sums[j + half];
        total += sums[0];
    }
    return total;
}

template <typename T> int convolve(const T *maps, const T *weights, T *out, const Window &s) {
    const Bands bands(s);
    const int64_t plane = bands.plane(s), pixels = s.h * s.w;
    const Array<T> scratch(new (std::nothrow) T[s.threads * 2 * plane]());
    if (!scratch)
        return 1;
#pragma omp parallel for num_threads(s.threads) schedule(static)
    for (int64_t b = 0; b < bands.count(); b++) {
        T *in = scratch.get() + thread_number() * 2 * plane;
        const int64_t image = bands.image(b), first = bands.first(b), rows = bands.rows(b);
        for (int64_t i = 0; i < 2; i++)
            load_rows(in + i * plane, maps + (image * 2 + i) * pixels, first, rows, s.r(), s);
        convolve_rows(out + image * pixels + first * s.w, in, 2, plane, weights, rows, s);
    }
    return 0;
}

// The gradients of the maps and of the weights.
template <typename T>
int convolve_backward(const T *maps, const T *grad, const T *weights, T *d_maps, T *d_weights, const Window &s) {
    const Bands bands(s);
    const int64_t plane = bands.plane(s), pixels = s.h * s.w, taps = s.k * s.k;
    const Array<T> scratch(new (std::nothrow) T[s.threads * 4 * plane]());
    const Array<T> turned(new (std::nothrow) T[2 * taps]);
    const Array<double> parts(new (std::nothrow) double[bands.count() * 2 * taps]);
    if (!scratch || !turned || !parts)
        return 1;
    for (int64_t t = 0; t < 2 * taps; t++)
        turned[t] = weights[t / taps * taps + taps - 1 - t % taps];
#pragma omp parallel for num_threads(s.threads) schedule(static)
    for (int64_t b = 0; b < bands.count(); b++) {
        T *own = scratch.get() + thread_number() * 4 * plane, *around = own + plane, *in = own + 2 * plane;
        const int64_t image = bands.image(b), first = bands.first(b), rows = bands.rows(b);
        load_rows(own, grad + image * pixels, first, rows, 0, s);
        load_rows(around, grad + image * pixels, first, rows, s.r(), s);
        for (int64_t i = 0; i < 2; i++) {
            load_rows(in + i * plane, maps + (image * 2 + i) * pixels, first, rows, s.r(), s);
            convolve_rows(d_maps + (image * 2 + i) * pixels + first * s.w, around, 1, plane, turned.get() + i * taps,
                          rows, s);
            for (int64_t t = 0; t < taps; t++)
                parts[(b * 2 + i) * taps + t] = dot(own + s.r(), in + i * plane + t / s.k * s.width() + t % s.k,
                                                    rows * s.width() - s.r());
        }
    }
    for (int64_t t = 0; t < 2 * taps; t++) {
        double sum = 0;
        for (int64_t b = 0; b < bands.count(); b++)
            sum += parts[b * 2 * taps + t];
        d_weights[t] = static_cast<T>(sum);
    }
    return 0;
}

} // namespace
} // namespace yolov5_ema

// The functions that Python calls, for each dtype. All arrays are contiguous and have the shapes of the notation above.
// maps are (N, 2, P), the maximum first. ties are the numbers of equal maxima; in forward they may be null. Each
// function returns 0, or 1 if memory runs out.
#define YOLOV5_EMA_CBAM(T, NAME)                                                                                      \
    EMA_EXPORT int cbam_pool_##NAME(const T *x, T *mean, T *top, T *ties, int64_t n, int64_t c, int64_t pixels,      \
                                    int threads) {                                                                   \
        yolov5_ema::pool(x, mean, top, ties, {n, c, pixels, threads});                                               \
        return 0;                                                                                                    \
    }                                                                                                                \
    EMA_EXPORT int cbam_maps_##NAME(const T *x, const T *a, T *maps, T *ties, int64_t n, int64_t c, int64_t pixels,  \
                                    int threads) {                                                                   \
        yolov5_ema::maps(x, a, maps, ties, {n, c, pixels, threads});                                                 \
        return 0;                                                                                                    \
    }                                                                                                                \
    EMA_EXPORT int cbam_apply_##NAME(const T *x, const T *a, const T *gate, T *out, int64_t n, int64_t c,            \
                                     int64_t pixels, int threads) {                                                  \
        yolov5_ema::apply(x, a, gate, out, {n, c, pixels, threads});                                                 \
        return 0;                                                                                                    \
    }                                                                                                                \
    EMA_EXPORT int cbam_apply_backward_##NAME(const T *x, const T *grad, const T *a, const T *gate, T *d_a,          \
                                              T *d_gate, int64_t n, int64_t c, int64_t pixels, int threads) {        \
        return yolov5_ema::apply_backward(x, grad, a, gate, d_a, d_gate, {n, c, pixels, threads});                   \
    }                                                                                                                \
    EMA_EXPORT int cbam_maps_backward_##NAME(const T *x, const T *d_maps, const T *a, const T *maps, const T *ties,  \
                                             T *d_a, int64_t n, int64_t c, int64_t pixels, int threads) {            \
        return yolov5_ema::maps_backward(x, d_maps, a, maps, ties, d_a, {n, c, pixels, threads});                    \
    }                                                                                                                \
    EMA_EXPORT int cbam_input_backward_##NAME(                                                                       \
        const T *x, const T *a, const T *gate, const T *maps, const T *map_ties, const T *top, const T *ties,        \
        const T *grad, const T *d_mean, const T *d_top, const T *d_maps, T *out, int64_t n, int64_t c,               \
        int64_t pixels, int threads) {                                                                               \
        yolov5_ema::input_backward(x, {a, gate, maps, map_ties, top, ties, d_mean, d_top, d_maps}, grad, out,        \
                                   {n, c, pixels, threads});                                                         \
        return 0;                                                                                                    \
    }

#define YOLOV5_EMA_CBAM_CONVOLUTION(T, NAME)                                                                         \
    EMA_EXPORT int cbam_convolve_##NAME(const T *maps, const T *weights, T *out, int64_t n, int64_t h, int64_t w,    \
                                        int64_t k, int threads) {                                                    \
        return yolov5_ema::convolve(maps, weights, out, {n, h, w, k, threads});                                      \
    }                                                                                                                \
    EMA_EXPORT int cbam_convolve_backward_##NAME(const T *maps, const T *grad, const T *weights, T *d_maps,          \
                                                 T *d_weights, int64_t n, int64_t h, int64_t w, int64_t k,           \
                                                 int threads) {                                                      \
        return yolov5_ema::convolve_backward(maps, grad, weights, d_maps, d_weights, {n, h, w, k, threads});         \
    }

YOLOV5_EMA_CBAM(float, float32)
YOLOV5_EMA_CBAM(double, float64)
YOLOV5_EMA_CBAM_CONVOLUTION(float, float32)
YOLOV5_EMA_CBAM_CONVOLUTION(double, float64)
