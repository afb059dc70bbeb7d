//! Graphs: a step of a pipeline, captured once and launched again and again, on the simulator and on a GPU.

use convmat::cudarc::driver::{CudaContext, sys};
use convmat::{
    Algorithm, Conv, CovarianceOptions, Device, Error, PlanOptions, Product, Result, Tensor, Update,
};

use crate::catalogue::{integers, on, tensor, values};

/// The operands of all plans.
struct Inputs {
    x: Tensor<f32>,
    weight: Tensor<f32>,
    bias: Tensor<f32>,
    dy: Tensor<f32>,
    /// Of a layer with few channels and many positions, whose dW is a sum of parts.
    long_x: Tensor<f32>,
    long_dy: Tensor<f32>,
    /// Of a depthwise layer.
    apart_x: Tensor<f32>,
    apart_dy: Tensor<f32>,
    vector: Tensor<f32>,
}

impl Inputs {
    /// Small integers times `scale`.
    fn new(device: &Device, scale: f64) -> Self {
        let make = |shape: &[usize], seed| {
            let numbers = integers(shape.iter().product(), seed, 2);
            let numbers: Vec<f64> = numbers.into_iter().map(|number| scale * number).collect();
            on(device, &tensor::<f32>(shape, &numbers))
        };
        Inputs {
            x: make(&[2, 16, 9, 8], 1),
            weight: make(&[32, 16, 3, 3], 2),
            bias: make(&[32], 3),
            dy: make(&[2, 32, 9, 8], 4),
            long_x: make(&[2, 4, 40, 40], 5),
            long_dy: make(&[2, 4, 40, 40], 6),
            apart_x: make(&[2, 8, 12, 12], 7),
            apart_dy: make(&[2, 8, 12, 12], 8),
            vector: make(&[16 * 72 + 1], 9),
        }
    }

    /// Puts others in the place of all of them.
    fn overwrite(&mut self, with: &Inputs) {
        let Inputs { x, weight, bias, dy, long_x, long_dy, apart_x, apart_dy, vector } = self;
        for (target, source) in [
            (x, &with.x),
            (weight, &with.weight),
            (bias, &with.bias),
            (dy, &with.dy),
            (long_x, &with.long_x),
            (long_dy, &with.long_dy),
            (apart_x, &with.apart_x),
            (apart_dy, &with.apart_dy),
            (vector, &with.vector),
        ] {
            target.copy_from(source).unwrap();
        }
    }
}

/// Runs a plan on these operands, or without any gives what the last run has made.
type Step = Box<dyn FnMut(Option<&Inputs>) -> Result<Vec<f64>>>;

/// A plan of each kind, with the memory that its runs use, and how the plans explain themselves.
struct Work {
    steps: Vec<(&'static str, Step)>,
    explanations: String,
}

impl Work {
    fn new(device: &Device) -> Self {
        let conv = Conv::new([3, 3]).padding([1, 1]);
        let sizes = Inputs::new(&Device::Cpu, 0.);
        let (plain, by) = (PlanOptions::new(), |algorithm| PlanOptions::new().algorithm(algorithm));
        let mut work = Work { steps: Vec::new(), explanations: String::new() };
        macro_rules! planned {
            ($name:expr, $plan:expr, |$p:ident, $in:ident, $y:ident, $w:ident| $run:expr) => {{
                let $p = $plan.unwrap();
                let mut made = Tensor::<f32>::zeros(device, $p.result_shape()).unwrap();
                let mut space = $p.make_workspace().unwrap();
                work.explanations += &format!("{}\n", $p);
                let step = move |inputs: Option<&Inputs>| match inputs {
                    Some($in) => {
                        let ($y, $w) = (&mut made, &mut space);
                        $run.map(|()| Vec::new())
                    }
                    None => Ok(values(&made)),
                };
                work.steps.push(($name, Box::new(step)));
            }};
        }
        let unfold = conv.plan_unfold::<f32>(device, sizes.x.shape(), plain);
        planned!("unfold", unfold, |p, from, y, w| p.run(&from.x, y, w));
        // By im2col the patches are in the workspace, and cuBLAS multiplies where there is one.
        for (name, algorithm) in
            [("forward im2col", Algorithm::Im2col), ("forward implicit", Algorithm::Implicit)]
        {
            let (x, w) = (sizes.x.shape(), sizes.weight.shape());
            let forward = conv.plan_forward::<f32>(device, x, w, true, by(algorithm));
            planned!(name, forward, |p, from, y, w| {
                p.run(&from.x, &from.weight, &from.bias, y, w)
            });
        }
        let (dy, w) = (sizes.dy.shape(), sizes.weight.shape());
        let dx = conv.plan_backward_input::<f32>(device, dy, w, [9, 8], by(Algorithm::Im2col));
        planned!("dx im2col", dx, |p, from, y, w| p.run(&from.dy, &from.weight, y, w));
        let (x, dy) = (sizes.x.shape(), sizes.dy.shape());
        let dw = conv.plan_backward_weight::<f32>(device, x, dy, by(Algorithm::Im2col));
        planned!("dw im2col", dw, |p, from, y, w| p.run(&from.x, &from.dy, y, w));
        let (x, dy) = (sizes.long_x.shape(), sizes.long_dy.shape());
        let parts = conv.plan_backward_weight::<f32>(device, x, dy, by(Algorithm::Implicit));
        planned!("dw in parts", parts, |p, from, y, w| p.run(&from.long_x, &from.long_dy, y, w));
        let apart = conv.groups(8);
        let direct = if *device == Device::Cpu { Algorithm::Auto } else { Algorithm::Depthwise };
        let (x, dy) = (sizes.apart_x.shape(), sizes.apart_dy.shape());
        let dw = apart.plan_backward_weight::<f32>(device, x, dy, by(direct));
        planned!("dw direct", dw, |p, from, y, w| p.run(&from.apart_x, &from.apart_dy, y, w));
        let db = conv.plan_backward_bias::<f32>(device, sizes.long_dy.shape(), plain);
        planned!("db", db, |p, from, y, w| p.run(&from.long_dy, y, w));
        let biased = CovarianceOptions::new().bias(true);
        let factor = conv.plan_covariance::<f32, f32>(device, sizes.x.shape(), biased, plain);
        planned!("covariance", factor, |p, from, y, w| {
            p.run(&from.x, Update::replace(1.0), y, w)
        });
        work.matrix(device, conv);
        work
    }

