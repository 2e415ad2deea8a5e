/* Linear layers over packed weights.
 *
 * Every sum runs over the inputs in the same order however many rows there are, so that a row's result is the same bit
 * for bit alone and in any block or batch. In int8 the sums are integers, and each row has a scale of its own. */
#ifndef SPEC2SEQ_LINEAR_H
#define SPEC2SEQ_LINEAR_H

#include "common.h"

#define VECS (PANEL / LANES)
#ifdef __AVX512F__
#define TILE 6 /* rows at once: 24 of the 32 registers hold sums */
#else
#define TILE 1
#endif
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define OFFSET 128 /* its product is of unsigned and signed bytes */
#else
#define OFFSET 0
#endif

/* The inputs of a linear layer: floats, or codes and their scales. */
typedef struct {
    const float *values; /* [tokens][stride] */
    int64_t stride;
    const int8_t *codes; /* [tokens][code_stride], plus OFFSET */
    const float *scales; /* [tokens] */
    int64_t code_stride;
} Inputs;

/* Where results go: target[token][stride] = result + (add ? add[token][add_stride] : 0); add may be target. */
typedef struct {
    float *target;
    int64_t stride;
    const float *add;
    int64_t add_stride;
} Outputs;

INLINE int64_t code_width(int64_t inputs) { return (inputs + 3) / 4 * 4; }

/* Symmetric codes of one row, -127 to 127, by the largest magnitude in it. */
static void quantise(const float *x, int64_t n, int8_t *codes, float *scale) {
    float most = 0;
#pragma omp simd reduction(max : most)
    for (int64_t i = 0; i < n; i++) {
        float a = fabsf(x[i]);
        most = a > most ? a : most;
    }
    float inverse = most > 0 ? 127.0f / most : 0.0f;
    for (int64_t i = 0; i < n; i++) {
        float code = rintf(x[i] * inverse);
        code = code < 127.0f ? code : 127.0f; /* also where x is not a number */
        code = code > -127.0f ? code : -127.0f;
        codes[i] = (int8_t)(uint8_t)((int32_t)code + OFFSET);
    }
    for (int64_t i = n; i < code_width(n); i++) codes[i] = 0;
    *scale = most / 127.0f;
}

INLINE void float_tile(const float *weight, int64_t inputs, const float *x, int64_t stride, int rows,
                       float (*out)[PANEL]) {
    vec total[TILE][VECS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECS; v++) total[r][v] = (vec){0};
    for (int64_t k = 0; k < inputs; k++, weight += PANEL) {
        vec w[VECS];
        for (int v = 0; v < VECS; v++) w[v] = load(weight + v * LANES);
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < VECS; v++) total[r][v] += w[v] * x[r * stride + k];
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECS; v++) store(out[r] + v * LANES, total[r][v]);
}

#if OFFSET
INLINE void code_tile(const int8_t *weight, int64_t groups, const int8_t *x, int64_t stride, int rows,
                      int32_t (*out)[PANEL]) {
    __m512i total[TILE][VECS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECS; v++) total[r][v] = _mm512_setzero_si512();
    for (int64_t k = 0; k < groups; k++, weight += 4 * PANEL) {
        __m512i w[VECS];
        for (int v = 0; v < VECS; v++) w[v] = _mm512_loadu_si512(weight + v * 64);
        for (int r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, x + r * stride + 4 * k, 4);
            __m512i broadcast = _mm512_set1_epi32(four);
            for (int v = 0; v < VECS; v++) total[r][v] = _mm512_dpbusd_epi32(total[r][v], broadcast, w[v]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECS; v++) _mm512_storeu_si512(out[r] + v * LANES, total[r][v]);
}
#elif defined(__AVX2__)
/* Products of bytes are of unsigned and signed: |x| and w with the sign of x, whose pairs fit 16 bits. */
INLINE void code_tile(const int8_t *weight, int64_t groups, const int8_t *x, int64_t stride, int rows,
                      int32_t (*out)[PANEL]) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (int r = 0; r < rows; r++) {
        __m256i total[PANEL / 8];
        for (int v = 0; v < PANEL / 8; v++) total[v] = _mm256_setzero_si256();
        for (int64_t k = 0; k < groups; k++) {
            int32_t four;
            memcpy(&four, x + r * stride + 4 * k, 4);
            __m256i broadcast = _mm256_set1_epi32(four), magnitude = _mm256_abs_epi8(broadcast);
            for (int v = 0; v < PANEL / 8; v++) {
                __m256i w = _mm256_loadu_si256((const __m256i *)(weight + k * 4 * PANEL + v * 32));
                __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(w, broadcast));
                total[v] = _mm256_add_epi32(total[v], _mm256_madd_epi16(pairs, ones));
            }
        }
        for (int v = 0; v < PANEL / 8; v++) _mm256_storeu_si256((__m256i *)(out[r] + v * 8), total[v]);
    }
}
#else
INLINE void code_tile(const int8_t *weight, int64_t groups, const int8_t *x, int64_t stride, int rows,
                      int32_t (*out)[PANEL]) {
    for (int r = 0; r < rows; r++) {
        memset(out[r], 0, sizeof out[r]);
        for (int64_t k = 0; k < groups; k++) {
            const int8_t *w = weight + k * 4 * PANEL, *four = x + r * stride + 4 * k;
            for (int c = 0; c < PANEL; c++)
                out[r][c] += w[4 * c] * four[0] + w[4 * c + 1] * four[1] + w[4 * c + 2] * four[2] + w[4 * c + 3] * four[3];
        }
    }
}
#endif

