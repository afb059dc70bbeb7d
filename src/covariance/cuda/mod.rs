//! Covariances on CUDA: the products that make them, chosen here, and the way into the result.
//!
//! | file | holds | kernels |
//! |---|---|---|
//! | `products.rs` | tiles of the lower triangle by the product engine | `patch_products.cu`, `vector_products.cu`, `update_tiles.cu` |
//! | `few.rs` | all products of few entries by each thread | `few.cu`, `update.cu` |
//! | `windows.rs` | sums of entries over outputs: the bias, and what `reduce` multiplies | `windows.cu`, `update.cu` |
//!
//! Sums go through the workspace and then, each once, into both triangles of the result: decay and old
//! values are read in one place, and writes follow the rows of either triangle. A transposed convolution is
//! a sum for each phase of its stride; what lies between phases has no products.

mod few;
mod products;
mod windows;

use super::options::{SymmetricStorage, WeightSharing};
use super::problem::{Part, Problem};
use crate::device::cuda::structs::{Covariance, PartRows, UpdateApartArgs};
use crate::device::cuda::{Divisor, Draft, PerRun, Pointer, Region, Spec, THREADS, blocks};
use crate::element::{Accumulator, DType, Element};
use crate::error::Result;
use crate::geometry::Layout;
use crate::patches::cuda::Distances;
use crate::plan::{Explanation, PlanOptions};

/// The operands of a program, and the numbers of its runs: decay and scale, in this order.
#[derive(Clone, Copy)]
struct Operands<T, F> {
    x: Region<T>,
    target: Region<F>,
    decay: PerRun,
    scale: PerRun,
}

/// `target = decay·target + scale·new`, of operands input and covariance and numbers decay and scale.
pub(super) fn covariance<T: Element, F: Accumulator>(
    draft: &mut Draft,
    p: &Problem,
    options: &PlanOptions,
    explanation: &mut Explanation,
) -> Result<()> {
    let operands = Operands {
        x: draft.operand::<T>(p.input_len()),
        target: draft.operand::<F>(p.groups * p.stored()),
        decay: draft.number(),
        scale: draft.number(),
    };
    let limit = options.workspace_limit.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    let job = Job { p, operands, rows: part_rows(draft, p), limit };
    let (algorithm, reason) = match p.sharing {
        WeightSharing::Expand => job.expand(draft)?,
        WeightSharing::Reduce => job.reduce(draft)?,
    };
    (explanation.algorithm, explanation.reason) = (algorithm.into(), reason.into());
    Ok(())
}

/// What is computed, from what, and bytes of workspace that sums of products may take.
struct Job<'a, T, F> {
    p: &'a Problem,
    operands: Operands<T, F>,
    /// Where the rows of each part's patches are among the layer's.
    rows: Vec<PartRows>,
    limit: Option<usize>,
}

fn part_rows(draft: &mut Draft, p: &Problem) -> Vec<PartRows> {
    let whole = p.parts.iter().all(|part| part.taps.iter().copied().eq(0..p.taps));
    let taps = p.parts.iter().flat_map(|part| part.taps.iter().map(|&tap| tap as i32));
    let mut taps =
        if whole { Pointer::NULL } else { draft.table("taps of phases", taps.collect()) };
    let rows = |part: &Part| {
        let inner = match p.layout {
            Layout::ChannelsFirst => part.taps.len(),
            Layout::ChannelsLast => p.channels_per_group(),
        };
        let rows = PartRows { taps, inner: Divisor::new(inner), layer_taps: p.taps as i64 };
        if !whole {
            taps = taps.offset(part.taps.len() * size_of::<i32>());
        }
        rows
    };
    p.parts.iter().map(rows).collect()
}

