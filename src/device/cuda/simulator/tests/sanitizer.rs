//! The sanitizer finds a planted fault of every kind, in every order of threads, and finds nothing where it is
//! mended.

use super::*;

const KERNELS: &str = r"
struct Args { f32 *x, *y; i64 wrong; };
KERNEL(warps, Args, 64) {
    SHARED(f32, part, 64);
    u32 t = threadIdx.x;
    part[t] = 0;
    barrier();
    part[t] = args.x[t];
    if (!args.wrong) barrier();
    args.y[t] = part[63 - t];
}
KERNEL(overwrite, Args, 64) {
    SHARED(f32, part, 64);
    u32 t = threadIdx.x;
    part[t] = args.x[t];
    barrier();
    f32 mine = part[63 - t];
    if (!args.wrong) barrier();
    part[t] = mine;
}
KERNEL(both_write, Args, 64) {
    SHARED(f32, part, 64);
    part[args.wrong ? threadIdx.x / 2 : threadIdx.x] = 1;
}
KERNEL(lanes, Args, 32) {
    SHARED(f32, part, 32);
    u32 t = threadIdx.x;
    part[t] = 0;
    warp_barrier();
    part[t] = args.x[t];
    // Shuffles bring lanes together and order no memory.
    if (args.wrong)
        shuffle(0, 0);
    else
        warp_barrier();
    args.y[t] = part[31 - t];
}
KERNEL(warp_of_several, Args, 64) {
    SHARED(f32, part, 64);
    u32 t = threadIdx.x;
    part[t] = 0;
    barrier();
    part[t] = args.x[t];
    // Enough for lanes, not for other warps.
    warp_barrier();
    args.y[t] = part[args.wrong ? 63 - t : t / 32 * 32 + 31 - t % 32];
}
KERNEL(blocks_write, Args, 32) {
    args.y[args.wrong ? threadIdx.x : blockIdx.x * 32 + threadIdx.x] = 1;
}
KERNEL(blocks_read, Args, 32) {
    u32 own = blockIdx.x * 32 + threadIdx.x;
    f32 sum = args.x[args.wrong ? 63 - own : own];
    args.x[own] = sum + 1;
}
KERNEL(blocks_later, Args, 32) {
    // The first block reads what the second does, and then its own.
    u32 own = blockIdx.x * 32 + threadIdx.x;
    f32 sum = args.x[own] + (args.wrong ? args.x[threadIdx.x] : 0.0f);
    barrier();
    sum += args.x[own];
    if (blockIdx.x == 0)
        args.x[own] = sum;
    else
        args.y[own] = sum;
}
KERNEL(barrier_of_a_block, Args, 64) {
    u32 t = threadIdx.x, at = blockIdx.x * 64;
    args.y[at % 64 + t] = 1;
    if (!args.wrong) barrier();
    args.y[at % 64 + 63 - t] += 1;
}
KERNEL(counters, Args, 32) {
    i32* counter = (i32*)args.x;
    atomic_add(counter, 1);
    if (args.wrong && blockIdx.x == 1 && threadIdx.x == 5) args.y[0] = (f32)*counter;
}
KERNEL(arrivals, Args, 32) {
    // Each block brings a part, and the last of those at a counter adds up all of them.
    u32 block = blockIdx.x, other = args.wrong ? 3 - block : block ^ 1;
    if (threadIdx.x == 5) args.x[block] = 1;
    i32* counters = (i32*)(args.y + 62);
    if (last_to_arrive(counters + block / 2, 2) && threadIdx.x == 0)
        args.y[block / 2] = args.x[block] + args.x[other];
}
KERNEL(part_of_a_tile, Args, 64) {
    SHARED(f32, part, 64);
    u32 t = threadIdx.x;
    if (t < 60) part[t] = 1;
    barrier();
    if (t < (args.wrong ? 61 : 60)) args.y[t] = part[t];
}
KERNEL(result, Args, 64) {
    if (threadIdx.x < 60) args.y[threadIdx.x] = args.wrong ? args.y[threadIdx.x] : 1;
}
KERNEL(half_an_element, Args, 32) {
    SHARED(u8, bytes, 64);
    bytes[2 * threadIdx.x] = 0;
    if (!args.wrong) bytes[2 * threadIdx.x + 1] = 0;
    args.y[threadIdx.x] = f16_to_f32(((u16*)bytes)[threadIdx.x]);
}
KERNEL(constant, Args, 32) {
    u32 t = threadIdx.x;
    f32* to = args.wrong ? args.x : args.y;
    f32 value = load(args.x + t);
    to[t] = value;
}
KERNEL(constant_of_own, Args, 32) {
    args.y[threadIdx.x] = 1;
    args.x[threadIdx.x] = args.wrong ? load(args.y + threadIdx.x) : args.y[threadIdx.x];
}
KERNEL(too_early, Args, 32) {
    SHARED(f32, part, 32);
    u32 t = threadIdx.x;
    copy_async_4(part + t, args.x + t, true);
    copy_async_commit();
    if (args.wrong) args.y[t] = part[t];
    copy_async_wait<0>();
    args.y[t] = part[t];
}
KERNEL(unseen_by_others, Args, 32) {
    SHARED(f32, part, 32);
    u32 t = threadIdx.x;
    copy_async_4(part + t, args.x + t, true);
    copy_async_commit();
    copy_async_wait<0>();
    if (!args.wrong) barrier();
    args.y[t] = part[31 - t];
    barrier();
}
KERNEL(into_what_is_read, Args, 64) {
    SHARED(f32, part, 64);
    u32 t = threadIdx.x;
    part[t] = 1;
    barrier();
    args.y[t] = part[63 - t];
    if (!args.wrong) barrier();
    copy_async_4(part + t, args.x + t, true);
    copy_async_commit();
    copy_async_wait<0>();
}
KERNEL(matrices, Args, 32) {
    SHARED(u16, tile, 256);
    u32 t = threadIdx.x, row[4];
    for (u32 i = 0; i < 8; ++i) tile[8 * t + i] = 0;
    if (!args.wrong) warp_barrier();
    load_matrices(row, tile + 8 * (31 - t));
    args.y[t] = (f32)row[0];
}
KERNEL(through_pointer, Args, 32) {
    SHARED(f32, part, 8);
    SHARED(f32, other, 8);
    const f32* from = part;
    if (threadIdx.x < 8) part[threadIdx.x] = other[threadIdx.x] = 1;
    barrier();
    if (threadIdx.x == 0) args.y[0] = from[args.wrong ? 8 : 7];
}
KERNEL(past_the_end, Args, 64) {
    if (threadIdx.x == 0) args.y[0] = args.x[args.wrong ? 65 : 64];
}";

