//! How a result is divided among threads, where each task copies what its outputs read.

use crate::geometry::{Box3, volume};
use crate::patches::pieces::Pieces;
use crate::patches::slab::boxes;
use crate::workers::wanted_tasks;

/// Tasks for each thread there should be at least: a single image has few unless its rows are divided.
const TASKS: usize = 2;
/// Rows that pay for the copies of a task, which those of other rows of the same outputs make as well.
const LEAST_ROWS: usize = 32;
/// Outputs of a task that pay for what it reads beyond them, and keep vectors full.
const ENOUGH_OUTPUTS: usize = 512;
/// Outputs of a task at least, where there are threads that would have none.
const LEAST_OUTPUTS: usize = 64;

/// Boxes of outputs that fit, and pieces of at most so many rows, for each of `others`: first smaller boxes, then
/// fewer rows make more tasks, and then boxes that are smaller than they should be.
pub(crate) fn divide(
    extents: [usize; 3],
    rows: usize,
    most_rows: usize,
    others: usize,
    fits: impl Fn(&Box3) -> bool,
) -> (Vec<Box3>, Pieces) {
    let wanted = wanted_tasks(TASKS);
    let most_rows = rows.min(most_rows);
    let others = others * rows.div_ceil(most_rows.max(1));
    let outputs: usize = extents.iter().product();
    let cut = |others: usize, least: usize| {
        let share = (outputs * others).div_ceil(wanted).max(least);
        boxes(extents, |outputs| fits(outputs) && volume(outputs) <= share)
    };
    let large = cut(others, ENOUGH_OUTPUTS);
    let pieces = wanted.div_ceil((others * large.len()).max(1)).min(most_rows / LEAST_ROWS).max(1);
    let boxes = if others * large.len() * pieces < wanted {
        cut(others * pieces, LEAST_OUTPUTS)
    } else {
        large
    };
    (boxes, Pieces::new(rows, most_rows.div_ceil(pieces)))
}
