//! Matrix products on device addresses: cuBLAS's where it is found, else the crate's own.

use super::tiles::{Engine, Operands, Product};
use crate::device::cuda::structs::GemmArgs;
use crate::device::cuda::{Draft, Gemm, Matrix, Spec, Work};
use crate::element::DType;
use crate::error::Result;

/// Puts the products into a draft: cuBLAS's where it is found, else the crate's own.
///
/// # Errors
/// [`crate::Error::TooLarge`] for sizes that cannot be counted, [`crate::Error::Device`] while a graph is
/// captured and cuBLAS has not been started.
///
/// # Safety
/// The matrices are memory of this device, as large as sizes, leading dimensions and strides say, and
/// `c` overlaps neither factor.
pub(crate) unsafe fn multiply(draft: &mut Draft, gemm: &Gemm) -> Result<()> {
    if gemm.m == 0 || gemm.n == 0 || gemm.batch == 0 {
        return Ok(());
    }
    // SAFETY: passed on to the caller.
    unsafe {
        if draft.device().driver().has_blas()? {
            draft.expect(by_blas(gemm));
            draft.gemm(*gemm);
            return Ok(());
        }
        let engine = Engine::new(draft.device(), gemm.dtype, gemm.tf32);
        multiply_ourselves(draft, gemm, engine)
    }
}

/// [`multiply`] with sums of f64, which is the type of C, by the crate's own kernel.
///
/// # Errors
/// [`crate::Error::TooLarge`] for sizes that cannot be counted.
///
/// # Safety
/// As [`multiply`].
pub(crate) unsafe fn multiply_in_f64(draft: &mut Draft, gemm: &Gemm) -> Result<()> {
    let engine = Engine::with_sums(draft.device(), gemm.dtype, DType::F64);
    // SAFETY: passed on to the caller.
    unsafe { multiply_ourselves(draft, gemm, engine) }
}

/// Bytes of all matrices, each counted once.
fn bytes(gemm: &Gemm) -> usize {
    let &Gemm { dtype, output, m, n, k, batch, .. } = gemm;
    batch * ((m * k + k * n) * dtype.size() + m * n * output.size())
}

/// What products by cuBLAS are expected to do: about four fifths of what the units could.
fn by_blas(gemm: &Gemm) -> Work {
    let &Gemm { dtype, m, n, k, batch, .. } = gemm;
    let [m, n, k, batch] = [m, n, k, batch].map(|length| length as f64);
    let flop = 2.0 * m * n * k * batch / 0.8;
    let tiles = (m / 128.0).ceil() * (n / 128.0).ceil() * batch;
    // It splits sums where tiles are few.
    let blocks = tiles * (k / 256.0).ceil();
    let mut work = Work { blocks, resident: 2.0, memory: bytes(gemm) as f64, ..Work::default() };
    *match dtype {
        DType::F16 | DType::BF16 => &mut work.half_tensor_flop,
        DType::F32 if gemm.tf32 => &mut work.tf32_tensor_flop,
        DType::F32 => &mut work.f32_flop,
        DType::F64 => &mut work.f64_tensor_flop,
    } = flop;
    work
}

/// [`multiply`] by `kernels/product/gemm.cu`.
///
/// # Safety
/// As [`multiply`].
unsafe fn multiply_ourselves(draft: &mut Draft, gemm: &Gemm, engine: Engine) -> Result<()> {
    let Gemm { dtype, output, m, n, k, batch, a, b, c, .. } = *gemm;
    let vector = |dtype: DType, matrix: Matrix, neighbours: usize| {
        let Matrix { address, leading, stride, .. } = matrix;
        let alignment = draft.alignment_of(address);
        engine.vector(dtype.size(), alignment, &[neighbours, leading, stride])
    };
    let vectors = [
        vector(dtype, a, if a.transposed { m } else { k }),
        vector(dtype, b, if b.transposed { k } else { n }),
        vector(output, c, n),
    ];
    let operands = Operands { vectors, along_k: [!a.transposed, b.transposed], bytes: bytes(gemm) };
    let product = Product::new(draft.device(), engine, batch, [m, n, k], operands)?;
    // How far neighbours in a row, or else in a column, of the factor are apart.
    let steps = |matrix: Matrix| match matrix.transposed {
        true => (1, matrix.leading as i64),
        false => (matrix.leading as i64, 1),
    };
    let ((a_row, a_term), (b_term, b_column)) = (steps(a), steps(b));
    let spec = Spec::new("gemm.cu", "gemm")
        .define("OUTPUT", output)
        .define("A_ALONG_K", i32::from(!a.transposed))
        .define("B_ALONG_K", i32::from(b.transposed));
    let lines = |matrix: Matrix, lines: usize, columns: usize| {
        matrix.leading.saturating_mul(if matrix.transposed { columns } else { lines })
    };
    let counts = [lines(a, m, k), lines(b, k, n), lines(c, m, n), k];
    let arguments = |parts| GemmArgs {
        a: a.address,
        b: b.address,
        c: c.address,
        parts,
        tiling: product.tiling(),
        a_row,
        a_term,
        a_batch: a.stride as i64,
        b_column,
        b_term,
        b_batch: b.stride as i64,
        c_row: c.leading as i64,
        c_batch: c.stride as i64,
        alpha: gemm.alpha,
        beta: gemm.beta,
    };
    // SAFETY: the kernels read and write inside the matrices' sizes, for which the caller answers.
    unsafe { product.launch(draft, spec, "gemm_sum", &counts, arguments) }
}

