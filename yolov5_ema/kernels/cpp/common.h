// Shared by the kernels: scratch memory, a sigmoid that compilers can vectorise, and the number of the thread.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace yolov5_ema {

inline int thread_number() {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// Hands out pieces of one allocation; each piece starts on a new cache line. With a null base it only counts the bytes.
class Arena {
  public:
    explicit Arena(char *base) : base_(base) {}

    template <typename T> T *take(int64_t count) {
        char *piece = base_ + used_;
        used_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
        return reinterpret_cast<T *>(piece);
    }

    int64_t used() const { return used_; }

  private:
    char *base_;
    int64_t used_ = 0;
};

// exp from additions and multiplications only, so that compilers can vectorise it: 2^n times a polynomial (relative
// error 2e-7). The comparisons are written so that a NaN stays a NaN.
inline float exp_of(float x) {
    x = x > 88.8f ? 88.8f : x; // 2^128, which is infinity
    x = x < -87.0f ? -87.0f : x;
    const float shift = 12582912.0f; // 1.5 * 2^23: adding it rounds to an integer
    const float shifted = x * 1.44269504088896341f + shift;
    const float n = shifted - shift;
    const float rest = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float series = 1.9875691500e-4f;
    series = series * rest + 1.3981999507e-3f;
    series = series * rest + 8.3334519073e-3f;
    series = series * rest + 4.1665795894e-2f;
    series = series * rest + 1.6666665459e-1f;
    series = series * rest + 5.0000001201e-1f;
    series = series * rest * rest + rest + 1.0f;
    int32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 23) + 0x3f800000; // the shift pushes the bits of 1.5 * 2^23 out at the top
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return series * power;
}

inline double exp_of(double x) { return std::exp(x); }

template <typename T> inline T sigmoid(T x) { return T(1) / (T(1) + exp_of(-x)); }

} // namespace yolov5_ema
