//! The simulator finds what it says it finds: kernels with a planted mistake, next to the same kernels
//! without.

use std::sync::LazyLock;

use bytemuck::Pod;

use super::*;
use crate::device::cuda::skipped;

const MEMORY: u64 = 1 << 30;
const SEEDS: std::ops::Range<u64> = 0..6;

/// Fails, or skips the test, where there is no C++ compiler.
macro_rules! simulator {
    ($seed:expr) => {
        match simulator($seed) {
            Some(simulator) => simulator,
            None => return,
        }
    };
}

// After the macro, to see it.
mod blas;
mod calls;
mod large;
mod numbers;
mod profile;
mod sanitizer;
mod streams;

pub(super) fn setup(seed: u64) -> Setup {
    Setup {
        machine: Machine::default(),
        blas: false,
        seed,
        memory: MEMORY,
        watch: Watch::Nothing,
        profiling: None,
        ends: None,
    }
}

pub(super) fn set_up(setup: Setup) -> Option<Simulator> {
    let Setup { watch, machine, .. } = setup;
    let compiler = Compiler::find(watch, machine.capability);
    Some(Simulator::new(compiler.map_err(|reason| skipped(NAME, &reason)).ok()?, setup))
}

fn simulator(seed: u64) -> Option<Simulator> {
    static COMPILER: LazyLock<Result<Compiler, String>> =
        LazyLock::new(|| Compiler::find(Watch::Nothing, Machine::default().capability));
    let compiler = COMPILER.as_ref().map_err(|reason| skipped(NAME, reason)).ok()?;
    Some(Simulator::new(compiler.clone(), setup(seed)))
}

fn image(simulator: &Simulator, text: &str) -> Vec<u8> {
    let text = format!("#include \"element.cuh\"\n{text}");
    match simulator.compile(&Unit { file: "test.cu", text }) {
        Ok(image) => image,
        Err(CompileFailure { log }) => panic!("{log}"),
    }
}

fn kernel(simulator: &Simulator, text: &str, entry: &str) -> Box<dyn Kernel> {
    simulator.load(&image(simulator, text), entry).unwrap()
}

struct Buffer<'a> {
    simulator: &'a Simulator,
    address: u64,
    bytes: usize,
}

impl Buffer<'_> {
    fn fresh(simulator: &Simulator, bytes: usize) -> Buffer<'_> {
        let address = simulator.allocate(bytes).unwrap().expect("memory for a test");
        Buffer { simulator, address, bytes }
    }

    fn of<'a, T: Pod>(simulator: &'a Simulator, values: &[T]) -> Buffer<'a> {
        let buffer = Buffer::fresh(simulator, size_of_val(values));
        // SAFETY: the buffer has the size of the values.
        unsafe { simulator.upload(bytemuck::cast_slice(values), buffer.address).unwrap() };
        buffer
    }

    fn read<T: Pod>(&self) -> Vec<T> {
        let mut values = vec![T::zeroed(); self.bytes / size_of::<T>()];
        let to = bytemuck::cast_slice_mut(&mut values);
        // SAFETY: the values have the size of the buffer.
        unsafe { self.simulator.download(self.address, to).unwrap() };
        values
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        // SAFETY: from allocate(), and nothing uses it any more.
        unsafe { self.simulator.free(self.address, self.bytes) };
    }
}

/// Arguments are 64 bits each here.
fn launch(kernel: &dyn Kernel, blocks: u32, threads: u32, arguments: &[u64]) -> Result<()> {
    // SAFETY: the tests pass buffers of the right size, or see that the simulator objects.
    unsafe { kernel.launch([blocks, 1, 1], threads, bytemuck::cast_slice(arguments)) }
}

#[track_caller]
fn reason(result: Result<()>) -> String {
    result.expect_err("the mistake is found").to_string()
}

#[track_caller]
fn assert_contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

