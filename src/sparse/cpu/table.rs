//! Entries of a weight in the order in which loops take them, and the loop that multiplies them.

use std::ops::Range;

use crate::element::{Accumulator, Element};
use crate::error::{Error, Result};
use crate::memory::try_with_capacity;
use crate::product::cpu::{Entries, Old};
use crate::sparse::order::Order;
use crate::workers::{Room, Scratch, Workers};

const WHAT: &str = "the table of a sparse weight's entries";

/// Values that a task copies.
const VALUES: usize = 16 << 10;

/// Entries by the row that sums them up, in one order, each with the place of what it multiplies.
#[derive(Debug)]
pub(super) struct Table {
    places: Vec<u32>,
    /// Where each row's entries start, and their number last.
    starts: Vec<usize>,
    /// The largest place.
    furthest: usize,
}

/// Where sums go: each row's begin `pitch` elements behind those of the row before.
pub(super) struct RowSums<'s, A> {
    pub data: &'s mut [A],
    pub pitch: usize,
    pub old: Old,
}

impl Table {
    /// Of entries in this order, whose keys are the rows; `place` is told an entry's number.
    pub fn new(order: &Order, place: impl Fn(usize) -> usize) -> Result<Self> {
        let mut places = try_with_capacity(WHAT, order.order.len())?;
        let mut furthest = 0;
        for &entry in &order.order {
            let place = place(entry);
            furthest = furthest.max(place);
            places.push(u32::try_from(place).map_err(|_| Error::TooLarge {
                what: "a place in the padded copy of an image's channels".into(),
                value: place.to_string(),
                limit: u32::MAX.into(),
            })?);
        }
        let mut starts = try_with_capacity(WHAT, order.starts.len())?;
        starts.extend_from_slice(&order.starts);
        Ok(Table { places, starts, furthest })
    }

    /// Whether a row has no entries.
    pub fn is_empty(&self, row: usize) -> bool {
        self.starts[row] == self.starts[row + 1]
    }

    /// Elements that a read of `len` reaches, whole vectors of which are read.
    pub fn reach<A: Accumulator>(&self, len: usize) -> usize {
        self.furthest + len.next_multiple_of(A::best_tiles().lanes)
    }

    /// `sums[r] (+)= Σ values[entry]·data[place..]` over the entries of each of these rows, `len` elements of
    /// each. Whole vectors are written; where old sums are replaced, by every row. Values are in the table's
    /// order.
    pub fn multiply<A: Accumulator>(
        &self,
        rows: Range<usize>,
        values: &[A],
        data: &[A],
        len: usize,
        sums: RowSums<'_, A>,
    ) {
        let tiles = A::best_tiles();
        let RowSums { data: sums, pitch, old } = sums;
        let all = len.div_ceil(tiles.lanes);
        assert!(self.places.len() <= values.len() && self.reach::<A>(len) <= data.len());
        assert!(rows.is_empty() || (rows.len() - 1) * pitch + all * tiles.lanes <= sums.len());
        let kernels = tiles.entries.kernels;
        // As many vectors at a time as fit, in parts as equal as can be.
        let parts = all.div_ceil(kernels[0].0);
        for part in 0..parts {
            let (first, end) = (part * all / parts, (part + 1) * all / parts);
            let (vectors, kernel) = kernels[kernels[0].0 - (end - first)];
            debug_assert!(vectors == end - first);
            let column = first * tiles.lanes;
            for (number, row) in rows.clone().enumerate() {
                let entries = self.starts[row]..self.starts[row + 1];
                if old == Old::Kept && entries.is_empty() {
                    continue;
                }
                let operands = Entries {
                    count: entries.len(),
                    values: values[entries.start..].as_ptr(),
                    places: self.places[entries.start..].as_ptr(),
                    data: data[column..].as_ptr(),
                    sums: sums[number * pitch + column..].as_mut_ptr(),
                    add: old == Old::Kept,
                };
                // SAFETY: by the assertions above there is a value for every entry, and whole vectors can
                // be read behind every place and written behind the start of every row; this machine has
                // the instructions of its best tiles.
                unsafe { kernel(operands) };
            }
        }
    }
}

/// Room for what [`arrange`] makes of so many values.
pub(super) fn room<T: Element>(entries: usize) -> Room {
    Room::default().and::<T::Acc>(entries)
}

/// The values as accumulators in this order, in the workers' common memory.
pub(super) fn arrange<'a, T: Element>(
    workers: &Workers,
    values: &[T],
    order: &[usize],
    common: &mut Scratch<'a>,
) -> Result<&'a [T::Acc]> {
    let copy = common.take::<T::Acc>(values.len());
    workers.share_out_slice(copy, VALUES, |start, copy| {
        let entries = &order[start..][..copy.len()];
        copy.iter_mut().zip(entries).for_each(|(copy, &entry)| *copy = values[entry].to_acc());
    })?;
    Ok(copy)
}
