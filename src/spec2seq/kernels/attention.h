/* Attention of a query, or of some that see the same, over keys and values that lie anywhere. */
#ifndef SPEC2SEQ_ATTENTION_H
#define SPEC2SEQ_ATTENTION_H

#include "common.h"

typedef struct {
    const void *keys, *values; /* [visible][stride], floats, or halves */
    int64_t halves;
    int64_t key_stride, value_stride, visible, width;
    float scale;
    const float *mask;     /* [visible], added to the scores, or null */
    const float *relative; /* bias by query minus key place, [-reach, reach] around it, or null */
    int64_t place, reach;  /* the query's place */
    const int64_t *rows;   /* in which row, `row_stride` apart, the key of each place lies: rows[place & rows_mask] */
    int64_t rows_mask, row_stride;
} Keys;

/* At once: each key and value is then read for all of them, as many as registers hold the results of. */
#ifdef __AVX512F__
#define QUERIES 6
#else
#define QUERIES 2
#endif

/* Queries that lie `stride` apart, as what comes out of them; `scores` has room for a multiple of 16 each. */
typedef struct {
    const float *queries;
    float *scores, *out;
    int64_t stride, score_stride;
} Queries;

/* As `rows` with a mask of 0: all keys lie in one. One path for both cases, or compilers round differently in each. */
static const int64_t FIRST_ROW = 0;

/* Where a place's key or value begins, from the first one's. */
INLINE int64_t of_place(const Keys *k, int64_t stride, int64_t place) {
    return place * stride + k->rows[place & k->rows_mask] * k->row_stride;
}

/* Numbers of keys or values; `halves` is a constant wherever these are inlined. */
INLINE vec vec_at(const void *from, int64_t at, int halves) {
    return halves ? load_half((const half *)from + at) : load((const float *)from + at);
}
INLINE float float_at(const void *from, int64_t at, int halves) {
    return halves ? float_of(((const half *)from)[at]) : ((const float *)from)[at];
}

#ifdef __AVX512F__
static const int8_t TURNED[16] = {0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15};

/* Lane i of the result is the sum over x[TURNED[i]]: all are added up in one order, whichever place they have. */
INLINE __m512 lane_sums(__m512 *x) {
    for (int i = 0; i < 8; i++)
        x[i] = _mm512_add_ps(_mm512_shuffle_f32x4(x[i], x[i + 8], 0x44), _mm512_shuffle_f32x4(x[i], x[i + 8], 0xee));
    for (int i = 0; i < 4; i++)
        x[i] = _mm512_add_ps(_mm512_shuffle_f32x4(x[i], x[i + 4], 0x88), _mm512_shuffle_f32x4(x[i], x[i + 4], 0xdd));
    for (int i = 0; i < 2; i++)
        x[i] = _mm512_add_ps(_mm512_shuffle_ps(x[i], x[i + 2], 0x44), _mm512_shuffle_ps(x[i], x[i + 2], 0xee));
    return _mm512_add_ps(_mm512_shuffle_ps(x[0], x[1], 0x88), _mm512_shuffle_ps(x[0], x[1], 0xdd));
}

/* Scores of 16 keys at once; `parts`, `count` and `halves` are constants wherever this is inlined. */
INLINE void scores_of_parts(const Keys *k, const Queries *q, int parts, int count, int halves) {
    for (int64_t first = 0; first < k->visible; first += 16) {
        __m512 products[QUERIES][16];
        for (int i = 0; i < 16; i++) {
            int64_t place = first + i < k->visible ? first + i : k->visible - 1;
            int64_t at = of_place(k, k->key_stride, place);
            __m512 key[8];
            for (int part = 0; part < parts; part++) key[part] = (__m512)vec_at(k->keys, at + 16 * part, halves);
            for (int n = 0; n < count; n++) {
                const float *query = q->queries + n * q->stride;
                __m512 total = _mm512_mul_ps(_mm512_loadu_ps(query), key[0]);
                for (int part = 1; part < parts; part++)
                    total = _mm512_fmadd_ps(_mm512_loadu_ps(query + 16 * part), key[part], total);
                products[n][TURNED[i]] = total;
            }
        }
        for (int n = 0; n < count; n++)
            _mm512_storeu_ps(q->scores + n * q->score_stride + first,
                             _mm512_mul_ps(lane_sums(products[n]), _mm512_set1_ps(k->scale)));
    }
}
#endif

