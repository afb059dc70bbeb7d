//! What a computation will do, and why: chosen once, run many times.
//!
//! Every operation is a plan and its run, as in FFTW, cuFFT and cuDNN. A capability's `mod.rs` checks the
//! call's shapes, chooses, and keeps what it found: index tables and tiles on the CPU, compiled kernels
//! with their arguments on CUDA. A run only computes. The one-call forms make a plan, and run it once.

mod algorithm;
mod explanation;
mod workspace;

use std::sync::Arc;

pub use algorithm::Algorithm;
pub use explanation::{Alternative, Explanation, Pass};
pub use workspace::Workspace;

#[cfg(gpu)]
use crate::device::FULL_ALIGNMENT;
#[cfg(gpu)]
use crate::device::cuda::Program;
use crate::device::{Device, common_alignment};
use crate::element::{Element, IndexWidth};
use crate::error::{Error, Result};
use crate::tensor::TensorView;
use crate::workers::Workers;

/// What a caller wishes of a plan. By default, whatever is fastest.
///
/// Nothing of it changes a result beyond rounding, which only [`PlanOptions::allow_tf32`] and
/// [`PlanOptions::allow_winograd`] make coarser, and every plan is deterministic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PlanOptions {
    pub(crate) algorithm: Algorithm,
    pub(crate) workspace_limit: Option<u64>,
    pub(crate) alignment: Option<u64>,
    /// Whether the algorithm is what was left when no other had room enough.
    pub(crate) last_resort: bool,
    pub(crate) index_width: Option<IndexWidth>,
    pub(crate) tf32: bool,
    pub(crate) winograd: bool,
}

impl PlanOptions {
    /// Whatever is fastest.
    pub fn new() -> Self {
        PlanOptions::default()
    }

    /// How a convolution is computed. Covariances know `auto`, `naive`, `shifted` (lags on all axes) and
    /// `im2col` (tiles of patches) on the CPU; other operations know one way only.
    pub fn algorithm(self, algorithm: Algorithm) -> Self {
        PlanOptions { algorithm, ..self }
    }

    /// Bytes of workspace that the plan may take at most: fewer workers then share the work on the CPU,
    /// tiles are smaller on CUDA, and [`Algorithm::Auto`] is `naive`, which takes none, where no other
    /// algorithm fits. Another plan that needs more all the same is refused with [`Error::Invalid`].
    pub fn workspace_limit(self, bytes: u64) -> Self {
        PlanOptions { workspace_limit: Some(bytes), ..self }
    }

    /// The power of two that divides the addresses of all operands on a CUDA device, in bytes. By default
    /// 16, which all tensors of this crate have, as has memory that the driver allocates; parts of such
    /// memory may have less. Kernels for smaller alignments move less at a time.
    pub fn alignment(self, bytes: u64) -> Self {
        PlanOptions { alignment: Some(bytes), ..self }
    }

    /// How wide row pointers and columns of an assembled matrix are. By default as wide as its size takes:
    /// [`crate::MatrixSize::index_width`].
    pub fn index_width(self, width: IndexWidth) -> Self {
        PlanOptions { index_width: Some(width), ..self }
    }

    /// Whether convolutions of `f32` and their gradients may be multiplied by tensor cores, on CUDA devices of
    /// capability 8.0 and above; others ignore it. By default they may not: `f32` is `f32`.
    ///
    /// Both operands are then rounded to TF32, 10 bits of fraction in place of 23, to the nearest, ties away from
    /// zero, while sums stay `f32`. That changes each operand by 2⁻¹¹ of itself at most and a result by
    /// (2⁻¹⁰ + 2⁻²²)·Σ|w·x|, beside what sums of `f32` are rounded by. Integers up to 2048 are multiplied exactly.
    /// The algorithms `implicit`, `im2col` and `shifted` do so, the latter by cuBLAS where that is found, which does
    /// not say how it rounds; [`Explanation::tf32`] tells whether a plan does.
    pub fn allow_tf32(self, allow: bool) -> Self {
        PlanOptions { tf32: allow, ..self }
    }

