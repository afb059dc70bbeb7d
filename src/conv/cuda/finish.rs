//! From sums to results, by `kernels/conv/sums.cu`: parts added up in order, the bias added, rounded once.

use super::products::Operand;
use crate::device::cuda::structs::FinishArgs;
use crate::device::cuda::{Divisor, Draft, Pointer, Region, Spec, THREADS, Work, blocks};
use crate::element::Element;
use crate::error::Result;

/// Sums that became too many, or lie in another order than their result.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    pub first: Operand,
    /// How many parts there are to be added up, each as long as the result, and from one to the next.
    pub parts: usize,
    pub part: usize,
    /// The sums are a matrix of so many rows by the rest, and the result its transpose.
    pub rows: Option<usize>,
}

impl Sums {
    /// One part, in the order of the result.
    pub fn whole(first: Operand) -> Self {
        Sums { first, parts: 1, part: 0, rows: None }
    }
}

/// A bias, and how many neighbours of the result share an element of it.
pub(super) type Bias<T> = (Region<T>, usize);

/// Writes all of `result`.
///
/// # Safety
/// The sums are memory of the device, as large as they say; they may be the result itself, in its order.
pub(super) unsafe fn finish<T: Element>(
    draft: &mut Draft,
    sums: Sums,
    bias: Option<Bias<T>>,
    result: Region<T>,
) -> Result<()> {
    let count = result.len();
    let Sums { first, parts, part, rows } = sums;
    let in_place = first.pointer == result.pointer() && parts == 1;
    if in_place && bias.is_none() {
        return Ok(());
    }
    let rows = rows.unwrap_or(count).max(1);
    let arguments = FinishArgs {
        sums: first.pointer,
        bias: bias.map_or(Pointer::NULL, |(bias, _)| bias.pointer()),
        result: result.pointer(),
        count: count as i64,
        parts: parts as i64,
        part: part as i64,
        rows: Divisor::new(rows),
        columns: (count / rows) as i64,
        run: Divisor::new(bias.map_or(1, |(_, run)| run)),
        channels: Divisor::new(bias.map_or(1, |(bias, _)| bias.len())),
    };
    let spec = Spec::new("sums.cu", "finish")
        .define("FINISH", 1)
        .element(T::DTYPE)
        .define("SOURCE", first.dtype)
        .index(&[count, (parts - 1) * part + count], draft.device().options().wide);
    let moved = count * (parts * first.dtype.size() + size_of::<T>());
    draft.expect(Work::moving(count.div_ceil(THREADS as usize), moved as f64));
    // SAFETY: the kernel reads the sums, which the caller answers for, and the bias, and writes `result`;
    // where they are the same memory, each thread has an element of its own.
    unsafe { draft.launch(spec, blocks(count, THREADS)?, THREADS, &arguments) };
    Ok(())
}
