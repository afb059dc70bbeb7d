//! Sparse weights made of any parts: refused exactly where a plain definition refuses them, and otherwise the
//! same weight as the sum of its triplets, in memory and by way of files. What is computed with them is, on
//! integers, what the dense weight gives, bit for bit.

#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use arbitrary::{Arbitrary, Unstructured};
use convmat::io::NpzWriter;
use convmat::{Conv, Coo, Csr, Device, Error, Indices, Layout, Padding, PaddingMode, Pruning};
use convmat::{SparseWeight, Tensor};
use convmat_fuzz::{Counting, FIXED, directory, number, within};
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static FILE: LazyLock<PathBuf> = LazyLock::new(|| directory().join("w.npz"));

/// Bytes for an entry or a row: indices, pointers and values in a few arrays and orders.
const ENTRY: usize = 256;

/// Bytes for rows without entries, up to the limit that the reader has of them.
const EMPTY_ROWS: usize = 8 << 20;

fuzz_target!(|data: &[u8]| {
    let u = &mut Unstructured::new(data);
    let _ = match u.int_in_range(1..=3) {
        Ok(1) => run::<1>(u),
        Ok(2) => run::<2>(u),
        _ => run::<3>(u),
    };
});

/// A matrix in parts, right or wrong.
struct Parts {
    shape: [usize; 2],
    /// Row pointers, or rows of triplets.
    rows: Vec<i64>,
    columns: Vec<i64>,
    values: Vec<f32>,
    /// Whether indices have 32 bits: of rows, and of columns.
    narrow: [bool; 2],
    triplets: bool,
}

fn run<const D: usize>(u: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let (conv, size) = conv::<D>(u)?;
    let parts = parts(u, &conv)?;
    let expected = expected(&conv, &parts);
    let stated = ENTRY * (parts.values.len() + parts.rows.len()) + FIXED;
    // Triplets do not state their rows, but whoever calls the library does, so they are no surprise.
    let rows = ENTRY.saturating_mul(parts.shape[0]);
    let made = within(stated.saturating_add(rows), || made(&conv, &parts));
    match (&made, &expected) {
        (Ok(weight), Some(dense)) => {
            if let Some(dense) = dense {
                assert_eq!(weight.to_dense().unwrap().as_slice().unwrap(), &dense[..]);
            }
        }
        (Err(Error::Allocation { .. }), Some(None)) => {}
        (Err(error), None) => assert!(!error.to_string().is_empty()),
        (Err(error), Some(_)) => panic!("refused: {error}"),
        (Ok(weight), None) => panic!("not refused: {weight:?}"),
    }
    // Files are slower than all the rest.
    if u.ratio(1, 8)? {
        let form = u.int_in_range(0..=1)?;
        write(&parts, form == 1);
        let loaded = within(stated + EMPTY_ROWS, || SparseWeight::<f32>::load_npz(&conv, &*FILE));
        match (&loaded, &made) {
            (Ok(loaded), Ok(made)) => assert_eq!(loaded, made),
            (Ok(loaded), Err(error)) => panic!("{loaded:?} from a file, but {error}"),
            // A file does not account for so many rows, which a caller does.
            (Err(Error::Format { .. }), Ok(made)) if made.shape()[0] > 1 << 18 => {}
            (Err(error), Ok(made)) => panic!("{error} from a file, but {made:?}"),
            (Err(error), Err(_)) => assert!(!error.to_string().is_empty()),
        }
    }
    if let Ok(weight) = &made {
        canonical(weight, &conv);
        if let Ok(geometry) = conv.bind(size) {
            let positions = geometry.positions() * geometry.taps();
            if positions <= 1 << 10 && conv.group_count() <= 8 && weight.shape()[0] <= 64 {
                compute(&conv, size, weight, u)?;
            }
        }
    }
    Ok(())
}

