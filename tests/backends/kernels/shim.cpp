// The kernels as a library for ctypes.
#include "shim.h"

#include <stddef.h>

namespace {  // of their own, so that all shared memory is in one section
#include "advance.cu"
#include "commit.cu"
#include "noise.cu"
#include "pairs.cu"
#include "place.cu"
#include "walk.cu"
#include "walk_by_rule.cu"
}

static float no_log(float x) { return x; }

// What a block's threads find together, each thread having every blockDim-th of n numbers.
static void together(const double* numbers, int n, double* sum, double* largest, int* index) {
    double found = 0.0, best = 0.0;
    int at = -1;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        found += numbers[i];
        if (at < 0 || numbers[i] > best) best = numbers[i], at = i;
    }
    const double whole = block_sum(found), again = block_sum(found);
    const int where = block_argmax(best, at, &best), twice = block_argmax(best, where, &best);
    sum[threadIdx.x] = whole == again ? whole : NAN;
    largest[threadIdx.x] = best;
    index[threadIdx.x] = where == twice ? where : -2;
}

extern "C" {
void use_order(u64 seed) { order = seed; }

void use_logarithms(int on) { log_in_use = on ? ::logf : no_log; }

#define RUN(KERNEL) \
    void run_##KERNEL(const Round* r, const int* grid, int threads) { run(grid, threads, false, [=] { KERNEL(*r); }); }
RUN(noise)
RUN(place)
RUN(walk)
RUN(advance)
RUN(pairs)

void run_commit(const Round* r, const Cache* c, const int* grid, int threads) {
    run(grid, threads, false, [=] { commit(*r, *c); });
}

float uniform_of_half(u64 number, int half) {
    const u64 block[4] = {number, 0, 0, 0};
    return uniform_of(block, half);
}

void run_walk_by_rule(const Round* r, const Rules* s, const int* grid, int threads) {
    run(grid, threads, true, [=] { walk_by_rule(*r, *s); });
}

void run_together(const double* numbers, int n, double* sum, double* largest, int* index, int threads) {
    const int one[3] = {1, 1, 1};
    run(one, threads, true, [=] { together(numbers, n, sum, largest, index); });
}

int size_of_rules() { return sizeof(Rules); }
int size_of_setting() { return sizeof(RuleSetting); }
int size_of_round() { return sizeof(Round); }
int size_of_cache() { return sizeof(Cache); }
#define OFFSET(FIELD) (int)offsetof(Round, FIELD)
int offset_of_round(int i) {
    const int offsets[] = {
        OFFSET(slots), OFFSET(rows), OFFSET(nodes), OFFSET(levels), OFFSET(vocab), OFFSET(length), OFFSET(prefix),
        OFFSET(pair_slots), OFFSET(drafted), OFFSET(tree_stride), OFFSET(mask_columns), OFFSET(seed), OFFSET(stream), OFFSET(rule),
        OFFSET(end), OFFSET(first), OFFSET(plan_forced), OFFSET(plan_above), OFFSET(plan_left), OFFSET(parents),
        OFFSET(depths), OFFSET(guessed), OFFSET(continuations), OFFSET(drafted_nodes), OFFSET(done), OFFSET(tokens),
        OFFSET(guesses), OFFSET(read), OFFSET(noise), OFFSET(forced), OFFSET(drafted_tokens), OFFSET(tree_tokens),
        OFFSET(origins), OFFSET(embed_ids), OFFSET(positions), OFFSET(write_index), OFFSET(ancestors),
        OFFSET(tree_mask), OFFSET(drawn), OFFSET(runner_up),
        OFFSET(path), OFFSET(path_tokens), OFFSET(count), OFFSET(record), OFFSET(pair_positions),
        OFFSET(pair_write_index), OFFSET(pair_mask),
    };
    return i < (int)(sizeof(offsets) / sizeof(int)) ? offsets[i] : -1;
}
}
