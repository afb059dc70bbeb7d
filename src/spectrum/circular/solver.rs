//! Decompositions of the symbols of a layer, by faer and on the calling thread.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack, StackReq};
use faer::linalg::evd::tridiag::{tridiag_in_place, tridiag_in_place_scratch};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::linalg::matmul::triangular::{BlockStructure, matmul};
use faer::linalg::qr::no_pivoting::factor::recommended_block_size;
use faer::linalg::svd::{ComputeSvdVectors, svd, svd_scratch};
use faer::prelude::default;
use faer::{Accum, Mat, MatRef, Par, c64};

use crate::error::{Error, Result};
use crate::memory::try_with_capacity;
use crate::spectrum::symbol::{filled, not_converged};

/// How far the values of a spectrum are right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accuracy {
    /// To about 1e-8 of the largest: more than weights in single precision determine. Values are roots of
    /// eigenvalues of Gram matrices, in double precision.
    Single,
    /// To about 1e-14 of the largest, by singular value decompositions.
    Double,
}

/// The singular values of symbols that follow one another, each column by column; those of each in
/// descending order.
//
// Measured on a Xeon with AVX-512 (Sapphire Rapids), one symbol of 64 x 64 on one thread: decomposition
// 0.75 ms, in single precision 0.46 ms; Gram matrix and faer's eigenvalues of it 0.45 ms, the more accurate;
// Gram matrix, faer's tridiagonal form and `tridiagonal_values` 0.30 ms. The whole spectrum of 64 to 64
// channels, 3 x 3, on 56 x 56, with two threads on a machine that others used, too: 0.18 to 0.34 s to single
// accuracy, 0.43 to 0.89 s to double.
pub(in crate::spectrum) fn values(
    symbols: &[c64],
    [rows, columns]: [usize; 2],
    accuracy: Accuracy,
) -> Result<Vec<f64>> {
    let (len, rank) = (rows * columns, rows.min(columns));
    let mut values = try_with_capacity("the singular values", symbols.len() / len.max(1) * rank)?;
    if rank == 0 {
        return Ok(values);
    }
    if rank == 1 {
        values.extend(symbols.chunks_exact(len).map(norm));
        return Ok(values);
    }
    match accuracy {
        Accuracy::Single => {
            let mut memory = memory(tridiag_in_place_scratch::<c64>(rank, Par::Seq, default()))?;
            let block = recommended_block_size::<c64>(rank, rank);
            let (mut gram, mut reflectors) = (Mat::zeros(rank, rank), Mat::zeros(block, rank - 1));
            let (mut diagonal, mut squares) = (vec![0.0; rank], vec![0.0; rank]);
            for symbol in symbols.chunks_exact(len) {
                gram_into(MatRef::from_column_major_slice(symbol, rows, columns), &mut gram);
                let stack = MemStack::new(&mut memory);
                let (matrix, reflectors) = (gram.as_mut(), reflectors.as_mut());
                tridiag_in_place(matrix, reflectors, Par::Seq, stack, default());
                for i in 0..rank {
                    diagonal[i] = gram[(i, i)].re;
                    squares[i] = if i + 1 < rank { gram[(i + 1, i)].norm_sqr() } else { 0.0 };
                }
                tridiagonal_values(&mut diagonal, &mut squares)
                    .ok_or_else(|| not_converged([rows, columns]))?;
                diagonal.sort_unstable_by(|a, b| b.total_cmp(a));
                // Rounding makes a zero negative.
                values.extend(diagonal.iter().map(|square| square.max(0.0).sqrt()));
            }
        }
        Accuracy::Double => {
            let (no, par) = (ComputeSvdVectors::No, Par::Seq);
            let mut memory = memory(svd_scratch::<c64>(rows, columns, no, no, par, default()))?;
            let mut diagonal = Diag::zeros(rank);
            for symbol in symbols.chunks_exact(len) {
                let symbol = MatRef::from_column_major_slice(symbol, rows, columns);
                let stack = MemStack::new(&mut memory);
                svd(symbol, diagonal.as_mut(), None, None, par, stack, default())
                    .map_err(|_| not_converged([rows, columns]))?;
                values.extend(diagonal.column_vector().iter().map(|value: &c64| value.re));
            }
        }
    }
    Ok(values)
}

