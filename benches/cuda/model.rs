//! What the simulator's model of a GPU has for the calls that are timed.

use convmat::Device;

use crate::outcome::Result;

/// A call that is ready to be made.
pub type Ready = Box<dyn FnOnce() -> convmat::Result<()>>;

#[cfg(feature = "simulator")]
pub use counted::Modelled;
#[cfg(feature = "simulator")]
mod counted {
    use convmat::{Profiling, Simulation, Target};

    use super::{Device, Ready, Result};

    /// Blocks of a launch that are counted: the others are taken to be like them.
    const BLOCKS: u32 = 16;

    /// A simulator that counts what launches of the same kernels cost on a GPU that it knows.
    pub struct Modelled {
        device: Device,
        target: Target,
    }

    impl Modelled {
        /// For the target of this name, or else the one that the GPU's name has in it; `None` where that has none.
        pub fn open(target: Option<&str>, gpu: &str) -> Result<Option<Self>> {
            let target = match target {
                Some(name) => Some(name.parse()?),
                None => Target::nearest(gpu),
            };
            let Some(target) = target else { return Ok(None) };
            let profiling = Some(Profiling { target, blocks: Some(BLOCKS) });
            // Compiled for each layer, as on the GPU.
            let simulation = Simulation { profiling, specialise: true, ..Simulation::default() };
            Ok(Some(Modelled { device: Device::simulator_with(simulation)?, target }))
        }

        pub fn target(&self) -> &str {
            self.target.name
        }

        /// Seconds of the launches of a call, summed. What it computes is of no use: most blocks are not run.
        pub fn seconds(
            &self,
            prepare: impl FnOnce(&Device) -> convmat::Result<Ready>,
        ) -> Result<f64> {
            let call = prepare(&self.device)?;
            self.device.take_profile();
            call()?;
            let launches = self.device.take_profile();
            self.device.release_memory();
            Ok(launches.iter().map(|launch| launch.model.seconds).sum())
        }
    }
}

#[cfg(not(feature = "simulator"))]
pub use absent::Modelled;
#[cfg(not(feature = "simulator"))]
mod absent {
    use super::{Device, Ready, Result};

    /// There is none.
    pub enum Modelled {}

    impl Modelled {
        pub fn open(target: Option<&str>, _: &str) -> Result<Option<Self>> {
            match target {
                Some(_) => Err("--model needs the feature simulator".into()),
                None => Ok(None),
            }
        }

        pub fn target(&self) -> &str {
            match *self {}
        }

        pub fn seconds(&self, _: impl FnOnce(&Device) -> convmat::Result<Ready>) -> Result<f64> {
            match *self {}
        }
    }
}