    /// Whether [`Algorithm::Auto`] may be [`Algorithm::Winograd`] on the CPU, where that is expected to be faster. By
    /// default it may not; CUDA devices have no such algorithm and ignore it.
    ///
    /// Outputs are then made of sums and differences of inputs, which are larger than what they cancel to. Measured
    /// on uniform operands in `f32` against `f64`, in parts of a typical result (its root mean square):
    ///
    /// | layer | typical error, and directly | largest error, and directly |
    /// |---|---|---|
    /// | 3×3, 256 channels on 14² | 5.0·10⁻⁷, 2.8·10⁻⁷ | 2.9·10⁻⁶, 1.8·10⁻⁶ |
    /// | 5×5, 96 channels on 27² | 1.1·10⁻⁶, 2.8·10⁻⁷ | 6.2·10⁻⁶, 1.7·10⁻⁶ |
    /// | 3×3×3, 64 channels on 8×14² | 1.9·10⁻⁶, 2.7·10⁻⁷ | 2.1·10⁻⁵, 1.8·10⁻⁶ |
    ///
    /// No error was found to exceed 60 units of roundoff of the largest Σ|w·x| of the result, in any of the types
    /// that sums have. An infinite input or one that is not a number makes all outputs of its tile that.
    pub fn allow_winograd(self, allow: bool) -> Self {
        PlanOptions { winograd: allow, ..self }
    }

    /// Makes a plan with these options; where `auto` would exceed the workspace allowed, the one without.
    pub(crate) fn within_limit<P>(self, make: impl Fn(PlanOptions) -> Result<P>) -> Result<P> {
        match make(self) {
            Err(Error::Invalid { argument, .. })
                if argument == LIMIT && self.algorithm == Algorithm::Auto =>
            {
                if self.winograd {
                    return PlanOptions { winograd: false, ..self }.within_limit(make);
                }
                make(PlanOptions { algorithm: Algorithm::Naive, last_resort: true, ..self })
            }
            made => made,
        }
    }

    /// For operands at these addresses.
    pub(crate) fn for_addresses(addresses: &[u64]) -> Self {
        PlanOptions::new().alignment(common_alignment(addresses))
    }

    /// The alignment, checked.
    #[cfg(gpu)]
    pub(crate) fn alignment_for(&self, element: usize) -> Result<u64> {
        let alignment = self.alignment.unwrap_or(FULL_ALIGNMENT).min(FULL_ALIGNMENT);
        if !alignment.is_power_of_two() || alignment < element as u64 {
            let reason = format!(
                "it must be a power of two, and a multiple of an element's {element} bytes"
            );
            return Err(Error::invalid("alignment", alignment, reason));
        }
        Ok(alignment)
    }
}

/// The parts that all plans have: where it runs, what it does, and the checks of a run's operands. `C` is
/// what the capability keeps for the CPU.
#[derive(Debug)]
pub(crate) struct Plan<C> {
    device: Device,
    explanation: Explanation,
    /// What each operand is called, and its shape.
    operands: Vec<(&'static str, Vec<usize>)>,
    steps: Steps<C>,
}

/// How a plan is carried out.
#[derive(Debug)]
pub(crate) enum Steps<C> {
    Cpu {
        plan: C,
        workers: Workers,
    },
    #[cfg(gpu)]
    Cuda(Program),
}

impl<C> Steps<C> {
    /// What the capability made for the CPU.
    pub(crate) fn on_cpu((plan, workers): (C, Workers)) -> Self {
        Steps::Cpu { plan, workers }
    }

