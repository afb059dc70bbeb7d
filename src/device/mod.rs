//! Where tensors live and operations run, chosen at run time.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

#[cfg(gpu)]
mod cuda;

/// A place where tensors live and operations run.
///
/// This version computes on the CPU. CUDA devices are named, looked for and reported as absent, so
/// that code written against this interface need not change when they arrive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Device {
    /// The host's processors, through rayon: the global thread pool, or the caller's when called
    /// inside `ThreadPool::install`.
    #[default]
    Cpu,
}

/// What [`Device::probe`] found out about one kind of device.
#[derive(Clone, Debug)]
pub struct Probe {
    /// The name that selects it, for example `cpu` or `cuda`.
    pub name: String,
    /// The device and a description of it, or the reason why it cannot be used.
    pub found: std::result::Result<(Device, String), String>,
}

const NO_CUDA: &str = "this version of convmat has no CUDA kernels yet";
const NO_SIMULATOR: &str = "this version of convmat has no kernel simulator yet";

impl Device {
    /// The fastest device present. Never fails: there is always the CPU.
    pub fn best() -> Device {
        Device::Cpu
    }

    /// Which devices exist and, for each that does not, why.
    pub fn probe() -> Vec<Probe> {
        let absent =
            |name: &str, reason: &str| Probe { name: name.into(), found: Err(reason.into()) };
        vec![
            Probe { name: "cpu".into(), found: Ok((Device::Cpu, describe_cpu())) },
            absent("cuda", NO_CUDA),
            absent("simulator", NO_SIMULATOR),
        ]
    }

    /// Gives back to the allocator what memory of dropped tensors is kept for later results.
    pub fn release_memory(&self) {
        match self {
            Device::Cpu => crate::memory::release_idle(),
        }
    }

    /// The CUDA GPU with this ordinal.
    ///
    /// # Errors
    /// [`Error::DeviceUnavailable`], always in this version, which has no CUDA kernels.
    pub fn cuda(ordinal: usize) -> Result<Device> {
        unavailable(format!("cuda:{ordinal}"), NO_CUDA)
    }
}

fn unavailable(device: String, reason: &str) -> Result<Device> {
    Err(Error::DeviceUnavailable { device, reason: reason.into() })
}

fn describe_cpu() -> String {
    let threads = rayon::current_num_threads();
    let plural = if threads == 1 { "" } else { "s" };
    #[allow(unused_mut)]
    let mut features = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        let known = [
            ("AVX2", std::arch::is_x86_feature_detected!("avx2")),
            ("FMA", std::arch::is_x86_feature_detected!("fma")),
            ("F16C", std::arch::is_x86_feature_detected!("f16c")),
            ("AVX-512", std::arch::is_x86_feature_detected!("avx512f")),
        ];
        features.extend(known.into_iter().filter(|k| k.1).map(|k| k.0));
    }
    let features: String = features.iter().map(|f| format!(", {f}")).collect();
    format!("{} with {threads} thread{plural}{features}", std::env::consts::ARCH)
}

/// `cpu`, `cuda:0`, …: what [`Device::from_str`] reads.
impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
        }
    }
}

/// Reads `auto`, `cpu`, `cuda`, `cuda:N` or `simulator`, and opens that device.
impl FromStr for Device {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Device::best()),
            "cpu" => Ok(Device::Cpu),
            "cuda" => Device::cuda(0),
            "simulator" => unavailable(text.into(), NO_SIMULATOR),
            _ => match text.strip_prefix("cuda:").and_then(|n| n.parse().ok()) {
                Some(ordinal) => Device::cuda(ordinal),
                None => Err(Error::invalid(
                    "device",
                    format!("{text:?}"),
                    "expected auto, cpu, cuda, cuda:N or simulator",
                )),
            },
        }
    }
}
