//! Any bytes as an npy file: an array or a typed error, and never more memory than the file accounts for.

#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use convmat::io::{self, AnyTensor, Array, ArrayType};
use convmat_fuzz::{Counting, FIXED, directory, within};
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static FILE: LazyLock<PathBuf> = LazyLock::new(|| directory().join("x.npy"));

fuzz_target!(|data: &[u8]| {
    std::fs::write(&*FILE, data).unwrap();
    let source = io::Source::new(&*FILE, None).unwrap();
    // Twice for Fortran order, which is copied to C order.
    let read = within(2 * data.len() + FIXED, || io::read(&source));
    match read {
        Ok(array) => check(&array),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});

/// What a reader has made of a file has to hold together, and to be the same when written and read again.
fn check(array: &Array) {
    let elements: usize = array.shape().iter().product();
    assert_eq!(array.bytes().len(), elements * array.dtype().size());
    match array.to_integers() {
        Ok(integers) => assert_eq!(integers.len(), elements),
        Err(error) => assert!(error.to_string().contains("x.npy")),
    }
    match array.clone().convert::<f32>() {
        Ok(tensor) => assert_eq!(tensor.shape(), array.shape()),
        Err(_) => assert!(matches!(array.dtype(), ArrayType::Bytes(_))),
    }
    let Ok(tensor) = array.clone().into_any() else { return };
    let again = FILE.with_file_name("again.npy");
    match &tensor {
        AnyTensor::F16(tensor) => io::write_npy(&again, tensor),
        AnyTensor::BF16(tensor) => io::write_npy(&again, tensor),
        AnyTensor::F32(tensor) => io::write_npy(&again, tensor),
        AnyTensor::F64(tensor) => io::write_npy(&again, tensor),
        _ => unreachable!("there are no others"),
    }
    .unwrap();
    let again = io::read(&io::Source::new(&again, None).unwrap()).unwrap();
    assert_eq!((again.dtype(), again.shape()), (array.dtype(), array.shape()));
    assert_eq!(again.bytes(), array.bytes());
}
