use super::library::suits;
use super::*;
use crate::device::cuda::skipped;

const TARGETS: [u32; 7] = [75, 80, 86, 89, 90, 100, 120];

/// Every name of the headers in `kernels/` that kernels use, once each.
const EVERYTHING: &str = r#"
#include "platform.cuh"
#include "element.cuh"
#include "geometry.cuh"

struct Args {
    Axes axes;
    Divisor plane, line;
    u64 from, to, counter;
    i64 count;
};

KERNEL(everything, Args, 128) {
    SHARED(u16, tile, 1024);
    SHARED(f32, words, 128);
    const ELEMENT* from = (const ELEMENT*)args.from;
    ELEMENT* to = (ELEMENT*)args.to;
    Index at = (Index)blockIdx.x * 128 + (Index)threadIdx.x;
    int lane = threadIdx.x % 32;
    if (args.count < 0) trap("no work");

    copy_async_16(tile + 8 * threadIdx.x, (const u16*)args.from + 8 * at, at < args.count);
    copy_async_8(tile + 4 * threadIdx.x, (const u64*)args.from + at, at < args.count);
    copy_async_4(words + threadIdx.x, (const f32*)args.from + at, at < args.count);
    copy_async_commit();
    copy_async_wait<0>();
    barrier();

    u32 a[4], b[4];
    load_matrices(a, tile + 8 * lane);
    load_matrices_transposed(b, tile + 256 + 8 * lane);
    f32 d[4] = {0, 0, 0, 0};
    mma_f16(d, a, {b[0], b[1]});
#if __CUDA_ARCH__ >= 800
    mma_bf16(d, a, {b[2], b[3]});
    u32 rounded[4];
    UNROLL
    for (int i = 0; i < 4; ++i) rounded[i] = to_tf32(words[(lane + 32 * i) % 128]);
    mma_tf32(d, rounded, {rounded[0], rounded[1]});
    f64 wide[4] = {words[lane], words[lane + 1], words[lane + 2], words[lane + 3]};
    mma_f64(wide, {wide[0], wide[1], wide[2], wide[3]}, {wide[2], wide[3]});
    d[0] += (f32)(wide[0] + wide[1] + wide[2] + wide[3]);
#endif
    warp_barrier();

    Position p = position(at, args.plane, args.line);
    Index k = at % taps<2>(args.axes);
    Acc sum = 0;
    Index i = source<2>(args.axes, p.w, k), j = source<1>(args.axes, p.h, 0);
    if (i >= 0 && j >= 0) sum += to_acc(load(from + i + j * inputs<2>(args.axes)));
    if (p.d < outputs<0>(args.axes)) {
        for (Index r = 0; r < readers<2>(args.axes, p.w); ++r) {
            Index o = reader_output<2>(args.axes, padded_position<2>(args.axes, p.w, r), k);
            if (o >= 0) sum = fused(sum, to_acc(from[o]), to_acc(zero<ELEMENT>()));
        }
    }
    sum += shuffle(sum, 0) + shuffle_down(sum, 1) + shuffle_xor(sum, 2);
    sum = larger(smaller(sum, (Acc)1e6), (Acc)(d[0] + d[1] + d[2] + d[3]));
    u32 voters = warp_ballot(sum > 0);
    atomic_add((i32*)args.counter, (i32)voters);
    atomic_add((i64*)args.counter + 1, (i64)voters);

    const int WIDTH = 8 / sizeof(ELEMENT);
    Pack<ELEMENT, WIDTH> pack = load_pack<ELEMENT, WIDTH>(from + WIDTH * at);
    pack.at[0] = from_acc<ELEMENT>(sum);
    store_pack(to + WIDTH * at, pack);
    store_streaming(to + WIDTH * args.count + at, from_acc<ELEMENT>(f16_to_f32(f32_to_f16(d[0]))));
}
"#;

fn unit(definitions: &[(&str, &str)], source: &str) -> Unit {
    let definitions = definitions.iter().map(|(name, value)| format!("#define {name} {value}\n"));
    Unit { file: "everything.cu", text: definitions.collect::<String>() + source }
}

