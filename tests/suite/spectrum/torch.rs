//! PyTorch's and NumPy's recorded answers.

use std::path::Path;

use convmat::io::{NpzReader, SafetensorsReader};
use convmat::{
    Accumulator, Conv, Device, Method, Operator, PaddingMode, SpectrumOptions, Tensor, Top,
    with_axes,
};
use serde_json::Value;

use super::{close, quiet};
use crate::catalogue::{accelerators, on, tensor, values};

/// A file of `tests/data/spectrum`.
pub fn recorded(name: &str) -> Value {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/spectrum");
    serde_json::from_slice(&std::fs::read(folder.join(name)).unwrap()).unwrap()
}

pub fn numbers(list: &Value) -> Vec<f64> {
    list.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn integers(list: &Value) -> Vec<usize> {
    list.as_array().unwrap().iter().map(|number| number.as_u64().unwrap() as usize).collect()
}

fn extents<const D: usize>(list: &Value) -> [usize; D] {
    integers(list).try_into().unwrap()
}

/// A layer of `layers.json` as an operator; generate.py says what its weight is.
pub fn layer<T: Accumulator>(record: &Value, device: &Device) -> Operator<T> {
    let shape = integers(&record["weight"]);
    let element = |i: usize| ((i * i * i + 5 * i) % 13) as f64 - 6.0;
    let elements: Vec<f64> = (0..shape.iter().product()).map(element).collect();
    let weight = on(device, &tensor::<T>(&shape, &elements));
    let sides: Vec<[usize; 2]> =
        record["padding"].as_array().unwrap().iter().map(extents).collect();
    with_axes!(shape.len() - 2, D => {
        let conv = Conv::<D>::new(shape[2..].try_into().unwrap())
            .stride(extents(&record["stride"]))
            .dilation(extents(&record["dilation"]))
            .padding(std::array::from_fn::<_, D, _>(|axis| (sides[axis][0], sides[axis][1])))
            .padding_mode(record["mode"].as_str().unwrap().parse().unwrap())
            .groups(record["groups"].as_u64().unwrap() as usize);
        let size: [usize; D] = extents(&record["input"]);
        match record["transposed"].as_bool().unwrap() {
            false => conv.operator(&weight, size),
            true => conv.transposed_operator(&weight, size, extents(&record["output_padding"])),
        }
    })
    .unwrap()
}

/// All values by the exact methods and the largest by the iteration, brackets, and what follows from the
/// values. `exact` and `iterated` are tolerances in parts of the largest value.
fn check_recorded<T: Accumulator>(record: &Value, device: &Device, exact: f64, iterated: f64) {
    let operator = layer::<T>(record, device);
    let what = format!("{} in {} on {device}", record["name"], T::DTYPE);
    assert_eq!(operator.shape(), extents(&record["shape"]), "{what}");
    let expected = numbers(&record["values"]);
    let largest = expected[0];
    // The strided one among them divides its input; a pointwise layer reads no padding.
    let circulant = record["mode"] == "circular" || record["name"] == "2d pointwise";
    assert_eq!(operator.circular().is_ok(), circulant, "{what}");

    let few = Top::Count(expected.len().min(6));
    let circular = circulant.then_some(Method::Circular);
    let all = [Method::Auto, Method::Dense].into_iter().chain(circular).map(|m| (m, Top::All));
    for (method, top) in all.chain([(Method::Lanczos, few)]) {
        let options = SpectrumOptions::new().top(top).method(method).vectors(false);
        let found = operator.spectrum(&options, &mut quiet).unwrap();
        let what = format!("{what} by {method}");
        let (count, tolerance) = match top {
            Top::Count(count) => (count, iterated),
            Top::All => (expected.len(), exact),
        };
        assert!(found.is_converged() && found.values.len() == count, "{what}: {found:?}");
        for (&found, &expected) in found.values.iter().zip(&expected) {
            close(found, expected, largest, tolerance, &what);
        }
        let squares: f64 = expected.iter().map(|value| value * value).sum();
        let frobenius = found.frobenius_norm().unwrap();
        close(frobenius, squares.sqrt(), largest, 10.0 * exact, &what);
        close(found.stable_rank().unwrap(), squares / (largest * largest), 1.0, 1e-5, &what);
        if top == Top::All {
            let named = if circulant { Method::Circular } else { Method::Dense };
            assert_eq!(found.method, if method == Method::Auto { named } else { method });
            // PyTorch's zeros are rounding.
            let smallest = expected[expected.len() - 1];
            let found = found.condition_number().unwrap();
            match smallest > 1e-14 * largest {
                // Its relative error is that of the smallest value.
                true => {
                    let condition = largest / smallest;
                    close(found, condition, condition, 2.0 * exact * condition, &what);
                }
                false => assert_eq!(found, f64::INFINITY, "{what}"),
            }
        }
    }
    let norm = operator.spectral_norm().unwrap();
    assert!(norm.lower <= largest * (1.0 + 1e-12), "{what}: {norm:?}");
    assert!(norm.lower >= largest * 0.99, "{what}: {norm:?}");
    assert!(norm.upper.unwrap() >= largest * (1.0 - 1e-12), "{what}: {norm:?}");
    assert!(norm.probabilistic_upper.unwrap() >= largest * (1.0 - 1e-12), "{what}: {norm:?}");
}

/// Padding of every mode, strides, dilation, groups, transposed layers, one to three axes.
#[test]
fn layers_have_their_recorded_values() {
    let layers = recorded("layers.json");
    let layers = layers.as_array().unwrap();
    assert_eq!(layers.len(), 20);
    for record in layers {
        check_recorded::<f64>(record, &Device::Cpu, 1e-13, 1e-11);
        check_recorded::<f32>(record, &Device::Cpu, 1e-6, 2e-6);
    }
}

#[test]
fn layers_have_their_recorded_values_on_accelerators() {
    // Kernels are compiled for every geometry: some of each kind.
    for record in recorded("layers.json").as_array().unwrap().iter().step_by(3) {
        for device in accelerators() {
            check_recorded::<f64>(record, device, 1e-13, 1e-11);
        }
    }
}

/// All values of the layers of a trained network, in `f64` on its `f32` weights.
#[test]
fn digits_layers_have_pytorchs_values() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
    let mut golden = NpzReader::open(data.join("digits_golden.npz")).unwrap();
    let mut model = SafetensorsReader::open(data.join("digits_cnn.safetensors")).unwrap();
    let base = Conv::new([3, 3]);
    let layers = [
        ("conv1", base.padding([1, 1]).padding_mode(PaddingMode::Reflect), [8, 8]),
        ("conv2", base.padding([1, 1]).stride([2, 2]).groups(4), [8, 8]),
        ("conv3", base.padding([2, 2]).dilation([2, 2]), [4, 4]),
    ];
    for (name, conv, size) in layers {
        let weight = model.read(&format!("{name}.weight")).unwrap().into_tensor::<f32>().unwrap();
        let weight: Tensor<f64> = weight.cast().unwrap();
        let expected = golden.read(&format!("{name}.singular_values")).unwrap();
        let expected = values(&expected.into_tensor::<f64>().unwrap());
        let operator = conv.operator(&weight, size).unwrap();
        let options = SpectrumOptions::new().top(Top::All).vectors(false);
        let found = operator.spectrum(&options, &mut quiet).unwrap();
        assert_eq!(found.values.len(), expected.len());
        for (&found, &expected) in found.values.iter().zip(&expected) {
            close(found, expected, expected, 1e-9, name);
        }
        let norm = operator.spectral_norm().unwrap();
        assert!(norm.lower <= expected[0] * (1.0 + 1e-12) && expected[0] <= norm.upper.unwrap());
    }
}