    /// Bytes of workspace.
    fn workspace(&self) -> u64 {
        match self {
            Steps::Cpu { workers, .. } => workers.workspace() as u64,
            #[cfg(gpu)]
            Steps::Cuda(program) => program.workspace() as u64,
        }
    }
}

impl<C> Plan<C> {
    /// A plan of these steps, whose result is the last operand. Fails where it takes more workspace than
    /// `options` allow.
    pub(crate) fn new(
        device: &Device,
        options: &PlanOptions,
        mut explanation: Explanation,
        operands: Vec<(&'static str, Vec<usize>)>,
        mut steps: Steps<C>,
    ) -> Result<Arc<Self>> {
        if let (Steps::Cpu { workers, .. }, Some(limit)) = (&mut steps, options.workspace_limit) {
            *workers = workers.within(limit);
        }
        if options.last_resort {
            explanation.reason = "no other algorithm has room in the workspace allowed".into();
        }
        explanation.device = device.to_string();
        explanation.workspace_bytes = steps.workspace();
        #[cfg(gpu)]
        if let Steps::Cuda(program) = &steps {
            explanation.passes = program.queued().map(Pass::queued).collect();
            explanation.tf32 = program.rounds_to_tf32();
        }
        if let Some(limit) = options.workspace_limit
            && explanation.workspace_bytes > limit
        {
            let reason = format!(
                "{} by {} needs {} bytes",
                explanation.operation, explanation.algorithm, explanation.workspace_bytes
            );
            return Err(Error::invalid(LIMIT, limit, reason));
        }
        log::debug!("planned {explanation}");
        Ok(Arc::new(Plan { device: device.clone(), explanation, operands, steps }))
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    pub(crate) fn explanation(&self) -> &Explanation {
        &self.explanation
    }

    pub(crate) fn steps(&self) -> &Steps<C> {
        &self.steps
    }

    /// The shape of the operand with this number.
    pub(crate) fn shape(&self, operand: usize) -> &[usize] {
        &self.operands[operand].1
    }

    /// The shape of the result, which is the last operand.
    pub(crate) fn result_shape(&self) -> &[usize] {
        self.shape(self.last())
    }

    /// The number of the last operand.
    pub(crate) fn last(&self) -> usize {
        self.operands.len() - 1
    }

    pub(crate) fn workspace(&self) -> u64 {
        self.explanation.workspace_bytes
    }

    /// A workspace of the size that the plan needs.
    pub(crate) fn make_workspace(&self) -> Result<Workspace<'static>> {
        Workspace::new(&self.device, self.workspace())
    }

    /// Fails unless the operands of a run are those that were planned for: number, shape and device.
    pub(crate) fn check(&self, operands: &[(usize, &[usize], &Device)]) -> Result<()> {
        for &(number, shape, device) in operands {
            let (name, expected) = &self.operands[number];
            if shape != expected {
                return Err(Error::shape(*name, format!("{expected:?}"), shape));
            }
            if *device != self.device {
                return Err(Error::DeviceMismatch {
                    left: if number == 0 { "the plan" } else { self.operands[0].0 }.into(),
                    left_device: self.device.to_string(),
                    right: name.to_string(),
                    right_device: device.to_string(),
                });
            }
        }
        Ok(())
    }

    /// Fails unless there is an operand of this name where one was planned for, and none where not.
    pub(crate) fn check_optional<T: Element>(
        &self,
        name: &'static str,
        operand: Option<&TensorView<'_, T>>,
    ) -> Result<()> {
        let planned = self.operands.iter().position(|(operand, _)| *operand == name);
        match (operand, planned) {
            (Some(operand), Some(number)) => {
                self.check(&[(number, operand.shape(), &operand.device())])
            }
            (None, None) => Ok(()),
            (Some(operand), None) => {
                let value = format!("{:?}", operand.shape());
                Err(Error::invalid(name, value, "the plan was made without one"))
            }
            (None, Some(_)) => Err(Error::invalid(name, "none", "the plan was made with one")),
        }
    }

    /// Queues the program on these operands, in the order of the plan's.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an address that is not as aligned as planned, or too small a workspace;
    /// [`Error::DeviceMismatch`] for a workspace elsewhere; [`Error::Device`].
    ///
    /// # Safety
    /// The operands were found to be those that were planned for by [`Plan::check`], and are borrowed, for
    /// writing where they are results.
    #[cfg(gpu)]
    pub(crate) unsafe fn queue(
        &self,
        program: &Program,
        addresses: &[u64],
        workspace: &mut Workspace<'_>,
    ) -> Result<()> {
        // SAFETY: passed on to the caller.
        unsafe { self.queue_with(program, addresses, &[], workspace) }
    }

    /// [`Plan::queue`] with the numbers that each run gives. A captured graph keeps those of its capture.
    ///
    /// # Errors
    /// As [`Plan::queue`].
    ///
    /// # Safety
    /// As [`Plan::queue`].
    #[cfg(gpu)]
    pub(crate) unsafe fn queue_with(
        &self,
        program: &Program,
        addresses: &[u64],
        numbers: &[f64],
        workspace: &mut Workspace<'_>,
    ) -> Result<()> {
        let alignment = program.alignment();
        for (address, (name, _)) in addresses.iter().zip(&self.operands) {
            if !address.is_multiple_of(alignment) {
                let reason = format!(
                    "the plan was made for multiples of {alignment} bytes: see PlanOptions::alignment"
                );
                return Err(Error::invalid(
                    format!("address of {name}"),
                    format!("{address:#x}"),
                    reason,
                ));
            }
        }
        let workspace = workspace.cuda(&self.device, program.workspace())?;
        // SAFETY: promised by the caller; the workspace is as large as the program needs.
        unsafe { program.run(addresses, numbers, workspace) }
    }
}

/// What errors call the workspace that options allow.
const LIMIT: &str = "workspace limit";

/// What a bias is called among the operands.
pub(crate) const BIAS: &str = "bias";

/// Declares the public type of a capability's plans, of one element type or of those that are named, with
/// what all plans offer. A field may follow for what
/// the capability keeps besides, wherever runs compute.
macro_rules! plan_type {
    ($(#[$doc:meta])* $name:ident, $cpu:ty $(, $field:ident: $kind:ty)?) => {
        $crate::plan::plan_type! { $(#[$doc])* $name<T>, $cpu $(, $field: $kind)? }
    };
    ($(#[$doc:meta])* $name:ident<$($element:ident),+>, $cpu:ty $(, $field:ident: $kind:ty)?) => {
        $(#[$doc])*
        ///
        /// A handle: clones share the tables and kernels, and may be used from any thread.
        pub struct $name<$($element),+> {
            plan: std::sync::Arc<$crate::plan::Plan<$cpu>>,
            $($field: $kind,)?
            elements: std::marker::PhantomData<fn() -> ($($element,)+)>,
        }

        impl<$($element),+> $name<$($element),+> {
            fn of(
                plan: std::sync::Arc<$crate::plan::Plan<$cpu>>,
                $($field: $kind,)?
            ) -> Self {
                $name { plan, $($field,)? elements: std::marker::PhantomData }
            }

            /// What a run does, and why.
            pub fn explanation(&self) -> &$crate::plan::Explanation {
                self.plan.explanation()
            }

            /// Where runs compute.
            pub fn device(&self) -> &$crate::device::Device {
                self.plan.device()
            }

            /// The shape of what a run writes.
            pub fn result_shape(&self) -> &[usize] {
                self.plan.result_shape()
            }

            /// Bytes of workspace that a run takes. Nothing is allocated to find out.
            pub fn workspace(&self) -> u64 {
                self.plan.workspace()
            }

            /// A workspace of that size, to be used for any number of runs.
            ///
            /// # Errors
            /// [`crate::Error::Allocation`] when there is no room for it.
            pub fn make_workspace(&self) -> $crate::error::Result<$crate::plan::Workspace<'static>> {
                self.plan.make_workspace()
            }
        }

        impl<$($element),+> Clone for $name<$($element),+> {
            fn clone(&self) -> Self {
                $name::of(self.plan.clone(), $(self.$field.clone(),)?)
            }
        }

        impl<$($element),+> std::fmt::Debug for $name<$($element),+> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_tuple(stringify!($name)).field(self.explanation()).finish()
            }
        }

        /// The explanation, over several lines.
        impl<$($element),+> std::fmt::Display for $name<$($element),+> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.explanation().fmt(f)
            }
        }
    };
}
pub(crate) use plan_type;