/// The eigenvalues of a symmetric tridiagonal matrix, in place of its diagonal: the rational QL iteration of
/// Reinsch (1973, `tqlrat`), which takes no roots. `squares` are those of the elements beside the diagonal,
/// followed by a zero. `None` if it does not converge.
fn tridiagonal_values(diagonal: &mut [f64], squares: &mut [f64]) -> Option<()> {
    const ITERATIONS: usize = 60;
    let n = diagonal.len();
    let (mut shifted, mut largest, mut tiny, mut tiny_square) = (0.0, 0.0f64, 0.0, 0.0);
    for l in 0..n {
        let size = diagonal[l].abs() + squares[l].sqrt();
        if size > largest {
            largest = size;
            tiny = f64::EPSILON * size;
            tiny_square = tiny * tiny;
        }
        // The last square is zero.
        let m = (l..n).find(|&m| squares[m] <= tiny_square)?;
        if m == l {
            diagonal[l] += shifted;
            continue;
        }
        let mut left = ITERATIONS;
        loop {
            left = left.checked_sub(1)?;
            let (s, g) = (squares[l].sqrt(), diagonal[l]);
            let p = (diagonal[l + 1] - g) / (2.0 * s);
            diagonal[l] = s / (p + p.hypot(1.0).copysign(p));
            let shift = g - diagonal[l];
            diagonal[l + 1..].iter_mut().for_each(|d| *d -= shift);
            shifted += shift;
            let or_tiny = |g: f64| if g == 0.0 { tiny } else { g };
            let mut g = or_tiny(diagonal[m]);
            let (mut h, mut s) = (g, 0.0);
            for i in (l..m).rev() {
                let p = g * h;
                let r = p + squares[i];
                squares[i + 1] = s * r;
                s = squares[i] / r;
                diagonal[i + 1] = h + s * (h + diagonal[i]);
                g = or_tiny(diagonal[i] - squares[i] / g);
                h = g * p / r;
            }
            squares[l] = s * g;
            diagonal[l] = h;
            // The square is h times that: it may underflow.
            if h == 0.0 || squares[l].abs() <= (tiny_square / h).abs() {
                break;
            }
            squares[l] *= h;
            if squares[l] == 0.0 {
                break;
            }
        }
        diagonal[l] += shifted;
    }
    Some(())
}

/// The largest singular value of a symbol that is real, in real arithmetic.
pub(in crate::spectrum) fn largest_real(
    symbol: &[c64],
    [rows, columns]: [usize; 2],
) -> Result<f64> {
    let rank = rows.min(columns);
    if rank <= 1 {
        return Ok(norm(symbol));
    }
    let symbol = MatRef::from_column_major_slice(symbol, rows, columns);
    let symbol = Mat::from_fn(rows, columns, |i, j| symbol[(i, j)].re);
    let wide = if rows <= columns { symbol.as_ref() } else { symbol.transpose() };
    let mut gram = Mat::<f64>::zeros(rank, rank);
    faer::linalg::matmul::matmul(
        gram.as_mut(),
        Accum::Replace,
        wide,
        wide.transpose(),
        1.0,
        Par::Seq,
    );
    let (no, par) = (ComputeEigenvectors::No, Par::Seq);
    let mut memory = memory(self_adjoint_evd_scratch::<f64>(rank, no, par, default()))?;
    let mut diagonal = Diag::zeros(rank);
    let stack = MemStack::new(&mut memory);
    self_adjoint_evd(gram.as_ref(), diagonal.as_mut(), None, par, stack, default())
        .map_err(|_| not_converged([rows, columns]))?;
    Ok(diagonal.column_vector().iter().fold(0.0, |max: f64, &square: &f64| max.max(square)).sqrt())
}