/* `rows` is a constant wherever this is inlined, so that the sums stay in registers. */
INLINE void tile(const Linear *linear, int64_t panel, const Inputs *in, int64_t token, int rows,
                 float (*out)[PANEL]) {
    int64_t inputs = linear->inputs;
    if (linear->weight) {
        float_tile(linear->weight + panel * inputs * PANEL, inputs, in->values + token * in->stride, in->stride, rows, out);
        return;
    }
    int32_t sums[TILE][PANEL];
    int64_t width = code_width(inputs), first = panel * PANEL, left = linear->outputs - first;
    code_tile(linear->codes + panel * width * PANEL, width / 4, in->codes + token * in->code_stride, in->code_stride,
              rows, sums);
    for (int r = 0; r < rows; r++) {
        float scale = in->scales[token + r];
        for (int64_t c = 0; c < (left < PANEL ? left : PANEL); c++)
            out[r][c] = (float)(sums[r][c] - OFFSET * linear->sums[first + c]) * (scale * linear->scales[first + c]);
    }
}

/* The panels of a linear layer from `panel` up to `end`, for all tokens. */
static void panels(const Linear *linear, const Inputs *in, const Outputs *to, int64_t tokens, int64_t panel,
                   int64_t end) {
    for (; panel < end; panel++) {
        int64_t first = panel * PANEL, left = linear->outputs - first, columns = left < PANEL ? left : PANEL;
        for (int64_t token = 0; token < tokens; token += TILE) {
            float out[TILE][PANEL];
            int rows = tokens - token < TILE ? (int)(tokens - token) : TILE;
            switch (rows) {
            case 1: tile(linear, panel, in, token, 1, out); break;
#if TILE > 1
            case 2: tile(linear, panel, in, token, 2, out); break;
            case 3: tile(linear, panel, in, token, 3, out); break;
            case 4: tile(linear, panel, in, token, 4, out); break;
            case 5: tile(linear, panel, in, token, 5, out); break;
            default: tile(linear, panel, in, token, 6, out);
#endif
            }
            for (int r = 0; r < rows; r++) {
                float *target = to->target + (token + r) * to->stride + first;
                const float *add = to->add ? to->add + (token + r) * to->add_stride + first : NULL;
                for (int64_t c = 0; c < columns; c++) {
                    float value = out[r][c];
                    if (linear->bias) value += linear->bias[first + c];
                    if (add) value += add[c];
                    target[c] = value;
                }
            }
        }
    }
}

/* One phase: a linear layer for all tokens. */
static void linear_layer(const Linear *linear, const Inputs *in, const Outputs *to, int64_t tokens, Team *team) {
    int64_t panel, end;
    while (next_share(team, (linear->outputs + PANEL - 1) / PANEL, &panel, &end))
        panels(linear, in, to, tokens, panel, end);
}

#endif
