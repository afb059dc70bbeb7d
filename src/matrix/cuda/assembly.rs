//! Assembly on CUDA: the axes' tables for `kernels/matrix.cu`, and its launch.

use bytemuck::{Pod, Zeroable};

use super::{Addresses, CudaCsr};
use crate::device::cuda::{
    CudaDevice, DeviceBuffer, DeviceSlice, Divisor, Spec, THREADS, blocks, position_divisors,
};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::geometry::AxisRows;
use crate::matrix::index::IndexWidth;
use crate::matrix::plan::{Plan, WeightOrder};

/// `AxisTable` in the kernel.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct AxisTable {
    rows: u64,
    entries: u64,
    taps: u64,
    total: i64,
    column_stride: i64,
    column_step: i64,
    weight_step: i64,
    weight_stride: i64,
}

/// `MatrixArgs` in the kernel.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct MatrixArguments {
    weight: u64,
    bias: u64,
    matrix: Addresses,
    axes: [AxisTable; 3],
    rows: i64,
    per_channel: i64,
    channels: i64,
    plane: i64,
    taps: i64,
    bias_column: i64,
    lanes: i64,
    pieces: Divisor,
    positions: Divisor,
    position: [Divisor; 2],
    row_channels: Divisor,
}

/// `PackArgs` in the kernel.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct PackArguments {
    weight: u64,
    packed: u64,
    count: i64,
    group: i64,
    row: i64,
    column: i64,
    tap: i64,
    row_channels: Divisor,
    columns: Divisor,
    taps: Divisor,
}

/// `FilterArgs` in the kernel.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct FilterArguments {
    matrix: Addresses,
    rows: i64,
    block: Divisor,
}

const WHAT: &str = "the index tables of the matrix";

/// Entries that a thread makes at least, if it can be had, so that what it has to find out about its row
/// is worth it.
const ENTRIES_PER_THREAD: usize = 8;

/// Writes a matrix of exactly the plan's size.
pub(in crate::matrix) fn assemble<T: Element>(
    plan: &Plan,
    weight: &DeviceSlice<'_, T>,
    bias: Option<&DeviceSlice<'_, T>>,
    target: &mut CudaCsr<T>,
) -> Result<()> {
    let device = target.device();
    let (channels, rows) = (&plan.channels, plan.rows());
    let packed = pack(plan, weight)?;
    let (tables, sections) = tables(plan)?;
    let tables = device.table(WHAT, &tables)?;
    let axis_rows = plan.axes.each_ref().map(|axis| &axis.rows);
    let steps = axis_rows.map(regular_steps);
    let taps = plan.axes.each_ref().map(|axis| axis.taps());
    let columns = axis_rows.map(AxisRows::columns);
    let column_strides = [columns[1] * columns[2], columns[2], 1];
    let weight_strides = [taps[1] * taps[2], taps[2], 1];
    let axes = std::array::from_fn(|a| {
        let [rows, entries, taps] = sections[a].map(|at| tables.address() + 4 * at as u64);
        let (column_step, tap_step) = steps[a].unwrap_or_default();
        AxisTable {
            rows,
            entries,
            taps,
            total: axis_rows[a].total() as i64,
            column_stride: column_strides[a] as i64,
            column_step: column_step * column_strides[a] as i64,
            weight_step: tap_step * weight_strides[a] as i64,
            weight_stride: weight_strides[a] as i64,
        }
    });

    // The longest row says how many threads share one, and how many pieces that takes.
    let longest_cell: usize = axis_rows
        .iter()
        .map(|rows| (0..rows.rows()).map(|r| rows.count(r)).max().unwrap_or(0))
        .product();
    let longest = channels.columns * longest_cell + usize::from(channels.bias);
    let threads = if target.width.size() + size_of::<T>() <= 8 { THREADS } else { THREADS / 2 };
    let capacity = 2 * ENTRIES_PER_THREAD * threads as usize;
    let lanes = (longest / ENTRIES_PER_THREAD).clamp(1, threads as usize).ilog2();
    let pieces = longest.div_ceil(capacity).max(1);
    let runs = rows.div_ceil((threads >> lanes) as usize);

    let positions = axis_rows.map(AxisRows::rows);
    let all_columns = channels.groups * channels.columns * plan.plane() + 1;
    let planar = axis_rows[0].rows() == 1 && axis_rows[0].columns() == 1 && taps[0] == 1;
    let regular = steps.iter().all(Option::is_some);
    let spec = Spec::new("matrix.cu", "matrix")
        .element(T::DTYPE)
        .columns(target.width)
        .define("THREADS", threads)
        .define("PLANAR", u8::from(planar))
        .define("REGULAR", u8::from(regular))
        .index(&[rows, all_columns, weight.len(), longest], device.options().wide);
    let arguments = MatrixArguments {
        weight: packed.as_ref().map_or(weight.address(), |packed| packed.view().address()),
        bias: bias.map_or(0, DeviceSlice::address),
        matrix: target.addresses(),
        axes,
        rows: rows as i64,
        per_channel: plan.entries_before(positions.iter().product()) as i64,
        channels: channels.columns as i64,
        plane: plan.plane() as i64,
        taps: plan.taps() as i64,
        bias_column: plan.bias_column().unwrap_or(0) as i64,
        lanes: i64::from(lanes),
        pieces: Divisor::new(pieces),
        positions: Divisor::new(positions.iter().product()),
        position: position_divisors(positions),
        row_channels: Divisor::new(channels.rows),
    };
    let grid = blocks(runs.saturating_mul(pieces), 1)?;
    // SAFETY: the target has exactly the plan's size, and weight and bias are those of the plan: the kernel
    // reads and writes inside them, and inside the tables made from the same plan.
    unsafe { device.launch(spec, grid, threads, &arguments) }
}

