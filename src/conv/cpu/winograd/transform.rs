//! The transforms of Winograd's algorithms along one axis, generated from their points of interpolation (Toom 1963,
//! Cook 1966): m outputs of r taps are m + r − 1 products.
//!
//! With points p₀ … pₙ₋₂ and ∞, y = Aᵀ·[(G·g) ⊙ (Bᵀ·d)], where
//!
//! - row j of G is (1, pⱼ, pⱼ², …) ÷ Π (pⱼ − pₗ), the last row 0, …, 0, 1,
//! - row j of Bᵀ has the coefficients of Π (x − pₗ) over the other points, the last row those over all,
//! - column j of Aᵀ is (1, pⱼ, pⱼ², …), the last column 0, …, 0, 1.
//!
//! Rows of G are scaled by powers of two so that they add up to about 1, and those of Bᵀ by the inverse, which
//! changes no rounding but that of very small numbers.
//!
//! Points are 0, ±3/4 and ±3/2: of all pairs of eighths they are among the best for both kernels of six products
//! (typical errors within 6% of the best pair's, largest errors the smallest but for 5%), and half as bad as
//! the usual 0, ±1 and ±2 (typical errors; the largest a third). Barabasz et al. 2020, "Error analysis and improving
//! the accuracy of Winograd convolution for deep neural networks", give ½ and −2 beside ±1, whose errors lie between,
//! and for which no two rows share their terms.

use std::marker::PhantomData;

use crate::element::Accumulator;
use crate::product::cpu::{Vector, VectorLoop};

/// Lanes that are transformed together: whole vectors of every instruction set.
pub(super) const LANES: usize = 16;

/// How many outputs of an axis are computed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tile {
    /// One output of one tap: nothing is transformed.
    Single,
    /// Two outputs of three taps by four products.
    TwoOfThree,
    /// Four outputs of three taps by six products.
    FourOfThree,
    /// Two outputs of five taps by six products.
    TwoOfFive,
}

impl Tile {
    /// Those that there are for so many taps.
    pub fn for_taps(taps: usize) -> &'static [Tile] {
        match taps {
            1 => &[Tile::Single],
            3 => &[Tile::TwoOfThree, Tile::FourOfThree],
            5 => &[Tile::TwoOfFive],
            _ => &[],
        }
    }

    pub fn outputs(self) -> usize {
        match self {
            Tile::Single => 1,
            Tile::TwoOfThree | Tile::TwoOfFive => 2,
            Tile::FourOfThree => 4,
        }
    }

    pub fn taps(self) -> usize {
        match self {
            Tile::Single => 1,
            Tile::TwoOfThree | Tile::FourOfThree => 3,
            Tile::TwoOfFive => 5,
        }
    }

    /// Products, and inputs that the outputs read.
    pub fn products(self) -> usize {
        self.outputs() + self.taps() - 1
    }
}

/// What becomes of a line of values along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// Inputs to factors, Bᵀ.
    Inputs,
    /// Taps to factors, G.
    Taps,
    /// Products to outputs, Aᵀ.
    Outputs,
    /// Gradients by the outputs to factors, A.
    Gradients,
    /// Products to gradients by the taps, Gᵀ.
    TapGradients,
}

const POINTS_OF_FOUR: [f64; 3] = [0.0, 1.0, -1.0];
const POINTS_OF_SIX: [f64; 5] = [0.0, 0.75, -0.75, 1.5, -1.5];

const fn power(point: f64, exponent: usize) -> f64 {
    let (mut value, mut k) = (1.0, 0);
    while k < exponent {
        value *= point;
        k += 1;
    }
    value
}

/// Π (pⱼ − pₗ) over the other points.
const fn differences(points: &[f64], j: usize) -> f64 {
    let (mut product, mut l) = (1.0, 0);
    while l < points.len() {
        if l != j {
            product *= points[j] - points[l];
        }
        l += 1;
    }
    product
}

/// The power of two by which row j of G is divided.
const fn scale(points: &[f64], j: usize, taps: usize) -> f64 {
    if j == points.len() {
        return 1.0;
    }
    let (mut sum, mut k) = (0.0, 0);
    while k < taps {
        let term = power(points[j], k);
        sum += if term < 0.0 { -term } else { term };
        k += 1;
    }
    let divisor = differences(points, j);
    sum /= if divisor < 0.0 { -divisor } else { divisor };
    // Rounded on a logarithmic scale, or almost: to within a factor of √2.
    let mut scale = 1.0;
    while sum > scale * 1.5 {
        scale *= 2.0;
    }
    while sum < scale * 0.75 {
        scale *= 0.5;
    }
    scale
}

/// G.
const fn of_taps<const N: usize, const R: usize>(points: &[f64]) -> [[f64; R]; N] {
    let (mut rows, mut j) = ([[0.0; R]; N], 0);
    rows[N - 1][R - 1] = 1.0;
    while j < N - 1 {
        let mut k = 0;
        while k < R {
            rows[j][k] = power(points[j], k) / differences(points, j) / scale(points, j, R);
            k += 1;
        }
        j += 1;
    }
    rows
}

