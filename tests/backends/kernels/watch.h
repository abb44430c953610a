// What a thread of a kernel reads and writes, and whether another one touches it without a wait between them (watch.cpp).
#pragma once

#define UNWATCHED __attribute__((no_sanitize("thread")))  // of the shim, not of a kernel

struct Watched {
    bool on;                  // a kernel's own code is running
    int launch, block, thread;
    int entered;              // counts blocks that began: shared memory is new then
    char *shared, *shared_end;
    int interval;             // counts waits: two threads of a block are ordered when theirs differ
    char *stack, *stack_end;  // of a fiber
    char* frame;              // of the function that launches, below and beside which are the arguments
};
extern Watched watched;