/// The weight as `[row channel, column channel of the group, tap]`, if it is in another order.
fn pack<T: Element>(plan: &Plan, weight: &DeviceSlice<'_, T>) -> Result<Option<DeviceBuffer<T>>> {
    let (channels, taps) = (&plan.channels, plan.taps());
    let WeightOrder { group, row, column, tap } = plan.order;
    let per_row = channels.columns * taps;
    // A stride over a single element is none.
    let as_is = |extent: usize, stride: usize, packed: usize| extent == 1 || stride == packed;
    if as_is(channels.groups, group, channels.rows * per_row)
        && as_is(channels.rows, row, per_row)
        && as_is(channels.columns, column, taps)
        && as_is(taps, tap, 1)
    {
        return Ok(None);
    }
    let device = weight.device();
    let packed = DeviceBuffer::new(device, "the weight in the order of the matrix", weight.len())?;
    let spec = Spec::new("pack.cu", "pack")
        .element(T::DTYPE)
        .index(&[weight.len()], device.options().wide);
    let arguments = PackArguments {
        weight: weight.address(),
        packed: packed.view().address(),
        count: weight.len() as i64,
        group: group as i64,
        row: row as i64,
        column: column as i64,
        tap: tap as i64,
        row_channels: Divisor::new(channels.rows),
        columns: Divisor::new(channels.columns),
        taps: Divisor::new(taps),
    };
    // SAFETY: the strides are those of the weight, whose shape the plan was made for; the copy is as long.
    unsafe { device.launch(spec, blocks(weight.len(), THREADS)?, THREADS, &arguments)? };
    Ok(Some(packed))
}

/// The distances in columns and in taps from an entry to the next, if they are the same in all rows and no
/// two taps share a column.
fn regular_steps(rows: &AxisRows) -> Option<(i64, i64)> {
    let mut steps = None;
    for row in 0..rows.rows() {
        let mut last = None;
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
    }
    Some(steps.unwrap_or_default())
}

/// The rows (`AxisRow` in the kernel), the entries (`AxisEntry`) and the taps of each axis, and where each
/// begins.
fn tables(plan: &Plan) -> Result<(Vec<i32>, [[usize; 3]; 3])> {
    let mut table = Vec::new();
    let mut sections = [[0; 3]; 3];
    // Rows first: they are aligned to 8 bytes.
    for (axis, section) in plan.axes.iter().zip(&mut sections) {
        let rows = &axis.rows;
        section[0] = table.len();
        reserve(&mut table, rows.rows().saturating_mul(6))?;
        for row in 0..rows.rows() {
            let (column, tap) = rows.row(row).next().map_or((0, 0), |(c, taps)| (c, taps[0]));
            for number in [rows.before(row), rows.count(row), column, tap] {
                table.push(narrow(number)?);
            }
            table.extend(Divisor::new(rows.count(row)).magic_numbers());
        }
    }
    for (axis, section) in plan.axes.iter().zip(&mut sections) {
        let rows = &axis.rows;
        section[1] = table.len();
        reserve(&mut table, rows.total().saturating_mul(3))?;
        let mut first = 0;
        for (column, taps) in (0..rows.rows()).flat_map(|row| rows.row(row)) {
            for number in [column, first, taps.len()] {
                table.push(narrow(number)?);
            }
            first += taps.len();
        }
        section[2] = table.len();
        reserve(&mut table, first)?;
        for (_, taps) in (0..rows.rows()).flat_map(|row| rows.row(row)) {
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

/// `rows / block` identities of size `block`, stacked.
pub(crate) fn gathering_filter<T: Element>(
    device: &CudaDevice,
    width: IndexWidth,
    rows: usize,
    block: usize,
) -> Result<CudaCsr<T>> {
    let target = CudaCsr::new(device, width, rows, rows)?;
    let spec = Spec::new("filter_sparse.cu", "filter_sparse")
        .element(T::DTYPE)
        .columns(width)
        .index(&[rows], device.options().wide);
    let arguments = FilterArguments {
        matrix: target.addresses(),
        rows: rows as i64,
        block: Divisor::new(block),
    };
    // SAFETY: the target was made with `rows` rows and as many entries.
    unsafe { device.launch(spec, blocks(rows + 1, THREADS)?, THREADS, &arguments)? };
    Ok(target)
}