/// A convolution, mostly a small one that exists, and the extents of an input.
fn conv<const D: usize>(u: &mut Unstructured<'_>) -> arbitrary::Result<(Conv<D>, [usize; D])> {
    let flags = u8::arbitrary(u)?;
    let mut small = |most: usize| -> arbitrary::Result<[usize; D]> {
        let mut values = [0; D];
        for value in &mut values {
            *value = match u.ratio(1, 64)? {
                true => number(u)?,
                false => u.int_in_range(1..=most)?,
            };
        }
        Ok(values)
    };
    let mut conv = Conv::new(small(3)?);
    let size = small(5)?;
    if flags & 1 != 0 {
        conv = conv.stride(small(3)?);
    }
    if flags & 2 != 0 {
        conv = conv.dilation(small(3)?);
    }
    if flags & 4 != 0 {
        let (low, high) = (small(3)?, small(3)?);
        conv = conv.padding(Padding::Explicit { low, high });
    }
    if flags & 8 != 0 {
        conv = conv.groups(u.int_in_range(0..=3)?);
    }
    if flags & 16 != 0 {
        conv = conv.layout(Layout::ChannelsLast);
    }
    Ok((conv.padding_mode(PaddingMode::ALL[usize::from(flags >> 6)]), size))
}

fn parts<const D: usize>(u: &mut Unstructured<'_>, conv: &Conv<D>) -> arbitrary::Result<Parts> {
    let taps = conv.kernel_size().iter().fold(1usize, |product, &n| product.wrapping_mul(n));
    let rows = match u.ratio(1, 32)? {
        true => number(u)?,
        false => conv.group_count().max(1) * u.int_in_range(1..=3)?,
    };
    let columns = match u.ratio(1, 32)? {
        true => number(u)?,
        false => taps.wrapping_mul(u.int_in_range(1..=3)?),
    };
    let triplets = bool::arbitrary(u)?;
    let count = u.int_in_range(0..=24)?;
    let index = |u: &mut Unstructured<'_>, extent: usize| -> arbitrary::Result<i64> {
        match u.ratio(1, 128)? {
            true => i64::arbitrary(u),
            false => u.int_in_range(0..=(extent as i64).saturating_sub(1).clamp(0, 1 << 20)),
        }
    };
    let mut parts = Parts {
        shape: [rows, columns],
        rows: Vec::new(),
        columns: Vec::new(),
        values: Vec::new(),
        narrow: [bool::arbitrary(u)?; 2],
        triplets,
    };
    for _ in 0..count {
        parts.columns.push(index(u, columns)?);
        parts.values.push(f32::from(u.int_in_range(-4i8..=4)?));
    }
    if triplets {
        for _ in 0..count {
            parts.rows.push(index(u, rows)?);
        }
    } else {
        // Pointers that divide the entries among the rows in some way.
        let rows = rows.min(64);
        let mut end = 0;
        parts.rows.push(0);
        for row in 1..=rows {
            end = match row == rows {
                true => count,
                false => u.int_in_range(end..=count)?,
            };
            parts.rows.push(end as i64);
        }
        if u.ratio(1, 16)? {
            let at = u.choose_index(parts.rows.len())?;
            parts.rows[at] = index(u, count + 2)?;
        }
    }
    // Some have too few or too many of something, or indices of two widths.
    if u.ratio(1, 32)? {
        parts.rows.pop();
    }
    if u.ratio(1, 32)? {
        parts.values.push(1.0);
    }
    if u.ratio(1, 32)? {
        parts.narrow[1] = !parts.narrow[0];
    }
    for (narrow, indices) in
        [(parts.narrow[0], &mut parts.rows), (parts.narrow[1], &mut parts.columns)]
    {
        if narrow {
            indices.iter_mut().for_each(|index| *index = i64::from(*index as i32));
        }
    }
    Ok(parts)
}

