//! From the accesses of single threads to the requests of warps: the n-th visit of all lanes to a place in
//! the kernel since the last barrier is one request.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::record::{Kind, Record};

pub(super) const WARP: usize = 32;

/// An access of a warp.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub kind: Kind,
    /// To shared memory, else to device memory.
    pub shared: bool,
    /// Bytes of a lane.
    pub bytes: u8,
    /// Lanes that take part.
    pub lanes: u32,
    pub addresses: [u64; WARP],
    /// Barriers before it.
    pub interval: u32,
}

impl Request {
    /// Addresses of the lanes that take part.
    pub fn each(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        (0..WARP)
            .filter(|lane| self.lanes >> lane & 1 == 1)
            .map(|lane| (lane, self.addresses[lane]))
    }

    /// Whether lanes whose numbers differ in this bit have the same address.
    fn is_paired(&self, bit: usize) -> bool {
        self.each().all(|(lane, address)| {
            self.lanes >> (lane ^ bit) & 1 == 0 || self.addresses[lane ^ bit] == address
        })
    }

    /// The distinct pieces of `size` bytes (a power of two) that it touches, ascending.
    pub fn pieces(&self, size: u64, found: &mut Vec<u64>) {
        found.clear();
        for (_, address) in self.each() {
            let last = (address + u64::from(self.bytes.max(1)) - 1) / size;
            found.extend(address / size..=last);
        }
        found.sort_unstable();
        found.dedup();
    }
}

/// A hash of few bits' work: keys are numbers of a few thousand places.
#[derive(Default)]
struct Cheap(u64);

impl Hasher for Cheap {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(byte.into()));
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(value.into());
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
}

type Table<K, V> = HashMap<K, V, BuildHasherDefault<Cheap>>;

/// The requests of a block, warp by warp, each warp's in the order in which its first lane comes to them.
///
/// What is neither in shared memory nor where `is_global` says is no memory of the kernel's.
pub(super) fn requests(
    records: &[Record],
    threads: usize,
    is_global: impl Fn(u64) -> bool,
) -> Vec<Vec<Request>> {
    let mut warps: Vec<Vec<Request>> = vec![Vec::new(); threads.div_ceil(WARP)];
    let mut tables: Vec<Table<(u64, u64), usize>> = vec![Table::default(); warps.len()];
    // Of each thread: barriers so far, and visits to each place since the last one.
    let mut intervals = vec![0u32; threads];
    let mut visits: Vec<Table<u64, u32>> = vec![Table::default(); threads];
    for record in records {
        let thread = record.thread();
        let (warp, lane) = (thread / WARP, thread % WARP);
        if record.kind == Kind::Meeting {
            intervals[thread] += 1;
            visits[thread].clear();
            continue;
        }
        let shared = record.is_shared();
        if !shared && !is_global(record.address) {
            continue;
        }
        let place = u64::from(record.site) << 17
            | u64::from(shared) << 16
            | (record.kind as u64) << 8
            | u64::from(record.bytes);
        let visit = visits[thread].entry(place).or_insert(0);
        *visit += 1;
        let key = (place, u64::from(*visit) << 32 | u64::from(intervals[thread]));
        let at = *tables[warp].entry(key).or_insert_with(|| {
            warps[warp].push(Request {
                kind: record.kind,
                shared,
                bytes: record.bytes,
                lanes: 0,
                addresses: [0; WARP],
                interval: intervals[thread],
            });
            warps[warp].len() - 1
        });
        let request = &mut warps[warp][at];
        request.lanes |= 1 << lane;
        request.addresses[lane] = record.address;
    }
    // Lanes may have come in any order; barriers order what they did.
    warps.iter_mut().for_each(|requests| requests.sort_by_key(|request| request.interval));
    warps
}

