//! Any parameters of a convolution: a geometry or a typed error. What is small is tabulated and computed with,
//! and held against plain definitions.

#![no_main]

use arbitrary::{Arbitrary, Unstructured};
use convmat::{
    Algorithm, Conv, CovarianceOptions, Device, Error, Geometry, Layout, Padding, PaddingMode,
    Tensor,
};
use convmat_fuzz::{Counting, number};
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Padded positions, taps and elements up to which a geometry counts as small.
const SMALL: usize = 1 << 12;

fuzz_target!(|data: &[u8]| {
    let u = &mut Unstructured::new(data);
    let _ = match u.int_in_range(1..=3) {
        Ok(1) => run::<1>(u),
        Ok(2) => run::<2>(u),
        _ => run::<3>(u),
    };
});

fn run<const D: usize>(u: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let conv = conv::<D>(u)?;
    let (size, extra) = (numbers(u)?, numbers(u)?);
    assert!(!conv.to_string().is_empty());
    match conv.bind_transposed(size, extra) {
        Ok(geometry) => {
            check(&geometry);
            // The same geometry from its other end; a large output padding makes room for further outputs.
            let bound = conv.bind(geometry.input()).unwrap();
            assert_eq!(bound.padding(), geometry.padding());
            assert!(bound.output().iter().zip(size).all(|(&bound, size)| bound >= size));
        }
        Err(error) => named(&error),
    }
    match conv.bind(size) {
        Ok(geometry) => {
            check(&geometry);
            if is_small(&geometry) {
                tables(&geometry);
                compute(&conv, size, u)?;
            }
        }
        Err(error) => named(&error),
    }
    Ok(())
}

fn numbers<const D: usize>(u: &mut Unstructured<'_>) -> arbitrary::Result<[usize; D]> {
    let mut numbers = [0; D];
    for value in &mut numbers {
        *value = number(u)?;
    }
    Ok(numbers)
}

/// A convolution of any parameters: rarely one that exists if all were drawn alike, so most are at their
/// defaults.
fn conv<const D: usize>(u: &mut Unstructured<'_>) -> arbitrary::Result<Conv<D>> {
    let mut conv = Conv::new(numbers(u)?);
    let flags = u8::arbitrary(u)?;
    if flags & 1 != 0 {
        conv = conv.stride(numbers(u)?);
    }
    if flags & 2 != 0 {
        conv = conv.dilation(numbers(u)?);
    }
    conv = conv.padding(match flags >> 2 & 3 {
        0 => Padding::Valid,
        1 => Padding::Same,
        _ => Padding::Explicit { low: numbers(u)?, high: numbers(u)? },
    });
    if flags & 16 != 0 {
        conv = conv.groups(number(u)?);
    }
    if flags & 32 != 0 {
        conv = conv.layout(Layout::ChannelsLast);
    }
    Ok(conv.padding_mode(PaddingMode::ALL[usize::from(flags >> 6)]))
}

/// An error says something of what was given.
fn named(error: &Error) {
    assert!(matches!(error, Error::Invalid { .. } | Error::TooLarge { .. }), "{error:?}");
    assert!(!error.to_string().is_empty());
}

/// Whatever is bound has sizes that can be counted, and outputs all of whose taps lie in the padded input.
fn check<const D: usize>(geometry: &Geometry<D>) {
    let counts = [geometry.taps(), geometry.positions(), geometry.input_positions()];
    assert!(counts.iter().all(|&count| count > 0), "{counts:?}");
    for axis in 0..D {
        let (low, high) = geometry.padding()[axis];
        let padded = geometry.input()[axis] as u128 + low as u128 + high as u128;
        assert!(geometry.conv().kernel_size()[axis] as u128 <= padded);
        assert!(geometry.output()[axis] as u128 <= padded);
    }
}

fn is_small<const D: usize>(geometry: &Geometry<D>) -> bool {
    let sides = geometry.padding();
    let padded: usize =
        (0..D).map(|axis| geometry.input()[axis] + sides[axis].0 + sides[axis].1).product();
    padded <= SMALL && geometry.positions() * geometry.taps() <= SMALL
}

