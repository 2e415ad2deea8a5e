/* A whole stack of Transformer layers. */
#ifndef SPEC2SEQ_STACK_H
#define SPEC2SEQ_STACK_H

#include "dense.h"
#include "places.h"

typedef struct {
    const Layer *layers;
    int64_t count, width, heads, head_width, ffn_width; /* ffn_width: of ffn_out's inputs */
    int64_t activation, gated, pre_norm, cross;
    double eps, scale;
    const Norm *final_norm;
    const float *relative; /* [heads][2 * reach + 1] by query minus key place, or null */
    int64_t reach, relative_layer; /* step from one layer's biases to the next one's; 0: all have the same */
} Stack;

typedef struct {
    const float *input;   /* [rows * length][width] */
    float *output;        /* the same */
    float *const *hidden; /* [count + 1] states to write out, null where not asked; or null */
    int64_t rows, length, horizon;
    const int64_t *row_of, *first;   /* of [tokens] its row, and of [rows + 1] where a row's begin, none longer than
                                      * `length`; null: all are that long */
    Places own;                      /* the cache; data null: spec2seq_stack makes one for this pass alone */
    const int64_t *origins;          /* [rows][origin_stride], the row in which each place of a row lies; null: its own */
    int64_t origin_stride;
    const int64_t *starts;           /* [rows], where new places begin; null: all at horizon - length */
    const int64_t *ends;             /* how many places a query sees, steps below; null: see `causal` */
    int64_t ends_row, ends_query;
    int64_t causal;                  /* so many queries of a row see no later one; the rest see the whole block */
    const float *mask;               /* additive, [.., horizon], steps below; or null */
    int64_t mask_row, mask_head, mask_query;
    Places source;
    const int64_t *source_lengths;   /* [sources]; null: all of source_horizon */
    int64_t sources, source_horizon;
} Pass;

typedef struct {
    float *normed, *wide, *query, *mixed, *inner, *scores, *scales, *places;
    int8_t *codes;
    char *dense;
    int64_t code_stride, score_stride, dense_stride;
} Work;

typedef struct {
    const Stack *stack;
    const Pass *pass;
    Work work;
    int64_t tokens;
    Team *team;
} Run;

#define PHASES(layers) (20 * (layers) + 16) /* no pass has more, embedding and head included */

static int64_t largest(int64_t a, int64_t b) { return a > b ? a : b; }

/* Memory for the buffers of a call, at a multiple of 64; null where it is short. It is kept for the calling thread's
 * next call: fresh pages would cost more than the arithmetic on them. */
static char *buffers(size_t bytes) {
    static _Thread_local char *kept;
    static _Thread_local size_t size;
    if (bytes > size) {
        free(kept);
        size = (bytes + bytes / 2 + 63) / 64 * 64;
        kept = aligned_alloc(64, size);
        if (!kept) size = 0;
    }
    return kept;
}

static int is_int8(const Stack *s) { return s->layers[0].self_out.codes != NULL; }

/* Whether long rows attend in few bits: not where scores are not scaled down, as in T5, for they would be too coarse. */
static int has_codes(const Stack *s) { return is_int8(s) && !s->relative; }

/* Carve the buffers out of `memory`; with null only count. Returns the bytes. */
static size_t carve(Work *work, char *memory, const Stack *s, int64_t tokens, int64_t keys, int threads) {
    int64_t inner = s->heads * s->head_width, ffn_in = s->ffn_width * (s->gated ? 2 : 1);
    size_t used = 0;
    DenseWork dense;
    work->code_stride = code_width(largest(largest(s->width, inner), s->ffn_width));
    work->score_stride = (keys + 15) / 16 * 16;
    TAKE(work, normed, tokens * s->width);
    TAKE(work, wide, tokens * 3 * inner);
    TAKE(work, query, tokens * inner);
    TAKE(work, mixed, tokens * inner);
    TAKE(work, inner, tokens * ffn_in);
    TAKE(work, scores, team_size(threads) * QUERIES * work->score_stride);
    TAKE(work, scales, tokens);
    TAKE(work, codes, tokens * work->code_stride);
    work->dense_stride = s->cross ? 0 : (int64_t)carve_dense(&dense, NULL, keys, s->head_width, has_codes(s));
    TAKE(work, dense, team_size(threads) * work->dense_stride);
    return used;
}

