//! PyTorch's and NumPy's recorded answers.

use convmat::io::{NpzReader, SafetensorsReader};
use convmat::{Conv, PaddingMode, SpectrumOptions, Tensor, Top};

use super::{close, quiet};
use crate::catalogue::values;

/// All values of the layers of a trained network, in `f64` on its `f32` weights.
#[test]
fn digits_layers_have_pytorchs_values() {
    let data = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
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
