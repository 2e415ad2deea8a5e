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
#define AHEAD 8192 /* bytes of weights that are on their way before they are used */
#else
#define TILE 1
#endif
#define CHUNK (32 * TILE) /* tokens that meet all weights before the next ones do: their inputs stay in the cache */
#define BLOCK 128 /* inputs whose weights, in floats, meet all of these tokens before the next ones do */
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

/* Codes of a row, filled up with zeros to whole tiles of a matrix unit. */
INLINE int64_t code_width(int64_t inputs) { return (inputs + 63) / 64 * 64; }

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

/* Add to `total` what `inputs` weights of a panel make of `rows` tokens, a constant wherever this is inlined, so that the
 * sums stay in registers. With `fetch`, a constant too, the weights a BLOCK further on are called for meanwhile: what
 * the machine fetches by itself comes too late where more than one row is computed. */
INLINE void float_sums(const float *weight, int64_t inputs, const float *x, int64_t stride, int rows, int fetch,
                       vec (*total)[VECS]) {
    vec sums[TILE][VECS]; /* a local array: else every addition is stored */
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECS; v++) sums[r][v] = total[r][v];
    for (int64_t k = 0; k < inputs; k++, weight += PANEL) {
        vec w[VECS];
        for (int v = 0; v < VECS; v++) {
            w[v] = load(weight + v * LANES);
            if (fetch) __builtin_prefetch(weight + BLOCK * PANEL + v * LANES, 0, 2);
        }
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < VECS; v++) sums[r][v] += w[v] * x[r * stride + k];
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECS; v++) total[r][v] = sums[r][v];
}

/* The sums of a whole panel that is in the cache. */
INLINE void float_tile(const Linear *linear, int64_t panel, const Inputs *in, int64_t token, int rows, vec (*total)[VECS]) {
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECS; v++) total[r][v] = (vec){0};
    float_sums(linear->weight + panel * linear->inputs * PANEL, linear->inputs, in->values + token * in->stride, in->stride,
               rows, 0, total);
}

INLINE int32_t four_codes(const int8_t *x) {
    int32_t four;
    memcpy(&four, x, 4);
    return four;
}

/* Integer sums of one panel: weights [groups][PANEL][4] and codes x [rows][stride]. */
#if OFFSET && defined(__AMX_INT8__) && defined(__linux__)
#include "matrix_unit.h"
#define MATRIX_UNIT
#endif
#if OFFSET
/* Groups have four bytes: codes, or with `pairs`, a constant, two bfloat16, whose sums are the bits of floats. */
INLINE void group_tile(const int8_t *weight, int64_t groups, const int8_t *x, int64_t stride, int rows, int pairs,
                       ivec (*total)[VECS]) {
    __m512i sums[TILE][VECS]; /* a local array: else every addition is stored */
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECS; v++) sums[r][v] = _mm512_setzero_si512();
    for (int64_t k = 0; k < groups; k++, weight += 4 * PANEL) {
        __m512i w[VECS];
        for (int v = 0; v < VECS; v++) {
            w[v] = _mm512_loadu_si512(weight + v * 64);
            _mm_prefetch((const char *)weight + AHEAD + v * 64, _MM_HINT_T0);
        }
        for (int r = 0; r < rows; r++) {
            __m512i four = _mm512_set1_epi32(four_codes(x + r * stride + 4 * k));
            for (int v = 0; v < VECS; v++) /* not intrinsics, around which GCC 12 copies every sum */
                if (pairs) __asm__("vdpbf16ps %2, %1, %0" : "+v"(sums[r][v]) : "v"(four), "v"(w[v]));
                else __asm__("vpdpbusd %2, %1, %0" : "+v"(sums[r][v]) : "v"(four), "v"(w[v]));
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECS; v++) total[r][v] = (ivec)sums[r][v];
}