    /// The layer's matrix, written into one that is there, and products with another.
    fn matrix(&mut self, device: &Device, conv: Conv<2>) {
        let plain = PlanOptions::new();
        let Inputs { weight, bias, .. } = Inputs::new(device, 1.);
        let plan = conv.plan_matrix::<f32>(device, weight.shape(), true, [9, 8], plain).unwrap();
        let whole = conv.matrix(&weight, &bias, [9, 8]).unwrap();
        let mut target = conv.matrix(&weight, &bias, [9, 8]).unwrap();
        let mut space = plan.make_workspace().unwrap();
        let step = move |inputs: Option<&Inputs>| match inputs {
            Some(from) => {
                plan.run(&from.weight, &from.bias, &mut target, &mut space).map(|()| Vec::new())
            }
            None => {
                let host = target.clone().to_device(&Device::Cpu)?;
                Ok(host.data().expect("it is on the host").iter().map(|&v| v.into()).collect())
            }
        };
        self.steps.push(("matrix", Box::new(step)));
        let plan = whole.plan_product(Product::vector(), plain).unwrap();
        let mut y = Tensor::<f32>::zeros(device, &[whole.rows()]).unwrap();
        let mut space = plan.make_workspace().unwrap();
        let step = move |inputs: Option<&Inputs>| match inputs {
            Some(from) => plan.run(&whole, &from.vector, &mut y, &mut space).map(|()| Vec::new()),
            None => Ok(values(&y)),
        };
        self.steps.push(("sparse product", Box::new(step)));
    }

    fn run(&mut self, inputs: &Inputs) -> Result<()> {
        self.steps.iter_mut().try_for_each(|(_, step)| step(Some(inputs)).map(drop))
    }

