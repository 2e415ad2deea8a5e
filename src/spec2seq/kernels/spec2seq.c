/* What Python calls, see models/native.py: each call runs one pass on a team of threads. They return 0, or -1 where
 * memory is short. */
#include "beams.h"
#include "iteration.h"

/* Buffers and phases for a run over `tokens`, and room for `alone` floats at `work->places`. Returns the phases; null
 * where memory is short. */
static Phase *make_work(Work *work, const Stack *stack, int64_t tokens, int64_t keys, int64_t alone, int threads) {
    size_t phases = PHASES(stack->count) * sizeof(Phase), used = carve(work, NULL, stack, tokens, keys, threads);
    char *memory = buffers(phases + used + (size_t)alone * sizeof(float));
    if (!memory) return NULL;
    carve(work, memory + phases, stack, tokens, keys, threads);
    work->places = (float *)(memory + phases + used);
    return memset(memory, 0, phases);
}

typedef struct {
    const Stack *stack;
    const Pass *pass;
    const Work *work;
    const Places *to;
    int64_t tokens;
} Call;

static void stack_job(void *argument, Team *team) {
    const Call *call = argument;
    Run run = {call->stack, call->pass, *call->work, call->tokens, team};
    run_stack(&run);
}

static void source_job(void *argument, Team *team) {
    const Call *call = argument;
    Run run = {call->stack, call->pass, *call->work, call->tokens, team};
    run_source(&run, call->to);
}

/* Run all layers over the tokens of a pass. */
int spec2seq_stack(const Stack *stack, Pass *pass, int threads) {
    Work work;
    int64_t tokens = first_of(pass, pass->rows), places = pass->rows * pass->length;
    int64_t keys = largest(pass->horizon, pass->source_horizon), inner = stack->heads * stack->head_width;
    int64_t alone = pass->own.data ? 0 : 2 * places * inner;
    Phase *phases = make_work(&work, stack, tokens, keys, alone, threads);
    if (!phases) return -1;
    if (alone) /* its keys and values, a head's behind one another: strided over a token's, they share few cache sets */
        pass->own = (Places){work.places, 0, places * inner, pass->length * inner, pass->length * stack->head_width};
    Call call = {.stack = stack, .pass = pass, .work = &work, .tokens = tokens};
    run_team(threads, phases, stack_job, &call);
    return 0;
}

/* What cross-attention sees of the states that a pass over sources wrote: every layer's keys and values. */
int spec2seq_source(const Stack *stack, const Pass *pass, const Places *to, int threads) {
    Work work;
    int64_t tokens = first_of(pass, pass->rows);
    Phase *phases = make_work(&work, stack, tokens, 0, 0, threads);
    if (!phases) return -1;
    Call call = {.stack = stack, .pass = pass, .work = &work, .to = to, .tokens = tokens};
    run_team(threads, phases, source_job, &call);
    return 0;
}

typedef struct {
    const Linear *linear;
    Inputs in;
    Outputs to;
    int64_t tokens;
    int8_t *codes;
    float *scales;
} LinearCall;

static void linear_job(void *argument, Team *team) {
    const LinearCall *call = argument;
    int64_t width = call->linear->inputs, token, end;
    if (call->linear->codes)
        while (next_share(team, call->tokens, &token, &end))
            for (; token < end; token++)
                quantise(call->in.values + token * width, width, call->codes + token * call->in.code_stride,
                         call->scales + token);
    linear_layer(call->linear, &call->in, &call->to, call->tokens, team);
}

/* One linear layer: x [tokens][inputs] to y [tokens][outputs]. */
int spec2seq_linear(const Linear *linear, const float *x, int64_t tokens, float *y, int threads) {
    int64_t stride = code_width(linear->inputs);
    Phase phases[2] = {0};
    char *memory = buffers((size_t)(tokens * (stride + 64)));
    if (!memory) return -1;
    int8_t *codes = (int8_t *)memory;
    float *scales = (float *)(memory + tokens * stride);
    Inputs in = {x, linear->inputs, codes, scales, stride};
    LinearCall call = {linear, in, {y, linear->outputs, NULL, 0}, tokens, codes, scales};
    run_team(threads, phases, linear_job, &call);
    return 0;
}