fn indices(values: &[i64], narrow: bool) -> Indices {
    match narrow {
        true => values.iter().map(|&value| value as i32).collect::<Vec<_>>().into(),
        false => values.to_vec().into(),
    }
}

fn made<const D: usize>(conv: &Conv<D>, parts: &Parts) -> convmat::Result<SparseWeight<f32>> {
    let [narrow_rows, narrow_columns] = parts.narrow;
    let (rows, columns) =
        (indices(&parts.rows, narrow_rows), indices(&parts.columns, narrow_columns));
    let values = parts.values.clone();
    match parts.triplets {
        true => SparseWeight::from_coo(conv, &Coo::new(parts.shape, rows, columns, values)?),
        false => SparseWeight::from_parts(conv, parts.shape, rows, columns, values),
    }
}

/// The dense weight that the parts are (if it is not large), or nothing when they are none of this convolution.
fn expected<const D: usize>(conv: &Conv<D>, parts: &Parts) -> Option<Option<Vec<f32>>> {
    const MOST: u128 = i32::MAX as u128;
    let [rows, columns] = parts.shape;
    let taps = conv.kernel_size().iter().try_fold(1u128, |product, &n| {
        product.checked_mul(n as u128).filter(|&product| product <= MOST)
    })?;
    let groups = conv.group_count();
    let fits = |n: usize| n > 0 && n as u128 <= MOST;
    if taps == 0 || groups == 0 || !fits(rows) || !fits(columns) {
        return None;
    }
    let taps = taps as usize;
    if rows.saturating_mul(columns) > isize::MAX as usize / 8 {
        return None;
    }
    if !rows.is_multiple_of(groups) || !columns.is_multiple_of(taps) {
        return None;
    }
    let count = parts.values.len();
    if parts.columns.len() != count || parts.narrow[0] != parts.narrow[1] {
        return None;
    }
    let row_of: Vec<usize> = match parts.triplets {
        true => parts.rows.iter().map(|&row| usize::try_from(row).ok()).collect::<Option<_>>()?,
        false => {
            let ends: Vec<usize> =
                parts.rows.iter().map(|&end| usize::try_from(end).ok()).collect::<Option<_>>()?;
            if ends.len() != rows + 1 || ends[0] != 0 || ends[rows] != count || !ends.is_sorted() {
                return None;
            }
            (0..rows).flat_map(|row| vec![row; ends[row + 1] - ends[row]]).collect()
        }
    };
    if row_of.len() != count || row_of.iter().any(|&row| row >= rows) {
        return None;
    }
    if parts.columns.iter().any(|&column| usize::try_from(column).map_or(true, |c| c >= columns)) {
        return None;
    }
    if rows.saturating_mul(columns) > 1 << 16 {
        return Some(None);
    }
    let mut dense = vec![0.0; rows * columns];
    for ((&row, &column), value) in row_of.iter().zip(&parts.columns).zip(&parts.values) {
        dense[match conv.axis_order() {
            Layout::ChannelsFirst => row * columns + column as usize,
            Layout::ChannelsLast => column as usize * rows + row,
        }] += value;
    }
    Some(Some(dense))
}

/// Writes the parts as SciPy does or as PyTorch's are.
fn write(parts: &Parts, torch: bool) {
    let mut archive = NpzWriter::create(&*FILE).unwrap();
    let mut add = |name: &str, values: &[i64], narrow: bool| match narrow {
        true => {
            let values: Vec<i32> = values.iter().map(|&value| value as i32).collect();
            archive.add_i32(name, &values).unwrap();
        }
        false => archive.add_i64(name, values).unwrap(),
    };
    // PyTorch's triplets are one array of two axes, which the crate has no writer for.
    let names = match (parts.triplets, torch) {
        (true, _) => ["row", "col", "data", "shape"],
        (false, false) => ["indptr", "indices", "data", "shape"],
        (false, true) => ["crow_indices", "col_indices", "values", "size"],
    };
    add(names[0], &parts.rows, parts.narrow[0]);
    add(names[1], &parts.columns, parts.narrow[1]);
    add(names[3], &parts.shape.map(|extent| extent as i64), false);
    let values = Tensor::from_vec(&Device::Cpu, &[parts.values.len()], parts.values.clone());
    archive.add(names[2], &values.unwrap()).unwrap();
    if names[3] == "shape" {
        let format = if parts.triplets { b"coo" } else { b"csr" };
        archive.add_bytes_string("format", format).unwrap();
    }
    archive.finish().unwrap();
}

