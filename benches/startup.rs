//! What compiling costs a program that starts: the kernels of every convolution of ResNet-50, unfolded and
//! forwards, in `f32` and `bf16` and both layouts. First with an empty cache on disk, then with what the
//! first run has left there; each in a process of its own. Takes NVRTC, no GPU.

#[path = "shapes/mod.rs"]
mod shapes;

use std::error::Error;
use std::process::Command;
use std::time::Instant;

use convmat::{Algorithm, Device, Element, KernelOptions, Layout, Tensor};
use half::bf16;
use shapes::{RESNET50, Shape};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

const CAPABILITY: u32 = 90;

/// The argument that makes this program the process that is timed.
const CHILD: &str = "compile";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments == [CHILD] {
        return child();
    }
    if let Err(reason) = Device::compile_only(CAPABILITY, KernelOptions::default()) {
        println!("nothing to time: {reason}");
        return Ok(());
    }
    let cache = tempfile::tempdir()?;
    for temperature in ["cold", "warm"] {
        let start = Instant::now();
        let output = Command::new(std::env::current_exe()?)
            .arg(CHILD)
            .env("CONVMAT_CACHE_DIR", cache.path())
            .output()?;
        let seconds = start.elapsed().as_secs_f64();
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let reason = String::from_utf8_lossy(&output.stderr);
            return Err(format!("the {temperature} start failed: {reason}").into());
        }
        println!("{temperature}: {}; the process took {seconds:.3} s", text.trim());
    }
    Ok(())
}

fn child() -> Result<()> {
    let start = Instant::now();
    let device = Device::compile_only(CAPABILITY, KernelOptions::default())?;
    let opened = start.elapsed();
    let kernels = device.prepare(|device| {
        RESNET50.iter().try_for_each(|shape| {
            layer::<f32>(device, shape)?;
            layer::<bf16>(device, shape)
        })
    })?;
    let (opened, all) = (opened.as_secs_f64(), start.elapsed().as_secs_f64());
    let threads = rayon::current_num_threads();
    println!("{kernels} kernels in {all:.3} s on {threads} threads, {opened:.3} s of it to open");
    Ok(())
}

fn layer<T: Element>(device: &Device, shape: &Shape) -> convmat::Result<()> {
    for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
        let shape = Shape { layout, ..*shape };
        let conv = shape.conv::<2>();
        let x = Tensor::<T>::zeros(device, &shape.input_shape())?;
        conv.unfold(&x)?;
        let weight = Tensor::zeros(device, &shape.weight_shape())?;
        let mut y = Tensor::zeros(device, &shape.output_shape())?;
        conv.forward_into(&x, &weight, None, &mut y, Algorithm::Auto)?;
    }
    Ok(())
}
