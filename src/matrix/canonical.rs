//! What a canonical matrix is: its row pointers never decrease, and the columns of a row ascend.

use rayon::prelude::*;

use super::index::Index;
use crate::error::{Error, Result, checked_product};

/// What the two axes are called in error messages.
pub(super) struct AxisNames {
    /// The compressed axis: `row` for CSR.
    pub(super) major: &'static str,
    /// The other one: `column` for CSR.
    pub(super) minor: &'static str,
}

/// Fails unless these are the parts of a canonical matrix.
pub(super) fn check_structure<I: Index>(
    shape: [usize; 2],
    indptr: &[I],
    indices: &[I],
    values: usize,
    names: &AxisNames,
) -> Result<()> {
    let AxisNames { major, minor } = names;
    let [rows, columns] = shape;
    if rows.max(columns) as u64 > I::WIDTH.limit() {
        return Err(Error::TooLarge {
            what: format!("the larger extent of a matrix with {} indices", I::WIDTH),
            value: rows.max(columns).to_string(),
            limit: I::WIDTH.limit(),
        });
    }
    if indptr.len() != rows + 1 {
        return Err(Error::shape(
            "indptr",
            format!("[{}], one more than {major}s", rows + 1),
            &[indptr.len()],
        ));
    }
    if indices.len() != values {
        return Err(Error::shape(
            "indices",
            format!("[{values}], as many as values"),
            &[indices.len()],
        ));
    }
    checked_product("the number of entries", &[values])?;
    let broken = |position: usize, reason: String| {
        Error::invalid(format!("indptr[{position}]"), format!("{:?}", indptr[position]), reason)
    };
    if indptr[0].to_usize() != 0 {
        return Err(broken(0, "it must be 0".into()));
    }
    if indptr[rows].to_usize() != values {
        return Err(broken(rows, format!("it must be the number of entries, {values}")));
    }
    if let Some(row) = (0..rows).into_par_iter().find_first(|&r| indptr[r] > indptr[r + 1]) {
        let before = format!("it must not be less than indptr[{row}] = {:?}", indptr[row]);
        return Err(broken(row + 1, before));
    }
    let misplaced = (0..rows).into_par_iter().find_map_first(|row| {
        let range = indptr[row].to_usize()..indptr[row + 1].to_usize();
        misplaced_index(&indices[range.clone()], columns).map(|e| (row, e, range.start + e))
    });
    let Some((row, within, at)) = misplaced else { return Ok(()) };
    let reason = if indices[at].to_usize() >= columns {
        format!("the {minor} of an entry of {major} {row} must be at least 0 and below {columns}")
    } else {
        let before = indices[at - 1];
        debug_assert!(within > 0);
        format!("the {minor}s of {major} {row} must ascend strictly, but {before:?} precedes it")
    };
    Err(Error::invalid(format!("indices[{at}]"), format!("{:?}", indices[at]), reason))
}

/// The first entry of a row that is outside the matrix or not above its predecessor.
fn misplaced_index<I: Index>(row: &[I], columns: usize) -> Option<usize> {
    // Two branch-free sweeps: rows are nearly always right, and these vectorise.
    let inside = row.iter().all(|i| i.to_usize() < columns);
    if inside && row.windows(2).fold(true, |ok, w| ok & (w[0] < w[1])) {
        return None;
    }
    (0..row.len()).find(|&e| row[e].to_usize() >= columns || (e > 0 && row[e] <= row[e - 1]))
}
