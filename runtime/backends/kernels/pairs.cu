// Where the drafter writes what was accepted in the round before, given the round's own arrays: Eagle._load. Slots that
// it has not read, since others drew, are masked. One thread a slot; before the draft call, behind `advance`.
#include "round.h"

extern "C" __global__ void pairs(Round r) {
    const int p = slot_of_thread();
    if (p >= r.slots) return;
    const i32* record = record_of(r, p);
    const int count = record[RECORD_COUNT];
    if (count == 0) return;
    const i64 start = r.prefix + record[RECORD_START] - 1, read = r.read[p];
    for (i64 row = (i64)p * r.rows; row < (i64)(p + 1) * r.rows; row++) {
        r.pair_write_index[row] = start;
        for (int i = 0; i < r.levels; i++) r.pair_positions[row * r.levels + i] = start + i;
        for (i64 slot = read; slot < start; slot++) r.pair_mask[row * r.pair_slots + slot] = 0;
    }
    r.read[p] = start + count;
}
