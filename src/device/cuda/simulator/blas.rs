//! In cuBLAS's place: matrix products by columns, as `cublasGemmStridedBatchedEx` takes them. Checks what
//! cuBLAS takes on trust.

use half::{bf16, f16};

use super::failure;
use super::memory::Memory;
use crate::device::cuda::gemm::{Call, MOST_PRODUCTS, Operand};
use crate::element::{DType, Element};
use crate::error::Result;

/// Multiplies, every sum in the order of k and rounded at each step.
///
/// # Errors
/// [`crate::Error::Device`]: an argument that cuBLAS refuses, or memory that is not there.
pub(super) fn multiply(memory: &Memory, call: &Call) -> Result<()> {
    check(memory, call).map_err(|reason| failure("cublasGemmStridedBatchedEx", reason))?;
    match (call.factors, call.output) {
        (DType::F64, DType::F64) => compute::<f64, f64, f64>(call),
        (DType::F32, DType::F32) => compute::<f32, f32, f32>(call),
        (DType::F16, DType::F16) => compute::<f16, f16, f32>(call),
        (DType::F16, DType::F32) => compute::<f16, f32, f32>(call),
        (DType::BF16, DType::BF16) => compute::<bf16, bf16, f32>(call),
        (DType::BF16, DType::F32) => compute::<bf16, f32, f32>(call),
        (factors, output) => {
            let reason = format!("it has no products of {factors} that give {output}");
            return Err(failure("cublasGemmStridedBatchedEx", reason));
        }
    }
    for (at, bytes) in columns(&call.c, call.m, call.n, call.batch, call.output) {
        memory.mark_written(at, bytes);
    }
    Ok(())
}

/// Address and bytes of each column of `rows` by `columns` matrices, as they lie in memory.
fn columns(
    of: &Operand,
    rows: i32,
    columns: i32,
    batch: i32,
    dtype: DType,
) -> impl Iterator<Item = (u64, usize)> {
    let Operand { address, leading, stride, .. } = *of;
    let size = dtype.size() as i64;
    (0..i64::from(batch)).flat_map(move |product| {
        (0..i64::from(columns)).map(move |column| {
            let distance = (product * stride + column * i64::from(leading)) * size;
            (address.wrapping_add_signed(distance), rows as usize * size as usize)
        })
    })
}

fn check(memory: &Memory, call: &Call) -> Result<(), String> {
    let Call { m, n, k, batch, factors, output, .. } = *call;
    for (name, count) in [("m", m), ("n", n), ("k", k), ("batchCount", batch)] {
        if count < 0 {
            return Err(format!("{name} is {count}"));
        }
    }
    if batch as usize > MOST_PRODUCTS {
        return Err(format!("batchCount is {batch}, more than {MOST_PRODUCTS}"));
    }
    let stored = |operand: &Operand, rows, columns| match operand.transposed {
        true => (columns, rows),
        false => (rows, columns),
    };
    let reads_c = call.beta != 0.0;
    let (a, b, c) = (stored(&call.a, m, k), stored(&call.b, k, n), (m, n));
    let operands = [
        ("A", &call.a, a, factors, true),
        ("B", &call.b, b, factors, true),
        ("C", &call.c, c, output, reads_c),
    ];
    for (name, operand, (rows, width), dtype, reads) in operands {
        let Operand { address, leading, .. } = *operand;
        if leading < rows.max(1) {
            return Err(format!("{name} has a leading dimension of {leading} for {rows} rows"));
        }
        if address % dtype.size() as u64 != 0 {
            return Err(format!("{name} at {address:#x} is not aligned for {dtype}"));
        }
        for (at, bytes) in columns(operand, rows, width, batch, dtype) {
            let in_place = memory.check(at, bytes).and_then(|()| match reads {
                true => memory.check_written(at, bytes),
                false => Ok(()),
            });
            in_place.map_err(|reason| format!("{name}: {reason}"))?;
        }
    }
    let span = |operand: &Operand, (rows, width): (i32, i32), dtype: DType| {
        let all =
            columns(operand, rows, width, batch, dtype).map(|(at, bytes)| (at, at + bytes as u64));
        all.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))).unwrap_or_default()
    };
    // Products may lie between each other's columns.
    let mut all: Vec<_> = columns(&call.c, m, n, batch, output).collect();
    all.sort();
    if let Some(pair) = all.windows(2).find(|pair| pair[0].0 + pair[0].1 as u64 > pair[1].0) {
        return Err(format!("products overlap at {:#x}", pair[1].0));
    }
    let written = span(&call.c, c, output);
    for (name, read) in [("A", span(&call.a, a, factors)), ("B", span(&call.b, b, factors))] {
        if written.0 < read.1 && read.0 < written.1 {
            return Err(format!("C lies in {name}'s memory"));
        }
    }
    Ok(())
}

/// `S` is what sums are.
fn compute<F: Element, O: Element, S: Element>(call: &Call) {
    let Call { m, n, k, batch, alpha, beta, .. } = *call;
    let place = |operand: &Operand, row: i32, column: i32, product: i32| {
        let (row, column) = if operand.transposed { (column, row) } else { (row, column) };
        let [row, column] = [row, column].map(i64::from);
        row + column * i64::from(operand.leading) + i64::from(product) * operand.stride
    };
    let round = |value: f64| S::from_f64(value).to_f64();
    let (a, b, c) =
        (call.a.address as *const F, call.b.address as *const F, call.c.address as *mut O);
    for product in 0..batch {
        for (row, column) in (0..m).flat_map(|row| (0..n).map(move |column| (row, column))) {
            let sum = (0..k).fold(0.0, |sum, at| {
                // SAFETY: check() has seen that all of it is live memory.
                let [x, y] = unsafe {
                    [
                        *a.offset(place(&call.a, row, at, product) as isize),
                        *b.offset(place(&call.b, at, column, product) as isize),
                    ]
                };
                round(sum + round(x.to_f64() * y.to_f64()))
            });
            // SAFETY: as above.
            unsafe {
                let to = c.offset(place(&call.c, row, column, product) as isize);
                // What was there is not looked at unless it counts: it may be NaN.
                let before = if beta == 0.0 { 0.0 } else { round(round(beta) * (*to).to_f64()) };
                *to = O::from_f64(round(round(round(alpha) * sum) + before));
            }
        }
    }
}
