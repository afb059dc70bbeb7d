//! Assembly on CUDA: the axes' tables for `kernels/matrix/matrix.cu`, the packed weight, and the launches.

use std::collections::BTreeMap;

use super::call::WeightOrder;
use super::places::Places;
use crate::device::cuda::structs::{AxisTable, MatrixArgs, PackArgs};
use crate::device::cuda::{
    Divisor, Draft, Pointer, Region, Spec, THREADS, blocks, position_divisors,
};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::geometry::AxisRows;
use crate::matrix::cuda::CsrRegions;
use crate::matrix::storage::Extent;
use crate::plan::Explanation;

const WHAT: &str = "the index tables of the matrix";

/// Entries for each thread of a block, at most (`CAPACITY` in the kernel): enough that what a thread has to find
/// out about its row is worth it.
const ENTRIES_PER_THREAD: usize = 36;
/// Threads of a block, and of one whose entries take more than 8 bytes, for which the same shared memory has to do.
const BLOCK: u32 = 128;
const BLOCK_OF_WIDE: u32 = 64;

/// Writes a matrix of this extent.
pub(super) fn assemble<T: Element>(
    draft: &mut Draft,
    places: &Places,
    extent: &Extent,
    weight: Region<T>,
    bias: Option<Region<T>>,
    target: CsrRegions<T>,
    explanation: &mut Explanation,
) -> Result<()> {
    let channels = &places.channels;
    let packed = pack(draft, places, weight)?;
    let axis_rows = places.axes.each_ref().map(|axis| &axis.rows);
    let steps = axis_rows.map(usual_steps);
    let (tables, sections) = tables(axis_rows, steps)?;
    let tables = draft.table(WHAT, tables);
    let taps = places.axes.each_ref().map(|axis| axis.taps());
    let columns = axis_rows.map(AxisRows::columns);
    let column_strides = [columns[1] * columns[2], columns[2], 1];
    let weight_strides = [taps[1] * taps[2], taps[2], 1];
    let axes = std::array::from_fn(|a| {
        let Section { rows, entries, lists, taps } = sections[a];
        let [rows, entries, lists, taps] =
            [rows, entries, lists, taps].map(|at| tables.offset(4 * at));
        let (column_step, tap_step) = steps[a];
        AxisTable {
            rows,
            entries,
            lists,
            taps,
            total: axis_rows[a].total() as i64,
            column_stride: column_strides[a] as i64,
            column_step: column_step * column_strides[a] as i64,
            weight_step: tap_step * weight_strides[a] as i64,
            weight_stride: weight_strides[a] as i64,
        }
    });

    // The longest row says how many rows a block has, or how many pieces a row takes.
    let longest_cell: usize = axis_rows
        .iter()
        .map(|rows| (0..rows.rows()).map(|r| rows.count(r)).max().unwrap_or(0))
        .product();
    let longest = channels.columns * longest_cell + usize::from(channels.bias);
    let threads = if extent.width.size() + size_of::<T>() <= 8 { BLOCK } else { BLOCK_OF_WIDE };
    let capacity = ENTRIES_PER_THREAD * threads as usize;
    // Rows of a multiple of 32 entries begin in one bank of shared memory, of 16 in two, and so on: enough
    // threads to a row that no more than four are in one.
    let together = 1 << longest.trailing_zeros().min(5);
    let most = threads as usize / (together / 4).max(1);
    let height = (capacity / longest.max(1)).clamp(1, most);
    let lanes = threads as usize / height;
    let pieces = longest.div_ceil(capacity).max(1);
    let runs = extent.rows.div_ceil(height);

    let positions = axis_rows.map(AxisRows::rows);
    let all_columns = channels.groups * channels.columns * places.plane() + 1;
    let planar = axis_rows[0].rows() == 1 && axis_rows[0].columns() == 1 && taps[0] == 1;
    let regular = axis_rows
        .iter()
        .zip(steps)
        .all(|(rows, steps)| (0..rows.rows()).all(|row| is_regular(rows, row, steps)));
    explanation.algorithm = if regular { "regular" } else { "tables" }.into();
    explanation.reason = if regular {
        "columns and taps of a row are equally far apart: threads count them".into()
    } else {
        "in some rows taps share columns, or are unequally far apart: threads look them up".into()
    };
    let options = draft.device().options();
    let spec = Spec::new("matrix.cu", "matrix")
        .element(T::DTYPE)
        .columns(extent.width)
        .define("THREADS", threads)
        .define("PLANAR", u8::from(planar))
        .define("REGULAR", u8::from(regular))
        .index(&[extent.rows, all_columns, weight.len(), longest], options.wide);
    let [area, line] = position_divisors(positions);
    let positions = positions.iter().product();
    let arguments = MatrixArgs {
        weight: packed.pointer(),
        bias: bias.map_or(Pointer::NULL, |bias| bias.pointer()),
        indptr: target.indptr.pointer(),
        indices: target.indices.pointer(),
        data: target.data.pointer(),
        axes,
        rows: extent.rows as i64,
        per_channel: places.entries_before(positions) as i64,
        channels: channels.columns as i64,
        plane: places.plane() as i64,
        taps: places.taps() as i64,
        bias_column: places.bias_column().unwrap_or(0) as i64,
        height: height as i64,
        lanes: Divisor::new(lanes),
        pieces: Divisor::new(pieces),
        positions: Divisor::new(positions),
        area,
        line,
        row_channels: Divisor::new(channels.rows),
    };
    let grid = blocks(runs.saturating_mul(pieces), 1)?;
    // SAFETY: the target has exactly this extent, and weight and bias are those of the matrix: the kernel
    // reads and writes inside them, and inside the tables made for them.
    unsafe { draft.launch(spec, grid, threads, &arguments) };
    Ok(())
}

