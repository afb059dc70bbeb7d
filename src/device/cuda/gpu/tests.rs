//! Tests of the runtime on a GPU; where there is none, of the reasons, and what takes no results of kernels on a
//! driver without one (`fake`).

mod fake;

use std::sync::{Arc, Once};

use cudarc::driver::result::DriverError;
use cudarc::driver::sys::{CUresult, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaStream, DevicePtr};
use half::{bf16, f16};

use super::interop;
use super::runtime::Runtime;
use crate::device::cuda::driver::{Driver, Unit};
use crate::device::cuda::gemm::{Gemm, Matrix};
use crate::device::cuda::{Pointer, answers, skipped};
use crate::element::{DType, Element};
use crate::error::Error;

/// The first GPU, if there is one. What the platform answers is checked before anything else is.
fn gpu() -> Option<Runtime> {
    static CHECKED: Once = Once::new();
    let runtime = Runtime::open(0).map_err(|reason| skipped("cuda", &reason)).ok()?;
    if !fake::computes_nothing() {
        CHECKED.call_once(|| answers::check(&runtime));
    }
    Some(runtime)
}

#[test]
fn the_platform_gives_known_answers() {
    gpu();
}

fn upload<T: Element>(runtime: &Runtime, data: &[T]) -> u64 {
    let bytes: &[u8] = bytemuck::cast_slice(data);
    let address = runtime.allocate(bytes.len()).unwrap().expect("a little memory");
    // SAFETY: the memory was just allocated, with this size.
    unsafe { runtime.upload(bytes, address).unwrap() };
    address
}

fn download<T: Element>(runtime: &Runtime, address: u64, len: usize) -> Vec<T> {
    let mut data = vec![T::default(); len];
    // SAFETY: callers pass an allocation with so many elements.
    unsafe { runtime.download(address, bytemuck::cast_slice_mut(&mut data)).unwrap() };
    data
}

#[test]
fn opening_what_is_not_there_says_why() {
    let Err(reason) = Runtime::open(0) else {
        let reason = Runtime::open(1_000_000).unwrap_err();
        return assert!(reason.contains("the CUDA driver finds"), "{reason}");
    };
    let known = ["driver", "NVRTC", "context", "memory pool"];
    assert!(known.iter().any(|part| reason.contains(part)), "{reason}");
    assert_eq!(Runtime::open(0).unwrap_err(), reason);
}

#[test]
fn memory_is_copied_cleared_and_given_back() {
    let Some(runtime) = gpu() else { return };
    println!("{}", runtime.description());
    let data: Vec<f32> = (0..10_000).map(|i| i as f32).collect();
    let (a, b) = (upload(&runtime, &data), upload(&runtime, &vec![1f32; data.len()]));
    assert_eq!((a % 256, b % 256), (0, 0));
    // SAFETY: both are allocations of 40,000 bytes.
    unsafe { runtime.copy(a, b, 4 * data.len()).unwrap() };
    assert_eq!(download::<f32>(&runtime, b, data.len()), data);
    // SAFETY: as above.
    unsafe { runtime.clear(a, 4 * 5_000).unwrap() };
    let half_cleared: Vec<f32> = download(&runtime, a, data.len());
    assert!(
        half_cleared[..5_000].iter().all(|&x| x == 0.) && half_cleared[5_000..] == data[5_000..]
    );
    for address in [a, b] {
        // SAFETY: the allocation is used no more.
        unsafe { runtime.free(address, 4 * data.len()) };
    }
    runtime.trim().unwrap();
}

#[test]
fn too_much_memory_is_none_and_the_device_stays_usable() {
    let Some(runtime) = gpu() else { return };
    let (_, total) = runtime.memory().unwrap();
    assert_eq!(runtime.allocate(usize::MAX).unwrap(), None);
    // The context itself takes some: all of it cannot be had.
    assert_eq!(runtime.allocate(total as usize).unwrap(), None);
    let address = upload(&runtime, &[1f32, 2.]);
    assert_eq!(download::<f32>(&runtime, address, 2), [1., 2.]);
    // SAFETY: the allocation is used no more.
    unsafe { runtime.free(address, 8) };
}

