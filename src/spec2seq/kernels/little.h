/* A little model's draft in one call: token by token, until every row is at its end or unsure. */
#ifndef SPEC2SEQ_LITTLE_H
#define SPEC2SEQ_LITTLE_H

#include "decoder.h"

/* See LittleSession.draft. */
typedef struct {
    const Decoder *decoder;
    int64_t rows, k, fresh; /* fresh: the most tokens of any row that its cache has not */
    const int64_t *tokens;  /* [rows][token_stride] */
    int64_t token_stride;
    const int64_t *lengths, *limits, *source_lengths; /* [rows] */
    int64_t *fed; /* [rows] tokens of a row that its cache has */
    const int64_t *room; /* [rows] for how many tokens; null: a draft leaves room for one token more */
    int64_t source_horizon;
    Places own, source;
    int64_t eos, common; /* only the first `common` tokens are proposed */
    double confidence;   /* a draft ends before a token that is less probable; negative: none does */
    int64_t *drafted;    /* [rows][k] */
    int64_t *counts, *unsure; /* [rows] */
    int64_t steps, width;     /* passes, and tokens of the longest draft */
} LittleDraft;

typedef struct {
    LittleDraft *draft;
    Work work;
    float *output, *last, *logits; /* last [rows][width]: states behind each row's last token */
    int64_t *block, *starts, *alive; /* starts [k][rows] */
    int64_t longest, most_fed;
    Phase *phases;
} Little;

static int64_t room_of(const LittleDraft *d, int64_t row) {
    return d->room ? d->room[row] : d->limits[row] - d->lengths[row] - 1;
}

/* One row after the pass of `step`: `logits` are of the place behind its last token. */
static void extend_row(const Little *call, int64_t row, int64_t step, const float *logits) {
    LittleDraft *d = call->draft;
    int64_t token = likeliest(logits, d->common);
    if (call->alive[row] && d->confidence >= 0 &&
        top_probability(logits, d->common, logits[token]) < (float)d->confidence) {
        d->unsure[row] = 1;
        call->alive[row] = 0;
    }
    d->drafted[row * d->k + step] = token;
    if (!call->alive[row]) return;
    d->counts[row] = step + 1;
    call->alive[row] = token != d->eos && d->counts[row] < room_of(d, row);
}

static void little_job(void *argument, Team *team) {
    const Little *call = argument;
    LittleDraft *d = call->draft;
    int64_t vocabulary = d->decoder->head.outputs, width = d->decoder->stack->width, row, end;
    for (int64_t step = 0; step < d->k; step++) {
        int64_t length = step ? 1 : d->fresh;
        Pass pass = {.input = call->output, .output = call->output, .rows = d->rows, .length = length,
                     .horizon = step ? call->longest + step : call->most_fed + length, .own = d->own,
                     .starts = call->starts + step * d->rows, .causal = length, .source = d->source,
                     .source_lengths = d->source_lengths, .sources = d->rows, .source_horizon = d->source_horizon};
        Run run = {d->decoder->stack, &pass, call->work, d->rows * length, team};
        Scored scored = {step ? d->drafted + step - 1 : call->block, step ? d->k : length, call->logits, NULL};
        embed_tokens(&run, &d->decoder->embedding, &scored);
        run_stack(&run);
        while (next_share(team, d->rows, &row, &end))
            for (; row < end; row++) {
                int64_t last = row * length + (step ? 0 : d->lengths[row] - d->fed[row] - 1);
                memcpy(call->last + row * width, call->output + last * width, (size_t)width * sizeof(float));
            }
        pass.output = call->last; /* what a row was fed before needs no scores */
        run.tokens = d->rows;
        score_tokens(&run, d->decoder, &scored);
        while (next_share(team, d->rows, &row, &end))
            for (; row < end; row++) extend_row(call, row, step, call->logits + row * vocabulary);
        int64_t share, any = 0;
        while (next_share(team, 1, &share, &end))
            for (; share < end; share++) {
                int64_t width = 0;
                for (row = 0; row < d->rows; row++) width = largest(width, d->counts[row]);
                d->width = width;
                d->steps = step + 1;
            }
        for (row = 0; row < d->rows; row++) any |= call->alive[row];
        if (!any) return; /* a thread that is late may see a later step's answer, and only leaves the sooner */
    }
}

static size_t carve_little(Little *call, char *memory, int threads) {
    const LittleDraft *d = call->draft;
    const Stack *s = d->decoder->stack;
    size_t used = 0;
    int64_t tokens = d->rows * d->fresh, phases = d->k * (PHASES(s->count) + 5);
    TAKE(call, phases, phases);
    if (memory) memset(call->phases, 0, (size_t)phases * sizeof(Phase));
    TAKE(call, output, tokens * s->width);
    TAKE(call, last, d->rows * s->width);
    TAKE(call, logits, d->rows * d->decoder->head.outputs);
    TAKE(call, block, tokens);
    TAKE(call, starts, d->k * d->rows);
    TAKE(call, alive, d->rows);
    return used + carve(&call->work, memory ? memory + used : NULL, s, tokens,
                        largest(call->longest + d->k + d->fresh, d->source_horizon), threads);
}

/* Sizes of the passes; what lies in buffers comes later. */
static void plan_little(Little *call) {
    const LittleDraft *d = call->draft;
    for (int64_t row = 0; row < d->rows; row++) {
        call->longest = largest(call->longest, d->lengths[row]);
        call->most_fed = largest(call->most_fed, d->fed[row]);
    }
}

static void fill_little(Little *call) {
    LittleDraft *d = call->draft;
    for (int64_t row = 0; row < d->rows; row++) {
        for (int64_t i = 0; i < d->fresh; i++) { /* behind a row's last token comes what nothing sees */
            int64_t place = d->fed[row] + i < d->lengths[row] ? d->fed[row] + i : d->lengths[row] - 1;
            call->block[row * d->fresh + i] = d->tokens[row * d->token_stride + place];
        }
        call->starts[row] = d->fed[row];
        for (int64_t step = 1; step < d->k; step++) call->starts[step * d->rows + row] = d->lengths[row] - 1 + step;
        call->alive[row] = room_of(d, row) > 0;
        d->counts[row] = d->unsure[row] = 0;
    }
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
    return 1;
}

#endif
