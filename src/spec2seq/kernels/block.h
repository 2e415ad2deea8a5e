/* The cached block drafter's draft. */
#ifndef SPEC2SEQ_BLOCK_H
#define SPEC2SEQ_BLOCK_H

#include "state.h"

/* The longest draft that is made here. */
static int64_t own_draft(const Iteration *it) { return it->drafter ? it->k : 0; }

static int64_t row_fresh(const Iteration *it, int64_t row) { return it->lengths[row] - it->fed[row]; }

/* What the drafter reads: new tokens with the states that chose them through `mix`, then slots right behind them. */
static void draft_inputs(const Iterate *call, Team *team) {
    const Iteration *it = call->it;
    const Drafter *d = it->drafter;
    const Embedding *e = &it->verifier->embedding;
    int64_t width = d->stack->width, wide = width * (1 + d->hidden), length = call->draft.length, at, end;
    while (next_share(team, it->rows * call->fresh, &at, &end))
        for (; at < end; at++) {
            int64_t row = at / call->fresh, step = at % call->fresh, place = it->fed[row] + step;
            float *to = call->mixed_in + at * wide;
            if (step >= row_fresh(it, row)) { /* nothing sees it */
                memset(to, 0, (size_t)wide * sizeof(float));
            } else {
                embed(e, width, d->stack->eps, it->tokens[row * it->token_stride + place], place, to);
                memcpy(to + width, it->pending + row * it->pending_stride + step * (wide - width),
                       (size_t)(wide - width) * sizeof(float));
            }
            if (d->mix.codes) quantise(to, wide, call->mix_codes + at * call->mix_stride, call->mix_scales + at);
        }
    Inputs in = {call->mixed_in, wide, call->mix_codes, call->mix_scales, call->mix_stride};
    Outputs to = {call->mixed, width, NULL, 0};
    linear_layer(&d->mix, &in, &to, it->rows * call->fresh, team);
    while (next_share(team, it->rows * length, &at, &end))
        for (; at < end; at++) {
            int64_t row = at / length, step = at % length, slot = step - row_fresh(it, row);
            float *x = call->draft.output + at * width;
            if (slot < 0) {
                memcpy(x, call->mixed + (row * call->fresh + step) * width, (size_t)width * sizeof(float));
                continue;
            }
            slot = slot < it->k - 1 ? slot : 0; /* behind the last one: nothing sees it */
            memcpy(x, d->slots + slot * width, (size_t)width * sizeof(float));
            const float *position = position_of(e, width, -1, it->fed[row] + step);
            for (int64_t i = 0; position && i < width; i++) x[i] += position[i];
        }
}

/* Draft k tokens for every row, and say how many of them count. */
static void draft(const Iterate *call, Team *team) {
    const Iteration *it = call->it;
    int64_t width = it->drafter->stack->width, length = call->draft.length, at, end;
    Run run = {it->drafter->stack, &call->draft, call->draft_work, call->draft_tokens, team};
    draft_inputs(call, team);
    run_stack(&run);
    while (next_share(team, it->rows * it->k, &at, &end))
        for (; at < end; at++) {
            int64_t row = at / it->k, step = row_fresh(it, row) - 1 + at % it->k;
            memcpy(call->draft_states + at * width, call->draft.output + (row * length + step) * width,
                   (size_t)width * sizeof(float));
        }
    Choice choice = call->choice;
    choice.team = team;
    choose(&choice);
    while (next_share(team, it->rows, &at, &end))
        for (; at < end; at++) {
            const int64_t *drafted = call->choice.tokens + at * it->k;
            int64_t room = it->limits[at] - it->lengths[at] - 1, count = 0;
            while (count < room && count < it->k)
                if (drafted[count++] == it->eos) break;
            it->report[at * it->report_stride] = count;
            memcpy(call->block + at * (it->k + 1) + 1, drafted, (size_t)it->k * sizeof(int64_t));
        }
}

/* Carve the draft's buffers. */
static size_t carve_draft(Iterate *call, char *memory, size_t used, int threads) {
    const Iteration *it = call->it;
    const Drafter *d = it->drafter;
    int64_t width = d->stack->width, wide = width * (1 + d->hidden), all = it->rows * it->k;
    call->mix_stride = code_width(wide);
    TAKE(call, draft_starts, it->rows);
    TAKE(call, draft_ends, call->draft_tokens);
    TAKE(call, mixed_in, it->rows * call->fresh * wide);
    TAKE(call, mixed, it->rows * call->fresh * width);
    TAKE(call, mix_scales, it->rows * call->fresh);
    TAKE(call, mix_codes, it->rows * call->fresh * call->mix_stride);
    TAKE(call, draft.output, call->draft_tokens * width);
    TAKE(call, draft_states, all * width);
    TAKE(call, choice.previous, it->rows);
    TAKE(call, choice.tokens, all);
    TAKE(call, choice.logits, all * d->chooser->head.outputs);
    used = carve_choice(&call->choice, memory, used);
    return used + carve(&call->draft_work, memory ? memory + used : NULL, d->stack, call->draft_tokens,
                        largest(call->draft.horizon, it->source_horizon), threads);
}

#endif