/* A linear layer over values [tokens][width], whose codes are in the work space in int8. */
static void apply(const Run *run, const Linear *linear, const float *values, float *target) {
    Inputs in = {values, linear->inputs, run->work.codes, run->work.scales, run->work.code_stride};
    Outputs to = {target, linear->outputs, NULL, 0};
    linear_layer(linear, &in, &to, run->tokens, run->team);
}

/* Codes of one token's values for the linear layer that comes next; nothing in float32. */
static void quantise_token(const Run *run, const float *values, int64_t width, int64_t token) {
    if (is_int8(run->stack)) quantise(values, width, run->work.codes + token * run->work.code_stride, run->work.scales + token);
}

/* The same for values [tokens][width]. */
static void prepare(const Run *run, const float *values, int64_t width) {
    int64_t token, end;
    if (!is_int8(run->stack)) return;
    while (next_share(run->team, run->tokens, &token, &end))
        for (; token < end; token++) quantise_token(run, values + token * width, width, token);
}

static void norm_tokens(const Run *run, const Norm *norm, const float *from, float *to) {
    int64_t width = run->stack->width, token, end;
    while (next_share(run->team, run->tokens, &token, &end))
        for (; token < end; token++) {
            normalise(norm, (float)run->stack->eps, from + token * width, to + token * width, width);
            quantise_token(run, to + token * width, width, token);
        }
}

/* What a part of a layer reads: the states, or with norms before the parts, their norm. */
static const float *enter(const Run *run, const Norm *norm) {
    if (!run->stack->pre_norm) return run->pass->output;
    norm_tokens(run, norm, run->pass->output, run->work.normed);
    return run->work.normed;
}

/* Add a part's result to the states; `values` is what its last linear layer reads. */
static void leave(const Run *run, const Linear *linear, const Norm *norm, const float *values, int64_t stride) {
    Inputs in = {values, stride, run->work.codes, run->work.scales, run->work.code_stride};
    Outputs to = {run->pass->output, linear->outputs, run->pass->output, linear->outputs};
    linear_layer(linear, &in, &to, run->tokens, run->team);
    if (!run->stack->pre_norm) norm_tokens(run, norm, run->pass->output, run->pass->output);
}

static int64_t row_of(const Pass *p, int64_t token) { return p->row_of ? p->row_of[token] : token / p->length; }

static int64_t first_of(const Pass *p, int64_t row) { return p->first ? p->first[row] : row * p->length; }

/* Fill in Pass.row_of by Pass.first. */
static void name_rows(int64_t rows, const int64_t *first, int64_t *row_of) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t token = first[row]; token < first[row + 1]; token++) row_of[token] = row;
}

static int64_t start_of(const Pass *p, int64_t row) { return p->starts ? p->starts[row] : p->horizon - p->length; }

/* The new keys and values go into the cache. */
static void write_cache(const Run *run, int64_t index) {
    const Pass *p = run->pass;
    int64_t inner = run->stack->heads * run->stack->head_width, token, end;
    while (next_share(run->team, run->tokens, &token, &end))
        for (; token < end; token++) {
            int64_t row = row_of(p, token);
            write_place(&p->own, index, row, start_of(p, row) + token - first_of(p, row),
                        run->work.wide + (3 * token + 1) * inner, run->stack->heads, run->stack->head_width);
        }
}

/* How many places the query `step` of `row` sees. */
static int64_t end_of(const Pass *p, int64_t row, int64_t step) {
    int64_t end = start_of(p, row) + (step < p->causal ? step + 1 : p->length);
    if (p->ends) end = p->ends[row * p->ends_row + step * p->ends_query];
    if (p->mask) end = p->horizon; /* it hides by itself */
    end = end < p->horizon ? end : p->horizon;
    return end > 0 ? end : 0;
}

/* A thread's room for the scores of QUERIES queries. */
static float *own_scores(const Run *run) {
    return run->work.scores + run->team->index * QUERIES * run->work.score_stride;
}

