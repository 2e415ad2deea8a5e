/* What an iteration of the decoding loop works on. */
#ifndef SPEC2SEQ_STATE_H
#define SPEC2SEQ_STATE_H

#include "decoder.h"
#include "little.h"
#include "lookup.h"

/* The cached block drafter, see CachedDrafter. */
typedef struct {
    const Stack *stack;
    Linear mix;
    const float *slots; /* [block_size - 1][width] */
    const Chooser *chooser;
    const int64_t *hidden_layers; /* [hidden], of the verifier, whose states it reads */
    int64_t hidden;
} Drafter;

/* The rows in flight and what they keep. */
typedef struct {
    const Decoder *verifier;
    const Drafter *drafter; /* null: none but what is `given` */
    LittleDraft *little;    /* gives drafts, or null */
    Lookup *lookup;         /* the same */
    const int64_t *given, *given_lengths; /* [rows][given_stride] drafted elsewhere, and how many count; or null */
    int64_t given_stride;
    int64_t rows, k, horizon; /* k: the longest draft; horizon: the most tokens of any row */
    int64_t *tokens, token_stride, *lengths;
    const int64_t *limits, *source_lengths;
    int64_t source_horizon;
    Places own, source, draft_own, draft_source;
    int64_t *fed;   /* [rows] tokens that the drafter's cache has */
    float *pending; /* [rows][pending_stride] states that chose the others */
    int64_t pending_stride;
    int64_t eos, beta; /* a drafted token stands among the `beta` likeliest at most `tau` below the best; 1: exact */
    double tau, rollback; /* not negative: one stands that is no less likely than e^-rollback instead */
    int64_t trusts_ends;  /* a given draft that holds the end token and nothing forbidden ends its row, unverified */
    const Rules *rules;   /* or null */
    float *blank;         /* [vocabulary + horizon + k], where there are rules and ends are trusted */
    int64_t *report; /* [ran][rows][report_stride], see REPORT_HEAD; this is where the next one goes */
    int64_t report_stride;
    int64_t most, ran; /* iterations to run while no row ends, and how many did */
    double seconds[3]; /* spent drafting, verifying and judging */
} Iteration;

typedef struct {
    Iteration *it;
    Pass draft, verify;
    Work draft_work, verify_work;
    Scored scored;
    Choice choice;
    int64_t calls, draft_fed; /* passes of a drafter that reads all rows alike, and tokens that a row was fed in them */
    int64_t fresh, draft_tokens, verify_tokens;
    /* When the call began, and when it had the drafts that others make: before there are workers, who may do the rest
     * while the calling thread waits for its core. */
    int64_t began, drafted;
    int64_t *draft_starts, *draft_ends, *block, *starts, *row_of, *first;
    float *mixed_in, *mixed, *draft_states, *mix_scales;
    int8_t *mix_codes;
    float **hidden;
    int64_t mix_stride;
    Phase *phases;
} Iterate;

/* Numbers of tokens drafted, accepted and emitted, whether the row ended unverified, whether the drafter was unsure, its
 * passes, tokens that it was fed, the width of the draft. Behind them stand the tokens emitted, [width + 1], and drafted. */
#define REPORT_HEAD 8

#endif