const TILED: &str = r"
struct Args { const f32 *a, *b; f32* c; i64 n; };
KERNEL(product, Args, 256) {
    SHARED(f32, left, 256);
    SHARED(f32, right, 256);
    int n = (int)args.n, x = threadIdx.x % 16, y = threadIdx.x / 16;
    int row = blockIdx.x / (n / 16) * 16 + y, column = blockIdx.x % (n / 16) * 16 + x;
    f32 sum = 0;
    for (int k = 0; k < n; k += 16) {
        left[y * 16 + x] = args.a[row * n + k + x];
        right[y * 16 + x] = args.b[(k + y) * n + column];
        FIRST;
        for (int i = 0; i < 16; ++i) sum += left[y * 16 + i] * right[i * 16 + x];
        SECOND;
    }
    args.c[row * n + column] = sum;
}";

fn tiled_product(first: &str, second: &str) -> Option<usize> {
    const N: usize = 64;
    let source = format!("#define FIRST {first}\n#define SECOND {second}\n{TILED}");
    let a: Vec<f32> = (0..N * N).map(|i| (i * 7 % 11) as f32).collect();
    let b: Vec<f32> = (0..N * N).map(|i| (i * 5 % 13) as f32).collect();
    let expected: Vec<f32> =
        (0..N * N).map(|i| (0..N).map(|k| a[i / N * N + k] * b[k * N + i % N]).sum()).collect();
    let image = image(&simulator(0)?, &source);
    let mut wrong = 0;
    for seed in SEEDS {
        let simulator = simulator(seed)?;
        let kernel = simulator.load(&image, "product").unwrap();
        let [a, b] = [&a, &b].map(|values| Buffer::of(&simulator, values));
        let c = Buffer::fresh(&simulator, 4 * N * N);
        let arguments = [a.address, b.address, c.address, N as u64];
        launch(&*kernel, (N / 16 * N / 16) as u32, 256, &arguments).unwrap();
        wrong += usize::from(c.read::<f32>() != expected);
    }
    Some(wrong)
}

#[test]
fn a_missing_barrier_gives_a_wrong_result() {
    let Some(wrong) = tiled_product("barrier()", "barrier()") else { return };
    assert_eq!(wrong, 0, "with both barriers");
    assert_ne!(tiled_product("barrier()", ""), Some(0), "without the second");
    assert_ne!(tiled_product("", "barrier()"), Some(0), "without the first");
}

#[test]
fn accesses_out_of_bounds_are_errors() {
    let simulator = simulator!(0);
    let kernel = kernel(
        &simulator,
        "struct Args { f32* x; i64 from, to; };
         KERNEL(move, Args, 64) { if (threadIdx.x == 5) args.x[args.to] = args.x[args.from]; }",
        "move",
    );
    let x = Buffer::of(&simulator, &[1f32; 100]);
    let go = |from: i64, to: i64| launch(&*kernel, 3, 64, &[x.address, from as u64, to as u64]);
    go(99, 0).unwrap();
    let read = reason(go(100, 0));
    assert_contains(&read, &["simulator: kernel move failed", "thread 5: access out of bounds"]);
    assert_contains(&read, &["400 bytes from the start of an allocation of 400"]);
    assert_contains(&reason(go(0, 103)), &["412 bytes from the start"]);
    assert_contains(&reason(go(0, 1 << 40)), &["near no allocation"]);
    // Before the start lie bytes of the same page.
    assert_contains(&reason(go(0, -1)), &["just before or after an allocation of 400 bytes"]);
    // A mistake is reported once, and leaves the simulator in working order.
    go(99, 0).unwrap();
    assert_eq!(x.read::<f32>(), [1.; 100]);
}

#[test]
fn a_write_past_a_shared_array_is_an_error() {
    let simulator = simulator!(0);
    let kernel = kernel(
        &simulator,
        "struct Args { f32* x; i64 at; };
         KERNEL(inside, Args, 64) {
             SHARED(f32, part, 64);
             part[threadIdx.x + args.at] = 1;
             barrier();
             args.x[0] = part[63];
         }",
        "inside",
    );
    let x = Buffer::fresh(&simulator, 4);
    launch(&*kernel, 1, 64, &[x.address, 0]).unwrap();
    let past = reason(launch(&*kernel, 1, 64, &[x.address, 1]));
    assert_contains(&past, &["0 bytes past the end of a shared array of 256 bytes"]);
}

