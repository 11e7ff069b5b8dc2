// Self-attention of one head of one sequence: softmax(Q K' / sqrt(d)), dropout, times V; the probabilities are computed again for the
// backward pass instead of being kept. Positions see each other when their segments are equal (or there are none).
#pragma once
#include <cmath>
#include <limits>

#include "matmul.h"

// One sequence of one head: where its rows begin, and how far apart they are, in elements.
template <typename T>
struct Rows {
    T* begin;
    long stride;
};

template <typename T, typename Engine>
struct Attention {
    typedef typename Engine::Element E;
    long length, width, L, D;  // as given, and padded
    float scale;
    const int64_t* segments;  // (length,) or null
    Dropout dropout;
    Buffer<E> q, k, v, d, packed1, packed2, packed3, packed4, half1, half2, turned;
    Buffer<float> scores, gradients, sums, queries;
    Buffer<uint32_t> keys;

    Attention(long length, long width) : length(length), width(width), L(padded(length)), D(padded(width)), scale(1 / std::sqrt((float)width)) {
        for (auto* x : {&q, &k, &v, &d, &packed1, &packed2, &packed3, &packed4}) x->resize(L * D);
        for (auto* x : {&half1, &half2, &turned}) x->resize(32 * L);
        scores.resize(32 * L), gradients.resize(32 * L), sums.resize(32 * D), queries.resize(L * D), keys.resize(L);
    }

    // Into a padded buffer whose padding is zero already. The next head's numbers, in the same rows a cache line further, are on their way
    // meanwhile: rows are too far apart for the processor to guess.
    void take(Rows<const T> rows, Buffer<E>& into) {
        for (long i = 0; i < length; i++)
            for (long c = 0; c < width; c += LANES) {
                const long n = std::min(LANES, width - c);
                const T* from = rows.begin + i * rows.stride + c;
                __builtin_prefetch(from + width);
                store(into.data() + i * D + c, load(from, n), n);
            }
    }

    void give(const float* from, Rows<T> rows, long first, long count) {
        for (long i = 0; i < std::min(count, length - first); i++)
            for (long c = 0; c < width; c += LANES) {
                T* to = rows.begin + (first + i) * rows.stride + c;
                __builtin_prefetch(to + width, 1);
                store(to, load(from + i * D + c), std::min(LANES, width - c));
            }
    }

    void name_rows(uint64_t head) {
        for (long i = 0; i < L; i++) keys[i] = row_key(dropout.key, head * length + i);
    }

    // Which of the 16 positions from `column` on does `row` see?
    Ints seen(long row, long column) const {
        Ints result;
        for (long l = 0; l < LANES; l++)
            result[l] = -(column + l < length && row < length && (!segments || segments[row] == segments[column + l]));
        return result;
    }

    // logsums: (length,), for the backward pass.
    void forward(uint64_t head, Rows<const T> queries_in, Rows<const T> keys_in, Rows<const T> values, Rows<T> out, float* logsums) {
        take(queries_in, q), take(keys_in, k), take(values, v), name_rows(head);
        Engine::pack_transposed(k.data(), D, D, L, packed1.data());
        Engine::pack_rows(v.data(), D, L, D, packed2.data());
        for (long i = 0; i < L; i += 32) {
            Engine::multiply(32, L, D, q.data() + i * D, D, packed1.data(), scores.data(), L, false);
            float divisors[32];
            for (long r = 0; r < 32; r++) divisors[r] = softmax(i + r, scores.data() + r * L, half1.data() + r * L, logsums);
            Engine::multiply(32, D, L, half1.data(), L, packed2.data(), sums.data(), D, false);
            for (long r = 0; r < 32; r++)
                for (long c = 0; c < D; c += LANES) store(sums.data() + r * D + c, load(sums.data() + r * D + c) / divisors[r]);
            give(sums.data(), out, i, 32);
        }
    }

