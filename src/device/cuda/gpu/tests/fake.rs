//! The runtime on a driver without a GPU, `tests/driver/cuda.cpp`, which ends the process when its rules are
//! broken: what is freed twice or used afterwards, what a capture does not allow, calls without a context. Each
//! test that runs there is run again in a process of its own, which loads that driver.

use std::process::{Command, Output};

use super::*;
use crate::device::Device;
use crate::device::cuda::CudaDevice;
use crate::{Conv, PlanOptions, Tensor};

/// Set where the driver is the fake one.
const FAKE: &str = "CONVMAT_TEST_FAKE_DRIVER";

/// Whether kernels are launched and do nothing.
pub(super) fn computes_nothing() -> bool {
    std::env::var_os(FAKE).is_some()
}

/// Runs these tests of this module or of the one above on the fake driver for this version of CUDA; `None` where
/// it cannot be built.
fn run(version: &str, tests: &[&str]) -> Option<Output> {
    const SOURCE: &str = include_str!("../../../../../tests/driver/cuda.cpp");
    if cfg!(not(target_os = "linux")) || cfg!(feature = "dynamic-linking") {
        println!("skipped: this program does not load the driver by its name");
        return None;
    }
    if let Err(reason) = super::super::nvrtc::Toolchain::new(90, None) {
        skipped("nvrtc", &reason);
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("cuda.cpp");
    std::fs::write(&source, SOURCE).unwrap();
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let built = Command::new(compiler)
        .args(["-std=c++17", "-O1", "-shared", "-fPIC", "-o"])
        .args([&folder.path().join("libcuda.so"), &source])
        .output();
    match built {
        Ok(built) if built.status.success() => {}
        Ok(built) => panic!("{}", String::from_utf8_lossy(&built.stderr)),
        Err(reason) => {
            skipped("simulator", &format!("no C++ compiler: {reason}"));
            return None;
        }
    }
    let others = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
    let (_, module) = module_path!().split_once("::").unwrap();
    let above = module.strip_suffix("::fake").unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "--test-threads", "1"])
        .args(tests.iter().map(|test| format!("{above}::{test}")))
        .env(FAKE, "1")
        .env("FAKE_CUDA_VERSION", version)
        .env("LD_LIBRARY_PATH", format!("{}:{others}", folder.path().display()))
        .env("CONVMAT_REQUIRE", "cuda")
        .output()
        .unwrap();
    Some(output)
}

fn text(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    format!("{out}\n{err}")
}

#[test]
fn the_rules_of_a_driver_are_kept() {
    let tests = [
        "memory_is_copied_cleared_and_given_back",
        "too_much_memory_is_none_and_the_device_stays_usable",
        "slices_of_callers_are_borrowed_and_ours_handed_over",
        "what_a_capture_does_not_allow_is_refused",
        "errors_of_others_are_not_ours",
        "fake::plans_run_and_give_everything_back",
        "fake::graphs_keep_what_they_launch",
    ];
    let Some(output) = run("13000", &tests) else { return };
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    let passed = format!("{} passed", tests.len());
    assert!(text.contains(&passed) && !text.contains("skipped"), "{text}");
}

/// A driver's version decides what is compiled for it, and whether it can be used at all.
#[test]
fn versions_of_the_driver_are_regarded() {
    for (version, expected) in [
        (
            "13000",
            &["Fake GPU, compute capability 9.0, 4.0 GiB, driver for CUDA 13.0", "NVRTC"][..],
        ),
        ("12040", &["12.4"]),
        ("11010", &["the driver is for CUDA 11.1, but 11.2 or newer is needed"]),
    ] {
        let Some(output) = run(version, &["fake::the_device_says_what_it_is"]) else { return };
        let text = text(&output);
        assert!(output.status.success(), "{text}");
        for part in expected {
            assert!(text.contains(part), "{version}: {part:?} is not in {text}");
        }
    }
}

/// The planted faults: the driver ends the process.
#[test]
fn broken_rules_end_the_process() {
    for (test, rule) in [
        ("fake::freed_twice", "cuMemFreeAsync: nothing is allocated there"),
        ("fake::copied_past_the_end", "cuMemcpyDtoDAsync: outside of device memory"),
        ("fake::launched_without_its_kernel", "cuGraphLaunch: this handle is not alive"),
    ] {
        let Some(output) = run("13000", &[test]) else { return };
        let text = text(&output);
        assert!(!output.status.success() && text.contains(rule), "{test}: {text}");
    }
}

fn on_fake(work: impl FnOnce()) {
    if computes_nothing() {
        work();
    }
}

