//! What compiling costs a program that starts: the kernels of every convolution of ResNet-50, unfolded and
//! forwards, in each element type and layout by itself and in all. First with an empty cache on disk, then
//! with what the first run has left there; each in a process of its own. Takes NVRTC, no GPU.

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

/// The argument that makes this program the process that is timed; the layouts and types follow.
const CHILD: &str = "compile";

const NETWORKS: [(&str, Layout); 4] = [
    ("f32", Layout::ChannelsFirst),
    ("f32", Layout::ChannelsLast),
    ("bf16", Layout::ChannelsFirst),
    ("bf16", Layout::ChannelsLast),
];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, networks @ ..] = &arguments[..]
        && first == CHILD
    {
        return child(networks);
    }
    if let Err(reason) = Device::compile_only(CAPABILITY, KernelOptions::default()) {
        println!("nothing to time: {reason}");
        return Ok(());
    }
    println!("ResNet-50 on {} threads", rayon::current_num_threads());
    let names = NETWORKS.map(|(dtype, layout)| format!("{dtype}/{layout}"));
    for name in &names {
        cold_and_warm(name, std::slice::from_ref(name))?;
    }
    cold_and_warm("all", &names)
}

fn cold_and_warm(name: &str, networks: &[String]) -> Result<()> {
    let cache = tempfile::tempdir()?;
    for temperature in ["cold", "warm"] {
        let start = Instant::now();
        let output = Command::new(std::env::current_exe()?)
            .arg(CHILD)
            .args(networks)
            .env("CONVMAT_CACHE_DIR", cache.path())
            .output()?;
        let seconds = start.elapsed().as_secs_f64();
        if !output.status.success() {
            let reason = String::from_utf8_lossy(&output.stderr);
            return Err(format!("the {temperature} start failed: {reason}").into());
        }
        let text = String::from_utf8_lossy(&output.stdout);
        println!("{name:<20}{temperature}: {}, the process {seconds:.3} s", text.trim());
    }
    Ok(())
}

fn child(networks: &[String]) -> Result<()> {
    let start = Instant::now();
    let device = Device::compile_only(CAPABILITY, KernelOptions::default())?;
    let opened = start.elapsed().as_secs_f64();
    let kernels = device.prepare(|device| {
        for (dtype, layout) in NETWORKS {
            if networks.contains(&format!("{dtype}/{layout}")) {
                match dtype {
                    "f32" => network::<f32>(device, layout)?,
                    _ => network::<bf16>(device, layout)?,
                }
            }
        }
        Ok(())
    })?;
    let all = start.elapsed().as_secs_f64();
    println!("{kernels:3} kernels {all:.3} s, {opened:.3} s of it to open");
    Ok(())
}

fn network<T: Element>(device: &Device, layout: Layout) -> convmat::Result<()> {
    for shape in RESNET50 {
        let shape = Shape { layout, ..shape };
        let conv = shape.conv::<2>();
        let x = Tensor::<T>::zeros(device, &shape.input_shape())?;
        conv.unfold(&x)?;
        let weight = Tensor::zeros(device, &shape.weight_shape())?;
        let mut y = Tensor::zeros(device, &shape.output_shape())?;
        conv.forward_into(&x, &weight, None, &mut y, Algorithm::Auto)?;
    }
    Ok(())
}
