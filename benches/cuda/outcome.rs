//! What becomes of a call: an error, or a result that is right or wrong.

use std::error::Error;

use convmat::Element;
use rayon::prelude::*;

pub type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// Whether `found` is `expected` over and over.
pub fn compare<T: Element>(expected: &[T], found: &[T]) -> Result<()> {
    let wrong = |(chunk, found): (usize, &[T])| {
        let at = found.iter().zip(expected).position(|(found, expected)| found != expected)?;
        Some((chunk * expected.len() + at, found[at], expected[at]))
    };
    if expected.is_empty() || !found.len().is_multiple_of(expected.len()) {
        return Err(
            format!("{} elements, not a multiple of {}", found.len(), expected.len()).into()
        );
    }
    match found.par_chunks(expected.len()).enumerate().find_map_any(wrong) {
        Some((at, found, expected)) => {
            Err(format!("wrong: element {at} is {found}, and should be {expected}").into())
        }
        None => Ok(()),
    }
}
