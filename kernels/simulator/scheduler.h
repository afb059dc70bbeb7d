// Runs one block: its threads are fibers of one thread of the host. A fiber runs one kernel thread after
// the other until one has to wait; only then is a second stack taken, so that kernels without barriers
// cost no switches. Which thread runs next is drawn from a seed.
//
// Includes nothing of the system: kernels should find no names beyond those of platform.cuh.
#pragma once

#include "context.h"
#include "profile.h"

extern "C" int mprotect(void*, __SIZE_TYPE__, int);

struct Position3 {
    u32 x, y, z;
};
static thread_local Position3 threadIdx, blockIdx, blockDim, gridDim;

namespace simulator {

constexpr u32 MOST_THREADS = 1024, WARP = 32, MOST_ARRAYS = 32, MOST_COPIES = 1u << 16;
// After each shared array lie bytes that nothing may write. They read as NaN or -1, like all memory that
// has not been written.
constexpr u64 RED_ZONE = 256, ARENA_BYTES = 256 << 10;
constexpr u64 GUARD_BYTES = 64 << 10, STACK_BYTES = 192 << 10;
constexpr int POISON = 0xff;
constexpr u32 NONE = ~0u;
constexpr char BARRIER[] = "barrier";

// What the host hands over, and what it gets back; mirrored in src/device/cuda/simulator.
struct Launch {
    const void* arguments;
    u64 seed;
    // Memory of the calling thread that stays for later blocks, all zero at first.
    void* workspace;
    u64 workspace_bytes;
    // For the host's signal handler: leaves the block. Null when no kernel thread is running.
    void (*fault)(Launch*, i32 signal, u64 address);
    u64 fault_address;
    u32 grid[3];
    u32 block[3];
    u32 threads;
    i32 fault_signal;
    char message[1024];
    // When it is profiled: what was written down since the host last took it, what that has room for, and
    // how the host takes it.
    Record* records;
    u64 record_count, record_capacity;
    void (*spill)(Launch*);
    // Where device memory lies.
    u64 memory_start, memory_end;
    u64 counts[COUNTS];
    u64 shared_bytes;  // of its arrays, at the end
    // The host's.
    void* recorder;
    // For the sanitizer: where device memory lies, ascending; its clock, and what that was when the launch
    // began.
    const Allocation* allocations;
    u32 allocation_count;
    u32 clock, begun;
    // Likewise: of the launch's blocks so far, what had arrived where.
    Arrival* arrivals;
    u32 arrival_count, arrival_capacity;
    // Of shared memory, what a block may have.
    u32 most_shared_bytes;
};

// Where a thread waits.
struct Site {
    const char* what;
    const char* file;
    i32 line;
};
inline bool same(const Site& a, const Site& b) {
    return a.line == b.line && !__builtin_strcmp(a.what, b.what) && !__builtin_strcmp(a.file, b.file);
}

// A copy under way; `next` is the thread's next younger one.
struct Copy {
    char* to;
    const char* from;
    u32 bytes, group, next;
    bool valid;
};

struct Thread {
    u32 fiber;  // NONE before it starts
    bool ended;
    Site waits;  // what is null unless it waits
    u32 groups;  // committed
    u32 oldest, youngest;  // copies under way
};

struct Warp {
    u32 arrived;
    bool mixed;
    u32 passed;  // when the lanes last came together to order memory
    Site site;
    void* offers[WARP];
};

struct Array {
    const void* key;
    char* at;
    u64 bytes;
};

// The workspace begins with this; the arena of shared memory and the stacks follow, each behind a guard.
struct Block {
    u64 layout;
    u32 stacks_guarded;

