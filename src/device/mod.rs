//! Where tensors live and operations run, chosen at run time.

#[cfg(gpu)]
pub(crate) mod cuda;

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

#[cfg(gpu)]
use crate::device::cuda::CudaDevice;
#[cfg(feature = "cuda")]
use crate::device::cuda::KernelOptions;
#[cfg(feature = "simulator")]
use crate::device::cuda::Simulation;
use crate::error::{Error, Result};

/// The alignment that all memory of a CUDA device has, in bytes, and the most that any kernel asks for.
pub(crate) const FULL_ALIGNMENT: u64 = 16;

/// The largest power of two, up to [`FULL_ALIGNMENT`], that divides all of these addresses.
pub(crate) fn common_alignment(addresses: &[u64]) -> u64 {
    let all = addresses.iter().fold(FULL_ALIGNMENT, |all, address| all | address);
    1 << all.trailing_zeros()
}

/// A place where tensors live and operations run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Device {
    /// The host's processors, through rayon: the global thread pool, or the caller's when called
    /// inside `ThreadPool::install`.
    #[default]
    Cpu,
    /// A CUDA GPU, or the simulator of one.
    #[cfg(gpu)]
    Cuda(CudaDevice),
}

/// What [`Device::probe`] found out about one part: a device, or what devices need.
#[derive(Clone, Debug)]
pub struct Probe {
    /// The part: `cpu`, `cuda:0`, `simulator`; `nvrtc`, the compiler of CUDA kernels; `cuda` when there
    /// is no such device.
    pub name: String,
    /// A description of it, or the reason why it cannot be used.
    pub found: std::result::Result<String, String>,
}

impl Device {
    /// The fastest device present: the first CUDA GPU when the driver, NVRTC and a device are found, else
    /// the CPU. Never fails. Looks once, and logs one line (`log::info`) that says what was chosen and why.
    pub fn best() -> Device {
        static BEST: OnceLock<Device> = OnceLock::new();
        BEST.get_or_init(|| match Device::cuda(0) {
            Ok(device) => {
                log::info!("convmat computes on {device}");
                device
            }
            Err(Error::DeviceUnavailable { reason, .. }) => {
                log::info!("convmat computes on the CPU: no CUDA, as {reason}");
                Device::Cpu
            }
            Err(error) => {
                log::info!("convmat computes on the CPU: {error}");
                Device::Cpu
            }
        })
        .clone()
    }

    /// Which parts exist and, for each that does not, why. Opens no device.
    pub fn probe() -> Vec<Probe> {
        let mut parts = vec![Probe { name: "cpu".into(), found: Ok(describe_cpu()) }];
        parts.extend(probe_cuda());
        parts.push(Probe { name: "simulator".into(), found: probe_simulator() });
        parts
    }

    /// The CUDA GPU with this ordinal, on its default stream. The same device each time. That stream, CUDA's
    /// legacy default stream, cannot be captured into a graph: see [`Device::cuda_on_new_stream`].
    ///
    /// # Errors
    /// [`Error::DeviceUnavailable`] with the reason: no driver, no NVRTC, no such device, an NVRTC that is
    /// too old for it or too new for the driver, or a crate built without the feature `cuda`.
    pub fn cuda(ordinal: usize) -> Result<Device> {
        #[cfg(feature = "cuda")]
        return CudaDevice::open(ordinal).map(Device::Cuda);
        #[cfg(not(feature = "cuda"))]
        unavailable(format!("cuda:{ordinal}"), NO_CUDA)
    }

    /// The CUDA GPU with this ordinal, on a new stream, whose work can be captured into graphs
    /// ([`CudaDevice::capture`]). Another device each time: tensors of one are not those of another.
    ///
    /// # Errors
    /// As [`Device::cuda`].
    #[cfg(feature = "cuda")]
    pub fn cuda_on_new_stream(ordinal: usize) -> Result<Device> {
        CudaDevice::on_new_stream(ordinal).map(Device::Cuda)
    }

    /// The GPU of a caller's stream, which all work is queued on: for pipelines that own their streams.
    /// Compiled kernels are kept for as long as this device or a clone of it lives: keep one as long as a graph
    /// that was captured on the stream, whose launches refer to them. [`CudaDevice::capture`] does.
    ///
    /// # Errors
    /// As [`Device::cuda`]; also for the per-thread default stream, which is another one on each thread, and
    /// while a graph is captured on the stream.
    #[cfg(feature = "cuda")]
    pub fn on_stream(stream: std::sync::Arc<cudarc::driver::CudaStream>) -> Result<Device> {
        CudaDevice::on_stream(stream).map(Device::Cuda)
    }

    /// A simulated CUDA GPU: runs the crate's kernels on the CPU, compiled by the host's C++ compiler, to
    /// test them where there is no GPU. Slow, and strict: see the crate's documentation. The same device
    /// each time.
    ///
    /// # Errors
    /// [`Error::DeviceUnavailable`] with the reason: no C++ compiler, or a crate built without the feature
    /// `simulator`.
    pub fn simulator() -> Result<Device> {
        #[cfg(feature = "simulator")]
        return CudaDevice::simulator().map(Device::Cuda);
        #[cfg(not(feature = "simulator"))]
        unavailable("simulator".into(), NO_SIMULATOR)
    }