/// The tables of each axis, against the definition.
fn tables<const D: usize>(geometry: &Geometry<D>) {
    for axis in 0..D {
        let map = geometry.axis(axis).unwrap();
        let (size, low) = (geometry.input()[axis] as i128, geometry.padding()[axis].0 as i128);
        let mut readers = vec![0; map.inputs()];
        let mut pairs = Vec::new();
        for o in 0..map.outputs() {
            for k in 0..map.taps() {
                let q = o as i128 * map.stride() as i128 + k as i128 * map.dilation() as i128 - low;
                let expected = match geometry.conv().mode() {
                    _ if (0..size).contains(&q) => Some(q),
                    PaddingMode::Zeros => None,
                    PaddingMode::Reflect => Some(if q < 0 { -q } else { 2 * (size - 1) - q }),
                    PaddingMode::Replicate => Some(q.clamp(0, size - 1)),
                    PaddingMode::Circular => Some(q.rem_euclid(size)),
                };
                let source = map.source(o, k);
                assert_eq!(source.map(|i| i as i128), expected, "output {o}, tap {k}");
                if let Some(i) = source {
                    readers[i] += 1;
                    pairs.push((o, i, k));
                }
            }
        }
        assert_eq!(map.overlap(), readers);
        let (rows, adjoint) = (map.rows().unwrap(), map.adjoint_rows().unwrap());
        let listed = |rows: &convmat::AxisRows| -> Vec<(usize, usize, usize)> {
            (0..rows.rows())
                .flat_map(|row| {
                    rows.row(row).flat_map(move |(column, taps)| {
                        taps.iter().map(move |&tap| (row, column, tap)).collect::<Vec<_>>()
                    })
                })
                .collect()
        };
        pairs.sort_unstable();
        assert_eq!(listed(&rows), pairs);
        let mut turned: Vec<_> = pairs.iter().map(|&(o, i, k)| (i, o, k)).collect();
        turned.sort_unstable();
        assert_eq!(listed(&adjoint), turned);
    }
}

/// The operations, on integers whose sums are exact: algorithms agree to the bit, and adjoints are adjoints.
fn compute<const D: usize>(
    conv: &Conv<D>,
    size: [usize; D],
    u: &mut Unstructured<'_>,
) -> arbitrary::Result<()> {
    let layout = conv.axis_order();
    let geometry = conv.bind(size).unwrap();
    let (batch, per_group, outputs) =
        (u.int_in_range(0..=2)?, u.int_in_range(1..=3)?, u.int_in_range(1..=3)?);
    let groups = conv.group_count();
    if groups > 8 {
        // Channels would be many; that they cannot be one is for the operations to say.
        let x = Tensor::<f32>::zeros(&Device::Cpu, &layout.activation_shape(1, 1, &size)).unwrap();
        named(&conv.unfold(&x).unwrap_err());
        return Ok(());
    }
    let (channels, outputs) = (groups * per_group, groups * outputs);
    let x = integers(&layout.activation_shape(batch, channels, &size), 1);
    let w = integers(&layout.weight_shape(outputs, per_group, &conv.kernel_size()), 2);
    let dy = integers(&layout.activation_shape(batch, outputs, &geometry.output()), 3);

    let patches = conv.unfold(&x).unwrap();
    let weights = integers(patches.shape(), 4);
    let folded = conv.fold(&weights, size).unwrap();
    assert_eq!(folded.shape(), x.shape());
    assert_eq!(inner(&patches, &weights), inner(&x, &folded), "fold is unfold's adjoint");

    let y = conv.forward_by(&x, &w, None, Algorithm::Naive).unwrap();
    assert_eq!(y.shape(), dy.shape());
    for algorithm in [
        Algorithm::Auto,
        Algorithm::Im2col,
        Algorithm::Implicit,
        Algorithm::Shifted,
        Algorithm::Depthwise,
        Algorithm::Direct,
    ] {
        match conv.forward_by(&x, &w, None, algorithm) {
            Ok(other) => assert_eq!(other, y, "{algorithm}"),
            Err(error) => {
                let optional = matches!(algorithm, Algorithm::Depthwise | Algorithm::Direct);
                assert!(optional, "{algorithm} of {conv}, input {size:?}: {error}");
            }
        }
    }
    let dx = conv.backward_input(&dy, &w, size).unwrap();
    assert_eq!(inner(&y, &dy), inner(&x, &dx), "the gradient of the input is the adjoint");
    let dw = conv.backward_weight(&x, &dy).unwrap();
    assert_eq!(inner(&y, &dy), inner(&w, &dw), "the gradient of the weight is the adjoint");
    // Planning a covariance takes the square of the taps and more.
    if geometry.taps() <= 32 {
        let options = CovarianceOptions::new();
        let covariance: Tensor<f64> = conv.covariance(&x, options).unwrap();
        let d = covariance.shape()[covariance.shape().len() - 1];
        let diagonal = covariance.as_slice().unwrap().iter().enumerate();
        let diagonal = diagonal.filter(|&(at, _)| at / d % d == at % d);
        let trace: f64 = diagonal.map(|(_, value)| value).sum();
        assert_eq!(trace, inner(&patches, &patches), "covariances are of patches");
        let _ = conv.transposed_covariance::<f64, f64>(&dy, [0; D], options);
    }
    let matrix = conv.matrix(&w, None, size).unwrap();
    assert_eq!(
        matrix.shape(),
        [outputs * geometry.positions(), channels * geometry.input_positions()]
    );
    Ok(())
}

/// Small integers, different ones for every seed.
fn integers(shape: &[usize], seed: usize) -> Tensor<f64> {
    let len: usize = shape.iter().product();
    let data = (0..len).map(|i| ((i * 7 + seed * 5 + i * i % 11) % 9) as f64 - 4.0).collect();
    Tensor::from_vec(&Device::Cpu, shape, data).unwrap()
}

fn inner(a: &Tensor<f64>, b: &Tensor<f64>) -> f64 {
    a.as_slice().unwrap().iter().zip(b.as_slice().unwrap()).map(|(a, b)| a * b).sum()
}