/// Passes of the 32 banks of shared memory that a request takes, and how many it would take if no two words
/// were in one bank. Lanes are served together as far as they ask for 128 bytes: all of them with up to 4
/// bytes each, halves with 8, quarters with 16. Lanes that ask for the same word share it. Where both lanes of all
/// pairs n and n ^ 1, or of all pairs n and n ^ 2, load the same 16 bytes, halves are served together (an answer of
/// NVIDIA's in its forum, "Unexpected shared memory bank conflict", 2019, for compute capability 7, taken to hold
/// since).
pub(super) fn wavefronts(request: &Request) -> (u64, u64) {
    let together = match request.bytes {
        0..=4 => WARP,
        5..=8 => WARP / 2,
        _ if request.kind == Kind::Load && (request.is_paired(1) || request.is_paired(2)) => {
            WARP / 2
        }
        _ => WARP / 4,
    };
    let (mut taken, mut ideal) = (0, 0);
    for first in (0..WARP).step_by(together) {
        let mut words: Vec<u64> = request
            .each()
            .filter(|(lane, _)| (first..first + together).contains(lane))
            .flat_map(|(_, at)| at / 4..=(at + u64::from(request.bytes.max(1)) - 1) / 4)
            .collect();
        if words.is_empty() {
            continue;
        }
        words.sort_unstable();
        words.dedup();
        let mut banks = [0u64; 32];
        words.iter().for_each(|word| banks[(word % 32) as usize] += 1);
        taken += banks.iter().max().copied().unwrap_or(0);
        ideal += (words.len() as u64).div_ceil(32);
    }
    (taken, ideal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(bytes: u8, address: impl Fn(u64) -> Option<u64>) -> Request {
        let (mut lanes, mut addresses) = (0, [0; WARP]);
        for (lane, place) in addresses.iter_mut().enumerate() {
            if let Some(at) = address(lane as u64) {
                lanes |= 1 << lane;
                *place = at;
            }
        }
        Request { kind: Kind::Load, shared: true, bytes, lanes, addresses, interval: 0 }
    }

    #[test]
    fn bank_conflicts_are_those_of_the_programming_guide() {
        let words = |step: u64| wavefronts(&request(4, |lane| Some(1024 + 4 * step * lane)));
        assert_eq!(words(1), (1, 1));
        assert_eq!(words(2), (2, 1));
        assert_eq!(words(3), (1, 1));
        assert_eq!(words(32), (32, 1));
        assert_eq!(words(33), (1, 1));
        // All of one word.
        assert_eq!(words(0), (1, 1));
        // Two lanes a word.
        assert_eq!(wavefronts(&request(2, |lane| Some(2 * lane))), (1, 1));
        // 8 and 16 bytes a lane: two and four phases.
        assert_eq!(wavefronts(&request(8, |lane| Some(8 * lane))), (2, 2));
        assert_eq!(wavefronts(&request(16, |lane| Some(16 * lane))), (4, 4));
        // Rows of 64 halves without padding, as ldmatrix would read them: all 8 rows of a phase in 4 banks.
        assert_eq!(wavefronts(&request(16, |lane| Some(128 * lane))), (32, 4));
        assert_eq!(wavefronts(&request(16, |lane| Some(144 * lane))), (4, 4));
        assert_eq!(wavefronts(&request(4, |lane| (lane < 5).then_some(128 * lane))), (5, 1));
        // Pairs of lanes that load the same: half as often.
        assert_eq!(wavefronts(&request(16, |lane| Some(16 * (lane / 2)))), (2, 2));
        assert_eq!(wavefronts(&request(16, |lane| Some(16 * (lane & 1 | lane >> 1 & 6)))), (2, 2));
        assert_eq!(wavefronts(&request(16, |lane| Some(16 * (lane % 4)))), (4, 4));
    }

    #[test]
    fn pieces_are_counted_once() {
        let sectors = |request: &Request| {
            let mut found = Vec::new();
            request.pieces(32, &mut found);
            found.len()
        };
        assert_eq!(sectors(&request(4, |lane| Some(4 * lane))), 4);
        assert_eq!(sectors(&request(4, |lane| Some(16 + 4 * lane))), 5);
        assert_eq!(sectors(&request(4, |lane| Some(32 * lane))), 32);
        assert_eq!(sectors(&request(4, |_| Some(64))), 1);
        assert_eq!(sectors(&request(16, |lane| Some(16 * lane))), 16);
        assert_eq!(sectors(&request(16, |lane| (lane == 3).then_some(24))), 2);
    }

    #[test]
    fn lanes_meet_by_place_and_visit() {
        let record = |thread, site, kind, address| Record { address, site, thread, bytes: 4, kind };
        let mut records = Vec::new();
        // Lanes one after the other, of two warps; lane 1 visits the first place only once.
        for thread in [1u16, 0, 33, 32] {
            for visit in 0..if thread == 1 { 1 } else { 2 } {
                records.push(record(thread, 7, Kind::Load, 100 * u64::from(thread) + visit));
            }
            records.push(record(thread, 0, Kind::Meeting, 0));
            records.push(record(thread, 7, Kind::Load, 5));
        }
        let found = requests(&records, 40, |_| true);
        let lanes: Vec<Vec<u32>> =
            found.iter().map(|warp| warp.iter().map(|request| request.lanes).collect()).collect();
        assert_eq!(lanes, [vec![3, 1, 3], vec![3, 3, 3]]);
        assert_eq!(found[0][0].addresses[..2], [0, 100]);
    }
}