/// Rows ascend and have every column once; the matrix gives the weight back.
fn canonical<const D: usize>(weight: &SparseWeight<f32>, conv: &Conv<D>) {
    let (starts, columns) = (weight.indptr(), weight.indices());
    assert_eq!(starts.last(), Some(&weight.entries()));
    for row in starts.windows(2) {
        assert!(columns[row[0]..row[1]].is_sorted_by(|a, b| a < b));
    }
    let matrix: Csr<f32> = weight.to_csr().unwrap();
    assert_eq!(&SparseWeight::from_csr(conv, &matrix).unwrap(), weight);
}

fn compute<const D: usize>(
    conv: &Conv<D>,
    size: [usize; D],
    weight: &SparseWeight<f32>,
    u: &mut Unstructured<'_>,
) -> arbitrary::Result<()> {
    let (layout, batch) = (conv.axis_order(), u.int_in_range(0..=2)?);
    let geometry = conv.bind(size).unwrap();
    let [outputs, patch] = weight.shape();
    let channels = patch / geometry.taps() * conv.group_count();
    if channels > 64 {
        return Ok(());
    }
    let x = integers(&layout.activation_shape(batch, channels, &size), 1);
    let dy = integers(&layout.activation_shape(batch, outputs, &geometry.output()), 3);
    let bias = integers(&[outputs], 5);
    let dense = weight.to_dense().unwrap();
    let y = conv.sparse_forward(&x, weight, &bias).unwrap();
    assert_eq!(y, conv.forward(&x, &dense, &bias).unwrap());
    let dx = conv.sparse_backward_input(&dy, weight, size).unwrap();
    assert_eq!(dx, conv.backward_input(&dy, &dense, size).unwrap());
    let dw = conv.sparse_backward_weight(&x, &dy, weight).unwrap();
    // What the dense gradient has at stored places.
    let all = conv.backward_weight(&x, &dy).unwrap();
    let ones = weight.with_values(integers(&[weight.entries()], 0)).unwrap();
    assert_eq!(dw.indices(), ones.indices());
    let (dw, all) = (dw.to_dense().unwrap(), all);
    let (dw, all) = (dw.as_slice().unwrap(), all.as_slice().unwrap());
    assert!(dw.iter().zip(all).all(|(&own, &dense)| own == dense || own == 0.0));
    let matrix = conv.sparse_matrix(weight, None, size).unwrap();
    assert_eq!(matrix.rows(), outputs * geometry.positions());
    assert_eq!(matrix.columns(), channels * geometry.input_positions());
    let kept = match u.int_in_range(0..=2)? {
        0 => Pruning::Threshold(f64::from(u.int_in_range(0u8..=4)?)),
        1 => Pruning::TopK(number(u)?),
        _ => Pruning::Pattern { n: number(u)?, m: number(u)? },
    };
    if let Ok(pruned) = SparseWeight::from_dense(conv, &dense, kept) {
        canonical(&pruned, conv);
    }
    Ok(())
}

/// Small integers, different ones for every seed.
fn integers(shape: &[usize], seed: usize) -> Tensor<f32> {
    let len: usize = shape.iter().product();
    let data = (0..len).map(|i| ((i * 7 + seed * 5 + i * i % 11) % 9) as f32 - 4.0).collect();
    Tensor::from_vec(&Device::Cpu, shape, data).unwrap()
}
