// Matrix multiplication of small blocks that lie in the cache.
//
// C (m, n) = A (m, k) B (k, n), sums in float. A is row-major; B is packed first, from its rows or from those of its transpose.
// Sizes of blocks are multiples of 32; callers pad with zeros.
#pragma once
#include <algorithm>

#include "vectors.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#define WITH_PAIRS 1
#include <immintrin.h>
#if defined(__AMX_BF16__) && defined(__AMX_TILE__)
#define WITH_AMX 1
#endif
#endif

inline long padded(long n) { return (n + 31) / 32 * 32; }

// Any processor: float, packed B is B, row-major.
struct Portable {
    typedef float Element;
    static void begin() {}
    static void end() {}

    static void pack_rows(const float* b, long ld, long k, long n, float* packed) {
        for (long i = 0; i < k; i++) memcpy(packed + i * n, b + i * ld, n * sizeof(float));
    }

    static void pack_transposed(const float* bt, long ld, long k, long n, float* packed) {
        for (long j = 0; j < n; j++)
            for (long i = 0; i < k; i++) packed[i * n + j] = bt[j * ld + i];
    }

    // (k, m) -> (m, k)
    static void transpose(const float* a, long ld, long k, long m, float* out) { pack_transposed(a, ld, m, k, out); }

    static void multiply(long m, long n, long k, const float* a, long lda, const float* packed, float* c, long ldc, bool accumulate) {
        for (long i = 0; i < m; i += 8)
            for (long j = 0; j < n; j += 2 * LANES) {
                Floats sums[8][2];
                for (long r = 0; r < 8; r++)
                    for (long s = 0; s < 2; s++) sums[r][s] = accumulate ? load(c + (i + r) * ldc + j + s * LANES) : Floats{};
                for (long l = 0; l < k; l++) {
                    const Floats b0 = load(packed + l * n + j), b1 = load(packed + l * n + j + LANES);
                    for (long r = 0; r < 8; r++) {
                        const float x = a[(i + r) * lda + l];
                        sums[r][0] += x * b0;
                        sums[r][1] += x * b1;
                    }
                }
                for (long r = 0; r < 8; r++)
                    for (long s = 0; s < 2; s++) store(c + (i + r) * ldc + j + s * LANES, sums[r][s]);
            }
    }
};

#ifdef WITH_PAIRS
// AVX512-BF16: two bfloat16 products are added to a float at a time. Packed B: tiles of 16 pairs of rows x 16 columns, the two numbers of
// a pair side by side; first all tiles of columns 0 to 15, then of 16 to 31, and so on.
struct Pairs {
    typedef bf16 Element;
    static constexpr long TILE = 512;  // elements

    static void begin() {}
    static void end() {}

    // 16 rows of 16 words each, transposed.
    static void transpose_words(__m512i r[16]) {
        __m512i t[16];
        for (int i = 0; i < 16; i += 2) {
            t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
            t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
        }
        for (int i = 0; i < 16; i += 4) {
            r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
            r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
            r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
            r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
        }
        for (int i = 0; i < 4; i++) {
            t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
            t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
            t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
            t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
        }
        for (int i = 0; i < 4; i++) {
            r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
            r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
            r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
            r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
        }
    }