#[test]
fn kernels_are_compiled_loaded_and_launched_from_any_thread() {
    let Some(runtime) = gpu() else { return };
    let text = "#include \"platform.cuh\"
        struct Args { u64 data; f32 by; i32 count; };
        KERNEL(scale, Args, 64) {
            i32 at = (i32)(blockIdx.x * 64 + threadIdx.x);
            if (at < args.count) ((f32*)args.data)[at] *= args.by;
        }";
    let image = runtime.compile(&Unit { file: "scale.cu", text: text.into() }).unwrap();
    let kernel = runtime.load(&image, "scale").unwrap();
    assert!(kernel.resources().registers > 0);
    let data: Vec<f32> = (0..1000).map(|i| i as f32).collect();
    let address = upload(&runtime, &data);
    let arguments: Vec<u8> =
        [&address.to_ne_bytes()[..], &3f32.to_ne_bytes(), &1000i32.to_ne_bytes()].concat();
    std::thread::scope(|scope| {
        // SAFETY: the bytes are the argument struct, and the address has room for `count` elements.
        scope.spawn(|| unsafe { kernel.launch([16, 1, 1], 64, &arguments).unwrap() });
    });
    let scaled: Vec<f32> = download(&runtime, address, data.len());
    assert!(scaled.iter().zip(&data).all(|(scaled, x)| *scaled == 3. * x));
    // SAFETY: the driver refuses a grid that large; nothing runs.
    match unsafe { kernel.launch([1, 1 << 20, 1], 64, &arguments) } {
        Err(Error::Device { device, call, reason }) => {
            assert_eq!((&*device, &*call), ("cuda:0", "launching scale"));
            assert!(reason.contains("CUDA_ERROR_INVALID_VALUE"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    for damaged in [&image[..image.len() / 2], &image[..10], &[]] {
        assert!(matches!(runtime.load(damaged, "scale"), Err(Error::Device { .. })));
    }
    assert!(matches!(runtime.load(&image, "absent"), Err(Error::Device { .. })));
    // SAFETY: the allocation is used no more.
    unsafe { runtime.free(address, 4 * data.len()) };
}

/// Small integers, which all element types and sums represent.
fn integers<T: Element>(count: usize, seed: usize) -> Vec<T> {
    (0..count).map(|i| T::from_f64(((i * 7 + seed) % 5) as f64 - 2.)).collect()
}

fn products<T: Element>(runtime: &Runtime, dtype: DType) {
    let (batch, m, n, k) = (3, 5, 4, 6);
    for (ta, tb) in [(false, false), (false, true), (true, false), (true, true)] {
        // Rows are longer than they need to be.
        let (lda, ldb, ldc) = (if ta { m } else { k } + 2, if tb { k } else { n } + 1, n + 3);
        let (sa, sb) = (lda * if ta { k } else { m }, ldb * if tb { n } else { k });
        let (a, b) = (integers::<T>(batch * sa, 1), integers::<T>(batch * sb, 2));
        let c = integers::<T>(batch * m * ldc, 3);
        let addresses = [upload(runtime, &a), upload(runtime, &b), upload(runtime, &c)];
        let matrix = |which: usize, leading, stride, transposed| Matrix {
            address: Pointer::at(addresses[which]),
            leading,
            stride,
            transposed,
        };
        let gemm = Gemm {
            dtype,
            output: dtype,
            m,
            n,
            k,
            batch,
            a: matrix(0, lda, sa, ta),
            b: matrix(1, ldb, sb, tb),
            c: matrix(2, ldc, m * ldc, false),
            alpha: 2.,
            beta: 1.,
            tf32: false,
        };
        // SAFETY: the matrices were uploaded with these sizes.
        unsafe { runtime.blas().unwrap().unwrap().gemm(&gemm).unwrap() };
        let found: Vec<T> = download(runtime, addresses[2], c.len());
        for (at, (found, before)) in found.iter().zip(&c).enumerate() {
            let (i, row, column) = (at / (m * ldc), at / ldc % m, at % ldc);
            let factor = |x: usize| {
                let a = a[i * sa + if ta { x * lda + row } else { row * lda + x }];
                let b = b[i * sb + if tb { column * ldb + x } else { x * ldb + column }];
                a.to_f64() * b.to_f64()
            };
            let sum = if column < n { (0..k).map(factor).sum::<f64>() } else { 0. };
            assert_eq!(found.to_f64(), before.to_f64() + 2. * sum, "{dtype} {ta} {tb} {at}");
        }
        for (address, len) in addresses.into_iter().zip([a.len(), b.len(), c.len()]) {
            // SAFETY: the allocation is used no more.
            unsafe { runtime.free(address, len * size_of::<T>()) };
        }
    }
}

#[test]
fn cublas_multiplies_by_rows() {
    let Some(runtime) = gpu() else { return };
    if runtime.blas().unwrap().is_none() {
        return println!("skipped: there is no cuBLAS");
    }
    products::<f32>(&runtime, DType::F32);
    products::<f64>(&runtime, DType::F64);
    products::<f16>(&runtime, DType::F16);
    products::<bf16>(&runtime, DType::BF16);
    let nowhere = Matrix { address: Pointer::NULL, leading: 1 << 32, stride: 0, transposed: false };
    let (m, n, k, batch) = (1, 1, 1, 1);
    let (dtype, alpha, beta) = (DType::F32, 1., 0.);
    let (a, b, c, output) = (nowhere, nowhere, nowhere, dtype);
    let gemm = Gemm { dtype, output, m, n, k, batch, a, b, c, alpha, beta, tf32: false };
    // SAFETY: the sizes are refused before anything is queued.
    let refused = unsafe { runtime.blas().unwrap().unwrap().gemm(&gemm) };
    assert!(matches!(refused, Err(Error::TooLarge { .. })), "{refused:?}");
}

#[test]
fn slices_of_callers_are_borrowed_and_ours_handed_over() {
    let Some(first) = gpu() else { return };
    let context = CudaContext::new(0).unwrap();
    let (theirs, ours) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let runtime = Runtime::on_stream(ours).unwrap();
    assert_ne!(runtime.identity(), first.identity());
    assert_eq!(first.identity(), Runtime::open(0).unwrap().identity());

    // The first runtime's context is another handle of the same one: its use is ordered, too.
    for runtime in [&runtime, &first] {
        let mut slice = theirs.clone_htod(&vec![5f32; 1 << 20]).unwrap();
        let borrowed = interop::borrow_mut(runtime, &mut slice).unwrap();
        assert_eq!(borrowed.len, 1 << 20);
        // SAFETY: the memory is borrowed for writing.
        unsafe { runtime.clear(borrowed.address, 4 * borrowed.len).unwrap() };
        drop(borrowed);
        assert_eq!(theirs.clone_dtoh(&slice).unwrap(), vec![0f32; 1 << 20]);
        let view = slice.slice(10..20);
        let borrowed = interop::borrow(runtime, &view).unwrap();
        assert_eq!(borrowed.len, 10);
        assert_eq!(download::<f32>(runtime, borrowed.address, 10), [0.; 10]);
    }

    let address = upload(&runtime, &[1f32, 2., 3.]);
    // SAFETY: the allocation has three elements and is used no more by us.
    let slice = unsafe { interop::hand_over::<f32>(&runtime, address, 3).unwrap() };
    assert_eq!(slice.device_ptr(&theirs).0, address);
    // It outlives what allocated it.
    drop(runtime);
    assert_eq!(theirs.clone_dtoh(&slice).unwrap(), [1., 2., 3.]);
}

/// A capture of the stream, abandoned at the end.
struct Captured(Arc<CudaStream>);

impl Captured {
    fn begin(stream: &Arc<CudaStream>) -> Self {
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).unwrap();
        Captured(stream.clone())
    }
}

impl Drop for Captured {
    fn drop(&mut self) {
        let flags = cudarc::driver::sys::CUgraphInstantiate_flags(0);
        drop(self.0.end_capture(flags).expect("nothing has spoiled the capture"));
    }
}

/// Each is an error before the driver hears of it, so the capture goes on.
#[test]
fn what_a_capture_does_not_allow_is_refused() {
    let Some(_) = gpu() else { return };
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    let runtime = Runtime::on_stream(stream.clone()).unwrap();
    let address = upload(&runtime, &[1f32, 2.]);
    let theirs = context.new_stream().unwrap().clone_htod(&[1f32, 2.]).unwrap();
    let captured = Captured::begin(&stream);
    let mut to = [0u8; 8];
    let refused = [
        runtime.allocate(8).map(drop),
        // SAFETY: the memory has this size.
        unsafe { runtime.upload(&[0; 8], address) },
        // SAFETY: as above.
        unsafe { runtime.download(address, &mut to) },
        runtime.synchronize(),
        runtime.trim(),
        runtime.load(&[0], "any").map(drop),
        interop::borrow(&runtime, &theirs).map(drop),
    ];
    for refused in refused {
        match refused {
            Err(Error::Device { reason, .. }) => {
                assert!(reason.contains("captured") || reason.contains("damaged"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }
    let reason = Runtime::on_stream(stream.clone()).unwrap_err();
    assert!(reason.contains("captured"), "{reason}");
    // SAFETY: the memory has this size.
    unsafe { runtime.clear(address, 8).unwrap() };
    // Freed when the capture is over.
    // SAFETY: the allocation is used no more.
    unsafe { runtime.free(address, 8) };
    drop(captured);
    runtime.synchronize().unwrap();
}

#[test]
fn errors_of_others_are_not_ours() {
    let Some(_) = gpu() else { return };
    let context = CudaContext::new(0).unwrap();
    let runtime = Runtime::on_stream(context.new_stream().unwrap()).unwrap();
    let theirs = DriverError(CUresult::CUDA_ERROR_ASSERT);
    let source =
        "#include \"platform.cuh\"\nstruct Args { u64 unused; };\nKERNEL(nothing, Args, 32) {}\n";
    let image = runtime.compile(&Unit { file: "nothing.cu", text: source.into() }).unwrap();
    context.record_err::<()>(Err(theirs));
    runtime.load(&image, "nothing").unwrap();
    let address = upload(&runtime, &[1f32]);
    // SAFETY: the allocation has one element and is used no more by us.
    let slice = unsafe { interop::hand_over::<f32>(&runtime, address, 1).unwrap() };
    drop(interop::borrow(&runtime, &slice).unwrap());
    assert_eq!(context.check_err(), Err(theirs));
}
