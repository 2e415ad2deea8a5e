/* Attention of a long row whose queries all see all of its keys, as in an encoder: products of matrices. */
#ifndef SPEC2SEQ_DENSE_H
#define SPEC2SEQ_DENSE_H

#include "attention.h"
#include "linear.h"

#define DENSE_FROM 128 /* keys; what shorter rows take is mostly the packing */

/* One head of one row: its queries, keys and values lie `stride` apart. With `codes` queries meet keys in int8. */
typedef struct {
    const float *queries, *keys, *values;
    int64_t stride, length, width;
    float scale;
    const float *relative; /* as in Keys */
    int64_t reach;
    float *target; /* [length][target_stride] */
    int64_t target_stride, codes;
} Head;

/* Its parts as a linear layer takes them: keys are weights with an output for each, values weights with an input. */
typedef struct {
    float *queries, *query_scales, *keys, *key_scales, *values, *scores;
    int8_t *query_codes, *key_codes, *codes;
    int32_t *key_sums;
} DenseWork;

INLINE int64_t whole_panels(int64_t n) { return (n + PANEL - 1) / PANEL * PANEL; }

/* Carve the buffers for `length` keys out of `memory`; with null only count. Returns the bytes. */
static size_t carve_dense(DenseWork *work, char *memory, int64_t length, int64_t width, int64_t codes) {
    int64_t room = whole_panels(length), stride = code_width(width);
    size_t used = 0;
    TAKE(work, queries, codes ? 0 : length * width);
    TAKE(work, keys, codes ? 0 : room * width);
    TAKE(work, query_codes, codes ? length * stride : 0);
    TAKE(work, query_scales, codes ? length : 0);
    TAKE(work, key_codes, codes ? room * stride : 0);
    TAKE(work, key_scales, codes ? room : 0);
    TAKE(work, key_sums, codes ? room : 0);
    TAKE(work, codes, codes ? stride : 0);
    TAKE(work, values, length * whole_panels(width));
    TAKE(work, scores, TILE * room);
    return used;
}

/* Queries times the scale, and keys, in floats. */
static void pack_floats(const Head *h, DenseWork *work) {
    for (int64_t i = 0; i < h->length; i++)
        for (int64_t d = 0; d < h->width; d++) work->queries[i * h->width + d] = h->queries[i * h->stride + d] * h->scale;
    for (int64_t key = 0; key < whole_panels(h->length); key++) {
        float *lane = work->keys + key / PANEL * h->width * PANEL + key % PANEL;
        for (int64_t d = 0; d < h->width; d++) lane[d * PANEL] = key < h->length ? h->keys[key * h->stride + d] : 0;
    }
}

/* The same in codes; those of keys without OFFSET, as weights have them. */
static void pack_codes(const Head *h, DenseWork *work) {
    int64_t stride = code_width(h->width);
    for (int64_t i = 0; i < h->length; i++) {
        quantise(h->queries + i * h->stride, h->width, work->query_codes + i * stride, work->query_scales + i);
        work->query_scales[i] *= h->scale;
    }
    memset(work->key_codes, 0, (size_t)(whole_panels(h->length) * stride));
    for (int64_t key = 0; key < h->length; key++) {
        int8_t *lane = work->key_codes + key / PANEL * stride * PANEL + key % PANEL * 4;
        quantise(h->keys + key * h->stride, h->width, work->codes, work->key_scales + key);
        work->key_sums[key] = 0;
        for (int64_t d = 0; d < h->width; d++) {
            int8_t code = (int8_t)(work->codes[d] - OFFSET);
            lane[d / 4 * 4 * PANEL + d % 4] = code;
            work->key_sums[key] += code;
        }
    }
    for (int64_t key = h->length; key < whole_panels(h->length); key++) work->key_scales[key] = 0, work->key_sums[key] = 0;
}

static void pack_values(const Head *h, float *to) {
    for (int64_t first = 0; first < h->width; first += PANEL)
        for (int64_t key = 0; key < h->length; key++, to += PANEL)
            for (int64_t d = 0; d < PANEL; d++)
                to[d] = first + d < h->width ? h->values[key * h->stride + first + d] : 0;
}

/* `rows` queries from `query` on; a constant wherever this is inlined. */
INLINE void dense_tile(const Head *h, const DenseWork *work, const Linear *by_key, const Linear *by_value, int64_t query, int rows) {
    int64_t room = whole_panels(h->length), stride = code_width(h->width);
    Inputs queries = {work->queries + query * h->width, h->width, work->query_codes + query * stride,
                      work->query_scales + query, stride};
    Inputs weights = {.values = work->scores, .stride = room};
    Outputs scores = {.target = work->scores, .stride = room};
    Outputs to = {.target = h->target + query * h->target_stride, .stride = h->target_stride};
    vec total[TILE][VECS];
    float inverse[TILE];
    for (int64_t panel = 0; panel < room / PANEL; panel++) tile(by_key, panel, &queries, &scores, 0, rows);
    for (int r = 0; r < rows; r++) {
        add_relative(h->relative, h->reach, query + r, work->scores + r * room, h->length);
        float sum = softmax(work->scores + r * room, h->length);
        inverse[r] = sum > 0 ? 1.0f / sum : 0.0f;
    }
    for (int64_t panel = 0; panel * PANEL < h->width; panel++) {
        float_tile(by_value, panel, &weights, 0, rows, total);
        for (int r = 0; r < rows; r++) {
            for (int v = 0; v < VECS; v++) total[r][v] *= inverse[r];
            put(by_value, &to, r, panel * PANEL, total[r]);
        }
    }
}

static void dense_head(const Head *h, char *room) {
    DenseWork work;
    carve_dense(&work, room, h->length, h->width, h->codes);
    Linear by_key = {.weight = h->codes ? NULL : work.keys, .codes = work.key_codes, .scales = work.key_scales,
                     .sums = work.key_sums, .inputs = h->width, .outputs = h->length};
    Linear by_value = {.weight = work.values, .inputs = h->length, .outputs = h->width};
    h->codes ? pack_codes(h, &work) : pack_floats(h, &work);
    pack_values(h, work.values);
    for (int64_t query = 0; query < h->length; query += TILE) switch (h->length - query) {
        case 1: dense_tile(h, &work, &by_key, &by_value, query, 1); break;
#if TILE > 1
        case 2: dense_tile(h, &work, &by_key, &by_value, query, 2); break;
        case 3: dense_tile(h, &work, &by_key, &by_value, query, 3); break;
        case 4: dense_tile(h, &work, &by_key, &by_value, query, 4); break;
        case 5: dense_tile(h, &work, &by_key, &by_value, query, 5); break;
#endif
        default: dense_tile(h, &work, &by_key, &by_value, query, TILE);
        }
}

#endif