/// Bᵀ, for so many taps.
const fn of_inputs<const N: usize>(points: &[f64], taps: usize) -> [[f64; N]; N] {
    let (mut rows, mut j) = ([[0.0; N]; N], 0);
    while j < N {
        // Multiplied by x − pₗ, one after the other.
        rows[j][0] = scale(points, j, taps);
        let (mut degree, mut l) = (0, 0);
        while l < points.len() {
            if l != j {
                degree += 1;
                let mut k = degree;
                while k > 0 {
                    rows[j][k] = rows[j][k - 1] - points[l] * rows[j][k];
                    k -= 1;
                }
                rows[j][0] *= -points[l];
            }
            l += 1;
        }
        j += 1;
    }
    rows
}

/// Aᵀ.
const fn of_products<const M: usize, const N: usize>(points: &[f64]) -> [[f64; N]; M] {
    let (mut rows, mut i) = ([[0.0; N]; M], 0);
    rows[M - 1][N - 1] = 1.0;
    while i < M {
        let mut j = 0;
        while j < N - 1 {
            rows[i][j] = power(points[j], i);
            j += 1;
        }
        i += 1;
    }
    rows
}

const fn transposed<const M: usize, const N: usize>(rows: [[f64; N]; M]) -> [[f64; M]; N] {
    let (mut columns, mut i) = ([[0.0; M]; N], 0);
    while i < M {
        let mut j = 0;
        while j < N {
            columns[j][i] = rows[i][j];
            j += 1;
        }
        i += 1;
    }
    columns
}

/// A matrix that is known when loops are compiled.
trait Table<const TO: usize, const FROM: usize> {
    const ROWS: [[f64; FROM]; TO];
    /// Whether a row and the next differ in the signs of their odd terms alone, as those of p and −p do.
    const ROW_PAIRS: [bool; TO] = row_pairs(&Self::ROWS);
    /// Whether a column and the next differ in the signs of their odd rows alone. No table has pairs of both.
    const COLUMN_PAIRS: [bool; FROM] = row_pairs(&transposed(Self::ROWS));
}

const fn row_pairs<const M: usize, const N: usize>(rows: &[[f64; N]; M]) -> [bool; M] {
    let (mut pairs, mut i) = ([false; M], 0);
    while i + 1 < M {
        let (mut mirrored, mut j) = (N > 1, 0);
        while j < N {
            let sign = if j % 2 == 0 { 1.0 } else { -1.0 };
            mirrored = mirrored && rows[i + 1][j] == sign * rows[i][j];
            j += 1;
        }
        pairs[i] = mirrored;
        i += 1;
    }
    pairs
}

struct Inputs<T>(PhantomData<T>);
struct Taps<T>(PhantomData<T>);
struct Outputs<T>(PhantomData<T>);
struct Gradients<T>(PhantomData<T>);
struct TapGradients<T>(PhantomData<T>);

macro_rules! tables {
    ($($name:ident: $m:literal of $r:literal by $n:literal at $points:ident;)+) => {$(
        struct $name;
        impl Table<$n, $n> for Inputs<$name> {
            const ROWS: [[f64; $n]; $n] = of_inputs(&$points, $r);
        }
        impl Table<$n, $r> for Taps<$name> {
            const ROWS: [[f64; $r]; $n] = of_taps(&$points);
        }
        impl Table<$m, $n> for Outputs<$name> {
            const ROWS: [[f64; $n]; $m] = of_products(&$points);
        }
        impl Table<$n, $m> for Gradients<$name> {
            const ROWS: [[f64; $m]; $n] = transposed(Outputs::<$name>::ROWS);
        }
        impl Table<$r, $n> for TapGradients<$name> {
            const ROWS: [[f64; $n]; $r] = transposed(Taps::<$name>::ROWS);
        }

        impl $name {
            /// # Safety
            /// All that the lines read and write exists.
            unsafe fn transform<A: Accumulator>(direction: Direction, lines: Lines<A>) {
                // SAFETY: promised by the caller.
                unsafe {
                    match direction {
                        Direction::Inputs => lines.by::<Inputs<$name>, $n, $n>(),
                        Direction::Taps => lines.by::<Taps<$name>, $n, $r>(),
                        Direction::Outputs => lines.by::<Outputs<$name>, $m, $n>(),
                        Direction::Gradients => lines.by::<Gradients<$name>, $n, $m>(),
                        Direction::TapGradients => lines.by::<TapGradients<$name>, $r, $n>(),
                    }
                }
            }
        }
    )+};
}

tables! {
    TwoOfThree: 2 of 3 by 4 at POINTS_OF_FOUR;
    FourOfThree: 4 of 3 by 6 at POINTS_OF_SIX;
    TwoOfFive: 2 of 5 by 6 at POINTS_OF_SIX;
}