    Launch* launch;
    void (*kernel)(const void*);
    u64 state;    // of the random numbers
    u32 threads, running, ended;
    u32 window;   // how many of the threads that can run are drawn from
    bool upwards;  // lower thread numbers come first when the window is small
    u32 runnable_count, runnable[MOST_THREADS];
    u32 fiber, fibers_used, idle_count, idle[MOST_THREADS];
    u32 arrays_used;
    u64 arena_used, shared_bytes;
    u32 copies_used, free_copy;
    bool last;   // of those that arrived at a counter
    u64 joined;  // the counter that it was the last to arrive at, for the sanitizer
    u32 pauses;  // accesses are not the kernel's meanwhile
    u32 clock, begun, barrier_passed;
    u32 allocation;                // that was accessed last
    u64 gap_start, gap_bytes;      // between allocations, where something else was accessed last
    Array arrays[MOST_ARRAYS];
    Warp warps[MOST_THREADS / WARP];
    Thread all[MOST_THREADS];
    Context contexts[MOST_THREADS + 1];  // the last is the host's
    Copy copies[MOST_COPIES];
};
constexpr u32 CALLER = MOST_THREADS;
constexpr u64 ARENA_AT = (sizeof(Block) / GUARD_BYTES + 2) * GUARD_BYTES;
constexpr u64 CELLS_AT = ARENA_AT + ARENA_BYTES + GUARD_BYTES;
// The same for all kernels, which take turns with a thread's workspace.
constexpr u64 STACKS_AT = CELLS_AT + ARENA_BYTES * sizeof(Cell);
constexpr u64 WORKSPACE_BYTES = STACKS_AT + MOST_THREADS * (GUARD_BYTES + STACK_BYTES);

static thread_local Block* here;

inline char* arena(Block* block) { return (char*)block + ARENA_AT; }
// One for each byte of the arena.
inline Cell* cells(Block* block) { return (Cell*)((char*)block + CELLS_AT); }
inline u32 random_below(Block* block, u32 limit) {
    u64 x = block->state;
    x ^= x >> 12, x ^= x << 25, x ^= x >> 27;
    block->state = x;
    return (u32)(((x * 0x2545f4914f6cdd1dull >> 32) * limit) >> 32);
}

template <typename... Values> void say(Block* block, const char* format, Values... values) {
    char* message = block->launch->message;
    u64 length = __builtin_strlen(message);
    __builtin_snprintf(message + length, sizeof(block->launch->message) - length, format, values...);
}

// Ends the block, out of the kernel thread that runs.
[[noreturn]] inline void leave(Block* block) {
    convmat_switch(&block->contexts[block->fiber], &block->contexts[CALLER]);
    __builtin_unreachable();
}

// Ends the block with an error; for kernel threads.
template <typename... Values>
[[noreturn]] __attribute__((noinline, cold)) void fail(const char* format, Values... values) {
    Block* block = here;
    say(block, "thread %u: ", block->running);
    say(block, format, values...);
    leave(block);
}

// As fail(), out of the host's signal handler: writes no message, as the handler's stack is small.
inline void fault(Launch* launch, i32 signal, u64 address) {
    launch->fault = nullptr;
    launch->fault_signal = signal;
    launch->fault_address = address;
    leave((Block*)launch->workspace);
}

inline void make_runnable(Block* block, u32 thread) {
    block->all[thread].waits.what = nullptr;
    block->runnable[block->runnable_count++] = thread;
}

static void fiber_main();

inline u32 new_fiber(Block* block) {
    if (block->idle_count) return block->idle[--block->idle_count];
    u32 fiber = block->fibers_used++;
    char* guard = (char*)block + STACKS_AT + fiber * (GUARD_BYTES + STACK_BYTES);
    if (fiber == block->stacks_guarded) {
        mprotect(guard, GUARD_BYTES, 0);
        block->stacks_guarded++;
    }
    prepare(&block->contexts[fiber], guard + GUARD_BYTES, STACK_BYTES, fiber_main);
    return fiber;
}

// Leaves the thread that runs, if any, to another one that can run, or to run_block() when there is none.
// A fiber that is `free` may start another thread itself, and then this returns at once.
__attribute__((noinline)) static void dispatch(Block* block, bool free) {
    u32 self = block->fiber, fiber = CALLER;
    if (block->runnable_count) {
        u32 count = block->runnable_count, window = block->window < count ? block->window : count;
        u32 at = count - 1 - random_below(block, window), thread = block->runnable[at];
        block->runnable[at] = block->runnable[--block->runnable_count];
        if (block->all[thread].fiber == NONE) block->all[thread].fiber = free ? self : new_fiber(block);
        fiber = block->all[thread].fiber;
        block->running = threadIdx.x = thread;
    }
    if (fiber == self) return;
    if (free) block->idle[block->idle_count++] = self;
    block->fiber = fiber;
    convmat_switch(&block->contexts[self], &block->contexts[fiber]);
}

static void fiber_main() {
    for (Block* block = here;;) {
        block->kernel(block->launch->arguments);
        block->all[block->running].ended = true;
        block->ended++;
        dispatch(block, true);
    }
}

// Makes the thread that runs wait until it is made runnable again.
inline void wait(Block* block, const Site& site) {
    u32 thread = block->running;
    block->all[thread].waits = site;
    dispatch(block, false);
}

inline u32 warp_size(const Block* block, u32 warp) {
    u32 rest = block->threads - warp * WARP;
    return rest < WARP ? rest : WARP;
}

// Brings the lanes of a warp together. Each offers a value of its own; the last to arrive calls
// `perform` with all of them, which may write results into the offers.
template <typename Offer>
void meet(const Site& site, Offer& mine, void (*perform)(Offer* const* lanes, u32 count)) {
    Block* block = here;
    u32 thread = block->running, lanes = warp_size(block, thread / WARP);
    Warp& warp = block->warps[thread / WARP];
    if (!warp.arrived) {
        warp.site = site;
        warp.mixed = false;
    } else if (!same(warp.site, site)) {
        warp.mixed = true;
    }
    warp.offers[thread % WARP] = &mine;
    if (++warp.arrived < lanes || warp.mixed) return wait(block, site);
    warp.arrived = 0;
    {
        PAUSED;
        perform((Offer* const*)warp.offers, lanes);
    }
    for (u32 i = 0; i < lanes; ++i) {
        u32 other = thread / WARP * WARP + (block->upwards ? lanes - 1 - i : i);
        if (other != thread) make_runnable(block, other);
    }
}

// Lets all threads go on if they have reached the same barrier.
inline bool release_barrier(Block* block) {
    const Site& first = block->all[0].waits;
    for (u32 i = 0; i < block->threads; ++i) {
        const Thread& thread = block->all[i];
        if (thread.ended || thread.waits.what != BARRIER || !same(thread.waits, first)) return false;
    }
    for (u32 i = 0; i < block->threads; ++i)
        make_runnable(block, block->upwards ? block->threads - 1 - i : i);
    block->barrier_passed = ++block->clock;
    return true;
}

// Says how many threads wait where, when none can go on.
inline void describe_waiting(Block* block) {
    say(block, "not all threads come together: ");
    const char* separator = "";
    for (u32 i = 0; i < block->threads; ++i) {
        const Site& site = block->all[i].waits;
        u32 count = 0;
        bool seen = block->all[i].ended;
        for (u32 j = 0; j < block->threads && !seen; ++j) {
            if (block->all[j].ended || !same(block->all[j].waits, site)) continue;
            seen = j < i;
            ++count;
        }
        if (seen) continue;
        say(block, "%s%u wait in %s at %s:%d", separator, count, site.what, site.file, site.line);
        separator = ", ";
    }
    if (block->ended) say(block, ", %u have ended", block->ended);
}

// For what touches shared memory outside of arrays.
#define UNCHECKED __attribute__((no_sanitize("thread"), noinline))

#ifdef CONVMAT_SIMULATOR_PROFILE
// Writes an access of the running thread down, if it is to device or shared memory.
UNCHECKED inline void record(Kind kind, u64 address, u32 bytes, u32 site) {
    Block* block = here;
    if (!block || block->pauses) return;
    Launch* launch = block->launch;
    bool shared = address - (u64)arena(block) < ARENA_BYTES;
    if (kind != MEETING && !shared) {
        // Stacks and arguments are none of its memory.
        if (address - (u64)block < WORKSPACE_BYTES) return;
        if (address - launch->memory_start >= launch->memory_end - launch->memory_start) return;
    }
    if (launch->record_count == launch->record_capacity) launch->spill(launch);
    u16 thread = (u16)(block->running | (shared ? SHARED_BIT : 0));
    launch->records[launch->record_count++] = Record{address, site, thread, (u8)bytes, kind};
}
#endif
#ifdef SEES_ACCESSES
UNCHECKED inline Pause::Pause() { here->pauses++; }
UNCHECKED inline Pause::~Pause() { here->pauses--; }
#endif

// The memory of one shared array, for which `key` stands.
UNCHECKED inline void* shared(const void* key, u64 bytes) {
    Block* block = here;
    for (u32 i = 0; i < block->arrays_used; ++i)
        if (block->arrays[i].key == key) return block->arrays[i].at;
    block->shared_bytes += bytes;
    u32 most = block->launch->most_shared_bytes;
    if (block->shared_bytes > most)
        fail("%llu bytes of shared memory are more than %u", block->shared_bytes, most);
    if (block->arrays_used == MOST_ARRAYS) fail("more than %u shared arrays", MOST_ARRAYS);
    u64 padded = (bytes + RED_ZONE + 127) / 128 * 128;
    char* at = arena(block) + block->arena_used;
    if (block->arena_used + padded > ARENA_BYTES) fail("too much shared memory for the simulator");
    __builtin_memset(at, POISON, padded);
#ifdef CONVMAT_SIMULATOR_SANITIZER
    __builtin_memset(cells(block) + block->arena_used, 0, bytes * sizeof(Cell));
#endif
    block->arena_used += padded;
    block->arrays[block->arrays_used++] = Array{key, at, bytes};
    return at;
}
// The shared array that has all of these bytes; null if none has.
UNCHECKED inline const Array* array_of(const void* at, u64 bytes) {
    Block* block = here;
    for (u32 i = 0; i < block->arrays_used; ++i) {
        const Array& array = block->arrays[i];
        if (at >= array.at && (const char*)at + bytes <= array.at + array.bytes) return &array;
    }
    return nullptr;
}

// What can only be seen when all threads have ended.
UNCHECKED inline void check_end(Block* block) {
    for (u32 i = 0; i < block->arrays_used; ++i) {
        const Array& array = block->arrays[i];
        for (u64 at = array.bytes; at < array.bytes + RED_ZONE; ++at)
            if ((u8)array.at[at] != POISON)
                return say(block, "wrote %llu bytes past the end of a shared array of %llu bytes",
                           at - array.bytes, array.bytes);
    }
    for (u32 i = 0; i < block->threads; ++i)
        if (block->all[i].oldest != NONE)
            return say(block, "thread %u: ended without waiting for its asynchronous copies", i);
}

inline const char* cause(i32 signal) {
    switch (signal) {
        case 8: return "division by zero";
        case 4: case 5: return "undefined behaviour";
        default: return "access out of bounds";
    }
}

inline void begin(Block* block, Launch* launch, void (*kernel)(const void*)) {
    if (block->layout != WORKSPACE_BYTES) {
        mprotect(arena(block) - GUARD_BYTES, GUARD_BYTES, 0);
        mprotect(arena(block) + ARENA_BYTES, GUARD_BYTES, 0);
        block->layout = WORKSPACE_BYTES;
    }
    block->launch = launch;
    block->kernel = kernel;
    block->state = launch->seed | 1;
    block->threads = launch->threads;
    // Any thread next, or warp by warp: what one order hides the other may show.
    u32 policy = random_below(block, 4);
    block->window = policy < 2 ? WARP : MOST_THREADS;
    block->upwards = policy == 0;
    block->ended = block->runnable_count = block->fibers_used = block->idle_count = 0;
    block->arrays_used = block->copies_used = block->pauses = 0;
    block->joined = 0;
    block->arena_used = block->shared_bytes = 0;
    block->free_copy = NONE;
    for (u32 i = 0; i < block->threads; ++i) {
        block->all[i] = Thread{NONE, false, {nullptr, nullptr, 0}, 0, NONE, NONE};
        block->runnable[i] = block->upwards ? block->threads - 1 - i : i;
    }
    block->runnable_count = block->threads;
    block->begun = block->barrier_passed = block->clock = launch->clock + 1;
    block->allocation = 0;
    block->gap_start = block->gap_bytes = 0;
    for (u32 i = 0; i * WARP < block->threads; ++i) {
        block->warps[i].arrived = 0;
        block->warps[i].passed = block->clock;
    }
    block->fiber = CALLER;
}

// Returns whether the block ran to its end; if not, the launch has a message.
inline bool run_block(Launch* launch, void (*kernel)(const void*)) {
    Block* block = (Block*)launch->workspace;
    launch->message[0] = 0;
    launch->fault_signal = 0;
    if (launch->workspace_bytes < WORKSPACE_BYTES || launch->threads > MOST_THREADS) {
        __builtin_snprintf(launch->message, sizeof(launch->message), "workspace or block size");
        return false;
    }
    begin(block, launch, kernel);
    here = block;
    gridDim = {launch->grid[0], launch->grid[1], launch->grid[2]};
    blockIdx = {launch->block[0], launch->block[1], launch->block[2]};
    blockDim = {launch->threads, 1, 1};
    threadIdx = {0, 0, 0};
    launch->fault = fault;
    while (block->ended < block->threads && !launch->message[0] && !launch->fault_signal) {
        if (!block->runnable_count && !release_barrier(block)) {
            describe_waiting(block);
            break;
        }
        block->fiber = CALLER;
        dispatch(block, false);
    }
    launch->fault = nullptr;
    if (launch->fault_signal) say(block, "thread %u: %s", block->running, cause(launch->fault_signal));
    if (!launch->message[0]) check_end(block);
    launch->shared_bytes = block->shared_bytes;
    launch->clock = block->clock;
    // What is accessed from here on is not the kernel's.
    here = nullptr;
    return !launch->message[0];
}

}  // namespace simulator

