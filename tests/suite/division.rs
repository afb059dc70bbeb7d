//! How the work of the CPU is divided: on a machine with many cores none of them waits long for another.

use convmat::{Conv, Device, Element, Explanation, PlanOptions, Result, with_axes};
use half::{bf16, f16};

use rayon::prelude::*;

use crate::catalogue::{randoms, tensor, values};
use crate::plans::rayon_pool;
use crate::shapes::Shape;

/// Threads of a large machine.
const THREADS: usize = 64;
/// FLOP, or bytes moved, of a task that takes a core less than 0.1 ms: those need not be divided.
const FLOP: usize = 8_000_000;
const BYTES: usize = 512 << 10;

/// Parts that a sum has, at most.
const PARTS: usize = 128;

/// What faer multiplies is divided by the shape alone: its rounding may depend on a product's extents.
const BY_SHAPE: [&str; 2] = ["gather and multiply", "multiply and fold"];

/// What a call does in all of its tasks.
#[derive(Clone, Copy)]
enum Work {
    Flop(usize),
    Bytes(usize),
}

/// Checks every pass of a call: there are two tasks for each thread, or tasks are small.
fn check(name: &str, explanation: &Explanation, work: Work, weight_len: usize) {
    let partial = Work::Bytes(PARTS * weight_len * size_of::<f32>());
    for pass in &explanation.passes {
        let tasks = pass.tasks.expect("tasks of the CPU");
        let work = if pass.kernel == "add up parts" { partial } else { work };
        if BY_SHAPE.contains(&pass.kernel.as_str()) {
            continue;
        }
        let small = match work {
            Work::Flop(all) => all / tasks <= FLOP,
            Work::Bytes(all) => all / tasks <= BYTES,
        };
        assert!(tasks >= 2 * THREADS || small, "{name}: {tasks} tasks of {}", pass.kernel);
    }
}

fn check_all<const D: usize>(shape: &Shape) -> Result<()> {
    let conv: Conv<D> = shape.conv();
    let (device, options) = (&Device::Cpu, PlanOptions::new());
    let (x, w, y) = (&shape.input_shape(), &shape.weight_shape(), &shape.output_shape());
    let (patches, size) = (&shape.patch_shape(), shape.input_size());
    let weight_len = w.iter().product();
    let check = |operation: &str, explanation: &Explanation, work| {
        check(&format!("{operation} of {}", shape.name), explanation, work, weight_len);
    };
    let flop = Work::Flop(2 * shape.products());
    let forward = conv.plan_forward::<f32>(device, x, w, false, options)?;
    check("forward", forward.explanation(), flop);
    let dx = conv.plan_backward_input::<f32>(device, y, w, size, options)?;
    check("dx", dx.explanation(), flop);
    let dw = conv.plan_backward_weight::<f32>(device, x, y, options)?;
    check("dw", dw.explanation(), flop);
    let bytes = Work::Bytes(shape.patch_bytes());
    let unfold = conv.plan_unfold::<f32>(device, x, options)?;
    check("unfold", unfold.explanation(), bytes);
    let fold = conv.plan_fold::<f32>(device, patches, size, options)?;
    check("fold", fold.explanation(), bytes);
    Ok(())
}

#[test]
fn no_task_is_more_than_half_of_a_threads_share() {
    let checked = |shape: Shape| with_axes!(shape.spatial, D => check_all::<D>(&shape)).unwrap();
    rayon_pool(THREADS).install(|| Shape::named().for_each(checked));
}

/// Tasks of a caller's own may convolve, all at once.
#[test]
fn calls_run_inside_tasks() {
    let conv = Conv::new([3, 3]).padding([1, 1]);
    let of = |shape: &[usize], seed| tensor::<f32>(shape, &randoms(shape.iter().product(), seed));
    let (x, w) = (of(&[2, 6, 30, 30], 1), of(&[5, 6, 3, 3], 2));
    let results = || {
        let patches = conv.unfold(&x).unwrap();
        let dw = conv.backward_weight(&x, &conv.forward(&x, &w, None).unwrap()).unwrap();
        let folded = conv.fold(&patches, [30, 30]).unwrap();
        [values(&patches), values(&dw), values(&folded)]
    };
    let expected = results();
    for threads in [1, 4] {
        rayon_pool(threads).install(|| {
            (0..12).into_par_iter().for_each(|_| assert!(results() == expected));
        });
    }
}

/// Planes are divided where there are few of them; that is not seen in their sums, nor in gradients of half types.
#[test]
fn divided_planes_have_the_same_sums() {
    fn check<T: Element>(conv: &Conv<2>, size: [usize; 2], batch: usize) {
        let x =
            tensor::<T>(&[batch, 3, size[0], size[1]], &randoms(batch * 3 * size[0] * size[1], 3));
        let w = tensor::<T>(&[4, 3, 3, 3], &randoms(108, 4));
        let on = |threads| {
            rayon_pool(threads).install(|| {
                let patches = conv.unfold(&x).unwrap();
                let y = conv.forward(&x, &w, None).unwrap();
                let dw = conv.backward_weight(&x, &y).unwrap();
                let dx = conv.backward_input(&y, &w, size).unwrap();
                let folded = conv.fold(&patches, size).unwrap();
                let average = conv.fold_average(&patches, size).unwrap();
                [patches, y, dw, dx, folded, average].map(|of| values(&of))
            })
        };
        let one = on(1);
        for threads in [2, 7, THREADS] {
            assert!(on(threads) == one, "{} threads, {} of {conv}", threads, T::DTYPE);
        }
    }
    let conv = Conv::new([3, 3]).padding([1, 1]);
    for conv in [conv, conv.stride([2, 1]).padding([(0, 2), (2, 1)]), conv.dilation([2, 3])] {
        for (size, batch) in [([211, 199], 1), ([101, 64], 2), ([13, 13], 0)] {
            check::<f32>(&conv, size, batch);
            check::<bf16>(&conv, size, batch);
            check::<f16>(&conv, size, batch);
        }
    }
}
