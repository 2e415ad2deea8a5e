/* A little model's draft in one call: token by token, until every row is at its end or unsure. */
#ifndef SPEC2SEQ_LITTLE_H
#define SPEC2SEQ_LITTLE_H

#include "decoder.h"

/* See LittleSession.draft. */
typedef struct {
    const Decoder *decoder;
    int64_t rows, k;
    const int64_t *tokens;  /* [rows][token_stride] */
    int64_t token_stride;
    const int64_t *lengths, *limits, *source_lengths; /* [rows] */
    int64_t *fed; /* [rows] tokens of a row that its cache has, before and after */
    const int64_t *room; /* [rows] for how many tokens; null: a draft leaves room for one token more */
    int64_t source_horizon;
    Places own, source;
    const int64_t *shortlist; /* the tokens that are scored; null: all */
    int64_t eos, common;      /* only the first `common` of them are proposed */
    double confidence;   /* a draft ends before a token that is less probable; negative: none does */
    int64_t *drafted;    /* [rows][k] */
    int64_t *counts, *unsure; /* [rows] */
    int64_t *passes, *read;   /* [rows] passes in which a row took part, and tokens that it was fed in them */
    int64_t width;            /* tokens of the longest draft */
} LittleDraft;

typedef struct {
    LittleDraft *draft;
    Work work;
    float *output, *last, *logits; /* last [rows][width]: states behind each row's last token */
    int64_t *block, *starts, *alive; /* starts [k][rows] */
    int64_t *living, *order, *first; /* of every pass: rows that take part, [k][rows] which, [k][rows + 1] their tokens */
    int64_t *row_of; /* [tokens] of the first pass */
    int64_t tokens, fresh, longest, most_fed; /* fresh: the most tokens of any row that its cache has not */
    Phase *phases;
} Little;

static int64_t room_of(const LittleDraft *d, int64_t row) {
    return d->room ? d->room[row] : d->limits[row] - d->lengths[row] - 1;
}

static int64_t fresh_of(const LittleDraft *d, int64_t row) { return d->lengths[row] - d->fed[row]; }

/* Who takes part in a pass: rows whose drafts have ended cost no more. */
static void line_up(const Little *call, int64_t step) {
    const LittleDraft *d = call->draft;
    int64_t *first = call->first + step * (d->rows + 1), *order = call->order + step * d->rows, count = 0, tokens = 0;
    for (int64_t row = 0; row < d->rows; row++) {
        first[row] = tokens;
        if (!call->alive[row]) continue;
        order[count++] = row;
        tokens += step ? 1 : fresh_of(d, row);
    }
    first[d->rows] = tokens;
    call->living[step] = count;
}

/* One row after the pass of `step`: `logits` are of the place behind its last token. */
static void extend_row(const Little *call, int64_t row, int64_t step, const float *logits) {
    LittleDraft *d = call->draft;
    int64_t place = likeliest(logits, d->common), token = d->shortlist ? d->shortlist[place] : place;
    d->passes[row] = step + 1;
    d->drafted[row * d->k + step] = token;
    if (d->confidence >= 0 && top_probability(logits, d->common, logits[place]) < (float)d->confidence) {
        d->unsure[row] = 1;
        call->alive[row] = 0;
        return;
    }
    d->counts[row] = step + 1;
    call->alive[row] = token != d->eos && d->counts[row] < room_of(d, row);
}

