// Moves the accepted entries of the target's cache to the front of the tree region, for all rows of a slot: loop.commit.
// Grid: as many threads as rows x heads x layers x units of a head's vector, in any blocks. Each thread moves its unit
// from node to node in ascending order, and path[j] >= j, so no entry is written over before it has been read.
#include "round.h"

struct Cache {
    void* block;      // [layers, 2, rows, heads, slots, head_dim]
    i32 planes;       // 2 x layers
    i32 rows;         // of the block; the first slots x rows of the round take part
    i32 heads, slots;
    i32 units, unit;  // of a vector of head_dim numbers: how many, and their bytes: 16, 8, 4 or 2
};

struct alignas(16) Bytes16 {
    u64 low, high;
};

template <class Unit>
__device__ void move(Unit* entry, int units, const i64* path, int count) {
    for (int j = 1; j < count; j++)
        if (path[j] != j) entry[(i64)j * units] = entry[path[j] * units];
}

extern "C" __global__ void commit(Round r, Cache c) {
    const int rows = r.slots * r.rows;
    const i64 thread = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= (i64)c.planes * rows * c.heads * c.units) return;
    const int unit = (int)(thread % c.units);
    const i64 vector = thread / c.units;
    const int head = (int)(vector % c.heads), row = (int)(vector / c.heads % rows);
    const i64 plane = vector / c.heads / rows;
    const int p = row / r.rows, count = record_of(r, p)[RECORD_COUNT];
    if (count < 2) return;
    const i64* path = r.path + (i64)p * r.levels;
    const i64 start = r.prefix + r.done[p] - 1;
    const i64 at = (((plane * c.rows + row) * c.heads + head) * c.slots + start) * c.units + unit;
    if (c.unit == 16) move((Bytes16*)c.block + at, c.units, path, count);
    else if (c.unit == 8) move((u64*)c.block + at, c.units, path, count);
    else if (c.unit == 4) move((u32*)c.block + at, c.units, path, count);
    else move((unsigned short*)c.block + at, c.units, path, count);
}