    // 32 rows x 16 columns (what is beyond `rows`, `columns` is 0), as 16 pairs of rows with the two numbers of a pair side by side.
    static void pairs(const bf16* b, long ld, long rows, long columns, __m512i r[16]) {
        const __mmask16 inside = columns >= 16 ? 0xffff : (1u << std::max(columns, 0L)) - 1;
        for (long i = 0; i < 16; i++) {
            const __m512i even = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(2 * i < rows ? inside : 0, b + 2 * i * ld));
            const __m512i odd = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(2 * i + 1 < rows ? inside : 0, b + (2 * i + 1) * ld));
            r[i] = _mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
        }
    }

    static void put(bf16* tile, const __m512i r[16]) {
        for (long i = 0; i < 16; i++) _mm512_storeu_si512(tile + i * 32, r[i]);
    }

    // What is beyond k and n becomes zeros. Along the rows, as the memory likes it.
    static void pack_rows(const bf16* b, long ld, long k, long n, bf16* packed) {
        const long depth = padded(k) / 32;
        __m512i r[16];
        for (long i = 0; i < depth; i++)
            for (long j = 0; j < n; j += 16) {
                pairs(b + i * 32 * ld + j, ld, k - i * 32, n - j, r);
                put(packed + (j / 16 * depth + i) * TILE, r);
            }
    }

    // The same from B's transpose (n, k), by blocks of 16 columns of B.
    static void pack_transposed(const bf16* bt, long ld, long k, long n, bf16* packed) {
        const long depth = padded(k) / 32;
        __m512i r[16];
        for (long j = 0; j < (n + 15) / 16; j++)
            for (long i = 0; i < depth; i++) {
                const __mmask32 inside = k - i * 32 >= 32 ? 0xffffffffu : (1u << (k - i * 32)) - 1;
                for (long l = 0; l < 16; l++)
                    r[l] = _mm512_maskz_loadu_epi16(j * 16 + l < n ? inside : 0, bt + (j * 16 + l) * ld + i * 32);
                transpose_words(r);
                put(packed + (j * depth + i) * TILE, r);
            }
    }

    // (k, m) -> (m, k), rows of the result padded with zeros
    static void transpose(const bf16* a, long ld, long k, long m, bf16* out) {
        __m512i r[16];
        for (long j = 0; j < k; j += 32)
            for (long i = 0; i < m; i += 16) {
                pairs(a + j * ld + i, ld, k - j, m - i, r);
                transpose_words(r);
                for (long l = 0; l < 16; l++) _mm512_storeu_si512(out + (i + l) * padded(k) + j, r[l]);
            }
    }

    static void multiply(long m, long n, long k, const bf16* a, long lda, const bf16* packed, float* c, long ldc, bool accumulate) {
        constexpr long HEIGHT = 8;  // 16 sums stay in registers
        for (long j = 0; j < n; j += 32) {
            const bf16 *left = packed + j * k, *right = left + 16 * k;
            for (long i = 0; i < m; i += HEIGHT) {
                __m512 sums[HEIGHT][2];
                for (long r = 0; r < HEIGHT; r++)
                    for (long s = 0; s < 2; s++)
                        sums[r][s] = accumulate ? _mm512_loadu_ps(c + (i + r) * ldc + j + s * 16) : _mm512_setzero_ps();
                for (long l = 0; l < k; l += 2) {
                    const __m512bh b0 = (__m512bh)_mm512_loadu_si512(left + l * 16), b1 = (__m512bh)_mm512_loadu_si512(right + l * 16);
                    for (long r = 0; r < HEIGHT; r++) {
                        int32_t pair;
                        memcpy(&pair, a + (i + r) * lda + l, sizeof pair);
                        const __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
                        sums[r][0] = _mm512_dpbf16_ps(sums[r][0], x, b0);
                        sums[r][1] = _mm512_dpbf16_ps(sums[r][1], x, b1);
                    }
                }
                for (long r = 0; r < HEIGHT; r++)
                    for (long s = 0; s < 2; s++) _mm512_storeu_ps(c + (i + r) * ldc + j + s * 16, sums[r][s]);
            }
        }
    }
};
#endif

#ifdef WITH_AMX
// Intel's matrix unit, by tiles of 16 rows x 64 bytes.
struct Amx : Pairs {
    static void begin() {
        struct {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        } shape;
        _tile_loadconfig(&shape);
    }
    static void end() { _tile_release(); }

    // 32 rows of A, in bytes: from row to row, from one 32 columns to the next, from the first 16 rows to the other 16. depth: k / 32.
    static void block(const bf16* a, long row, long step, long half, const bf16* b0, const bf16* b1, long depth, float* c, long ldc,
                      bool accumulate) {
        const char* p = (const char*)a;
        if (accumulate) {
            _tile_loadd(0, c, ldc * 4);
            _tile_loadd(1, c + 16, ldc * 4);
            _tile_loadd(2, c + 16 * ldc, ldc * 4);
            _tile_loadd(3, c + 16 * ldc + 16, ldc * 4);
        } else {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
        }
        for (long l = 0; l < depth; l++, p += step, b0 += TILE, b1 += TILE) {
            _tile_loadd(4, p, row);
            _tile_loadd(6, b0, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, b1, 64);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, p + half, row);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, c, ldc * 4);
        _tile_stored(1, c + 16, ldc * 4);
        _tile_stored(2, c + 16 * ldc, ldc * 4);
        _tile_stored(3, c + 16 * ldc + 16, ldc * 4);
    }

    static void multiply(long m, long n, long k, const bf16* a, long lda, const bf16* packed, float* c, long ldc, bool accumulate) {
        const long depth = k / 32;
        for (long j = 0; j < n; j += 32) {
            const bf16* b = packed + j / 16 * depth * TILE;
            for (long i = 0; i < m; i += 32)
                block(a + i * lda, lda * 2, 64, 32 * lda, b, b + depth * TILE, depth, c + i * ldc + j, ldc, accumulate);
        }
    }
};
#endif
