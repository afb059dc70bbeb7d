//! The innermost loops: register tiles of products, compiled for each instruction set.
//!
//! | tile | computes | used for |
//! |---|---|---|
//! | [`Products`] | `c[m][j] += Σ_k a[k][m]·b[k][j]`, rows of b anywhere in memory | convolution and its input gradient |
//! | [`Outer`] | `c[m][j] += Σ_k a[k][m]·b[k][j]`, runs of terms that are evenly spaced | covariances |
//! | [`Entries`] | `c[j] += Σ_k a[k]·b[k][j]`, rows of b anywhere in memory | sparse weights |
//! | [`Dots`] | `c[m][n] += Σ_t a[m][t]·b[n][t]`, lane by lane | weight gradients of small groups |
//!
//! The loops are written once, over vector registers; each instruction set only says which these are, and
//! how many rows and vectors they hold.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m256, __m256d, __m512, __m512d};

use super::factor::Factors;
use super::vector::{Array, Instructions, Vector};
use crate::element::Accumulator;

/// One term of a sum of products: where its weights and its row of patches start, in elements.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub weight: usize,
    pub patch: usize,
    /// Bit m tells whether row m has this term; only masked tiles look at it.
    pub rows: u32,
}

/// Operands of a tile of products, as the kernels take them: unchecked. Factors `F` are accumulators or made of
/// several elements each.
#[derive(Clone, Copy)]
pub struct Products<A, F = A> {
    pub steps: *const Step,
    pub count: usize,
    /// Row m of step k is at `weights[steps[k].weight + m·row]`.
    pub weights: *const F,
    pub row: usize,
    /// Column j of step k is at `patches[steps[k].patch + j]`.
    pub patches: *const F,
    /// Element (m, j) of the result is at `sums[m·pitch + j]`.
    pub sums: *mut A,
    pub pitch: usize,
    /// Whether to add to the result or to overwrite it.
    pub add: bool,
}

/// Operands of a row's sum over stored entries, as the kernels take them: unchecked.
#[derive(Clone, Copy)]
pub struct Entries<A> {
    pub count: usize,
    /// The value of each, and where the row that it multiplies starts in `data`.
    pub values: *const A,
    pub places: *const u32,
    pub data: *const A,
    pub sums: *mut A,
    /// Whether to add to the sums or to overwrite them.
    pub add: bool,
}

/// Where the operands of a run of terms start, in elements.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub left: usize,
    pub right: usize,
}

/// Operands of a tile of outer products, as the kernels take them: unchecked.
#[derive(Clone, Copy)]
pub struct Outer<A> {
    pub runs: *const Run,
    pub count: usize,
    /// Terms of a run.
    pub len: usize,
    /// Row m of term k of a run is at `left[run.left + k·left_step + m]`.
    pub left: *const A,
    pub left_step: usize,
    /// Column j of term k of a run is at `right[run.right + k·right_step + j]`.
    pub right: *const A,
    pub right_step: usize,
    /// Element (m, j) of the result is at `sums[m·pitch + j]`.
    pub sums: *mut A,
    pub pitch: usize,
    /// Whether to add to the result or to overwrite it.
    pub add: bool,
}

/// Operands of a tile of dot products, as the kernels take them: unchecked.
#[derive(Clone, Copy)]
pub struct Dots<A> {
    pub len: usize,
    /// Row m of the left operand starts at `left[m·row]`.
    pub left: *const A,
    pub row: usize,
    /// Row n of the right operand starts at `right[starts[n]]`.
    pub right: *const A,
    pub starts: *const usize,
    /// The lanes whose sum is element (m, n) of the result are at `sums[(m·pitch + n)·lanes]`, and are
    /// added to: summing lanes up takes as long as many products, so it is left for the end.
    pub sums: *mut A,
    pub pitch: usize,
}

/// How many vectors (or right rows) a kernel takes, and the kernel, which is safe to call if all that
/// its operands point at exists and the machine has its instructions.
type Kernel<O> = (usize, unsafe fn(O));

