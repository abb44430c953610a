// Finds races, and accesses beside all arrays, in kernels that are compiled with -fsanitize=thread: the compiler then
// calls __tsan_read4 and the like at each access, and here these are. No library of the sanitizer is linked.
//
// Two accesses of a launch to one byte race if they are of different threads, one of them writes, and no wait of their
// block lies between them; nothing orders blocks. The order in which they happened to run does not matter.
#include "watch.h"

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <array>
#include <map>
#include <memory>
#include <unordered_map>

Watched watched;
extern char __ehdr_start[] __attribute__((visibility("hidden"))), _end[] __attribute__((visibility("hidden")));

namespace {
enum { NONE = -1, SEVERAL = -2 };

struct Touch {
    int block = NONE, thread = NONE, interval = NONE;

    // Whether all of it comes before, or is of, the thread that runs now.
    bool is_before() const {
        if (block == NONE) return true;
        return block == watched.block && (interval != watched.interval || thread == watched.thread);
    }

    void add() {
        if (block != NONE && block != watched.block) block = SEVERAL;
        else if (block == watched.block && interval == watched.interval && thread != watched.thread) thread = SEVERAL;
        else block = watched.block, thread = watched.thread, interval = watched.interval;
    }
};

struct Shadow {
    int life = 0;  // of what it is about: a launch, or a block where it is shared memory
    Touch read, written;
};

enum { PAGE = 4096 };
std::unordered_map<uintptr_t, std::unique_ptr<std::array<Shadow, PAGE>>> pages;
std::map<uintptr_t, uintptr_t> arrays;  // begin and end; empty: any address will do
int found;
char first[200];

void report(const char* what, uintptr_t address, void* code) {
    if (found++) return;
    Dl_info info;
    const uintptr_t base = dladdr(code, &info) ? (uintptr_t)info.dli_fbase : 0;
    snprintf(first, sizeof first, "%s, address %#lx, block %d, thread %d, code %#lx", what, (unsigned long)address,
             watched.block, watched.thread, (unsigned long)((uintptr_t)code - base - 1));
}

bool is_inside(uintptr_t address, int size) {
    if (address >= (uintptr_t)__ehdr_start && address + size <= (uintptr_t)_end) return true;  // shared memory, threadIdx
    auto next = arrays.upper_bound(address);
    return next != arrays.begin() && address + size <= (--next)->second;
}

bool is_on_stack(char* at) {
    return (at >= watched.stack && at < watched.stack_end) || labs(at - watched.frame) < 1 << 18;
}

void touch(void* at, int size, bool writes, void* code) {
    if (!watched.on || is_on_stack((char*)at)) return;
    watched.on = false;
    const uintptr_t address = (uintptr_t)at;
    const bool is_shared = (char*)at >= watched.shared && (char*)at < watched.shared_end;
    const int life = is_shared ? watched.entered : watched.launch;
    if (!arrays.empty() && !is_inside(address, size)) report(writes ? "a write beside" : "a read beside", address, code);
    for (uintptr_t byte = address; byte < address + size; byte++) {
        auto& page = pages[byte / PAGE];
        if (!page) page.reset(new std::array<Shadow, PAGE>);
        Shadow& shadow = (*page)[byte % PAGE];
        if (shadow.life != life) shadow = Shadow(), shadow.life = life;
        if (!shadow.written.is_before() || (writes && !shadow.read.is_before()))
            report(writes ? "a write races" : "a read races", byte, code);
        (writes ? shadow.written : shadow.read).add();
    }
    watched.on = true;
}
}  // namespace

extern "C" {
// How many were found since the last time, and the first of them in `text`, of at least 200 bytes.
int take_found(char* text) {
    const int count = found;
    snprintf(text, sizeof first, "%s", count ? first : "");
    found = 0;
    return count;
}

void know_array(void* begin, long size) { arrays[(uintptr_t)begin] = (uintptr_t)begin + size; }
void forget_arrays() { arrays.clear(); }

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_read_range(void* at, unsigned long size) { touch(at, (int)size, false, __builtin_return_address(0)); }
void __tsan_write_range(void* at, unsigned long size) { touch(at, (int)size, true, __builtin_return_address(0)); }
#define HOOKS(SIZE) \
    void __tsan_read##SIZE(void* at) { touch(at, SIZE, false, __builtin_return_address(0)); } \
    void __tsan_write##SIZE(void* at) { touch(at, SIZE, true, __builtin_return_address(0)); } \
    void __tsan_unaligned_read##SIZE(void* at) { touch(at, SIZE, false, __builtin_return_address(0)); } \
    void __tsan_unaligned_write##SIZE(void* at) { touch(at, SIZE, true, __builtin_return_address(0)); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
}
