// Compiled to be watched, every access of a kernel thread is compared with those before it: who wrote each
// byte of shared and of global memory last, who read it, and whether a barrier lies between. Blocks of such
// launches run one after the other, so that one clock tells which accesses another one is ordered behind.
//
// Errors are:
//  - a race: two accesses of different threads, one of them a write and not both atomic, that no barrier
//    separates (between lanes of a warp: no warp_barrier() either, as shuffles order no memory); of
//    different blocks, any such two accesses of a launch, but for what the last block to arrive at a counter
//    does after what the others did before;
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
    BY_LANES = 1 << 12,  // several threads of a warp, whose number is in the lower bits
    BY_WARPS = 2 << 12,  // threads of several warps
    BY_BLOCKS = 3 << 12,
    BY_ATOMICS = 4 << 12,  // any threads of the block, each by an atomic operation
    BY_ATOMICS_OF_BLOCKS = 5 << 12,
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
        const Array* array = array_of((const void*)address, bytes);
        if (!array) fail("%s of %u bytes outside of the shared arrays", what, bytes);
        return {cells(block) + in_arena, (u64)array->at, array->bytes, true};
    }
    // Stacks are nobody else's, nor are arguments, which lie between allocations.
    if (address - (u64)block < WORKSPACE_BYTES || address - block->gap_start < block->gap_bytes) return {};
    const Launch* launch = block->launch;
    const Allocation* all = launch->allocations;
    const Allocation* at = all + block->allocation;
    if (!launch->allocation_count) return {};
    if (address - at->pages >= at->pages_end - at->pages) {
        // Those before `low` begin no later.
        u32 low = 0, high = launch->allocation_count;
        while (low < high) {
            u32 middle = (low + high) / 2;
            if (all[middle].pages <= address)
                low = middle + 1;
            else
                high = middle;
        }
        if (low == 0 || address >= all[low - 1].pages_end) {
            block->gap_start = low ? all[low - 1].pages_end : 0;
            block->gap_bytes = (low < launch->allocation_count ? all[low].pages : ~0ull) - block->gap_start;
            return {};
        }
        at = all + low - 1;
        block->allocation = low - 1;
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
    leave(block);
}

// Who it was, for people.
struct Who {
    char text[48];
    Who(u32 time, u16 accessor, const Since& since) {
        u32 kind = accessor & 0xf000, low = accessor & 0xfff;
        if (time < since.block || kind == BY_BLOCKS || kind == BY_ATOMICS_OF_BLOCKS)
            __builtin_snprintf(text, sizeof(text), "another block");
        else if (kind == 0)
            __builtin_snprintf(text, sizeof(text), "thread %u", low);
        else if (kind == BY_LANES)
            __builtin_snprintf(text, sizeof(text), "warp %u", low);
        else
            __builtin_snprintf(text, sizeof(text), kind == BY_ATOMICS ? "atomics" : "several warps");
    }
};

// The running block has arrived at a counter.
UNCHECKED inline void note_arrival(u64 counter) {
    Block* block = here;
    Launch* launch = block->launch;
    if (launch->arrival_count == launch->arrival_capacity) fail("more arrivals than the sanitizer has room for");
    launch->arrivals[launch->arrival_count++] = Arrival{counter, block->begun, block->clock};
    if (block->last) block->joined = counter;
}

// Whether it was done by another block that had then to arrive at the counter at which this one was the last.
UNCHECKED inline bool joined(u32 time) {
    const Block* block = here;
    if (!block->joined) return false;
    const Launch* launch = block->launch;
    for (u32 i = 0; i < launch->arrival_count; ++i) {
        const Arrival& other = launch->arrivals[i];
        if (time >= other.begun && time < other.arrived && other.counter == block->joined) return true;
    }
    return false;
}

// Whether what was done at this time is ordered before what the running thread does now.
UNCHECKED inline bool ordered(const Since& since, u32 time, u16 accessor, u32 thread) {
    if (time < since.launch) return true;
    u32 kind = accessor & 0xf000;
    if (kind == BY_BLOCKS || kind == BY_ATOMICS_OF_BLOCKS) return false;
    if (time < since.block) return joined(time);
    if (time < since.barrier) return true;
    if (kind == 0 && accessor == thread) return true;
    u32 warp = kind == 0 ? accessor / WARP : kind == BY_LANES ? accessor & 0xfffu : NONE;
    return warp == thread / WARP && time < since.warp;
}