/// A tile's number of rows, and its kernels by number of vectors (or of right rows), descending to 1.
pub struct Tile<O: 'static> {
    pub rows: usize,
    pub kernels: &'static [Kernel<O>],
}

impl<O> Tile<O> {
    /// The kernel that takes the most of `left` vectors, and how many it takes.
    pub fn kernel(&self, left: usize) -> Kernel<O> {
        // One more than fits is better halved than followed by a single one.
        let left = if left == self.kernels[0].0 + 1 { left.div_ceil(2) } else { left };
        let fitting = self.kernels.iter().find(|(columns, _)| *columns <= left);
        *fitting.unwrap_or(&self.kernels[self.kernels.len() - 1])
    }
}

/// The tiles of one instruction set, by rows, descending to 1.
pub struct Tiles<A: 'static> {
    /// Lanes of a vector.
    pub lanes: usize,
    pub products: &'static [Tile<Products<A>>],
    /// Rows that lack some of the terms.
    pub masked: Tile<Products<A>>,
    pub outer: &'static [Tile<Outer<A>>],
    /// Of one row, with every number of vectors up to the most.
    pub entries: Tile<Entries<A>>,
    pub dots: &'static [Tile<Dots<A>>],
}

/// The tile with the most rows that `left` rows fill.
pub(crate) fn tile<O>(tiles: &'static [Tile<O>], left: usize) -> &'static Tile<O> {
    tiles.iter().find(|tile| tile.rows <= left).unwrap_or(&tiles[tiles.len() - 1])
}

/// A type that there are register tiles for: every accumulator.
pub trait RegisterTiles: Sized + 'static {
    /// The tiles of the best instruction set this machine has.
    #[doc(hidden)]
    fn best_tiles() -> &'static Tiles<Self>;
}

/// `sums[m] += left[m·row]·right` for those of the `M` rows that have the term.
///
/// # Safety
/// All of these rows can be read, and `V` vectors at `right`. The machine has the instructions of `X` and `Y`.
#[inline(always)]
unsafe fn add_term<A, F, X, Y, const M: usize, const V: usize>(
    sums: &mut [[X; V]; M],
    left: *const F,
    row: usize,
    right: *const F,
    has_term: impl Fn(usize) -> bool,
) where
    A: Accumulator,
    F: Copy,
    X: Vector<A>,
    Y: Factors<F, X>,
{
    // SAFETY: promised by the caller.
    unsafe {
        let mut vectors = [Y::load(right); V];
        for (v, vector) in vectors.iter_mut().enumerate() {
            *vector = Y::load(right.add(v * X::LANES));
        }
        for (m, sums) in sums.iter_mut().enumerate() {
            if !has_term(m) {
                continue;
            }
            let factor = Y::splat(*left.add(m * row));
            for (sum, &vector) in sums.iter_mut().zip(&vectors) {
                *sum = factor.add_product(vector, *sum);
            }
        }
    }
}

/// Writes the sums of a tile, or adds them to what is there.
///
/// # Safety
/// `M` rows of `V` vectors, `pitch` apart, can be written. The machine has the instructions of `X`.
#[inline(always)]
unsafe fn put<A: Accumulator, X: Vector<A>, const M: usize, const V: usize>(
    sums: &[[X; V]; M],
    to: *mut A,
    pitch: usize,
    add: bool,
) {
    // SAFETY: promised by the caller.
    unsafe {
        for (m, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                let target = to.add(m * pitch + v * X::LANES);
                let sum = if add { sum.plus(X::load(target)) } else { *sum };
                sum.store(target);
            }
        }
    }
}