// Compiled with -fsanitize=thread, every access calls one of these.
#ifdef SEES_ACCESSES
#define ACCESS(name, kind, bytes)                                                                      \
    extern "C" UNCHECKED void __tsan_##name(u64 address) {                                             \
        simulator::record(simulator::kind, address, bytes, (u32)(u64)__builtin_return_address(0));     \
    }
#define ACCESSES(what, kind)                                                                           \
    ACCESS(what##1, kind, 1) ACCESS(what##2, kind, 2) ACCESS(what##4, kind, 4)                         \
    ACCESS(what##8, kind, 8) ACCESS(what##16, kind, 16) ACCESS(unaligned_##what##2, kind, 2)           \
    ACCESS(unaligned_##what##4, kind, 4) ACCESS(unaligned_##what##8, kind, 8)                          \
    ACCESS(unaligned_##what##16, kind, 16)                                                             \
    extern "C" UNCHECKED void __tsan_##what##_range(u64 address, u64 bytes) {                          \
        simulator::record(simulator::kind, address, (u32)bytes,                                        \
                          (u32)(u64)__builtin_return_address(0));                                      \
    }
ACCESSES(read, LOAD)
ACCESSES(write, STORE)
#undef ACCESSES
#undef ACCESS
extern "C" UNCHECKED void __tsan_init() {}
#endif