/// The weight as `[row channel, column channel of the group, tap]`: itself, or a copy in the workspace.
fn pack<T: Element>(draft: &mut Draft, places: &Places, weight: Region<T>) -> Result<Region<T>> {
    let (channels, taps) = (&places.channels, places.taps());
    let WeightOrder { group, row, column, tap } = places.order;
    let per_row = channels.columns * taps;
    // It does not matter how far apart the elements are where there is one.
    let as_is = |extent: usize, stride: usize, packed: usize| extent == 1 || stride == packed;
    if as_is(channels.groups, group, channels.rows * per_row)
        && as_is(channels.rows, row, per_row)
        && as_is(channels.columns, column, taps)
        && as_is(taps, tap, 1)
    {
        return Ok(weight);
    }
    let packed = draft.workspace("the weight in the order of the matrix", weight.len())?;
    let spec = Spec::new("pack.cu", "pack")
        .element(T::DTYPE)
        .index(&[weight.len()], draft.device().options().wide);
    let arguments = PackArgs {
        weight: weight.pointer(),
        packed: packed.pointer(),
        count: weight.len() as i64,
        group: group as i64,
        row: row as i64,
        column: column as i64,
        tap: tap as i64,
        row_channels: Divisor::new(channels.rows),
        columns: Divisor::new(channels.columns),
        taps: Divisor::new(taps),
    };
    // SAFETY: the strides are those of the weight, whose shape was checked; the copy is as long.
    unsafe { draft.launch(spec, blocks(weight.len(), THREADS)?, THREADS, &arguments) };
    Ok(packed)
}

/// The distances in columns and in taps from an entry of a row to the next, if they are the same throughout it
/// and no two taps share a column; `None` within if there is no next.
fn steps(rows: &AxisRows, row: usize) -> Option<Option<(i64, i64)>> {
    let (mut steps, mut last) = (None, None);
    for (column, taps) in rows.row(row) {
        let &[tap] = taps else { return None };
        let here = (column as i64, tap as i64);
        if let Some((column, tap)) = last {
            let step = (here.0 - column, here.1 - tap);
            if *steps.get_or_insert(step) != step {
                return None;
            }
        }
        last = Some(here);
    }
    Some(steps)
}

/// The distances that most rows of an axis have.
fn usual_steps(rows: &AxisRows) -> (i64, i64) {
    let mut found = BTreeMap::new();
    for step in (0..rows.rows()).filter_map(|row| steps(rows, row).flatten()) {
        *found.entry(step).or_insert(0) += 1;
    }
    found.into_iter().max_by_key(|&(_, count)| count).map_or((0, 0), |(step, _)| step)
}

/// Whether a row has these distances.
fn is_regular(rows: &AxisRows, row: usize, usual: (i64, i64)) -> bool {
    steps(rows, row).is_some_and(|own| own.is_none_or(|own| own == usual))
}

/// Where the tables of an axis begin: its rows (`AxisRow` in the kernel), entries (`AxisEntry`), their lists
/// (`AxisTaps`) and taps.
#[derive(Clone, Copy, Debug, Default)]
struct Section {
    rows: usize,
    entries: usize,
    lists: usize,
    taps: usize,
}

/// The tables of all axes, whose regular rows have these distances from entry to entry.
fn tables(axes: [&AxisRows; 3], steps: [(i64, i64); 3]) -> Result<(Vec<i32>, [Section; 3])> {
    let mut table = Vec::new();
    let mut sections = [Section::default(); 3];
    // Taps last: the others are aligned to 8 bytes.
    for ((rows, steps), section) in axes.into_iter().zip(steps).zip(&mut sections) {
        section.rows = table.len();
        reserve(&mut table, rows.rows().saturating_mul(6))?;
        for row in 0..rows.rows() {
            let (column, taps) = rows.row(row).next().unwrap_or((0, &[0]));
            table.extend([narrow(rows.before(row))?, narrow(rows.count(row))?, narrow(column)?]);
            table.push(if is_regular(rows, row, steps) { narrow(taps[0])? } else { -1 });
            table.extend(Divisor::new(rows.count(row)).magic_numbers());
        }
    }
    for (rows, section) in axes.into_iter().zip(&mut sections) {
        let entries = || (0..rows.rows()).flat_map(|row| rows.row(row));
        section.entries = table.len();
        reserve(&mut table, rows.total().saturating_mul(4))?;
        for (column, taps) in entries() {
            let tap = if let [tap] = *taps { narrow(tap)? } else { -1 };
            table.extend([narrow(column)?, tap]);
        }
        section.lists = table.len();
        let mut first = 0;
        for (_, taps) in entries() {
            table.extend([narrow(first)?, narrow(taps.len())?]);
            first += taps.len();
        }
    }
    for (rows, section) in axes.into_iter().zip(&mut sections) {
        section.taps = table.len();
        for (_, taps) in (0..rows.rows()).flat_map(|row| rows.row(row)) {
            reserve(&mut table, taps.len())?;
            for &tap in taps {
                table.push(narrow(tap)?);
            }
        }
    }
    Ok((table, sections))
}

fn narrow(number: usize) -> Result<i32> {
    i32::try_from(number).map_err(|_| Error::TooLarge {
        what: "a number in the index tables of an axis".into(),
        value: number.to_string(),
        limit: i32::MAX as u64,
    })
}

fn reserve(table: &mut Vec<i32>, additional: usize) -> Result<()> {
    table.try_reserve(additional).map_err(|_| Error::Allocation {
        what: WHAT.into(),
        bytes: (additional as u64).saturating_mul(4),
    })
}
