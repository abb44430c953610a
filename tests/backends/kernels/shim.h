// CUDA C++ on the CPU: the kernels' source as it is, one thread at a time, in a random order that `order` chooses. Where
// threads wait for each other, each is a fiber; the blocks come in a random order, and so do the threads of a block behind
// each wait. So a wait that is missing shows. Shared memory holds garbage when a block begins.
#pragma once
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

#include <functional>
#include <vector>

#include "watch.h"

struct Place {
    int x, y, z;
};
static Place blockIdx, threadIdx, blockDim, gridDim;

#define __global__
#define __device__
#define __host__
#define __shared__ static __attribute__((section("shared_memory")))
#define __forceinline__ inline

static float (*log_in_use)(float) = ::logf;
#define logf(x) log_in_use(x)

static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}

struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    bool done = true;
};
static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static int running = -1;
static const std::function<void()>* body;
static unsigned long long order = 1;

UNWATCHED static void start_fiber() {
    watched.on = true;
    (*body)();
    watched.on = false;
    fibers[running].done = true;
}

UNWATCHED static inline void __syncthreads() {
    watched.on = false;
    if (running < 0) {
        fprintf(stderr, "this kernel waits: run it with fibers\n");
        abort();
    }
    swapcontext(&fibers[running].context, &scheduler);
    watched.on = true;
}

static inline unsigned next_random() {
    order = order * 6364136223846793005ull + 1442695040888963407ull;
    return (unsigned)(order >> 32);
}

// 0 .. n - 1 in a random order.
static std::vector<int> turn;
static const std::vector<int>& shuffled(int n) {
    turn.resize(n);
    for (int i = 0; i < n; i++) turn[i] = i;
    for (int i = n - 1; i > 0; i--) std::swap(turn[i], turn[next_random() % (unsigned)(i + 1)]);
    return turn;
}

extern char __start_shared_memory[] __attribute__((visibility("hidden")));
extern char __stop_shared_memory[] __attribute__((visibility("hidden")));

UNWATCHED static void begin_shared_memory() {
    watched.entered++;
    watched.shared = __start_shared_memory, watched.shared_end = __stop_shared_memory;
    for (char* byte = __start_shared_memory; byte < __stop_shared_memory; byte++) *byte = (char)(next_random() >> 24);
}

UNWATCHED static void run_block_of_fibers(int threads, const std::function<void()>& kernel) {
    body = &kernel;
    if ((int)fibers.size() < threads) fibers.resize(threads);
    for (int i = 0; i < threads; i++) {
        Fiber& fiber = fibers[i];
        fiber.stack.resize(256 << 10);
        fiber.done = false;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = &scheduler;
        makecontext(&fiber.context, start_fiber, 0);
    }
    for (int waiting = threads; waiting;) {
        waiting = 0;
        int ended = 0;
        watched.interval++;
        for (int i : shuffled(threads)) {
            if (fibers[i].done) continue;
            running = watched.thread = i;
            threadIdx = {i, 0, 0};
            watched.stack = fibers[i].stack.data(), watched.stack_end = watched.stack + fibers[i].stack.size();
            swapcontext(&scheduler, &fibers[i].context);
            (fibers[i].done ? ended : waiting)++;
        }
        if (waiting && ended) {
            fprintf(stderr, "a thread ended while others wait for it\n");
            abort();
        }
    }
    running = -1;
}

UNWATCHED static void enter_block(int block, const int grid[3]) {
    blockIdx = {block % grid[0], block / grid[0] % grid[1], block / grid[0] / grid[1]};
    watched.block = block;
}

// `grid` blocks of `threads` threads, which are fibers where `with_waits`.
UNWATCHED static void run(const int grid[3], int threads, bool with_waits, const std::function<void()>& kernel) {
    const int blocks = grid[0] * grid[1] * grid[2];
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {threads, 1, 1};
    watched.launch++;
    watched.frame = (char*)__builtin_frame_address(0);
    if (with_waits) {
        for (int block : std::vector<int>(shuffled(blocks))) {
            enter_block(block, grid);
            begin_shared_memory();
            run_block_of_fibers(threads, kernel);
        }
        return;
    }
    for (int i : shuffled(blocks * threads)) {
        enter_block(i / threads, grid);
        watched.thread = i % threads;
        threadIdx = {i % threads, 0, 0};
        watched.on = true;
        kernel();
        watched.on = false;
    }
}