    // exp(score - largest) with dropout; returns what to divide by.
    float softmax(long row, float* score, E* probability, float* logsums) {
        const float least = -std::numeric_limits<float>::infinity(), factor = scale;
        const long n = L;
        const bool drops = dropout.on(), partial = segments || length < L;
        const Dropout rule = dropout;
        const Words name = Words{} + keys[row];
        Floats largest = Floats{} + least, total = {};
        for (long c = 0; c < n; c += LANES) {
            Floats s = load(score + c) * factor;
            if (partial) s = choose(seen(row, c), s, Floats{} + least);
            store(score + c, s);
            largest = maximum(largest, s);
        }
        const float top = maximum(largest);
        for (long c = 0; c < n; c += 2 * LANES) {
            const Words bits = drops ? random_words(Dropout::counters(c) ^ name) : Words{};
            for (long h = 0; h < 2; h++) {
                Floats e = exponential(load(score + c + h * LANES) - top);
                total += e;
                if (drops) e = choose((Ints)(h ? bits >> 16 : bits & 0xffffu) < (int32_t)rule.threshold, e, Floats{});
                store(probability + c + h * LANES, e);
            }
        }
        const float whole = sum(total);
        if (row < length) logsums[row] = top + std::log(whole);
        return whole / rule.scale();
    }

    void backward(uint64_t head, Rows<const T> queries_in, Rows<const T> keys_in, Rows<const T> values, Rows<const T> out, Rows<const T> d_out,
                  const float* logsums, Rows<T> d_queries, Rows<T> d_keys, Rows<T> d_values) {
        take(queries_in, q), take(keys_in, k), take(values, v), take(d_out, d), name_rows(head);
        Buffer<float> offsets(L), deltas(L);  // of each query: log of its softmax's denominator; its gradient times its output
        for (long i = 0; i < length; i++) {
            Floats products = {};
            for (long c = 0; c < width; c += LANES) {
                const long n = std::min(LANES, width - c);
                __builtin_prefetch(out.begin + i * out.stride + c + width);
                products += load(out.begin + i * out.stride + c, n) * load(d_out.begin + i * d_out.stride + c, n);
            }
            offsets[i] = logsums[i], deltas[i] = sum(products);
        }
        Engine::pack_transposed(q.data(), D, D, L, packed1.data());
        Engine::pack_transposed(d.data(), D, D, L, packed2.data());
        Engine::pack_rows(q.data(), D, L, D, packed3.data());
        Engine::pack_rows(d.data(), D, L, D, packed4.data());
        Buffer<E> own(32 * D);
        for (long j = 0; j < L; j += 32) {  // 32 keys against all queries: everything below is transposed
            Engine::multiply(32, L, D, k.data() + j * D, D, packed1.data(), scores.data(), L, false);
            Engine::multiply(32, L, D, v.data() + j * D, D, packed2.data(), gradients.data(), L, false);
            for (long r = 0; r < 16; r++) differentiate(j, r, offsets.data(), deltas.data());
            Engine::multiply(32, D, L, half1.data(), L, packed4.data(), sums.data(), D, false);
            give(sums.data(), d_values, j, 32);
            Engine::multiply(32, D, L, half2.data(), L, packed3.data(), sums.data(), D, false);
            give(sums.data(), d_keys, j, 32);
            Engine::transpose(half2.data(), L, 32, L, turned.data());
            Engine::pack_rows(k.data() + j * D, D, 32, D, own.data());
            Engine::multiply(L, D, 32, turned.data(), 32, own.data(), queries.data(), D, j > 0);
        }
        give(queries.data(), d_queries, 0, L);
    }

    // Keys j + r and j + r + 16, which share random words: probabilities after dropout into half1, gradients of the scores into half2.
    void differentiate(long j, long r, const float* offset, const float* delta) {
        const long n = L, row[2] = {r * n, (r + 16) * n};
        const Words counter = Words{} + (uint32_t)(j / 2 + r) * 0x9E3779B9u;
        const bool drops = dropout.on(), partial = segments || length < L;
        const Dropout rule = dropout;
        const float factor = scale;
        const float *score = scores.data(), *gradient = gradients.data();
        const uint32_t* name = keys.data();
        E *probability = half1.data(), *difference = half2.data();
        for (long c = 0; c < n; c += LANES) {
            Words names;
            memcpy(&names, name + c, sizeof names);
            const Words bits = drops ? random_words(names ^ counter) : Words{};
            for (long h = 0; h < 2; h++) {
                const long at = row[h] + c;
                Floats p = exponential(load(score + at) * factor - load(offset + c));
                if (partial) p = choose(seen(j + r + 16 * h, c), p, Floats{});
                const Floats kept = drops ? rule.kept(h ? bits >> 16 : bits & 0xffffu) : Floats{} + 1.f;
                store(probability + at, p * kept);
                store(difference + at, p * (load(gradient + at) * kept - load(delta + c)) * factor);
            }
        }
    }
};
