//! What was found before: calls of a program repeat, and some choices take longer than what they choose.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{LazyLock, Mutex, PoisonError};

/// Answers that are kept, at most: then all are forgotten.
const MOST: usize = 4096;

/// Answers to questions.
pub(super) struct Known<Q, A>(LazyLock<Mutex<HashMap<Q, A>>>);

impl<Q: Eq + Hash, A: Clone> Known<Q, A> {
    pub const fn new() -> Self {
        Known(LazyLock::new(Mutex::default))
    }

    /// The answer that was found before, or else is found now, and kept if `lasting` says so.
    pub fn answer(&self, question: Q, find: impl FnOnce() -> A, lasting: fn(&A) -> bool) -> A {
        let known = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known().get(&question) {
            return found.clone();
        }
        let found = find();
        if lasting(&found) {
            let mut known = known();
            if known.len() >= MOST {
                known.clear();
            }
            known.insert(question, found.clone());
        }
        found
    }
}
