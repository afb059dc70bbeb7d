// What can be seen of a block: every access of its threads to global and shared memory, in the order of each
// thread, and how often all else is done. When it is profiled that is written down, and the host makes sense
// of it (src/device/cuda/profile); sanitizer.h looks at each access at once.
#pragma once

namespace simulator {

// Mirrored by the host.
enum Kind : u8 {
    LOAD,
    STORE,
    ATOMIC,
    // Asynchronous copies: what they read, through the nearest cache or past it, and what they write.
    COPY_LOAD,
    COPY_LOAD_PAST_L1,
    COPY_STORE,
    // A row that a lane gives to load_matrices().
    MATRIX_ROW,
    // A barrier of the block.
    MEETING,
    // By load(), which promises that nothing writes there meanwhile. For the sanitizer alone.
    LOAD_CONSTANT,
};
enum Count : u32 { FUSED_F32, FUSED_F64, MMA_F16, MMA_BF16, MMA_TF32, MMA_F64, EXCHANGES, COUNTS = 8 };

constexpr u16 SHARED_BIT = 1 << 15;

struct Record {
    u64 address;
    // Where in the kernel: the lower half of a return address.
    u32 site;
    // With SHARED_BIT if it is to shared memory.
    u16 thread;
    u8 bytes;
    Kind kind;
};

// What the sanitizer knows of a byte. Times are a clock's that goes on at each barrier.
struct Cell {
    u32 written;   // NEVER, or when: the host's writes are older than all launches
    u32 read;
    u32 constant;  // when load() read it
    u16 writer, reader;
};
constexpr u32 NEVER = 0;

// An allocation of device memory, in its accessible pages. Mirrored by the host, as Cell is.
struct Allocation {
    u64 pages, start, end, pages_end;
    Cell* cells;
};

// What a block did between these times was done when it arrived at a counter. Mirrored by the host, too.
struct Arrival {
    u64 counter;
    u32 begun, arrived;
};

#if defined(CONVMAT_SIMULATOR_PROFILE) || defined(CONVMAT_SIMULATOR_SANITIZER)
#define SEES_ACCESSES
inline void record(Kind kind, u64 address, u32 bytes, u32 site);
struct Pause {
    Pause();
    ~Pause();
};
#endif

}  // namespace simulator

#ifdef CONVMAT_SIMULATOR_PROFILE
#define COUNT(what) (simulator::here->launch->counts[what]++)
#else
#define COUNT(what) ((void)0)
#endif
#ifdef SEES_ACCESSES
#define RECORD(...) simulator::record(__VA_ARGS__)
// What the simulator itself reads and writes meanwhile is not the kernel's.
#define PAUSED simulator::Pause pause
#else
#define RECORD(...) ((void)0)
#define PAUSED ((void)0)
#endif
