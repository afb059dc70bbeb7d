//! Known answers of the platform that kernels are written for: every wrapper of `kernels/lib/platform.cuh`,
//! executed by `tests/kernels/platform.cu` and held against its definition. On the simulator this checks the
//! answers against the simulator's platform, on a GPU the platform itself.

use bytemuck::Pod;
use half::{bf16, f16};

use super::driver::{Driver, Unit};

/// The kernels.
pub(super) fn unit() -> Unit {
    let text = include_str!("../../../tests/kernels/platform.cu");
    Unit { file: "platform.cu", text: text.into() }
}

/// Panics where the driver's machine gives another answer.
pub(super) fn check(driver: &dyn Driver) {
    let image = match driver.compile(&unit()) {
        Ok(image) => image,
        Err(failure) => panic!("{}", failure.log),
    };
    let on = On { driver, image };
    on.lanes();
    on.matrices();
    let pair = |bits: fn(f32) -> u32| move |of: &[f32]| bits(of[0]) | bits(of[1]) << 16;
    let same = |value: f32| value;
    on.product("product_f16", 2, pair(f16_of), |x| f16::from_f32(x).to_f64(), same);
    if driver.capability() >= 80 {
        on.product("product_bf16", 2, pair(bf16_of), |x| bf16::from_f32(x).to_f64(), same);
        let rounded = |x: f32| f64::from(f32::from_bits(tf32(x.to_bits())));
        on.product("product_tf32", 1, |of| of[0].to_bits(), rounded, same);
        // With a part that f32 would not keep.
        let long = |x: f32| f64::from(x) * (1. + (-21f64).exp2());
        on.product("product_f64", 1, |of| long(of[0]), long, f64::from);
    }
    on.copies();
    on.conversions();
    on.moves();
    on.counters();
    on.arrivals();
}

fn f16_of(value: f32) -> u32 {
    f16::from_f32(value).to_bits().into()
}

fn bf16_of(value: f32) -> u32 {
    bf16::from_f32(value).to_bits().into()
}

/// Rounded to ten bits of fraction, ties away from zero.
fn tf32(bits: u32) -> u32 {
    if bits & 0x7f80_0000 == 0x7f80_0000 { bits } else { (bits + 0x1000) & !0x1fff }
}

/// Numbers of 32 bits that are all different.
fn scrambled(count: u32) -> Vec<u32> {
    (1..=count).map(|i| i.wrapping_mul(0x9e37_79b1)).collect()
}

struct On<'a> {
    driver: &'a dyn Driver,
    image: Vec<u8>,
}