    /// What the launches since the last call cost, in their order: of a simulator with
    /// [`Simulation::profiling`]; of other devices nothing.
    #[cfg(feature = "simulator")]
    pub fn take_profile(&self) -> Vec<crate::LaunchProfile> {
        match self {
            Device::Cpu => Vec::new(),
            Device::Cuda(device) => device.take_profile(),
        }
    }

    /// A simulated GPU of its own, other than by default.
    ///
    /// With [`Simulation::sanitizer`] it compares every access of a kernel with those before it. Errors are then,
    /// besides what is one anyway: accesses of different threads to the same byte, one of them a write, that no
    /// barrier separates, and such accesses of different blocks; reads of bytes that nothing has written, by
    /// kernels, products and downloads; reads through the read-only path of what the same launch writes; use of
    /// what an asynchronous copy is bringing. Launches, copies, clearings and frees are done when somebody waits
    /// for them, and errors are those of whoever waits.
    ///
    /// # Errors
    /// As [`Device::simulator`].
    #[cfg(feature = "simulator")]
    pub fn simulator_with(simulation: Simulation) -> Result<Device> {
        CudaDevice::simulated(simulation).map(Device::Cuda)
    }

    /// A rehearsal of a GPU of this compute capability (10·major + minor, for example 90) that compiles
    /// kernels with NVRTC and computes nothing: results have any value. It shows that kernels compile, and
    /// what they take ([`CudaDevice::kernels`]), on machines without a GPU, and fills the cache on disk for
    /// machines with one.
    ///
    /// # Errors
    /// [`Error::DeviceUnavailable`]: no NVRTC, or one that does not know the architecture.
    #[cfg(feature = "cuda")]
    pub fn compile_only(capability: u32, options: KernelOptions) -> Result<Device> {
        CudaDevice::compile_only(capability, options).map(Device::Cuda)
    }

    /// Compiles the kernels that `work` needs, on all threads at once, and returns how many there are: a
    /// pipeline's first step then does not wait for them one by one. `work` is called with a rehearsal of
    /// this device on which nothing is compiled or computed, so its results have any value, and its
    /// tensors ([`crate::Tensor::zeros`] on the rehearsal) take no memory. On the CPU there is nothing to do.
    ///
    /// # Errors
    /// What `work` returns, and [`Error::Compile`].
    ///
    /// ```
    /// use convmat::{Conv, Device, Tensor};
    /// let device = Device::best();
    /// let conv = Conv::new([3, 3]).padding([1, 1]);
    /// device.prepare(|device| {
    ///     let x = Tensor::<f32>::zeros(device, &[64, 16, 56, 56])?;
    ///     conv.unfold(&x).map(drop)
    /// })?;
    /// # Ok::<(), convmat::Error>(())
    /// ```
    pub fn prepare(&self, work: impl FnOnce(&Device) -> Result<()>) -> Result<usize> {
        match self {
            Device::Cpu => {
                drop(work);
                Ok(0)
            }
            #[cfg(gpu)]
            Device::Cuda(device) => device.prepare(work),
        }
    }

    /// For people: what it is, in a few words.
    pub fn description(&self) -> String {
        match self {
            Device::Cpu => describe_cpu(),
            #[cfg(gpu)]
            Device::Cuda(device) => device.description(),
        }
    }

    /// Gives back what memory of dropped tensors is kept for later results.
    pub fn release_memory(&self) {
        match self {
            Device::Cpu => crate::memory::release_idle(),
            #[cfg(gpu)]
            Device::Cuda(device) => device.release_memory(),
        }
    }

    /// Waits until all work queued on the device is done. On the CPU it is done when a call returns.
    ///
    /// # Errors
    /// [`Error::Device`] when some of it failed.
    pub fn synchronize(&self) -> Result<()> {
        match self {
            Device::Cpu => Ok(()),
            #[cfg(gpu)]
            Device::Cuda(device) => device.synchronize(),
        }
    }
}

#[cfg(not(feature = "cuda"))]
const NO_CUDA: &str = "convmat was built without its feature cuda";
#[cfg(not(feature = "simulator"))]
const NO_SIMULATOR: &str = "convmat was built without its feature simulator";

#[cfg(not(all(feature = "cuda", feature = "simulator")))]
fn unavailable(device: String, reason: &str) -> Result<Device> {
    Err(Error::DeviceUnavailable { device, reason: reason.into() })
}

fn probe_cuda() -> Vec<Probe> {
    #[cfg(feature = "cuda")]
    return cuda::gpu::probe::parts();
    #[cfg(not(feature = "cuda"))]
    ["cuda", "nvrtc"].map(|name| Probe { name: name.into(), found: Err(NO_CUDA.into()) }).into()
}

fn probe_simulator() -> std::result::Result<String, String> {
    #[cfg(feature = "simulator")]
    return CudaDevice::simulator().map(|device| device.description()).map_err(
        |error| match error {
            Error::DeviceUnavailable { reason, .. } => reason,
            other => other.to_string(),
        },
    );
    #[cfg(not(feature = "simulator"))]
    Err(NO_SIMULATOR.into())
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
            #[cfg(gpu)]
            Device::Cuda(device) => device.fmt(f),
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
            "simulator" => Device::simulator(),
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
