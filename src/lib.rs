//! **Convolution as linear algebra**: patches, products, sparse matrices, linear operators and their singular
//! values.
//!
//! Everything follows from one map. On each spatial axis, output `o` and tap `k` read the input position
//! `i(o, k) = o·stride + k·dilation − padding`, and the padding mode says what a position outside the
//! input means. The map is separable by axis; [`AxisMap`] tabulates it, and every lowering reads those
//! tables:
//!
//! | lowering | definition | call |
//! |---|---|---|
//! | unfold (im2col) | `A[n, c·K + k, o] = x[n, c, i(o, k)]` | [`Conv::unfold`] |
//! | fold (col2im) | the adjoint of unfold: overlapping entries add up | [`Conv::fold`], [`Conv::fold_average`] |
//! | gathering filter | the identity seen as a weight: convolving with it *is* unfold | [`Conv::gathering_filter`] |
//! | convolution | `y = W·A`, group by group | [`Conv::forward`] |
//! | its gradients | `dx = fold(Wᵀ·dY)`, `dW = dY·Aᵀ`, `db = Σ dY` | [`Conv::backward_input`], [`Conv::backward_weight`], [`Conv::backward_bias`] |
//! | transposed convolution | the adjoint of the convolution | [`Conv::transposed`] |
//! | matrix | sparse `M` with `M·[x; 1] = y` | [`Conv::matrix`], [`Conv::transposed_matrix`] |
//! | sparse weights | the same with a weight of which only some entries are stored | [`SparseWeight`], [`Conv::sparse_forward`] |
//! | operator | `A·x` and `Aᵀ·y` of a layer without its bias, nothing assembled | [`Conv::operator`], [`Conv::transposed_operator`] |
//! | covariance | `Σ a·aᵀ` over patches and `Σ g·gᵀ` over output gradients, and what K-FAC makes of them | [`Conv::covariance`], [`Conv::gradient_covariance`], [`KfacState`] |
//!
//! For 1, 2 and 3 spatial axes; `f32`, `f64`, `f16`, `bf16`; channels first and last; any stride,
//! dilation and groups; every padding mode of PyTorch.
//!
//! ```
//! use convmat::{Conv, Device, PaddingMode, Tensor};
//!
//! let device = Device::best();
//! let x = Tensor::from_vec(&device, &[1, 1, 2, 3], vec![1f32, 2., 3., 4., 5., 6.])?;
//! let weight = Tensor::from_vec(&device, &[1, 1, 1, 3], vec![1f32, 0., -1.])?;
//! let conv = Conv::new([1, 3]).padding([0, 1]).padding_mode(PaddingMode::Circular);
//!
//! let y = conv.forward(&x, &weight, None)?;
//! assert_eq!(y.clone().into_vec()?, [1., -2., 1., 1., -2., 1.]);
//!
//! let matrix = conv.matrix(&weight, None, [2, 3])?;
//! let columns = x.reshape(&[6])?;
//! assert_eq!(matrix.mul_vector(&columns)?.into_vec()?, y.into_vec()?);
//! # Ok::<(), convmat::Error>(())
//! ```
//!
//! # Operators and spectra
//!
//! A layer without its bias is a linear map. [`Operator`] applies it and its adjoint to blocks of vectors by
//! planned convolutions; sparse and dense matrices and closures are operators, too, and so are products, sums
//! and adjoints of operators. Of any of them [`Operator::svd`] gives the largest singular values with their
//! vectors and residuals, [`Operator::spectrum`] chooses among four methods, and [`Operator::spectral_norm`]
//! brackets the norm:
//!
//! ```
//! use convmat::{Conv, Device, Tensor};
//!
//! let weight = Tensor::from_vec(&Device::Cpu, &[1, 1, 3], vec![1f64, -2., 1.])?;
//! let layer = Conv::new([3]).padding([1]).operator(&weight, [100])?;
//! let svd = layer.svd(3)?;
//! assert!(svd.is_converged());
//!
//! let norm = layer.spectral_norm()?;
//! assert!(norm.lower <= svd.values[0] && norm.upper.is_some_and(|upper| svd.values[0] <= upper));
//! # Ok::<(), convmat::Error>(())
//! ```
//!
//! Where padding wraps around ([`PaddingMode::Circular`]) and strides divide the input,
//! [`Operator::circular`] gives the exact spectrum, frequency by frequency, and the kernels whose spectrum is
//! clipped or flat. Vectors stay on the operator's device; weights are read to the host once, and random
//! vectors and matrices as small as the number of values pass between both. The dense and circular methods
//! decompose on the host.
//!
//! # K-FAC
//!
//! [`KfacState`] keeps the Kronecker factors of a layer's Fisher matrix, A of its patches and G of the gradients
//! by its output, as running averages, and preconditions gradients by them: K-FAC, EKFAC, the diagonal or
//! Shampoo ([`KfacMethod`]), with one pair of factors per group, for every geometry that the layer may have.
//! [`Conv::covariance`] and [`Conv::gradient_covariance`] are the factors alone.
//!
//! ```
//! use convmat::{Conv, Device, KfacLayer, KfacMethod, KfacOptions, KfacState, Tensor};
//!
//! let (device, conv) = (Device::Cpu, Conv::new([3]).padding([1]));
//! let x = Tensor::from_vec(&device, &[2, 1, 4], vec![1f32, 2., 0., -1., 3., 1., 1., 2.])?;
//! // The gradients of each example's own loss by the layer's output.
//! let dy = Tensor::from_vec(&device, &[2, 2, 4], (0..16).map(|i| (i % 5) as f32 - 2.).collect())?;
//!
//! let layer = KfacLayer::new(conv, 1, 2, [4]).bias(true);
//! let options = KfacOptions::new().method(KfacMethod::Ekfac).decay(0.95).damping(1e-2).refresh_every(10);
//! let mut state = KfacState::<f32, 1>::new(&device, layer, options)?;
//! state.step(&x, &dy)?;
//!
//! let (dw, db) = (conv.backward_weight(&x, &dy)?, conv.backward_bias(&dy)?);
//! let (step, bias_step) = state.precondition_weight(&dw, &db)?;
//! assert_eq!(step.shape(), dw.shape());
//! assert_eq!(bias_step.map(|step| step.len()), Some(2));
//! # Ok::<(), convmat::Error>(())
//! ```
//!
//! # Promises
//!
//! - **Run-time devices.** [`Device::best`] never fails; operands on different devices are an error that
//!   names both; no operation copies its operands or results between host and device behind the caller's
//!   back. What converts or compares ([`Tensor::cast`], `==`) works on the host and says so. See [`Device`].
//! - **Every lowering has an `_into` form** that writes a caller's buffer, all of it, and a **plan**: see
//!   below. Operators plan by themselves.
//! - **Deterministic.** The same call gives the same bytes, whatever the number of threads; random vectors
//!   come from a seed. Threads are rayon's: the global pool, or a caller's through `ThreadPool::install`.
//! - **Half types are summed in `f32`** and rounded once.
//! - **Bad input is an [`enum@Error`]** that names the argument and its value. Nothing panics on what a
//!   caller gives but `*`, `+` and `-` of operators whose shapes or devices differ, for which
//!   [`Operator::compose`], [`Operator::plus`] and [`Operator::minus`] return an error. `Clone` has no error to return: cloning a tensor or matrix for which memory does not
//!   suffice ends as cloning a `Vec` does; [`TensorView::to_tensor`] and [`Csr::try_clone`] return an error.
//!
//! # Plans
//!
//! Every lowering can be planned once and run many times, as with FFTW, cuFFT or cuDNN:
//!
//! ```
//! use convmat::{Conv, Device, PlanOptions, Tensor};
//!
//! let (device, conv) = (Device::best(), Conv::new([3, 3]).padding([1, 1]));
//! let (x, weight) = ([1, 2, 8, 8], [4, 2, 3, 3]);
//! let plan = conv.plan_forward::<f32>(&device, &x, &weight, false, PlanOptions::new())?;
//! println!("{plan}"); // the algorithm and why, the passes, workspace, FLOP and bytes
//!
//! let mut workspace = plan.make_workspace()?;
//! let (x, weight) = (Tensor::zeros(&device, &x)?, Tensor::zeros(&device, &weight)?);
//! let mut y = Tensor::zeros(&device, plan.result_shape())?;
//! for _ in 0..3 {
//!     plan.run(&x, &weight, None, &mut y, &mut workspace)?;
//! }
//! # Ok::<(), convmat::Error>(())
//! ```
//!
//! Planning checks the shapes, chooses the algorithm and its tiles, makes the index tables, and on CUDA
//! compiles the kernels. A run does none of that and allocates nothing; on CUDA it only queues launches and
//! products, so it may be captured in a CUDA graph. Plans are handles that threads share. The one-call
//! forms make a plan and run it.
//!
//! # Features
//!
//! | feature | default | adds |
//! |---|---|---|
//! | `io` | yes | [`io`]: npy, npz, safetensors and scipy.sparse files |
//! | `cuda` | yes | CUDA GPUs; nothing of CUDA is needed to build, and what is missing at run time is reported by [`Device::probe`] |
//! | `simulator` | no | `Device::simulator`: the CUDA kernels on the CPU, to test them |
//! | `cli` | no | the command line `convmat` |
//! | `sprs` | no | views of assembled matrices for the sprs crate |
//! | `dynamic-linking` | no | links the CUDA libraries instead of loading them |
//!
//! # CUDA
//!
//! Kernels are compiled by NVRTC for the layer and the GPU at hand when they are first needed, kept in memory
//! and on disk (`CONVMAT_CACHE_DIR`); `Device::prepare` compiles all that some work needs at once. Work is
//! queued on the device's stream, and only reads to the host wait for it. Half types are multiplied by tensor
//! cores where there are any; `f32` is strict IEEE arithmetic. Results are the same bytes each time.
//!
//! The simulator runs the same kernels and the same launches on the CPU and is a detector: threads run in
//! shuffled order, shared and fresh memory is poisoned, and accesses out of bounds, barriers that not all
//! threads reach, warps that diverge and asynchronous copies that nobody waited for are errors. Its sanitizer
//! finds races and reads of what was never written (`Simulation::sanitizer`). It can also count what launches
//! cost: see `Simulation::profiling`.

