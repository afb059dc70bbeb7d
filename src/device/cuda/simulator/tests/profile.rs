//! Profiles of kernels whose cost is known: NVIDIA's transposes ("An Efficient Matrix Transpose in CUDA C/C++",
//! 2013, which gives what they reach on a K20c), and PyTorch's im2col, written anew.

use super::*;
use crate::device::cuda::profile::{Limiter, Profiling};

const KERNELS: &str = r"
struct Args { const f32* from; f32* to; i64 n; };
DEVICE void place(int n, int& x, int& y) {
    int tiles = n / 32, tile = blockIdx.x;
    x = tile % tiles * 32 + threadIdx.x % 32;
    y = tile / tiles * 32 + threadIdx.x / 32;
}
KERNEL(copy, Args, 256) {
    int n = (int)args.n, x, y;
    place(n, x, y);
    for (int row = 0; row < 32; row += 8) args.to[(y + row) * n + x] = args.from[(y + row) * n + x];
}
KERNEL(naive, Args, 256) {
    int n = (int)args.n, x, y;
    place(n, x, y);
    for (int row = 0; row < 32; row += 8) args.to[x * n + y + row] = args.from[(y + row) * n + x];
}
template <int pitch> DEVICE void tiled(const Args& args, f32 (&tile)[32 * pitch]) {
    int n = (int)args.n, x, y, lane = threadIdx.x % 32, line = threadIdx.x / 32;
    place(n, x, y);
    for (int row = 0; row < 32; row += 8) tile[(line + row) * pitch + lane] = args.from[(y + row) * n + x];
    barrier();
    int to_x = y - line + lane, to_y = x - lane + line;
    for (int row = 0; row < 32; row += 8) args.to[(to_y + row) * n + to_x] = tile[lane * pitch + line + row];
}
KERNEL(unpadded, Args, 256) {
    SHARED(f32, tile, 32 * 32);
    tiled<32>(args, tile);
}
KERNEL(padded, Args, 256) {
    SHARED(f32, tile, 32 * 33);
    tiled<33>(args, tile);
}
// One thread for each channel and position, 3x3 with padding 1, n by n.
KERNEL(im2col, Args, 256) {
    int n = (int)args.n, at = blockIdx.x * 256 + threadIdx.x;
    int x = at % n, y = at / n % n, channel = at / n / n;
    f32* to = args.to + (i64)channel * 9 * n * n + y * n + x;
    for (int i = 0; i < 3; ++i)
        for (int j = 0; j < 3; ++j) {
            int row = y + i - 1, column = x + j - 1;
            bool inside = row >= 0 && column >= 0 && row < n && column < n;
            *to = inside ? args.from[(channel * n + row) * n + column] : 0.0f;
            to += n * n;
        }
}";

/// A K20c, by its data sheet; of what a kernel needs nothing binds here.
fn k20c() -> Target {
    Target {
        name: "k20c",
        capability: 80,
        multiprocessors: 13,
        clock: 0.706e9,
        memory_bandwidth: 0.208e12,
        l2_bytes: 1280 << 10,
        l1_bytes: 64 << 10,
        shared_bytes: 48 << 10,
        threads: 2048,
        blocks: 16,
        f32_rate: 3.52e12,
        f64_rate: 1.17e12,
        half_rate: 3.52e12,
        tf32_rate: 3.52e12,
    }
}

fn profiled(
    target: Target,
    entry: &str,
    n: u64,
    channels: u64,
    taps: u64,
) -> Option<LaunchProfile> {
    let profiling = Some(Profiling::new(target));
    let simulator = set_up(Setup { watch: Watch::Profile, profiling, ..setup(3) })?;
    let kernel = kernel(&simulator, KERNELS, entry);
    let len = (n * n * channels) as usize;
    let values: Vec<f32> = (0..len).map(|at| at as f32).collect();
    let from = Buffer::of(&simulator, &values);
    let to = Buffer::fresh(&simulator, 4 * len * taps as usize);
    let blocks = (len / if taps == 1 { 1024 } else { 256 }) as u32;
    launch(&*kernel, blocks, 256, &[from.address, to.address, n]).unwrap();
    if taps == 1 {
        let found = to.read::<f32>();
        let expected = |at: usize| {
            let (row, column) = (at / n as usize, at % n as usize);
            if entry == "copy" { values[at] } else { values[column * n as usize + row] }
        };
        assert!((0..len).all(|at| found[at] == expected(at)), "{entry}");
    }
    simulator.take_profile().pop()
}

