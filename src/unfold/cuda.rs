//! Unfold on CUDA: the arguments of `kernels/unfold/unfold.cu` and its launch.

use super::Call;
use crate::device::cuda::structs::UnfoldArgs;
use crate::device::cuda::{
    AxesArguments, Divisor, Draft, Region, Spec, THREADS, axis_bound, blocks, is_specialised,
    position_divisors, vector,
};
use crate::element::Element;
use crate::error::Result;
use crate::geometry::{AxisMap, Layout};
use crate::plan::Explanation;

/// Why it is done so: there is one kernel.
pub(super) fn explain(explanation: &mut Explanation) {
    explanation.algorithm = "gather".into();
    explanation.reason =
        "a thread copies neighbours of the patches, as many as one store moves".into();
}

/// Writes all of `patches`, whose size fits the input's.
pub(crate) fn unfold<T: Element>(
    draft: &mut Draft,
    call: &Call,
    input: Region<T>,
    patches: Region<T>,
) -> Result<()> {
    let Call { layout, axes: ref maps, batch, channels, groups } = *call;
    let options = draft.device().options();
    let outputs = maps.output_extents();
    let positions = maps.outputs();
    let per_group = channels / groups;
    let alignments = [input.alignment(), patches.alignment()];
    let mut window = None;
    let (vector, chunks, count) = match layout {
        Layout::ChannelsFirst => {
            let mut vector = vector(size_of::<T>(), &[positions], &alignments[1..]);
            // Neighbours in one line of outputs share what they read, which is worth narrower stores as
            // long as a warp's fill a cache line.
            let in_line = self::vector(size_of::<T>(), &[outputs[2]], &alignments[1..]);
            if in_line == vector || in_line * size_of::<T>() >= 4 {
                window = self::window(&maps[2], in_line)
                    .filter(|_| is_specialised(maps, options.specialise));
            }
            if window.is_some() {
                vector = in_line;
            }
            (vector, positions / vector, batch * channels * (positions / vector))
        }
        Layout::ChannelsLast => {
            let vector = vector(size_of::<T>(), &[per_group], &alignments);
            (vector, channels / vector, batch * positions * (channels / vector))
        }
    };
    let mut spec = Spec::new("unfold.cu", "unfold")
        .element(T::DTYPE)
        .layout(layout)
        .define("VECTOR", vector)
        .geometry(maps, options.specialise)
        .index(&[input.len(), patches.len(), count, axis_bound(maps)], options.wide);
    if let Some(window) = window {
        spec = spec.define("WINDOW", window);
    }
    let [plane, line] = position_divisors(outputs);
    let arguments = UnfoldArgs {
        input: input.pointer(),
        patches: patches.pointer(),
        count: count as i64,
        channels: channels as i64,
        per_group: per_group as i64,
        axes: AxesArguments::new(maps),
        chunks: Divisor::new(chunks),
        positions: Divisor::new(positions),
        groups: Divisor::new(per_group),
        plane,
        line,
    };
    // SAFETY: the kernel reads `input` and writes `patches` inside the extents that the caller checked
    // against both, and nothing else.
    unsafe { draft.launch(spec, blocks(count, THREADS)?, THREADS, &arguments) };
    Ok(())
}

/// Neighbours on the last axis that so many outputs read, if they can be kept in registers.
fn window(map: &AxisMap, outputs: usize) -> Option<usize> {
    let span = (map.taps() - 1).checked_mul(map.dilation())?;
    let window = (outputs - 1).checked_mul(map.stride())?.checked_add(span)?.checked_add(1)?;
    (window <= MOST_IN_WINDOW).then_some(window)
}

const MOST_IN_WINDOW: usize = 48;
