//! Streams: with the sanitizer work is done when somebody waits for it, in the order of each stream and in any
//! order of several; captured, it is recorded.

use super::*;
use crate::device::Device;
use crate::device::cuda::{CudaDevice, KernelOptions};
use crate::{Conv, Tensor};

const KERNELS: &str = r"
struct Args { i32 *x, *y; };
KERNEL(add, Args, 32) { args.y[threadIdx.x] += args.x[threadIdx.x]; }
KERNEL(ticket, Args, 32) { if (threadIdx.x == 0) args.y[0] = atomic_add(args.x, 1); }
KERNEL(beyond, Args, 32) { args.y[threadIdx.x + 32] = 1; }";

fn deferred(seed: u64) -> Option<Simulator> {
    set_up(Setup { watch: Watch::Accesses, ..setup(seed) })
}

fn in_place(simulator: &Simulator, address: u64) -> i32 {
    simulator.shared().memory.check(address, 4).unwrap();
    // SAFETY: live memory, as was checked; nothing runs meanwhile.
    unsafe { *(address as *const i32) }
}

#[test]
fn work_waits_until_somebody_waits_for_it() {
    let Some(simulator) = deferred(0) else { return };
    let image = image(&simulator, KERNELS);
    let add = simulator.load(&image, "add").unwrap();
    let (x, y) = (Buffer::of(&simulator, &[3i32; 32]), Buffer::of(&simulator, &[4i32; 32]));
    launch(&*add, 1, 32, &[x.address, y.address]).unwrap();
    assert_eq!(in_place(&simulator, y.address), -1, "not even the upload is done");
    // Behind the launch, so that it reads what was there.
    drop(x);
    // Nor is the kernel needed by who launched it.
    drop(add);
    assert_eq!(y.read::<i32>(), [7; 32]);
    assert_eq!(simulator.memory().unwrap().0, MEMORY - 128);
    // An error is that of whoever waits. What was queued behind it is not done, but memory is given back.
    let beyond = simulator.load(&image, "beyond").unwrap();
    let add = simulator.load(&image, "add").unwrap();
    let x = Buffer::of(&simulator, &[3i32; 32]);
    launch(&*beyond, 1, 32, &[x.address, y.address]).unwrap();
    launch(&*add, 1, 32, &[x.address, y.address]).unwrap();
    drop(x);
    assert_contains(&reason(simulator.synchronize()), &["kernel beyond failed"]);
    assert_eq!(y.read::<i32>(), [7; 32]);
    assert_eq!(simulator.memory().unwrap().0, MEMORY - 128);
    // Memory that is being given back is there for who needs it.
    let large = simulator.allocate(MEMORY as usize - 128).unwrap().expect("all of it is free");
    // SAFETY: from allocate(), and used no more.
    unsafe { simulator.free(large, MEMORY as usize - 128) };
    assert!(simulator.allocate(MEMORY as usize - 128).unwrap().is_some());
}

/// Two streams of one GPU take turns; each keeps its order.
#[test]
fn streams_take_turns() {
    let Some(first) = deferred(0) else { return };
    let image = image(&first, KERNELS);
    let mut orders = std::collections::BTreeSet::new();
    for seed in SEEDS {
        let Some(first) = deferred(seed) else { return };
        let second = first.on_new_stream();
        assert_ne!(first.identity(), second.identity());
        let next = Buffer::of(&first, &[0i32]);
        first.synchronize().unwrap();
        let streams = [&first, &second];
        let tickets: Vec<Buffer<'_>> = (0..8).map(|at| Buffer::fresh(streams[at % 2], 4)).collect();
        for (at, ticket) in tickets.iter().enumerate() {
            let kernel = streams[at % 2].load(&image, "ticket").unwrap();
            launch(&*kernel, 1, 32, &[next.address, ticket.address]).unwrap();
        }
        let tickets: Vec<i32> = tickets.iter().map(|ticket| ticket.read::<i32>()[0]).collect();
        let own = |stream| tickets.iter().copied().skip(stream).step_by(2).collect::<Vec<i32>>();
        assert!(own(0).is_sorted() && own(1).is_sorted(), "{tickets:?}");
        let mut all = tickets.clone();
        all.sort();
        assert_eq!(all, Vec::from_iter(0..8));
        orders.insert(tickets);
    }
    assert!(orders.len() > 2, "{orders:?}");
}

