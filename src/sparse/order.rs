//! Entries of a weight in other orders than that of rows and columns.

use super::problem::Problem;
use crate::error::Result;
use crate::memory::try_with_capacity;

const WHAT: &str = "the order of a sparse weight's entries";

/// The entries' numbers by some key, and where those of each key start.
#[derive(Debug)]
pub(super) struct Order {
    pub order: Vec<usize>,
    /// One more than keys.
    pub starts: Vec<usize>,
    /// The output channel of each entry, by its number.
    pub row_of: Vec<usize>,
}

impl Problem {
    /// By (input channel over all groups, tap): the transposed pattern. Output channels ascend.
    pub fn transposed(&self) -> Result<Order> {
        let (rows, inputs, taps) =
            (self.outputs_per_group(), self.channels_per_group(), self.axes.taps());
        self.by_key(self.channels * taps, |entry, row| {
            let (channel, tap) = self.pattern.place(entry);
            (row / rows * inputs + channel) * taps + tap
        })
    }

    /// By (piece of the group's input channels, output channel), so many channels in a piece. Columns ascend.
    pub fn by_channels(&self, at_a_time: usize) -> Result<Order> {
        let pieces = self.channels_per_group().div_ceil(at_a_time);
        self.by_key(pieces * self.outputs, |entry, row| {
            self.pattern.place(entry).0 / at_a_time * self.outputs + row
        })
    }

    /// By `key(entry, row)` below `keys`; those of one key in the order they have.
    fn by_key(&self, keys: usize, key: impl Fn(usize, usize) -> usize) -> Result<Order> {
        let pattern = &self.pattern;
        let mut row_of: Vec<usize> = try_with_capacity(WHAT, pattern.len())?;
        (0..self.outputs).for_each(|row| row_of.resize(pattern.starts[row + 1], row));
        let mut starts: Vec<usize> = try_with_capacity(WHAT, keys + 1)?;
        starts.resize(keys + 1, 0);
        row_of.iter().enumerate().for_each(|(entry, &row)| starts[key(entry, row) + 1] += 1);
        (0..keys).for_each(|k| starts[k + 1] += starts[k]);
        let mut next: Vec<usize> = try_with_capacity(WHAT, keys)?;
        next.extend_from_slice(&starts[..keys]);
        let mut order: Vec<usize> = try_with_capacity(WHAT, pattern.len())?;
        order.resize(pattern.len(), 0);
        for (entry, &row) in row_of.iter().enumerate() {
            let at = &mut next[key(entry, row)];
            order[*at] = entry;
            *at += 1;
        }
        Ok(Order { order, starts, row_of })
    }
}
