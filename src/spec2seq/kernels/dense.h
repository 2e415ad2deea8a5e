/* Attention of a long row whose queries all see all of its keys, as in an encoder: products of matrices. */
#ifndef SPEC2SEQ_DENSE_H
#define SPEC2SEQ_DENSE_H

#include "attention.h"
#include "linear.h"

#define DENSE_FROM 128 /* keys; what shorter rows take is mostly the packing */
#define SOON 8         /* rows that are on their way before they are packed: they lie pages apart */
#if OFFSET && defined(__AVX512BF16__)
#define PAIRS 1 /* the machine multiplies pairs of bfloat16, twice as many numbers at once as floats */
#else
#define PAIRS 0
#endif

/* One head of one row: its queries, keys and values lie `stride` apart. With `codes` queries meet keys in int8,
 * and with PAIRS weights meet values in bfloat16, where small weights are as exact as large ones. */
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
    uint32_t *value_pairs, *score_pairs;
    int64_t pairs; /* whether it is these, and not the values, that are used */
} DenseWork;

INLINE int64_t whole_panels(int64_t n) { return (n + PANEL - 1) / PANEL * PANEL; }

/* Carve the buffers for `length` keys out of `memory`; with null only count. Returns the bytes. */
static size_t carve_dense(DenseWork *work, char *memory, int64_t length, int64_t width, int64_t codes) {
    int64_t room = whole_panels(length), stride = code_width(width), pairs = codes && PAIRS;
    size_t used = 0;
    work->pairs = pairs;
    TAKE(work, queries, codes ? 0 : length * width);
    TAKE(work, keys, codes ? 0 : room * width);
    TAKE(work, query_codes, codes ? length * stride : 0);
    TAKE(work, query_scales, codes ? length : 0);
    TAKE(work, key_codes, codes ? room * stride : 0);
    TAKE(work, key_scales, codes ? room : 0);
    TAKE(work, key_sums, codes ? room : 0);
    TAKE(work, codes, codes ? stride : 0);
    TAKE(work, values, pairs ? 0 : length * whole_panels(width));
    TAKE(work, value_pairs, pairs ? room / 2 * whole_panels(width) : 0);
    TAKE(work, scores, TILE * room);
    TAKE(work, score_pairs, pairs ? TILE * room / 2 : 0);
    return used;
}

/* One of the head's rows that lie apart, with what comes `SOON` called for. */
INLINE const float *row_at(const Head *h, const float *first, int64_t place) {
    int64_t soon = place + SOON < h->length ? place + SOON : place;
    for (int64_t d = 0; d < h->width; d += 16) __builtin_prefetch(first + soon * h->stride + d);
    return first + place * h->stride;
}

/* Queries times the scale, and keys, in floats. */
static void pack_floats(const Head *h, DenseWork *work) {
    for (int64_t i = 0; i < h->length; i++) {
        const float *row = row_at(h, h->queries, i);
        for (int64_t d = 0; d < h->width; d++) work->queries[i * h->width + d] = row[d] * h->scale;
    }
    for (int64_t key = 0; key < whole_panels(h->length); key++) {
        const float *row = row_at(h, h->keys, key < h->length ? key : h->length - 1);
        float *lane = work->keys + key / PANEL * h->width * PANEL + key % PANEL;
        for (int64_t d = 0; d < h->width; d++) lane[d * PANEL] = key < h->length ? row[d] : 0;
    }
}

/* The same in codes; those of keys without OFFSET, as weights have them. */
static void pack_codes(const Head *h, DenseWork *work) {
    int64_t stride = code_width(h->width);
    for (int64_t i = 0; i < h->length; i++) {
        quantise(row_at(h, h->queries, i), h->width, work->query_codes + i * stride, work->query_scales + i);
        work->query_scales[i] *= h->scale;
    }
    memset(work->key_codes, 0, (size_t)(whole_panels(h->length) * stride));
    for (int64_t key = 0; key < h->length; key++) {
        int8_t *lane = work->key_codes + key / PANEL * stride * PANEL + key % PANEL * 4;
        quantise(row_at(h, h->keys, key), h->width, work->codes, work->key_scales + key);
        work->key_sums[key] = 0;
        for (int64_t d = 0; d < h->width; d++) {
            int8_t code = (int8_t)(work->codes[d] - OFFSET);
            lane[d / 4 * 4 * PANEL + d % 4] = code;
            work->key_sums[key] += code;
        }
    }
    for (int64_t key = h->length; key < whole_panels(h->length); key++) work->key_scales[key] = 0, work->key_sums[key] = 0;
}

/* A panel of a key's values, filled up with zeros; all zeros behind the last key. */
INLINE void values_of(const Head *h, int64_t key, int64_t first, float *to) {
    int64_t count = h->width - first < PANEL ? h->width - first : PANEL;
    memset(to, 0, PANEL * sizeof *to);
    if (key < h->length) memcpy(to, row_at(h, h->values, key) + first, (size_t)count * sizeof *to);
}

static void pack_values(const Head *h, float *to) {
    for (int64_t first = 0; first < h->width; first += PANEL)
        for (int64_t key = 0; key < h->length; key++, to += PANEL) values_of(h, key, first, to);
}

/* The upper 16 bits of a float, rounded to the nearest, ties to even. */
INLINE uint32_t bfloat_of(float from) {
    uint32_t bits;
    memcpy(&bits, &from, sizeof bits);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

/* The values of two keys, each pair in 32 bits. */
static void pack_value_pairs(const Head *h, uint32_t *to) {
    float low[PANEL], high[PANEL];
    for (int64_t first = 0; first < h->width; first += PANEL)
        for (int64_t key = 0; key < h->length; key += 2, to += PANEL) {
            values_of(h, key, first, low);
            values_of(h, key + 1, first, high);
            for (int64_t d = 0; d < PANEL; d++) to[d] = bfloat_of(low[d]) | bfloat_of(high[d]) << 16;
        }
}

/* The same of `length` weights, behind which there is room for a zero where they are odd. */
static void pack_score_pairs(float *scores, int64_t length, uint32_t *to) {
    if (length % 2) scores[length] = 0;
    for (int64_t pair = 0; 2 * pair < length; pair++)
        to[pair] = bfloat_of(scores[2 * pair]) | bfloat_of(scores[2 * pair + 1]) << 16;
}

#if PAIRS
/* What `float_tile` does of weights and values, in pairs. */
INLINE void pair_tile(const DenseWork *work, int64_t length, int64_t panel, int rows, vec (*total)[VECS]) {
    int64_t pairs = (length + 1) / 2;
    ivec sums[TILE][VECS];
    group_tile((const int8_t *)(work->value_pairs + panel * pairs * PANEL), pairs, (const int8_t *)work->score_pairs,
               2 * whole_panels(length), rows, 1, sums);
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECS; v++) total[r][v] = (vec)sums[r][v];
}
#else
#define pair_tile(...) (void)0
#endif

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
        if (work->pairs) pack_score_pairs(work->scores + r * room, h->length, work->score_pairs + r * room / 2);
    }
    for (int64_t panel = 0; panel * PANEL < h->width; panel++) {
        if (work->pairs) pair_tile(work, h->length, panel, rows, total);
        else float_tile(by_value, panel, &weights, 0, rows, total);
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
    work.pairs ? pack_value_pairs(h, work.value_pairs) : pack_values(h, work.values);
    for (int64_t query = 0; query < h->length; query += TILE)
        ANY_ROWS(h->length - query, dense_tile(h, &work, &by_key, &by_value, query, ROWS));
}

#endif
