//! The bias gradient on CUDA: launches the two stages of `kernels/conv/reduce.cu`.

use crate::device::cuda::structs::ReduceArgs;
use crate::device::cuda::{Divisor, Draft, Region, Spec, THREADS, blocks, vector};
use crate::element::Element;
use crate::error::Result;
use crate::geometry::Layout;

/// The number of blocks that fills a large GPU. A constant: it decides the order of the sums.
const BLOCKS: usize = 1024;

/// Vectors or rows that a thread should sum at least, before a channel is split.
const PER_THREAD: usize = 8;

/// `db[c]` = sum of channel c of `dy`, which has `positions` of them in each of `batch` images.
pub(in crate::conv) fn backward_bias<T: Element>(
    draft: &mut Draft,
    layout: Layout,
    batch: usize,
    positions: usize,
    dy: Region<T>,
    db: Region<T>,
) -> Result<()> {
    let channels = db.len();
    if dy.len() == 0 {
        draft.clear(db);
        return Ok(());
    }
    // What a load moves depends on the sizes only; where the address forbids, it is done in parts.
    let neighbours = match layout {
        Layout::ChannelsFirst => positions,
        Layout::ChannelsLast => channels,
    };
    let width = vector(size_of::<T>(), &[neighbours], &[]);
    let aligned = vector(size_of::<T>(), &[width], &[dy.alignment()]) == width;
    let vectors = neighbours / width;
    let (lanes, columns, length) = match layout {
        Layout::ChannelsFirst => (THREADS as usize, channels, batch * vectors),
        Layout::ChannelsLast => {
            let columns = vectors.div_ceil(32);
            (vectors.div_ceil(columns), columns, batch * positions)
        }
    };
    // Threads that take turns along a piece, and pieces long enough for all of them.
    let turns = match layout {
        Layout::ChannelsFirst => lanes,
        Layout::ChannelsLast => THREADS as usize / lanes,
    };
    let splits = (BLOCKS / columns).min(length / (turns * PER_THREAD)).max(1);
    let piece = length.div_ceil(splits);
    let splits = length.div_ceil(piece);

    let kept = if splits == 1 { 0 } else { channels * splits };
    let partial = draft.workspace::<T::Acc>("partial bias gradients", kept)?;
    let arguments = ReduceArgs {
        input: dy.pointer(),
        output: db.pointer(),
        partial: partial.pointer(),
        channels: channels as i64,
        splits: splits as i64,
        length: length as i64,
        piece: piece as i64,
        plane: Divisor::new(vectors),
        lanes: Divisor::new(lanes),
    };
    let wide = draft.device().options().wide;
    let spec = |entry| {
        let spec = Spec::new("reduce.cu", entry)
            .element(T::DTYPE)
            .layout(layout)
            .define("VECTOR", width)
            .index(&[dy.len(), kept], wide);
        if aligned { spec.define("ALIGNED", 1) } else { spec }
    };
    let [grid, ..] = blocks(columns, 1)?;
    // SAFETY: the kernel reads `dy`, as large as channels, vectors and length say, and writes `partial`
    // or, where there is one piece, `db`.
    unsafe { draft.launch(spec("partial_sums"), [grid, splits as u32, 1], THREADS, &arguments) };
    if splits == 1 {
        return Ok(());
    }
    let grid = blocks(channels * 32, THREADS)?;
    // SAFETY: the kernel reads `partial`, which the one before it has filled, and writes `db`.
    unsafe { draft.launch(spec("total_sums"), grid, THREADS, &arguments) };
    Ok(())
}