#[test]
fn headers_compile_for_every_architecture() {
    if let Err(reason) = for_driver(None) {
        return skipped("nvrtc", &reason);
    }
    let known = [("TAPS", "1, 3, 3"), ("STRIDES", "1, 2, 2"), ("DILATIONS", "1, 1, 1")];
    let configurations = [
        ("f32", "ZEROS", "32"),
        ("f64", "REFLECT", "64"),
        ("f16", "REPLICATE", "32"),
        ("bf16", "CIRCULAR", "64"),
    ];
    for capability in TARGETS {
        let toolchain = Toolchain::new(capability, None).unwrap();
        let target = toolchain.target;
        for (index, (element, mode, bits)) in configurations.into_iter().enumerate() {
            let mut definitions = vec![("ELEMENT", element), ("MODE", mode), ("INDEX_BITS", bits)];
            definitions.push(("LAYOUT", "CHANNELS_FIRST"));
            definitions.extend(known.iter().filter(|_| index % 2 == 0));
            let (image, log) = toolchain
                .compile_with_log(&unit(&definitions, EVERYTHING))
                .unwrap_or_else(|failure| panic!("{target} {definitions:?}: {}", failure.log));
            if !target.cubin {
                println!("NVRTC has no machine code for {}", dotted(capability));
                continue;
            }
            assert!(image.starts_with(b"\x7fELF") && is_whole(&image));
            assert!([0, 60, image.len() / 2].iter().all(|&end| !is_whole(&image[..end])));
            let needs = needs(&log);
            println!("{target} {element} {mode} {bits}: {needs:?}");
            let [(name, needs)] = &needs[..] else { panic!("{log}") };
            assert_eq!(name, "everything");
            assert!(needs.registers > 16, "{log}");
            assert_eq!(needs.shared_bytes, 2048 + 512, "{log}");
            // Division of 64-bit numbers may be a call, which spills.
            assert!(needs.local_bytes == 0 || bits == "64", "{log}");
            assert!(!log.contains("warning"), "{log}");
        }
    }
}

/// The kernels whose answers are known: see `answers`.
#[test]
fn the_platforms_kernels_compile_for_every_architecture() {
    if let Err(reason) = for_driver(None) {
        return skipped("nvrtc", &reason);
    }
    for capability in TARGETS {
        let toolchain = Toolchain::new(capability, None).unwrap();
        let (image, log) = toolchain
            .compile_with_log(&crate::device::cuda::answers::unit())
            .unwrap_or_else(|failure| panic!("{toolchain}: {}", failure.log));
        assert!(is_whole(&image) && !log.contains("warning"), "{toolchain}: {log}");
        if toolchain.target.cubin {
            let kernels = if capability < 80 { 8 } else { 11 };
            assert_eq!(needs(&log).len(), kernels, "{toolchain}: {log}");
        }
    }
}

#[test]
fn ptx_of_the_newest_architecture_below() {
    if let Err(reason) = for_driver(None) {
        return skipped("nvrtc", &reason);
    }
    let source = "extern \"C\" __global__ void nothing() {}\n";
    let nvrtc = for_driver(None).unwrap();
    let toolchain = Toolchain { nvrtc, target: Target { capability: 80, cubin: false } };
    let image = toolchain.compile(&unit(&[], source)).unwrap();
    assert!(is_whole(&image) && !is_whole(&image[..image.len() / 2]));
    let text = String::from_utf8_lossy(&image);
    assert!(text.contains(".target sm_80") && text.contains("nothing"), "{text}");
}

#[test]
fn the_log_names_file_and_line() {
    if let Err(reason) = for_driver(None) {
        return skipped("nvrtc", &reason);
    }
    let toolchain = Toolchain::new(80, None).unwrap();
    let broken = unit(&[("A", "1")], "#include \"platform.cuh\"\n\nint b = undeclared;\n");
    let log = toolchain.compile(&broken).unwrap_err().log;
    assert!(log.contains("(4): error") && log.contains("undeclared"), "{log}");
    // In a header, too, with the header's name.
    let broken = unit(&[("u8", "@")], "#include \"platform.cuh\"\n");
    let log = toolchain.compile(&broken).unwrap_err().log;
    assert!(log.contains("platform.cuh(") && log.contains("error"), "{log}");
    let absent = unit(&[], "#include \"absent.cuh\"\n");
    let log = toolchain.compile(&absent).unwrap_err().log;
    assert!(log.contains("absent.cuh"), "{log}");
    let log = toolchain.compile(&unit(&[], "\0")).unwrap_err().log;
    assert!(log.contains("NUL"), "{log}");
}

