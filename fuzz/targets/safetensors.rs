//! safetensors files: any bytes, and headers put together from what headers have. Every tensor is read, and the
//! file is taken for a state of K-FAC.

#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use arbitrary::{Arbitrary, Unstructured};
use convmat::io::SafetensorsReader;
use convmat::{Conv, Device, KfacLayer, KfacMethod, KfacOptions, KfacState, Tensor};
use convmat_fuzz::{Counting, FIXED, directory, number, within};
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static FILE: LazyLock<PathBuf> = LazyLock::new(|| directory().join("x.safetensors"));

/// A byte of a header becomes at most so many: `0,` in a shape is a number of 8 bytes, in a vector that grows
/// by doubling; a short entry is a few hundred bytes in two tables.
const HEADER: usize = 64;

fuzz_target!(|data: &[u8]| {
    let Some((&tag, rest)) = data.split_first() else { return };
    let file = match tag % 2 {
        0 => rest.to_vec(),
        _ => match composed(&mut Unstructured::new(rest)) {
            Ok(file) => file,
            Err(_) => return,
        },
    };
    std::fs::write(&*FILE, &file).unwrap();
    let opened = within(HEADER * file.len() + FIXED, || SafetensorsReader::open(&*FILE));
    if let Ok(mut reader) = opened {
        for name in reader.names().to_vec() {
            let array = within(2 * file.len() + FIXED, || reader.read(&name));
            if let Ok(array) = array {
                let elements: usize = array.shape().iter().product();
                assert_eq!(array.bytes().len(), elements * array.dtype().size());
            }
        }
    }
    for method in [KfacMethod::Kfac, KfacMethod::Ekfac] {
        let layer = KfacLayer::new(Conv::new([1]), 1, 1, [1]);
        let options = KfacOptions::new().method(method);
        let mut state = KfacState::<f32, 1>::new(&Device::Cpu, layer, options).unwrap();
        let before = state.steps();
        let loaded = within(HEADER * file.len() + FIXED, || state.load(&*FILE));
        match loaded {
            Ok(()) => {
                // What was loaded is worked with: numbers, as well as counters, are the file's.
                let one = Tensor::from_vec(&Device::Cpu, &[1, 1, 1], vec![1f32]).unwrap();
                let _ = state.step(&one, &one);
                let _ = state.refresh();
            }
            Err(_) => assert_eq!(state.steps(), before),
        }
    }
});

/// A file with a header that is JSON of about the right form.
fn composed(u: &mut Unstructured<'_>) -> arbitrary::Result<Vec<u8>> {
    const TYPES: [&str; 12] =
        ["BOOL", "U8", "I8", "F16", "BF16", "I32", "F32", "F64", "U64", "F8_E4M3", "F4", "X"];
    let mut end = 0;
    let mut entries = Vec::new();
    for index in 0..u.int_in_range(0..=4)? {
        let dtype = *u.choose(&TYPES)?;
        let shape: Vec<usize> =
            (0..u.int_in_range(0..=3)?).map(|_| number(u)).collect::<Result<_, _>>()?;
        let bits = match dtype {
            "F4" => 4,
            "BOOL" | "U8" | "I8" | "F8_E4M3" => 8,
            "F16" | "BF16" => 16,
            "F64" | "U64" => 64,
            _ => 32,
        };
        let honest = shape.iter().fold(bits, |size: usize, &n| size.wrapping_mul(n)) / 8;
        let start = if u.ratio(1, 16)? { number(u)? } else { end };
        end = start.wrapping_add(if u.ratio(1, 16)? { number(u)? } else { honest });
        let name = if u.ratio(1, 8)? { "a".into() } else { format!("t{index}") };
        entries.push(format!(
            "\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":{shape:?},\"data_offsets\":[{start},{end}]}}"
        ));
    }
    if u.ratio(1, 4)? {
        entries.push(format!("\"__metadata__\":{{\"convmat.kfac\":{:?}}}", <&str>::arbitrary(u)?));
    }
    let header = format!("{{{}}}", entries.join(","));
    let len = if u.ratio(1, 16)? { number(u)? } else { header.len() };
    let mut file = (len as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    match end {
        ..4096 if u.ratio(15, 16)? => file.resize(file.len() + end, 0x3f),
        _ => file.extend(u.bytes(u.len())?),
    }
    Ok(file)
}
