//! Values: what lanes exchange and multiply, and conversions.

use half::{bf16, f16};

use super::*;

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
    x[3] = (i32)warp_ballot(t % 3 == 0);
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

/// `d = a·b` by one warp from row-major 16 x K and K x 8.
const PAIRS: &str = r"
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
";
const WORDS: &str = r"
struct Operands { const f32 *a, *b; f32* d; };
KERNEL(words, Operands, 32) {
    u32 lane = threadIdx.x, g = lane / 4, t = SLIP(lane % 4);
    u32 a[4], b[2];
    f32 d[4] = {0, 0, 0, 0};
    for (int i = 0; i < 4; ++i) a[i] = to_tf32(args.a[(g + i % 2 * 8) * 8 + t + i / 2 * 4]);
    for (int i = 0; i < 2; ++i) b[i] = to_tf32(args.b[(lane % 4 + i * 4) * 8 + g]);
    mma_tf32(d, a, b);
    for (int i = 0; i < 4; ++i) args.d[(g + i / 2 * 8) * 8 + 2 * (lane % 4) + i % 2] = d[i];
}
struct Doubles { const f64 *a, *b; f32* d; };
KERNEL(doubles, Doubles, 32) {
    u32 lane = threadIdx.x, g = lane / 4, t = SLIP(lane % 4);
    f64 a[4], b[2], d[4] = {0, 0, 0, 0};
    for (int i = 0; i < 4; ++i) a[i] = args.a[(g + i % 2 * 8) * 8 + t + i / 2 * 4];
    for (int i = 0; i < 2; ++i) b[i] = args.b[(lane % 4 + i * 4) * 8 + g];
    mma_f64(d, a, b);
    for (int i = 0; i < 4; ++i) args.d[(g + i / 2 * 8) * 8 + 2 * (lane % 4) + i % 2] = (f32)d[i];
}";

fn fragments<T: Pod>(kernels: &str, multiply: &str, entry: &str, k: usize, from_f32: fn(f32) -> T) {
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
        let source = format!("#define SLIP(x) {slip}\n#define MULTIPLY {multiply}\n{kernels}");
        let kernel = kernel(&simulator, &source, entry);
        launch(&*kernel, 1, 32, &[left.address, right.address, d.address]).unwrap();
        assert_eq!(d.read::<f32>() == expected, right_result, "{multiply} {entry} with {slip}");
    }
}

#[test]
fn a_wrong_fragment_index_gives_a_wrong_product() {
    for entry in ["pairs", "rows"] {
        fragments(PAIRS, "mma_f16", entry, 16, f16::from_f32);
        fragments(PAIRS, "mma_bf16", entry, 16, bf16::from_f32);
    }
    fragments(WORDS, "mma_tf32", "words", 8, |x| x);
    fragments(WORDS, "mma_f64", "doubles", 8, f64::from);
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