INLINE void code_tile(const int8_t *weight, int64_t groups, const int8_t *x, int64_t stride, int rows, ivec (*total)[VECS]) {
    group_tile(weight, groups, x, stride, rows, 0, total);
}
#elif defined(__AVX2__)
/* The machine multiplies unsigned by signed bytes: |x| by w with the sign of x, whose pairs fit 16 bits. */
INLINE void code_tile(const int8_t *weight, int64_t groups, const int8_t *x, int64_t stride, int rows, ivec (*total)[VECS]) {
    for (int r = 0; r < rows; r++) {
        __m256i sums[PANEL / 8];
        for (int v = 0; v < PANEL / 8; v++) sums[v] = _mm256_setzero_si256();
        for (int64_t k = 0; k < groups; k++) {
            __m256i four = _mm256_set1_epi32(four_codes(x + r * stride + 4 * k)), magnitude = _mm256_abs_epi8(four);
            for (int v = 0; v < PANEL / 8; v++) {
                __m256i w = _mm256_loadu_si256((const __m256i *)(weight + k * 4 * PANEL + v * 32));
                __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(w, four));
                sums[v] = _mm256_add_epi32(sums[v], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
            }
        }
        memcpy(total[r], sums, sizeof sums);
    }
}
#else
INLINE void code_tile(const int8_t *weight, int64_t groups, const int8_t *x, int64_t stride, int rows, ivec (*total)[VECS]) {
    for (int r = 0; r < rows; r++) {
        int32_t sums[PANEL] = {0};
        for (int64_t k = 0; k < groups; k++) {
            const int8_t *w = weight + k * 4 * PANEL, *four = x + r * stride + 4 * k;
            for (int c = 0; c < 4 * PANEL; c += 4)
                sums[c / 4] += w[c] * four[0] + w[c + 1] * four[1] + w[c + 2] * four[2] + w[c + 3] * four[3];
        }
        memcpy(total[r], sums, sizeof sums);
    }
}
#endif

/* Write the results of one panel of one token. */
INLINE void put(const Linear *linear, const Outputs *to, int64_t token, int64_t first, const vec *result) {
    float *target = to->target + token * to->stride + first;
    const float *add = to->add ? to->add + token * to->add_stride + first : NULL;
    int64_t columns = linear->outputs - first;
    if (columns >= PANEL) {
        for (int v = 0; v < VECS; v++) {
            vec value = result[v];
            if (linear->bias) value += load(linear->bias + first + v * LANES);
            if (add) value += load(add + v * LANES);
            store(target + v * LANES, value);
        }
        return;
    }
    float rest[PANEL];
    memcpy(rest, result, sizeof rest);
    for (int64_t c = 0; c < columns; c++) {
        float value = rest[c];
        if (linear->bias) value += linear->bias[first + c];
        if (add) value += add[c];
        target[c] = value;
    }
}

/* Sums of codes to results, and write them. */
INLINE void put_codes(const Linear *linear, int64_t panel, const Inputs *in, const Outputs *to, int64_t token, int rows,
                      ivec (*sums)[VECS]) {
    int64_t first = panel * PANEL;
    vec scale[VECS];
    ivec offset[VECS];
    for (int v = 0; v < VECS; v++) {
        scale[v] = load(linear->scales + first + v * LANES);
        offset[v] = *(const loose_ivec *)(linear->sums + first + v * LANES) * OFFSET;
    }
    for (int r = 0; r < rows; r++) {
        vec result[VECS];
        for (int v = 0; v < VECS; v++)
            result[v] = __builtin_convertvector(sums[r][v] - offset[v], vec) * (scale[v] * in->scales[token + r]);
        put(linear, to, token + r, first, result);
    }
}

/* Where the codes of a panel begin. */
INLINE const int8_t *panel_codes(const Linear *linear, int64_t panel) {
    return linear->codes + panel * code_width(linear->inputs) * PANEL;
}

INLINE void codes_tile(const Linear *linear, int64_t panel, const Inputs *in, const Outputs *to, int64_t token, int rows) {
    ivec sums[TILE][VECS];
    code_tile(panel_codes(linear, panel), code_width(linear->inputs) / 4, in->codes + token * in->code_stride,
              in->code_stride, rows, sums);
    put_codes(linear, panel, in, to, token, rows, sums);
}

/* One panel of floats or codes that is in the cache. */
INLINE void tile(const Linear *linear, int64_t panel, const Inputs *in, const Outputs *to, int64_t token, int rows) {
    if (linear->weight) {
        vec result[TILE][VECS];
        float_tile(linear, panel, in, token, rows, result);
        for (int r = 0; r < rows; r++) put(linear, to, token + r, panel * PANEL, result[r]);
    } else codes_tile(linear, panel, in, to, token, rows);
}

