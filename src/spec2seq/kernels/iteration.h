/* Iterations of the decoding loop in one call: draft a block or take one, verify it, judge it, commit what stands. */
#ifndef SPEC2SEQ_ITERATION_H
#define SPEC2SEQ_ITERATION_H

#include "block.h"

/* Whether the verifier lets a drafted token stand (SpecDec, section 3.2; BiLD, section 3.2). */
static int stands(const Iteration *it, const float *logits, int64_t vocabulary, int64_t token, int64_t best) {
    float score = logits[token];
    if (token == best) return it->rollback < 0 || score > -INFINITY;
    int64_t better = 0;
    if (!(score > -INFINITY)) return 0;
    if (it->rollback >= 0) {
        float surprise = logits[best] - score - logf(top_probability(logits, vocabulary, logits[best]));
        return surprise <= (float)it->rollback;
    }
    if (it->beta <= 1 || !(logits[best] - score <= (float)it->tau)) return 0;
    for (int64_t i = 0; i < vocabulary; i++) better += logits[i] > score;
    return better < it->beta;
}

/* Commit what stands of a row's draft and the verifier's own token behind it. */
static void judge_row(const Iterate *call, int64_t row) {
    const Iteration *it = call->it;
    int64_t vocabulary = it->verifier->head.outputs, first = first_of(&call->verify, row), length = it->lengths[row];
    int64_t *report = it->report + row * it->report_stride, *emitted = report + REPORT_HEAD;
    const int64_t *drafted = call->block + row * (it->k + 1) + 1, *best = call->scored.best + first;
    int64_t accepted = 0, count = 0;
    while (accepted < report[0] &&
           (report[3] || stands(it, call->scored.logits + (first + accepted) * vocabulary, vocabulary,
                                drafted[accepted], best[accepted])))
        accepted++;
    report[1] = accepted;
    for (int64_t i = 0; i <= accepted; i++) { /* what is unverified ends within the draft */
        emitted[count++] = i < accepted ? drafted[i] : best[i];
        if (emitted[count - 1] == it->eos) break;
    }
    report[2] = count;
    memcpy(emitted + it->k + 1, drafted, (size_t)it->k * sizeof(int64_t));
    memcpy(it->tokens + row * it->token_stride + length, emitted, (size_t)count * sizeof(int64_t));
    it->lengths[row] = length + count;
    if (!it->drafter) return;
    if (it->k) it->fed[row] = length;
    int64_t layers = it->drafter->hidden, width = it->verifier->stack->width, waiting = length - it->fed[row];
    for (int64_t i = 0; i < count; i++)
        for (int64_t layer = 0; layer < layers; layer++)
            memcpy(it->pending + row * it->pending_stride + ((waiting + i) * layers + layer) * width,
                   call->hidden[it->drafter->hidden_layers[layer]] + (first + i) * width, (size_t)width * sizeof(float));
}

static void iteration_job(void *argument, Team *team) {
    const Iterate *call = argument;
    Iteration *it = call->it;
    int64_t row, end, drafted = call->drafted, verified;
    if (own_draft(it)) {
        draft(call, team);
        drafted = nanoseconds();
    }
    Run run = {it->verifier->stack, &call->verify, call->verify_work, call->verify_tokens, team};
    if (call->verify_tokens) run_decoder(&run, it->verifier, &call->scored);
    verified = nanoseconds();
    while (next_share(team, it->rows, &row, &end))
        for (; row < end; row++) judge_row(call, row);
    if (team->index) return;
    it->seconds[0] += (double)(drafted - call->began) * 1e-9;
    it->seconds[1] += (double)(verified - drafted) * 1e-9;
    it->seconds[2] += (double)(nanoseconds() - verified) * 1e-9;
}

