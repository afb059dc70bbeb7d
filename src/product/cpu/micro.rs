//! The innermost loops: register tiles of products, compiled for each instruction set.
//!
//! | tile | computes | used for |
//! |---|---|---|
//! | [`Products`] | `c[m][j] += Σ_k a[k][m]·b[k][j]`, rows of b anywhere in memory | convolution and its input gradient |
//! | [`Outer`] | `c[m][j] += Σ_k a[k][m]·b[k][j]`, runs of terms that are evenly spaced | covariances |
//! | [`Dots`] | `c[m][n] += Σ_t a[m][t]·b[n][t]`, lane by lane | weight gradients of small groups |
//!
//! The loops are written once, over arrays of lanes that LLVM keeps in vector registers; each
//! instruction set only says how many lanes, rows and vectors its registers hold.

use crate::element::Accumulator;

/// One term of a sum of products: where its weights and its row of patches start, in elements.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub weight: usize,
    pub patch: usize,
    /// Bit m tells whether row m has this term; only masked tiles look at it.
    pub rows: u32,
}

/// Operands of a tile of products, as the kernels take them: unchecked.
#[derive(Clone, Copy)]
pub struct Products<A> {
    pub steps: *const Step,
    pub count: usize,
    /// Row m of step k is at `weights[steps[k].weight + m·row]`.
    pub weights: *const A,
    pub row: usize,
    /// Column j of step k is at `patches[steps[k].patch + j]`.
    pub patches: *const A,
    /// Element (m, j) of the result is at `sums[m·pitch + j]`.
    pub sums: *mut A,
    pub pitch: usize,
    /// Whether to add to the result or to overwrite it.
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

/// A vector of `L` lanes.
#[derive(Clone, Copy)]
struct Vector<A, const L: usize>([A; L]);

impl<A: Accumulator, const L: usize> Vector<A, L> {
    const ZERO: Self = Vector([A::ZERO; L]);

    /// # Safety
    /// `L` elements may be read at `from`.
    #[inline(always)]
    unsafe fn load(from: *const A) -> Self {
        // SAFETY: promised by the caller.
        Vector(unsafe { from.cast::<[A; L]>().read_unaligned() })
    }