/// The lower triangle of the smaller of S·S* and S*·S.
pub(in crate::spectrum) fn gram_into(symbol: MatRef<'_, c64>, gram: &mut Mat<c64>) {
    let (left, right) = if symbol.nrows() <= symbol.ncols() {
        (symbol, symbol.adjoint())
    } else {
        // The conjugate of S*·S, which has the same eigenvalues.
        (symbol.transpose(), symbol.transpose().adjoint())
    };
    matmul(
        gram.as_mut(),
        BlockStructure::TriangularLower,
        Accum::Replace,
        left,
        BlockStructure::Rectangular,
        right,
        BlockStructure::Rectangular,
        c64::ONE,
        Par::Seq,
    );
}

/// The Euclidean norm.
pub(in crate::spectrum) fn norm(vector: &[c64]) -> f64 {
    vector.iter().map(|z| z.re * z.re + z.im * z.im).sum::<f64>().sqrt()
}

/// A thin singular value decomposition S = U·Σ·V*.
pub(in crate::spectrum) struct Decomposition {
    pub u: Mat<c64>,
    pub values: Vec<f64>,
    pub v: Mat<c64>,
}

/// The decomposition of one symbol. That of a symbol said to be `real` is real, too.
pub(in crate::spectrum) fn decompose(
    symbol: &[c64],
    extents: [usize; 2],
    real: bool,
) -> Result<Decomposition> {
    let [rows, columns] = extents;
    let rank = rows.min(columns);
    let symbol = MatRef::from_column_major_slice(symbol, rows, columns);
    let (thin, par) = (ComputeSvdVectors::Thin, Par::Seq);
    let failed = |_| not_converged(extents);
    if real {
        let symbol = Mat::from_fn(rows, columns, |i, j| symbol[(i, j)].re);
        let (mut u, mut v) = (Mat::<f64>::zeros(rows, rank), Mat::<f64>::zeros(columns, rank));
        let mut values = Diag::<f64>::zeros(rank);
        let mut memory = memory(svd_scratch::<f64>(rows, columns, thin, thin, par, default()))?;
        let stack = MemStack::new(&mut memory);
        let (u_mut, v_mut) = (Some(u.as_mut()), Some(v.as_mut()));
        svd(symbol.as_ref(), values.as_mut(), u_mut, v_mut, par, stack, default())
            .map_err(failed)?;
        let complex = |real: &Mat<f64>| {
            Mat::from_fn(real.nrows(), real.ncols(), |i, j| c64::new(real[(i, j)], 0.0))
        };
        let values = values.column_vector().iter().copied().collect();
        return Ok(Decomposition { u: complex(&u), values, v: complex(&v) });
    }
    let (mut u, mut v) = (Mat::zeros(rows, rank), Mat::zeros(columns, rank));
    let mut values = Diag::<c64>::zeros(rank);
    let mut memory = memory(svd_scratch::<c64>(rows, columns, thin, thin, par, default()))?;
    let stack = MemStack::new(&mut memory);
    svd(symbol, values.as_mut(), Some(u.as_mut()), Some(v.as_mut()), par, stack, default())
        .map_err(failed)?;
    let values = values.column_vector().iter().map(|value| value.re).collect();
    Ok(Decomposition { u, values, v })
}

impl Decomposition {
    /// U·f(Σ)·V*, column by column.
    pub(in crate::spectrum) fn with_values(mut self, f: impl Fn(f64) -> f64) -> Result<Vec<c64>> {
        let (rows, columns) = (self.u.nrows(), self.v.nrows());
        for (j, &value) in self.values.iter().enumerate() {
            let factor = f(value);
            self.u.col_mut(j).iter_mut().for_each(|element| *element *= factor);
        }
        let mut product = filled("a symbol", rows * columns, c64::ZERO)?;
        faer::linalg::matmul::matmul(
            faer::MatMut::from_column_major_slice_mut(&mut product, rows, columns),
            Accum::Replace,
            self.u.as_ref(),
            self.v.adjoint(),
            c64::ONE,
            Par::Seq,
        );
        Ok(product)
    }
}

/// Memory for one of faer's algorithms.
pub(in crate::spectrum) fn memory(need: StackReq) -> Result<MemBuffer> {
    MemBuffer::try_new(need).map_err(|_| Error::Allocation {
        what: "a decomposition".into(),
        bytes: need.size_bytes() as u64,
    })
}