/* Queries that begin at a place of `from`, whose results begin at a place of the mixed values. */
static Queries own_queries(const Run *run, const float *from, int64_t to, int64_t stride) {
    Queries found = {.queries = from, .scores = own_scores(run), .out = run->work.mixed + to, .stride = stride,
                     .score_stride = run->work.score_stride};
    return found;
}

/* One query, for each sees another end; `count` is 1. */
static void self_query(const Run *run, int64_t index, int64_t row, int64_t head, int64_t step, int64_t count) {
    const Stack *s = run->stack;
    const Pass *p = run->pass;
    int64_t width = s->head_width, inner = s->heads * width;
    Keys keys = {.keys = places_of(&p->own, index, 0, p->origins ? 0 : row, head, 0),
                 .values = places_of(&p->own, index, 1, p->origins ? 0 : row, head, 0), .key_stride = width,
                 .value_stride = width, .visible = end_of(p, row, step), .width = width, .scale = (float)s->scale,
                 .place = start_of(p, row) + step, .reach = s->reach, .rows = &FIRST_ROW};
    if (p->origins) keys.rows = p->origins + row * p->origin_stride, keys.rows_mask = -1, keys.row_stride = p->own.row;
    if (s->relative) keys.relative = s->relative + index * s->relative_layer + head * (2 * s->reach + 1) + s->reach;
    if (p->mask) keys.mask = p->mask + row * p->mask_row + head * p->mask_head + step * p->mask_query;
    int64_t at = first_of(p, row) + step;
    Queries query = own_queries(run, run->work.wide + at * 3 * inner + head * width, at * inner + head * width, inner);
    attend(&keys, &query, count);
}

