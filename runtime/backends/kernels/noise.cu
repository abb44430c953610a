// Gumbel noise and forced tokens of the next L positions of every slot: loop.fill_noise.
// Grid (blocks of V / 8, L, P). A thread makes the eight numbers of one block of Philox. Rows behind the image's end are
// left as they are.
#include "philox.h"

extern "C" __global__ void noise(Round r) {
    const int p = blockIdx.z, level = blockIdx.y, block = blockIdx.x * blockDim.x + threadIdx.x;
    if (!is_drawn(r, p)) return;
    const i64 position = r.done[p] + level;
    const bool inside = position < r.end[p];
    if (block == 0 && r.forced) r.forced[(i64)p * r.levels + level] = inside ? r.plan_forced[position] : -1;
    if (8 * block >= r.vocab) return;
    float* row = r.noise + ((i64)p * r.levels + level) * r.vocab;
    const int left = r.vocab - 8 * block, stream = r.stream[p];
    if (stream < 0) {
        for (int i = 0; i < 8 && i < left; i++) row[8 * block + i] = 0.0f;
    } else if (inside) {
        u64 numbers[4];
        philox(block + 1, r.seed[p], key_of(stream, position), numbers);
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (i < left) row[8 * block + i] = gumbel_of(uniform_of(numbers, i));
    }
}
