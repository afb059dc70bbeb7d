//! What stands in for cuBLAS: it multiplies as cuBLAS does, and refuses what cuBLAS takes on trust.

use super::*;
use crate::device::cuda::Pointer;
use crate::device::cuda::gemm::{Call, Matrix};
use crate::element::DType;

fn with_blas(watch: Watch) -> Option<Simulator> {
    set_up(Setup { blas: true, watch, ..setup(0) })
}

fn matrix(buffer: &Buffer<'_>, leading: usize, stride: usize, transposed: bool) -> Matrix {
    Matrix { address: Pointer::at(buffer.address), leading, stride, transposed }
}

#[test]
fn products_are_those_of_matrices_by_rows() {
    const BATCH: usize = 3;
    let Some(simulator) = with_blas(Watch::Nothing) else { return };
    assert!(simulator.has_blas().unwrap());
    let (m, n, k) = (3, 5, 4);
    let whole = |count: usize, by: usize| -> Vec<f32> {
        (0..count).map(|at| (at * by % 17) as f32 - 8.0).collect()
    };
    for at in 0..16 {
        let [left, right, shared, add] = [0, 1, 2, 3].map(|bit| at >> bit & 1 == 1);
        // Rows are longer than what is used of them.
        let (a_shape, b_shape) =
            (if left { [k, m] } else { [m, k] }, if right { [n, k] } else { [k, n] });
        let (lda, ldb, ldc) = (a_shape[1] + 2, b_shape[1] + 1, n + 3);
        let (a_stride, b_stride, c_stride) = (a_shape[0] * lda, b_shape[0] * ldb + 7, m * ldc);
        let a = whole(BATCH * a_stride, 5);
        let b = whole(BATCH * b_stride, 7);
        let c = whole(BATCH * c_stride, 3);
        let on_device = [&a, &b, &c].map(|values| Buffer::of(&simulator, values));
        let b_stride = if shared { 0 } else { b_stride };
        let (alpha, beta) = (2.0, if add { -3.0 } else { 0.0 });
        let gemm = Gemm {
            dtype: DType::F32,
            output: DType::F32,
            m,
            n,
            k,
            batch: BATCH,
            a: matrix(&on_device[0], lda, a_stride, left),
            b: matrix(&on_device[1], ldb, b_stride, right),
            c: matrix(&on_device[2], ldc, c_stride, false),
            alpha,
            beta,
            tf32: false,
        };
        // SAFETY: the buffers are as large as the description says.
        unsafe { simulator.gemm(&gemm).unwrap() };
        let mut expected = c.clone();
        for product in 0..BATCH {
            for (row, column) in (0..m).flat_map(|row| (0..n).map(move |column| (row, column))) {
                let left_at = |i: usize| if left { i * lda + row } else { row * lda + i };
                let right_at = |i: usize| if right { column * ldb + i } else { i * ldb + column };
                let sum: f32 = (0..k)
                    .map(|i| {
                        a[product * a_stride + left_at(i)] * b[product * b_stride + right_at(i)]
                    })
                    .sum();
                let to = &mut expected[product * c_stride + row * ldc + column];
                *to = alpha as f32 * sum + beta as f32 * *to;
            }
        }
        assert_eq!(on_device[2].read::<f32>(), expected, "case {at}");
    }
}

#[test]
fn what_cublas_takes_on_trust_is_checked() {
    let Some(simulator) = with_blas(Watch::Accesses) else { return };
    let [a, b] = [0; 2].map(|_| Buffer::of(&simulator, &[1f32; 64]));
    let c = Buffer::fresh(&simulator, 256);
    simulator.synchronize().unwrap();
    let good = Gemm {
        dtype: DType::F32,
        output: DType::F32,
        m: 4,
        n: 4,
        k: 4,
        batch: 4,
        a: matrix(&a, 4, 16, false),
        b: matrix(&b, 4, 16, false),
        c: matrix(&c, 4, 16, false),
        alpha: 1.0,
        beta: 0.0,
        tf32: false,
    };
    let go = |gemm: Gemm| {
        // SAFETY: what is wrong the simulator has to find.
        unsafe { simulator.gemm(&gemm)? };
        simulator.synchronize()
    };
    // What `beta` reads has to be there, and is after a product.
    assert_contains(&reason(go(Gemm { beta: 1.0, ..good })), &["C: ", "never written"]);
    go(good).unwrap();
    assert_eq!(c.read::<f32>(), [4.0; 64]);
    go(Gemm { beta: 1.0, ..good }).unwrap();
    let at = |matrix: Matrix, bytes: u64| Matrix {
        address: Pointer::at(matrix.address.distance() + bytes),
        ..matrix
    };
    let cases = [
        (
            Gemm { a: Matrix { leading: 3, ..good.a }, ..good },
            "B has a leading dimension of 3 for 4 rows",
        ),
        (Gemm { b: Matrix { leading: 5, ..good.b }, ..good }, "A: 16 bytes"),
        (Gemm { a: Matrix { stride: 17, ..good.a }, ..good }, "B: 16 bytes"),
        (Gemm { c: Matrix { stride: 12, ..good.c }, ..good }, "products overlap"),
        (Gemm { batch: 5, ..good }, "from the start of an allocation of 256"),
        (Gemm { a: at(good.a, 2), batch: 3, ..good }, "not aligned"),
        (Gemm { c: at(good.a, 0), ..good }, "C lies in B's memory"),
        (Gemm { dtype: DType::F64, batch: 1, ..good }, "no products of f64 that give f32"),
    ];
    for (wrong, message) in cases {
        assert_contains(&reason(go(wrong)), &[message]);
    }
    let call: Call = good.calls().next().unwrap().unwrap();
    let batch = Call { batch: 65536, ..call };
    assert_contains(
        &reason(super::super::blas::multiply(&simulator.shared().memory, &batch)),
        &["65536"],
    );
    // SAFETY: nothing is multiplied where there is no cuBLAS.
    let without = unsafe { self::simulator(0).unwrap().gemm(&good) };
    assert_contains(&reason(without), &["there is no cuBLAS"]);
}
