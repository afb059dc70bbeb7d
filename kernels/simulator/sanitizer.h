// Compiled to be watched, every access of a kernel thread is compared with those before it: who wrote each
// byte of shared and of global memory last, who read it, and whether a barrier lies between. Blocks of such
// launches run one after the other, so that one clock tells which accesses another one is ordered behind.
//
// Errors are:
//  - a race: two accesses of different threads, one of them a write and not both atomic, that no barrier
//    separates (between lanes of a warp: no warp_barrier() either, as shuffles order no memory); of
//    different blocks, any such two accesses of a launch;
//  - a read of a byte that nothing has written, as far as the host's copies and clearings, earlier launches
//    and this one's threads go;
//  - an access to what an asynchronous copy is bringing;
//  - reads through load() of what the same launch writes, before or after;
//  - accesses outside of shared arrays and of allocations.
#pragma once

#include "scheduler.h"

#ifdef CONVMAT_SIMULATOR_SANITIZER
namespace simulator {

// In place of the number of a thread, of which a block has 1024 at most.
enum Accessor : u16 {
    LANES = 1 << 12,  // several threads of a warp, whose number is in the lower bits
    WARPS = 2 << 12,  // threads of several warps
    BLOCKS = 3 << 12,
    ATOMICS = 4 << 12,  // any threads of the block, each by an atomic operation
    ATOMICS_OF_BLOCKS = 5 << 12,
    ARRIVING = 6 << 12,  // an asynchronous copy
};

// The last points in time behind which all accesses of the launch, of the block's other warps and of the warp
// are ordered.
struct Since {
    u32 launch, block, barrier, warp;
};

struct Bytes {
    Cell* cells;
    u64 start, size;  // of the array or allocation
    bool shared;
};

UNCHECKED inline Bytes find_bytes(u64 address, u32 bytes, const char* what) {
    Block* block = here;
    u64 in_arena = address - (u64)arena(block);
    if (in_arena < ARENA_BYTES) {
        for (u32 i = 0; i < block->arrays_used; ++i) {
            const Array& array = block->arrays[i];
            if (address >= (u64)array.at && address + bytes <= (u64)array.at + array.bytes)
                return {cells(block) + in_arena, (u64)array.at, array.bytes, true};
        }
        fail("%s of %u bytes outside of the shared arrays", what, bytes);
    }
    const Launch* launch = block->launch;
    const Allocation* at = launch->allocations + block->allocation;
    if (!launch->allocation_count) return {};
    if (address - at->pages >= at->pages_end - at->pages) {
        u32 low = 0, high = (u32)launch->allocation_count;
        while (high - low > 1) {
            u32 middle = (low + high) / 2;
            (launch->allocations[middle].pages <= address ? low : high) = middle;
        }
        at = launch->allocations + low;
        // Stacks and arguments are nobody else's.
        if (address - at->pages >= at->pages_end - at->pages) return {};
        block->allocation = low;
    }
    if (address < at->start || address + bytes > at->end)
        fail("%s of %u bytes, %lld bytes from the start of an allocation of %llu", what, bytes,
             (long long)(address - at->start), at->end - at->start);
    return {at->cells + (address - at->start), at->start, at->end - at->start, false};
}

template <typename... Values>
[[noreturn]] __attribute__((noinline, cold)) void
refuse(const Bytes& of, u64 address, const char* format, Values... values) {
    Block* block = here;
    const char* kind = of.shared ? "a shared array" : "an allocation";
    say(block, "thread %u: ", block->running);
    say(block, format, values...);
    say(block, ", at byte %llu of %s of %llu bytes", address - of.start, kind, of.size);
    convmat_switch(&block->contexts[block->fiber], &block->contexts[CALLER]);
    __builtin_unreachable();
}

// Who it was, for people.
struct Who {
    char text[48];
    Who(u32 time, u16 accessor, const Since& since) {
        u32 kind = accessor & 0xf000, low = accessor & 0xfff;
        if (time < since.block || kind == BLOCKS || kind == ATOMICS_OF_BLOCKS)
            __builtin_snprintf(text, sizeof(text), "another block");
        else if (kind == 0)
            __builtin_snprintf(text, sizeof(text), "thread %u", low);
        else if (kind == LANES)
            __builtin_snprintf(text, sizeof(text), "warp %u", low);
        else
            __builtin_snprintf(text, sizeof(text), kind == ATOMICS ? "atomics" : "several warps");
    }
};

// Whether what was done at this time is ordered before what the running thread does now.
UNCHECKED inline bool ordered(const Since& since, u32 time, u16 accessor, u32 thread) {
    if (time < since.launch) return true;
    if (time < since.block) return false;
    u32 kind = accessor & 0xf000;
    if (kind == BLOCKS || kind == ATOMICS_OF_BLOCKS) return false;
    if (time < since.barrier) return true;
    if (kind == 0 && accessor == thread) return true;
    u32 warp = kind == 0 ? accessor / WARP : kind == LANES ? accessor & 0xfffu : NONE;
    return warp == thread / WARP && time < since.warp;
}

UNCHECKED inline void note_read(Cell& cell, const Since& since, u32 now, u32 thread) {
    u32 kind = cell.reader & 0xf000;
    if (cell.read < since.launch)
        cell.reader = (u16)thread;
    else if (cell.read < since.block || kind == BLOCKS)
        cell.reader = BLOCKS;
    else if (cell.read < since.barrier || (kind == 0 && cell.reader == thread))
        cell.reader = (u16)thread;
    else if (kind != WARPS) {
        u32 warp = kind == LANES ? cell.reader & 0xfffu : cell.reader / WARP;
        if (warp != thread / WARP)
            cell.reader = WARPS;
        else
            cell.reader = (u16)(cell.read < since.warp ? thread : LANES | warp);
    }
    cell.read = now;
}

UNCHECKED inline void record(Kind kind, u64 address, u32 bytes, u32) {
    Block* block = here;
    if (!block || block->pauses || kind == MEETING) return;
    bool writes = kind == STORE || kind == COPY_STORE, atomic = kind == ATOMIC;
    const char* what = writes ? "write" : atomic ? "atomic operation" : "read";
    Bytes of = find_bytes(address, bytes, what);
    if (!of.cells) return;
    u32 thread = block->running, now = block->clock;
    Since since = {of.shared ? block->begun : block->launch->begun, block->begun, block->barrier_passed,
                   block->warps[thread / WARP].passed};
    if (kind == LOAD_CONSTANT && of.shared) refuse(of, address, "load() of shared memory");
    for (u32 i = 0; i < bytes; ++i) {
        Cell& cell = of.cells[i];
        u64 at = address + i;
        if (cell.writer == ARRIVING && cell.written != NEVER)
            refuse(of, at, "%s of what an asynchronous copy is bringing", what);
        if (!writes && cell.written == NEVER) refuse(of, at, "%s of what was never written", what);
        bool by_atomics = (cell.writer & 0xf000) == ATOMICS || cell.writer == ATOMICS_OF_BLOCKS;
        if (cell.written != NEVER && !(atomic && by_atomics) &&
            !ordered(since, cell.written, cell.writer, thread))
            refuse(of, at, "race: %s of what %s has written, no barrier between", what,
                   Who(cell.written, cell.writer, since).text);
        if (!writes && !atomic) {
            if (kind == LOAD_CONSTANT) {
                if (cell.written >= since.launch) refuse(of, at, "load() of what this launch has written");
                cell.constant = now;
            }
            note_read(cell, since, now, thread);
            continue;
        }
        if (!ordered(since, cell.read, cell.reader, thread))
            refuse(of, at, "race: %s of what %s has read, no barrier between", what,
                   Who(cell.read, cell.reader, since).text);
        if (!of.shared && cell.constant >= since.launch)
            refuse(of, at, "%s of what this launch has read by load()", what);
        bool of_blocks = cell.written >= since.launch &&
                         (cell.written < since.block || cell.writer == ATOMICS_OF_BLOCKS);
        if (atomic)
            cell.writer = by_atomics && of_blocks ? ATOMICS_OF_BLOCKS : ATOMICS;
        else
            cell.writer = kind == COPY_STORE ? (u16)ARRIVING : (u16)thread;
        cell.written = now;
    }
}

// The bytes of an asynchronous copy are there, and its thread's.
UNCHECKED inline void arrived(u64 address, u32 bytes) {
    Block* block = here;
    Bytes of = find_bytes(address, bytes, "asynchronous copy");
    for (u32 i = 0; i < bytes; ++i) {
        of.cells[i].writer = (u16)block->running;
        of.cells[i].written = block->clock;
    }
}

}  // namespace simulator
#endif
