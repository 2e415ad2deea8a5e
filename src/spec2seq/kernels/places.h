/* Keys and values that are kept: of outputs in 32 bits, of sources in 32 or 16. */
#ifndef SPEC2SEQ_PLACES_H
#define SPEC2SEQ_PLACES_H

#include "common.h"

/* [layer][part][row][head][place][head_width]; steps in numbers, which are halves or floats. */
typedef struct {
    void *data;
    int64_t layer, part, row, head, halves;
} Places;

/* Where the keys (part 0) or values (part 1) of a head begin, moved by `more` numbers. */
static void *places_of(const Places *p, int64_t layer, int64_t part, int64_t row, int64_t head, int64_t more) {
    int64_t at = layer * p->layer + part * p->part + row * p->row + head * p->head + more;
    return p->halves ? (void *)((half *)p->data + at) : (float *)p->data + at;
}

/* Copy one token's keys and values, `wide` [2][heads][width], to `place` of a row. */
static void write_place(const Places *to, int64_t layer, int64_t row, int64_t place, const float *wide, int64_t heads,
                        int64_t width) {
    for (int64_t head = 0; head < 2 * heads; head++, wide += width) {
        void *target = places_of(to, layer, head / heads, row, head % heads, place * width);
        if (!to->halves) memcpy(target, wide, (size_t)width * sizeof(float));
        for (int64_t i = 0; to->halves && i < width; i++) ((half *)target)[i] = half_of(wide[i]);
    }
}

#endif
