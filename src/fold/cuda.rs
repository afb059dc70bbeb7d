//! Fold on CUDA: the arguments of `kernels/fold/fold.cu` and its launch.

use crate::device::cuda::structs::FoldArgs;
use crate::device::cuda::{
    Adjoint, AxesArguments, Divisor, Draft, Region, Spec, THREADS, axis_bound, blocks,
    is_specialised, position_divisors, vector,
};
use crate::element::Element;
use crate::error::Result;
use crate::geometry::{Axes, Layout};
use crate::plan::Explanation;
use crate::unfold::Call;

/// Why it is done so.
pub(super) fn explain<T: Element>(call: &Call, specialise: bool, explanation: &mut Explanation) {
    let (algorithm, reason) = match cell_span::<T>(call, specialise) {
        Some(_) => ("cells", "a thread sums all that reaches a cell of one stride: every tap does"),
        None => ("gather", "a thread looks for the patches that reach its part of the result"),
    };
    explanation.algorithm = algorithm.into();
    explanation.reason = reason.into();
}

/// Writes all of `output`, whose size fits the patches'; `average` divides by the number of entries.
pub(crate) fn fold<T: Element>(
    draft: &mut Draft,
    call: &Call,
    patches: Region<T>,
    output: Region<T>,
    average: bool,
) -> Result<()> {
    let Call { layout, axes: ref maps, batch, channels, groups } = *call;
    let options = draft.device().options();
    let per_group = channels / groups;
    let alignments = [output.alignment(), patches.alignment()];
    let inputs = maps.input_extents();
    let mut spec = Spec::new("fold.cu", "fold")
        .element(T::DTYPE)
        .layout(layout)
        .geometry(maps, options.specialise);

    // What the threads of an image and channel, or of an image and vector of channels, are for.
    let mut cells = inputs;
    let (mut vector, mut chunks) = (1, 1);
    if layout == Layout::ChannelsLast {
        vector = self::vector(size_of::<T>(), &[per_group], &alignments);
        chunks = channels / vector;
    }
    if let Some(span) = cell_span::<T>(call, options.specialise) {
        vector = self::vector(size_of::<T>(), &[span, inputs[2]], &alignments[..1]);
        let [d, h, w] = maps.each_ref().map(|map| map.low() as usize % map.stride());
        spec =
            spec.define("CELL", 1).define("SPAN", span).define("PHASES", format!("{d}, {h}, {w}"));
        cells = [0, 1, 2]
            .map(|axis| inputs[axis].div_ceil(if axis == 2 { span } else { maps[axis].stride() }));
    }
    let positions: usize = cells.iter().product();
    let images = if layout == Layout::ChannelsFirst { batch * channels } else { batch };
    let count = images * positions * chunks;

    if average {
        spec = spec.define("AVERAGE", 1);
    }
    // Cells at the border look for outputs that are not there.
    let reach =
        maps.iter().map(|map| (map.padded_extent() + map.low() as usize) / map.stride() + 2);
    let reach = reach.fold(1, usize::saturating_mul).saturating_add(patches.len());
    let counts = [output.len(), count, reach, axis_bound(maps)];
    let spec = spec.define("VECTOR", vector).index(&counts, options.wide);
    let [plane, line] = position_divisors(cells);
    let arguments = FoldArgs {
        patches: patches.pointer(),
        output: output.pointer(),
        count: count as i64,
        channels: channels as i64,
        per_group: per_group as i64,
        axes: AxesArguments::new(maps),
        adjoint: Adjoint::new(maps),
        chunks: Divisor::new(chunks),
        positions: Divisor::new(positions),
        groups: Divisor::new(per_group),
        plane,
        line,
    };
    // SAFETY: the kernel reads `patches` and writes `output` inside the extents that the caller checked
    // against both, and nothing else.
    unsafe { draft.launch(spec, blocks(count, THREADS)?, THREADS, &arguments) };
    Ok(())
}

/// Results of a thread's cell on the last axis, where threads have cells: see the kernel.
fn cell_span<T: Element>(call: &Call, specialise: bool) -> Option<usize> {
    let first = call.layout == Layout::ChannelsFirst;
    first.then(|| span(&call.axes, size_of::<T>(), specialise)).flatten()
}

fn span(maps: &Axes, size: usize, specialise: bool) -> Option<usize> {
    let strides: usize = maps.iter().fold(1, |all, map| all.saturating_mul(map.stride()));
    let zeros = maps.is_zero_padded();
    if !zeros || strides > MOST_RESULTS || !is_specialised(maps, specialise) {
        return None;
    }
    // So many neighbours that a load of a warp's fills a cache line, or more until a thread has enough
    // loads under way to hide what memory takes.
    let taps: usize = maps.taps();
    let mut neighbours = (4 / size).max(1);
    while neighbours * taps * size < 24 && neighbours * size < 16 {
        neighbours *= 2;
    }
    while neighbours > 1 && neighbours * strides > MOST_RESULTS {
        neighbours /= 2;
    }
    Some(neighbours * maps[2].stride())
}

/// A cell's sums are in registers.
const MOST_RESULTS: usize = 16;