/* The inputs from `first` to `last` of one panel of floats; their sums are in `kept` from one such part to the next. */
INLINE void part_tile(const Linear *linear, int64_t panel, int64_t first, int64_t last, const Inputs *in, const Outputs *to,
                      int64_t token, int rows, vec (*kept)[VECS]) {
    vec sums[TILE][VECS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECS; v++) sums[r][v] = first ? kept[r][v] : (vec){0};
    float_sums(linear->weight + (panel * linear->inputs + first) * PANEL, last - first,
               in->values + token * in->stride + first, in->stride, rows, rows > 1, sums);
    for (int r = 0; r < rows; r++) {
        if (last == linear->inputs) put(linear, to, token + r, panel * PANEL, sums[r]);
        else memcpy(kept[r], sums[r], sizeof sums[r]);
    }
}

#ifdef MATRIX_UNIT
/* The panels from `panel` to `end` for all tokens, 16 of them at once. */
static void matrix_panels(const Linear *linear, const Inputs *in, const Outputs *to, int64_t tokens, int64_t panel, int64_t end) {
    _Alignas(64) ivec sums[MATRIX_ROWS][VECS];
    for (int64_t token = 0, stop; token < tokens; token = stop) {
        int rows = tokens - token < MATRIX_ROWS ? (int)(tokens - token) : MATRIX_ROWS;
        stop = rows < MATRIX_ROWS ? tokens : tokens / MATRIX_ROWS * MATRIX_ROWS;
        matrix_rows(rows);
        for (int64_t p = panel; p < end; p++)
            for (int64_t block = token; block < stop; block += rows) {
                matrix_tile(panel_codes(linear, p), code_width(linear->inputs), in->codes + block * in->code_stride,
                            in->code_stride, (int32_t *)sums, block == token);
                put_codes(linear, p, in, to, block, rows, sums);
            }
    }
    _tile_release();
}
#endif

/* A tile of as many rows as there are, constants: `code` with ROWS. */
#if TILE > 1
#define ANY_ROWS(count, code)                             \
    switch (count) {                                      \
    case 1: { enum { ROWS = 1 }; code; break; }           \
    case 2: { enum { ROWS = 2 }; code; break; }           \
    case 3: { enum { ROWS = 3 }; code; break; }           \
    case 4: { enum { ROWS = 4 }; code; break; }           \
    case 5: { enum { ROWS = 5 }; code; break; }           \
    default: { enum { ROWS = TILE }; code; }              \
    }
#else
#define ANY_ROWS(count, code) { enum { ROWS = TILE }; code; }
#endif

/* The panels from `panel` to `end` for the tokens from `token` to `stop`. */
static void code_panels(const Linear *linear, const Inputs *in, const Outputs *to, int64_t token, int64_t stop, int64_t panel,
                        int64_t end) {
    for (; panel < end; panel++)
        for (int64_t t = token; t < stop; t += TILE) ANY_ROWS(stop - t, codes_tile(linear, panel, in, to, t, ROWS));
}

/* The same in floats, of at most CHUNK tokens. A part of a panel stays in the nearest cache for all of them. */
static void float_panels(const Linear *linear, const Inputs *in, const Outputs *to, int64_t token, int64_t stop, int64_t panel,
                         int64_t end) {
    vec kept[CHUNK][VECS];
    int64_t inputs = linear->inputs, block = stop - token > TILE ? BLOCK : inputs;
    for (; panel < end; panel++)
        for (int64_t first = 0, last; first < inputs; first = last) {
            last = first + block < inputs ? first + block : inputs;
            for (int64_t t = token; t < stop; t += TILE)
                ANY_ROWS(stop - t, part_tile(linear, panel, first, last, in, to, t, ROWS, kept + (t - token)));
        }
}

/* One phase: a linear layer for all tokens. */
static __attribute__((noinline)) void linear_layer(const Linear *linear, const Inputs *in, const Outputs *to, int64_t tokens, Team *team) {
    int64_t panel, end;
    while (next_share(team, (linear->outputs + PANEL - 1) / PANEL, &panel, &end)) {
#ifdef MATRIX_UNIT
        if (linear->codes && tokens >= MATRIX_FROM && matrix_allowed()) {
            matrix_panels(linear, in, to, tokens, panel, end);
            continue;
        }
#endif
        for (int64_t token = 0; token < tokens; token += CHUNK) {
            int64_t stop = tokens - token < CHUNK ? tokens : token + CHUNK;
            (linear->codes ? code_panels : float_panels)(linear, in, to, token, stop, panel, end);
        }
    }
}

#endif