/// Lines of one axis: lane l of value i of a line is at `from[o·from_outer + i·from_step + n·from_inner + l]`, for
/// every o below `outer` and every n below `inner`; likewise what becomes of it.
pub(super) struct Lines<A> {
    pub from: *const A,
    pub from_outer: usize,
    pub from_step: usize,
    pub from_inner: usize,
    pub to: *mut A,
    pub to_outer: usize,
    pub to_step: usize,
    pub to_inner: usize,
    pub outer: usize,
    pub inner: usize,
}

impl<A: Accumulator> Lines<A> {
    /// # Safety
    /// All that the lines read and write exists.
    unsafe fn by<T: Table<TO, FROM>, const TO: usize, const FROM: usize>(self) {
        // SAFETY: promised by the caller.
        unsafe { A::vectorised(Transform::<A, T, TO, FROM>(self, PhantomData)) }
    }
}

/// # Safety
/// All that the lines read and write exists. The tile has products: it is not a single one.
pub(super) unsafe fn transform<A: Accumulator>(tile: Tile, direction: Direction, lines: Lines<A>) {
    // SAFETY: promised by the caller.
    unsafe {
        match tile {
            Tile::Single => {}
            Tile::TwoOfThree => TwoOfThree::transform(direction, lines),
            Tile::FourOfThree => FourOfThree::transform(direction, lines),
            Tile::TwoOfFive => TwoOfFive::transform(direction, lines),
        }
    }
}

struct Transform<A, T, const TO: usize, const FROM: usize>(Lines<A>, PhantomData<T>);

impl<A, T, const TO: usize, const FROM: usize> VectorLoop<A> for Transform<A, T, TO, FROM>
where
    A: Accumulator,
    T: Table<TO, FROM>,
{
    #[inline(always)]
    unsafe fn run<X: Vector<A>>(self) {
        let Lines { from, from_step, to, to_step, .. } = self.0;
        let Lines { from_outer, from_inner, to_outer, to_inner, outer, inner, .. } = self.0;
        // SAFETY: promised by the caller.
        unsafe {
            for (o, n) in (0..outer).flat_map(|o| (0..inner).map(move |n| (o, n))) {
                for lane in (0..LANES).step_by(X::LANES) {
                    let from = from.add(o * from_outer + n * from_inner + lane);
                    let to = to.add(o * to_outer + n * to_inner + lane);
                    let mut values = [X::zero(); FROM];
                    for (j, value) in values.iter_mut().enumerate() {
                        *value = X::load(from.add(j * from_step));
                    }
                    for j in 0..FROM {
                        if T::COLUMN_PAIRS[j] {
                            let (p, q) = (values[j], values[j + 1]);
                            (values[j], values[j + 1]) = (p.plus(q), p.minus(q));
                        }
                    }
                    let mut paired = false;
                    for i in 0..TO {
                        // The second of a pair was written with the first.
                        if paired {
                            paired = false;
                            continue;
                        }
                        let to = to.add(i * to_step);
                        match terms::<A, X, T, TO, FROM>(&values, i) {
                            [Some(even), Some(odd)] => {
                                even.plus(odd).store(to);
                                even.minus(odd).store(to.add(to_step));
                                paired = true;
                            }
                            [Some(sum), None] | [None, Some(sum)] => sum.store(to),
                            [None, None] => X::zero().store(to),
                        }
                    }
                }
            }
        }
    }
}

/// The sums of the even and of the odd terms of a row, apart where it is the first of a pair and together in the
/// first place where it is not.
///
/// # Safety
/// The machine has the instructions of `X`.
#[inline(always)]
unsafe fn terms<A, X, T, const TO: usize, const FROM: usize>(
    values: &[X; FROM],
    i: usize,
) -> [Option<X>; 2]
where
    A: Accumulator,
    X: Vector<A>,
    T: Table<TO, FROM>,
{
    // SAFETY: promised by the caller.
    unsafe {
        let mut sums: [Option<X>; 2] = [None; 2];
        for (j, &value) in values.iter().enumerate() {
            // Of a pair of columns the first is their sum now, and the second their difference.
            let (first, second) = (T::COLUMN_PAIRS[j], j > 0 && T::COLUMN_PAIRS[j - 1]);
            let factor = match (first, second) {
                (true, _) if !i.is_multiple_of(2) => 0.0,
                (_, true) if i.is_multiple_of(2) => 0.0,
                (_, true) => T::ROWS[i][j - 1],
                _ => T::ROWS[i][j],
            };
            let sum = &mut sums[if T::ROW_PAIRS[i] { j % 2 } else { 0 }];
            if factor == 0.0 {
                continue;
            }
            *sum = Some(match *sum {
                None if factor == 1.0 => value,
                Some(sum) if factor == 1.0 => sum.plus(value),
                Some(sum) if factor == -1.0 => sum.minus(value),
                _ => sum.unwrap_or(X::zero()).plus_product(X::splat(A::from_f64(factor)), value),
            });
        }
        sums
    }
}