UNCHECKED inline void note_read(Cell& cell, const Since& since, u32 now, u32 thread) {
    u32 kind = cell.reader & 0xf000;
    if (cell.read < since.launch)
        cell.reader = (u16)thread;
    else if (cell.read < since.block || kind == BY_BLOCKS)
        cell.reader = BY_BLOCKS;
    else if (cell.read < since.barrier || (kind == 0 && cell.reader == thread))
        cell.reader = (u16)thread;
    else if (kind != BY_WARPS) {
        u32 warp = kind == BY_LANES ? cell.reader & 0xfffu : cell.reader / WARP;
        if (warp != thread / WARP)
            cell.reader = BY_WARPS;
        else
            cell.reader = (u16)(cell.read < since.warp ? thread : BY_LANES | warp);
    }
    cell.read = now;
}

// An access as the cells have it.
struct Access {
    Kind kind;
    bool writes, atomic;
    const char* what;
    u32 thread, now;
    Since since;
};

// Compares an access with what is known of a byte, and notes it.
UNCHECKED inline void visit(const Access& access, const Bytes& of, u64 address, Cell& cell) {
    const Since& since = access.since;
    const char* what = access.what;
    if (cell.written == NEVER) {
        if (!access.writes) refuse(of, address, "%s of what was never written", what);
    } else {
        if (cell.writer == ARRIVING)
            refuse(of, address, "%s of what an asynchronous copy is bringing", what);
        bool by_atomics = cell.writer == BY_ATOMICS || cell.writer == BY_ATOMICS_OF_BLOCKS;
        if (!(access.atomic && by_atomics) && !ordered(since, cell.written, cell.writer, access.thread))
            refuse(of, address, "race: %s of what %s has written, no barrier between", what,
                   Who(cell.written, cell.writer, since).text);
    }
    if (!access.writes && !access.atomic) {
        if (access.kind == LOAD_CONSTANT) {
            if (cell.written >= since.launch)
                refuse(of, address, "load() of what this launch has written");
            cell.constant = access.now;
        }
        return note_read(cell, since, access.now, access.thread);
    }
    if (!ordered(since, cell.read, cell.reader, access.thread))
        refuse(of, address, "race: %s of what %s has read, no barrier between", what,
               Who(cell.read, cell.reader, since).text);
    if (!of.shared && cell.constant >= since.launch)
        refuse(of, address, "%s of what this launch has read by load()", what);
    bool of_blocks = cell.written >= since.launch &&
                     (cell.written < since.block || cell.writer == BY_ATOMICS_OF_BLOCKS);
    if (access.atomic)
        cell.writer = of_blocks ? BY_ATOMICS_OF_BLOCKS : BY_ATOMICS;
    else
        cell.writer = access.kind == COPY_STORE ? (u16)ARRIVING : (u16)access.thread;
    cell.written = access.now;
}

// Whether the same is known of all bytes.
UNCHECKED inline bool alike(const Cell* cells, u32 count) {
    typedef u64 Words __attribute__((vector_size(16), may_alias));
    static_assert(sizeof(Cell) == sizeof(Words), "compared at once");
    const Words* words = (const Words*)cells;
    Words differences = words[0] ^ words[0];
    for (u32 i = 1; i < count; ++i) differences |= words[i] ^ words[0];
    return !(differences[0] | differences[1]);
}

UNCHECKED inline void record(Kind kind, u64 address, u32 bytes, u32) {
    Block* block = here;
    if (!block || block->pauses || kind == MEETING || !bytes) return;
    bool writes = kind == STORE || kind == COPY_STORE, atomic = kind == ATOMIC;
    const char* what = writes ? "write" : atomic ? "atomic operation" : "read";
    Bytes of = find_bytes(address, bytes, what);
    if (!of.cells) return;
    if (kind == LOAD_CONSTANT && of.shared) refuse(of, address, "load() of shared memory");
    u32 thread = block->running;
    Since since = {of.shared ? block->begun : block->launch->begun, block->begun, block->barrier_passed,
                   block->warps[thread / WARP].passed};
    Access access = {kind, writes, atomic, what, thread, block->clock, since};
    if (alike(of.cells, bytes)) {
        Cell cell = of.cells[0];
        visit(access, of, address, cell);
        for (u32 i = 0; i < bytes; ++i) of.cells[i] = cell;
    } else {
        for (u32 i = 0; i < bytes; ++i) visit(access, of, address + i, of.cells[i]);
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