#[test]
fn more_shared_memory_than_a_block_has_is_an_error() {
    let simulator = simulator!(0);
    let source = |count: u32| {
        format!(
            "struct Args {{ i64 unused; }};
             KERNEL(large, Args, 64) {{ SHARED(f32, part, {count}); part[threadIdx.x] = 1; }}"
        )
    };
    launch(&*kernel(&simulator, &source(12288), "large"), 1, 64, &[0]).unwrap();
    let larger = launch(&*kernel(&simulator, &source(12289), "large"), 1, 64, &[0]);
    assert_contains(&reason(larger), &["49156 bytes of shared memory"]);
}

#[test]
fn what_was_not_written_reads_as_nan() {
    let simulator = simulator!(0);
    let kernel = kernel(
        &simulator,
        "struct Args { f32* y; i64 n; };
         KERNEL(fill, Args, 64) {
             SHARED(f32, part, 64);
             if (threadIdx.x < args.n) part[threadIdx.x] = 1;
             args.y[threadIdx.x] = part[threadIdx.x];
         }",
        "fill",
    );
    // Twice each, since memory is used again.
    for _ in 0..2 {
        let y = Buffer::fresh(&simulator, 256);
        launch(&*kernel, 1, 64, &[y.address, 60]).unwrap();
        let nans: Vec<usize> =
            y.read::<f32>().iter().enumerate().filter(|y| y.1.is_nan()).map(|y| y.0).collect();
        assert_eq!(nans, [60, 61, 62, 63]);
    }
    for _ in 0..2 {
        let y = Buffer::fresh(&simulator, 256);
        assert!(y.read::<f32>().iter().all(|y| y.is_nan()));
        // SAFETY: the whole buffer.
        unsafe { simulator.clear(y.address, y.bytes).unwrap() };
        assert_eq!(y.read::<f32>(), [0.; 64]);
    }
}

const DIVERGENT: &str = r"
struct Args { f32* x; };
KERNEL(some, Args, 64) {
    if (threadIdx.x < 40) barrier();
}
KERNEL(two, Args, 64) {
    if (threadIdx.x < 40)
        barrier();
    else
        barrier();
}
KERNEL(lanes, Args, 64) {
    f32 x = 1;
    if (threadIdx.x % 32 < 8)
        x += shuffle_xor(x, 1);
    else
        x += shuffle_down(x, 1);
    args.x[threadIdx.x] = x;
}
KERNEL(missing, Args, 64) {
    if (threadIdx.x == 33) return;
    args.x[threadIdx.x] = (f32)warp_ballot(true);
}
KERNEL(mixed, Args, 64) {
    if (threadIdx.x == 33)
        barrier();
    else
        warp_barrier();
    if (threadIdx.x < 32) barrier();
}
KERNEL(part, Args, 64) {
    f32 d[4] = {0, 0, 0, 0};
    u32 a[4] = {0, 0, 0, 0}, b[2] = {0, 0};
    mma_f16(d, a, b);
    args.x[threadIdx.x] = d[0];
}
KERNEL(aligned, Args, 64) {
    SHARED(u16, tile, 1024);
    u32 a[4];
    load_matrices(a, tile + threadIdx.x % 32 * 8 + 4);
    args.x[threadIdx.x] = (f32)a[0];
}
KERNEL(global, Args, 64) {
    u32 a[4];
    load_matrices(a, args.x);
    args.x[threadIdx.x] = (f32)a[0];
}";

