//! The main job on real data: a small CNN that PyTorch trained on hand-written digits, run through this
//! crate's own convolutions, and each of its layers taken apart as linear algebra.
//!
//!     cargo run --release --example digits
//!
//! For every convolution layer it prints how well the lowerings agree with each other and with the
//! answers PyTorch recorded in f64; then its singular values, beside PyTorch's, and what follows from them. The
//! exit status is 1 if any figure is not PyTorch's.

mod lowerings;
mod network;
mod spectra;
mod style;

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use convmat::Device;
use convmat::io::NpzReader;

use network::{Digits, classify, load_network};
use style::Style;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let device = Device::best();
    let style = Style::new();
    println!("{} on {device}: {}\n", style.bold("convmat digits"), device.description());

    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
    let mut golden = NpzReader::open(data.join("digits_golden.npz"))?;
    let (layers, head) = load_network(&data.join("digits_cnn.safetensors"))?;
    let digits = Digits::load(&device, &data.join("digits.npz"))?;

    let classified = classify(&layers, &head, &digits, &style)?;
    let expected = golden.read("test_correct")?.to_integers()?[0] as usize;
    println!();
    let mut all_good = style.verdict(
        classified == expected,
        &format!("{classified} of {} test digits right; PyTorch: {expected}", digits.labels.len()),
    );
    println!();
    let mut spectra = Vec::new();
    for layer in &layers {
        println!("{}", style.bold(&layer.describe()?));
        all_good &= lowerings::compare(layer, &mut golden, &style)?;
        let spectrum = spectra::compare(layer, &mut golden, &style)?;
        all_good &= spectrum.good;
        spectra.push(spectrum);
        println!();
    }
    all_good &= spectra::magnification(&spectra, &style);
    println!();
    all_good &= style.verdict(all_good, "every figure agrees with PyTorch");
    Ok(if all_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
