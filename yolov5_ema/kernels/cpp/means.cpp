// Blocks whose gates follow from means, on CPUs: SE and ECA from the mean of each channel, CA (Hou et al., CVPR 2021,
// arXiv 2103.02907) from the means of its rows and columns. torch computes the gates from the means; this file holds
// what reads or writes a whole map. For backward, nothing of the size of x is kept except x itself.
//
// Notation: x (R, P) are R = N * C channels of P = H * W pixels. Each channel is processed by one thread. Passes that
// follow each other begin where the one before has ended, because that may still be in the cache.

#include "common.h"

namespace yolov5_ema {
namespace {

template <typename T> double sum_of(const T *x, int64_t count) {
    return sum_over<T>(count, [=](auto n, int64_t p) { return load<T, n.value>(x + p); });
}

template <typename T> double product_of(const T *x, const T *y, int64_t count) {
    return sum_over<T>(count, [=](auto n, int64_t p) { return load<T, n.value>(x + p) * load<T, n.value>(y + p); });
}

template <typename T> void mean(const T *x, T *out, int64_t channels, int64_t pixels, int threads) {
#pragma omp parallel for num_threads(threads_for(channels * pixels, threads)) schedule(static)
    for (int64_t i = 0; i < channels; i++)
        out[i] = static_cast<T>(sum_of(x + i * pixels, pixels) / static_cast<double>(pixels));
}

// out = x * gate + constant of each channel
template <typename T>
void scale(const T *x, const T *gate, const T *constant, T divisor, T *out, int64_t channels, int64_t pixels,
           int threads) {
#pragma omp parallel for num_threads(threads_for(channels * pixels, threads)) schedule(static)
    for (int64_t back = 0; back < channels; back++) {
        const int64_t i = channels - 1 - back;
        const T *__restrict from = x + i * pixels;
        T *__restrict to = out + i * pixels;
        const T factor = gate[i], more = constant ? constant[i] / divisor : T(0);
        if (constant) {
#pragma omp simd
            for (int64_t p = 0; p < pixels; p++)
                to[p] = from[p] * factor + more;
        } else {
#pragma omp simd
            for (int64_t p = 0; p < pixels; p++)
                to[p] = from[p] * factor;
        }
    }
}

template <typename T>
void gate_backward(const T *grad, const T *x, T *d_gate, int64_t channels, int64_t pixels, int threads) {
#pragma omp parallel for num_threads(threads_for(channels * pixels, threads)) schedule(static)
    for (int64_t i = 0; i < channels; i++)
        d_gate[i] = static_cast<T>(product_of(grad + i * pixels, x + i * pixels, pixels));
}

// The means of each channel's rows, then of its columns: (R, H + W).
template <typename T> void means_of_sides(const T *x, T *out, int64_t channels, int64_t h, int64_t w, int threads) {
#pragma omp parallel for num_threads(threads_for(channels * h * w, threads)) schedule(static)
    for (int64_t i = 0; i < channels; i++) {
        const T *from = x + i * h * w;
        T *rows = out + i * (h + w), *columns = rows + h;
        std::memset(columns, 0, w * sizeof(T));
        for (int64_t row = 0; row < h; row++, from += w) {
            RowSum<T> sum;
            over_parts<kWide<T>>(w, [=, &sum](auto n, int64_t column) {
                constexpr int N = n.value;
                const Lanes<T, N> values = load<T, N>(from + column);
                sum.add(values, n);
                store<N>(columns + column, load<T, N>(columns + column) + values);
            });
            rows[row] = sum.total() / static_cast<T>(w);
        }
        for (int64_t column = 0; column < w; column++)
            columns[column] /= static_cast<T>(h);
    }
}

// out = x * gate_h * gate_w, plus what is given for each row and column: (R, H + W), or null.
template <typename T>
void scale_sides(const T *x, const T *gate_h, const T *gate_w, const T *sides, T *out, int64_t channels, int64_t h,
                 int64_t w, int threads) {
#pragma omp parallel for num_threads(threads_for(channels * h * w, threads)) schedule(static)
    for (int64_t back = 0; back < channels; back++) {
        const int64_t i = channels - 1 - back;
        const T *of_columns = gate_w + i * w, *of_rows = gate_h + i * h;
        for (int64_t row = 0; row < h; row++) {
            const T *from = x + (i * h + row) * w;
            T *to = out + (i * h + row) * w;
            const T gate = of_rows[row];
            if (!sides) {
                over_row<kWide<T>>(w, [=](auto n, int64_t column) {
                    constexpr int N = n.value;
                    store<N>(to + column, load<T, N>(from + column) * load<T, N>(of_columns + column) * gate);
                });
                continue;
            }
            const T *columns = sides + i * (h + w) + h;
            const T more = sides[i * (h + w) + row] / static_cast<T>(w), part = T(1) / static_cast<T>(h);
            over_row<kWide<T>>(w, [=](auto n, int64_t column) {
                constexpr int N = n.value;
                const Lanes<T, N> added = load<T, N>(columns + column) * part + more;
                store<N>(to + column, load<T, N>(from + column) * (load<T, N>(of_columns + column) * gate) + added);
            });
        }
    }
}

template <typename T>
void sides_backward(const T *grad, const T *x, const T *gate_h, const T *gate_w, T *d_gate_h, T *d_gate_w,
                    int64_t channels, int64_t h, int64_t w, int threads) {
#pragma omp parallel for num_threads(threads_for(channels * h * w, threads)) schedule(static)
    for (int64_t i = 0; i < channels; i++) {
        const T *from_x = x + i * h * w, *from = grad + i * h * w, *of_columns = gate_w + i * w;
        T *columns = d_gate_w + i * w;
        std::memset(columns, 0, w * sizeof(T));
        for (int64_t row = 0; row < h; row++, from_x += w, from += w) {
            const T gate = gate_h[i * h + row];
            RowSum<T> sum;
            over_parts<kWide<T>>(w, [=, &sum](auto n, int64_t column) {
                constexpr int N = n.value;
                const Lanes<T, N> product = load<T, N>(from + column) * load<T, N>(from_x + column);
                sum.add(product * load<T, N>(of_columns + column), n);
                store<N>(columns + column, load<T, N>(columns + column) + product * gate);
            });
            d_gate_h[i * h + row] = sum.total();
        }
    }
}

} // namespace
} // namespace yolov5_ema

