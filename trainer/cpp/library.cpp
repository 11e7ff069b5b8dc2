// The kernels of trainer/forward.py, as a C library: no headers of Python or torch, so that it builds in seconds and fits any version.
// Matrices are row-major and dense unless a stride is given. half: whether storage is bfloat16 (else float). threads: how many to use.
#include <omp.h>

#include "attention.h"
#include "matmul.h"
#include "rows.h"
#ifdef WITH_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

// Calls work(thread, first, last) with `total` split into contiguous parts.
template <typename Work>
void share(long total, int threads, Work work) {
#pragma omp parallel num_threads(threads)
    {
        const long thread = omp_get_thread_num(), count = omp_get_num_threads();
        work(thread, total * thread / count, total * (thread + 1) / count);
    }
}

// Sums of `width` columns, one array a thread; added up in the order of threads.
struct Sums {
    long width;
    Buffer<float> all;
    Sums(bool wanted, long width, int threads) : width(wanted ? width : 0), all(this->width * threads) {}
    float* of(long thread) { return width ? all.data() + thread * width : nullptr; }
    void total(float* out) const {
        for (long c = 0; c < width; c++) {
            out[c] = 0;
            for (size_t i = c; i < all.size(); i += width) out[c] += all[i];
        }
    }
};

template <typename T>
void norm_forward(long rows, Norm<T> norm, void* y, const void* residual, void* out, float* statistics, int threads) {
    share(rows, threads, [&](long, long first, long last) {
        Norm<T> mine = norm;
        for (long i = first; i < last; i++) {
            const long at = i * norm.width;
            mine.forward(i, (T*)y + at, residual ? (const T*)residual + at : nullptr, (T*)out + at, statistics + 2 * i);
        }
    });
}

template <typename T>
void norm_backward(long rows, Norm<T> norm, const void* d_out, const void* d_out2, const void* z, const float* statistics, void* d_z,
                   void* d_y, float* sums, int threads) {
    Sums partial(sums, 3 * norm.width, threads);
    share(rows, threads, [&](long thread, long first, long last) {
        Norm<T> mine = norm;
        for (long i = first; i < last; i++) {
            const long at = i * norm.width;
            mine.backward(i, (const T*)d_out + at, d_out2 ? (const T*)d_out2 + at : nullptr, (const T*)z + at, statistics + 2 * i,
                          (T*)d_z + at, d_y ? (T*)d_y + at : nullptr, partial.of(thread));
        }
    });
    partial.total(sums);
}

template <typename T>
void gelu_backward(long rows, Gelu<T> gelu, void* d_out, const void* x, void* out, float* sums, int threads) {
    Sums partial(sums, gelu.width, threads);
    share(rows, threads, [&](long thread, long first, long last) {
        for (long i = first; i < last; i++) {
            T* d = (T*)d_out + i * gelu.width;
            gelu.backward(d, (const T*)x + i * gelu.width, d, out ? (T*)out + i * gelu.width : nullptr, partial.of(thread));
        }
    });
    partial.total(sums);
}

template <typename T>
void cross_entropies(long rows, long width, void* logits, const void* bias, const int64_t* labels, float* losses, bool gradient, float* sums,
                     int threads) {
    Sums partial(sums, width, threads);
    share(rows, threads, [&](long thread, long first, long last) {
        Buffer<float> row;
        for (long i = first; i < last; i++)
            losses[i] = cross_entropy((long)width, (T*)logits + i * width, (const T*)bias, labels[i], gradient, partial.of(thread), row);
    });
    partial.total(sums);
}

template <typename T>
void column_sums(long rows, long width, const void* x, float* sums, int threads) {
    Sums partial(true, width, threads);
    share(rows, threads, [&](long thread, long first, long last) {
        float* mine = partial.of(thread);
        for (long i = first; i < last; i++)
            for (long c = 0; c < width; c += LANES) Norm<T>::add(mine + c, load((const T*)x + i * width + c, width - c), width - c);
    });
    partial.total(sums);
}

