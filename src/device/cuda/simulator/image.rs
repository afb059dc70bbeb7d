//! Images of simulated kernels: a shared object, and what the same kernels need on the target of a profile.

use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher as _;

use crate::device::cuda::driver::{Resources, Unit};
use crate::device::cuda::profile::{Sass, Target};

/// An object, what its kernels need, as [`needs`] has it, and a sum over both.
pub(super) fn assemble(object: Vec<u8>, needs: &str) -> Vec<u8> {
    let mut image = object;
    image.extend_from_slice(needs.as_bytes());
    image.extend_from_slice(&(needs.len() as u64).to_le_bytes());
    let sum = checksum(&image);
    image.extend_from_slice(&sum);
    image
}

/// The object and the needs of an image; `None` if it is damaged.
pub(super) fn take_apart(image: &[u8]) -> Option<(&[u8], &str)> {
    let (whole, sum) = image.split_last_chunk::<8>()?;
    if checksum(whole) != *sum {
        return None;
    }
    let (rest, len) = whole.split_last_chunk::<8>()?;
    let (object, needs) = rest.split_at(rest.len().checked_sub(u64::from_le_bytes(*len) as usize)?);
    Some((object, std::str::from_utf8(needs).ok()?))
}

/// What compiles for the target besides, or why nothing does.
pub(super) fn nvrtc_for(target: &Target) -> Result<String, String> {
    #[cfg(feature = "cuda")]
    {
        let nvrtc = crate::device::cuda::gpu::nvrtc::Toolchain::new(target.capability, None)?.key();
        let nvdisasm = crate::device::cuda::profile::sass::Disassembler::find();
        Ok(format!("{nvrtc}, {}", nvdisasm.map_or("no nvdisasm", |found| &found.version)))
    }
    #[cfg(not(feature = "cuda"))]
    {
        Err(format!("without NVRTC for {target}"))
    }
}

/// What the kernels of a unit need on the target, a line for each, and where `nvdisasm` is found, another for
/// their instructions; empty where NVRTC cannot say.
pub(super) fn needs(unit: &Unit, target: &Target) -> String {
    #[cfg(feature = "cuda")]
    {
        use crate::device::cuda::gpu::nvrtc;
        let compiled = nvrtc::Toolchain::new(target.capability, None)
            .ok()
            .and_then(|toolchain| toolchain.compile_with_log(unit).ok());
        let Some((image, log)) = compiled else { return String::new() };
        let line = |(name, needs): (String, Resources)| {
            format!("{name} {} {} {}\n", needs.registers, needs.shared_bytes, needs.local_bytes)
        };
        // Where NVRTC does not know the target, the image is no machine code.
        let nvdisasm = crate::device::cuda::profile::sass::Disassembler::find().ok();
        let nvdisasm = nvdisasm.filter(|_| image.starts_with(b"\x7fELF"));
        let listed = nvdisasm.and_then(|nvdisasm| {
            let failed = |reason| log::warn!("{}: no instructions: {reason}", unit.file);
            nvdisasm.kernels(&image).map_err(failed).ok()
        });
        let sass = |(name, sass): (String, Sass)| format!("{SASS}{name} {}\n", sass.line());
        let listed = listed.unwrap_or_default().into_iter().map(sass);
        nvrtc::needs(&log).into_iter().map(line).chain(listed).collect()
    }
    #[cfg(not(feature = "cuda"))]
    {
        let _ = (unit, target);
        String::new()
    }
}

/// Begins a line of [`needs`] with instructions.
const SASS: &str = "sass:";

/// The inverse of [`needs`].
pub(super) fn resources_of(needs: &str, entry: &str) -> Option<Resources> {
    let line = needs.lines().find(|line| line.split(' ').next() == Some(entry))?;
    let mut numbers = line.split(' ').skip(1).map_while(|number| number.parse().ok());
    let [registers, shared_bytes, local_bytes] = std::array::from_fn(|_| numbers.next());
    Some(Resources {
        registers: registers?,
        shared_bytes: shared_bytes?,
        local_bytes: local_bytes?,
    })
}

pub(super) fn sass_of(needs: &str, entry: &str) -> Option<Sass> {
    let of = |line: &'_ str| {
        Some(Sass::read(line.strip_prefix(SASS)?.strip_prefix(entry)?.strip_prefix(' ')?))
    };
    needs.lines().find_map(of).flatten()
}

pub(super) fn checksum(object: &[u8]) -> [u8; 8] {
    // Against damage, not malice.
    let mut hasher = DefaultHasher::new();
    hasher.write(object);
    hasher.finish().to_le_bytes()
}