impl<T: Element, F: Accumulator> Job<'_, T, F> {
    fn expand(&self, draft: &mut Draft) -> Result<(&'static str, &'static str)> {
        let p = self.p;
        for (part, &rows) in p.parts.iter().zip(&self.rows) {
            match few::has(self.entries(part), F::DTYPE) {
                true => self.few_products(draft, part, rows)?,
                false => self.patch_products(draft, part, rows)?,
            }
        }
        if p.parts.len() > 1 || !self.covers_all() {
            self.update_apart(draft)?;
        }
        if p.bias {
            self.update_bias(draft)?;
        }
        // Parts differ by a tap or so on each axis.
        let most = p.parts.iter().map(|part| self.entries(part)).max().unwrap_or(0);
        Ok(match few::has(most, F::DTYPE) {
            true => {
                ("few entries", "a group's patches are so small that a thread holds all products")
            }
            false => (
                "implicit SYRK",
                "patches are read where they lie, and half of a symmetric product suffices",
            ),
        })
    }

    fn reduce(&self, draft: &mut Draft) -> Result<(&'static str, &'static str)> {
        self.vector_products(draft)?;
        Ok((
            "window sums",
            "an example's positions are summed first: products are of examples alone",
        ))
    }

    /// Entries of a part's patches.
    fn entries(&self, part: &Part) -> usize {
        self.p.channels_per_group() * part.axes.taps()
    }

    /// Whether every tap is in a part.
    fn covers_all(&self) -> bool {
        self.p.parts.iter().map(|part| part.taps.len()).sum::<usize>() == self.p.taps
    }

    fn distances(&self) -> Distances {
        let (channels, positions) = (self.p.channels, self.p.input_positions());
        let image = channels * positions;
        match self.p.layout {
            Layout::ChannelsFirst => Distances { image, channel: positions, position: 1 },
            Layout::ChannelsLast => Distances { image, channel: 1, position: channels },
        }
    }

    /// What may be summed in f32 without a word.
    fn element(&self, spec: Spec) -> Spec {
        let sums = if T::DTYPE == DType::F64 { DType::F64 } else { DType::F32 };
        let spec = spec.element(T::DTYPE);
        if sums == F::DTYPE { spec } else { spec.define("SUMS", F::DTYPE) }
    }

    /// The result, as kernels know it.
    fn target(&self) -> Covariance {
        let (p, Operands { target, decay, scale, .. }) = (self.p, self.operands);
        Covariance {
            target: target.pointer(),
            rows: p.rows() as i64,
            stored: p.stored() as i64,
            packed: (p.storage == SymmetricStorage::Packed).into(),
            decay,
            scale,
        }
    }

    /// A kernel that brings sums into the result, and whose numbers `count` bounds as well.
    fn update_spec(
        &self,
        draft: &Draft,
        file: &'static str,
        entry: &'static str,
        count: usize,
    ) -> Spec {
        let counts = [self.operands.target.len(), self.p.groups * self.p.rows().pow(2), count];
        let spec = Spec::new(file, entry).element(F::DTYPE).layout(self.p.layout);
        spec.index(&counts, draft.device().options().wide)
    }

    /// Products of entries of different parts, or of none.
    fn update_apart(&self, draft: &mut Draft) -> Result<()> {
        let p = self.p;
        let mut parts = vec![-1; p.taps];
        for (number, part) in p.parts.iter().enumerate() {
            part.taps.iter().for_each(|&tap| parts[tap] = number as i32);
        }
        let count = p.groups * p.entries().pow(2);
        let inner = match p.layout {
            Layout::ChannelsFirst => p.taps,
            Layout::ChannelsLast => p.channels_per_group(),
        };
        let arguments = UpdateApartArgs {
            covariance: self.target(),
            parts: draft.table("phases of taps", parts),
            count: count as i64,
            entries: Divisor::new(p.entries()),
            inner: Divisor::new(inner),
        };
        let spec = self.update_spec(draft, "update.cu", "update_apart", count).define("APART", 1);
        // SAFETY: the kernel reads a part for each tap, and updates elements inside the result.
        unsafe { draft.launch(spec, blocks(count, THREADS)?, THREADS, &arguments) };
        Ok(())
    }
}