/// # Safety
/// All that the operands point at exists: `M` rows of `V` vectors. The machine has the instructions of `X` and `Y`.
#[inline(always)]
pub(super) unsafe fn products<A, F, X, Y, const M: usize, const V: usize, const MASKED: bool>(
    o: Products<A, F>,
) where
    A: Accumulator,
    F: Copy,
    X: Vector<A>,
    Y: Factors<F, X>,
{
    // SAFETY: promised by the caller.
    unsafe {
        let mut sums = [[X::zero(); V]; M];
        for k in 0..o.count {
            let Step { weight, patch, rows } = *o.steps.add(k);
            let (weights, patches) = (o.weights.add(weight), o.patches.add(patch));
            let has_term = |m: usize| !MASKED || rows >> m & 1 == 1;
            add_term::<A, F, X, Y, M, V>(&mut sums, weights, o.row, patches, has_term);
        }
        put(&sums, o.sums, o.pitch, o.add);
    }
}

/// # Safety
/// All that the operands point at exists: `M` rows of `V` vectors. The machine has the instructions of `X`.
#[inline(always)]
unsafe fn outer<A: Accumulator, X: Vector<A>, const M: usize, const V: usize>(o: Outer<A>) {
    // SAFETY: promised by the caller.
    unsafe {
        let mut sums = [[X::zero(); V]; M];
        for number in 0..o.count {
            let Run { left, right } = *o.runs.add(number);
            let (left, right) = (o.left.add(left), o.right.add(right));
            for k in 0..o.len {
                let (left, right) = (left.add(k * o.left_step), right.add(k * o.right_step));
                add_term::<A, A, X, X, M, V>(&mut sums, left, 1, right, |_| true);
            }
        }
        put(&sums, o.sums, o.pitch, o.add);
    }
}

/// # Safety
/// All that the operands point at exists: `V` vectors of each row. The machine has the instructions of `X`.
#[inline(always)]
unsafe fn entries<A: Accumulator, X: Vector<A>, const V: usize>(o: Entries<A>) {
    // SAFETY: promised by the caller.
    unsafe {
        let mut sums = [[X::zero(); V]];
        for k in 0..o.count {
            let right = o.data.add(*o.places.add(k) as usize);
            add_term::<A, A, X, X, 1, V>(&mut sums, o.values.add(k), 0, right, |_| true);
        }
        put(&sums, o.sums, 0, o.add);
    }
}

/// # Safety
/// All that the operands point at exists: `M` left and `N` right rows. The machine has the instructions of `X`.
#[inline(always)]
unsafe fn dots<A: Accumulator, X: Vector<A>, const M: usize, const N: usize>(o: Dots<A>) {
    // SAFETY: promised by the caller.
    unsafe {
        let mut sums = [[X::zero(); N]; M];
        let right: [*const A; N] = std::array::from_fn(|n| o.right.add(*o.starts.add(n)));
        let whole = o.len / X::LANES * X::LANES;
        for t in (0..whole).step_by(X::LANES) {
            let mut left = [X::zero(); M];
            for (m, left) in left.iter_mut().enumerate() {
                *left = X::load(o.left.add(m * o.row + t));
            }
            for n in 0..N {
                let right = X::load(right[n].add(t));
                for m in 0..M {
                    sums[m][n] = sums[m][n].plus_product(left[m], right);
                }
            }
        }
        // Two loops: the first has to unroll completely for the sums to live in registers.
        for (m, sums) in sums.iter().enumerate() {
            for (n, sum) in sums.iter().enumerate() {
                let target = o.sums.add((m * o.pitch + n) * X::LANES);
                sum.plus(X::load(target)).store(target);
            }
        }
        for m in 0..M {
            for (n, right) in right.iter().enumerate() {
                for t in whole..o.len {
                    let target = o.sums.add((m * o.pitch + n) * X::LANES);
                    *target += *o.left.add(m * o.row + t) * *right.add(t);
                }
            }
        }
    }
}