/// A simulator with the sanitizer, where the compiler has it.
fn watched(seed: u64) -> Option<Simulator> {
    if simulator(seed)?.toolchain().contains("clang") {
        skipped(NAME, "Clang spells the flags differently");
        return None;
    }
    set_up(Setup { watch: Watch::Accesses, ..setup(seed) })
}

#[test]
fn faults_of_every_kind_are_found() {
    let cases = [
        ("warps", 1, 64, "race: "),
        ("overwrite", 1, 64, "race: "),
        ("both_write", 1, 64, "race: write of what thread "),
        ("lanes", 1, 32, "race: "),
        ("warp_of_several", 1, 64, "race: "),
        ("blocks_write", 2, 32, "race: write of what another block has written"),
        ("blocks_read", 2, 32, "race: "),
        ("blocks_later", 2, 32, "race: "),
        ("barrier_of_a_block", 1, 64, ""),
        ("counters", 2, 32, "race: "),
        ("arrivals", 4, 32, "race: "),
        (
            "part_of_a_tile",
            1,
            64,
            "thread 60: read of what was never written, at byte 240 of a shared array",
        ),
        ("result", 1, 64, "never written"),
        ("half_an_element", 1, 32, "never written"),
        ("constant", 1, 32, "write of what this launch has read by load()"),
        ("constant_of_own", 1, 32, "load() of what this launch has written"),
        ("too_early", 1, 32, "read of what an asynchronous copy is bringing"),
        ("unseen_by_others", 1, 32, ""),
        ("into_what_is_read", 1, 64, "race: "),
        ("matrices", 1, 32, ""),
        ("through_pointer", 1, 32, "read of 4 bytes outside of the shared arrays"),
        (
            "past_the_end",
            1,
            64,
            "read of 4 bytes, 260 bytes from the start of an allocation of 260",
        ),
    ];
    let Some(first) = watched(0) else { return };
    let image = image(&first, KERNELS);
    for seed in SEEDS {
        let Some(simulator) = watched(seed) else { return };
        for (entry, blocks, threads, message) in cases {
            let kernel = simulator.load(&image, entry).unwrap();
            let go = |wrong: u64| {
                let x = Buffer::of(&simulator, &[1f32; 65]);
                let y = Buffer::fresh(&simulator, 4 * 64);
                // SAFETY: its last bytes, for counters.
                unsafe { simulator.clear(y.address + 4 * 62, 8)? };
                launch(&*kernel, blocks, threads, &[x.address, y.address, wrong])?;
                simulator.synchronize()
            };
            go(0).unwrap_or_else(|error| panic!("{entry} with seed {seed}: {error}"));
            let Err(found) = go(1) else { panic!("{entry} with seed {seed}: nothing is found") };
            assert_contains(&found.to_string(), &[entry, "thread ", message]);
        }
    }
}

