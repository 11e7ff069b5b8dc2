// What is done to matrices row by row between two matrix multiplications. Sums over rows go into float arrays that the caller clears.
#pragma once
#include <cmath>

#include "vectors.h"

// z = residual + dropout(y + bias); out = LayerNorm(z), with a dropout of its own. z replaces y; mean and 1 / standard deviation are kept.
template <typename T>
struct Norm {
    long width;
    const T *bias, *gamma, *beta;  // bias may be null
    float epsilon;
    Dropout before, after;
    Buffer<float> row;

    void forward(long index, T* y, const T* residual, T* out, float* statistics) {
        const uint32_t key = row_key(before.key, index), key_after = row_key(after.key, index);
        row.resize((width + 15) / 16 * 16);
        Floats total = {}, squares = {};
        for (long c = 0; c < width; c += LANES) {
            const long n = width - c;
            Floats z = load(y + c, n);
            if (bias) z += load(bias + c, n);
            if (before.on()) z *= before.factors(key, c);
            if (residual) z += load(residual + c, n);
            z = rounded<T>(z);
            store(y + c, z, n);
            store(row.data() + c, z);
            total += z;
        }
        const float mean = sum(total) / width;
        for (long c = 0; c < width; c += LANES) {
            const Floats d = load(row.data() + c, width - c, mean) - mean;
            squares += d * d;
        }
        const float inverse = 1 / std::sqrt(sum(squares) / width + epsilon);
        statistics[0] = mean, statistics[1] = inverse;
        for (long c = 0; c < width; c += LANES) {
            const long n = width - c;
            Floats v = (load(row.data() + c) - mean) * inverse * load(gamma + c, n) + load(beta + c, n);
            if (after.on()) v *= after.factors(key_after, c);
            store(out + c, v, n);
        }
    }

    // d_out (+ d_out2 if any) -> d_z, and d_y unless null. sums: null, or those of gamma's, beta's and (if any) bias's gradient, each (width,).
    void backward(long index, const T* d_out, const T* d_out2, const T* z, const float* statistics, T* d_z, T* d_y, float* sums) {
        const uint32_t key = row_key(before.key, index), key_after = row_key(after.key, index);
        const float mean = statistics[0], inverse = statistics[1];
        row.resize((width + 15) / 16 * 16);
        Floats total = {}, products = {};
        for (long c = 0; c < width; c += LANES) {
            const long n = width - c;
            Floats g = load(d_out + c, n);
            if (d_out2) g += load(d_out2 + c, n);
            if (after.on()) g *= after.factors(key_after, c);
            const Floats x = (load(z + c, n, mean) - mean) * inverse;
            if (sums) {
                add(sums + c, g * x, n);
                add(sums + width + c, g, n);
            }
            g *= load(gamma + c, n);
            total += g;
            products += g * x;
            store(row.data() + c, g);
        }
        const float mean_g = sum(total) / width, mean_gx = sum(products) / width;
        for (long c = 0; c < width; c += LANES) {
            const long n = width - c;
            Floats g = (load(row.data() + c) - mean_g - (load(z + c, n) - mean) * inverse * mean_gx) * inverse;
            store(d_z + c, g, n);
            if (before.on()) g *= before.factors(key, c);
            if (d_y) store(d_y + c, g, n);
            if (sums && bias) add(sums + 2 * width + c, g, n);
        }
    }

    static void add(float* to, Floats v, long n) { store(to, load(to, n) + v, n); }
};

// x -> x Phi(x) with the exact normal distribution Phi, by Abramowitz and Stegun's formula 7.1.26 (error below 1e-7).
struct Normal {
    Floats distribution, density;
    explicit Normal(Floats x) {
        const Floats a = (Floats)((Ints)x & 0x7fffffff) * 0.70710678f, t = 1.f / (1.f + 0.3275911f * a), e = exponential(-a * a);
        const Floats tail = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t * e * 0.5f;
        distribution = choose(x > 0.f, 1.f - tail, tail);
        density = e * 0.39894228f;
    }
};

template <typename T>
struct Gelu {
    long width;
    const T* bias;

    void forward(const T* x, T* out) const {
        for (long c = 0; c < width; c += LANES) {
            const long n = width - c;
            const Floats v = load(x + c, n) + load(bias + c, n);
            store(out + c, v * Normal(v).distribution, n);
        }
    }

    // d_x may be d_out. out: unless null, the forward pass again. sums: null, or of bias's gradient.
    void backward(const T* d_out, const T* x, T* d_x, T* out, float* sums) const {
        for (long c = 0; c < width; c += LANES) {
            const long n = width - c;
            const Floats v = load(x + c, n) + load(bias + c, n);
            const Normal normal(v);
            const Floats g = load(d_out + c, n) * (normal.distribution + v * normal.density);
            store(d_x + c, g, n);
            if (out) store(out + c, v * normal.distribution, n);
            if (sums) Norm<T>::add(sums + c, g, n);
        }
    }
};

// -log softmax(logits + bias)[label]; with `gradient`, that of it replaces the logits. sums: null, or the gradients' sums.
template <typename T>
inline float cross_entropy(long width, T* logits, const T* bias, long label, bool gradient, float* sums, Buffer<float>& row) {
    row.resize((width + 15) / 16 * 16);
    Floats largest = Floats{} - INFINITY, total = {};
    for (long c = 0; c < width; c += LANES) {
        const long n = width - c;
        const Floats v = load(logits + c, n, -INFINITY) + load(bias + c, n);
        store(row.data() + c, v);
        largest = maximum(largest, v);
    }
    const float top = maximum(largest), chosen = row[label];
    for (long c = 0; c < width; c += LANES) {
        const Floats e = exponential(load(row.data() + c) - top);
        if (gradient) store(row.data() + c, e);
        total += e;
    }
    const float whole = sum(total);
    row[label] -= whole;
    for (long c = 0; gradient && c < width; c += LANES) {
        const Floats g = load(row.data() + c) / whole;
        store(logits + c, g, width - c);
        if (sums) Norm<T>::add(sums + c, g, width - c);
    }
    return top + std::log(whole) - chosen;
}
