//! The driver's calls: compile, load, allocate, copy, launch.

use super::*;

#[test]
fn a_kernel_that_does_not_compile_names_the_line() {
    let simulator = simulator!(0);
    let text = "#include \"platform.cuh\"\nstruct Args { i64 n; };\n\
                KERNEL(broken, Args, 32) {\n    i32 x = args.m;\n}\n";
    let failure = simulator.compile(&Unit { file: "broken.cu", text: text.into() }).unwrap_err();
    assert_contains(&failure.log, &["unit.cpp:4", "no member named"]);
}

#[test]
fn a_damaged_image_is_an_error() {
    let simulator = simulator!(0);
    let good = image(&simulator, "struct Args { i64 n; }; KERNEL(nothing, Args, 32) {}");
    simulator.load(&good, "nothing").unwrap();
    let reason = |image: &[u8], entry| simulator.load(image, entry).unwrap_err().to_string();
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    for bad in [&flipped[..], &good[..good.len() / 2], &[], &[0; 64]] {
        assert_contains(&reason(bad, "nothing"), &["loading nothing failed", "damaged"]);
    }
    // Whole, but not an object.
    let other = [b"text".as_slice(), &image::checksum(b"text")].concat();
    assert_contains(&reason(&other, "nothing"), &["loading nothing failed"]);
    assert_contains(&reason(&good, "something"), &["something"]);
}

#[test]
fn launches_have_the_limits_of_cuda() {
    let simulator = simulator!(0);
    let kernel =
        kernel(&simulator, "struct Args { i64 n; }; KERNEL(nothing, Args, 64) {}", "nothing");
    let go = |grid: [u32; 3], threads: u32, arguments: &[u8]| {
        // SAFETY: the kernel touches no memory.
        unsafe { kernel.launch(grid, threads, arguments) }
    };
    go([3, 2, 2], 64, &[0; 8]).unwrap();
    assert_contains(&reason(go([1, 0, 1], 64, &[0; 8])), &["[1, 0, 1]"]);
    assert_contains(&reason(go([1, 65536, 1], 64, &[0; 8])), &["[1, 65536, 1]"]);
    assert_contains(&reason(go([1, 1, 1], 0, &[0; 8])), &["0 threads"]);
    assert_contains(&reason(go([1, 1, 1], 65, &[0; 8])), &["65 threads", "1 to 64"]);
    assert_contains(&reason(go([1, 1, 1], 64, &[0; 16])), &["16 bytes", "takes 8"]);
}

/// What memory is filled with.
const POISONED: u8 = 0xff;

#[test]
fn memory_is_limited_checked_and_guarded() {
    let simulator = simulator!(0);
    let total = simulator.memory().unwrap().1;
    assert_eq!(total, MEMORY);
    let first = Buffer::of(&simulator, &[1u8; 1000]);
    assert_eq!(simulator.memory().unwrap(), (MEMORY - 1000, MEMORY));
    assert_eq!(simulator.allocate(MEMORY as usize - 999).unwrap(), None);
    assert_eq!(simulator.allocate(usize::MAX).unwrap(), None);
    for bytes in [1, 15, 16, 17, 4096, 5000, 1 << 20] {
        let buffer = Buffer::fresh(&simulator, bytes);
        assert_eq!(buffer.address % 16, 0);
        assert_eq!(buffer.read::<u8>(), vec![POISONED; bytes]);
    }
    // SAFETY: none of these is memory of the simulator, which is what it has to find.
    unsafe {
        let past = reason(simulator.upload(&[0; 11], first.address + 990));
        assert_contains(&past, &["upload failed", "11 bytes", "990 bytes from the start"]);
        assert_contains(&reason(simulator.download(8, &mut [0])), &["download failed"]);
        assert_contains(&reason(simulator.clear(first.address - 1, 4)), &["1 bytes before"]);
        let overlapping = simulator.copy(first.address, first.address + 99, 100);
        assert_contains(&reason(overlapping), &["overlap"]);
        // Refused: the allocation stays.
        simulator.free(first.address, 999);
        simulator.free(first.address + 16, 1000);
    }
    assert_eq!(first.read::<u8>(), [1; 1000]);
    let kernel = kernel(
        &simulator,
        "struct Args { u8* x; }; KERNEL(touch, Args, 32) { args.x[threadIdx.x] = 0; }",
        "touch",
    );
    launch(&*kernel, 1, 32, &[first.address]).unwrap();
    let address = first.address;
    drop(first);
    assert_contains(&reason(launch(&*kernel, 1, 32, &[address])), &["access out of bounds"]);
    simulator.trim().unwrap();
    assert_eq!(simulator.memory().unwrap(), (MEMORY, MEMORY));
}

#[test]
fn every_block_runs_once_in_a_different_order_each_time() {
    for count in [1, 2, 3, 10, 97, 360, 1 << 16] {
        let order = launch::Order::new(count, 12345);
        let mut seen = vec![false; count];
        (0..count).for_each(|i| assert!(!std::mem::replace(&mut seen[order.at(i)], true)));
    }
    let simulator = simulator!(1);
    let kernel = kernel(
        &simulator,
        r"
struct Args { i32 *next, *ticket; };
KERNEL(tickets, Args, 128) {
    i32 i = blockIdx.x * 128 + threadIdx.x;
    args.ticket[i] = atomic_add(args.next, 1);
}
",
        "tickets",
    );
    // Of the threads of one block, and of blocks on several threads of the host.
    for (blocks, threads) in [(1, 128), (1000, 100)] {
        let all = blocks * threads;
        let run = || {
            let next = Buffer::of(&simulator, &[0i32]);
            let tickets = Buffer::fresh(&simulator, 4 * 128 * blocks);
            let arguments = [next.address, tickets.address];
            launch(&*kernel, blocks as u32, threads as u32, &arguments).unwrap();
            let tickets = tickets.read::<i32>();
            let mut sorted: Vec<i32> = tickets.iter().copied().filter(|&t| t >= 0).collect();
            sorted.sort();
            assert_eq!(sorted, Vec::from_iter(0..all as i32));
            tickets
        };
        let first = run();
        assert!((0..8).any(|_| run() != first), "{blocks} blocks in one order");
    }
}
