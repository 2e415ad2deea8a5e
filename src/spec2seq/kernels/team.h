/* Threads: a few workers that help the calling thread through the phases of a pass.
 *
 * They are not OpenMP's, whose calls end only when every thread has had its turn: on a busy machine that is a wait for
 * the scheduler each time. Here the caller can do all the work itself, and it waits only for a worker that is inside. */
#ifndef SPEC2SEQ_TEAM_H
#define SPEC2SEQ_TEAM_H

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <time.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#define MOST_THREADS 64
#define PATIENCE 1000000 /* nanoseconds: a thread that takes longer for its share has lost its core */
#define SPINS 3000 /* before a worker sleeps: some tenths of a millisecond, the time between two passes */

/* A pass is a row of phases. A phase is split into as many shares as there are threads; each thread takes its own and
 * then any that nobody has begun, so that on a busy machine nobody waits for a thread that does not run. */
typedef struct {
    _Alignas(64) atomic_ullong taken; /* a bit for each share */
    atomic_int done;                  /* how many shares are */
} Phase;

typedef struct {
    Phase *phase; /* the present one; zeros at first */
    int index, count, tried, busy;
    int late; /* somebody was waited for longer than PATIENCE */
} Team;

static void pause_briefly(void) {
#ifdef __x86_64__
    _mm_pause();
#endif
}

static int64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* One step of waiting: spinning at first, then the core is given away. `*since` is 0 before the first. */
static void relax(int spins, int64_t *since, int *late) {
    if (spins < 1000) {
        pause_briefly();
        return;
    }
    if (!*since) *since = nanoseconds();
    *late |= nanoseconds() - *since > PATIENCE;
    sched_yield();
}

/* The next share of this phase's `total` things, from `*first` up to `*end`. Returns 0 when the whole phase is done,
 * and every thread may read what it wrote; the next call belongs to the next phase. */
static int next_share(Team *team, int64_t total, int64_t *first, int64_t *end) {
    Phase *phase = team->phase;
    if (team->busy && team->count > 1) atomic_fetch_add_explicit(&phase->done, 1, memory_order_release);
    team->busy = 0;
    while (team->tried < team->count) {
        int share = (team->index + team->tried++) % team->count;
        unsigned long long bit = 1ULL << share;
        if (team->count > 1) {
            if (atomic_load_explicit(&phase->taken, memory_order_relaxed) & bit) continue;
            if (atomic_fetch_or_explicit(&phase->taken, bit, memory_order_relaxed) & bit) continue;
        }
        *first = total * share / team->count;
        *end = total * (share + 1) / team->count;
        return team->busy = 1;
    }
    int64_t since = 0;
    if (team->count > 1)
        for (int spins = 0; atomic_load_explicit(&phase->done, memory_order_acquire) < team->count; spins++)
            relax(spins, &since, &team->late);
    team->phase++;
    team->tried = 0;
    return 0;
}

typedef void (*Job)(void *argument, Team *team);

#define OPEN (1 << 16) /* of `state`: workers may enter; below it the number of those inside */

static struct {
    pthread_mutex_t owner, lock;
    pthread_cond_t wake;
    atomic_uint round; /* counts jobs */
    atomic_int state, sleepers;
    int workers;
    /* the job; written while no worker is inside */
    Job job;
    void *argument;
    Phase *phases;
    int count;
    int alone, penalty; /* calls to come without workers, and how many there are next time */
} pool = {.owner = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

/* Wait until there is another job than `seen`. */
static unsigned next_round(unsigned seen) {
    for (int spins = 0; spins < SPINS; spins++) {
        if (atomic_load(&pool.round) != seen) return atomic_load(&pool.round);
        pause_briefly();
    }
    pthread_mutex_lock(&pool.lock);
    atomic_fetch_add(&pool.sleepers, 1);
    while (atomic_load(&pool.round) == seen) pthread_cond_wait(&pool.wake, &pool.lock);
    atomic_fetch_sub(&pool.sleepers, 1);
    pthread_mutex_unlock(&pool.lock);
    return atomic_load(&pool.round);
}

static void *work(void *index) {
    unsigned seen = 0;
    for (;;) {
        seen = next_round(seen);
        int state = atomic_load(&pool.state);
        while ((state & OPEN) && !atomic_compare_exchange_weak(&pool.state, &state, state + 1)) {
        }
        if (!(state & OPEN)) continue; /* too late: the job is done */
        if ((int)(intptr_t)index < pool.count) {
            Team team = {pool.phases, .index = (int)(intptr_t)index, .count = pool.count};
            pool.job(pool.argument, &team);
        }
        atomic_fetch_sub(&pool.state, 1);
    }
    return NULL;
}

/* In a forked child there are no workers. */
static void forget_workers(void) {
    pthread_mutex_init(&pool.owner, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.wake, NULL);
    atomic_store(&pool.state, 0);
    atomic_store(&pool.sleepers, 0);
    pool.workers = 0;
}

static void start_workers(int wanted) {
    static int registered;
    pthread_attr_t detached;
    if (pool.workers >= wanted) return;
    if (!registered) registered = pthread_atfork(NULL, NULL, forget_workers) == 0;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    for (pthread_t thread; pool.workers < wanted; pool.workers++)
        if (pthread_create(&thread, &detached, work, (void *)(intptr_t)(pool.workers + 1))) break;
    pthread_attr_destroy(&detached);
}

/* Where a worker lost its core, do without workers for a while: longer each time it happens again. */
static void learn(int late) {
    pool.penalty = late ? (pool.penalty < 256 ? 2 * pool.penalty + 8 : 512) : pool.penalty / 2;
    if (late) pool.alone = pool.penalty;
}

/* How many threads really are taken. */
static int team_size(int threads) { return threads > MOST_THREADS ? MOST_THREADS : threads; }

/* Run a job on up to `threads` threads, this one among them; `phases` are zeros, one for each phase. */
static void run_team(int threads, Phase *phases, Job job, void *argument) {
    threads = team_size(threads);
    int with_workers = threads > 1 && !pthread_mutex_trylock(&pool.owner); /* else another call has them */
    if (with_workers && pool.alone > 0) {
        pool.alone--;
        pthread_mutex_unlock(&pool.owner);
        with_workers = 0;
    }
    if (!with_workers) {
        Team alone = {phases, .count = 1};
        job(argument, &alone);
        return;
    }
    start_workers(threads - 1);
    pool.job = job;
    pool.argument = argument;
    pool.phases = phases;
    pool.count = threads;
    atomic_store(&pool.state, OPEN);
    atomic_fetch_add(&pool.round, 1);
    if (atomic_load(&pool.sleepers)) {
        pthread_mutex_lock(&pool.lock);
        pthread_cond_broadcast(&pool.wake);
        pthread_mutex_unlock(&pool.lock);
    }
    Team own = {phases, .count = threads};
    int64_t since = 0;
    job(argument, &own);
    atomic_fetch_and(&pool.state, ~OPEN);
    for (int spins = 0; atomic_load(&pool.state); spins++) relax(spins, &since, &own.late);
    learn(own.late);
    pthread_mutex_unlock(&pool.owner);
}

#endif