    /// # Safety
    /// `L` elements may be written at `to`.
    #[inline(always)]
    unsafe fn store(self, to: *mut A) {
        // SAFETY: promised by the caller.
        unsafe { to.cast::<[A; L]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    fn added_to(mut self, other: Self) -> Self {
        self.0.iter_mut().zip(other.0).for_each(|(sum, other)| *sum += other);
        self
    }

    /// `self + a·b`, in one rounding where `FUSED`.
    #[inline(always)]
    fn plus<const FUSED: bool>(mut self, a: Self, b: Self) -> Self {
        for lane in 0..L {
            self.0[lane] = if FUSED {
                a.0[lane].mul_add(b.0[lane], self.0[lane])
            } else {
                self.0[lane] + a.0[lane] * b.0[lane]
            };
        }
        self
    }
}

/// # Safety
/// All that the operands point at exists: `M` rows of `V·L` columns.
#[inline(always)]
unsafe fn products<
    A: Accumulator,
    const L: usize,
    const FUSED: bool,
    const M: usize,
    const V: usize,
    const MASKED: bool,
>(
    o: Products<A>,
) {
    // SAFETY: promised by the caller.
    unsafe {
        let mut sums = [[Vector::<A, L>::ZERO; V]; M];
        for k in 0..o.count {
            let Step { weight, patch, rows } = *o.steps.add(k);
            let (weights, patches) = (o.weights.add(weight), o.patches.add(patch));
            let mut row = [Vector::<A, L>::ZERO; V];
            for (v, vector) in row.iter_mut().enumerate() {
                *vector = Vector::load(patches.add(v * L));
            }
            for (m, sums) in sums.iter_mut().enumerate() {
                if MASKED && rows >> m & 1 == 0 {
                    continue;
                }
                let weight = Vector([*weights.add(m * o.row); L]);
                for (sum, &vector) in sums.iter_mut().zip(&row) {
                    *sum = sum.plus::<FUSED>(weight, vector);
                }
            }
        }
        for (m, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                let target = o.sums.add(m * o.pitch + v * L);
                let sum = if o.add { sum.added_to(Vector::load(target)) } else { *sum };
                sum.store(target);
            }
        }
    }
}

/// # Safety
/// All that the operands point at exists: `M` rows of `V·L` columns.
#[inline(always)]
unsafe fn outer<A, const L: usize, const FUSED: bool, const M: usize, const V: usize>(o: Outer<A>)
where
    A: Accumulator,
{
    // SAFETY: promised by the caller.
    unsafe {
        let mut sums = [[Vector::<A, L>::ZERO; V]; M];
        for number in 0..o.count {
            let Run { left, right } = *o.runs.add(number);
            let (left, right) = (o.left.add(left), o.right.add(right));
            for k in 0..o.len {
                let (left, right) = (left.add(k * o.left_step), right.add(k * o.right_step));
                let mut row = [Vector::<A, L>::ZERO; V];
                for (v, vector) in row.iter_mut().enumerate() {
                    *vector = Vector::load(right.add(v * L));
                }
                for (m, sums) in sums.iter_mut().enumerate() {
                    let factor = Vector([*left.add(m); L]);
                    for (sum, &vector) in sums.iter_mut().zip(&row) {
                        *sum = sum.plus::<FUSED>(factor, vector);
                    }
                }
            }
        }
        for (m, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                let target = o.sums.add(m * o.pitch + v * L);
                let sum = if o.add { sum.added_to(Vector::load(target)) } else { *sum };
                sum.store(target);
            }
        }
    }
}

/// # Safety
/// All that the operands point at exists: `M` left and `N` right rows.
#[inline(always)]
unsafe fn dots<A, const L: usize, const FUSED: bool, const M: usize, const N: usize>(o: Dots<A>)
where
    A: Accumulator,
{
    // SAFETY: promised by the caller.
    unsafe {
        let mut sums = [[Vector::<A, L>::ZERO; N]; M];
        let right: [*const A; N] = std::array::from_fn(|n| o.right.add(*o.starts.add(n)));
        let whole = o.len / L * L;
        for t in (0..whole).step_by(L) {
            let mut left = [Vector::<A, L>::ZERO; M];
            for (m, left) in left.iter_mut().enumerate() {
                *left = Vector::load(o.left.add(m * o.row + t));
            }
            for n in 0..N {
                let right = Vector::<A, L>::load(right[n].add(t));
                for m in 0..M {
                    sums[m][n] = sums[m][n].plus::<FUSED>(left[m], right);
                }
            }
        }
        // Two loops: the first has to unroll completely for the sums to live in registers.
        for (m, sums) in sums.iter().enumerate() {
            for (n, sum) in sums.iter().enumerate() {
                let target = o.sums.add((m * o.pitch + n) * L);
                sum.added_to(Vector::load(target)).store(target);
            }
        }
        for m in 0..M {
            for (n, right) in right.iter().enumerate() {
                for t in whole..o.len {
                    let target = o.sums.add((m * o.pitch + n) * L);
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
        $name:ident, $t:ty, $lanes:literal, $fused:literal, $(#[$feature:meta])?
        products: $([$m:literal; $($v:literal)+])+,
        masked: $($mv:literal)+,
        outer: $([$om:literal; $($ov:literal)+])+,
        dots: $([$dm:literal; $($dn:literal)+])+
    ) => {
        mod $name {
            use super::{Dots, Outer, Products, Tile, Tiles};

            $(#[$feature])?
            unsafe fn products<const M: usize, const V: usize, const MASKED: bool>(
                operands: Products<$t>,
            ) {
                // SAFETY: promised by the caller.
                unsafe { super::products::<$t, $lanes, $fused, M, V, MASKED>(operands) }
            }

            $(#[$feature])?
            unsafe fn outer<const M: usize, const V: usize>(operands: Outer<$t>) {
                // SAFETY: promised by the caller.
                unsafe { super::outer::<$t, $lanes, $fused, M, V>(operands) }
            }

            $(#[$feature])?
            unsafe fn dots<const M: usize, const N: usize>(operands: Dots<$t>) {
                // SAFETY: promised by the caller.
                unsafe { super::dots::<$t, $lanes, $fused, M, N>(operands) }
            }

            pub(super) static TILES: Tiles<$t> = Tiles {
                lanes: $lanes,
                products: &[
                    $(Tile { rows: $m, kernels: &[$(($v, products::<$m, $v, false>)),+] }),+
                ],
                masked: Tile { rows: 4, kernels: &[$(($mv, products::<4, $mv, true>)),+] },
                outer: &[$(Tile { rows: $om, kernels: &[$(($ov, outer::<$om, $ov>)),+] }),+],
                dots: &[$(Tile { rows: $dm, kernels: &[$(($dn, dots::<$dm, $dn>)),+] }),+],
            };
        }
    };
}

// 32 registers: 24 sums, the rest for operands.
#[cfg(target_arch = "x86_64")]
instruction_set!(avx512_f32, f32, 16, true, #[target_feature(enable = "avx512f")]
    products: [8; 3 2 1] [4; 6 4 2 1] [2; 8 4 2 1] [1; 12 8 4 2 1],
    masked: 4 3 2 1,
    outer: [12; 2 1] [8; 3 2 1] [4; 6 4 2 1] [2; 8 4 2 1] [1; 12 8 4 2 1],
    dots: [4; 6 3 1] [2; 6 3 1] [1; 12 6 3 1]);
#[cfg(target_arch = "x86_64")]
instruction_set!(avx512_f64, f64, 8, true, #[target_feature(enable = "avx512f")]
    products: [8; 3 2 1] [4; 6 4 2 1] [2; 8 4 2 1] [1; 12 8 4 2 1],
    masked: 4 3 2 1,
    outer: [12; 2 1] [8; 3 2 1] [4; 6 4 2 1] [2; 8 4 2 1] [1; 12 8 4 2 1],
    dots: [4; 6 3 1] [2; 6 3 1] [1; 12 6 3 1]);
// 16 registers: 12 sums.
#[cfg(target_arch = "x86_64")]
instruction_set!(avx2_f32, f32, 8, true, #[target_feature(enable = "avx2,fma")]
    products: [6; 2 1] [4; 2 1] [2; 4 2 1] [1; 8 4 2 1],
    masked: 2 1,
    outer: [6; 2 1] [4; 2 1] [2; 4 2 1] [1; 8 4 2 1],
    dots: [4; 2 1] [2; 3 1] [1; 8 4 1]);
#[cfg(target_arch = "x86_64")]
instruction_set!(avx2_f64, f64, 4, true, #[target_feature(enable = "avx2,fma")]
    products: [6; 2 1] [4; 2 1] [2; 4 2 1] [1; 8 4 2 1],
    masked: 2 1,
    outer: [6; 2 1] [4; 2 1] [2; 4 2 1] [1; 8 4 2 1],
    dots: [4; 2 1] [2; 3 1] [1; 8 4 1]);
// Whatever every machine of this architecture has, taken to be 16 registers of 16 bytes.
instruction_set!(baseline_f32, f32, 4, false,
    products: [4; 3 2 1] [2; 4 2 1] [1; 4 2 1],
    masked: 2 1,
    outer: [4; 3 2 1] [2; 4 2 1] [1; 4 2 1],
    dots: [4; 2 1] [1; 4 1]);
instruction_set!(baseline_f64, f64, 2, false,
    products: [4; 3 2 1] [2; 4 2 1] [1; 4 2 1],
    masked: 2 1,
    outer: [4; 3 2 1] [2; 4 2 1] [1; 4 2 1],
    dots: [4; 2 1] [1; 4 1]);

macro_rules! best {
    ($t:ty, $avx512:ident, $avx2:ident, $baseline:ident) => {
        impl RegisterTiles for $t {
            fn best_tiles() -> &'static Tiles<$t> {
                #[cfg(target_arch = "x86_64")]
                {
                    use std::arch::is_x86_feature_detected;
                    if is_x86_feature_detected!("avx512f") {
                        return &$avx512::TILES;
                    }
                    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                        return &$avx2::TILES;
                    }
                }
                &$baseline::TILES
            }
        }
    };
}

best!(f32, avx512_f32, avx2_f32, baseline_f32);
best!(f64, avx512_f64, avx2_f64, baseline_f64);
