//! All products of few entries by each thread: `kernels/covariance/few.cu`.

use super::Job;
use crate::covariance::problem::Part;
use crate::device::cuda::structs::{FewArgs, PartRows, UpdateFewArgs};
use crate::device::cuda::{Divisor, Draft, Spec, THREADS, axis_bound, blocks};
use crate::element::{Accumulator, DType, Element};
use crate::error::Result;
use crate::geometry::Layout;
use crate::patches::cuda as patches;

/// The number of blocks that fills a large GPU. A constant: it decides the order of the sums.
const BLOCKS: usize = 1024;

/// Outputs that a thread takes at least, before they are cut into pieces.
const PER_THREAD: usize = 8;

/// Blocks on the grid's second axis, at most.
const MOST_PIECES: usize = 65_535;

/// Entries that kernels are compiled for: one takes fewer as well. A thread's registers hold the products of
/// the most, of f64 of all but those.
const SIZES: [usize; 6] = [1, 2, 4, 6, 9, 12];

/// Whether a thread's registers hold the products of so many entries.
pub(super) fn has(entries: usize, sums: DType) -> bool {
    size(entries).is_some_and(|size| sums != DType::F64 || size <= 9)
}

fn size(entries: usize) -> Option<usize> {
    SIZES.into_iter().find(|&size| size >= entries)
}

impl<T: Element, F: Accumulator> Job<'_, T, F> {
    /// The products of a part's patches.
    pub(super) fn few_products(
        &self,
        draft: &mut Draft,
        part: &Part,
        rows: PartRows,
    ) -> Result<()> {
        let (p, x, axes) = (self.p, self.operands.x, &part.axes);
        let (entries, outputs) = (self.entries(part), p.batch * axes.outputs());
        let (across, turns) = match p.layout {
            Layout::ChannelsFirst => (p.groups, THREADS as usize),
            Layout::ChannelsLast => (p.groups.div_ceil(32), THREADS as usize / 32),
        };
        let wanted = (BLOCKS / across).min(outputs / (turns * PER_THREAD));
        let length = outputs.div_ceil(wanted.clamp(1, MOST_PIECES)).max(1);
        let pieces = outputs.div_ceil(length);
        let size = size(entries).expect("there are few entries");
        let group = size * (size + 1) / 2;
        let count = p.groups * group;
        let held = draft.held();
        let sums = draft.workspace::<F>("the sums of pieces", pieces * count)?;
        let channels = p.channels_per_group();
        let arguments = FewArgs {
            patches: patches::arguments(x.pointer(), self.distances(), p.batch, channels, axes),
            sums: sums.pointer(),
            groups: p.groups as i64,
            length: length as i64,
        };
        let options = draft.device().options();
        let counts = [x.len(), outputs + length, sums.len(), across * 32, axis_bound(axes)];
        let spec = self.element(Spec::new("few.cu", "few_products")).layout(p.layout);
        let spec = patches::of_axes(spec, axes, options.specialise).index(&counts, options.wide);
        let [grid, ..] = blocks(across, 1)?;
        // SAFETY: the kernel reads inside the extents of the input, and writes the sums of all pieces.
        unsafe {
            let spec = spec.define("ENTRIES", size);
            draft.launch(spec, [grid, pieces as u32, 1], THREADS, &arguments);
        }
        let arguments = UpdateFewArgs {
            covariance: self.target(),
            rows,
            sums: sums.pointer(),
            pieces: pieces as i64,
            entries: entries as i64,
            count: count as i64,
            group: Divisor::new(group),
        };
        let spec = self.update_spec(draft, "update.cu", "update_few", sums.len()).define("FEW", 1);
        // SAFETY: the kernel reads the sums, and updates elements inside the result.
        unsafe { draft.launch(spec, blocks(count, THREADS)?, THREADS, &arguments) };
        draft.release(held);
        Ok(())
    }
}