/* Carve all buffers out of `memory`; with null only count. Returns the bytes. */
static size_t carve_iteration(Iterate *call, char *memory, int threads) {
    const Iteration *it = call->it;
    const Stack *s = it->verifier->stack;
    size_t used = 0;
    int64_t layers = s->count + 1, phases = PHASES(s->count) + 4;
    if (own_draft(it)) phases += PHASES(it->drafter->stack->count) + CHOICE_PHASES(it->k);
    TAKE(call, phases, phases);
    if (memory) memset(call->phases, 0, (size_t)phases * sizeof(Phase));
    TAKE(call, block, it->rows * (it->k + 1));
    TAKE(call, starts, it->rows);
    if (it->given) {
        TAKE(call, row_of, call->verify_tokens);
        TAKE(call, first, it->rows + 1);
    }
    TAKE(call, hidden, layers);
    TAKE(call, verify.output, call->verify_tokens * s->width);
    TAKE(call, scored.logits, call->verify_tokens * it->verifier->head.outputs);
    TAKE(call, scored.best, call->verify_tokens);
    if (memory) memset(call->hidden, 0, (size_t)layers * sizeof *call->hidden);
    for (int64_t i = 0; it->drafter && i < it->drafter->hidden; i++) {
        float *states = memory ? (float *)(memory + used) : NULL;
        used += ((size_t)(call->verify_tokens * s->width) * sizeof(float) + 63) / 64 * 64;
        if (memory) call->hidden[it->drafter->hidden_layers[i]] = states;
    }
    if (own_draft(it)) used = carve_draft(call, memory, used, threads);
    return used + carve(&call->verify_work, memory ? memory + used : NULL, s, call->verify_tokens,
                        largest(call->verify.horizon, it->source_horizon), threads);
}

/* What the little model writes, or what is copied, becomes the draft that is given. Returns 0 where memory is short. */
static int take_drafts(Iterate *call, int threads) {
    Iteration *it = call->it;
    LittleDraft *little = it->little;
    Lookup *lookup = it->lookup;
    if (it->k && little) {
        little->k = it->k;
        if (!run_little(little, threads)) return 0;
        it->given = little->drafted;
        it->given_lengths = little->counts;
        it->given_stride = little->k;
        it->k = little->width;
    } else if (it->k && lookup) {
        lookup->k = it->k;
        look_up(lookup);
        call->calls = 1;
        it->given = lookup->drafted;
        it->given_lengths = lookup->counts;
        it->given_stride = lookup->k;
        it->k = lookup->width;
    }
    return 1;
}

/* Whether a row's draft ends it without being verified. */
static int ends_unverified(const Iteration *it, int64_t row) {
    if (!it->given || !it->trusts_ends) return 0;
    const int64_t *given = it->given + row * it->given_stride;
    int64_t count = it->given_lengths[row], length = it->lengths[row], vocabulary = it->verifier->head.outputs, i = 0;
    while (i < count && given[i] != it->eos) i++;
    if (i == count) return 0;
    for (i = 0; it->rules && i < count; i++) { /* drafters do not see them, and what they forbid must not pass */
        memset(it->blank, 0, (size_t)vocabulary * sizeof(float));
        apply_rules(it->rules, it->blank, vocabulary, row, length + i, it->blank + vocabulary);
        if (!(it->blank[given[i]] > -INFINITY)) return 0;
        it->tokens[row * it->token_stride + length + i] = given[i];
    }
    return 1;
}

/* How many tokens of a row the verifier reads: its last one and what was drafted; none if the draft ends the row. */
static int64_t to_verify(const Iteration *it, int64_t row) {
    if (!it->given) return it->k + 1;
    return it->report[row * it->report_stride + 3] ? 0 : it->given_lengths[row] + 1;
}