static void choose_job(void *argument, Team *team) {
    Choice own = *(const Choice *)argument;
    own.team = team;
    choose(&own);
}

/* Choose the likeliest token of every slot from left to right. `previous` [rows] is written over. */
int spec2seq_choose(const Chooser *chooser, const float *states, int64_t rows, int64_t slots, int64_t *previous,
                    int64_t *tokens, float *logits, int threads) {
    Choice choice = {.chooser = chooser, .states = states, .rows = rows, .slots = slots,
                     .previous = previous, .tokens = tokens, .logits = logits};
    size_t phases = CHOICE_PHASES(slots) * sizeof(Phase);
    char *memory = buffers(carve_choice(&choice, NULL, phases));
    if (!memory) return -1;
    carve_choice(&choice, memory, phases);
    memset(memory, 0, phases);
    run_team(threads, (Phase *)memory, choose_job, &choice);
    return 0;
}

typedef struct {
    const Decoder *decoder;
    Run run;
    Scored scored;
} DecoderCall;

static void decoder_job(void *argument, Team *team) {
    DecoderCall call = *(const DecoderCall *)argument;
    call.run.team = team;
    if (call.scored.logits) {
        run_decoder(&call.run, call.decoder, &call.scored);
    } else {
        embed_tokens(&call.run, &call.decoder->embedding, &call.scored);
        run_stack(&call.run);
    }
}

/* A decoder's pass over tokens [rows][stride]: states, and logits where they are asked for. */
int spec2seq_decode(const Decoder *decoder, Pass *pass, const Scored *scored, int threads) {
    DecoderCall call = {decoder, {decoder->stack, pass, .tokens = pass->rows * pass->length}, *scored};
    int64_t keys = largest(pass->horizon, pass->source_horizon);
    Phase *phases = make_work(&call.run.work, decoder->stack, call.run.tokens, keys, 0, threads);
    if (!phases) return -1;
    pass->input = pass->output;
    run_team(threads, phases, decoder_job, &call);
    return 0;
}

/* The best continuations of beams. */
int spec2seq_continue(const Continuations *asked, int threads) {
    Phase phases[3] = {0};
    size_t candidates = (size_t)(asked->sentences * asked->beams * asked->wanted) * sizeof(Candidate);
    char *memory = buffers(candidates + (size_t)(threads * asked->length) * sizeof(float));
    if (!memory) return -1;
    BeamCall call = {asked, (Candidate *)memory, (float *)(memory + candidates)};
    run_team(threads, phases, beam_job, &call);
    return 0;
}

/* Iterations of the decoding loop over the rows in flight. */
int spec2seq_iterate(Iteration *iteration, int threads) {
    int64_t k = iteration->k, more;
    memset(iteration->seconds, 0, sizeof iteration->seconds);
    iteration->ran = 0;
    do {
        Iterate call = {.it = iteration, .began = nanoseconds()};
        if (!take_drafts(&call, threads)) return -1;
        call.drafted = nanoseconds();
        plan_iteration(&call);
        char *memory = buffers(carve_iteration(&call, NULL, threads));
        if (!memory) return -1;
        carve_iteration(&call, memory, threads);
        fill_iteration(&call);
        run_team(threads, call.phases, iteration_job, &call);
        more = go_on(iteration, k);
    } while (++iteration->ran < iteration->most && more);
    return 0;
}

/* Drafts that are copied from source and output. */
int spec2seq_lookup(Lookup *lookup, int threads) {
    (void)threads; /* a millionth of a second a row */
    look_up(lookup);
    return 0;
}

/* A little model's draft. */
int spec2seq_draft(LittleDraft *draft, int threads) {
    return run_little(draft, threads) ? 0 : -1;
}

/* The bytes of the structures, to be compared with Python's. */
int spec2seq_size(void) {
    return (int)(sizeof(Stack) + sizeof(Pass) + sizeof(Layer) + sizeof(Chooser) + sizeof(Decoder) + sizeof(Scored) +
                 sizeof(Drafter) + sizeof(Iteration) + sizeof(LittleDraft) + sizeof(Lookup) + sizeof(Continuations) +
                 sizeof(Rule) + sizeof(Rules));
}