/// The planted fault: memory that one stream works on is given back by another, which does not wait.
#[test]
fn memory_that_is_freed_too_early_shows() {
    let Some(first) = deferred(0) else { return };
    let image = image(&first, KERNELS);
    let mut found = 0;
    for seed in 0..20 {
        let Some(first) = deferred(seed) else { return };
        let second = first.on_new_stream();
        let add = first.load(&image, "add").unwrap();
        let y = Buffer::of(&first, &[1i32; 32]);
        let x = Buffer::of(&first, &[2i32; 32]);
        first.synchronize().unwrap();
        for _ in 0..2 {
            launch(&*add, 1, 32, &[x.address, y.address]).unwrap();
        }
        // SAFETY: this is the fault; the simulator sees it.
        unsafe { second.free(x.address, x.bytes) };
        std::mem::forget(x);
        match first.synchronize() {
            Ok(()) => assert_eq!(y.read::<i32>(), [5; 32]),
            Err(error) => {
                found += 1;
                assert_contains(&error.to_string(), &["kernel add failed", "access out of bounds"]);
            }
        }
    }
    assert!((4..20).contains(&found), "{found} of 20");
}

/// Plans of the crate's on two streams of one GPU.
#[test]
fn two_streams_run_plans() {
    let conv = Conv::new([3, 3]).padding([1, 1]);
    let host = Tensor::from_vec(&Device::Cpu, &[2, 3, 6, 5], (0..180).map(|v| v as f32).collect());
    let host = host.unwrap();
    let weight =
        Tensor::from_vec(&Device::Cpu, &[4, 3, 3, 3], (0..108).map(|v| v as f32).collect());
    let weight = weight.unwrap();
    let expected = conv.forward(&host, &weight, None).unwrap();
    let patches = conv.unfold(&host).unwrap();
    for seed in 0..4 {
        let Some(first) = deferred(seed) else { return };
        let second = first.on_new_stream();
        let devices = [first, second].map(|simulator| {
            let options = KernelOptions { specialise: false, ..KernelOptions::default() };
            Device::Cuda(CudaDevice::new(Box::new(simulator), options))
        });
        let queued = devices.each_ref().map(|device| {
            let x = host.clone().to_device(device).unwrap();
            let w = weight.clone().to_device(device).unwrap();
            // Operands and workspaces are given up while the work is still to be done.
            (conv.forward(&x, &w, None).unwrap(), conv.unfold(&x).unwrap())
        });
        for (y, unfolded) in queued {
            assert_eq!(y.to_device(&Device::Cpu).unwrap(), expected);
            assert_eq!(unfolded.to_device(&Device::Cpu).unwrap(), patches);
        }
    }
}

#[test]
fn captured_work_is_recorded_and_done_again() {
    for simulator in [simulator(0), deferred(0)] {
        let Some(simulator) = simulator else { return };
        let image = image(&simulator, KERNELS);
        let add = simulator.load(&image, "add").unwrap();
        let (x, y) = (Buffer::of(&simulator, &[3i32; 32]), Buffer::of(&simulator, &[4i32; 32]));
        simulator.begin_capture().unwrap();
        assert_contains(&reason(simulator.begin_capture()), &["captured"]);
        launch(&*add, 1, 32, &[x.address, y.address]).unwrap();
        // SAFETY: all of this is memory of the simulator.
        unsafe {
            simulator.copy(y.address, x.address, 64).unwrap();
            simulator.clear(x.address, 4).unwrap();
            assert_contains(&reason(simulator.upload(&[0; 4], x.address)), &["upload", "captured"]);
            assert_contains(&reason(simulator.download(x.address, &mut [0])), &["download"]);
        }
        assert_contains(&reason(simulator.allocate(8).map(drop)), &["allocating memory"]);
        assert_contains(&reason(simulator.synchronize()), &["waiting for queued work"]);
        assert_contains(&reason(simulator.load(&image, "add").map(drop)), &["loading add"]);
        let mut graph = simulator.end_capture().unwrap();
        assert_eq!(
            (x.read::<i32>(), y.read::<i32>()),
            (vec![3; 32], vec![4; 32]),
            "nothing is done"
        );
        drop(add);
        // SAFETY: x and y are still there.
        unsafe { graph.launch().unwrap() };
        assert_eq!(y.read::<i32>(), [7; 32]);
        assert_eq!(x.read::<i32>(), [&[0][..], &[7; 15], &[3; 16]].concat());
        // On other inputs.
        // SAFETY: as above.
        unsafe {
            simulator.upload(bytemuck::cast_slice(&[10i32; 32]), x.address).unwrap();
            graph.launch().unwrap();
        }
        assert_eq!(y.read::<i32>(), [17; 32]);
        // What returns no error itself spoils the capture.
        simulator.begin_capture().unwrap();
        drop(x);
        assert_contains(
            &reason(simulator.end_capture().map(drop)),
            &["freeing memory", "captured"],
        );
        drop(y);
    }
}
