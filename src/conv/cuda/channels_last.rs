//! Copies of operands with the channels as neighbours: `kernels/conv/channels_last.cu`.

use crate::device::cuda::structs::{ChannelsLastArgs, Matrices};
use crate::device::cuda::{Divisor, Draft, Region, Spec, Work, blocks, vector};
use crate::element::Element;
use crate::error::Result;

/// Rows and columns of a block's tile.
const SIDE: usize = 64;
const THREADS: u32 = 256;

/// `count` matrices of `rows` by `columns`, one after the other.
#[derive(Clone, Copy)]
pub(super) struct Stacked<T> {
    pub source: Region<T>,
    pub count: usize,
    pub rows: usize,
    pub columns: usize,
}

impl<T: Element> Stacked<T> {
    fn tiles(&self) -> [usize; 2] {
        [self.rows, self.columns].map(|length| length.div_ceil(SIDE))
    }

    fn blocks(&self) -> usize {
        self.count * self.tiles().iter().product::<usize>()
    }

    /// How many neighbours can be read and written at a time. Where few kernels are to be compiled, one is.
    fn vectors(&self, target: Region<T>, specialise: bool) -> [usize; 2] {
        let wide = |length, alignment| vector(size_of::<T>(), &[length], &[alignment]);
        match specialise {
            true => {
                [wide(self.columns, self.source.alignment()), wide(self.rows, target.alignment())]
            }
            false => [1; 2],
        }
    }

    fn arguments(&self, target: Region<T>) -> Matrices {
        let [row_tiles, column_tiles] = self.tiles().map(Divisor::new);
        Matrices {
            source: self.source.pointer(),
            target: target.pointer(),
            rows: self.rows as i64,
            columns: self.columns as i64,
            row_tiles,
            column_tiles,
        }
    }
}

/// Both operands of a product, each matrix transposed: copies in the workspace, by one launch.
///
/// # Errors
/// [`crate::Error::TooLarge`] when there are too many to count.
pub(super) fn transposed<T: Element>(
    draft: &mut Draft,
    operands: [(&str, Stacked<T>); 2],
) -> Result<[Region<T>; 2]> {
    let [(first_name, first), (second_name, second)] = operands;
    let targets = [
        draft.workspace::<T>(first_name, first.source.len())?,
        draft.workspace::<T>(second_name, second.source.len())?,
    ];
    let options = draft.device().options();
    let [read, write] = first.vectors(targets[0], options.specialise);
    let [read_second, write_second] = second.vectors(targets[1], options.specialise);
    let all = first.blocks() + second.blocks();
    let spec = Spec::new("channels_last.cu", "to_channels_last")
        .element(T::DTYPE)
        .define("READ", read)
        .define("WRITE", write)
        .define("READ_SECOND", read_second)
        .define("WRITE_SECOND", write_second)
        .index(&[first.source.len(), second.source.len(), all], options.wide);
    let arguments = ChannelsLastArgs {
        first: first.arguments(targets[0]),
        second: second.arguments(targets[1]),
        blocks: first.blocks() as i64,
    };
    let moved = 2 * (first.source.len() + second.source.len()) * size_of::<T>();
    draft.expect(Work::moving(all, moved as f64));
    // SAFETY: the kernel reads all of each source, of count · rows · columns elements, and writes as many of
    // its target.
    unsafe { draft.launch(spec, blocks(all, 1)?, THREADS, &arguments) };
    Ok(targets)
}