#[test]
fn threads_that_do_not_come_together_are_an_error() {
    let image = image(&simulator!(0), DIVERGENT);
    for seed in SEEDS {
        let simulator = simulator!(seed);
        let x = Buffer::of(&simulator, &[0f32; 64]);
        let fails = |entry: &str, threads: u32| {
            let kernel = simulator.load(&image, entry).unwrap();
            reason(launch(&*kernel, 1, threads, &[x.address]))
        };
        assert_contains(
            &fails("some", 64),
            &["block [0, 0, 0]", "40 wait in barrier at unit.cpp:5", "24 have ended"],
        );
        assert_contains(
            &fails("two", 64),
            &["40 wait in barrier at unit.cpp:9", "24 wait in barrier at unit.cpp:11"],
        );
        assert_contains(
            &fails("lanes", 64),
            &["16 wait in shuffle_xor at unit.cpp:16", "48 wait in shuffle_down at unit.cpp:18"],
        );
        assert_contains(
            &fails("missing", 64),
            &["31 wait in warp_ballot at unit.cpp:23", "33 have ended"],
        );
        assert_contains(
            &fails("mixed", 64),
            &["1 wait in barrier", "31 wait in warp_barrier", "32 wait in barrier"],
        );
        assert_contains(&fails("part", 40), &["mma_f16 in a warp of fewer than 32 threads"]);
        assert_contains(&fails("aligned", 64), &["no multiple of 16"]);
        assert_contains(&fails("global", 64), &["not in shared memory"]);
    }
}

const COPIES: &str = r"
struct Args { const f32* x; f32* y; i64 left; };
KERNEL(copy, Args, 32) {
    SHARED(f32, tile, 64);
    u32 t = threadIdx.x;
    tile[t] = tile[t + 32] = 5;
    barrier();
    if (t < 8) copy_async_16(tile + 4 * t, args.x + 4 * t, t != 7);
    copy_async_commit();
    copy_async_4(tile + 32 + t, args.x + 32 + t, true);
    copy_async_commit();
    if (args.left == 1) copy_async_wait<1>();
    if (args.left == 0) copy_async_wait<0>();
    barrier();
    args.y[t] = tile[t];
    args.y[t + 32] = tile[t + 32];
    copy_async_wait<0>();
}
KERNEL(forget, Args, 32) {
    SHARED(f32, tile, 32);
    copy_async_4(tile + threadIdx.x, args.x, true);
    copy_async_commit();
    copy_async_wait<1>();
}
KERNEL(misaligned, Args, 32) {
    SHARED(f32, tile, 32);
    copy_async_16(tile + 1, args.x, true);
}
KERNEL(elsewhere, Args, 32) { copy_async_16(args.y, args.x, true); }
KERNEL(beyond, Args, 32) {
    SHARED(f32, tile, 32);
    copy_async_4(tile + threadIdx.x, args.x + 64 + threadIdx.x, false);
    copy_async_4(tile + threadIdx.x, args.x + 33 + threadIdx.x, true);
    copy_async_commit();
    copy_async_wait<0>();
}";

#[test]
fn copies_in_the_background_land_at_the_wait() {
    let simulator = simulator!(0);
    let image = image(&simulator, COPIES);
    let values: [f32; 64] = std::array::from_fn(|i| 100. + i as f32);
    let x = Buffer::of(&simulator, &values);
    let y = Buffer::fresh(&simulator, 256);
    let go = |entry: &str, left: u64| {
        let kernel = simulator.load(&image, entry).unwrap();
        launch(&*kernel, 1, 32, &[x.address, y.address, left])
    };
    for left in 0..3 {
        go("copy", left).unwrap();
        let y = y.read::<f32>();
        // Neither what was there before nor what will be.
        let landed = |range: std::ops::Range<usize>| y[range.clone()] == values[range];
        assert!(y[28..32].iter().all(|&y| if left < 2 { y == 0. } else { y.is_nan() }));
        assert_eq!(landed(0..28), left < 2);
        assert_eq!(landed(32..64), left < 1);
        assert_eq!(y[32..].iter().all(|y| y.is_nan()), left >= 1);
    }
    assert_contains(&reason(go("forget", 0)), &["without waiting for its asynchronous copies"]);
    assert_contains(&reason(go("misaligned", 0)), &["misaligned"]);
    assert_contains(&reason(go("elsewhere", 0)), &["not in shared memory"]);
    // The source is read by valid copies only.
    assert_contains(
        &reason(go("beyond", 0)),
        &["thread 31: access out of bounds", "256 bytes from the start"],
    );
}