#[test]
fn the_device_says_what_it_is() {
    on_fake(|| match Runtime::open(0) {
        Ok(runtime) => println!("{}", runtime.description()),
        Err(reason) => println!("{reason}"),
    });
}

fn device() -> CudaDevice {
    CudaDevice::on_new_stream(0).unwrap()
}

#[test]
fn plans_run_and_give_everything_back() {
    on_fake(|| {
        let cuda = device();
        let device = Device::Cuda(cuda.clone());
        let (free, _) = cuda.memory().unwrap();
        let conv = Conv::new([3, 3]).padding([1, 1]);
        {
            let x = Tensor::from_vec(&device, &[2, 4, 6, 5], vec![1f32; 240]).unwrap();
            let w = Tensor::from_vec(&device, &[6, 4, 3, 3], vec![1f32; 216]).unwrap();
            assert_eq!(conv.unfold(&x).unwrap().shape(), [2, 36, 30]);
            let y = conv.forward(&x, &w, None).unwrap();
            assert_eq!(y.view().to_vec().unwrap().len(), 2 * 6 * 30);
            let mut other = Tensor::zeros(&device, &[2, 4, 6, 5]).unwrap();
            other.copy_from(&x).unwrap();
            assert_eq!(other.into_vec().unwrap(), vec![1f32; 240]);
            device.synchronize().unwrap();
        }
        assert_eq!(cuda.memory().unwrap().0, free);
        // Memory that was handed over is the owner's.
        let ours = Tensor::from_vec(&device, &[3], vec![1f32, 2.0, 3.0]).unwrap();
        let theirs = ours.into_cuda().unwrap();
        drop((cuda, device));
        let stream = theirs.context().new_stream().unwrap();
        assert_eq!(stream.clone_dtoh(&theirs).unwrap(), [1.0, 2.0, 3.0]);
    });
}

#[test]
fn graphs_keep_what_they_launch() {
    on_fake(|| {
        let cuda = device();
        let device = Device::Cuda(cuda.clone());
        let conv = Conv::new([3, 3]).padding([1, 1]);
        let x = Tensor::from_vec(&device, &[2, 4, 6, 5], vec![1f32; 240]).unwrap();
        let plan = conv.plan_unfold::<f32>(&device, x.shape(), PlanOptions::new()).unwrap();
        let mut y = Tensor::<f32>::zeros(&device, plan.result_shape()).unwrap();
        let mut space = plan.make_workspace().unwrap();
        let mut graph = cuda.capture(|| plan.run(&x, &mut y, &mut space)).unwrap();
        // What cannot be captured leaves no capture behind, whether it is an error or a panic.
        assert!(matches!(cuda.capture(|| conv.unfold(&x).map(drop)), Err(Error::Device { .. })));
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            cuda.capture(|| panic!("in the middle of a capture"))
        }));
        assert!(panicked.is_err());
        conv.unfold(&x).unwrap();
        // The kernels are the device's, which the graph keeps.
        drop((plan, cuda, device));
        for _ in 0..2 {
            // SAFETY: operands and workspace are still there.
            unsafe { graph.launch().unwrap() };
        }
    });
}

#[test]
fn freed_twice() {
    on_fake(|| {
        let runtime = Runtime::open(0).unwrap();
        let address = upload(&runtime, &[1f32]);
        // SAFETY: this is the fault; the memory is the host's, and the driver ends the process.
        unsafe {
            runtime.free(address, 4);
            runtime.free(address, 4);
        }
    });
}

#[test]
fn copied_past_the_end() {
    on_fake(|| {
        let runtime = Runtime::open(0).unwrap();
        let [a, b] = [upload(&runtime, &[1f32; 4]), upload(&runtime, &[1f32; 5])];
        // SAFETY: as above.
        unsafe { runtime.copy(b, a, 20).unwrap() };
    });
}

/// As graphs would if they did not keep the device.
#[test]
fn launched_without_its_kernel() {
    on_fake(|| {
        let context = CudaContext::new(0).unwrap();
        let runtime = Runtime::on_stream(context.new_stream().unwrap()).unwrap();
        let text =
            "#include \"platform.cuh\"\nstruct Args { u64 n; };\nKERNEL(nothing, Args, 32) {}\n";
        let image = runtime.compile(&Unit { file: "nothing.cu", text: text.into() }).unwrap();
        let kernel = runtime.load(&image, "nothing").unwrap();
        runtime.begin_capture().unwrap();
        // SAFETY: the kernel touches no memory.
        unsafe { kernel.launch([1, 1, 1], 32, &[0; 8]).unwrap() };
        let mut graph = runtime.end_capture().unwrap();
        drop(kernel);
        // SAFETY: this is the fault, which the driver sees.
        unsafe { graph.launch().unwrap() };
    });
}
