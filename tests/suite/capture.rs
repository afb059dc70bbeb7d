//! CUDA graphs: a step of a pipeline, captured once and launched again and again. Needs a GPU.

use convmat::cudarc::driver::{CudaContext, sys};
use convmat::{Algorithm, Conv, CovarianceOptions, Device, PlanOptions, Tensor, Update};

use crate::catalogue::{integers, on, tensor, values};

#[test]
fn runs_of_plans_are_captured_in_a_graph() {
    // Says whether there is a GPU without calling a library that is not there.
    if let Err(reason) = Device::cuda(0) {
        return eprintln!("skipped: {reason}");
    }
    let context = CudaContext::new(0).unwrap();
    // SAFETY: all work of this test is on one stream.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().unwrap();
    let device = Device::on_stream(stream.clone()).unwrap();
    let conv = Conv::new([3, 3]).padding([1, 1]);
    let x = tensor::<f32>(&[2, 16, 9, 8], &integers(2 * 16 * 72, 1, 3));
    let weight = tensor::<f32>(&[32, 16, 3, 3], &integers(32 * 144, 2, 3));
    let (patches, y) = (conv.unfold(&x).unwrap(), conv.forward(&x, &weight, None).unwrap());
    let biased = CovarianceOptions::new().bias(true);
    let covariance = conv.covariance::<f32, f32>(&x, biased).unwrap();

    let (x, weight) = (on(&device, &x), on(&device, &weight));
    let mut patches_there = Tensor::<f32>::zeros(&device, patches.shape()).unwrap();
    let mut y_there = Tensor::<f32>::zeros(&device, y.shape()).unwrap();
    let zeros = Tensor::<f32>::zeros(&device, x.shape()).unwrap();
    let unfold = conv.plan_unfold::<f32>(&device, x.shape(), PlanOptions::new()).unwrap();
    // By im2col, whose patches are in the workspace.
    let options = PlanOptions::new().algorithm(Algorithm::Im2col);
    let forward = conv.plan_forward::<f32>(&device, x.shape(), weight.shape(), false, options);
    let forward = forward.unwrap();
    let mut workspace = forward.make_workspace().unwrap();
    let mut factor = Tensor::<f32>::zeros(&device, covariance.shape()).unwrap();
    let plan = PlanOptions::new();
    let factors = conv.plan_covariance::<f32, f32>(&device, x.shape(), biased, plan).unwrap();
    let mut factors_workspace = factors.make_workspace().unwrap();
    let mut step = |x: &Tensor<f32>| {
        unfold.run(x, &mut patches_there, &mut workspace).unwrap();
        forward.run(x, &weight, None, &mut y_there, &mut workspace).unwrap();
        let update = Update::replace(1.0);
        factors.run(x, update, &mut factor, &mut factors_workspace).unwrap();
    };
    // cuBLAS allocates at its first product, which a capture does not allow.
    step(&zeros);
    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    step(&x);
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).unwrap().expect("work was captured");
    for _ in 0..2 {
        step(&zeros);
        graph.launch().unwrap();
    }
    assert_eq!(values(&patches_there), values(&patches));
    assert_eq!(values(&y_there), values(&y));
    assert_eq!(values(&factor), values(&covariance));
}
