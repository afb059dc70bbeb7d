//! Unfold on CUDA: the arguments of `kernels/unfold/unfold.cu` and its launch, and of `unfold_rows.cu`.

use super::Call;
use crate::device::cuda::structs::{UnfoldArgs, UnfoldRowsArgs};
use crate::device::cuda::{
    AxesArguments, BANK_BYTES, Divisor, Draft, Region, SECTOR, Spec, THREADS, axis_bound,
    bank_passes, blocks, is_specialised, position_divisors, vector,
};
use crate::element::Element;
use crate::error::Result;
use crate::geometry::{AxisMap, Layout};
use crate::plan::Explanation;

/// Why it is done so.
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
    if let Some(rows) = Rows::new::<T>(call, options.specialise) {
        return rows.launch(draft, call, input, patches);
    }
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
        // Lines of whole vectors, of which a window begins at the same place in each.
        let bytes = vector * size_of::<T>();
        let whole = maps[2].inputs().is_multiple_of(vector)
            && input.alignment().is_multiple_of(bytes as u64);
        let first = maps[2].low().rem_euclid(vector as i64);
        if whole && maps.is_zero_padded() && vector > 1 && first as usize + vector <= window {
            spec = spec.define("ALIGNED", first);
        }
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

/// How a block puts rows together, where the channels of a group are few: see
/// `kernels/unfold/unfold_rows.cu`.
struct Rows {
    /// Channels of a block, and rows.
    channels: usize,
    rows: usize,
}

/// Bytes of a group's channels from which on a store for each tap takes less time, by the model.
const MOST_SCATTERED: usize = 8;
/// Bytes of shared memory of a block.
const ROW_BYTES: usize = 20 << 10;
/// Rows of a block that are worth having, and at most, and passes of the banks that a store of a warp's may take.
const ENOUGH_ROWS: usize = 8;
const MOST_ROWS: usize = 64;
const MOST_PASSES: usize = 4;

impl Rows {
    fn new<T: Element>(call: &Call, specialise: bool) -> Option<Rows> {
        let Call { layout, axes: ref maps, channels, groups, .. } = *call;
        let (per_group, taps, size) = (channels / groups, maps.taps(), size_of::<T>());
        if layout != Layout::ChannelsLast
            || !is_specialised(maps, specialise)
            || groups == 1
            || per_group * size >= MOST_SCATTERED
        {
            return None;
        }
        // As many channels as leave room for some rows, which read much of the input together; parts of rows are
        // whole sectors.
        let bytes = |parts: usize| channels / parts * taps * size;
        let all = (1..=groups).filter(|parts| groups.is_multiple_of(*parts));
        let whole = |&parts: &usize| parts == 1 || bytes(parts).is_multiple_of(SECTOR);
        let fitting = || all.clone().filter(whole).filter(|&parts| bytes(parts) <= ROW_BYTES);
        let several = |parts: &usize| ENOUGH_ROWS * bytes(*parts) <= ROW_BYTES;
        let parts = fitting().find(several).or_else(|| fitting().next_back())?;
        let rows = (ROW_BYTES / bytes(parts)).clamp(1, MOST_ROWS);
        let channels = channels / parts;
        // Vectors of a block's rows then begin where addresses are multiples of what is stored.
        let rows = 1 << rows.ilog2();
        let word = |lane: usize| {
            let channel = lane % channels;
            (channel / per_group * taps * per_group + channel % per_group) * size / BANK_BYTES
        };
        let passes = bank_passes(std::array::from_fn(word));
        (passes <= MOST_PASSES).then_some(Rows { channels, rows })
    }

    fn launch<T: Element>(
        &self,
        draft: &mut Draft,
        call: &Call,
        input: Region<T>,
        patches: Region<T>,
    ) -> Result<()> {
        let Call { layout, axes: ref maps, batch, channels, groups } = *call;
        let options = draft.device().options();
        let (positions, taps) = (maps.outputs(), maps.taps());
        let chunks = channels / self.channels;
        // A vector is of one row, unless rows follow each other.
        let together = if chunks == 1 { self.rows } else { 1 };
        let lengths = [self.channels, channels].map(|channels| together * channels * taps);
        let vector = vector(size_of::<T>(), &lengths, &[patches.alignment()]);
        let count = batch * positions;
        let grid = count.div_ceil(self.rows) * chunks;
        let spec = Spec::new("unfold_rows.cu", "unfold_rows")
            .element(T::DTYPE)
            .layout(layout)
            .define("CHANNELS", self.channels)
            .define("PER_GROUP", channels / groups)
            .define("POSITIONS", self.rows)
            .define("VECTOR", vector)
            .geometry(maps, options.specialise)
            .index(&[input.len(), patches.len(), grid, axis_bound(maps)], options.wide);
        let [plane, line] = position_divisors(maps.output_extents());
        let arguments = UnfoldRowsArgs {
            input: input.pointer(),
            patches: patches.pointer(),
            count: count as i64,
            channels: channels as i64,
            axes: AxesArguments::new(maps),
            chunks: Divisor::new(chunks),
            positions: Divisor::new(positions),
            plane,
            line,
        };
        // SAFETY: the kernel reads `input` and writes `patches` inside the extents that the caller checked
        // against both, and nothing else.
        unsafe { draft.launch(spec, blocks(grid, 1)?, THREADS, &arguments) };
        Ok(())
    }
}