/* Some queries of one head that follow each other. */
static void cross_queries(const Run *run, int64_t index, int64_t row, int64_t head, int64_t step, int64_t count) {
    const Stack *s = run->stack;
    const Pass *p = run->pass;
    int64_t width = s->head_width, at = ((first_of(p, row) + step) * s->heads + head) * width;
    int64_t source = row * p->sources / p->rows;
    int64_t visible = p->source_lengths ? p->source_lengths[source] : p->source_horizon;
    Keys keys = {.keys = places_of(&p->source, index, 0, source, head, 0),
                 .values = places_of(&p->source, index, 1, source, head, 0), .halves = p->source.halves,
                 .key_stride = width, .value_stride = width,
                 .visible = visible < p->source_horizon ? visible : p->source_horizon, .width = width,
                 .scale = (float)s->scale, .rows = &FIRST_ROW};
    Queries queries = own_queries(run, run->work.query + at, at, s->heads * width);
    attend(&keys, &queries, count);
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* One phase: every query of every head, up to `most` of one together, then codes for the linear layer behind. */
static void attention(const Run *run, int64_t index, int64_t most,
                      void (*queries)(const Run *, int64_t, int64_t, int64_t, int64_t, int64_t)) {
    const Pass *p = run->pass;
    int64_t heads = run->stack->heads, task, end, count;
    while (next_share(run->team, run->tokens * heads, &task, &end))
        for (; task < end; task += count) {
            int64_t row = row_of(p, task / heads), first = first_of(p, row), length = first_of(p, row + 1) - first;
            int64_t head = (task - first * heads) / length, step = (task - first * heads) % length;
            count = least(most, least(end - task, length - step));
            queries(run, index, row, head, step, count);
        }
    prepare(run, run->work.mixed, heads * run->stack->head_width);
}

/* Whether rows see all of themselves and nothing else. */
static int is_encoder(const Run *run) {
    const Pass *p = run->pass;
    return !run->stack->cross && !p->causal && !p->mask && !p->starts && !p->origins && p->horizon == p->length;
}

/* One phase: self-attention of an encoder's rows, each head of a long one at once. */
static void encoder_attention(const Run *run, int64_t index) {
    const Stack *s = run->stack;
    const Pass *p = run->pass;
    int64_t width = s->head_width, inner = s->heads * width, task, end;
    while (next_share(run->team, p->rows * s->heads, &task, &end))
        for (; task < end; task++) {
            int64_t row = task / s->heads, head = task % s->heads, first = first_of(p, row);
            const float *wide = run->work.wide + first * 3 * inner + head * width;
            Head part = {.queries = wide, .keys = wide + inner, .values = wide + 2 * inner, .stride = 3 * inner,
                         .length = first_of(p, row + 1) - first, .width = width, .scale = (float)s->scale,
                         .reach = s->reach, .target = run->work.mixed + first * inner + head * width,
                         .target_stride = inner, .codes = has_codes(s)};
            if (s->relative) part.relative = s->relative + index * s->relative_layer + head * (2 * s->reach + 1) + s->reach;
            if (part.length >= DENSE_FROM)
                dense_head(&part, run->work.dense + run->team->index * run->work.dense_stride);
            for (int64_t step = 0; part.length < DENSE_FROM && step < part.length; step++)
                self_query(run, index, row, head, step, 1);
        }
    prepare(run, run->work.mixed, inner);
}

/* The activation between the two linear layers of the feed-forward part; with a gate, times the other half. */
static void activate_tokens(const Run *run) {
    const Stack *s = run->stack;
    int64_t n = s->ffn_width, stride = s->gated ? 2 * n : n, token, end;
    while (next_share(run->team, run->tokens, &token, &end))
        for (; token < end; token++) {
            float *inner = run->work.inner + token * stride;
            activate((enum Activation)s->activation, inner, n);
            if (s->gated)
                for (int64_t i = 0; i < n; i++) inner[i] *= inner[n + i];
            quantise_token(run, inner, n, token);
        }
}

static void run_layer(const Run *run, int64_t index) {
    const Stack *s = run->stack;
    const Work *work = &run->work;
    const Layer *layer = &s->layers[index];
    int64_t inner = s->heads * s->head_width;
    apply(run, &layer->self_qkv, enter(run, &layer->self_norm), work->wide);
    write_cache(run, index);
    is_encoder(run) ? encoder_attention(run, index) : attention(run, index, 1, self_query);
    leave(run, &layer->self_out, &layer->self_norm, work->mixed, inner);
    if (s->cross) {
        apply(run, &layer->cross_query, enter(run, &layer->cross_norm), work->query);
        attention(run, index, QUERIES, cross_queries);
        leave(run, &layer->cross_out, &layer->cross_norm, work->mixed, inner);
    }
    apply(run, &layer->ffn_in, enter(run, &layer->ffn_norm), work->inner);
    activate_tokens(run);
    leave(run, &layer->ffn_out, &layer->ffn_norm, work->inner, layer->ffn_in.outputs);
}

static void copy_states(const Run *run, float *to, const float *from) {
    int64_t first, end;
    if (!to) return;
    while (next_share(run->team, run->tokens * run->stack->width, &first, &end))
        memcpy(to + first, from + first, (size_t)(end - first) * sizeof(float));
}

static void run_stack(const Run *run) {
    const Pass *p = run->pass;
    const Stack *s = run->stack;
    if (p->input != p->output) copy_states(run, p->output, p->input);
    if (!s->pre_norm) prepare(run, p->output, s->width);
    for (int64_t index = 0; index < s->count; index++) {
        if (p->hidden) copy_states(run, p->hidden[index], p->output);
        run_layer(run, index);
    }
    if (p->hidden) copy_states(run, p->hidden[s->count], p->output);
    if (s->final_norm) norm_tokens(run, s->final_norm, p->output, p->output);
}

/* Cross-attention's keys and values of all layers, for the states of sources, the pass's output. */
static void run_source(const Run *run, const Places *to) {
    const Stack *s = run->stack;
    int64_t token, end;
    prepare(run, run->pass->output, s->width);
    for (int64_t index = 0; index < s->count; index++) {
        apply(run, &s->layers[index].cross_key_value, run->pass->output, run->work.wide);
        while (next_share(run->team, run->tokens, &token, &end))
            for (; token < end; token++) {
                int64_t row = row_of(run->pass, token);
                write_place(to, index, row, token - first_of(run->pass, row),
                            run->work.wide + token * 2 * s->heads * s->head_width, s->heads, s->head_width);
            }
    }
}

#endif