/// The sum of a vector's lanes, pairwise.
pub(crate) fn sum_of_lanes<A: Accumulator>(lanes: &mut [A]) -> A {
    let mut len = lanes.len();
    while len > 1 {
        let half = len / 2;
        let (lower, upper) = lanes[..len].split_at_mut(half);
        lower.iter_mut().zip(upper).for_each(|(l, &mut u)| *l += u);
        len = half;
    }
    lanes[0]
}

/// The kernels of one instruction set, for `$t` in vectors of `$lanes` lanes.
macro_rules! instruction_set {
    (
        $name:ident, $t:ty, $vector:ty, $(#[$feature:meta])?
        products: $([$m:literal; $($v:literal)+])+,
        masked: $($mv:literal)+,
        outer: $([$om:literal; $($ov:literal)+])+,
        entries: $($ev:literal)+,
        dots: $([$dm:literal; $($dn:literal)+])+
    ) => {
        mod $name {
            use super::*;

            $(#[$feature])?
            unsafe fn products<const M: usize, const V: usize, const MASKED: bool>(
                operands: Products<$t>,
            ) {
                // SAFETY: promised by the caller.
                unsafe { super::products::<$t, $t, $vector, $vector, M, V, MASKED>(operands) }
            }

            $(#[$feature])?
            unsafe fn outer<const M: usize, const V: usize>(operands: Outer<$t>) {
                // SAFETY: promised by the caller.
                unsafe { super::outer::<$t, $vector, M, V>(operands) }
            }

            $(#[$feature])?
            unsafe fn entries<const V: usize>(operands: Entries<$t>) {
                // SAFETY: promised by the caller.
                unsafe { super::entries::<$t, $vector, V>(operands) }
            }

            $(#[$feature])?
            unsafe fn dots<const M: usize, const N: usize>(operands: Dots<$t>) {
                // SAFETY: promised by the caller.
                unsafe { super::dots::<$t, $vector, M, N>(operands) }
            }

            pub(super) static TILES: Tiles<$t> = Tiles {
                lanes: <$vector as Vector<$t>>::LANES,
                products: &[
                    $(Tile { rows: $m, kernels: &[$(($v, products::<$m, $v, false>)),+] }),+
                ],
                masked: Tile { rows: 4, kernels: &[$(($mv, products::<4, $mv, true>)),+] },
                outer: &[$(Tile { rows: $om, kernels: &[$(($ov, outer::<$om, $ov>)),+] }),+],
                entries: Tile { rows: 1, kernels: &[$(($ev, entries::<$ev>)),+] },
                dots: &[$(Tile { rows: $dm, kernels: &[$(($dn, dots::<$dm, $dn>)),+] }),+],
            };
        }
    };
}

// 32 registers: 24 sums, the rest for operands.
#[cfg(target_arch = "x86_64")]
instruction_set!(avx512_f32, f32, __m512, #[target_feature(enable = "avx512f")]
    products: [8; 3 2 1] [4; 6 4 2 1] [2; 8 4 2 1] [1; 12 8 4 2 1],
    masked: 4 3 2 1,
    outer: [12; 2 1] [8; 3 2 1] [4; 6 4 2 1] [2; 8 4 2 1] [1; 12 8 4 2 1],
    entries: 16 15 14 13 12 11 10 9 8 7 6 5 4 3 2 1,
    dots: [4; 6 3 1] [2; 6 3 1] [1; 12 6 3 1]);
#[cfg(target_arch = "x86_64")]
instruction_set!(avx512_f64, f64, __m512d, #[target_feature(enable = "avx512f")]
    products: [8; 3 2 1] [4; 6 4 2 1] [2; 8 4 2 1] [1; 12 8 4 2 1],
    masked: 4 3 2 1,
    outer: [12; 2 1] [8; 3 2 1] [4; 6 4 2 1] [2; 8 4 2 1] [1; 12 8 4 2 1],
    entries: 16 15 14 13 12 11 10 9 8 7 6 5 4 3 2 1,
    dots: [4; 6 3 1] [2; 6 3 1] [1; 12 6 3 1]);
// 16 registers: 12 sums.
#[cfg(target_arch = "x86_64")]
instruction_set!(avx2_f32, f32, __m256, #[target_feature(enable = "avx2,fma")]
    products: [6; 2 1] [4; 2 1] [2; 4 2 1] [1; 8 4 2 1],
    masked: 2 1,
    outer: [6; 2 1] [4; 2 1] [2; 4 2 1] [1; 8 4 2 1],
    entries: 12 11 10 9 8 7 6 5 4 3 2 1,
    dots: [4; 2 1] [2; 3 1] [1; 8 4 1]);
#[cfg(target_arch = "x86_64")]
instruction_set!(avx2_f64, f64, __m256d, #[target_feature(enable = "avx2,fma")]
    products: [6; 2 1] [4; 2 1] [2; 4 2 1] [1; 8 4 2 1],
    masked: 2 1,
    outer: [6; 2 1] [4; 2 1] [2; 4 2 1] [1; 8 4 2 1],
    entries: 12 11 10 9 8 7 6 5 4 3 2 1,
    dots: [4; 2 1] [2; 3 1] [1; 8 4 1]);
// Whatever every machine of this architecture has, taken to be 16 registers of 16 bytes.
instruction_set!(baseline_f32, f32, Array<f32, 4>,
    products: [4; 3 2 1] [2; 4 2 1] [1; 4 2 1],
    masked: 2 1,
    outer: [4; 3 2 1] [2; 4 2 1] [1; 4 2 1],
    entries: 8 7 6 5 4 3 2 1,
    dots: [4; 2 1] [1; 4 1]);
instruction_set!(baseline_f64, f64, Array<f64, 2>,
    products: [4; 3 2 1] [2; 4 2 1] [1; 4 2 1],
    masked: 2 1,
    outer: [4; 3 2 1] [2; 4 2 1] [1; 4 2 1],
    entries: 8 7 6 5 4 3 2 1,
    dots: [4; 2 1] [1; 4 1]);

macro_rules! best {
    ($t:ty, $avx512:ident, $avx2:ident, $baseline:ident) => {
        impl RegisterTiles for $t {
            fn best_tiles() -> &'static Tiles<$t> {
                match Instructions::best() {
                    #[cfg(target_arch = "x86_64")]
                    Instructions::Avx512 => &$avx512::TILES,
                    #[cfg(target_arch = "x86_64")]
                    Instructions::Avx2 => &$avx2::TILES,
                    Instructions::Portable => &$baseline::TILES,
                }
            }
        }
    };
}

best!(f32, avx512_f32, avx2_f32, baseline_f32);
best!(f64, avx512_f64, avx2_f64, baseline_f64);

#[cfg(test)]
mod tests {
    use super::*;

    /// Integers, so that sums are the same whatever their order and rounding.
    fn integers<A: Accumulator>(len: usize, seed: usize) -> Vec<A> {
        (0..len).map(|at| A::from_f64(((at * 37 + seed * 11) % 13) as f64 - 6.0)).collect()
    }

    fn check<A: Accumulator>(tiles: &'static Tiles<A>) {
        const TERMS: usize = 7;
        for add in [false, true] {
            for tile in tiles.outer {
                for &(vectors, kernel) in tile.kernels {
                    let (m, n) = (tile.rows, vectors * tiles.lanes);
                    let (left, right) =
                        (integers::<A>(9 * TERMS * m, 1), integers(9 * TERMS * n, 2));
                    let runs = [Run { left: 0, right: n }, Run { left: 3 * m, right: 5 * n }];
                    let mut sums = integers::<A>(m * n, 3);
                    let mut expected = sums.clone();
                    let (left_step, right_step) = (m + 1, n + 3);
                    // SAFETY: the operands are long enough, and the machine has these tiles.
                    unsafe {
                        kernel(Outer {
                            runs: runs.as_ptr(),
                            count: runs.len(),
                            len: TERMS,
                            left: left.as_ptr(),
                            left_step,
                            right: right.as_ptr(),
                            right_step,
                            sums: sums.as_mut_ptr(),
                            pitch: n,
                            add,
                        });
                    }
                    for (at, expected) in expected.iter_mut().enumerate() {
                        let (row, column) = (at / n, at % n);
                        let mut sum = if add { *expected } else { A::ZERO };
                        for run in &runs {
                            for k in 0..TERMS {
                                sum += left[run.left + k * left_step + row]
                                    * right[run.right + k * right_step + column];
                            }
                        }
                        *expected = sum;
                    }
                    assert_eq!(sums, expected, "outer {m}x{n}, {add}");
                }
            }
            for &(vectors, kernel) in tiles.entries.kernels {
                let n = vectors * tiles.lanes;
                let (values, data) = (integers::<A>(TERMS, 7), integers::<A>(3 * TERMS + n, 8));
                let places: Vec<u32> = (0..TERMS as u32).map(|k| 2 * k + k % 3).collect();
                let mut sums = integers::<A>(n, 9);
                let old = sums.clone();
                // SAFETY: the operands are long enough, and the machine has these tiles.
                unsafe {
                    kernel(Entries {
                        count: TERMS,
                        values: values.as_ptr(),
                        places: places.as_ptr(),
                        data: data.as_ptr(),
                        sums: sums.as_mut_ptr(),
                        add,
                    });
                }
                for (column, (found, old)) in sums.into_iter().zip(old).enumerate() {
                    let mut sum = if add { old } else { A::ZERO };
                    for (&value, &place) in values.iter().zip(&places) {
                        sum += value * data[place as usize + column];
                    }
                    assert_eq!(found, sum, "entries {n}, {add}");
                }
            }
            for (tile, masked) in
                tiles.products.iter().map(|t| (t, false)).chain([(&tiles.masked, true)])
            {
                for &(vectors, kernel) in tile.kernels {
                    let (m, n) = (tile.rows, vectors * tiles.lanes);
                    let (weights, patches) =
                        (integers::<A>(3 * TERMS * m, 4), integers(3 * TERMS * n, 5));
                    let rows = |k: usize| if masked { (k * 5) as u32 } else { u32::MAX };
                    let step = |k: usize| Step { weight: 2 * k, patch: 3 * k, rows: rows(k) };
                    let steps: Vec<Step> = (0..TERMS).map(step).collect();
                    let mut sums = integers::<A>(m * n, 6);
                    let mut expected = sums.clone();
                    // SAFETY: the operands are long enough, and the machine has these tiles.
                    unsafe {
                        kernel(Products {
                            steps: steps.as_ptr(),
                            count: steps.len(),
                            weights: weights.as_ptr(),
                            row: TERMS,
                            patches: patches.as_ptr(),
                            sums: sums.as_mut_ptr(),
                            pitch: n,
                            add,
                        });
                    }
                    for (at, expected) in expected.iter_mut().enumerate() {
                        let (row, column) = (at / n, at % n);
                        let mut sum = if add { *expected } else { A::ZERO };
                        for step in steps.iter().filter(|step| step.rows >> row & 1 == 1) {
                            sum +=
                                weights[step.weight + row * TERMS] * patches[step.patch + column];
                        }
                        *expected = sum;
                    }
                    assert_eq!(sums, expected, "products {m}x{n}, {masked}, {add}");
                }
            }
        }
    }

    /// Those that this machine's best tiles hide as well.
    #[test]
    fn tiles_of_every_instruction_set_are_sums_of_products() {
        check(&baseline_f32::TILES);
        check(&baseline_f64::TILES);
        #[cfg(target_arch = "x86_64")]
        {
            if Instructions::Avx2.exist() {
                check(&avx2_f32::TILES);
                check(&avx2_f64::TILES);
            }
            if Instructions::Avx512.exist() {
                check(&avx512_f32::TILES);
                check(&avx512_f64::TILES);
            }
        }
    }
}