#[cfg(all(test, feature = "simulator", unix))]
mod tests {
    use half::f16;

    use crate::device::Device;
    use crate::device::cuda::Simulation;
    use crate::element::Element;
    use crate::geometry::{Conv, Layout, PaddingMode};
    use crate::tensor::Tensor;
    use crate::{LaunchProfile, Profiling};

    /// Unfolds on an H100 as the CPU does; gives the launch.
    fn unfolded<T: Element>(conv: Conv<2>, size: [usize; 2], channels: usize) -> LaunchProfile {
        let profiling = Some(Profiling::new("h100".parse().unwrap()));
        let simulation = Simulation { profiling, specialise: true, ..Simulation::default() };
        let device = Device::simulator_with(simulation).unwrap();
        let shape = conv.axis_order().activation_shape(2, channels, &size);
        let data: Vec<T> =
            (0..shape.iter().product()).map(|i: usize| T::from_f64((i % 251) as f64)).collect();
        let [on_host, on_device] = [&Device::Cpu, &device]
            .map(|device| Tensor::from_vec(device, &shape, data.clone()).unwrap());
        device.take_profile();
        let found = conv.unfold(&on_device).unwrap();
        let launch = device.take_profile().pop().unwrap();
        assert!(
            found.into_vec().unwrap() == conv.unfold(&on_host).unwrap().into_vec().unwrap(),
            "{conv} {size:?} {channels}"
        );
        launch
    }

    /// Lines that are read as vectors and single elements, beginning anywhere in a vector, with taps far apart and
    /// outputs that follow each other by strides.
    #[test]
    fn windows_are_read_by_vectors() {
        let padded = Conv::new([3, 3]).padding([1, 1]);
        for conv in [
            padded,
            Conv::new([7, 7]).stride([2, 2]).padding([3, 3]),
            Conv::new([1, 5]).dilation([1, 2]).padding([0, 4]),
            Conv::new([2, 3]).stride([1, 3]).padding([0, 5]),
        ] {
            unfolded::<f32>(conv, [9, 16], 3);
            unfolded::<f16>(conv, [9, 32], 3);
            unfolded::<f32>(conv.padding_mode(PaddingMode::Circular), [9, 16], 2);
        }
        // Half of what every element read and checked by itself would take.
        let launches = [unfolded::<f32>(padded, [16, 16], 4), unfolded::<f16>(padded, [16, 16], 4)];
        for (launch, most) in launches.iter().zip([180, 230]) {
            assert_eq!(launch.global.store_sectors, launch.global.store_sectors_compulsory);
            if let Some(sass) = launch.sass {
                assert!(sass.whole.instructions < most, "{launch}");
            }
        }
    }

    /// Where channels of a group are few, patches are stored by whole sectors all the same, and the input comes
    /// from the L1 cache but for the first times.
    #[test]
    fn rows_are_stored_whole() {
        let layout = Layout::ChannelsLast;
        let depthwise = Conv::new([7, 7]).padding([3, 3]).layout(layout);
        for launch in [
            unfolded::<f32>(depthwise.groups(64), [14, 12], 64),
            unfolded::<f16>(depthwise.groups(64), [14, 12], 64),
        ] {
            println!("{launch}");
            assert_eq!(launch.kernel, "unfold_rows");
            assert_eq!(launch.global.store_sectors, launch.global.store_sectors_compulsory);
            let global = launch.global;
            assert!(global.load_sectors_past_l1 < 0.4 * global.store_sectors);
            assert!(launch.shared.wavefronts < 2.5 * launch.shared.wavefronts_ideal);
        }
        // Rows and blocks of rows that end anywhere.
        unfolded::<f16>(Conv::new([3, 5]).padding([1, 2]).layout(layout), [9, 7], 1);
        let reflected = Conv::new([3, 3]).padding([2, 1]).padding_mode(PaddingMode::Reflect);
        let reflected = reflected.layout(layout);
        unfolded::<f32>(reflected.groups(3), [5, 9], 9);
        unfolded::<f16>(depthwise.groups(700), [3, 4], 700);
    }
}