// Queries, keys and values stand side by side in a row of `qkv`, the heads side by side within each.
template <typename T, typename Engine>
void attend(long batch, long length, long heads, long width, const void* qkv, const int64_t* segments, Dropout dropout, void* out,
            float* logsums, const void* d_out, void* d_qkv, int threads) {
    const long hidden = heads * width, row = 3 * hidden;
    share(batch * heads, threads, [&](long, long first, long last) {
        Attention<T, Engine> attention(length, width);
        attention.dropout = dropout;
        Engine::begin();
        for (long item = first; item < last; item++) {
            const long b = item / heads, h = item % heads;
            attention.segments = segments ? segments + b * length : nullptr;
            const auto part = [&](auto* base, long which) {
                return Rows<std::remove_pointer_t<decltype(base)>>{base + b * length * row + which * hidden + h * width, row};
            };
            const T* in = (const T*)qkv;
            const long place = b * length * hidden + h * width;
            float* log = logsums + item * length;
            if (!d_out)
                attention.forward(item, part(in, 0), part(in, 1), part(in, 2), {(T*)out + place, hidden}, log);
            else
                attention.backward(item, part(in, 0), part(in, 1), part(in, 2), {(const T*)out + place, hidden},
                                   {(const T*)d_out + place, hidden}, log, part((T*)d_qkv, 0), part((T*)d_qkv, 1), part((T*)d_qkv, 2));
        }
        Engine::end();
    });
}

#if defined(WITH_AMX)
typedef Amx HalfEngine;
#elif defined(WITH_PAIRS)
typedef Pairs HalfEngine;
#else
typedef Portable HalfEngine;
#endif

template <typename T>
Norm<T> norm_of(long width, const void* bias, const void* gamma, const void* beta, float epsilon, uint64_t key, uint32_t before,
                uint32_t after) {
    return {width, (const T*)bias, (const T*)gamma, (const T*)beta, epsilon, {key, before}, {key, after}, {}};
}

}  // namespace

