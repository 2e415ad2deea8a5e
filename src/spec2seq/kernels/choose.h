/* The cached drafter's choice of tokens from left to right, see CachedDrafter.choose. */
#ifndef SPEC2SEQ_CHOOSE_H
#define SPEC2SEQ_CHOOSE_H

#include "linear.h"

typedef struct {
    Linear state, token, out; /* the network that reads the token before a slot; state.inputs 0: there is none */
    Linear head;
    const float *embedding;   /* [vocabulary][width] */
    const int64_t *shortlist; /* [head.outputs] token ids, or null: the place is the id */
    int64_t width;
} Chooser;

typedef struct {
    const Chooser *chooser;
    const float *states; /* [rows][slots][width] */
    int64_t rows, slots;
    int64_t *previous; /* [rows], the last token of each row; written over */
    int64_t *tokens;   /* [rows][slots] */
    float *logits;     /* [rows][slots][head.outputs] */
    float *seen, *inner, *told, *state, *scales;
    int8_t *codes;
    int64_t code_stride;
    Team *team;
} Choice;

#define CHOICE_PHASES(slots) (10 * (slots) + 4) /* no choice has more */

/* Carve the buffers behind `previous`, `tokens` and `logits` out of `memory`; returns the bytes that are used then. */
static size_t carve_choice(Choice *c, char *memory, size_t used) {
    int64_t inner = c->chooser->token.outputs, width = c->chooser->width, all = c->rows * c->slots;
    c->code_stride = code_width(width > inner ? width : inner);
    TAKE(c, inner, all * inner);
    TAKE(c, seen, c->rows * width);
    TAKE(c, told, c->rows * inner);
    TAKE(c, state, c->rows * width);
    TAKE(c, scales, all);
    TAKE(c, codes, all * c->code_stride);
    return used;
}

/* One phase, and before it in int8 one for the codes: rows of `values`, `stride` apart, through a linear layer. */
static void through(const Choice *c, const Linear *linear, const float *values, int64_t stride, int64_t rows, Outputs to) {
    Inputs in = {values, stride, c->codes, c->scales, c->code_stride};
    int64_t row, end;
    if (linear->codes)
        while (next_share(c->team, rows, &row, &end))
            for (; row < end; row++)
                quantise(values + row * stride, linear->inputs, c->codes + row * c->code_stride, c->scales + row);
    linear_layer(linear, &in, &to, rows, c->team);
}

/* What the token before it adds to the state of a slot, into c->state. */
static void follow(const Choice *c, int64_t slot) {
    const Chooser *m = c->chooser;
    int64_t inner = m->token.outputs, width = m->width, row, end;
    while (next_share(c->team, c->rows, &row, &end))
        for (; row < end; row++)
            memcpy(c->seen + row * width, m->embedding + c->previous[row] * width, (size_t)width * sizeof(float));
    through(c, &m->token, c->seen, width, c->rows,
            (Outputs){c->told, inner, c->inner + slot * inner, c->slots * inner});
    while (next_share(c->team, c->rows, &row, &end))
        for (; row < end; row++) activate(SILU, c->told + row * inner, inner);
    through(c, &m->out, c->told, inner, c->rows,
            (Outputs){c->state, width, c->states + slot * width, c->slots * width});
}

/* The place of the largest, the first among equals. */
static int64_t likeliest(const float *x, int64_t n) {
    float most = largest_of(x, n);
    for (int64_t i = 0; i < n; i++)
        if (x[i] == most) return i;
    return 0;
}

static void choose(const Choice *c) {
    const Chooser *m = c->chooser;
    int64_t guessable = m->head.outputs, row, end;
    if (m->state.inputs)
        through(c, &m->state, c->states, m->width, c->rows * c->slots, (Outputs){c->inner, m->state.outputs, NULL, 0});
    for (int64_t slot = 0; slot < c->slots; slot++) {
        const float *state = c->states + slot * m->width;
        int64_t stride = c->slots * m->width;
        if (m->state.inputs) {
            follow(c, slot);
            state = c->state;
            stride = m->width;
        }
        through(c, &m->head, state, stride, c->rows,
                (Outputs){c->logits + slot * guessable, c->slots * guessable, NULL, 0});
        while (next_share(c->team, c->rows, &row, &end))
            for (; row < end; row++) {
                int64_t place = likeliest(c->logits + (row * c->slots + slot) * guessable, guessable);
                c->previous[row] = m->shortlist ? m->shortlist[place] : place;
                c->tokens[row * c->slots + slot] = c->previous[row];
            }
    }
}

#endif