// The functions that Python calls, for each dtype. All arrays are contiguous. Each function returns 0.
#define YOLOV5_EMA_MEANS(T, NAME)                                                                                     \
    EMA_EXPORT int means_mean_##NAME(const T *x, T *out, int64_t channels, int64_t pixels, int threads) {             \
        yolov5_ema::mean(x, out, channels, pixels, threads);                                                          \
        return 0;                                                                                                     \
    }                                                                                                                 \
    EMA_EXPORT int means_scale_##NAME(const T *x, const T *gate, T *out, int64_t channels, int64_t pixels,            \
                                      int threads) {                                                                  \
        yolov5_ema::scale<T>(x, gate, nullptr, T(1), out, channels, pixels, threads);                                 \
        return 0;                                                                                                     \
    }                                                                                                                 \
    EMA_EXPORT int means_scale_backward_##NAME(const T *grad, const T *x, T *d_gate, int64_t channels,                \
                                               int64_t pixels, int threads) {                                         \
        yolov5_ema::gate_backward(grad, x, d_gate, channels, pixels, threads);                                        \
        return 0;                                                                                                     \
    }                                                                                                                 \
    EMA_EXPORT int means_input_backward_##NAME(const T *grad, const T *gate, const T *d_mean, T *out,                 \
                                               int64_t channels, int64_t pixels, int threads) {                       \
        yolov5_ema::scale(grad, gate, d_mean, static_cast<T>(pixels), out, channels, pixels, threads);                \
        return 0;                                                                                                     \
    }                                                                                                                 \
    EMA_EXPORT int means_sides_##NAME(const T *x, T *out, int64_t channels, int64_t h, int64_t w, int threads) {      \
        yolov5_ema::means_of_sides(x, out, channels, h, w, threads);                                                  \
        return 0;                                                                                                     \
    }                                                                                                                 \
    EMA_EXPORT int means_sides_scale_##NAME(const T *x, const T *gate_h, const T *gate_w, T *out, int64_t channels,   \
                                            int64_t h, int64_t w, int threads) {                                      \
        yolov5_ema::scale_sides<T>(x, gate_h, gate_w, nullptr, out, channels, h, w, threads);                         \
        return 0;                                                                                                     \
    }                                                                                                                 \
    EMA_EXPORT int means_sides_scale_backward_##NAME(const T *grad, const T *x, const T *gate_h, const T *gate_w,     \
                                                     T *d_gate_h, T *d_gate_w, int64_t channels, int64_t h,           \
                                                     int64_t w, int threads) {                                        \
        yolov5_ema::sides_backward(grad, x, gate_h, gate_w, d_gate_h, d_gate_w, channels, h, w, threads);             \
        return 0;                                                                                                     \
    }                                                                                                                 \
    EMA_EXPORT int means_sides_input_backward_##NAME(const T *grad, const T *gate_h, const T *gate_w,                 \
                                                     const T *d_means, T *out, int64_t channels, int64_t h,           \
                                                     int64_t w, int threads) {                                        \
        yolov5_ema::scale_sides(grad, gate_h, gate_w, d_means, out, channels, h, w, threads);                         \
        return 0;                                                                                                     \
    }

YOLOV5_EMA_MEANS(float, float32)
YOLOV5_EMA_MEANS(double, float64)