extern "C" {

// The SHA-256 of the sources that this was built from.
const char* xpt_sources() { return XPT_SOURCES; }

// Whether this processor has what the library was built for; if not, nothing else here may be called but the above.
#ifdef __x86_64__
__attribute__((target("arch=x86-64")))
#endif
int xpt_runs_here() {
#ifdef __AVX2__
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
#endif
#ifdef __AVX512F__
    if (!__builtin_cpu_supports("avx512f")) return 0;
#endif
#ifdef __AVX512BW__
    if (!__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq")) return 0;
#endif
#ifdef __AVX512BF16__
    if (!__builtin_cpu_supports("avx512bf16")) return 0;
#endif
#ifdef WITH_AMX
    constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // Linux's asm/prctl.h
    if (!__builtin_cpu_supports("amx-bf16") || syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA)) return 0;
#endif
    return 1;
}

void xpt_norm_forward(int half, long rows, long width, void* y, const void* bias, const void* residual, const void* gamma, const void* beta,
                      float epsilon, uint64_t key, uint32_t before, uint32_t after, void* out, float* statistics, int threads) {
    if (half)
        norm_forward(rows, norm_of<bf16>(width, bias, gamma, beta, epsilon, key, before, after), y, residual, out, statistics, threads);
    else
        norm_forward(rows, norm_of<float>(width, bias, gamma, beta, epsilon, key, before, after), y, residual, out, statistics, threads);
}

// sums: null, or (3, width): gradients of gamma, beta and bias.
void xpt_norm_backward(int half, long rows, long width, const void* d_out, const void* d_out2, const void* z, const void* bias,
                       const void* gamma, uint64_t key, uint32_t before, uint32_t after, const float* statistics, void* d_z, void* d_y,
                       float* sums, int threads) {
    if (half)
        norm_backward(rows, norm_of<bf16>(width, bias, gamma, nullptr, 0, key, before, after), d_out, d_out2, z, statistics, d_z, d_y, sums,
                      threads);
    else
        norm_backward(rows, norm_of<float>(width, bias, gamma, nullptr, 0, key, before, after), d_out, d_out2, z, statistics, d_z, d_y, sums,
                      threads);
}

void xpt_gelu_forward(int half, long rows, long width, const void* x, const void* bias, void* out, int threads) {
    share(rows, threads, [&](long, long first, long last) {
        for (long i = first * width; i < last * width; i += width)
            if (half)
                Gelu<bf16>{width, (const bf16*)bias}.forward((const bf16*)x + i, (bf16*)out + i);
            else
                Gelu<float>{width, (const float*)bias}.forward((const float*)x + i, (float*)out + i);
    });
}

// The gradient replaces d_out. out: unless null, the forward pass again. sums: null, or (width,), the gradient of bias.
void xpt_gelu_backward(int half, long rows, long width, void* d_out, const void* x, const void* bias, void* out, float* sums, int threads) {
    if (half)
        gelu_backward(rows, Gelu<bf16>{width, (const bf16*)bias}, d_out, x, out, sums, threads);
    else
        gelu_backward(rows, Gelu<float>{width, (const float*)bias}, d_out, x, out, sums, threads);
}

// losses: (rows,); with `gradient`, that of their sum replaces the logits. sums: null, or (width,), the gradient of bias.
void xpt_cross_entropy(int half, long rows, long width, void* logits, const void* bias, const int64_t* labels, float* losses, int gradient,
                       float* sums, int threads) {
    if (half)
        cross_entropies<bf16>(rows, width, logits, bias, labels, losses, gradient, sums, threads);
    else
        cross_entropies<float>(rows, width, logits, bias, labels, losses, gradient, sums, threads);
}

void xpt_column_sums(int half, long rows, long width, const void* x, float* sums, int threads) {
    if (half)
        column_sums<bf16>(rows, width, x, sums, threads);
    else
        column_sums<float>(rows, width, x, sums, threads);
}

// qkv: (batch * length, 3 * heads * width); out: (batch * length, heads * width); logsums: (batch * heads, length);
// segments: (batch, length) or null. With d_out the backward pass, into d_qkv.
void xpt_attention(int half, long batch, long length, long heads, long width, const void* qkv, const int64_t* segments, uint64_t key,
                   uint32_t threshold, void* out, float* logsums, const void* d_out, void* d_qkv, int threads) {
    const Dropout dropout = {key, threshold};
    if (half)
        attend<bf16, HalfEngine>(batch, length, heads, width, qkv, segments, dropout, out, logsums, d_out, d_qkv, threads);
    else
        attend<float, Portable>(batch, length, heads, width, qkv, segments, dropout, out, logsums, d_out, d_qkv, threads);
}

// x: (rows, columns), 16-bit numbers -> out: (columns, rows), whose rows are `stride` apart, a multiple of 32. By blocks of 32 x 32.
// Zeros follow each row up to a multiple of 32: oneDNN multiplies what it finds there by 0, which does not make 0 of a NaN.
void xpt_transpose(long rows, long columns, const uint16_t* x, uint16_t* out, long stride, int threads) {
    share((rows + 31) / 32, threads, [&](long, long first, long last) {
        for (long i0 = first * 32; i0 < std::min(rows, last * 32); i0 += 32)
            for (long j0 = 0; j0 < columns; j0 += 32) {
                const long height = std::min(32L, rows - i0), width = std::min(32L, columns - j0);
#ifdef WITH_PAIRS
                if (width == 32 && height == 32) {
                    alignas(64) bf16 turned[32 * 32];
                    Pairs::transpose((const bf16*)x + i0 * columns + j0, columns, 32, 32, turned);
                    for (long j = 0; j < 32; j++) memcpy(out + (j0 + j) * stride + i0, turned + j * 32, 64);
                    continue;
                }
#endif
                for (long j = 0; j < width; j++)
                    for (long i = 0; i < 32; i++) out[(j0 + j) * stride + i0 + i] = i < height ? x[(i0 + i) * columns + j0 + j] : 0;
            }
    });
}
}
