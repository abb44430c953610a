// CUDA C++ on the CPU: the kernels' source as it is, blocks one after the other, and so are the threads of a block where
// they never wait for each other. Where they do, each is a fiber, and they go on in a random order behind each wait, so
// a wait that is missing shows.
#pragma once
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

#include <functional>
#include <vector>

struct Place {
    int x, y, z;
};
static Place blockIdx, threadIdx, blockDim, gridDim;

#define __global__
#define __device__
#define __host__
#define __shared__ static
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

static void start_fiber() {
    (*body)();
    fibers[running].done = true;
}

static inline void __syncthreads() {
    if (running < 0) {
        fprintf(stderr, "this kernel waits: run it with fibers\n");
        abort();
    }
    swapcontext(&fibers[running].context, &scheduler);
}

static inline unsigned next_random(unsigned below) {
    order = order * 6364136223846793005ull + 1442695040888963407ull;
    return (unsigned)((order >> 33) % below);
}

static void run_block_of_fibers(int threads, const std::function<void()>& kernel) {
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
    std::vector<int> turn(threads);
    for (int waiting = threads; waiting;) {
        for (int i = 0; i < threads; i++) turn[i] = i;
        for (int i = threads - 1; i > 0; i--) std::swap(turn[i], turn[next_random(i + 1)]);
        waiting = 0;
        int ended = 0;
        for (int i : turn) {
            if (fibers[i].done) continue;
            running = i;
            threadIdx = {i, 0, 0};
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

// `grid` blocks of `threads` threads, which are fibers where `with_waits`.
static void run(const int grid[3], int threads, bool with_waits, const std::function<void()>& kernel) {
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {threads, 1, 1};
    for (int z = 0; z < grid[2]; z++)
        for (int y = 0; y < grid[1]; y++)
            for (int x = 0; x < grid[0]; x++) {
                blockIdx = {x, y, z};
                if (with_waits) run_block_of_fibers(threads, kernel);
                else
                    for (int i = 0; i < threads; i++) {
                        threadIdx = {i, 0, 0};
                        kernel();
                    }
            }
}
