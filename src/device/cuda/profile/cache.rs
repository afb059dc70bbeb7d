//! Caches, simply: fully associative, the least recently used line goes; lines of 128 bytes of which each
//! sector of 32 is fetched by itself. Real ones have sets, other policies and partitions.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

pub(super) const SECTOR: u64 = 32;
pub(super) const LINE: u64 = 128;
const SECTORS: u64 = LINE / SECTOR;

#[derive(Debug)]
pub(super) struct Cache {
    /// Lines that there is room for.
    room: usize,
    /// By line: the sectors that are there, and when it was last used.
    lines: HashMap<u64, (u8, u64)>,
    by_time: BTreeMap<u64, u64>,
    now: u64,
}

impl Cache {
    pub fn new(bytes: u64) -> Self {
        let room = (bytes / LINE) as usize;
        Cache { room, lines: HashMap::new(), by_time: BTreeMap::new(), now: 0 }
    }

    /// Reads a sector, by its number: whether it had to be fetched.
    pub fn misses(&mut self, sector: u64) -> bool {
        let (line, bit) = (sector / SECTORS, 1u8 << (sector % SECTORS));
        self.now += 1;
        let now = self.now;
        let there = match self.lines.get_mut(&line) {
            Some((sectors, used)) => {
                let there = *sectors & bit != 0;
                *sectors |= bit;
                self.by_time.remove(&std::mem::replace(used, now));
                there
            }
            None if self.room == 0 => return true,
            None => {
                if self.lines.len() == self.room
                    && let Some((_, oldest)) = self.by_time.pop_first()
                {
                    self.lines.remove(&oldest);
                }
                self.lines.insert(line, (bit, now));
                false
            }
        };
        self.by_time.insert(now, line);
        !there
    }
}

/// Sectors that have been touched, by their numbers.
#[derive(Debug, Default)]
pub(super) struct Touched {
    pages: HashMap<u64, Box<[u64; 64]>>,
    count: u64,
}

impl Touched {
    pub fn insert(&mut self, sector: u64) {
        let page = self.pages.entry(sector >> 12).or_insert_with(|| Box::new([0; 64]));
        let (word, bit) = (&mut page[(sector >> 6 & 63) as usize], 1 << (sector & 63));
        self.count += u64::from(*word & bit == 0);
        *word |= bit;
    }

    pub fn len(&self) -> u64 {
        self.count
    }

    /// The sectors of all pieces of memory, ascending and aligned to sectors, that it has a sector in.
    pub fn surroundings(&self, pieces: &[Range<u64>]) -> u64 {
        let mut found = HashSet::new();
        for (&page, words) in &self.pages {
            for (at, &word) in words.iter().enumerate().filter(|(_, word)| **word != 0) {
                for bit in (0..64).filter(|bit| word >> bit & 1 == 1) {
                    let address = (page << 12 | (at as u64) << 6 | bit) * SECTOR;
                    let before = pieces.partition_point(|piece| piece.start <= address);
                    let piece = before.checked_sub(1);
                    found.extend(piece.filter(|&at| pieces[at].contains(&address)));
                }
            }
        }
        let sectors = |piece: &Range<u64>| (piece.end - piece.start).div_ceil(SECTOR);
        found.into_iter().map(|at| sectors(&pieces[at])).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_line_goes() {
        let mut cache = Cache::new(2 * LINE);
        assert!(cache.misses(0) && !cache.misses(0));
        assert!(cache.misses(1), "sectors are fetched one by one");
        assert!(cache.misses(4) && !cache.misses(0));
        // Line 1 goes.
        assert!(cache.misses(8) && !cache.misses(1) && cache.misses(4));
        assert!(Cache::new(0).misses(3));
    }

    #[test]
    fn sectors_are_counted_once() {
        let mut touched = Touched::default();
        for sector in [0, 63, 64, 4095, 4096, 1 << 40, 0, 4096] {
            touched.insert(sector);
        }
        assert_eq!(touched.len(), 6);
        // Of three pieces the first and the last have one, the first with a sector that it has a part of.
        let pieces = [0..33, 320..640, 32 * 4095..32 * 4099];
        assert_eq!(touched.surroundings(&pieces), 2 + 4);
    }
}
