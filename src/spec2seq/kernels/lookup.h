/* What followed the last tokens of a row where they occurred before, see NgramLookup. */
#ifndef SPEC2SEQ_LOOKUP_H
#define SPEC2SEQ_LOOKUP_H

#include "common.h"

typedef struct {
    int64_t rows, k, longest, shortest; /* of n-grams */
    const int64_t *source; /* [rows][source_stride], or null: it is of another vocabulary */
    int64_t source_stride;
    const int64_t *source_lengths, *tokens; /* tokens [rows][token_stride] */
    int64_t token_stride;
    const int64_t *lengths, *limits; /* [rows]; a draft leaves room for one token more */
    int64_t *drafted, *counts;       /* [rows][k], [rows] */
    int64_t width;                   /* of the longest draft */
} Lookup;

/* How many tokens before `place` of `text`, none of them before `first`, are the output's last ones; at most `most`. */
static int64_t matching(const int64_t *text, int64_t place, int64_t first, const int64_t *end, int64_t most) {
    int64_t n = 0;
    while (n < most && place - n > first && text[place - n - 1] == end[-n - 1]) n++;
    return n;
}

static void lookup_row(const Lookup *l, int64_t row) {
    const int64_t *source = l->source ? l->source + row * l->source_stride : NULL;
    const int64_t *output = l->tokens + row * l->token_stride, *found = NULL;
    int64_t length = l->lengths[row], source_length = source ? l->source_lengths[row] : 0, best = l->shortest, left = 0;
    /* The decoder start token is no part of a pattern. */
    int64_t most = l->longest < length - 1 ? l->longest : length - 1;
    for (int64_t place = 0; place < source_length; place++) {
        int64_t n = matching(source, place, 0, output + length, most);
        if (n < best) continue;
        best = n, found = source + place, left = source_length - place;
    }
    for (int64_t place = 0; place < length; place++) {
        int64_t n = matching(output, place, 1, output + length, most);
        if (n < best) continue;
        best = n, found = output + place, left = length - place;
    }
    int64_t room = l->limits[row] - length - 1, k = room < l->k ? room : l->k;
    left = left < k ? left : k;
    l->counts[row] = left > 0 ? left : 0;
    for (int64_t i = 0; i < l->k; i++) l->drafted[row * l->k + i] = i < l->counts[row] ? found[i] : 0;
}

static void look_up(Lookup *lookup) {
    lookup->width = 0;
    for (int64_t row = 0; row < lookup->rows; row++) {
        lookup_row(lookup, row);
        if (lookup->counts[row] > lookup->width) lookup->width = lookup->counts[row];
    }
}

#endif
