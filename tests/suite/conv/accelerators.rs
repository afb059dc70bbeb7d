//! Convolution on the devices other than the CPU.

use convmat::{Algorithm, Conv, Device, Error, PlanOptions, with_axes};
use half::bf16;
use proptest::prelude::*;

use super::{
    Operands, check_integers, check_integers_of_all_types, check_randoms_of_all_types,
    check_transposed, fast, large, run_case,
};
use crate::catalogue::{accelerators, cases, devices, layers, randoms};
use crate::oracle::Case;

/// The same call twice gives the same bytes.
fn check_bytes(case: &Case, device: &Device) {
    let at = Operands::<f32>::new(case, randoms).on(device);
    for algorithm in Algorithm::GENERAL {
        let [once, twice] = [0, 1].map(|_| run_case(case, &at, algorithm));
        assert_eq!(once, twice, "{algorithm} on {device}, {case:?}");
    }
}

proptest! {
    // The simulator takes a third of a second for a case.
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn accelerators_compute_the_same(case in cases()) {
        for device in accelerators() {
            check_integers_of_all_types(&case, device)?;
            check_randoms_of_all_types(&case, device)?;
            check_bytes(&case, device);
            with_axes!(case.spatial, D => check_transposed::<D>(&case, device))?;
        }
    }
}

/// Where cuBLAS multiplies, by its conventions and with what it takes on trust checked.
#[cfg(all(feature = "simulator", unix))]
#[test]
fn products_by_cublas_compute_the_same() {
    let simulation = convmat::Simulation { blas: true, ..Default::default() };
    let Ok(device) = Device::simulator_with(simulation) else {
        return eprintln!("skipped: there is no simulator");
    };
    let conv = Conv::new([3, 3]);
    let by = PlanOptions::new().algorithm(Algorithm::Im2col);
    let plan = conv.plan_forward::<bf16>(&device, &[2, 4, 8, 8], &[6, 4, 3, 3], false, by).unwrap();
    assert!(plan.to_string().contains("cublas"), "{plan}");
    for case in layers() {
        check_integers_of_all_types(&case, &device).unwrap();
        check_randoms_of_all_types(&case, &device).unwrap();
    }
}

/// Half types, channels first: where that pays, products read copies with neighbouring channels.
#[test]
fn large_products_of_half_types_read_copies() {
    const COPY: &str = "to_channels_last";
    let conv = Conv::new([3, 3]).padding([1, 1]);
    let (x, w) = ([8, 64, 56, 56], [64, 64, 3, 3]);
    let copies = (8 * 64 * 56 * 56 + 64 * 64 * 9) * 2;
    let plain = PlanOptions::new();
    for device in accelerators() {
        let forward = conv.plan_forward::<bf16>(device, &x, &w, true, plain).unwrap();
        let adjoint = conv.plan_backward_input::<bf16>(device, &x, &w, [56, 56], plain).unwrap();
        for (plan, workspace) in
            [(forward.to_string(), forward.workspace()), (adjoint.to_string(), adjoint.workspace())]
        {
            // Both operands are copied by one launch.
            assert_eq!(plan.matches(COPY).count(), 1, "{plan}");
            assert_eq!(workspace, copies, "{plan}");
        }
        let room = plain.workspace_limit(copies);
        let same = conv.plan_forward::<bf16>(device, &x, &w, true, room).unwrap();
        assert_eq!(same.explanation().passes, forward.explanation().passes);
        let tight =
            conv.plan_forward::<bf16>(device, &x, &w, true, plain.workspace_limit(copies - 1));
        let odd = conv.plan_forward::<bf16>(device, &[8, 66, 56, 56], &[64, 66, 3, 3], true, plain);
        let last = conv.layout(convmat::Layout::ChannelsLast);
        let last =
            last.plan_forward::<bf16>(device, &[8, 56, 56, 64], &[3, 3, 64, 64], true, plain);
        let single = conv.plan_forward::<f32>(device, &x, &w, true, plain);
        for plan in [tight, odd, last] {
            let plan = plan.unwrap();
            assert!(!plan.to_string().contains(COPY), "{plan}");
        }
        assert!(!single.unwrap().to_string().contains(COPY));
    }
}

#[test]
fn large_shapes_are_exact_on_accelerators() {
    for device in accelerators() {
        for case in large().into_iter().step_by(2) {
            check_integers::<f32>(&case, device, fast()).unwrap();
            check_bytes(&case, device);
        }
    }
}

/// One image's patches and sums are the least; the CPU has none of it, nor have algorithms without.
#[test]
fn workspaces_are_told() {
    let conv = Conv::new([3, 3]).padding([1, 1]);
    let (x, w) = ([2, 4, 8, 8], [6, 4, 3, 3]);
    let by = |algorithm| PlanOptions::new().algorithm(algorithm);
    for device in devices() {
        let forward = |algorithm| conv.plan_forward::<f32>(device, &x, &w, true, by(algorithm));
        let bytes = |algorithm| forward(algorithm).unwrap().workspace();
        if *device == Device::Cpu {
            assert_eq!(bytes(Algorithm::Naive), 0);
        } else {
            let found = [Algorithm::Naive, Algorithm::Im2col, Algorithm::Shifted].map(bytes);
            // Pieces of a workspace are multiples of 256 bytes.
            assert_eq!(found, [0, 2 * 4 * 9 * 64 * 4, 2 * 4 * 64 * 4 + 1024], "{device}");
        }
        let y = [2, 6, 8, 8];
        let adjoint = |algorithm| {
            let plan = conv.plan_backward_input::<bf16>(device, &y, &w, [8, 8], by(algorithm));
            plan.unwrap().workspace()
        };
        let weight = |algorithm| {
            conv.plan_backward_weight::<bf16>(device, &x, &y, by(algorithm)).unwrap().workspace()
        };
        for workspace in [&adjoint as &dyn Fn(Algorithm) -> u64, &weight] {
            assert_eq!(workspace(Algorithm::Naive), 0, "{device}");
            assert!(workspace(Algorithm::Im2col) > 0, "{device}");
        }
        let options = PlanOptions::new();
        let wrong = conv.plan_forward::<f32>(device, &x, &[6, 3, 3, 3], true, options);
        assert!(matches!(wrong, Err(Error::Shape { .. })), "{device}");
        // What is asked for is kept to, or refused.
        let tight = by(Algorithm::Im2col).workspace_limit(64);
        match conv.plan_forward::<f32>(device, &x, &w, true, tight) {
            Err(Error::Invalid { argument, value, .. }) => {
                assert_eq!((argument.as_str(), value.as_str()), ("workspace limit", "64"));
            }
            other => panic!("{other:?}"),
        }
    }
}
