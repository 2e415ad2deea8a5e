/* Attention of one query over keys and values that lie anywhere. */
#ifndef SPEC2SEQ_ATTENTION_H
#define SPEC2SEQ_ATTENTION_H

#include "common.h"

typedef struct {
    const float *keys, *values; /* [visible][stride] */
    int64_t key_stride, value_stride, visible, width;
    float scale;
    const float *mask;     /* [visible], added to the scores, or null */
    const float *relative; /* bias by query minus key place, [-reach, reach] around it, or null */
    int64_t place, reach;  /* the query's place */
} Keys;

INLINE void scores_of(const Keys *k, const float *query, float *scores) {
    for (int64_t j = 0; j < k->visible; j++) scores[j] = dot(query, k->keys + j * k->key_stride, k->width) * k->scale;
    if (k->relative) {
        for (int64_t j = 0; j < k->visible; j++) {
            int64_t distance = k->place - j;
            distance = distance < k->reach ? distance : k->reach;
            scores[j] += k->relative[distance > -k->reach ? distance : -k->reach];
        }
    }
    if (k->mask)
        for (int64_t j = 0; j < k->visible; j++) scores[j] += k->mask[j];
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

INLINE void mix(const Keys *k, const float *weights, float scale, float *out) {
    int64_t d = 0;
    for (; d + 4 * LANES <= k->width; d += 4 * LANES) {
        vec total[4] = {{0}};
        for (int64_t j = 0; j < k->visible; j++)
            for (int v = 0; v < 4; v++) total[v] += load(k->values + j * k->value_stride + d + v * LANES) * weights[j];
        for (int v = 0; v < 4; v++) store(out + d + v * LANES, total[v] * scale);
    }
    for (; d < k->width; d++) {
        float total = 0;
        for (int64_t j = 0; j < k->visible; j++) total += k->values[j * k->value_stride + d] * weights[j];
        out[d] = total * scale;
    }
}

/* One query over its keys; `scores` is room for as many floats as there are keys. */
static void attend(const Keys *k, const float *query, float *scores, float *out) {
    scores_of(k, query, scores);
    float total = softmax(scores, k->visible);
    mix(k, scores, total > 0 ? 1.0f / total : 0.0f, out);
}

#endif
