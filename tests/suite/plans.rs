//! Plans: chosen once, explained, prepared and repeated.

use std::alloc::{GlobalAlloc, Layout as Memory, System};
use std::cell::Cell;

use convmat::{
    Algorithm, Conv, Device, Error, Layout, PaddingMode, PlanOptions, Tensor, TensorView,
    TensorViewMut, Workspace, with_axes,
};
use half::bf16;

use crate::catalogue::{conv, devices, integers, last, layers, on, tensor, values};
use crate::oracle::Case;

/// Counts what the calling thread allocates.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: all calls are passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, memory: Memory) -> *mut u8 {
        // A thread that is ending has no counter any more.
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: passed on to the caller.
        unsafe { System.alloc(memory) }
    }

    unsafe fn dealloc(&self, at: *mut u8, memory: Memory) {
        // SAFETY: passed on to the caller.
        unsafe { System.dealloc(at, memory) }
    }
}

/// How often the calling thread has allocated.
pub fn allocations() -> usize {
    ALLOCATIONS.with(Cell::get)
}

/// Operands of every operation on a case, on a device.
struct Operands {
    x: Tensor<f32>,
    weight: Tensor<f32>,
    bias: Tensor<f32>,
    dy: Tensor<f32>,
    patches: Tensor<f32>,
}

impl Operands {
    fn new(c: &Case, device: &Device) -> Self {
        let make = |shape: &[usize], seed| {
            let host = tensor::<f32>(shape, &integers(shape.iter().product(), seed, 3));
            on(device, &host)
        };
        Operands {
            x: make(&c.input_shape(), 1),
            weight: make(&c.weight_shape(), 2),
            bias: make(&[c.outputs], 3),
            dy: make(&c.output_shape(), 4),
            patches: make(&c.patch_shape(), 5),
        }
    }
}

/// Every operation on a case as a plan: calls `check` with its name, a run and the result.
fn each_plan<const D: usize>(
    c: &Case,
    device: &Device,
    algorithms: &[Algorithm],
    mut check: impl FnMut(&str, &mut dyn FnMut() -> convmat::Result<()>) -> Vec<f64>,
) -> Vec<(String, Vec<f64>)> {
    let conv = conv::<D>(c);
    let at = Operands::new(c, device);
    let size = last::<D>(c.input);
    let options = PlanOptions::new();
    let mut found = Vec::new();
    macro_rules! planned {
        ($name:expr, $plan:expr, |$p:ident, $result:ident, $workspace:ident| $run:expr) => {{
            let $p = $plan.unwrap();
            let mut made = Tensor::<f32>::zeros(device, $p.result_shape()).unwrap();
            let mut space = $p.make_workspace().unwrap();
            {
                let $result = &mut made;
                let $workspace = &mut space;
                check(&$name, &mut || $run);
            }
            found.push(($name.to_string(), values(&made)));
        }};
    }
    let Operands { x, weight, bias, dy, patches } = &at;
    planned!("unfold", conv.plan_unfold::<f32>(device, x.shape(), options), |p, y, w| {
        p.run(x, &mut *y, w)
    });
    let fold = conv.plan_fold::<f32>(device, patches.shape(), size, options);
    planned!("fold", fold, |p, y, w| p.run(patches, &mut *y, w));
    let average = conv.plan_fold_average::<f32>(device, patches.shape(), size, options);
    planned!("fold average", average, |p, y, w| p.run(patches, &mut *y, w));
    for &algorithm in algorithms {
        let options = options.algorithm(algorithm);
        let (xs, ws, ys) = (x.shape(), weight.shape(), dy.shape());
        let plan = conv.plan_forward::<f32>(device, xs, ws, true, options);
        planned!(format!("forward {algorithm}"), plan, |p, y, w| {
            p.run(x, weight, bias, &mut *y, w)
        });
        let plan = conv.plan_backward_input::<f32>(device, ys, ws, size, options);
        planned!(format!("dx {algorithm}"), plan, |p, y, w| p.run(dy, weight, &mut *y, w));
        let plan = conv.plan_backward_weight::<f32>(device, xs, ys, options);
        planned!(format!("dw {algorithm}"), plan, |p, y, w| p.run(x, dy, &mut *y, w));
    }
    let plan = conv.plan_backward_bias::<f32>(device, dy.shape(), options);
    planned!("db", plan, |p, y, w| p.run(dy, &mut *y, w));
    found
}

