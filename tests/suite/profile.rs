//! What profiles count, on layers whose counts are known.

use convmat::{
    Algorithm, Conv, Device, LaunchProfile, Layout, Profiling, Result, Simulation, Target, Tensor,
};
use half::bf16;

use crate::catalogue::skipped;

fn target(name: &str) -> Target {
    name.parse().unwrap()
}

/// A profiling simulator; `None` where there is none, as without GCC.
fn simulator(profiling: Profiling, seed: u64) -> Option<Device> {
    let simulation = Simulation {
        profiling: Some(profiling),
        seed: Some(seed),
        specialise: true,
        ..Simulation::default()
    };
    Device::simulator_with(simulation).map_err(|reason| skipped("simulator", reason)).ok()
}

fn profile(
    profiling: Profiling,
    work: impl FnOnce(&Device) -> Result<()>,
) -> Option<Vec<LaunchProfile>> {
    let device = simulator(profiling, 0)?;
    work(&device).unwrap();
    Some(device.take_profile())
}

/// Input and result of an unfold once each, whole sectors: what is compulsory is all there is.
#[test]
fn an_unfold_reads_and_writes_what_it_has_to() {
    for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
        let conv = Conv::new([3, 3]).padding([1, 1]).layout(layout);
        let shape = layout.activation_shape(2, 8, &[16, 16]);
        let found = profile(Profiling::new(target("h100")), |device| {
            let x = Tensor::<f32>::zeros(device, &shape)?;
            conv.unfold(&x).map(drop)
        });
        let Some(found) = found else { return };
        let [launch] = &found[..] else { panic!("{found:?}") };
        assert_eq!(launch.kernel, "unfold");
        let bytes = [2 * 8 * 256 * 4, 2 * 72 * 256 * 4].map(f64::from);
        assert_eq!(launch.global.load_sectors_compulsory, bytes[0] / 32.0);
        assert_eq!(launch.global.store_sectors_compulsory, bytes[1] / 32.0);
        assert_eq!(launch.global.store_bytes, bytes[1]);
        assert!(launch.global.load_sectors_past_l1 >= launch.global.load_sectors_compulsory);
        assert!(launch.global.load_sectors >= launch.global.load_sectors_past_l1);
        assert_eq!(launch.global.load_sectors_past_l2, launch.global.load_sectors_compulsory);
        assert!(launch.global.efficiency() > 0.3 && launch.global.efficiency() <= 1.0);
        assert_eq!(launch.counted_blocks, launch.blocks);
        assert!(launch.occupancy > 0.0 && launch.occupancy <= 1.0);
        assert!(launch.model.fraction > 0.0 && launch.model.fraction <= 1.0);
        println!("{launch}: {:?}", launch.global);
    }
}

/// Every product is counted: of one thread each in f32, of a warp's tensor cores in bf16 and f64.
#[test]
fn products_are_counted() {
    let conv = Conv::new([3, 3]).padding([1, 1]).layout(Layout::ChannelsLast);
    let (x, weight) = ([1, 16, 16, 32], [3, 3, 32, 64]);
    let flop = 16 * 16 * 32 * 64 * 9;
    let f32s = profile(Profiling::new(target("a100")), |device| {
        let (x, weight) = (Tensor::<f32>::zeros(device, &x)?, Tensor::zeros(device, &weight)?);
        conv.forward(&x, &weight, None).map(drop)
    });
    let Some(f32s) = f32s else { return };
    let fused: f64 = f32s.iter().map(|launch| launch.operations.fused_f32).sum();
    assert!(fused >= f64::from(flop) && fused <= 1.3 * f64::from(flop), "{fused} of {flop}");
    let halves = profile(Profiling::new(target("a100")), |device| {
        let (x, weight) = (Tensor::<bf16>::zeros(device, &x)?, Tensor::zeros(device, &weight)?);
        conv.forward(&x, &weight, None).map(drop)
    });
    let halves = halves.unwrap();
    let mma: f64 = halves.iter().map(|launch| launch.operations.mma_bf16).sum();
    assert_eq!(mma * 2048.0, f64::from(flop), "{halves:#?}");
    let doubles = profile(Profiling::new(target("a100")), |device| {
        let (x, weight) = (Tensor::<f64>::zeros(device, &x)?, Tensor::zeros(device, &weight)?);
        conv.forward(&x, &weight, None).map(drop)
    });
    let doubles = doubles.unwrap();
    let mma: f64 = doubles.iter().map(|launch| launch.operations.mma_f64).sum();
    assert_eq!(mma * 1024.0, f64::from(flop), "{doubles:#?}");
    for launch in &doubles {
        assert_eq!(launch.shared.wavefronts, launch.shared.wavefronts_ideal, "{launch}");
    }
    for launch in f32s.iter().chain(&halves) {
        assert!(launch.shared.wavefronts >= launch.shared.wavefronts_ideal);
        assert_eq!(launch.operations.barriers > 0.0, launch.shared.requests > 0.0);
    }
}