/* Scores of all keys; `count` and `halves` are constants wherever this is inlined. */
INLINE void dots_of(const Keys *k, const Queries *q, int count, int halves) {
#ifdef __AVX512F__
    switch (k->width) {
    case 32: scores_of_parts(k, q, 2, count, halves); return;
    case 64: scores_of_parts(k, q, 4, count, halves); return;
    case 128: scores_of_parts(k, q, 8, count, halves); return;
    }
#endif
    for (int64_t j = 0; j < k->visible; j++) {
        int64_t at = of_place(k, k->key_stride, j);
        for (int n = 0; n < count; n++) {
            const float *query = q->queries + n * q->stride;
            vec total = {0};
            float rest = 0;
            int64_t i = 0;
            for (; i + LANES <= k->width; i += LANES) total += load(query + i) * vec_at(k->keys, at + i, halves);
            for (; i < k->width; i++) rest += query[i] * float_at(k->keys, at + i, halves);
            q->scores[n * q->score_stride + j] = (lane_sum(total) + rest) * k->scale;
        }
    }
}

/* Add the bias by distance of the query at `place`, if there is one. */
INLINE void add_relative(const float *relative, int64_t reach, int64_t place, float *scores, int64_t keys) {
    for (int64_t j = 0; relative && j < keys; j++) {
        int64_t distance = place - j;
        distance = distance < reach ? distance : reach;
        scores[j] += relative[distance > -reach ? distance : -reach];
    }
}

/* Scores to weights, not yet divided by their sum, which is returned. */
static float softmax(float *scores, int64_t n) {
    float most = -INFINITY;
#pragma omp simd reduction(max : most)
    for (int64_t j = 0; j < n; j++) most = scores[j] > most ? scores[j] : most;
    if (most == -INFINITY) most = 0; /* nothing is visible */
#pragma omp simd
    for (int64_t j = 0; j < n; j++) scores[j] = exp_of(scores[j] - most);
    return sum(scores, n);
}

/* `count` and `halves` are constants wherever this is inlined. */
INLINE void mix(const Keys *k, const Queries *q, const float *scales, int count, int halves) {
    int64_t d = 0;
    for (; d + 4 * LANES <= k->width; d += 4 * LANES) {
        vec total[QUERIES][4] = {{{0}}};
        for (int64_t j = 0; j < k->visible; j++) {
            int64_t at = of_place(k, k->value_stride, j) + d;
            vec value[4];
            for (int v = 0; v < 4; v++) value[v] = vec_at(k->values, at + v * LANES, halves);
            for (int n = 0; n < count; n++)
                for (int v = 0; v < 4; v++) total[n][v] += value[v] * q->scores[n * q->score_stride + j];
        }
        for (int n = 0; n < count; n++)
            for (int v = 0; v < 4; v++) store(q->out + n * q->stride + d + v * LANES, total[n][v] * scales[n]);
    }
    for (; d + LANES <= k->width; d += LANES) {
        vec total[QUERIES] = {{0}};
        for (int64_t j = 0; j < k->visible; j++) {
            vec value = vec_at(k->values, of_place(k, k->value_stride, j) + d, halves);
            for (int n = 0; n < count; n++) total[n] += value * q->scores[n * q->score_stride + j];
        }
        for (int n = 0; n < count; n++) store(q->out + n * q->stride + d, total[n] * scales[n]);
    }
    for (; d < k->width; d++)
        for (int n = 0; n < count; n++) {
            const float *weights = q->scores + n * q->score_stride;
            float total = 0;
            for (int64_t j = 0; j < k->visible; j++)
                total += float_at(k->values, of_place(k, k->value_stride, j) + d, halves) * weights[j];
            q->out[n * q->stride + d] = total * scales[n];
        }
}

/* `count` queries, a constant as `halves` is, over the same keys; what has a place or a mask of its own comes alone. */
INLINE void attend_together(const Keys *k, const Queries *q, int count, int halves) {
    float scales[QUERIES];
    dots_of(k, q, count, halves);
    for (int n = 0; n < count; n++) {
        float *scores = q->scores + n * q->score_stride;
        add_relative(k->relative, k->reach, k->place, scores, k->visible);
        if (k->mask)
            for (int64_t j = 0; j < k->visible; j++) scores[j] += k->mask[j];
        float total = softmax(scores, k->visible);
        scales[n] = total > 0 ? 1.0f / total : 0.0f;
    }
    mix(k, q, scales, count, halves);
}

INLINE void attend_to(const Keys *k, const Queries *q, int64_t count, int halves) {
    switch (count) {
    case 1: attend_together(k, q, 1, halves); return;
#if QUERIES > 2
    case 2: attend_together(k, q, 2, halves); return;
    case 3: attend_together(k, q, 3, halves); return;
    case 4: attend_together(k, q, 4, halves); return;
    case 5: attend_together(k, q, 5, halves); return;
#endif
    default: attend_together(k, q, QUERIES, halves);
    }
}

/* From 1 to QUERIES of them. */
static void attend(const Keys *k, const Queries *q, int64_t count) {
    k->halves ? attend_to(k, q, count, 1) : attend_to(k, q, count, 0);
}

#endif
