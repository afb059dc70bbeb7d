//! What goes wrong on devices, and that they stay usable.

use convmat::{Conv, Device, Error, KernelOptions, Simulation, Tensor};

use crate::catalogue::{accelerators, integers, on, tensor, values};

/// A simulator of its own, where there is one.
fn simulator(simulation: Simulation) -> Option<Device> {
    match Device::simulator_with(simulation) {
        Ok(device) => Some(device),
        Err(Error::DeviceUnavailable { reason, .. }) => {
            eprintln!("skipped: {reason}");
            None
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn operands_on_different_devices_are_an_error_that_names_both() {
    let conv = Conv::new([3, 3]);
    let x = tensor::<f32>(&[1, 2, 5, 5], &integers(50, 1, 3));
    let weight = tensor::<f32>(&[4, 2, 3, 3], &integers(72, 2, 3));
    for device in accelerators() {
        let there = on(device, &weight);
        match conv.forward(&x, &there, None) {
            Err(Error::DeviceMismatch { left_device, right_device, .. }) => {
                assert_eq!((left_device, right_device), ("cpu".into(), device.to_string()));
            }
            other => panic!("{other:?}"),
        }
        let mut patches = Tensor::<f32>::zeros(device, &[1, 18, 9]).unwrap();
        assert!(matches!(conv.unfold_into(&x, &mut patches), Err(Error::DeviceMismatch { .. })));
    }
    // Two simulators have memory of their own.
    let Some(first) = simulator(Simulation::default()) else { return };
    let second = Device::simulator_with(Simulation::default()).unwrap();
    assert_ne!(first, second);
    let (x, weight) = (on(&first, &x), on(&second, &weight));
    assert!(matches!(conv.forward(&x, &weight, None), Err(Error::DeviceMismatch { .. })));
}

#[test]
fn out_of_memory_is_an_error_with_sizes_and_the_device_stays_usable() {
    let small = Simulation { memory: Some(1 << 19), ..Simulation::default() };
    let Some(device) = simulator(small) else { return };
    let conv = Conv::new([3, 3]).padding([1, 1]);
    let x = on(&device, &tensor::<f32>(&[1, 4, 64, 64], &integers(4 * 64 * 64, 1, 9)));
    for _ in 0..3 {
        match conv.unfold(&x) {
            Err(Error::Allocation { what, bytes }) => {
                assert_eq!(bytes, 4 * 9 * 64 * 64 * 4);
                assert!(what.contains("simulator") && what.contains("524288"), "{what}");
            }
            other => panic!("{other:?}"),
        }
        let narrow = Conv::new([1, 3]).padding([0, 1]);
        let host = x.clone().to_device(&Device::Cpu).unwrap();
        assert_eq!(values(&narrow.unfold(&x).unwrap()), values(&narrow.unfold(&host).unwrap()));
    }
    assert!(matches!(
        Tensor::<f32>::from_vec(&device, &[1 << 19], vec![1.0; 1 << 19]),
        Err(Error::Allocation { .. })
    ));
}

#[test]
fn preparing_compiles_what_the_work_needs_and_computes_nothing() {
    assert_eq!(Device::Cpu.prepare(|_| panic!("there is nothing to compile")).unwrap(), 0);
    let conv = Conv::new([3, 3]).padding([1, 1]);
    for device in accelerators() {
        let (mut seen, shape) = (None, [1 << 10, 64, 224, 224]);
        let count = device.prepare(|rehearsal| {
            seen = Some(rehearsal.clone());
            // 12 GiB and 115 GiB, which no memory is taken for.
            let x = Tensor::<f32>::zeros(rehearsal, &shape)?;
            assert_eq!(conv.unfold(&x)?.shape(), [1 << 10, 576, 224 * 224]);
            Ok(())
        });
        assert_eq!(count.unwrap(), 1);
        assert_ne!(seen.as_ref(), Some(device), "the work runs on a rehearsal");
        let Device::Cuda(cuda) = device else { panic!("{device} is an accelerator") };
        assert!(cuda.kernels().iter().any(|kernel| kernel.name.contains("unfold")));
        let refused = device.prepare(|rehearsal| {
            let x = Tensor::<f32>::zeros(rehearsal, &[1, 1, 1, 1])?;
            Conv::new([3, 3]).unfold(&x).map(drop)
        });
        assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    }
}

#[test]
#[cfg(feature = "cuda")]
fn architectures_that_nothing_compiles_for_are_errors() {
    for capability in [0, 10] {
        match Device::compile_only(capability, KernelOptions::default()) {
            Err(Error::DeviceUnavailable { reason, .. }) => assert!(!reason.is_empty()),
            other => panic!("{other:?}"),
        }
    }
}
