//! The kernels for groups with few channels, which are made for one layer, as on a GPU.

use convmat::{Algorithm, Device, Layout, PaddingMode};
use half::{bf16, f16};

use super::{Operands, check_integers, check_randoms, plain, run_case};
use crate::catalogue::{devices, integers, values};
use crate::oracle::Case;

/// A GPU, where there is one, and a simulator that makes kernels as for a GPU.
fn specialised() -> Vec<Device> {
    let mut found = Vec::new();
    #[cfg(feature = "simulator")]
    {
        let simulation = convmat::Simulation { specialise: true, ..Default::default() };
        found.extend(Device::simulator_with(simulation));
    }
    found.extend(devices().iter().filter(|device| device.to_string().starts_with("cuda")).cloned());
    found
}

fn grouped(case: Case, groups: usize) -> Case {
    Case { groups, ..case }
}

/// Rows that do not fill the last block of them, strides with phases, several channels for a group.
fn layers() -> Vec<Case> {
    let wide = |case: Case, width: usize| Case { input: [1, case.input[1], width], ..case };
    let strided = |case: Case, stride: [usize; 3]| Case { stride, ..case };
    vec![
        wide(grouped(plain(2, 6, 9, 6, 3), 6), 13),
        strided(grouped(plain(2, 4, 11, 4, 3), 4), [1, 2, 2]),
        strided(grouped(plain(1, 4, 12, 8, 4), 4), [1, 4, 3]),
        Case { dilation: [1, 2, 3], ..wide(grouped(plain(1, 8, 10, 8, 5), 8), 17) },
        grouped(plain(2, 16, 7, 16, 3), 4),
        strided(grouped(plain(1, 9, 6, 18, 3), 3), [1, 1, 2]),
        Case { dilation: [1, 3, 1], stride: [1, 2, 5], ..grouped(plain(1, 4, 15, 32, 2), 2) },
        Case {
            spatial: 3,
            input: [4, 5, 6],
            kernel: [3, 2, 3],
            stride: [2, 1, 2],
            low: [1; 3],
            high: [1; 3],
            ..grouped(plain(2, 4, 1, 4, 1), 4)
        },
        Case {
            spatial: 1,
            input: [1, 1, 70],
            kernel: [1, 1, 5],
            stride: [1, 1, 3],
            low: [0, 0, 2],
            high: [0, 0, 1],
            ..grouped(plain(2, 8, 1, 8, 1), 8)
        },
    ]
}

fn both_layouts(case: Case) -> [Case; 2] {
    [Layout::ChannelsFirst, Layout::ChannelsLast].map(|layout| Case { layout, ..case.clone() })
}

#[test]
fn small_groups_are_convolved_directly() {
    let auto = || [Algorithm::Auto].into_iter();
    for device in &specialised() {
        for case in layers().into_iter().flat_map(both_layouts) {
            check_integers::<f32>(&case, device, auto()).unwrap();
            check_randoms::<f32>(&case, device, auto()).unwrap();
        }
        for case in layers().into_iter().step_by(4).flat_map(both_layouts) {
            check_integers::<f64>(&case, device, auto()).unwrap();
            check_integers::<f16>(&case, device, auto()).unwrap();
            check_randoms::<bf16>(&case, device, auto()).unwrap();
        }
        let modes = [PaddingMode::Reflect, PaddingMode::Replicate, PaddingMode::Circular];
        for (case, mode) in layers().into_iter().zip(modes) {
            check_integers::<f32>(&Case { mode, ..case }, device, auto()).unwrap();
        }
    }
}

/// Rows beyond the last share inputs with those before it, but add nothing, not even infinity times zero.
#[test]
fn infinities_reach_only_the_taps_that_read_them() {
    for device in &specialised() {
        for case in layers().into_iter().flat_map(both_layouts) {
            let mut at = Operands::<f32>::new(&case, |len, seed| {
                integers(len, seed, 2).into_iter().map(|v| v + 2.5).collect()
            });
            let mut x = at.x.view().to_vec().unwrap();
            let last = x.len() - 1;
            x[last] = f32::INFINITY;
            at.x = convmat::Tensor::from_vec(&Device::Cpu, at.x.shape(), x).unwrap();
            let expected = run_case(&case, &at, Algorithm::Naive);
            let found = run_case(&case, &at.on(device), Algorithm::Auto);
            for what in [0, 2] {
                let [found, expected] = [&found, &expected].map(|results| values(&results[what]));
                assert_eq!(found, expected, "result {what} on {device}, {case:?}");
            }
        }
    }
}
