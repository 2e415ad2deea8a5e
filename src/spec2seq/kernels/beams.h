/* The best continuations of every sentence's beams. */
#ifndef SPEC2SEQ_BEAMS_H
#define SPEC2SEQ_BEAMS_H

#include "decoder.h"

typedef struct {
    float *logits;       /* [sentences * beams][vocabulary]; where there are rules, written over */
    const float *scores; /* [sentences * beams], the sums of log-probabilities so far */
    int64_t sentences, beams, vocabulary, wanted;
    double *best; /* [sentences][wanted][2], the best first: score and place, which is beam * vocabulary + token */
    const Rules *rules; /* for log-probabilities; or null */
    int64_t length;     /* tokens of every beam */
} Continuations;

typedef struct {
    float value;
    int64_t token;
} Candidate;

typedef struct {
    const Continuations *asked;
    Candidate *candidates; /* [sentences * beams][wanted], the best first */
    float *room;           /* [threads][length] */
} BeamCall;

#define BLOCK 64

/* The `wanted` largest of n values into `top`, equal ones in their order. */
static void largest_values(const float *x, int64_t n, int64_t wanted, Candidate *top) {
    int64_t found = 0;
    for (int64_t place = 0; place < wanted; place++) top[place] = (Candidate){-INFINITY, 0};
    for (int64_t first = 0; first < n; first += BLOCK) {
        int64_t end = first + BLOCK < n ? first + BLOCK : n;
        if (!(largest_of(x + first, end - first) > top[wanted - 1].value)) continue;
        for (int64_t i = first; i < end; i++) {
            if (!(x[i] > top[wanted - 1].value)) continue;
            int64_t place = wanted - 1;
            for (; place && x[i] > top[place - 1].value; place--) top[place] = top[place - 1];
            top[place] = (Candidate){x[i], i};
        }
    }
    while (found < wanted && top[found].value > -INFINITY) found++;
    for (int64_t i = 0; i < n && found < wanted; i++) /* what is banned makes up the number */
        if (!(x[i] > -INFINITY)) top[found++].token = i;
}

/* One phase: the best tokens of every beam, by the score that they lead to. */
static void continue_beams(const BeamCall *call, Team *team) {
    const Continuations *c = call->asked;
    int64_t row, end;
    while (next_share(team, c->sentences * c->beams, &row, &end))
        for (; row < end; row++) {
            float *x = c->logits + row * c->vocabulary;
            Candidate *top = call->candidates + row * c->wanted;
            float largest = 0, total = 0;
            if (c->rules) {
                log_softmax(x, c->vocabulary);
                apply_rules(c->rules, x, c->vocabulary, row, c->length, call->room + team->index * c->length);
            }
            largest_values(x, c->vocabulary, c->wanted, top);
            if (!c->rules) {
                largest = top[0].value;
                total = logf(exp_sum(x, c->vocabulary, largest));
            }
            for (int64_t i = 0; i < c->wanted; i++) top[i].value = top[i].value - largest - total + c->scores[row];
        }
}

/* One phase: the best of all beams of a sentence. */
static void merge_beams(const BeamCall *call, Team *team) {
    const Continuations *c = call->asked;
    int64_t sentence, end;
    while (next_share(team, c->sentences, &sentence, &end))
        for (; sentence < end; sentence++) {
            Candidate *of_beams = call->candidates + sentence * c->beams * c->wanted;
            for (int64_t i = 0; i < c->wanted; i++) {
                double *to = c->best + (sentence * c->wanted + i) * 2;
                Candidate *best = NULL;
                int64_t from = 0;
                for (int64_t beam = 0; beam < c->beams; beam++)
                    for (int64_t j = 0; j < c->wanted; j++) {
                        Candidate *next = of_beams + beam * c->wanted + j;
                        if (next->token < 0) continue; /* taken */
                        if (!best || next->value > best->value) best = next, from = beam;
                        break;
                    }
                to[0] = best->value;
                to[1] = (double)(from * c->vocabulary + best->token);
                best->token = -1;
            }
        }
}

static void beam_job(void *argument, Team *team) {
    continue_beams(argument, team);
    merge_beams(argument, team);
}

#endif
