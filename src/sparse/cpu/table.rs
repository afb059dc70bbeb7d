//! Entries of a weight in the order in which loops take them, and the loop that multiplies them.

use std::ops::Range;

use crate::element::{Accumulator, Element};
use crate::error::Result;
use crate::memory::try_with_capacity;
use crate::product::cpu::{Products, Step, tile};
use crate::sparse::order::Order;
use crate::workers::{Scratch, Workers};

const WHAT: &str = "the table of a sparse weight's entries";

/// Entries by the row that sums them up, in one order, each with the place of what it multiplies.
#[derive(Debug)]
pub(super) struct Table {
    steps: Vec<Step>,
    /// Where each row's steps start, and their number last.
    starts: Vec<usize>,
    /// Entries of the weight.
    entries: usize,
    /// The largest place.
    furthest: usize,
}

impl Table {
    /// Of entries in this order, whose keys are the rows; `place` is told an entry's number.
    pub fn new(order: &Order, place: impl Fn(usize) -> usize) -> Result<Self> {
        let Order { order, starts, .. } = order;
        let mut steps = try_with_capacity(WHAT, order.len())?;
        steps.extend(order.iter().map(|&entry| Step {
            weight: entry,
            patch: place(entry),
            rows: !0,
        }));
        let furthest = steps.iter().map(|step| step.patch).max().unwrap_or(0);
        let mut kept = try_with_capacity(WHAT, starts.len())?;
        kept.extend_from_slice(starts);
        Ok(Table { steps, starts: kept, entries: order.len(), furthest })
    }

    /// Whether a row has no entries.
    pub fn is_empty(&self, row: usize) -> bool {
        self.starts[row] == self.starts[row + 1]
    }

    /// Elements that a read of `len` reaches, whole vectors of which are read.
    pub fn reach<A: Accumulator>(&self, len: usize) -> usize {
        self.furthest + len.next_multiple_of(A::best_tiles().lanes)
    }

    /// `sums[r] (+)= Σ values[entry]·data[place..]` over the entries of each row: `rows` are the table's, and
    /// where in `sums` each one's sums start is `pitch` from the one before. Whole vectors are written; if
    /// `add` is not set, by every row.
    pub fn multiply<A: Accumulator>(
        &self,
        rows: Range<usize>,
        values: &[A],
        data: &[A],
        len: usize,
        sums: &mut [A],
        pitch: usize,
        add: bool,
    ) {
        let tiles = A::best_tiles();
        let whole = len.next_multiple_of(tiles.lanes);
        assert!(self.entries <= values.len() && self.reach::<A>(len) <= data.len());
        assert!(rows.is_empty() || (rows.len() - 1) * pitch + whole <= sums.len());
        let tile = tile(tiles.products, 1);
        let mut column = 0;
        while column < whole {
            let (vectors, kernel) = tile.kernel((whole - column) / tiles.lanes);
            for (number, row) in rows.clone().enumerate() {
                let steps = &self.steps[self.starts[row]..self.starts[row + 1]];
                if add && steps.is_empty() {
                    continue;
                }
                let operands = Products {
                    steps: steps.as_ptr(),
                    count: steps.len(),
                    weights: values.as_ptr(),
                    row: 0,
                    patches: data[column..].as_ptr(),
                    sums: sums[number * pitch + column..].as_mut_ptr(),
                    pitch,
                    add,
                };
                // SAFETY: by the assertions above there is a value for every entry, and whole vectors can
                // be read behind every place and written behind the start of every row; this machine has
                // the instructions of its best tiles.
                unsafe { kernel(operands) };
            }
            column += vectors * tiles.lanes;
        }
    }
}

/// Elements of the values as accumulators, copied for types that are not.
pub(super) fn widened<T: Element>(len: usize) -> usize {
    if T::as_acc(&[]).is_some() { 0 } else { len }
}

/// The values as accumulators: where they are, or else copied to the workers' common memory.
pub(super) fn widen<'a, T: Element>(
    workers: &Workers,
    values: &'a [T],
    common: &mut Scratch<'a>,
) -> Result<&'a [T::Acc]> {
    if let Some(values) = T::as_acc(values) {
        return Ok(values);
    }
    /// Values that a task copies.
    const EACH: usize = 16 << 10;
    let copy = common.take::<T::Acc>(widened::<T>(values.len()));
    workers.share_out_slice(copy, EACH, |start, copy| {
        T::widen(&values[start..][..copy.len()], copy);
    })?;
    Ok(copy)
}