/// What is read and written, exactly.
#[test]
fn transposes_cost_what_is_known_of_them() {
    let n = 256;
    let sectors = (n * n * 4 / 32) as f64;
    let requests = (n * n / 32) as f64;
    for (entry, stored, conflicts) in [
        ("copy", 4.0, None),
        ("naive", 32.0, None),
        ("unpadded", 4.0, Some(33.0)),
        ("padded", 4.0, Some(2.0)),
    ] {
        let h100 = "h100".parse().unwrap();
        let Some(found) = profiled(h100, entry, n, 1, 1) else { return };
        let global = found.global;
        assert_eq!(
            (global.load_requests, global.load_sectors),
            (requests, 4.0 * requests),
            "{entry}"
        );
        assert_eq!(
            (global.store_requests, global.store_sectors),
            (requests, stored * requests),
            "{entry}"
        );
        assert_eq!(global.load_sectors_compulsory, sectors, "{entry}");
        assert_eq!(global.store_sectors_compulsory, sectors, "{entry}");
        assert_eq!(global.load_sectors_past_l1, sectors, "{entry}");
        // A write of a row and a read of a column for every 32 elements.
        assert_eq!(found.shared.wavefronts, conflicts.unwrap_or(0.0) * requests, "{entry}");
        let ideal = if conflicts.is_some() { 2.0 } else { 0.0 };
        assert_eq!(found.shared.wavefronts_ideal, ideal * requests, "{entry}");
        assert_eq!(found.operations.barriers > 0.0, conflicts.is_some(), "{entry}");
        assert_eq!(found.operations.idle, 0.0, "{entry}");
    }
}

/// The model beside what was published of a K20c: times over that of the copy, which reaches 136 GB/s. The
/// model says 1.5 times as much of the copy, as it takes the memory to reach its nominal bandwidth, and does not
/// know that a K20c's banks are 8 bytes wide, which halves the conflicts of the unpadded tile.
#[test]
fn transposes_are_predicted_within_a_factor() {
    let mut times = Vec::new();
    for (entry, published) in
        [("copy", 136.0), ("naive", 55.3), ("unpadded", 97.6), ("padded", 144.3)]
    {
        let Some(found) = profiled(k20c(), entry, 1024, 1, 1) else { return };
        times.push((entry, found.model, 136.0 / published));
    }
    let copy = times[0].1.seconds;
    let rate = 2.0 * 4.0 * 1024.0 * 1024.0 / copy / 1e9;
    assert!((1.2..1.6).contains(&(rate / 136.0)), "{rate} GB/s");
    for &(entry, model, published) in &times {
        let predicted = model.seconds / copy;
        let error = predicted / published;
        println!(
            "{entry}: {predicted:.2} times the copy, published {published:.2}: {error:.2}; {}",
            model.limiter
        );
        assert!((0.5..2.2).contains(&error), "{entry}: {predicted} for {published}");
    }
    let limiters: Vec<Limiter> = times.iter().map(|(_, model, _)| model.limiter).collect();
    assert_eq!(limiters, [Limiter::Memory, Limiter::L2, Limiter::L1, Limiter::Memory]);
}

/// PyTorch's im2col reads each input from the L1 cache nine times, and writes what it has to.
#[test]
fn im2col_is_bound_by_memory() {
    let Some(found) = profiled("h100".parse().unwrap(), "im2col", 64, 64, 9) else { return };
    let global = found.global;
    let sectors = 64.0 * 64.0 * 64.0 * 4.0 / 32.0;
    assert_eq!(global.store_sectors, 9.0 * sectors);
    assert_eq!(global.store_sectors_compulsory, 9.0 * sectors);
    assert_eq!(global.load_sectors_compulsory, sectors);
    assert!(
        global.load_sectors > 8.0 * sectors && global.load_sectors_past_l1 < 2.0 * sectors,
        "{global:?}"
    );
    assert!(found.operations.idle > 0.0 && found.operations.idle < 0.05);
}