#[cfg(all(test, feature = "simulator", unix))]
mod tests {
    use half::{bf16, f16};
    use proptest::prelude::*;

    use super::*;
    use crate::device::Device;
    use crate::device::cuda::{CudaDevice, DeviceBuffer};
    use crate::element::Element;

    fn simulator() -> CudaDevice {
        match Device::simulator().unwrap() {
            Device::Cuda(device) => device,
            Device::Cpu => unreachable!("the simulator is a CUDA device"),
        }
    }

    #[derive(Clone, Copy, Debug)]
    struct Case {
        sizes: [usize; 3],
        batch: usize,
        transposed: [bool; 2],
        /// What rows are longer by than they need to be.
        slack: usize,
        shared_factor: bool,
        beta: f64,
        tf32: bool,
    }

    fn cases() -> impl Strategy<Value = Case> {
        let size = || 1usize..100;
        let flags =
            (any::<[bool; 2]>(), 0usize..4, any::<bool>(), prop::sample::select(vec![0., 1.]));
        ((size(), size(), 1usize..200), 1usize..4, any::<bool>(), flags).prop_map(
            |((m, n, k), batch, round, (transposed, slack, shared_factor, beta))| {
                // Half of the cases have sizes that whole vectors fit in.
                let of = |x: usize| if round { x.next_multiple_of(8) } else { x };
                let slack = if round { 8 * slack } else { slack };
                let sizes = [m, n, k].map(of);
                Case { sizes, batch, transposed, slack, shared_factor, beta, tf32: false }
            },
        )
    }

    /// Small integers, whose sums are exact.
    fn integers<T: Element>(len: usize, seed: usize) -> Vec<T> {
        let value = |i: usize| ((i.wrapping_mul(2_654_435_761) >> 7) + seed * i) % 5;
        (0..len).map(|i| T::from_f64(value(i) as f64 - 2.)).collect()
    }

