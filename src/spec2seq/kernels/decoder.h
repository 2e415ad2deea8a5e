/* A decoder's pass from token ids to the likeliest next ones. */
#ifndef SPEC2SEQ_DECODER_H
#define SPEC2SEQ_DECODER_H

#include "choose.h"
#include "rules.h"
#include "stack.h"

typedef struct {
    const float *table;     /* [vocabulary][width] */
    const float *positions; /* [places][width], or null */
    int64_t places, offset; /* of the first place; what lies behind the last has its position */
    int64_t pad;            /* the id that has its own row of `positions`; -1: none */
    double scale;
    const Norm *norm; /* of the sum, or null */
} Embedding;

typedef struct {
    const Stack *stack;
    Embedding embedding;
    Linear head;
    double logit_scale;
} Decoder;

/* What a pass reads and writes besides its states. */
typedef struct {
    const int64_t *tokens; /* [rows][stride] */
    int64_t stride;
    float *logits; /* [tokens of the pass][vocabulary] */
    int64_t *best; /* [tokens of the pass], the first among equals; null: not asked */
    const Rules *rules; /* for the logits that `best` is of; null: none */
} Scored;

/* What a token gets for its place; null where positions are told by distances. */
static const float *position_of(const Embedding *e, int64_t width, int64_t token, int64_t place) {
    place += e->offset;
    if (!e->positions) return NULL;
    if (e->pad >= 0 && token == e->pad) return e->positions + token * width;
    return e->positions + (place < e->places ? place : e->places - 1) * width;
}

/* The probability of the largest of n logits. */
static float top_probability(const float *x, int64_t n, float largest) { return 1.0f / exp_sum(x, n, largest); }

/* The embedding of a token at a place, see Stack.embed. */
static void embed(const Embedding *e, int64_t width, double eps, int64_t token, int64_t place, float *to) {
    const float *from = e->table + token * width, *position = position_of(e, width, token, place);
    float scale = (float)e->scale;
    for (int64_t i = 0; i < width; i++) to[i] = from[i] * scale + (position ? position[i] : 0.0f);
    if (e->norm) normalise(e->norm, (float)eps, to, to, width);
}

/* One phase: the inputs of a pass, into its output. */
static void embed_tokens(const Run *run, const Embedding *embedding, const Scored *scored) {
    const Pass *p = run->pass;
    const Stack *s = run->stack;
    int64_t at, end;
    while (next_share(run->team, run->tokens, &at, &end))
        for (; at < end; at++) {
            int64_t row = row_of(p, at), step = at - first_of(p, row), place = start_of(p, row) + step;
            int64_t token = scored->tokens[row * scored->stride + step];
            embed(embedding, s->width, s->eps, token, place, p->output + at * s->width);
            if (scored->rules) scored->rules->tokens[row * scored->rules->token_stride + place] = token;
        }
}

/* The head's part of a pass: scores of every state, and the likeliest token behind each. */
static void score_tokens(const Run *run, const Decoder *decoder, const Scored *scored) {
    float scale = (float)decoder->logit_scale, *scaled = scale == 1.0f ? run->pass->output : run->work.normed;
    int64_t width = run->stack->width, vocabulary = decoder->head.outputs, token, end;
    while (next_share(run->team, run->tokens, &token, &end))
        for (; token < end; token++) {
            const float *state = run->pass->output + token * width;
            for (int64_t i = 0; scaled != run->pass->output && i < width; i++) scaled[token * width + i] = state[i] * scale;
            quantise_token(run, scaled + token * width, width, token);
        }
    apply(run, &decoder->head, scaled, scored->logits);
    if (!scored->best) return;
    while (next_share(run->team, run->tokens, &token, &end))
        for (; token < end; token++) {
            float *logits = scored->logits + token * vocabulary;
            int64_t row = row_of(run->pass, token), place = start_of(run->pass, row) + token - first_of(run->pass, row);
            if (scored->rules) apply_rules(scored->rules, logits, vocabulary, row, place + 1, own_scores(run));
            scored->best[token] = likeliest(logits, vocabulary);
        }
}

/* A whole pass: `run->pass->input` is what embed_tokens wrote. */
static void run_decoder(const Run *run, const Decoder *decoder, const Scored *scored) {
    embed_tokens(run, &decoder->embedding, scored);
    run_stack(run);
    score_tokens(run, decoder, scored);
}

#endif
