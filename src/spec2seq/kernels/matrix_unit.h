/* The matrix unit of newer Intel CPUs (AMX): 16 rows of codes against 64 outputs, whose integer sums are those of the
 * vector unit exactly. */
#ifndef SPEC2SEQ_MATRIX_UNIT_H
#define SPEC2SEQ_MATRIX_UNIT_H

#include <sys/syscall.h>
#include <unistd.h>

#define MATRIX_ROWS 16
#define MATRIX_FROM 7 /* tokens; for fewer the vector unit is faster */

/* Whether the system lets this process use it: it has to be asked once, because the state of a thread grows. */
static int matrix_allowed(void) {
    static atomic_int answer; /* 0: not asked yet; then 1 for no, 2 for yes */
    if (!atomic_load_explicit(&answer, memory_order_relaxed)) {
        const int request = 0x1023, tile_data = 18; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */
        atomic_store(&answer, syscall(SYS_arch_prctl, request, tile_data) == 0 ? 2 : 1);
    }
    return atomic_load_explicit(&answer, memory_order_relaxed) == 2;
}

/* Prepare this thread for blocks of so many rows: sums are tiles 0 to 3, codes of rows 4, weights 5 and 6. */
static void matrix_rows(int rows) {
    struct {
        uint8_t palette, start, unused[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape = {.palette = 1};
    for (int tile = 0; tile < 7; tile++) {
        shape.bytes[tile] = 64;
        shape.rows[tile] = (uint8_t)(tile < 5 ? rows : 16);
    }
    _tile_loadconfig(&shape);
}

/* Sums [rows][PANEL] of weights [width / 4][PANEL][4] and codes x [rows][stride]. `fetch`: call for what comes later. */
INLINE void matrix_tile(const int8_t *weight, int64_t width, const int8_t *x, int64_t stride, int32_t *sums, int fetch) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < width; k += 64, weight += 64 * PANEL) {
        for (int line = 0; fetch && line < 64; line++)
            _mm_prefetch((const char *)weight + AHEAD + 64 * line, _MM_HINT_T0);
        _tile_loadd(4, x + k, stride);
        _tile_loadd(5, weight, 4 * PANEL);
        _tile_dpbusd(0, 4, 5);
        _tile_loadd(6, weight + 64, 4 * PANEL);
        _tile_dpbusd(1, 4, 6);
        _tile_loadd(5, weight + 128, 4 * PANEL);
        _tile_dpbusd(2, 4, 5);
        _tile_loadd(6, weight + 192, 4 * PANEL);
        _tile_dpbusd(3, 4, 6);
    }
    _tile_stored(0, sums, 4 * PANEL);
    _tile_stored(1, sums + 16, 4 * PANEL);
    _tile_stored(2, sums + 32, 4 * PANEL);
    _tile_stored(3, sums + 48, 4 * PANEL);
}

#endif