    fn check<T: Element, O: Element>(case: Case) {
        let Case { sizes: [m, n, k], batch, transposed: [ta, tb], slack, .. } = case;
        let device = simulator();
        let [rows_a, columns_a] = if ta { [k, m] } else { [m, k] };
        let [rows_b, columns_b] = if tb { [n, k] } else { [k, n] };
        let (lda, ldb, ldc) = (columns_a + slack, columns_b + slack, n + slack);
        let (size_a, size_b, size_c) = (rows_a * lda, rows_b * ldb, m * ldc);
        let b_stride = if case.shared_factor { 0 } else { size_b };
        let (a, b) = (integers::<T>(batch * size_a, 1), integers::<T>(batch * size_b, 2));
        // What C has been counts only with beta.
        let nan = vec![O::from_f64(f64::NAN); batch * size_c];
        let before = if case.beta == 0. { nan } else { integers::<O>(batch * size_c, 3) };
        let buffer_a = DeviceBuffer::from_slice(&device, "a", &a).unwrap();
        let buffer_b = DeviceBuffer::from_slice(&device, "b", &b).unwrap();
        let mut buffer_c = DeviceBuffer::from_slice(&device, "c", &before).unwrap();
        let matrix =
            |address, leading, stride, transposed| Matrix { address, leading, stride, transposed };
        let with_operands = || {
            let mut draft = Draft::new(&device, 16);
            let pointers = [
                draft.operand::<T>(a.len()).pointer(),
                draft.operand::<T>(b.len()).pointer(),
                draft.operand::<O>(before.len()).pointer(),
            ];
            (draft, pointers)
        };
        let (draft, [at_a, at_b, at_c]) = with_operands();
        let gemm = Gemm {
            dtype: T::DTYPE,
            output: O::DTYPE,
            m,
            n,
            k,
            batch,
            a: matrix(at_a, lda, size_a, ta),
            b: matrix(at_b, ldb, b_stride, tb),
            c: matrix(at_c, ldc, size_c, false),
            alpha: 0.5,
            beta: case.beta,
            tf32: case.tf32,
        };
        let addresses =
            [buffer_a.view().address(), buffer_b.view().address(), buffer_c.view_mut().address()];
        let run = |mut draft: Draft, gemm: &Gemm| {
            // SAFETY: the buffers have these sizes.
            unsafe { multiply(&mut draft, gemm).unwrap() };
            let program = draft.prepare().unwrap();
            let space = DeviceBuffer::<u8>::new(&device, "parts", program.workspace()).unwrap();
            // SAFETY: as above.
            unsafe { program.run(&addresses, &[], space.view().address()).unwrap() };
        };
        run(draft, &gemm);
        let found = buffer_c.to_vec().unwrap();
        for (at, (found, before)) in found.iter().zip(&before).enumerate() {
            let (i, row, column) = (at / size_c, at / ldc % m, at % ldc);
            if column >= n {
                assert_eq!(found.to_f64().to_bits(), before.to_f64().to_bits(), "{case:?} {at}");
                continue;
            }
            let term = |x: usize| {
                let a = a[i * size_a + if ta { x * lda + row } else { row * lda + x }];
                let b = b[i * b_stride + if tb { column * ldb + x } else { x * ldb + column }];
                a.to_f64() * b.to_f64()
            };
            let mut expected = 0.5 * (0..k).map(term).sum::<f64>();
            if case.beta != 0. {
                expected += case.beta * before.to_f64();
            }
            assert_eq!(found.to_f64(), O::from_f64(expected).to_f64(), "{case:?} {at}");
        }
        run(with_operands().0, &Gemm { beta: 0., ..gemm });
        let first = buffer_c.to_vec().unwrap();
        run(with_operands().0, &Gemm { beta: 0., ..gemm });
        let second = buffer_c.to_vec().unwrap();
        assert!(bytemuck::cast_slice::<O, u8>(&first) == bytemuck::cast_slice::<O, u8>(&second));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn own_products_equal_the_definition(case in cases()) {
            check::<f32, f32>(case);
            check::<f32, f32>(Case { tf32: true, ..case });
            check::<f64, f64>(case);
            check::<f16, f16>(case);
            check::<bf16, bf16>(case);
            check::<bf16, f32>(case);
        }
    }

    /// Several tiles of the largest size on both sides, and more steps than the pipeline has stages.
    #[test]
    fn large_products_fill_the_pipeline() {
        for transposed in [[false, false], [true, true]] {
            let (slack, shared_factor, beta) = (0, false, 1.);
            let sizes = [520, 264, 200];
            let case =
                Case { sizes, batch: 1, transposed, slack, shared_factor, beta, tf32: false };
            check::<f32, f32>(case);
            check::<f32, f32>(Case { tf32: true, ..case });
            check::<f32, f32>(Case { tf32: true, sizes: [519, 263, 199], ..case });
            check::<f16, f16>(case);
            check::<bf16, f32>(Case { sizes: [519, 263, 199], ..case });
            check::<f64, f64>(Case { sizes: [300, 140, 70], ..case });
        }
    }

    #[test]
    fn few_sums_of_many_terms_are_shared_out() {
        let (transposed, slack, shared_factor, beta) = ([true, false], 0, false, 1.);
        let sizes = [72, 64, 4000];
        let case = Case { sizes, batch: 1, transposed, slack, shared_factor, beta, tf32: false };
        check::<f32, f32>(case);
        check::<f32, f32>(Case { tf32: true, ..case });
        check::<f64, f64>(Case { sizes: [7, 9, 1001], ..case });
        check::<f16, f16>(case);
        check::<bf16, f32>(Case { sizes: [5, 3, 4001], transposed: [false, true], ..case });
    }
}
