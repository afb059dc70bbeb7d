//! Copies of operands with the channels as neighbours: `kernels/conv/channels_last.cu`.

use crate::device::cuda::structs::ChannelsLastArgs;
use crate::device::cuda::{Divisor, Draft, Region, Spec, blocks, vector};
use crate::element::Element;
use crate::error::Result;

/// Rows and columns of a block's tile.
const SIDE: usize = 64;
const THREADS: u32 = 256;

/// `count` matrices of `rows` by `columns`, each transposed: a copy in the workspace.
///
/// # Errors
/// [`crate::Error::TooLarge`] when there are too many to count.
pub(super) fn transposed<T: Element>(
    draft: &mut Draft,
    what: &str,
    source: Region<T>,
    count: usize,
    rows: usize,
    columns: usize,
) -> Result<Region<T>> {
    let target = draft.workspace::<T>(what, source.len())?;
    let options = draft.device().options();
    let wide = |length, alignment| vector(size_of::<T>(), &[length], &[alignment]);
    // Where few kernels are to be compiled, elements are moved one by one.
    let [read, write] = match options.specialise {
        true => [wide(columns, source.alignment()), wide(rows, target.alignment())],
        false => [1; 2],
    };
    let tiles = [rows, columns].map(|length| length.div_ceil(SIDE));
    let spec = Spec::new("channels_last.cu", "to_channels_last")
        .element(T::DTYPE)
        .define("READ", read)
        .define("WRITE", write)
        .index(&[source.len(), count * tiles[0] * tiles[1]], options.wide);
    let arguments = ChannelsLastArgs {
        source: source.pointer(),
        target: target.pointer(),
        rows: rows as i64,
        columns: columns as i64,
        row_tiles: Divisor::new(tiles[0]),
        column_tiles: Divisor::new(tiles[1]),
    };
    let grid = blocks(count * tiles[0] * tiles[1], 1)?;
    // SAFETY: the kernel reads all of the source, of count · rows · columns elements, and writes as many of the
    // target.
    unsafe { draft.launch(spec, grid, THREADS, &arguments) };
    Ok(target)
}
