//! The simulator finds what it says it finds: kernels with a planted mistake, next to the same kernels
//! without.

use std::sync::LazyLock;

use bytemuck::Pod;
use half::{bf16, f16};

use super::*;

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

fn simulator(seed: u64) -> Option<Simulator> {
    static COMPILER: LazyLock<Result<Compiler, String>> = LazyLock::new(Compiler::find);
    match &*COMPILER {
        Ok(compiler) => Some(Simulator::new(compiler.clone(), seed, MEMORY)),
        Err(reason) => {
            let required = std::env::var("CONVMAT_REQUIRE").unwrap_or_default();
            assert!(!required.contains(NAME), "{reason}");
            eprintln!("skipped, because {reason}");
            None
        }
    }
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

/// `d = a·b` by one warp from row-major 16 x K and K x 8.
const FRAGMENTS: &str = r"
#define PAIR(from, i, step) ((u32)(from)[i] | (u32)(from)[(i) + (step)] << 16)
struct Args { const u16 *a, *b; f32* d; };
KERNEL(pairs, Args, 32) {
    u32 lane = threadIdx.x, g = lane / 4, t = SLIP(lane % 4);
    u32 a[4], b[2];
    f32 d[4] = {0, 0, 0, 0};
    for (int i = 0; i < 4; ++i) a[i] = PAIR(args.a, (g + i % 2 * 8) * 16 + 2 * t + i / 2 * 8, 1);
    for (int i = 0; i < 2; ++i) b[i] = PAIR(args.b, (2 * (lane % 4) + i * 8) * 8 + g, 8);
    MULTIPLY(d, a, b);
    for (int i = 0; i < 4; ++i) args.d[(g + i / 2 * 8) * 8 + 2 * (lane % 4) + i % 2] = d[i];
}
KERNEL(rows, Args, 32) {
    SHARED(u16, left, 256);
    SHARED(u16, right, 128);
    u32 lane = threadIdx.x;
    for (u32 i = lane; i < 256; i += 32) left[i] = args.a[i];
    for (u32 i = lane; i < 128; i += 32) right[i] = args.b[i];
    warp_barrier();
    u32 a[4], both[4], b[2];
    f32 d[4] = {0, 0, 0, 0};
    load_matrices(a, left + lane % 16 * 16 + SLIP(lane / 16) * 8);
    load_matrices_transposed(both, right + lane % 16 * 8);
    b[0] = both[0];
    b[1] = both[1];
    MULTIPLY(d, a, b);
    for (int i = 0; i < 4; ++i) args.d[(lane / 4 + i / 2 * 8) * 8 + 2 * (lane % 4) + i % 2] = d[i];
}
struct Words { const f32 *a, *b; f32* d; };
KERNEL(words, Words, 32) {
    u32 lane = threadIdx.x, g = lane / 4, t = SLIP(lane % 4);
    u32 a[4], b[2];
    f32 d[4] = {0, 0, 0, 0};
    for (int i = 0; i < 4; ++i) a[i] = to_tf32(args.a[(g + i % 2 * 8) * 8 + t + i / 2 * 4]);
    for (int i = 0; i < 2; ++i) b[i] = to_tf32(args.b[(lane % 4 + i * 4) * 8 + g]);
    mma_tf32(d, a, b);
    for (int i = 0; i < 4; ++i) args.d[(g + i / 2 * 8) * 8 + 2 * (lane % 4) + i % 2] = d[i];
}";

fn fragments<T: Pod>(multiply: &str, entry: &str, k: usize, from_f32: fn(f32) -> T) {
    let simulator = simulator!(3);
    let a: Vec<f32> = (0..16 * k).map(|i| (i * 7 % 17) as f32 - 8.).collect();
    let b: Vec<f32> = (0..k * 8).map(|i| (i * 11 % 19) as f32 - 9.).collect();
    let expected: Vec<f32> =
        (0..128).map(|i| (0..k).map(|j| a[i / 8 * k + j] * b[j * 8 + i % 8]).sum()).collect();
    let [left, right] = [&a, &b].map(|values| {
        Buffer::of(&simulator, &values.iter().map(|&x| from_f32(x)).collect::<Vec<T>>())
    });
    for (slip, right_result) in [("x", true), ("((x) ^ 1)", false)] {
        let d = Buffer::fresh(&simulator, 512);
        let source = format!("#define SLIP(x) {slip}\n#define MULTIPLY {multiply}\n{FRAGMENTS}");
        let kernel = kernel(&simulator, &source, entry);
        launch(&*kernel, 1, 32, &[left.address, right.address, d.address]).unwrap();
        assert_eq!(d.read::<f32>() == expected, right_result, "{multiply} {entry} with {slip}");
    }
}

#[test]
fn a_wrong_fragment_index_gives_a_wrong_product() {
    for entry in ["pairs", "rows"] {
        fragments("mma_f16", entry, 16, f16::from_f32);
        fragments("mma_bf16", entry, 16, bf16::from_f32);
    }
    fragments("mma_tf32", "words", 8, |x| x);
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
    args.x[threadIdx.x] = (f32)ballot(true);
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
            &["block [0, 0, 0]", "40 wait in barrier at test.cu:5", "24 have ended"],
        );
        assert_contains(
            &fails("two", 64),
            &["40 wait in barrier at test.cu:9", "24 wait in barrier at test.cu:11"],
        );
        assert_contains(
            &fails("lanes", 64),
            &["16 wait in shuffle_xor at test.cu:16", "48 wait in shuffle_down at test.cu:18"],
        );
        assert_contains(
            &fails("missing", 64),
            &["31 wait in ballot at test.cu:23", "33 have ended"],
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

#[test]
fn warps_exchange_values_as_on_the_device() {
    let image = image(
        &simulator!(0),
        r"
struct Args { i32* x; };
KERNEL(exchange, Args, 128) {
    i32 t = threadIdx.x, *x = args.x + 8 * (blockIdx.x * blockDim.x + t);
    x[0] = shuffle(t, 7);
    x[1] = shuffle_down(t, 3);
    x[2] = shuffle_xor(t, 5);
    x[3] = (i32)ballot(t % 3 == 0);
    i32 sum = t;
    for (int step = 16; step > 0; step /= 2) sum += shuffle_xor(sum, step);
    x[4] = sum;
    x[5] = (i32)shuffle((f64)t + 0.5, t + 1);
    x[6] = (i32)(gridDim.x * 10 + blockDim.y + blockDim.z + threadIdx.y + threadIdx.z + blockIdx.y);
    x[7] = -1;
}",
    );
    for seed in SEEDS {
        let simulator = simulator!(seed);
        let x = Buffer::fresh(&simulator, 4 * 8 * 96 * 2);
        let kernel = simulator.load(&image, "exchange").unwrap();
        launch(&*kernel, 2, 96, &[x.address]).unwrap();
        for (i, x) in x.read::<[i32; 8]>().into_iter().enumerate() {
            let (t, lane) = (i % 96, i % 32);
            let first = t - lane;
            let every_third =
                (0..32).filter(|l| (first + l) % 3 == 0).map(|l| 1u32 << l).sum::<u32>();
            let down = if lane + 3 < 32 { t + 3 } else { t };
            let next = first + (t + 1) % 32;
            let sum: usize = (first..first + 32).sum();
            let expected =
                [first + 7, down, first + (lane ^ 5), every_third as usize, sum, next, 22];
            assert_eq!(x[..7], expected.map(|x| x as u32 as i32), "thread {t}");
        }
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

#[test]
fn undefined_behaviour_is_an_error_when_asked_for() {
    const SOURCE: &str = r"
struct Args { f32* x; i64 at; };
KERNEL(move, Args, 1) { store_pack<f32, 4>(args.x, load_pack<f32, 4>(args.x + args.at)); }
KERNEL(next, Args, 1) { args.x[0] = (f32)((i32)args.at + 1); }
KERNEL(inside, Args, 1) {
    SHARED(f32, part, 8);
    part[args.at] = 1;
    args.x[0] = part[args.at];
}";
    let Some(plain) = simulator(0) else { return };
    let command = plain.compiler.command();
    let compiler = Compiler::new(&command, Some("undefined")).unwrap();
    assert_ne!(compiler.toolchain(), plain.toolchain());
    let watched = Simulator::new(compiler, 0, MEMORY);
    for (simulator, found) in [(&plain, false), (&watched, true)] {
        let image = image(simulator, SOURCE);
        let x = Buffer::of(simulator, &[1f32; 16]);
        for (entry, right, wrong) in [("move", 4, 5), ("next", 5, 0x7fff_ffff), ("inside", 7, 8)] {
            let kernel = simulator.load(&image, entry).unwrap();
            launch(&*kernel, 1, 1, &[x.address, right]).unwrap();
            match launch(&*kernel, 1, 1, &[x.address, wrong]) {
                Err(error) if found => {
                    assert_contains(&error.to_string(), &["thread 0: undefined behaviour"]);
                }
                // A position past a shared array is found without, after the fact.
                result => {
                    assert_eq!((found, result.is_ok()), (false, entry != "inside"), "{entry}")
                }
            }
        }
    }
    let unknown = Compiler::new(&command, Some("thread")).unwrap_err();
    assert_contains(&unknown, &["CONVMAT_SIMULATOR_SANITIZE", "\"thread\""]);
    assert_contains(&Compiler::new("no-such-compiler", None).unwrap_err(), &["no-such-compiler"]);
}

#[test]
fn a_kernel_that_does_not_compile_names_the_line() {
    let simulator = simulator!(0);
    let text = "#include \"platform.cuh\"\nstruct Args { i64 n; };\n\
                KERNEL(broken, Args, 32) {\n    i32 x = args.m;\n}\n";
    let failure = simulator.compile(&Unit { file: "broken.cu", text: text.into() }).unwrap_err();
    assert_contains(&failure.log, &["broken.cu:4", "has no member named"]);
}

#[test]
fn a_damaged_image_is_an_error() {
    let simulator = simulator!(0);
    let good = image(&simulator, "struct Args { i64 n; }; KERNEL(nothing, Args, 32) {}");
    simulator.load(&good, "nothing").unwrap();
    let reason = |image: &[u8], entry| simulator.load(image, entry).unwrap_err().to_string();
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    for bad in [&flipped[..], &good[..good.len() / 2], &[], &[0; 64]] {
        assert_contains(&reason(bad, "nothing"), &["loading nothing failed", "damaged"]);
    }
    // Whole, but not an object.
    let other = [b"text".as_slice(), &checksum(b"text")].concat();
    assert_contains(&reason(&other, "nothing"), &["loading nothing failed"]);
    assert_contains(&reason(&good, "something"), &["something"]);
}

#[test]
fn launches_have_the_limits_of_cuda() {
    let simulator = simulator!(0);
    let kernel =
        kernel(&simulator, "struct Args { i64 n; }; KERNEL(nothing, Args, 64) {}", "nothing");
    let go = |grid: [u32; 3], threads: u32, arguments: &[u8]| {
        // SAFETY: the kernel touches no memory.
        unsafe { kernel.launch(grid, threads, arguments) }
    };
    go([3, 2, 2], 64, &[0; 8]).unwrap();
    assert_contains(&reason(go([1, 0, 1], 64, &[0; 8])), &["[1, 0, 1]"]);
    assert_contains(&reason(go([1, 65536, 1], 64, &[0; 8])), &["[1, 65536, 1]"]);
    assert_contains(&reason(go([1, 1, 1], 0, &[0; 8])), &["0 threads"]);
    assert_contains(&reason(go([1, 1, 1], 65, &[0; 8])), &["65 threads", "1 to 64"]);
    assert_contains(&reason(go([1, 1, 1], 64, &[0; 16])), &["16 bytes", "takes 8"]);
}

/// What memory is filled with.
const POISONED: u8 = 0xff;

#[test]
fn memory_is_limited_checked_and_guarded() {
    let simulator = simulator!(0);
    let total = simulator.memory().unwrap().1;
    assert_eq!(total, MEMORY);
    let first = Buffer::of(&simulator, &[1u8; 1000]);
    assert_eq!(simulator.memory().unwrap(), (MEMORY - 1000, MEMORY));
    assert_eq!(simulator.allocate(MEMORY as usize - 999).unwrap(), None);
    assert_eq!(simulator.allocate(usize::MAX).unwrap(), None);
    for bytes in [1, 15, 16, 17, 4096, 5000, 1 << 20] {
        let buffer = Buffer::fresh(&simulator, bytes);
        assert_eq!(buffer.address % 16, 0);
        assert_eq!(buffer.read::<u8>(), vec![POISONED; bytes]);
    }
    // SAFETY: none of these is memory of the simulator, which is what it has to find.
    unsafe {
        let past = reason(simulator.upload(&[0; 11], first.address + 990));
        assert_contains(&past, &["upload failed", "11 bytes", "990 bytes from the start"]);
        assert_contains(&reason(simulator.download(8, &mut [0])), &["download failed"]);
        assert_contains(&reason(simulator.clear(first.address - 1, 4)), &["1 bytes before"]);
        let overlapping = simulator.copy(first.address, first.address + 99, 100);
        assert_contains(&reason(overlapping), &["overlap"]);
        // Refused: the allocation stays.
        simulator.free(first.address, 999);
        simulator.free(first.address + 16, 1000);
    }
    assert_eq!(first.read::<u8>(), [1; 1000]);
    let kernel = kernel(
        &simulator,
        "struct Args { u8* x; }; KERNEL(touch, Args, 32) { args.x[threadIdx.x] = 0; }",
        "touch",
    );
    launch(&*kernel, 1, 32, &[first.address]).unwrap();
    let address = first.address;
    drop(first);
    assert_contains(&reason(launch(&*kernel, 1, 32, &[address])), &["access out of bounds"]);
    simulator.trim().unwrap();
    assert_eq!(simulator.memory().unwrap(), (MEMORY, MEMORY));
}

#[test]
fn every_block_runs_once_in_a_different_order_each_time() {
    for count in [1, 2, 3, 10, 97, 360, 1 << 16] {
        let order = Order::new(count, 12345);
        let mut seen = vec![false; count];
        (0..count).for_each(|i| assert!(!std::mem::replace(&mut seen[order.at(i)], true)));
    }
    let simulator = simulator!(1);
    let kernel = kernel(
        &simulator,
        r"
struct Args { i32 *next, *ticket; };
KERNEL(tickets, Args, 128) {
    i32 i = blockIdx.x * 128 + threadIdx.x;
    args.ticket[i] = atomic_add(args.next, 1);
}
",
        "tickets",
    );
    // Of the threads of one block, and of blocks on several threads of the host.
    for (blocks, threads) in [(1, 128), (1000, 100)] {
        let all = blocks * threads;
        let run = || {
            let next = Buffer::of(&simulator, &[0i32]);
            let tickets = Buffer::fresh(&simulator, 4 * 128 * blocks);
            let arguments = [next.address, tickets.address];
            launch(&*kernel, blocks as u32, threads as u32, &arguments).unwrap();
            let tickets = tickets.read::<i32>();
            let mut sorted: Vec<i32> = tickets.iter().copied().filter(|&t| t >= 0).collect();
            sorted.sort();
            assert_eq!(sorted, Vec::from_iter(0..all as i32));
            tickets
        };
        let first = run();
        assert!((0..8).any(|_| run() != first), "{blocks} blocks in one order");
    }
}

const CONVERSIONS: &str = r"
struct Args { const f32* x; u16 *f, *b; i64 n; };
KERNEL(round, Args, 256) {
    i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= args.n) return;
    args.f[i] = from_acc<f16>(args.x[i]).bits;
    args.b[i] = from_acc<bf16>(args.x[i]).bits;
}
struct Back { f32 *f, *b, *t; };
KERNEL(widen, Back, 256) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    args.f[i] = to_acc(f16{(u16)i});
    args.b[i] = to_acc(bf16{(u16)i});
    f32 x = 1 + i * 0x1p-16f;
    args.t[i] = f32_of(to_tf32(x));
}
KERNEL(once, Back, 1) {
    f32 x = 1 + 0x1p-12f;
    f64 y = 1 + 0x1p-27;
    args.f[0] = fused(x, x, -1 - 0x1p-11f);
    args.f[1] = x * x - 1 - 0x1p-11f;
    args.f[2] = (f32)fused(y, y, -1 - 0x1p-26);
    args.f[3] = f32_of(to_tf32(-INFINITY_));
}";

#[test]
fn numbers_convert_as_in_rust() {
    let simulator = simulator!(0);
    let source = CONVERSIONS.replace("INFINITY_", "f32_of(0x7f800000u)");
    let image = image(&simulator, &source);
    let [f, b, t] = [(); 3].map(|()| Buffer::fresh(&simulator, 4 << 16));
    let go = |entry: &str, blocks: u32, threads: u32, arguments: &[u64]| {
        let kernel = simulator.load(&image, entry).unwrap();
        launch(&*kernel, blocks, threads, arguments).unwrap();
    };
    go("widen", 256, 256, &[f.address, b.address, t.address]);
    let [wide, brain, tf32] = [&f, &b, &t].map(|buffer| buffer.read::<u32>());
    for bits in 0..=u16::MAX {
        let at = usize::from(bits);
        assert_eq!(wide[at], f16::from_bits(bits).to_f32().to_bits(), "f16 {bits:#x}");
        // bf16::to_f32 makes a NaN quiet; the kernels only shift.
        assert_eq!(brain[at], u32::from(bits) << 16, "bf16 {bits:#x}");
        // 10 bits of fraction are kept of 16.
        let expected = 1. + ((at + 32) / 64) as f32 / 1024.;
        assert_eq!(f32::from_bits(tf32[at]), expected, "tf32 of 1 + {at} / 65536");
    }

    // Every f16 and bf16, the ties between neighbours, what lies next to those, and a walk over all bits.
    let mut values: Vec<u32> = Vec::new();
    for bits in 0..=u16::MAX {
        let exact = f16::from_bits(bits).to_f32().to_bits();
        let above = f16::from_bits(bits.wrapping_add(1)).to_f32().to_bits();
        let tie = exact / 2 + above / 2 + (exact & above & 1);
        values.extend([exact, tie, tie.wrapping_sub(1), tie.wrapping_add(1)]);
        let brain = u32::from(bits) << 16;
        values.extend([brain, brain | 0x7fff, brain | 0x8000, brain | 0x8001]);
    }
    values.extend((0..1 << 20).map(|i: u32| i.wrapping_mul(0x9e37_79b1)));
    let x = Buffer::of(&simulator, &values);
    let [f, b] = [(); 2].map(|()| Buffer::fresh(&simulator, 2 * values.len()));
    let arguments = [x.address, f.address, b.address, values.len() as u64];
    go("round", values.len().div_ceil(256) as u32, 256, &arguments);
    let (f, b) = (f.read::<u16>(), b.read::<u16>());
    for (i, &bits) in values.iter().enumerate() {
        let value = f32::from_bits(bits);
        assert_eq!(f[i], f16::from_f32(value).to_bits(), "f16 of {bits:#x}");
        assert_eq!(b[i], bf16::from_f32(value).to_bits(), "bf16 of {bits:#x}");
    }

    go("once", 1, 1, &[t.address; 3]);
    let once = t.read::<f32>();
    let expected = [2f32.powi(-24), 0., 2f32.powi(-54), f32::NEG_INFINITY];
    assert_eq!(once[..4], expected);
}