#[test]
fn many_threads_compile() {
    if let Err(reason) = for_driver(None) {
        return skipped("nvrtc", &reason);
    }
    let toolchain = Toolchain::new(80, None).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                let source = format!("extern \"C\" __global__ void k{thread}() {{}}\n");
                let (_, log) = toolchain.compile_with_log(&unit(&[], &source)).unwrap();
                assert_eq!(needs(&log)[0].0, format!("k{thread}"));
            });
        }
    });
}

#[test]
fn targets() {
    let known = [75, 80, 86, 90, 100, 120];
    let among = |capability, version, driver| {
        Target::among(capability, version, driver, &known).map(|target| target.to_string())
    };
    let target = |capability| among(capability, (12, 8), None);
    assert_eq!(target(75).unwrap(), "sm_75");
    assert_eq!(target(89).unwrap(), "compute_86");
    assert_eq!(target(90).unwrap(), "sm_90");
    assert_eq!(target(103).unwrap(), "compute_100");
    let reason = target(70).unwrap_err();
    assert!(reason.contains("7.0") && reason.contains("7.5"), "{reason}");
    assert!(Target::among(90, (12, 0), None, &[]).is_err());
    // An older driver does not read the PTX: machine code of the same major capability takes its place.
    assert_eq!(among(89, (12, 8), Some((12, 8))).unwrap(), "compute_86");
    assert_eq!(among(89, (12, 8), Some((13, 0))).unwrap(), "compute_86");
    assert_eq!(among(89, (12, 8), Some((12, 4))).unwrap(), "sm_86");
    assert_eq!(among(90, (12, 8), Some((12, 4))).unwrap(), "sm_90");
    let reason = among(110, (12, 8), Some((12, 4))).unwrap_err();
    assert!(["12.8", "12.4", "11.0"].iter().all(|part| reason.contains(part)), "{reason}");
}

#[test]
fn drivers_get_an_nvrtc_that_is_not_newer() {
    assert_eq!(suits((11, 7), None), Ok(()));
    assert_eq!(suits((13, 0), None), Ok(()));
    assert_eq!(suits((12, 9), Some((12, 2))), Ok(()));
    assert_eq!(suits((11, 8), Some((13, 0))), Ok(()));
    let reason = suits((13, 1), Some((12, 4))).unwrap_err();
    assert!(reason.contains("13.1") && reason.contains("12.4"), "{reason}");
    let reason = suits((11, 2), Some((11, 2))).unwrap_err();
    assert!(reason.contains("11.2") && reason.contains("11.7"), "{reason}");
    // None is so old; where NVRTC is found, its version is in the reason.
    let reason = for_driver(Some((10, 2))).unwrap_err();
    assert!(reason.contains("NVRTC"), "{reason}");
    if let Ok(nvrtc) = for_driver(None) {
        assert!(reason.contains(&format!("{}.{}", nvrtc.version.0, nvrtc.version.1)), "{reason}");
    }
}

/// What is asked of the compiler, and the patch of its version, are part of what images are kept under.
#[test]
fn keys_tell_compilers_apart() {
    let Ok(toolchain) = Toolchain::new(80, None) else { return };
    let key = toolchain.key();
    assert!(key.starts_with("NVRTC") && OPTIONS.iter().all(|option| key.contains(option)), "{key}");
    assert!(!cfg!(target_os = "linux") || key.contains(" bytes"), "{key}");
    assert_ne!(key, Toolchain::new(90, None).unwrap().key());
}

#[test]
fn needs_are_read_from_the_log() {
    let log = "ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_90'
ptxas info    : Function properties for first
    16 bytes stack frame, 24 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 8192 bytes smem, 400 bytes cmem[0]
ptxas info    : Compiling entry function 'second' for 'sm_90'
ptxas info    : Function properties for second
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, 356 bytes cmem[0]
";
    let first = Resources { registers: 255, shared_bytes: 8192, local_bytes: 24 };
    let second = Resources { registers: 8, shared_bytes: 0, local_bytes: 0 };
    assert_eq!(needs(log), [("first".to_string(), first), ("second".to_string(), second)]);
}