    fn results(&mut self) -> Vec<(&'static str, Vec<f64>)> {
        self.steps.iter_mut().map(|(name, step)| (*name, step(None).unwrap())).collect()
    }
}

/// What the runs make, by the CPU's plans.
fn expected() -> Vec<(&'static str, Vec<f64>)> {
    let mut work = Work::new(&Device::Cpu);
    work.run(&Inputs::new(&Device::Cpu, 1.)).unwrap();
    work.results()
}

#[cfg(all(feature = "simulator", unix))]
#[test]
fn the_simulator_allows_what_graphs_are_made_of() {
    // Direct kernels are made for each layer, as on a GPU.
    for (blas, sanitizer) in [(false, false), (true, false), (true, true)] {
        let simulation =
            convmat::Simulation { specialise: true, blas, sanitizer, ..Default::default() };
        let Ok(device) = Device::simulator_with(simulation) else {
            return eprintln!("skipped: there is no simulator");
        };
        let mut work = Work::new(&device);
        // What the names promise.
        for part in ["SPLIT", "depthwise", "im2col"] {
            assert!(work.explanations.contains(part), "{part}: {}", work.explanations);
        }
        assert_eq!(work.explanations.contains("cublas"), blas, "{}", work.explanations);
        replayed(&device, &mut work);
    }
}

/// Captures the work with zeros in its operands and launches it with others in them.
fn replayed(device: &Device, work: &mut Work) {
    let Device::Cuda(cuda) = device else { unreachable!("it is a CUDA device") };
    let mut inputs = Inputs::new(device, 0.);
    // cuBLAS loads its kernels when they are first used.
    work.run(&inputs).unwrap();
    let nothing = work.results();
    let mut graph = cuda.capture(|| work.run(&inputs)).unwrap();
    let expected = expected();
    assert_ne!(nothing, expected);
    for (scale, expected) in [(1., &expected), (0., &nothing), (1., &expected)] {
        inputs.overwrite(&Inputs::new(&Device::Cpu, scale));
        assert_ne!(&work.results(), expected, "captured work is not done before the launch");
        // SAFETY: operands, plans and workspaces are those of the capture.
        unsafe { graph.launch().unwrap() };
        assert_eq!(&work.results(), expected);
    }
}

/// A GPU on a stream of its own, whose context orders streams by events, as cudarc's do.
fn gpu() -> Option<Device> {
    // Says whether there is a GPU without calling a library that is not there.
    match Device::cuda_on_new_stream(0) {
        Ok(device) => Some(device),
        Err(reason) => {
            eprintln!("skipped: {reason}");
            None
        }
    }
}

#[test]
fn a_graph_is_captured_and_outlives_the_device() {
    let Some(device) = gpu() else { return };
    let Device::Cuda(cuda) = &device else { unreachable!("it is a CUDA device") };
    assert!(cuda.stream().is_some_and(|stream| stream.context().is_event_tracking()));
    replayed(&device, &mut Work::new(&device));
    let [inputs, zeros] = [1., 0.].map(|scale| Inputs::new(&device, scale));
    let mut work = Work::new(&device);
    // cuBLAS loads its kernels when they are first used.
    work.run(&zeros).unwrap();
    let mut graph = cuda.capture(|| work.run(&inputs)).unwrap();
    drop(device);
    let expected = expected();
    for _ in 0..2 {
        work.run(&zeros).unwrap();
        assert_ne!(work.results(), expected);
        // SAFETY: operands, plans and workspaces are those of the capture.
        unsafe { graph.launch().unwrap() };
        assert_eq!(work.results(), expected);
    }
}

/// By cudarc's own calls, on a pipeline's stream.
#[test]
fn a_pipeline_captures_its_own_stream() {
    if gpu().is_none() {
        return;
    }
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    let device = Device::on_stream(stream.clone()).unwrap();
    let [inputs, zeros] = [1., 0.].map(|scale| Inputs::new(&device, scale));
    let mut work = Work::new(&device);
    work.run(&zeros).unwrap();
    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    work.run(&inputs).unwrap();
    let flags = sys::CUgraphInstantiate_flags(0);
    let graph = stream.end_capture(flags).unwrap().expect("work was captured");
    work.run(&zeros).unwrap();
    graph.launch().unwrap();
    assert_eq!(work.results(), expected());
}

#[test]
fn what_cannot_be_captured_says_so() {
    let Some(device) = gpu() else { return };
    let Device::Cuda(cuda) = &device else { unreachable!("it is a CUDA device") };
    let (conv, inputs) = (Conv::new([3, 3]), Inputs::new(&device, 1.));
    // One-call forms make their results.
    match cuda.capture(|| conv.unfold(&inputs.x).map(drop)) {
        Err(Error::Device { call, reason, .. }) => {
            assert!(call == "allocating memory" && reason.contains("captured"), "{call} {reason}");
        }
        other => panic!("{other:?}"),
    }
    // The device is as usable as before.
    let host = Inputs::new(&Device::Cpu, 1.);
    assert_eq!(values(&conv.unfold(&inputs.x).unwrap()), values(&conv.unfold(&host.x).unwrap()));
    let Ok(Device::Cuda(first)) = Device::cuda(0) else { panic!("there is a GPU") };
    match first.capture(|| panic!("nothing is captured")) {
        Err(Error::Invalid { reason, .. }) => {
            assert!(reason.contains("legacy") && reason.contains("cuda_on_new_stream"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}
