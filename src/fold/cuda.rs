//! Fold on CUDA: the arguments of `kernels/fold/fold.cu` and its launch, and of `fold_rows.cu`.

use crate::device::cuda::structs::{FoldArgs, FoldRowsArgs};
use crate::device::cuda::{
    Adjoint, AxesArguments, Divisor, Draft, Region, SECTOR, Spec, THREADS, axis_bound, blocks,
    is_specialised, position_divisors, vector,
};
use crate::element::Element;
use crate::error::Result;
use crate::geometry::{Axes, AxisMap, Layout};
use crate::plan::Explanation;
use crate::unfold::Call;

/// Why it is done so.
pub(super) fn explain<T: Element>(call: &Call, specialise: bool, explanation: &mut Explanation) {
    let (algorithm, reason) = if cell_span::<T>(call, specialise).is_some() {
        ("cells", "a thread sums all that reaches a cell of one stride: every tap does")
    } else if Rows::new::<T>(call, specialise).is_some() {
        (
            "rows",
            "a block reads lines of patches as they lie: few channels of a group are neighbours",
        )
    } else {
        ("gather", "a thread looks for the patches that reach its part of the result")
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
    if let Some(rows) = Rows::new::<T>(call, options.specialise) {
        return rows.launch(draft, call, patches, output, average);
    }
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

/// How blocks share the result out where the channels of a group fill no sector of memory: see
/// `kernels/fold/fold_rows.cu`.
struct Rows {
    /// Channels, columns and lines of a block.
    channels: usize,
    width: usize,
    height: usize,
    /// Positions of a line of outputs that reach a block, at most.
    columns: usize,
}

/// Bytes of shared memory of a block.
const LINE_BYTES: usize = 44 << 10;
/// Threads of a block, at most, and lines: enough to be worth those around them that are read in part.
const MOST_THREADS: usize = 512;
const LINES: usize = 16;
/// Lines of results that one of outputs reaches, at most: a thread has a sum for each.
const MOST_REACH: usize = 32;

impl Rows {
    fn new<T: Element>(call: &Call, specialise: bool) -> Option<Rows> {
        let Call { layout, axes: ref maps, channels, groups, .. } = *call;
        let (per_group, taps, size) = (channels / groups, maps.taps(), size_of::<T>());
        let span = |map: &AxisMap| (map.taps() - 1) * map.dilation() + 1;
        if layout != Layout::ChannelsLast
            || !is_specialised(maps, specialise)
            || !maps.is_zero_padded()
            || maps.iter().any(|map| map.stride() != 1)
            || maps[0].taps() != 1
            || taps == 1
            || span(&maps[1]) > MOST_REACH
            || (per_group * size).is_multiple_of(SECTOR)
        {
            return None;
        }
        let [_, lines, results] = maps.input_extents();
        let outputs = maps[2].outputs();
        let mut best: Option<(f64, Rows)> = None;
        for parts in (1..=groups).filter(|parts| groups.is_multiple_of(*parts)) {
            let channels = channels / parts;
            // The most columns that a block has threads and shared memory for.
            let columns = |width: usize| outputs.min(width + span(&maps[2]) - 1);
            let bytes = |width: usize| columns(width) * channels * taps * size;
            let fits =
                |width: &usize| width * channels <= MOST_THREADS && bytes(*width) <= LINE_BYTES;
            let pieces = |number: usize| results.div_ceil(number);
            let Some(width) = (1..=results).map(pieces).find(fits) else { continue };
            // Patches that are read again by neighbours, and parts of sectors that are stored.
            let read = (results.div_ceil(width) * columns(width)) as f64 / outputs as f64;
            let stored = SECTOR as f64 / (channels * size).min(SECTOR) as f64;
            // Ends of what is copied that lie in the middle of a sector.
            let ends = (channels * taps * size + SECTOR) as f64 / (channels * taps * size) as f64;
            let cost = read * ends + stored / taps as f64;
            if best.as_ref().is_none_or(|(least, _)| cost < *least) {
                let height = lines.div_ceil(lines.div_ceil(LINES).max(1));
                best = Some((cost, Rows { channels, width, height, columns: columns(width) }));
            }
        }
        best.map(|(_, rows)| rows)
    }

    fn launch<T: Element>(
        &self,
        draft: &mut Draft,
        call: &Call,
        patches: Region<T>,
        output: Region<T>,
        average: bool,
    ) -> Result<()> {
        let Call { layout, axes: ref maps, batch, channels, groups } = *call;
        let options = draft.device().options();
        let taps = maps.taps();
        // Whole copies of a position's patches, where these lie one after the other.
        let lengths = [self.channels * taps, channels * taps];
        let copy = match self::vector(size_of::<T>(), &lengths, &[patches.alignment()]) {
            wide if wide * size_of::<T>() == 16 => wide,
            some if some * size_of::<T>() >= 4 => (4 / size_of::<T>()).max(1),
            _ => 1,
        };
        let [depths, lines, results] = maps.input_extents();
        let [chunks, columns, strips] =
            [channels / self.channels, results.div_ceil(self.width), lines.div_ceil(self.height)];
        let grid = batch * depths * strips * columns * chunks;
        let reach = maps.iter().map(|map| map.padded_extent() + map.low() as usize + 2);
        let reach = reach.fold(1, usize::saturating_mul).saturating_add(patches.len());
        let mut spec = Spec::new("fold_rows.cu", "fold_rows")
            .element(T::DTYPE)
            .layout(layout)
            .geometry(maps, options.specialise)
            .define("CHANNELS", self.channels)
            .define("PER_GROUP", channels / groups)
            .define("WIDTH", self.width)
            .define("HEIGHT", self.height)
            .define("COLUMNS", self.columns)
            .define("COPY", copy)
            .index(&[output.len(), reach, grid, axis_bound(maps)], options.wide);
        if average {
            spec = spec.define("AVERAGE", 1);
        }
        let arguments = FoldRowsArgs {
            patches: patches.pointer(),
            output: output.pointer(),
            channels: channels as i64,
            axes: AxesArguments::new(maps),
            adjoint: Adjoint::new(maps),
            chunks: Divisor::new(chunks),
            columns: Divisor::new(columns),
            strips: Divisor::new(strips),
            depths: Divisor::new(depths),
        };
        let threads = (self.width * self.channels).next_multiple_of(32) as u32;
        // SAFETY: the kernel reads `patches` and writes `output` inside the extents that the caller checked
        // against both, and nothing else.
        unsafe { draft.launch(spec, blocks(grid, 1)?, threads, &arguments) };
        Ok(())
    }
}

#[cfg(all(test, feature = "simulator", unix))]
mod tests {
    use half::f16;

    use crate::device::Device;
    use crate::device::cuda::Simulation;
    use crate::element::Element;
    use crate::geometry::{Conv, Layout};
    use crate::tensor::Tensor;
    use crate::{LaunchProfile, Profiling};

    /// Folds on an H100 as the CPU does; gives the launch.
    fn folded<T: Element>(conv: Conv<2>, size: [usize; 2], channels: usize) -> LaunchProfile {
        let profiling = Some(Profiling::new("h100".parse().unwrap()));
        let simulation = Simulation { profiling, specialise: true, ..Simulation::default() };
        let device = Device::simulator_with(simulation).unwrap();
        let conv = conv.layout(Layout::ChannelsLast);
        let positions = conv.bind(size).unwrap().positions();
        let taps: usize = conv.kernel_size().iter().product();
        let shape = [2, positions, channels * taps];
        // Sums of few different numbers are exact.
        let data: Vec<T> =
            (0..shape.iter().product()).map(|i: usize| T::from_f64((i % 13) as f64)).collect();
        let [on_host, on_device] = [&Device::Cpu, &device]
            .map(|device| Tensor::from_vec(device, &shape, data.clone()).unwrap());
        let average = conv.fold_average(&on_device, size).unwrap();
        assert!(
            average.into_vec().unwrap()
                == conv.fold_average(&on_host, size).unwrap().into_vec().unwrap(),
            "{conv} {size:?} {channels}, averaged"
        );
        device.take_profile();
        let found = conv.fold(&on_device, size).unwrap();
        let launch = device.take_profile().pop().unwrap();
        assert!(
            found.into_vec().unwrap() == conv.fold(&on_host, size).unwrap().into_vec().unwrap(),
            "{conv} {size:?} {channels}"
        );
        launch
    }

    /// Where channels of a group are few, patches are read little more than once all the same.
    #[test]
    fn rows_are_read_whole() {
        let depthwise = Conv::new([7, 7]).padding([3, 3]);
        for launch in [
            folded::<f32>(depthwise.groups(32), [28, 28], 32),
            folded::<f16>(depthwise.groups(32), [28, 28], 32),
            folded::<f32>(Conv::new([3, 3]).padding([1, 1]).groups(8), [28, 28], 32),
            folded::<f16>(Conv::new([3, 3]).padding([1, 1]).groups(8), [28, 28], 32),
        ] {
            println!("{launch}");
            assert_eq!(launch.kernel, "fold_rows");
            let global = launch.global;
            assert!(global.load_sectors_past_l1 < 1.4 * global.load_sectors_compulsory);
            assert!(launch.shared.wavefronts < 2.5 * launch.shared.wavefronts_ideal);
        }
        // Strips, columns and copies that end anywhere.
        folded::<f16>(Conv::new([3, 5]).padding([(1, 0), (2, 1)]).dilation([2, 1]), [37, 7], 1);
        folded::<f32>(depthwise.groups(3), [5, 90], 9);
        folded::<f16>(depthwise.groups(5), [19, 4], 5);
    }
}
