/* Types and small pieces that every kernel uses. */
#ifndef SPEC2SEQ_COMMON_H
#define SPEC2SEQ_COMMON_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif
#include "team.h"

#define INLINE static inline __attribute__((always_inline))
#define LANES 16 /* floats of a `vec`; the compiler splits it where the machine's vectors are shorter */
#define PANEL 64 /* outputs of a linear layer that are computed together */

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef int32_t loose_ivec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float loose_vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias)); /* at any address */
typedef uint16_t half; /* the bits of an IEEE number of 16 bits */
#define LARGEST_HALF 65504.0f

/* The structures below are mirrored in library.py, field by field; every field has eight bytes. */
typedef struct {
    const float *weight; /* panels [outputs / PANEL][inputs][PANEL], or null in int8 */
    const int8_t *codes; /* panels [outputs / PANEL][code_width / 4][PANEL][4], or null in float32 */
    const float *scales; /* of the codes of each output, filled up to whole panels */
    const int32_t *sums; /* of the codes of each output, likewise */
    const float *bias;   /* [outputs] or null */
    int64_t inputs, outputs;
} Linear;

typedef struct {
    const float *weight, *bias; /* bias null: root mean square norm */
} Norm;

typedef struct {
    Linear self_qkv, self_out, cross_query, cross_key_value, cross_out, ffn_in, ffn_out;
    Norm self_norm, cross_norm, ffn_norm;
} Layer;

/* Room for `count` things at `to->field` out of `memory`, of which `used` bytes are taken; without memory only count. */
#define TAKE(to, field, count)                                        \
    do {                                                              \
        (to)->field = memory ? (void *)(memory + used) : NULL;        \
        used += ((size_t)(count) * sizeof *(to)->field + 63) / 64 * 64; \
    } while (0)

#ifdef __F16C__
INLINE float float_of(half from) { return _cvtsh_ss(from); }
INLINE half half_of(float from) {
    float bounded = from > LARGEST_HALF ? LARGEST_HALF : from < -LARGEST_HALF ? -LARGEST_HALF : from;
    return _cvtss_sh(bounded, _MM_FROUND_TO_NEAREST_INT);
}
#else
/* The arithmetic of a float does the work: the exponents of the two differ by 112. */
INLINE float float_of(half from) {
    uint32_t bits = (uint32_t)(from & 0x7fff) << 13;
    float value;
    memcpy(&value, &bits, sizeof value);
    value *= 0x1p112f;
    return from & 0x8000 ? -value : value;
}

/* The nearest half, ties to even; what is beyond the largest becomes it. */
INLINE half half_of(float from) {
    float size = fabsf(from), bounded = (size < LARGEST_HALF ? size : LARGEST_HALF) * 0x1p-112f;
    uint32_t bits;
    memcpy(&bits, &bounded, sizeof bits);
    bits = (bits + 0xfff + (bits >> 13 & 1)) >> 13;
    return (half)(bits | (from < 0 ? 0x8000 : 0));
}
#endif

INLINE vec load_half(const half *from) {
#ifdef __AVX512F__
    return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
#else
    float lane[LANES];
    vec value;
#ifdef __F16C__
    for (int i = 0; i < LANES; i += 8)
        _mm256_storeu_ps(lane + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(from + i))));
#else
#pragma omp simd
    for (int i = 0; i < LANES; i++) lane[i] = float_of(from[i]);
#endif
    memcpy(&value, lane, sizeof value);
    return value;
#endif
}

INLINE vec load(const float *from) { return *(const loose_vec *)from; }
INLINE void store(float *to, vec value) { *(loose_vec *)to = value; }

/* Sum of the lanes, always in the same order. */
INLINE float lane_sum(vec value) {
#ifdef __AVX512F__
    return _mm512_reduce_add_ps((__m512)value);
#endif
    float lane[LANES];
    memcpy(lane, &value, sizeof lane);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) lane[i] += lane[i + width];
    return lane[0];
}

static inline float sum(const float *x, int64_t n) {
    vec total = {0};
    int64_t i = 0;
    float rest = 0;
    for (; i + LANES <= n; i += LANES) total += load(x + i);
    for (; i < n; i++) rest += x[i];
    return lane_sum(total) + rest;
}

INLINE float largest_of(const float *x, int64_t n) {
    float most = -INFINITY;
#pragma omp simd reduction(max : most)
    for (int64_t i = 0; i < n; i++) most = x[i] > most ? x[i] : most;
    return most;
}

/* e^x to about 2 units in the last place, 0 below -87; written so that loops over it become vector code. */
INLINE float exp_of(float x) {
    float bounded = x < 88.0f ? x : 88.0f;
    bounded = bounded > -87.0f ? bounded : -87.0f;
    float n = rintf(bounded * 1.44269504f);
    float r = bounded - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits = ((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return x < -87.0f ? 0.0f : p * power;
}

INLINE float tanh_of(float x) { return 1.0f - 2.0f / (exp_of(2.0f * x) + 1.0f); }

/* The error function to 1.5e-7 (Abramowitz and Stegun 7.1.26). */
INLINE float erf_of(float x) {
    float a = fabsf(x), t = 1.0f / (1.0f + 0.3275911f * a);
    float p = 1.061405429f;
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    return copysignf(1.0f - p * t * exp_of(-a * a), x);
}

enum Activation { RELU, GELU, GELU_TANH, SILU, TANH };

#define EACH(expression)                                      \
    _Pragma("omp simd") for (int64_t i = 0; i < n; i++) {     \
        float v = x[i];                                       \
        x[i] = expression;                                    \
    }                                                         \
    break

static void activate(enum Activation kind, float *x, int64_t n) {
    switch (kind) {
    case RELU: EACH(v > 0 ? v : 0);
    case GELU: EACH(0.5f * v * (1.0f + erf_of(v * 0.70710678f)));
    case GELU_TANH: EACH(0.5f * v * (1.0f + tanh_of(0.79788456f * (v + 0.044715f * v * v * v))));
    case SILU: EACH(v / (1.0f + exp_of(-v)));
    case TANH: EACH(tanh_of(v));
    }
}

static void normalise(const Norm *norm, float eps, const float *x, float *y, int64_t n) {
    float mean = norm->bias ? sum(x, n) / n : 0.0f, squares = 0;
    vec total = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        vec d = load(x + i) - mean;
        total += d * d;
    }
    for (; i < n; i++) squares += (x[i] - mean) * (x[i] - mean);
    float scale = 1.0f / sqrtf((lane_sum(total) + squares) / n + eps);
    if (norm->bias) {
        for (i = 0; i < n; i++) y[i] = (x[i] - mean) * scale * norm->weight[i] + norm->bias[i];
    } else {
        for (i = 0; i < n; i++) y[i] = x[i] * scale * norm->weight[i];
    }
}

#endif