/* Sizes of the passes; what lies in buffers comes later. */
static void plan_iteration(Iterate *call) {
    const Iteration *it = call->it;
    call->fresh = 0;
    int64_t most_fed = 0;
    for (int64_t row = 0; own_draft(it) && row < it->rows; row++) {
        call->fresh = largest(call->fresh, row_fresh(it, row));
        most_fed = largest(most_fed, it->fed[row]);
    }
    call->verify_tokens = 0;
    for (int64_t row = 0; row < it->rows; row++) {
        it->report[row * it->report_stride + 3] = ends_unverified(it, row);
        call->verify_tokens += to_verify(it, row);
    }
    call->verify = (Pass){.rows = it->rows, .length = it->k + 1, .horizon = it->horizon + it->k, .own = it->own,
                          .causal = it->k + 1, .source = it->source, .source_lengths = it->source_lengths,
                          .sources = it->rows, .source_horizon = it->source_horizon};
    if (!own_draft(it)) return;
    call->choice = (Choice){.chooser = it->drafter->chooser, .rows = it->rows, .slots = it->k};
    int64_t length = call->fresh + it->k - 1;
    call->draft_tokens = it->rows * length;
    call->calls = 1;
    call->draft_fed = length;
    call->draft = (Pass){.rows = it->rows, .length = length, .horizon = most_fed + length, .own = it->draft_own,
                         .source = it->draft_source, .source_lengths = it->source_lengths, .sources = it->rows,
                         .source_horizon = it->source_horizon, .ends_row = length, .ends_query = 1};
}

/* Get ready for one more iteration with drafts of `k`; 0 where a row has ended, or none has room for a draft. */
static int go_on(Iteration *it, int64_t k) {
    int64_t room = 0;
    for (int64_t row = 0; it->little && row < it->rows; row++) /* its cache has what still stands */
        if (it->little->fed[row] >= it->lengths[row]) it->little->fed[row] = it->lengths[row] - 1;
    for (int64_t row = 0; row < it->rows; row++) {
        int64_t length = it->lengths[row], left = it->limits[row] - length;
        if (left <= 0 || it->tokens[row * it->token_stride + length - 1] == it->eos) return 0;
        room = largest(room, left - 1);
        it->horizon = largest(it->horizon, length);
    }
    it->report += it->rows * it->report_stride;
    it->k = it->drafter || k < room ? k : room;
    return !k || room;
}

/* Where rows begin and what queries see. */
static void fill_iteration(Iterate *call) {
    Iteration *it = call->it;
    const LittleDraft *little = it->little;
    if (it->given) call->first[0] = 0;
    for (int64_t row = 0; row < it->rows; row++) {
        int64_t *report = it->report + row * it->report_stride, *block = call->block + row * (it->k + 1);
        call->starts[row] = it->lengths[row] - 1;
        block[0] = it->tokens[row * it->token_stride + it->lengths[row] - 1];
        report[0] = 0;
        report[4] = little ? little->unsure[row] : 0;
        report[5] = little ? little->passes[row] : call->calls;
        report[6] = little ? little->read[row] : call->draft_fed;
        report[7] = it->k;
        if (!it->given) continue;
        memcpy(block + 1, it->given + row * it->given_stride, (size_t)it->k * sizeof(int64_t));
        report[0] = it->given_lengths[row];
        call->first[row + 1] = call->first[row] + to_verify(it, row);
    }
    if (it->given) name_rows(it->rows, call->first, call->row_of);
    call->verify.row_of = call->row_of;
    call->verify.first = call->first;
    call->verify.starts = call->starts;
    call->verify.hidden = call->hidden;
    call->scored.tokens = call->block;
    call->scored.stride = it->k + 1;
    call->scored.rules = it->rules;
    call->verify.input = call->verify.output;
    if (!own_draft(it)) return;
    call->draft.input = call->draft.output;
    call->draft.starts = call->draft_starts;
    call->draft.ends = call->draft_ends;
    call->choice.states = call->draft_states;
    for (int64_t row = 0; row < it->rows; row++) {
        int64_t fresh = row_fresh(it, row), *ends = call->draft_ends + row * call->draft.length;
        call->draft_starts[row] = it->fed[row];
        call->choice.previous[row] = call->block[row * (it->k + 1)];
        for (int64_t step = 0; step < call->draft.length; step++) /* a token sees what came before, a slot the block */
            ends[step] = it->fed[row] + (step < fresh ? step + 1 : fresh + it->k - 1);
    }
}

#endif
