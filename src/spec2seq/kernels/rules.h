/* What a generation config does to the logits of a place, see decoding/processors.py. */
#ifndef SPEC2SEQ_RULES_H
#define SPEC2SEQ_RULES_H

#include "common.h"

enum RuleKind { SUPPRESS, FORCE, BAN_SEQUENCES, NO_REPEAT, PENALIZE, RENORMALIZE, TIMESTAMPS };
enum Counted { BEFORE, WRITTEN, BEHIND, LEFT };

typedef struct {
    int64_t kind, counted, low, high; /* it holds where what is counted is at least `low` and below `high` */
    const int64_t *tokens;            /* [count][size] */
    int64_t count, size;
    double value;
} Rule;

typedef struct {
    const Rule *rules;
    int64_t count;
    int64_t *tokens, token_stride; /* [rows], up to the place and with what is drafted before it */
    const int64_t *limits, *given; /* [rows]; given: how many tokens a row began with */
} Rules;

/* The sum of e to the power of n logits less the largest. */
static float exp_sum(const float *x, int64_t n, float largest) {
    float total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < n; i++) total += exp_of(x[i] - largest);
    return total;
}

static void log_softmax(float *x, int64_t n) {
    float most = largest_of(x, n), total = logf(exp_sum(x, n, most));
    for (int64_t i = 0; i < n; i++) x[i] = x[i] - most - total;
}

INLINE void ban(float *x, int64_t from, int64_t to) {
    for (int64_t i = from; i < to; i++) x[i] = -INFINITY;
}

/* Whether the tokens at `a` and at `b` are the same n. */
INLINE int same(const int64_t *a, const int64_t *b, int64_t n) {
    return !memcmp(a, b, (size_t)n * sizeof *a);
}

/* The rules of timestamps: see TimestampRules. `row` has `before` tokens, of which it has `written` the last. */
static void stamp(float *x, int64_t vocabulary, const Rule *rule, const int64_t *row, int64_t before, int64_t written) {
    int64_t silent = rule->tokens[0], eos = rule->tokens[1], first = silent + 1, latest = 0;
    int last = written >= 1 && row[before - 1] >= first, second = written < 2 || row[before - 2] >= first;
    x[silent] = -INFINITY;
    for (int64_t i = before - written; i < before; i++)
        if (row[i] >= first && row[i] > latest) latest = row[i];
    if (last && second) ban(x, first, vocabulary);
    if (last && !second) ban(x, 0, eos);
    if (latest) ban(x, first, last && !second ? latest : latest + 1);
    if (!written) {
        ban(x, 0, first);
        if (rule->value >= 0 && first + (int64_t)rule->value + 1 < vocabulary)
            ban(x, first + (int64_t)rule->value + 1, vocabulary);
    }
    float stamps = largest_of(x + first, vocabulary - first), words = largest_of(x, first);
    if (stamps > -INFINITY && logf(exp_sum(x + first, vocabulary - first, stamps)) + stamps > words) ban(x, 0, first);
}

/* Tokens that stand before count once, however often they do. */
static void penalize(float *x, float penalty, const int64_t *row, int64_t before, float *room) {
    for (int64_t i = 0; i < before; i++) room[i] = x[row[i]];
    for (int64_t i = 0; i < before; i++) x[row[i]] = room[i] < 0 ? room[i] * penalty : room[i] / penalty;
}

static int64_t counted(const Rules *r, const Rule *rule, int64_t row, int64_t before) {
    switch (rule->counted) {
    case WRITTEN: return before - r->given[row];
    case BEHIND: return before - (r->given[row] < 2 ? 2 : r->given[row]);
    case LEFT: return r->limits[row] - before;
    default: return before;
    }
}

/* What all rules make of the logits x of a place of `row`, before which stand so many tokens; `room` has place for a
 * number of each. */
static void apply_rules(const Rules *r, float *x, int64_t vocabulary, int64_t row, int64_t before, float *room) {
    const int64_t *tokens = r->tokens + row * r->token_stride;
    for (const Rule *rule = r->rules; rule < r->rules + r->count; rule++) {
        int64_t number = counted(r, rule, row, before), size = rule->size;
        if (number < rule->low || number >= rule->high) continue;
        switch (rule->kind) {
        case FORCE:
            ban(x, 0, vocabulary);
            for (int64_t i = 0; i < size; i++) x[rule->tokens[i]] = 0;
            break;
        case SUPPRESS:
            for (int64_t i = 0; i < size; i++) x[rule->tokens[i]] = -INFINITY;
            break;
        case BAN_SEQUENCES:
            for (const int64_t *s = rule->tokens; before >= size - 1 && s < rule->tokens + rule->count * size; s += size)
                if (same(s, tokens + before - size + 1, size - 1)) x[s[size - 1]] = -INFINITY;
            break;
        case NO_REPEAT:
            size = (int64_t)rule->value;
            for (const int64_t *s = tokens; before >= size && s <= tokens + before - size; s++)
                if (same(s, tokens + before - size + 1, size - 1)) x[s[size - 1]] = -INFINITY;
            break;
        case PENALIZE: penalize(x, (float)rule->value, tokens, before, room); break;
        case TIMESTAMPS: stamp(x, vocabulary, rule, tokens, before, before - r->given[row]); break;
        case RENORMALIZE: log_softmax(x, vocabulary);
        }
    }
}

#endif
