//! The operands as accumulators: where they lie if that is what they are, else copied, some examples at a
//! time.

use std::ops::Range;

use crate::element::{Accumulator, Element};
use crate::error::Result;
use crate::patches::pieces::Pieces;
use crate::per_example::problem::Problem;
use crate::workers::{Room, Scratch, Workers};

/// Bytes of copies that are had at a time, unless those of a single example are more.
const BYTES: usize = 8 << 20;
/// Elements that a task copies.
const COPIED: usize = 32 << 10;

/// Both operands as they were given.
#[derive(Clone, Copy)]
pub(crate) struct Operands<'a, T> {
    pub gathered: &'a [T],
    pub plain: &'a [T],
}

/// How the operands are read.
#[derive(Debug)]
pub(super) struct Source {
    /// Examples at a time.
    pub chunks: Pieces,
    /// Elements of an example of each operand.
    lens: [usize; 2],
    copied: [bool; 2],
}

/// Memory for copies of both.
pub(super) struct Copies<'m, F>([&'m mut [F]; 2]);

impl Source {
    /// For at most so many examples at a time; `scaled`, dy is to be scaled.
    pub fn new<T: Element, F: Accumulator>(p: &Problem, most: usize, scaled: bool) -> Self {
        let lens = [p.gathered_len(), p.plain_len()];
        let converted = T::DTYPE != F::DTYPE;
        let copied = [p.transposed, !p.transposed].map(|dy| converted || (dy && scaled));
        let each: usize =
            lens.iter().zip(copied).map(|(len, copied)| len * usize::from(copied)).sum();
        let affordable = (BYTES / size_of::<F>()).checked_div(each).unwrap_or(usize::MAX);
        let size = affordable.min(most).clamp(1, p.batch.max(1));
        // As even as can be.
        let size = p.batch.max(1).div_ceil(p.batch.max(1).div_ceil(size));
        Source { chunks: Pieces::new(p.batch, size), lens, copied }
    }

    fn copy_lens(&self) -> [usize; 2] {
        let most = self.chunks.longest();
        [0, 1].map(|index| if self.copied[index] { most * self.lens[index] } else { 0 })
    }

    /// Memory in common that it takes, besides what `room` is for.
    pub fn room<F: Accumulator>(&self, room: Room) -> Room {
        let [gathered, plain] = self.copy_lens();
        room.and::<F>(gathered).and::<F>(plain)
    }

    pub fn copies<'m, F: Accumulator>(&self, common: &mut Scratch<'m>) -> Copies<'m, F> {
        Copies(self.copy_lens().map(|len| common.take(len)))
    }

    /// Both operands' examples; dy is multiplied by `factors`, one for each of the batch.
    pub fn load<'a, T: Element, F: Accumulator>(
        &self,
        workers: &Workers,
        p: &Problem,
        operands: Operands<'a, T>,
        examples: Range<usize>,
        factors: Option<&[F]>,
        copies: &'a mut Copies<'_, F>,
    ) -> Result<Operands<'a, F>> {
        let [gathered, plain] = &mut copies.0;
        let factors = factors.map(|factors| &factors[examples.clone()]);
        let [of_gathered, of_plain] = if p.transposed { [factors, None] } else { [None, factors] };
        Ok(Operands {
            gathered: self.one(workers, 0, operands.gathered, &examples, of_gathered, gathered)?,
            plain: self.one(workers, 1, operands.plain, &examples, of_plain, plain)?,
        })
    }

    fn one<'a, T: Element, F: Accumulator>(
        &self,
        workers: &Workers,
        index: usize,
        data: &'a [T],
        examples: &Range<usize>,
        factors: Option<&[F]>,
        copy: &'a mut [F],
    ) -> Result<&'a [F]> {
        let len = self.lens[index];
        let data = &data[examples.start * len..examples.end * len];
        if !self.copied[index] {
            return Ok(same(data).unwrap_or(&[]));
        }
        let copy = &mut copy[..data.len()];
        workers.share_out_slice(copy, COPIED, |start, copy| {
            let data = &data[start..];
            match factors {
                None => {
                    let each = copy.iter_mut().zip(data);
                    each.for_each(|(copy, value)| *copy = F::from_f64(value.to_f64()));
                }
                Some(factors) => {
                    let mut at = start;
                    let mut rest = copy;
                    while !rest.is_empty() {
                        let (example, of_example) = (at / len, len - at % len);
                        let (part, after) = rest.split_at_mut(of_example.min(rest.len()));
                        let values = &data[at - start..];
                        for (copy, value) in part.iter_mut().zip(values) {
                            *copy = F::from_f64(value.to_f64()) * factors[example];
                        }
                        at += part.len();
                        rest = after;
                    }
                }
            }
        })?;
        Ok(copy)
    }
}

/// The same slice, if that is its type.
fn same<T: Element, F: Accumulator>(data: &[T]) -> Option<&[F]> {
    if T::DTYPE == F::DTYPE { bytemuck::try_cast_slice(data).ok() } else { None }
}