impl On<'_> {
    /// What a kernel makes of these words: as many as `to` has, which are there when it begins.
    fn run(
        &self,
        entry: &str,
        grid: [u32; 3],
        threads: u32,
        from: &[u32],
        to: &mut [u32],
        count: i64,
    ) {
        let driver = self.driver;
        let kernel = driver.load(&self.image, entry).unwrap();
        let upload = |words: &[u32]| {
            let address = driver.allocate(size_of_val(words)).unwrap().expect("a little memory");
            // SAFETY: the memory was just allocated, with this size.
            unsafe { driver.upload(bytemuck::cast_slice(words), address).unwrap() };
            address
        };
        let addresses = [upload(from), upload(to)];
        let arguments = [addresses[0], addresses[1], count as u64];
        // SAFETY: these are the bytes of the kernels' arguments, and the memory is as large as they take it
        // to be.
        unsafe { kernel.launch(grid, threads, bytemuck::cast_slice(&arguments)).unwrap() };
        // SAFETY: the memory was allocated with this size.
        unsafe { driver.download(addresses[1], bytemuck::cast_slice_mut(to)).unwrap() };
        for (address, words) in [(addresses[0], from.len()), (addresses[1], to.len())] {
            // SAFETY: the allocation is used no more.
            unsafe { driver.free(address, 4 * words) };
        }
    }

    fn lanes(&self) {
        // Exact as f32.
        let from: Vec<u32> = scrambled(96).into_iter().map(|word| word >> 9).collect();
        let mut to = vec![0; 960];
        self.run("lanes", [1, 1, 1], 96, &from, &mut to, 0);
        for (i, found) in to.chunks(10).enumerate() {
            let (lane, warp) = (i % 32, i / 32 * 32);
            let of = |lane: usize| from[warp + lane];
            // A lane whose source is outside the warp keeps its own.
            let down = |by: usize| if lane + by < 32 { of(lane + by) } else { of(lane) };
            let votes = (0..32).fold(0, |votes, lane| votes | (of(lane) & 1) << lane);
            let expected = [
                of((7 * i + 3) % 32),
                down(5),
                of(lane ^ 9),
                votes,
                2 * of(lane ^ 16) + 1,
                down(1),
                (of(31 - lane) as f32).to_bits(),
                of(lane ^ 1).wrapping_neg(),
                from[i ^ 1],
                from[95 - i],
            ];
            assert_eq!(found, expected, "lanes: thread {i}");
        }
    }

    fn matrices(&self) {
        let from = scrambled(128);
        let elements: &[u16] = bytemuck::cast_slice(&from);
        let mut to = vec![0; 256];
        self.run("matrices", [1, 1, 1], 32, &from, &mut to, 0);
        for (lane, found) in to.chunks(8).enumerate() {
            let (row, column) = (lane / 4, 2 * (lane % 4));
            let at = |m: usize, row: usize, column: usize| {
                u32::from(elements[64 * m + 8 * row + column])
            };
            for m in 0..4 {
                let plain = at(m, row, column) | at(m, row, column + 1) << 16;
                assert_eq!(found[m], plain, "load_matrices: lane {lane}, matrix {m}");
                let transposed = at(m, column, row) | at(m, column + 1, row) << 16;
                assert_eq!(found[4 + m], transposed, "transposed: lane {lane}, matrix {m}");
            }
        }
    }

    /// `d += a·b`, whose operands are words with `pairs` in each, with sums of their own type.
    fn product<W: Pod, N: Pod + Into<f64>>(
        &self,
        entry: &str,
        pairs: usize,
        pack: impl Fn(&[f32]) -> W,
        exact: impl Fn(f32) -> f64,
        number: impl Fn(f32) -> N,
    ) {
        assert_eq!(size_of::<W>(), size_of::<N>());
        let terms = 8 * pairs;
        // All sums of these are exact.
        let eighths = |at: usize, seed: usize| ((at * 37 + seed) % 29) as f32 / 8. - 1.75;
        let a = |row: usize, k: usize| eighths(row * terms + k, 5);
        let b = |k: usize, column: usize| eighths(k * 8 + column, 11);
        let d = |row: usize, column: usize| eighths(row * 8 + column, 17);
        let mut from: Vec<u8> = Vec::new();
        for lane in 0..32 {
            let (g, t) = (lane / 4, lane % 4);
            let word = |of: &dyn Fn(usize) -> f32, first: usize| {
                pack(&(first..first + pairs).map(of).collect::<Vec<f32>>())
            };
            for i in 0..4 {
                let row = g + i % 2 * 8;
                let word = word(&|k| a(row, k), pairs * t + i / 2 * (terms / 2));
                from.extend(bytemuck::bytes_of(&word));
            }
            for i in 0..2 {
                let word = word(&|k| b(k, g), pairs * t + i * (terms / 2));
                from.extend(bytemuck::bytes_of(&word));
            }
            for i in 0..4 {
                let sum = number(d(g + i / 2 * 8, 2 * t + i % 2));
                from.extend(bytemuck::bytes_of(&sum));
            }
        }
        let mut to = vec![0u32; 32 * size_of::<N>()];
        self.run(entry, [1, 1, 1], 32, &bytemuck::pod_collect_to_vec(&from), &mut to, 0);
        let found: Vec<N> = bytemuck::pod_collect_to_vec(&to);
        for (lane, found) in found.chunks(4).enumerate() {
            for (i, &found) in found.iter().enumerate() {
                let (row, column) = (lane / 4 + i / 2 * 8, 2 * (lane % 4) + i % 2);
                let products = (0..terms).map(|k| exact(a(row, k)) * exact(b(k, column)));
                let expected = f64::from(d(row, column)) + products.sum::<f64>();
                assert_eq!(found.into(), expected, "{entry}: {row}, {column}");
            }
        }
    }

    fn copies(&self) {
        let from = scrambled(512 + 256 + 128);
        let mut to = vec![0; 7 * 128];
        self.run("copies", [1, 1, 1], 64, &from, &mut to, 0);
        for (at, found) in to.chunks(7).enumerate() {
            let wide = if at % 3 != 0 { &from[4 * at..4 * at + 4] } else { &[0; 4] };
            assert_eq!(&found[..4], wide, "copy_async_16: {at}");
            let narrow = if at % 5 != 0 { from[512 + 256 + at] } else { 0 };
            assert_eq!(found[4], narrow, "copy_async_4: {at}");
            let middle = if at % 7 != 0 { &from[512 + 2 * at..][..2] } else { &[0; 2] };
            assert_eq!(&found[5..], middle, "copy_async_8: {at}");
        }
    }

    fn conversions(&self) {
        // Every pattern of 16 bits is the lower half of one, and where f16 begin to round another way of
        // another.
        let ties = (0..=u16::MAX).step_by(3).map(|bits| f16::from_bits(bits).to_f32().to_bits());
        let ties = ties.flat_map(|bits| [bits, bits + 0xfff, bits + 0x1000, bits + 0x1001]);
        let from: Vec<u32> = scrambled(1 << 16)
            .into_iter()
            .chain(ties)
            // What becomes of a NaN's bits, and of subnormal numbers and the very largest in TF32, is not
            // promised.
            .filter(|bits| !f32::from_bits(*bits).is_nan())
            .collect();
        let count = from.len();
        let mut to = vec![0; (6 + 4) * count];
        let blocks = count.div_ceil(128) as u32;
        self.run("conversions", [blocks, 1, 1], 128, &from, &mut to, count as i64);
        let (words, wide) = to.split_at(6 * count);
        for ((&bits, found), wide) in from.iter().zip(words.chunks(6)).zip(wide.chunks(4)) {
            let value = f32::from_bits(bits);
            let at = format!("{value:e} ({bits:#x})");
            assert_eq!(found[0], f16_of(value), "f32_to_f16: {at}");
            let half = f16::from_bits(bits as u16);
            let same = f32::from_bits(found[1]);
            assert!(
                half.is_nan() && same.is_nan() || found[1] == half.to_f32().to_bits(),
                "f16: {at}"
            );
            let promised =
                value.is_infinite() || value == 0. || value.is_normal() && value.abs() < 3e38;
            if self.driver.capability() >= 80 && promised {
                assert_eq!(found[2], tf32(bits), "to_tf32: {at}");
            }
            let number = |at: usize| f32::from_bits(found[at]);
            assert_eq!(number(3), value.mul_add(3., 0.1), "fused: {at}");
            assert_eq!((number(4), number(5)), (value.min(1.), value.max(1.)), "smaller: {at}");
            let double = |at: usize| {
                f64::from_bits(u64::from(wide[2 * at]) | u64::from(wide[2 * at + 1]) << 32)
            };
            let value = f64::from(value);
            assert_eq!(double(0), value.mul_add(0.7, -0.1), "fused: {at}");
            assert_eq!(double(1), value.abs().sqrt(), "square_root: {at}");
        }
    }

    fn moves(&self) {
        let from = scrambled(256);
        let mut to = vec![0; 7 * 256];
        self.run("moves", [1, 1, 1], 64, &from, &mut to, 0);
        for (way, found) in to.chunks(256).enumerate() {
            assert_eq!(found, from, "moves: way {way}");
        }
    }

    fn counters(&self) {
        const THREADS: usize = 3 * 2 * 2 * 64;
        let mut to = vec![0; 4 + 4 * THREADS];
        self.run("counters", [3, 2, 2], 64, &[0], &mut to, 0);
        let to: Vec<i64> =
            to.chunks(2).map(|pair| i64::from(pair[0]) | i64::from(pair[1]) << 32).collect();
        assert_eq!(to[..2], [THREADS as i64, -(THREADS as i64) << 40]);
        let mut found: [Vec<i64>; 2] =
            [0, 1].map(|which| to[2 + which..].iter().step_by(2).copied().collect());
        found[1].iter_mut().for_each(|old| *old = -*old >> 40);
        for (which, found) in found.iter_mut().enumerate() {
            // Each thread finds another number.
            found.sort_unstable();
            assert!(found.iter().copied().eq(0..THREADS as i64), "atomic_add {which}: {found:?}");
        }
    }

    fn arrivals(&self) {
        // Counters, sums and parts.
        let mut to = vec![0; 2 + 2 * 64 + 6 * 64];
        let mut expected = [0; 2 * 64];
        // Counters are good for the next launch.
        for factor in [1, 10] {
            self.run("arrivals", [6, 1, 1], 64, &[0], &mut to, factor);
            for (at, sum) in expected.iter_mut().enumerate() {
                let (of, thread) = (at as u32 / 64, at as u32 % 64);
                *sum +=
                    (0..3).map(|i| (2 * i + of) * 64 + 63 - thread).sum::<u32>() * factor as u32;
            }
            assert_eq!(to[..2], [0; 2], "last_to_arrive clears counters");
            assert_eq!(to[2..][..2 * 64], expected, "last_to_arrive, times {factor}");
        }
    }
}

#[cfg(all(feature = "simulator", unix))]
#[test]
fn the_simulators_platform_gives_known_answers() {
    for (seed, sanitizer) in [(0, false), (1, false), (2, false), (3, true)] {
        let simulation = super::Simulation { seed: Some(seed), sanitizer, ..Default::default() };
        match super::simulator::Simulator::open(simulation) {
            Ok(simulator) => check(&simulator),
            Err(reason) => return super::skipped("simulator", &reason),
        }
    }
}
