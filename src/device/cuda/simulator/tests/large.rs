//! Tensors of more than 2³¹ elements, on memory that is taken from the host only where it is touched: the
//! first and the last blocks of each launch are run, and their results are those of the same images alone.

use half::f16;

use super::*;
use crate::device::Device;
use crate::{Algorithm, Conv, Element, Layout, Tensor, TensorView, TensorViewMut};

/// Images of 2 channels of 168 × 160, more than 2³¹ elements in all.
const IMAGES: usize = 40_000;
const EXTENTS: [usize; 2] = [168, 160];
/// What is looked at of them: images at either end.
const LOOKED_AT: usize = 2;
/// Results that the first and the last blocks have at least.
const AT_LEAST: usize = 64;

fn with_batch(shape: &[usize], images: usize) -> Vec<usize> {
    [&[images], &shape[1..]].concat()
}

/// Numbers from 1 on, so that what nothing has computed, a zero, stands out.
fn numbers<T: Element>(shape: &[usize], seed: usize) -> Tensor<T> {
    let len = shape.iter().product();
    let data = (0..len).map(|at| T::from_f64(1.0 + ((at * 7 + seed) % 5) as f64)).collect();
    Tensor::from_vec(&Device::Cpu, shape, data).unwrap()
}

/// Runs an operation whose result has the same number of images. `run` is given the large tensor, or the few
/// images, and what to write to.
fn ends_agree<T: Element>(
    name: &str,
    device: &Device,
    input: &[usize],
    result: &[usize],
    run: impl Fn(TensorView<'_, T>, TensorViewMut<'_, T>),
) {
    let mut x = Tensor::<T>::zeros(device, &with_batch(input, IMAGES)).unwrap();
    assert!(x.len() > 1 << 31, "{name}");
    let mut y = Tensor::<T>::zeros(device, &with_batch(result, IMAGES)).unwrap();
    let parts = [0..LOOKED_AT, IMAGES - LOOKED_AT..IMAGES];
    let few = [1, 2].map(|seed| numbers::<T>(&with_batch(input, LOOKED_AT), seed));
    for (range, few) in parts.iter().zip(&few) {
        x.view_mut().slice_rows(range.clone()).copy_from(few).unwrap();
    }
    run(x.view(), y.view_mut());
    for (at, (range, few)) in parts.iter().zip(&few).enumerate() {
        let mut expected =
            Tensor::<T>::zeros(&Device::Cpu, &with_batch(result, LOOKED_AT)).unwrap();
        run(few.view(), expected.view_mut());
        let found = y.view().slice_rows(range.clone()).to_vec().unwrap();
        let expected = expected.view().to_vec().unwrap();
        let computed: Vec<usize> =
            (0..found.len()).filter(|&at| found[at].to_f64() != 0.0).collect();
        let wrong = computed.iter().find(|&&at| found[at].to_f64() != expected[at].to_f64());
        assert_eq!(wrong, None, "{name}, part {at}");
        let end = if at == 0 { 0..AT_LEAST } else { found.len() - AT_LEAST..found.len() };
        let missing = end.clone().find(|at| found[*at].to_f64() == 0.0);
        assert_eq!(missing, None, "{name}, part {at}: {} of {end:?}", computed.len());
    }
}

#[test]
fn elements_beyond_32_bits_are_reached() {
    let Some(device) = of_ends(2) else { return };
    for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
        let conv = Conv::new([2, 1]).layout(layout);
        let outputs = [EXTENTS[0] - 1, EXTENTS[1]];
        let input = layout.activation_shape(1, 2, &EXTENTS);
        let output = layout.activation_shape(1, 2, &outputs);
        let patches = layout.patch_shape(1, 4, outputs[0] * outputs[1]);
        ends_agree::<f16>(&format!("unfold {layout:?}"), &device, &input, &patches, |x, y| {
            conv.unfold_into(x, y).unwrap();
        });
        ends_agree::<f16>(&format!("fold {layout:?}"), &device, &patches, &input, |x, y| {
            conv.fold_into(x, y).unwrap();
        });
        let cases = [(Algorithm::Implicit, 1), (Algorithm::Naive, 1), (Algorithm::Depthwise, 2)];
        for (algorithm, groups) in cases {
            let conv = conv.groups(groups);
            let name = format!("forward {algorithm} {layout:?}");
            let weight = numbers::<f16>(&layout.weight_shape(2, 2 / groups, &[2, 1]), 3);
            let there = weight.clone().to_device(&device).unwrap();
            ends_agree::<f16>(&name, &device, &input, &output, |x, y| {
                let algorithm = if x.device() == device { algorithm } else { Algorithm::Auto };
                let weight = if x.device() == device { &there } else { &weight };
                let options = crate::PlanOptions::new().algorithm(algorithm);
                let (shape, of) = (x.shape().to_vec(), weight.shape());
                let plan = conv.plan_forward::<f16>(&x.device(), &shape, of, false, options);
                let plan = plan.unwrap();
                let mut space = plan.make_workspace().unwrap();
                plan.run(x, weight, None, y, &mut space).unwrap();
            });
        }
    }
}

/// The planted fault: an index of 32 bits, which begins anew.
#[test]
fn indices_that_are_too_narrow_are_found() {
    let Some(simulator) = set_up(Setup { ends: Some(1), memory: 1 << 44, ..setup(0) }) else {
        return;
    };
    let image = image(
        &simulator,
        "struct Args { u8* x; i64 n; };
         template <typename Index> DEVICE void set(const Args& args) {
             Index at = (Index)blockIdx.x * 256 + threadIdx.x;
             if (at < args.n) args.x[at] = 7;
         }
         KERNEL(wide, Args, 256) { set<i64>(args); }
         KERNEL(narrow, Args, 256) { set<u32>(args); }",
    );
    let len = (1usize << 32) + 300;
    // Of the last 400 bytes the last block has 44, and all between it and the first are left out.
    for (entry, reached) in [("narrow", 0), ("wide", 44)] {
        let x = Buffer::fresh(&simulator, len);
        let kernel = simulator.load(&image, entry).unwrap();
        launch(&*kernel, len.div_ceil(256) as u32, 256, &[x.address, len as u64]).unwrap();
        let mut end = [0; 400];
        // SAFETY: inside the buffer.
        unsafe { simulator.download(x.address + len as u64 - 400, &mut end).unwrap() };
        assert_eq!(
            end,
            std::array::from_fn(|at| if at < 400 - reached { 0 } else { 7 }),
            "{entry}"
        );
    }
}
