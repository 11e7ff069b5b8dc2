// Sixteen numbers at a time, in GCC's and Clang's vector extensions: the compiler maps them to whatever the processor has.
// Storage is float or bfloat16, arithmetic is float.
#pragma once
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

constexpr long LANES = 16;
typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

struct bf16 {
    uint16_t bits;
};

// Memory that begins with a cache line.
template <typename T>
struct LineAllocator {
    typedef T value_type;
    LineAllocator() = default;
    template <typename U>
    LineAllocator(const LineAllocator<U>&) {}
    T* allocate(size_t n) { return (T*)::operator new(n * sizeof(T), std::align_val_t(64)); }
    void deallocate(T* p, size_t) { ::operator delete(p, std::align_val_t(64)); }
    template <typename U>
    bool operator==(const LineAllocator<U>&) const {
        return true;
    }
};
template <typename T>
using Buffer = std::vector<T, LineAllocator<T>>;

inline Floats load(const float* p) {
    Floats v;
    memcpy(&v, p, sizeof v);
    return v;
}

inline Floats load(const bf16* p) {
    Halves v;
    memcpy(&v, p, sizeof v);
#ifdef __AVX512F__  // GCC 12 would do it in two halves
    return (Floats)((Words)_mm512_cvtepu16_epi32((__m256i)v) << 16);
#else
    return (Floats)(__builtin_convertvector(v, Words) << 16);
#endif
}

inline void store(float* p, Floats v) { memcpy(p, &v, sizeof v); }

// To the nearest, ties to even.
inline void store(bf16* p, Floats v) {
#ifdef __AVX512BF16__
    const __m256bh h = _mm512_cvtneps_pbh((__m512)v);
#else
    const Words w = (Words)v;
    const Words nearest_even = (w + 0x7fffu + ((w >> 16) & 1u)) >> 16;
    const Words is_nan = (Words)(v != v);
    const Halves h = __builtin_convertvector((nearest_even & ~is_nan) | (is_nan & 0x7fc0u), Halves);
#endif
    memcpy(p, &h, sizeof h);
}

// The first n <= 16 numbers; the rest are `otherwise`.
template <typename T>
inline Floats load(const T* p, long n, float otherwise = 0.f) {
    if (n >= LANES) return load(p);
    Floats v = Floats{} + otherwise;
    for (long i = 0; i < n; i++) {
        T one[LANES] = {p[i]};
        v[i] = load(one)[0];
    }
    return v;
}

template <typename T>
inline void store(T* p, Floats v, long n) {
    if (n >= LANES) return store(p, v);
    T all[LANES];
    store(all, v);
    memcpy(p, all, n * sizeof(T));
}

// What v becomes when it is stored.
template <typename T>
inline Floats rounded(Floats v) {
    T all[LANES];
    store(all, v);
    return load(all);
}

inline Floats choose(Ints condition, Floats yes, Floats no) {
    return condition ? yes : no;
}

inline Floats maximum(Floats a, Floats b) { return choose(a > b, a, b); }

inline float sum(Floats v) {
    float all[LANES];
    memcpy(all, &v, sizeof v);
    for (long width = LANES / 2; width; width /= 2)
        for (long i = 0; i < width; i++) all[i] += all[i + width];
    return all[0];
}

inline float maximum(Floats v) {
    float largest = v[0];
    for (long i = 1; i < LANES; i++) largest = v[i] > largest ? v[i] : largest;
    return largest;
}

// e^x for x <= 88; 0 below -87. Relative error 2e-7: 2^n times the Taylor polynomial of degree 7 on |r| <= ln(2) / 2.
inline Floats exponential(Floats x) {
    const Floats shifter = Floats{} + 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits
    const Floats shifted = x * 1.44269504f + shifter;
    const Floats n = shifted - shifter;
    const Floats r = (x - n * 0.693145752f) - n * 1.42860677e-6f;  // ln 2 in two parts
    Floats p = Floats{} + 1.f / 5040;
    p = p * r + 1.f / 720;
    p = p * r + 1.f / 120;
    p = p * r + 1.f / 24;
    p = p * r + 1.f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.f;
    p = p * r + 1.f;
    const Ints scaled = (Ints)p + ((Ints)shifted << 23);
    return (Floats)((scaled & (x > -87.f)) | ((x != x) & 0x7fc00000));  // a NaN stays one, whatever its bits
}

// Random bits as a pure function of a key and a counter: nothing to store between the passes, the same whoever computes them.
// The mixing steps are those of MurmurHash3's 32-bit finaliser and of SplitMix64 (Steele et al. 2014).
inline uint64_t mixed(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

inline uint32_t row_key(uint64_t key, uint64_t row) { return mixed(key + (row + 1) * 0x9E3779B97F4A7C15u) >> 32; }

inline Words random_words(Words key_and_counter) {
    Words x = key_and_counter;
    x ^= x >> 16;
    x *= 0x85ebca6bu;
    x ^= x >> 13;
    x *= 0xc2b2ae35u;
    return x ^ (x >> 16);
}

// Dropout of one site: 16 bits an element, kept below `threshold` of 65536, and divided by the probability that this really is.
// Elements c and c + 16 of each 32 in a row share a 32-bit word, of counter (c / 32) * 16 + c % 16.
struct Dropout {
    uint64_t key;
    uint32_t threshold;
    bool on() const { return threshold < 65536; }
    float scale() const { return 65536.f / threshold; }
    static Words counters(long column) {
        constexpr Words lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        return (lane + (uint32_t)(column / 32 * 16)) * 0x9E3779B9u;
    }
    // Factors of the 16 elements from `column` on (a multiple of 16) of the row with this key.
    Floats factors(uint32_t row, long column) const {
        const Words word = random_words(counters(column) ^ row);
        return kept(column % 32 ? word >> 16 : word & 0xffffu);
    }
    Floats kept(Words bits) const { return choose((Ints)bits < (int32_t)threshold, Floats{} + scale(), Floats{}); }
};