/// The same launches give the same counts, whatever the order of threads; and some blocks about those of all.
#[test]
fn counts_are_the_same_each_time_and_samples_are_close() {
    let conv = Conv::new([3, 3]).padding([1, 1]);
    let run = |seed: u64, blocks: Option<u32>| {
        let device = simulator(Profiling { blocks, ..Profiling::new(target("l4")) }, seed)?;
        let x = Tensor::<f32>::zeros(&device, &[4, 16, 48, 48]).unwrap();
        conv.unfold(&x).unwrap();
        Some(device.take_profile())
    };
    let Some(all) = run(0, None) else { return };
    assert_eq!(all, run(5, None).unwrap());
    let some = run(0, Some(16)).unwrap();
    assert_eq!((some[0].counted_blocks, some[0].blocks), (16, all[0].blocks));
    let near = |found: f64, expected: f64| (found / expected - 1.0).abs() < 0.1;
    let [some, all] = [some, all].map(|found| found[0].global);
    assert!(near(some.store_sectors, all.store_sectors), "{some:?} {all:?}");
    assert!(near(some.store_sectors_compulsory, all.store_sectors_compulsory), "{some:?} {all:?}");
    assert!(near(some.load_sectors_past_l1, all.load_sectors_past_l1), "{some:?} {all:?}");
}

/// What the compiler makes of the main loop of a convolution, where `nvdisasm` is there to list it.
#[test]
fn main_loops_have_few_instructions() {
    // So many for a product of tensor cores. Channels first, it reads a copy whose channels are neighbours.
    for (layout, most) in [(Layout::ChannelsLast, 3.0), (Layout::ChannelsFirst, 4.0)] {
        let conv = Conv::new([3, 3]).padding([1, 1]).layout(layout);
        let profiling = Profiling { blocks: Some(1), ..Profiling::new(target("h100")) };
        let found = profile(profiling, |device| {
            let x = Tensor::<bf16>::zeros(device, &layout.activation_shape(64, 64, &[56, 56]))?;
            let weight = Tensor::zeros(device, &layout.weight_shape(64, 64, &[3, 3]))?;
            let mut y = Tensor::zeros(device, &layout.activation_shape(64, 64, &[56, 56]))?;
            conv.forward_into(&x, &weight, None, &mut y, Algorithm::Implicit)
        });
        let Some(found) = found else { return };
        let product = found.iter().find(|launch| launch.kernel == "correlate");
        let launch = product.expect("there is a product");
        let Some(sass) = launch.sass else {
            return skipped("nvdisasm", "NVRTC or nvdisasm is not found");
        };
        println!("{layout}: {launch}");
        let main_loop = sass.main_loop.expect("it sums over patches");
        let (instructions, of) = main_loop.each_takes().unwrap();
        assert_eq!(of, "mma");
        // A warp's piece of a tile, for 32 terms.
        assert!(main_loop.mma >= 16 && main_loop.mma.is_multiple_of(8), "{main_loop}");
        assert!(instructions > 1.5 && instructions < most, "{layout}: {main_loop}");
        assert!(main_loop.matrix_loads > 0 && sass.whole.stores.of(128) > 0, "{}", sass.whole);
        assert_eq!(main_loop.loads.total(), 0, "{main_loop}");
        assert!(main_loop.copies.of(128) > 0, "{main_loop}");
    }
}

#[test]
fn targets_have_names() {
    for target in Target::ALL {
        assert_eq!(target.to_string().parse::<Target>().unwrap(), target);
    }
    let error = "h101".parse::<Target>().unwrap_err().to_string();
    assert!(error.contains("h101") && error.contains("h100"), "{error}");
    for (gpu, expected) in [
        ("NVIDIA A100-SXM4-80GB", Some("a100")),
        ("NVIDIA H100 80GB HBM3 (compute capability 9.0)", Some("h100")),
        ("NVIDIA GeForce RTX 4090", Some("rtx4090")),
        ("NVIDIA L4", Some("l4")),
        ("NVIDIA L40S", None),
        ("simulator", None),
    ] {
        assert_eq!(Target::nearest(gpu).map(|target| target.name), expected, "{gpu}");
    }
    // 256 threads of 128 registers: 65,536 registers hold two blocks; 72 KiB of shared memory three.
    let h100 = target("h100");
    assert_eq!(h100.resident_blocks(256, Some(128), 0), 2);
    assert_eq!(h100.resident_blocks(256, Some(32), 72 << 10), 3);
    assert_eq!(h100.resident_blocks(32, None, 0), 32);
    assert_eq!(h100.resident_blocks(1024, None, 0), 2);
}