/// Captures work in a graph and launches that once.
#[cfg(all(feature = "simulator", unix))]
pub fn run_captured(cuda: &convmat::CudaDevice, work: impl FnOnce() -> convmat::Result<()>) {
    let mut graph = cuda.capture(work).unwrap();
    // SAFETY: what the work borrows is still there.
    unsafe { graph.launch().unwrap() };
}

/// Runs of plans only launch and copy: as a stream that is captured into a graph demands.
#[cfg(all(feature = "simulator", unix))]
#[test]
fn runs_may_be_captured_in_a_graph() {
    use crate::catalogue::sanitized;
    let Some(device) = sanitized() else { return };
    let Device::Cuda(cuda) = &device else { unreachable!("the simulator is a CUDA device") };
    for c in layers().iter().step_by(3) {
        let captured = |_: &str, run: &mut dyn FnMut() -> convmat::Result<()>| {
            run_captured(cuda, run);
            Vec::new()
        };
        let plainly = |_: &str, run: &mut dyn FnMut() -> convmat::Result<()>| {
            run().unwrap();
            Vec::new()
        };
        let (found, expected) = with_axes!(c.spatial, D => {
            Ok::<_, Error>((
                each_plan::<D>(c, &device, &Algorithm::GENERAL, captured),
                each_plan::<D>(c, &Device::Cpu, &[Algorithm::Naive], plainly),
            ))
        })
        .unwrap();
        for (name, result) in found {
            let plain = name.split(' ').next().unwrap();
            let plain = if name == "fold average" { "fold average" } else { plain };
            let same = expected.iter().find(|(other, _)| {
                other == plain || *other == format!("{plain} {}", Algorithm::Naive)
            });
            assert_eq!(result, same.unwrap().1, "{name} {c:?}");
        }
        // One-call forms make their plans and workspaces, which a capture does not allow.
        let x = Operands::new(c, &device).x;
        let unfold = with_axes!(c.spatial, D => {
            cuda.capture(|| conv::<D>(c).unfold(&x).map(drop))
        });
        match unfold {
            Err(Error::Device { call, reason, .. }) => {
                assert!(
                    call == "allocating memory" && reason.contains("captured"),
                    "{call} {reason}"
                );
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A repeated run on the CPU allocates nothing: no table is rebuilt, no scratch memory taken.
#[test]
fn repeated_runs_on_the_cpu_allocate_nothing() {
    let pool = rayon_pool(1);
    let checked = |c: &Case| {
        let run_twice = |name: &str, run: &mut dyn FnMut() -> convmat::Result<()>| {
            // The first run may fill caches of libraries.
            run().unwrap();
            let before = allocations();
            run().unwrap();
            assert_eq!(allocations() - before, 0, "{name} {c:?}");
            Vec::new()
        };
        with_axes!(c.spatial, D => {
            let all = each_plan::<D>(c, &Device::Cpu, &Algorithm::GENERAL, run_twice);
            assert!(!all.is_empty());
            Ok::<(), Error>(())
        })
        .unwrap();
    };
    pool.install(|| layers().iter().for_each(checked));
}

pub fn rayon_pool(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
}

/// A plan made in one pool runs in any other, with the same bytes.
#[test]
fn pools_of_any_size_run_a_plan() {
    let c = &layers()[0];
    let conv = conv::<2>(c);
    let Operands { x, weight, .. } = Operands::new(c, &Device::Cpu);
    let plan_in = |threads| {
        let options = PlanOptions::new();
        let plan =
            || conv.plan_forward::<f32>(&Device::Cpu, x.shape(), weight.shape(), false, options);
        rayon_pool(threads).install(plan).unwrap()
    };
    let mut results = Vec::new();
    for (planned, run) in [(1, 1), (1, 4), (4, 1), (3, 4)] {
        let plan = plan_in(planned);
        let mut y = Tensor::zeros(&Device::Cpu, plan.result_shape()).unwrap();
        let mut workspace = plan.make_workspace().unwrap();
        rayon_pool(run).install(|| plan.run(&x, &weight, None, &mut y, &mut workspace)).unwrap();
        results.push(y);
    }
    assert!(results.iter().all(|y| y.as_slice() == results[0].as_slice()));
}

/// Plans are handles that threads share.
#[test]
fn plans_are_shared() {
    fn shared<T: Send + Sync + Clone + 'static>(_: &T) {}
    let conv = Conv::new([3, 3]).padding([1, 1]);
    let options = PlanOptions::new();
    let plan = conv.plan_unfold::<f32>(&Device::Cpu, &[1, 2, 5, 5], options).unwrap();
    shared(&plan);
    let x = tensor::<f32>(&[1, 2, 5, 5], &integers(50, 1, 9));
    let expected = conv.unfold(&x).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let (plan, x, expected) = (plan.clone(), &x, &expected);
            scope.spawn(move || {
                let mut patches = Tensor::zeros(&Device::Cpu, plan.result_shape()).unwrap();
                plan.run(x, &mut patches, &mut plan.make_workspace().unwrap()).unwrap();
                assert!(patches.as_slice() == expected.as_slice());
            });
        }
    });
}

/// What does not fit a plan is refused by name.
#[test]
fn runs_refuse_what_was_not_planned_for() {
    let conv = Conv::new([3, 3]).padding([1, 1]);
    let options = PlanOptions::new().algorithm(Algorithm::Im2col);
    for device in devices() {
        let plan =
            conv.plan_forward::<f32>(device, &[1, 2, 6, 6], &[4, 2, 3, 3], true, options).unwrap();
        let zeros = |shape: &[usize]| Tensor::<f32>::zeros(device, shape).unwrap();
        let (x, weight, bias) = (zeros(&[1, 2, 6, 6]), zeros(&[4, 2, 3, 3]), zeros(&[4]));
        let mut y = zeros(&[1, 4, 6, 6]);
        let mut workspace = plan.make_workspace().unwrap();
        plan.run(&x, &weight, &bias, &mut y, &mut workspace).unwrap();
        let shape = |result: convmat::Result<()>, name: &str| match result {
            Err(Error::Shape { argument, .. }) => assert_eq!(argument, name),
            other => panic!("{name}: {other:?}"),
        };
        let w = &mut workspace;
        shape(plan.run(&zeros(&[1, 2, 6, 5]), &weight, &bias, &mut y, w), "input");
        shape(plan.run(&x, &zeros(&[4, 2, 3, 2]), &bias, &mut y, w), "weight");
        shape(plan.run(&x, &weight, &zeros(&[3]), &mut y, w), "bias");
        shape(plan.run(&x, &weight, &bias, &mut zeros(&[1, 4, 6, 7]), w), "output");
        let invalid = |result: convmat::Result<()>, name: &str| match result {
            Err(Error::Invalid { argument, .. }) => assert_eq!(argument, name),
            other => panic!("{name}: {other:?}"),
        };
        invalid(plan.run(&x, &weight, None, &mut y, w), "bias");
        invalid(plan.run(&x, &weight, &bias, &mut y, &mut Workspace::none()), "workspace");
        // A caller's own memory serves as well, and a larger one.
        let mut own = zeros(&[plan.workspace() as usize / 4 + 64]);
        let view: TensorViewMut<'_, f32> = own.view_mut();
        plan.run(&x, &weight, &bias, &mut y, &mut Workspace::from_view(view).unwrap()).unwrap();
    }
    if let [cpu, other, ..] = devices() {
        let shapes = ([1, 2, 6, 6], [4, 2, 3, 3]);
        let plan = conv.plan_forward::<f32>(other, &shapes.0, &shapes.1, false, options).unwrap();
        let zeros = |device, shape: &[usize]| Tensor::<f32>::zeros(device, shape).unwrap();
        let mut y = zeros(other, &[1, 4, 6, 6]);
        let (x, weight) = (zeros(cpu, &shapes.0), zeros(other, &shapes.1));
        let run = plan.run(&x, &weight, None, &mut y, &mut plan.make_workspace().unwrap());
        assert!(matches!(run, Err(Error::DeviceMismatch { .. })), "{run:?}");
        let x = zeros(other, &shapes.0);
        let run = plan.run(&x, &weight, None, &mut y, &mut Workspace::new(cpu, 1 << 20).unwrap());
        assert!(matches!(run, Err(Error::DeviceMismatch { .. })), "{run:?}");
    }
}

/// Named algorithms that exist agree with the definition; those that do not are refused by name.
#[test]
fn algorithms_of_some_layers_only() {
    let grouped = |groups| Conv::new([3, 3]).padding([1, 1]).groups(groups);
    // Lines as long as vectors are: else the CPU's tiles of lines do not pay.
    let x = tensor::<f32>(&[2, 8, 16, 16], &integers(4096, 1, 3));
    for device in devices() {
        let x = on(device, &x);
        for (groups, algorithm) in [(2, Algorithm::Direct), (8, Algorithm::Depthwise)] {
            let conv = grouped(groups);
            let shape = [8, 8 / groups, 3, 3];
            let weight = on(device, &tensor::<f32>(&shape, &integers(8 * 72 / groups, 2, 3)));
            let found = conv.forward_by(&x, &weight, None, algorithm);
            let expected = conv.forward_by(&x, &weight, None, Algorithm::Naive).unwrap();
            let exists = match (device, algorithm) {
                (Device::Cpu, Algorithm::Direct) => false,
                (Device::Cpu, _) => true,
                // Its kernels are made for a layer, which simulators are told to do.
                _ => format!("{device}") != "simulator",
            };
            match found {
                Ok(y) => assert_eq!(values(&y), values(&expected), "{algorithm} on {device}"),
                Err(Error::Invalid { argument, value, .. }) => {
                    assert_eq!((argument.as_str(), value), ("algorithm", algorithm.to_string()));
                    assert!(!exists, "{algorithm} on {device}");
                }
                Err(other) => panic!("{other}"),
            }
        }
        let weight = on(device, &tensor::<f32>(&[8, 8, 3, 3], &integers(576, 2, 3)));
        for algorithm in [Algorithm::Direct, Algorithm::Depthwise] {
            let refused = grouped(1).forward_by(&x, &weight, None, algorithm);
            assert!(matches!(refused, Err(Error::Invalid { .. })), "{algorithm} on {device}");
        }
    }
}

/// What is replaced is said: implicit has no adjoint in modes where several positions read one input.
#[test]
fn replacements_are_stated() {
    let conv = Conv::new([3, 3]).padding([1, 1]).padding_mode(PaddingMode::Reflect);
    let options = PlanOptions::new().algorithm(Algorithm::Implicit);
    for device in devices() {
        let plan = conv
            .plan_backward_input::<bf16>(device, &[1, 4, 8, 8], &[4, 4, 3, 3], [8, 8], options)
            .unwrap();
        let explanation = plan.explanation();
        assert_eq!(explanation.algorithm, "im2col", "{device}");
        assert!(explanation.reason.contains("implicit"), "{}", explanation.reason);
    }
}

/// The workspace that a caller allows is kept to by tiles of fewer images.
#[test]
fn tiles_shrink_to_the_workspace_allowed() {
    let conv = Conv::new([3, 3]).padding([1, 1]);
    let (x, weight) = ([8, 4, 8, 8], [4, 4, 3, 3]);
    for device in &devices()[1..] {
        let plan = |limit| {
            let options = PlanOptions::new().algorithm(Algorithm::Im2col).workspace_limit(limit);
            conv.plan_forward::<f32>(device, &x, &weight, false, options)
        };
        let whole = plan(u64::MAX).unwrap();
        let image = 4 * 9 * 64 * 4;
        assert_eq!(whole.workspace(), 8 * image);
        let part = plan(3 * image).unwrap();
        assert_eq!(part.workspace(), 3 * image);
        assert!(part.explanation().passes.len() > whole.explanation().passes.len());
        let at = |shape: &[usize], seed| {
            on(device, &tensor::<f32>(shape, &integers(shape.iter().product(), seed, 3)))
        };
        let (x, weight) = (at(&x, 1), at(&weight, 2));
        let run = |plan: &convmat::ForwardPlan<f32>| {
            let mut y = Tensor::zeros(device, plan.result_shape()).unwrap();
            let view: TensorView<'_, f32> = (&x).into();
            plan.run(view, &weight, None, &mut y, &mut plan.make_workspace().unwrap()).unwrap();
            values(&y)
        };
        assert_eq!(run(&whole), run(&part));
    }
}

/// `auto` always finds an algorithm, whatever workspace is allowed, and says why it is that one.
#[test]
fn auto_fits_any_workspace() {
    let conv = Conv::new([3, 3]).padding([1, 1]).padding_mode(PaddingMode::Reflect);
    let (x, weight, y) = ([2, 8, 9, 9], [8, 8, 3, 3], [2, 8, 9, 9]);
    let none = PlanOptions::new().workspace_limit(0);
    for device in devices() {
        let forward = conv.plan_forward::<bf16>(device, &x, &weight, true, none).unwrap();
        let dx = conv.plan_backward_input::<bf16>(device, &y, &weight, [9, 9], none).unwrap();
        let dw = conv.plan_backward_weight::<bf16>(device, &x, &y, none).unwrap();
        for (bytes, explanation) in [
            (forward.workspace(), forward.explanation()),
            (dx.workspace(), dx.explanation()),
            (dw.workspace(), dw.explanation()),
        ] {
            assert_eq!(bytes, 0, "{explanation}");
            let reason = &explanation.reason;
            let says = reason.contains("room") || reason.contains("so little to do");
            assert!(explanation.algorithm != "naive" || says, "{explanation}");
        }
        let image = tensor::<bf16>(&x, &integers(1296, 1, 3));
        let kernel = tensor::<bf16>(&weight, &integers(576, 2, 3));
        let bias = tensor::<bf16>(&[8], &integers(8, 3, 3));
        let mut out = Tensor::zeros(device, forward.result_shape()).unwrap();
        let there = [&image, &kernel, &bias].map(|operand| on(device, operand));
        let [at_x, at_weight, at_bias] = &there;
        forward.run(at_x, at_weight, at_bias, &mut out, &mut Workspace::none()).unwrap();
        assert_eq!(values(&out), values(&conv.forward(&image, &kernel, &bias).unwrap()));
    }
    // One worker has room where two have not.
    let options = PlanOptions::new().algorithm(Algorithm::Im2col);
    let bytes = |threads, options| {
        let plan = || conv.plan_forward::<f32>(&Device::Cpu, &x, &weight, true, options);
        rayon_pool(threads).install(plan).unwrap().workspace()
    };
    let one = bytes(1, options);
    assert!(bytes(4, options) > one);
    assert_eq!(bytes(4, options.workspace_limit(one)), one);
}

/// Explanations of a few layers, word by word.
#[test]
fn explanations_read_like_this() {
    if !cfg!(target_arch = "x86_64") {
        // Other processors have no stores past the caches, which the texts mention.
        return;
    }
    let layer = Conv::new([3, 3]).padding([1, 1]);
    let options = PlanOptions::new();
    let mut texts = Vec::new();
    rayon_pool(2).install(|| {
        let cpu = &Device::Cpu;
        let unfold = layer.plan_unfold::<f32>(cpu, &[8, 64, 56, 56], options).unwrap();
        let last = layer.layout(Layout::ChannelsLast);
        let fold = last.plan_fold::<f32>(cpu, &[2, 49, 288], [7, 7], options).unwrap();
        texts.extend([unfold.to_string(), fold.to_string()]);
    });
    #[cfg(all(feature = "simulator", unix))]
    if let Ok(simulator) =
        Device::simulator_with(convmat::Simulation { seed: Some(0), ..Default::default() })
    {
        let plan = |conv: Conv<2>, algorithm| {
            let options = options.algorithm(algorithm);
            let (x, w) = ([2, 16, 8, 8], [16, 16, 3, 3]);
            conv.plan_forward::<f32>(&simulator, &x, &w, true, options).unwrap().to_string()
        };
        texts.push(plan(layer, Algorithm::Auto));
        texts.push(plan(layer, Algorithm::Im2col));
    }
    let golden = include_str!("../data/plans/explanations.txt");
    for (found, expected) in texts.iter().zip(golden.split("\n\n")) {
        assert_eq!(found, expected.trim_end(), "all of them:\n{}\n", texts.join("\n\n"));
    }
}
