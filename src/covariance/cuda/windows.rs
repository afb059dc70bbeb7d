//! Sums of the entries of patches over outputs: `kernels/covariance/windows.cu`.

use super::Job;
use crate::covariance::problem::Part;
use crate::device::cuda::structs::{PartRows, UpdateBiasArgs, WindowSumsArgs, WindowTotalsArgs};
use crate::device::cuda::{Divisor, Draft, Region, Spec, THREADS, axis_bound, blocks};
use crate::element::{Accumulator, Element};
use crate::error::{Result, checked_product};
use crate::geometry::Layout;
use crate::patches::cuda as patches;

/// Warps that fill a large GPU. A constant: it decides the order of the sums.
const WARPS: usize = 8192;

/// Turns that a lane takes at least, before an image's outputs are cut into pieces.
const LEAST_TURNS: usize = 16;

/// Sums of the layer's entries: `[images, pieces, groups, entries]`.
struct WindowSums<F> {
    sums: Region<F>,
    /// Of an image.
    pieces: usize,
}

impl<T: Element, F: Accumulator> Job<'_, T, F> {
    /// The last row: sums of entries, and the number of outputs.
    pub(super) fn update_bias(&self, draft: &mut Draft) -> Result<()> {
        let (p, held) = (self.p, draft.held());
        let WindowSums { sums, pieces } = self.window_sums(draft)?;
        let count = p.groups * p.rows();
        let arguments = UpdateBiasArgs {
            covariance: self.target(),
            sums: sums.pointer(),
            pieces: (p.batch * pieces) as i64,
            groups: p.groups as i64,
            outputs: (p.batch * p.positions) as i64,
        };
        let spec = self.update_spec(draft, "update.cu", "update_bias", sums.len() + count);
        // SAFETY: the kernel reads the sums, and updates elements inside the result.
        unsafe {
            let grid = blocks(count, THREADS)?;
            draft.launch(spec.define("BIAS", 1), grid, THREADS, &arguments);
        }
        draft.release(held);
        Ok(())
    }

    /// Each example's patches summed over all outputs, `[images, groups, rows]`. They stay in the workspace.
    pub(super) fn window_totals(&self, draft: &mut Draft) -> Result<Region<F>> {
        let (p, options) = (self.p, draft.device().options());
        let what = "sums over positions";
        let count = checked_product(what, &[p.batch, p.groups, p.rows()])?;
        let totals = draft.workspace::<F>(what, count)?;
        let held = draft.held();
        let WindowSums { sums, pieces } = self.window_sums(draft)?;
        let arguments = WindowTotalsArgs {
            sums: sums.pointer(),
            totals: totals.pointer(),
            pieces: pieces as i64,
            outputs: p.positions as i64,
            count: count as i64,
            rows: Divisor::new(p.rows()),
            entries: Divisor::new(p.entries()),
            groups: Divisor::new(p.groups),
        };
        let spec = Spec::new("windows.cu", "window_totals").element(F::DTYPE).layout(p.layout);
        let spec = spec.index(&[sums.len(), count], options.wide).define("TOTALS", 1);
        // SAFETY: the kernel reads the sums and writes all totals.
        unsafe { draft.launch(spec, blocks(count, THREADS)?, THREADS, &arguments) };
        draft.release(held);
        Ok(totals)
    }

    fn window_sums(&self, draft: &mut Draft) -> Result<WindowSums<F>> {
        let p = self.p;
        let outputs = p.parts.iter().map(|part| part.axes.outputs()).max().unwrap_or(0);
        let (what, line) = ("sums of windows", p.groups * p.entries());
        let all = checked_product(what, &[p.batch, line])?;
        let (warps, turns) = match p.layout {
            Layout::ChannelsFirst => (all, 32),
            Layout::ChannelsLast => (p.batch * line.div_ceil(32), 1),
        };
        let pieces = (WARPS / warps.max(1)).min(outputs / (turns * LEAST_TURNS)).max(1);
        let sums = draft.workspace::<F>(what, checked_product(what, &[all, pieces])?)?;
        if !self.covers_all() {
            draft.clear(sums);
        }
        for (part, &rows) in p.parts.iter().zip(&self.rows) {
            self.window_sums_of(draft, (part, rows), sums, pieces)?;
        }
        Ok(WindowSums { sums, pieces })
    }

    fn window_sums_of(
        &self,
        draft: &mut Draft,
        (part, rows): (&Part, PartRows),
        sums: Region<F>,
        pieces: usize,
    ) -> Result<()> {
        let (p, x, axes) = (self.p, self.operands.x, &part.axes);
        let entries = self.entries(part);
        let across = match p.layout {
            Layout::ChannelsFirst => p.groups * entries,
            Layout::ChannelsLast => (p.groups * entries).div_ceil(32),
        };
        let (warps, length) = (p.batch * pieces * across, axes.outputs().div_ceil(pieces));
        let channels = p.channels_per_group();
        let arguments = WindowSumsArgs {
            patches: patches::arguments(x.pointer(), self.distances(), p.batch, channels, axes),
            rows,
            sums: sums.pointer(),
            line: (p.groups * p.entries()) as i64,
            entries: p.entries() as i64,
            groups: p.groups as i64,
            count: warps as i64,
            length: length as i64,
            across: Divisor::new(across),
            part: Divisor::new(entries),
            pieces: Divisor::new(pieces),
        };
        let options = draft.device().options();
        let ends = p.batch * axes.outputs() + pieces * length;
        let counts = [x.len(), sums.len(), warps + 8, (across + 1) * 32, ends, axis_bound(axes)];
        let spec = self.element(Spec::new("windows.cu", "window_sums")).layout(p.layout);
        let spec = patches::of_axes(spec, axes, options.specialise).index(&counts, options.wide);
        // SAFETY: the kernel reads inside the extents of the input, and writes the sums of this part's
        // entries.
        unsafe { draft.launch(spec, blocks(warps, THREADS / 32)?, THREADS, &arguments) };
        Ok(())
    }
}
