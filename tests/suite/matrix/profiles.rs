//! What assembly, products and transposes cost on a GPU, by the simulator's counts and the compiler's instructions.

use convmat::{LaunchProfile, Profiling, Simulation, Target};

use super::*;
use crate::catalogue::skipped;

/// A profiling simulator; `None` where there is none, as without GCC.
fn profiling(wide_indices: bool) -> Option<Device> {
    let target: Target = "h100".parse().unwrap();
    let profiling = Some(Profiling::new(target));
    let simulation = Simulation { profiling, wide_indices, seed: Some(0), ..Simulation::default() };
    Device::simulator_with(simulation).map_err(|reason| skipped("simulator", reason)).ok()
}

/// The matrix of a layer with so many channels in and out, and the launch that assembled it.
fn assembled<T: Element>(
    device: &Device,
    channels: usize,
    mode: PaddingMode,
) -> (Csr<T>, LaunchProfile) {
    let conv = Conv::new([3, 3]).padding([1, 1]).padding_mode(mode);
    let weight = Tensor::<T>::zeros(device, &[channels, channels, 3, 3]).unwrap();
    device.take_profile();
    let matrix = conv.matrix(&weight, None, [14, 14]).unwrap();
    let launches = device.take_profile();
    let [launch] = &launches[..] else { panic!("{launches:?}") };
    println!("{launch}");
    (matrix, launch.clone())
}

/// Every sector of a matrix is written once, but for those that two blocks share, and little is read: a weight an
/// entry, from the L1 cache.
#[test]
fn assembly_writes_what_it_has_to() {
    // Loads of warps for 32 entries: a weight each, and where rows are not regular what tables have.
    fn check<T: Element>(wide: bool, mode: PaddingMode, loads: f64) {
        let Some(device) = profiling(wide) else { return };
        let (matrix, launch) = assembled::<T>(&device, 24, mode);
        let global = launch.global;
        assert!(global.store_sectors <= 1.02 * global.store_sectors_compulsory, "{global:?}");
        assert!(global.load_sectors_past_l1 <= 0.2 * global.store_sectors, "{global:?}");
        let warps = matrix.nnz() as f64 / 32.0;
        assert!(global.load_requests <= loads * warps, "{global:?}");
        assert_eq!(launch.local_bytes.unwrap_or(0), 0);
        if let Some(sass) = launch.sass {
            let most = if wide { 1500 } else { 1000 };
            assert!(sass.whole.instructions <= most, "{}", sass.whole);
            // What copies entries out: 16 bytes an instruction.
            let main_loop = sass.main_loop.expect("it copies");
            assert_eq!(main_loop.stores.of(128), main_loop.shared_loads, "{main_loop}");
            assert!(main_loop.instructions <= 8 * main_loop.shared_loads, "{main_loop}");
        }
    }
    for (mode, loads) in [(PaddingMode::Zeros, 2.0), (PaddingMode::Reflect, 7.0)] {
        check::<f32>(false, mode, loads);
        check::<f32>(true, mode, loads);
        check::<bf16>(false, mode, loads);
    }
}

/// A matrix is read once, and of the vectors little more than once: neighbouring rows find them in the L1 cache.
#[test]
fn products_read_a_matrix_once() {
    let Some(device) = profiling(false) else { return };
    let (matrix, _) = assembled::<f32>(&device, 24, PaddingMode::Zeros);
    let (entries, warps) = (matrix.nnz() as f64, matrix.nnz() as f64 / 32.0);
    let x = Tensor::zeros(&device, &[matrix.columns()]).unwrap();
    matrix.mul_vector(&x).unwrap();
    let launches = device.take_profile();
    let [launch] = &launches[..] else { panic!("{launches:?}") };
    println!("{launch}");
    let global = launch.global;
    assert_eq!(launch.operations.fused_f32, entries);
    assert_eq!(global.load_sectors_past_l2, global.load_sectors_compulsory);
    assert!(global.load_sectors_past_l1 <= 1.4 * global.load_sectors_compulsory, "{global:?}");
    // Column, value and vector, and two row pointers a row.
    assert!(global.load_requests <= 3.6 * warps, "{global:?}");
    if let Some(main_loop) = launch.sass.and_then(|sass| sass.main_loop) {
        assert!(main_loop.ffma == 4 && main_loop.instructions <= 80, "{main_loop}");
    }

    let x = Tensor::zeros(&device, &[matrix.columns(), 16]).unwrap();
    matrix.mul_matrix(&x).unwrap();
    let launches = device.take_profile();
    let [launch] = &launches[..] else { panic!("{launches:?}") };
    println!("{launch}");
    let global = launch.global;
    assert_eq!(launch.operations.fused_f32, 16.0 * entries);
    assert_eq!(global.load_sectors_past_l2, global.load_sectors_compulsory);
    // Two sectors of the vectors, and of the matrix what two rows' worth of threads share.
    assert!(global.load_sectors <= 2.6 * entries, "{global:?}");
    assert!(global.load_requests <= 7.0 * warps, "{global:?}");
    if let Some(main_loop) = launch.sass.and_then(|sass| sass.main_loop) {
        assert!(main_loop.ffma == 16 && main_loop.instructions <= 56, "{main_loop}");
        assert_eq!(main_loop.loads.of(128), 6, "{main_loop}");
    }
}

/// In two passes, as there are more than 512 columns; what belongs together is written together.
#[test]
fn transposes_write_neighbours_together() {
    let Some(device) = profiling(false) else { return };
    let (matrix, _) = assembled::<f32>(&device, 24, PaddingMode::Zeros);
    matrix.transpose().unwrap();
    let launches = device.take_profile();
    launches.iter().for_each(|launch| println!("{launch}"));
    let passes = launches.iter().filter(|launch| launch.kernel == "place_digits");
    assert_eq!(passes.count(), 2);
    let moved: f64 = launches
        .iter()
        .map(|launch| launch.global.load_sectors_past_l1 + launch.global.store_sectors)
        .sum();
    // Of 12 bytes an entry twice read and twice written, the columns once more each, and the counters.
    let least = (2.0 * 24.0 + 8.0) / 32.0 * matrix.nnz() as f64;
    assert!(moved <= 1.25 * least, "{moved} sectors of {least}");
    assert!(launches.iter().all(|launch| launch.local_bytes.unwrap_or(0) == 0));
}