/// What launches leave is known to later ones, as are copies and clearings, of parts as well.
#[test]
fn memory_is_known_by_the_byte_from_launch_to_launch() {
    let Some(simulator) = watched(1) else { return };
    let image = image(
        &simulator,
        "struct Args { f32 *x, *y; i64 n; };
         KERNEL(copy, Args, 64) { if (threadIdx.x < args.n) args.y[threadIdx.x] = args.x[threadIdx.x]; }",
    );
    let copy = simulator.load(&image, "copy").unwrap();
    let [x, y, z] = [(); 3].map(|()| Buffer::fresh(&simulator, 256));
    let go = |from: &Buffer<'_>, to: &Buffer<'_>, n: u64| {
        launch(&*copy, 1, 64, &[from.address, to.address, n])?;
        simulator.synchronize()
    };
    let unwritten = |n: u64| {
        go(&x, &y, n).unwrap();
        assert_contains(&reason(go(&x, &y, n + 1)), &["never written", "of 256 bytes"]);
    };
    unwritten(0);
    // SAFETY: all of this is memory of the simulator.
    unsafe {
        simulator.upload(&[0; 40], x.address).unwrap();
        unwritten(10);
        simulator.clear(x.address + 40, 8).unwrap();
        unwritten(12);
        // A copy knows as much as what it is of.
        simulator.copy(x.address, z.address, 256).unwrap();
        go(&z, &y, 12).unwrap();
        assert_contains(&reason(go(&z, &y, 13)), &["never written", "at byte 48"]);
        go(&y, &z, 12).unwrap();
        simulator.upload(&[0; 256], x.address).unwrap();
        go(&x, &y, 63).unwrap();
        let mut all = [0; 256];
        let short = reason(simulator.download(y.address, &mut all));
        assert_contains(&short, &["download failed", "byte 252 of 256 was never written"]);
        simulator.download(y.address, &mut all[..252]).unwrap();
        // The same memory, taken anew.
        drop(y);
        let y = Buffer::fresh(&simulator, 256);
        assert_contains(&reason(simulator.download(y.address, &mut all[..1])), &["never written"]);
    }
}

/// The clock is set back before it ends, and nothing is forgotten but who was when.
#[test]
fn clocks_end() {
    let Some(simulator) = watched(2) else { return };
    let image = image(&simulator, KERNELS);
    let kernel = simulator.load(&image, "blocks_read").unwrap();
    let x = Buffer::of(&simulator, &[1f32; 65]);
    let go = |wrong: u64| {
        launch(&*kernel, 2, 32, &[x.address, 0, wrong])?;
        simulator.synchronize()
    };
    go(0).unwrap();
    *simulator.shared().clock.lock().unwrap() = u32::MAX - 1;
    go(0).unwrap();
    assert!(*simulator.shared().clock.lock().unwrap() < 100);
    assert_contains(&reason(go(1)), &["race: "]);
    assert_eq!(x.read::<f32>()[64], 1.0);
}