static void little_job(void *argument, Team *team) {
    const Little *call = argument;
    LittleDraft *d = call->draft;
    int64_t vocabulary = d->decoder->head.outputs, width = d->decoder->stack->width, i, end;
    for (int64_t step = 0; step < d->k && call->living[step]; step++) {
        int64_t living = call->living[step], length = step ? 1 : call->fresh;
        const int64_t *first = call->first + step * (d->rows + 1), *order = call->order + step * d->rows;
        Pass pass = {.input = call->output, .output = call->output, .rows = d->rows, .length = length,
                     .horizon = step ? call->longest + step : call->most_fed + length,
                     .row_of = step ? order : call->row_of, .first = first, .own = d->own,
                     .starts = call->starts + step * d->rows, .causal = length, .source = d->source,
                     .source_lengths = d->source_lengths, .sources = d->rows, .source_horizon = d->source_horizon};
        Run run = {d->decoder->stack, &pass, call->work, first[d->rows], team};
        Scored scored = {step ? d->drafted + step - 1 : call->block, step ? d->k : length, call->logits, NULL};
        embed_tokens(&run, &d->decoder->embedding, &scored);
        run_stack(&run);
        while (next_share(team, living, &i, &end))
            for (; i < end; i++)
                memcpy(call->last + i * width, call->output + (first[order[i] + 1] - 1) * width,
                       (size_t)width * sizeof(float));
        pass.output = call->last; /* what a row was fed before needs no scores */
        run.tokens = living;
        score_tokens(&run, d->decoder, &scored);
        while (next_share(team, living, &i, &end))
            for (; i < end; i++) extend_row(call, order[i], step, call->logits + i * vocabulary);
        while (next_share(team, 1, &i, &end))
            for (; i < end && step + 1 < d->k; i++) line_up(call, step + 1);
    }
}

static size_t carve_little(Little *call, char *memory, int threads) {
    const LittleDraft *d = call->draft;
    const Stack *s = d->decoder->stack;
    size_t used = 0;
    int64_t phases = d->k * (PHASES(s->count) + 5);
    TAKE(call, phases, phases);
    if (memory) memset(call->phases, 0, (size_t)phases * sizeof(Phase));
    TAKE(call, output, call->tokens * s->width);
    TAKE(call, last, d->rows * s->width);
    TAKE(call, logits, d->rows * d->decoder->head.outputs);
    TAKE(call, block, d->rows * call->fresh);
    TAKE(call, starts, d->k * d->rows);
    TAKE(call, alive, d->rows);
    TAKE(call, living, d->k);
    TAKE(call, order, d->k * d->rows);
    TAKE(call, first, d->k * (d->rows + 1));
    TAKE(call, row_of, call->tokens);
    return used + carve(&call->work, memory ? memory + used : NULL, s, call->tokens,
                        largest(call->longest + d->k + call->fresh, d->source_horizon), threads);
}

/* Sizes of the passes; what lies in buffers comes later. */
static void plan_little(Little *call) {
    const LittleDraft *d = call->draft;
    for (int64_t row = 0; row < d->rows; row++) {
        call->longest = largest(call->longest, d->lengths[row]);
        call->most_fed = largest(call->most_fed, d->fed[row]);
        call->fresh = largest(call->fresh, fresh_of(d, row));
        call->tokens += fresh_of(d, row); /* no later pass has more */
    }
}

static void fill_little(Little *call) {
    LittleDraft *d = call->draft;
    d->width = 0;
    for (int64_t row = 0; row < d->rows; row++) {
        memcpy(call->block + row * call->fresh, d->tokens + row * d->token_stride + d->fed[row],
               (size_t)fresh_of(d, row) * sizeof(int64_t));
        call->starts[row] = d->fed[row];
        for (int64_t step = 1; step < d->k; step++) call->starts[step * d->rows + row] = d->lengths[row] - 1 + step;
        call->alive[row] = room_of(d, row) > 0;
        d->counts[row] = d->unsure[row] = d->passes[row] = d->read[row] = 0;
    }
    line_up(call, 0);
    name_rows(d->rows, call->first, call->row_of);
}

/* The whole draft. Returns 0 where memory is short. */
static int run_little(LittleDraft *draft, int threads) {
    Little call = {.draft = draft};
    plan_little(&call);
    char *memory = buffers(carve_little(&call, NULL, threads));
    if (!memory) return 0;
    carve_little(&call, memory, threads);
    fill_little(&call);
    run_team(threads, call.phases, little_job, &call);
    for (int64_t row = 0; row < draft->rows; row++) {
        draft->width = largest(draft->width, draft->counts[row]);
        if (!draft->passes[row]) continue;
        draft->read[row] = fresh_of(draft, row) + draft->passes[row] - 1;
        draft->fed[row] += draft->read[row];
    }
    return 1;
}

#endif