#[test]
fn faults_of_the_processor_are_errors() {
    let simulator = simulator!(0);
    let image = image(
        &simulator,
        r"
struct Args { i64* x; i64 by; };
KERNEL(quotient, Args, 64) { args.x[threadIdx.x] = (i64)(threadIdx.x + 1) / args.by; }
__attribute__((noinline)) i64 dive(i64 n) {
    volatile char space[1000];
    space[n % 1000] = 1;
    return n == 0 ? space[0] : dive(n - 1) + space[n % 1000];
}
KERNEL(stack, Args, 64) { args.x[threadIdx.x] = dive(args.by); }",
    );
    let x = Buffer::fresh(&simulator, 8 * 64);
    let go = |entry: &str, by: u64| {
        let kernel = simulator.load(&image, entry).unwrap();
        launch(&*kernel, 1, 64, &[x.address, by])
    };
    go("quotient", 2).unwrap();
    assert_eq!(x.read::<i64>()[63], 32);
    if cfg!(target_arch = "x86_64") {
        assert_contains(&reason(go("quotient", 0)), &["division by zero"]);
    }
    go("stack", 10).unwrap();
    assert_contains(&reason(go("stack", 1000)), &["access out of bounds"]);
    go("quotient", 2).unwrap();
}

const SANITIZED: &str = r"
struct Args { f32* x; i64 at; };
KERNEL(move, Args, 1) { store_pack<f32, 4>(args.x, load_pack<f32, 4>(args.x + args.at)); }
KERNEL(next, Args, 1) { args.x[0] = (f32)((i32)args.at + 1); }
KERNEL(inside, Args, 1) {
    SHARED(f32, part, 8);
    part[0] = 1;
    args.x[0] = part[args.at];
}";

/// Kernels run with a right and a wrong argument.
fn sanitized(watch: Watch, message: &str, cases: &[(&str, u64, u64)]) {
    let plain = simulator!(0);
    let watched = set_up(Setup { watch, ..setup(0) }).unwrap();
    assert_ne!(watched.toolchain(), plain.toolchain());
    let image = image(&watched, SANITIZED);
    let x = Buffer::of(&watched, &[1f32; 16]);
    for &(entry, right, wrong) in cases {
        let kernel = watched.load(&image, entry).unwrap();
        let go = |at| launch(&*kernel, 1, 1, &[x.address, at]).and_then(|()| watched.synchronize());
        go(right).unwrap();
        assert_contains(&reason(go(wrong)), &[message]);
    }
}

#[test]
fn undefined_behaviour_is_an_error_when_asked_for() {
    let cases = [("move", 4, 5), ("next", 5, 0x7fff_ffff), ("inside", 7, 8)];
    sanitized(Watch::Undefined, "thread 0: undefined behaviour", &cases);
}

#[test]
fn an_unknown_sanitizer_or_compiler_is_an_error() {
    assert_contains(&Watch::named("thread").unwrap_err(), &["\"thread\"", "accesses"]);
    assert_contains(
        &Compiler::new("no-such-compiler", Watch::Nothing, 80).unwrap_err(),
        &["no-such-compiler"],
    );
}

/// The same test, in a process of its own, is what gets into trouble.
#[test]
fn faults_outside_of_kernels_go_where_they_went_before() {
    const CHILD: &str = "CONVMAT_TEST_OVERFLOW";
    #[allow(unconditional_recursion)]
    fn overflow(n: u64) -> u64 {
        std::hint::black_box(&n);
        overflow(n + 1) + std::hint::black_box(n)
    }
    if std::env::var_os(CHILD).is_some() {
        let simulator = simulator(0).unwrap();
        let source = "struct Args { f32* x; }; KERNEL(at, Args, 1) { args.x[0] = 1; }";
        reason(launch(&*kernel(&simulator, source, "at"), 1, 1, &[64]));
        println!("{}", overflow(0));
        return;
    }
    let _ = simulator!(0);
    let (_, module) = module_path!().split_once("::").unwrap();
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture"])
        .arg(format!("{module}::faults_outside_of_kernels_go_where_they_went_before"))
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert_contains(&String::from_utf8_lossy(&output.stderr), &["has overflowed its stack"]);
}