mod conv;
mod covariance;
mod device;
mod dispatch;
mod element;
mod error;
mod filter;
mod fold;
mod geometry;
#[cfg(feature = "io")]
pub mod io;
mod kfac;
mod matrix;
mod memory;
mod operator;
mod panel;
mod patches;
mod per_example;
mod plan;
mod product;
mod sparse;
mod spectrum;
mod stream;
mod tensor;
mod unfold;
mod workers;

pub use conv::{
    BackwardBiasPlan, BackwardInputPlan, BackwardWeightPlan, ForwardPlan, TransposedPlan,
};
pub use covariance::{CovarianceOptions, CovariancePlan, SymmetricStorage, Update, WeightSharing};
#[cfg(feature = "cuda")]
pub use cudarc;
#[cfg(feature = "simulator")]
pub use device::cuda::profile::{
    GlobalAccesses, LaunchProfile, Limiter, Model, Operations, Profiling, Sass, SassCounts,
    SassWidths, SharedAccesses, Target,
};
#[cfg(gpu)]
pub use device::cuda::{CudaDevice, CudaGraph, KernelInfo, KernelOptions};
#[cfg(feature = "simulator")]
pub use device::cuda::{Machine, Simulation};
pub use device::{Device, Probe};
pub use element::{Accumulator, DType, Element, IndexWidth};
pub use error::{Error, Result};
pub use filter::FilterPlan;
pub use fold::FoldPlan;
pub use geometry::{AxisMap, AxisRows, Conv, Geometry, Layout, Padding, PaddingMode};
/// The crate that [`Element`] takes its half types from.
pub use half;
pub use kfac::{
    Convention, FactorEigen, FactorScales, KfacLayer, KfacMethod, KfacOptions, KfacState,
    LevenbergMarquardt, LowRankBound,
};
pub use matrix::{
    Coo, Csc, Csr, CsrBuffers, CsrTarget, Index, IndexView, Indices, MatrixPlan, MatrixSize,
    Product, ProductPlan, Row,
};
pub use operator::Operator;
pub use per_example::{
    ClippedGradient, ClippedGradientPlan, GradientNormsPlan, PerExampleGradientsPlan,
    PerExampleOptions, RotatedSecondMomentPlan,
};
pub use plan::{Algorithm, Alternative, Explanation, Pass, PlanOptions, Workspace};
pub use sparse::{
    Pruning, SparseBackwardInputPlan, SparseBackwardWeightPlan, SparseForwardPlan,
    SparseTransposedPlan, SparseWeight,
};
pub use spectrum::{
    CircularSpectrum, CircularTriplets, DensityOptions, Estimate, Method, Norm, NormBound,
    NormOptions, Progress, SmallestValue, SpectralDensity, Spectrum, SpectrumOptions, Top,
    TorusKernel, product_bound,
};
pub use tensor::{OptionalView, Tensor, TensorView, TensorViewMut};
pub use unfold::UnfoldPlan;
