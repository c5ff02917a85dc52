// Shared by the kernels: scratch memory, a sigmoid that compilers can vectorise, and the number of the thread.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__GNUC__) && defined(__SSE2__)
#include <immintrin.h>
#endif

#ifdef _OPENMP
#include <omp.h>
#endif

// A function that Python calls.
#ifdef _WIN32
#define EMA_EXPORT extern "C" __declspec(dllexport)
#else
#define EMA_EXPORT extern "C"
#endif

// For functions that keep what their callers sum in registers: through a reference it would be in memory.
#if defined(__GNUC__)
#define EMA_INLINE __attribute__((always_inline))
#else
#define EMA_INLINE
#endif

namespace yolov5_ema {

inline int thread_number() {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi" // no value in registers is passed between libraries
#endif

// N values of type T that are processed at once. Compilers make several narrower operations of it, where the processor
// does not have registers as wide.
#if defined(__GNUC__)
template <typename T, int N> struct LanesOf {
    typedef T type __attribute__((vector_size(N * sizeof(T))));
    typedef T unaligned __attribute__((vector_size(N * sizeof(T)), aligned(sizeof(T))));
};
#else
template <typename T, int N> struct Pack {
    T v[N];
    Pack &operator+=(const Pack &y) { return *this = *this + y; }
    Pack &operator*=(const Pack &y) { return *this = *this * y; }
#define YOLOV5_EMA_LANES(OP)                                                                                          \
    friend Pack operator OP(const Pack &x, const Pack &y) {                                                           \
        Pack z;                                                                                                       \
        for (int j = 0; j < N; j++)                                                                                   \
            z.v[j] = x.v[j] OP y.v[j];                                                                                \
        return z;                                                                                                     \
    }                                                                                                                 \
    friend Pack operator OP(T x, const Pack &y) { return all(x) OP y; }                                               \
    friend Pack operator OP(const Pack &x, T y) { return x OP all(y); }
    YOLOV5_EMA_LANES(+)
    YOLOV5_EMA_LANES(-)
    YOLOV5_EMA_LANES(*)
#undef YOLOV5_EMA_LANES
    static Pack all(T x) {
        Pack z;
        for (int j = 0; j < N; j++)
            z.v[j] = x;
        return z;
    }
};
template <typename T, int N> struct LanesOf {
    typedef Pack<T, N> type;
    typedef Pack<T, N> unaligned;
};
#endif
template <typename T, int N> using Lanes = typename LanesOf<T, N>::type;

#ifdef __AVX512F__
constexpr int kRegister = 64; // bytes
#elif defined(__AVX__)
constexpr int kRegister = 32;
#else
constexpr int kRegister = 16; // GCC computes wider values through memory, which takes four times as long
#endif
template <typename T> constexpr int kWide = kRegister / static_cast<int>(sizeof(T));

// Rows of maps in scratch memory are padded to a multiple of this, so that loops over them have no remainder.
constexpr int64_t kStep = 8;

inline int64_t padded_to_step(int64_t count) { return (count + kStep - 1) / kStep * kStep; }

template <int N> struct Width {
    static constexpr int value = N;
};

template <typename T, int N> inline Lanes<T, N> load(const T *from) {
    return *reinterpret_cast<const typename LanesOf<T, N>::unaligned *>(from);
}

template <int N, typename T> inline void store(T *to, const Lanes<T, N> &values) {
    *reinterpret_cast<typename LanesOf<T, N>::unaligned *>(to) = values;
}

// The same, and what is loaded stays in a register. GCC otherwise loads values again for each operation with them, and
// some loops are limited by their loads. Only where there are enough registers.
template <typename T, int N> inline Lanes<T, N> load_once(const T *from) {
    Lanes<T, N> values = load<T, N>(from);
#if defined(__GNUC__) && defined(__AVX512F__)
    if constexpr (N == kWide<T>)
        asm("" : "+v"(values));
#endif
    return values;
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define YOLOV5_EMA_SHUFFLES
#endif
#endif

// `halved` adds the upper half of N values to the lower half; `doubled` appends N zeros.
#ifdef YOLOV5_EMA_SHUFFLES
template <typename V, int... J> inline auto shuffled_halves(const V &values, std::integer_sequence<int, J...>) {
    return __builtin_shufflevector(values, values, J...) +
           __builtin_shufflevector(values, values, (J + static_cast<int>(sizeof...(J)))...);
}

template <int N, typename T> inline Lanes<T, N / 2> halved(const Lanes<T, N> &values) {
    return shuffled_halves(values, std::make_integer_sequence<int, N / 2>());
}

template <typename V, int... J> inline auto with_zeros(const V &values, std::integer_sequence<int, J...>) {
    return __builtin_shufflevector(values, V{}, J...);
}

template <int N, typename T> inline Lanes<T, 2 * N> doubled(const Lanes<T, N> &values) {
    return with_zeros(values, std::make_integer_sequence<int, 2 * N>());
}
#else
template <int N, typename T> inline Lanes<T, N / 2> halved(const Lanes<T, N> &values) {
    T parts[N];
    store<N>(parts, values);
    return load<T, N / 2>(parts) + load<T, N / 2>(parts + N / 2);
}

template <int N, typename T> inline Lanes<T, 2 * N> doubled(const Lanes<T, N> &values) {
    T parts[2 * N] = {0};
    store<N>(parts, values);
    return load<T, 2 * N>(parts);
}
#endif

template <int N, typename T> inline T total(const Lanes<T, N> &values) {
    if constexpr (N == 1) {
        T only;
        store<1>(&only, values);
        return only;
    } else {
        return total<N / 2, T>(halved<N, T>(values));
    }
}

// The sum of a row, from blocks that are at most as wide as a register.
template <typename T> struct RowSum {
    Lanes<T, kWide<T>> values;

    RowSum() : values{} {}

    template <int N> void add(const Lanes<T, N> &more, Width<N>) {
        if constexpr (N == kWide<T>)
            values += more;
        else
            add(doubled<N, T>(more), Width<2 * N>());
    }
    T total() const { return yolov5_ema::total<kWide<T>, T>(values); }
};

#ifdef YOLOV5_EMA_SHUFFLES
// Of each four values of a and b: those at the indices p, of which the ones from 4 on belong to b.
template <int P0, int P1, int P2, int P3, typename V, int... J>
inline V mixed(const V &a, const V &b, std::integer_sequence<int, J...>) {
    constexpr int N = static_cast<int>(sizeof...(J)), from[4] = {P0, P1, P2, P3};
    return __builtin_shufflevector(a, b, (J / 4 * 4 + from[J % 4] % 4 + from[J % 4] / 4 * N)...);
}

// The totals of four sums. The sums are added while they are transposed, which takes a third of the operations.
template <int N, typename T> inline Lanes<T, 4> four_totals(const Lanes<T, N> &values) {
    if constexpr (N == 4)
        return values;
    else
        return four_totals<N / 2, T>(halved<N, T>(values));
}

template <typename T> inline void store_four_totals(T *to, const RowSum<T> *sums) {
    constexpr int N = kWide<T>;
    if constexpr (N >= 4) {
        typedef Lanes<T, N> V;
        const auto all = std::make_integer_sequence<int, N>();
        const V &a = sums[0].values, &b = sums[1].values, &c = sums[2].values, &d = sums[3].values;
        const V ab = mixed<0, 4, 1, 5>(a, b, all) + mixed<2, 6, 3, 7>(a, b, all);
        const V cd = mixed<0, 4, 1, 5>(c, d, all) + mixed<2, 6, 3, 7>(c, d, all);
        store<4>(to, four_totals<N, T>(mixed<0, 1, 4, 5>(ab, cd, all) + mixed<2, 3, 6, 7>(ab, cd, all)));
    } else {
        for (int j = 0; j < 4; j++)
            to[j] = sums[j].total();
    }
}
#else
template <typename T> inline void store_four_totals(T *to, const RowSum<T> *sums) {
    for (int j = 0; j < 4; j++)
        to[j] = sums[j].total();
}
#endif

// Write the totals of R sums.
template <int R, typename T> inline void store_totals(T *to, const RowSum<T> *sums) {
    for (int r = 0; r + 4 <= R; r += 4)
        store_four_totals(to + r, sums + r);
    for (int r = R / 4 * 4; r < R; r++)
        to[r] = sums[r].total();
}

template <typename F, int... J> EMA_INLINE inline void unrolled_over(const F &f, std::integer_sequence<int, J...>) {
    (f(Width<J>()), ...);
}

// Call f(Width<0>) to f(Width<N - 1>). What is indexed by these numbers can be kept in registers, which compilers do
// not reliably do for the variable of a loop.
template <int N, typename F> EMA_INLINE inline void unrolled(const F &f) {
    unrolled_over(f, std::make_integer_sequence<int, N>());
}

// Call f(Width<R>, first) for blocks of R rows, and then for single rows.
template <int R, typename F> EMA_INLINE inline void over_rows(int64_t count, const F &f) {
    int64_t first = 0;
    for (; first + R <= count; first += R)
        f(Width<R>(), first);
    for (; first < count; first++)
        f(Width<1>(), first);
}

// Call f(Width<N>, first) for blocks of N values that cover a row of any length. The last two blocks may overlap.
template <int N, typename F> EMA_INLINE inline void over_row(int64_t count, const F &f) {
    if constexpr (N > 1) {
        if (count < N)
            return over_row<N / 2>(count, f);
        int64_t first = 0;
        for (; first + N <= count; first += N)
            f(Width<N>(), first);
        if (first < count)
            f(Width<N>(), count - N);
    } else {
        for (int64_t first = 0; first < count; first++)
            f(Width<1>(), first);
    }
}

// The same with a single loop, for calls of f that are long and begin by loading what all blocks need.
template <int N, typename F> EMA_INLINE inline void over_long_blocks(int64_t count, const F &f) {
    if constexpr (N > 1)
        if (count < N)
            return over_long_blocks<N / 2>(count, f);
    const int64_t last = count - N;
    for (int64_t first = 0; first >= 0; first = first == last ? -1 : first + N < last ? first + N : last)
        f(Width<N>(), first);
}

// The same with blocks that become narrower at the end and do not overlap.
template <int N, typename F> EMA_INLINE inline void over_parts(int64_t count, const F &f, int64_t first = 0) {
    for (; first + N <= count; first += N)
        f(Width<N>(), first);
    if constexpr (N > 1)
        if (first < count)
            over_parts<N / 2>(count, f, first);
}

// The same for a row whose length is a multiple of kStep; blocks do not overlap.
template <typename T, typename F> inline void over_padded_row(int64_t count, const F &f) {
    constexpr int N = kWide<T>;
    int64_t first = 0;
    for (; first + N <= count; first += N)
        f(Width<N>(), first);
    if constexpr (N > kStep)
        if (first < count)
            f(Width<kStep>(), first);
}

constexpr int64_t kRun = 4096;      // values summed in T; the sums of such runs are added in double
constexpr int64_t kSmall = 1 << 14; // below this number of values, a second thread costs more than it saves

inline int threads_for(int64_t values, int threads) { return values < kSmall ? 1 : threads; }

// The sum of f(Width<N>, first) over blocks of N of `count` values. Four sums at once, because the processor can begin
// an addition before the one before it has ended.
template <typename T, typename F> double sum_over(int64_t count, const F &f) {
    constexpr int N = kWide<T>;
    double total = 0;
    for (int64_t first = 0; first < count; first += kRun) {
        const int64_t end = first + kRun < count ? first + kRun : count;
        RowSum<T> sums[4];
        int64_t p = first;
        for (; p + 4 * N <= end; p += 4 * N)
            for (int j = 0; j < 4; j++)
                sums[j].values += f(Width<N>(), p + j * N);
        over_parts<N>(end - p, [&](auto n, int64_t more) { sums[0].add(f(n, p + more), n); });
        sums[0].values += sums[1].values;
        sums[2].values += sums[3].values;
        sums[0].values += sums[2].values;
        total += sums[0].total();
    }
    return total;
}

// Ask for memory that is needed soon, which may lie behind the end of an array. The processor predicts runs of accesses
// itself, but not where the next row or run begins.
#if defined(__GNUC__)
template <typename T> inline void fetch_line(const T *from) { __builtin_prefetch(from); }
template <typename T> inline void fetch_line_to_write(T *to) { __builtin_prefetch(to, 1); }
#else
template <typename T> inline void fetch_line(const T *) {}
template <typename T> inline void fetch_line_to_write(T *) {}
#endif

// Stores that do not read the old value first and leave the caches alone. `to` must be aligned to a register.
#if defined(__GNUC__) && defined(__SSE2__)
template <typename T> inline void store_past_caches(T *to, const Lanes<T, kWide<T>> &values) {
#if defined(__AVX512F__)
    _mm512_stream_si512(reinterpret_cast<__m512i *>(to), reinterpret_cast<__m512i>(values));
#elif defined(__AVX__)
    _mm256_stream_si256(reinterpret_cast<__m256i *>(to), reinterpret_cast<__m256i>(values));
#else
    _mm_stream_si128(reinterpret_cast<__m128i *>(to), reinterpret_cast<__m128i>(values));
#endif
}
// Such stores become visible to other threads in any order; what comes after this, after all of them.
inline void finish_stores() { _mm_sfence(); }
#else
template <typename T> inline void store_past_caches(T *to, const Lanes<T, kWide<T>> &values) {
    store<kWide<T>>(to, values);
}
inline void finish_stores() {}
#endif

constexpr int64_t kAhead = 512; // how many values before it is written a place in the output is fetched
// Outputs of more bytes than this are written past the caches. They would not stay in them until the next layer reads
// them, and memory that is written need not be read first: what is saved is a third of the traffic of a copy.
constexpr int64_t kPastCaches = 12 << 20;

// Write f(Width<N>, j) to the place j of `to`, for `count` values. f may be called twice for a place.
template <typename T, typename F> inline void write_out(T *to, int64_t count, bool past_caches, const F &f) {
    constexpr int N = kWide<T>;
    const auto keep = [=](auto n, int64_t j) EMA_INLINE {
        fetch_line_to_write(to + j + kAhead);
        store<n.value>(to + j, f(n, j));
    };
    if (!past_caches || count < 2 * N)
        return over_row<N>(count, keep);
    const int64_t off = static_cast<int64_t>(reinterpret_cast<uintptr_t>(to) % kRegister / sizeof(T));
    int64_t j = off ? N - off : 0;
    if (j)
        store<N>(to, f(Width<N>(), 0));
    for (; j + N <= count; j += N)
        store_past_caches(to + j, f(Width<N>(), j));
    if (j < count)
        store<N>(to + count - N, f(Width<N>(), count - N));
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
// error 2e-7). The comparisons are written so that a NaN stays a NaN. V is float, or a vector of floats; Bits is
// uint32_t, whose shift may overflow, or as many of them.
template <typename V, typename Bits> inline V exp_by_series(const V &given) {
    const V top = V{} + 88.8f, bottom = V{} - 87.0f; // 2^128, which is infinity
    V x = given > top ? top : given;
    x = x < bottom ? bottom : x;
    const V shifted = x * 1.44269504088896341f + 12582912.0f; // 1.5 * 2^23: adding it rounds to an integer
    const V n = shifted - 12582912.0f;
    const V rest = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    V series = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    series = series * rest + 8.3334519073e-3f;
    series = series * rest + 4.1665795894e-2f;
    series = series * rest + 1.6666665459e-1f;
    series = series * rest + 5.0000001201e-1f;
    series = series * rest * rest + rest + 1.0f;
    Bits bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 23) + 0x3f800000; // the shift pushes the bits of 1.5 * 2^23 out at the top
    V power;
    std::memcpy(&power, &bits, sizeof power);
    return series * power;
}

inline float exp_of(float x) { return exp_by_series<float, uint32_t>(x); }

inline double exp_of(double x) { return std::exp(x); }

template <typename T> inline T sigmoid(T x) { return T(1) / (T(1) + exp_of(-x)); }

// The same for N values at once. Loops over arrays are vectorised too, but often with narrower vectors.
template <int N, typename T> inline Lanes<T, N> sigmoids(const Lanes<T, N> &x) {
#if defined(__GNUC__)
    if constexpr (std::is_same<T, float>::value && N > 1) {
        typedef typename LanesOf<uint32_t, N>::type Bits;
        return 1.0f / (1.0f + exp_by_series<Lanes<float, N>, Bits>(-x));
    }
#endif
    T values[N];
    store<N>(values, x);
    for (int j = 0; j < N; j++)
        values[j] = sigmoid(values[j]);
    return load<T, N>(values);
}

} // namespace yolov5_ema
