//! What the gradients of a batch's single examples are good for: norms, clipping, and the squares of
//! rotated gradients. But where they are asked for, they are never all stored.
//!
//! Example n's gradient by a layer's weight is, group by group, the matrix `∇W_n = Σ_t g_t·a_tᵀ`,
//! `[O/g, d]`: g_t the output gradients at position t, a_t the patch there, a 1 appended with a bias.
//!
//! | file | holds |
//! |---|---|
//! | `options.rs` | of which layer, and what clipping gives |
//! | `problem.rs` | sizes, checked; convolutions and transposed ones as one product |
//! | `gradients.rs`, `norms.rs`, `clipped.rs`, `moment.rs` | the public calls and their plans |
//! | `cpu/` | how they are computed on the CPU |
//! | `cuda.rs` | the same on CUDA, with `kernels/per_example/` |

mod clipped;
mod cpu;
#[cfg(gpu)]
mod cuda;
mod gradients;
mod moment;
mod norms;
mod options;
mod problem;

pub use clipped::ClippedGradientPlan;
pub use gradients::PerExampleGradientsPlan;
pub use moment::RotatedSecondMomentPlan;
pub use norms::GradientNormsPlan;
pub use options::{ClippedGradient, PerExampleOptions};

use std::fmt;

#[cfg(gpu)]
use crate::device::cuda::{CudaDevice, Draft, Program};
use crate::element::{Accumulator, Element};
#[cfg(gpu)]
use crate::error::Result;
use crate::plan::Explanation;
#[cfg(gpu)]
use crate::plan::PlanOptions;
use crate::tensor::TensorView;
use problem::{INPUT, OUTPUT_GRADIENT, Problem};

/// The numbers of the operands that all plans have.
const INPUT_NUMBER: usize = 0;
const OUTPUT_GRADIENT_NUMBER: usize = 1;

/// What an operation is called and computed of.
struct Of<'a> {
    operation: &'static str,
    conv: &'a dyn fmt::Display,
    problem: &'a Problem,
    shapes: [&'a [usize]; 2],
}

impl Of<'_> {
    /// What a plan says of it before anything is chosen: `flop` besides the gradients' own, and `results`,
    /// elements that are written.
    fn describe<T: Element, F: Accumulator>(&self, flop: u64, results: usize) -> Explanation {
        let Of { operation, conv, problem: p, shapes: [x, dy] } = self;
        Explanation {
            operation,
            subject: format!(
                "{INPUT} {x:?}, {OUTPUT_GRADIENT} {dy:?} {} in {}{}{}, {conv}",
                T::DTYPE,
                F::DTYPE,
                if p.bias { ", bias" } else { "" },
                if p.transposed { ", transposed" } else { "" },
            ),
            flop: (p.batch as u64).saturating_mul(p.gradient_flop()).saturating_add(flop),
            bytes: p.operand_bytes(size_of::<T>()) + (results * size_of::<F>()) as u64,
            ..Explanation::default()
        }
    }

    /// The operands that all plans have.
    fn operands(&self) -> Vec<(&'static str, Vec<usize>)> {
        let [x, dy] = self.shapes;
        vec![(INPUT, x.to_vec()), (OUTPUT_GRADIENT, dy.to_vec())]
    }

    /// The program of a plan on a CUDA device: `write` adds what follows the operands x and dy.
    #[cfg(gpu)]
    fn program<T: Element>(
        &self,
        device: &CudaDevice,
        options: &PlanOptions,
        explanation: &mut Explanation,
        write: impl FnOnce(&mut Draft, &cuda::Examples<'_, T>) -> Result<()>,
    ) -> Result<Program> {
        let alignment = options.alignment_for(size_of::<T>())?;
        let mut draft = Draft::new(device, alignment);
        let limit = options.workspace_limit;
        let examples = cuda::Examples::new(&mut draft, self.problem, limit);
        write(&mut draft, &examples)?;
        cuda::explain(explanation);
        draft.prepare()
    }
}

impl Problem {
    /// Both operands' elements, by their part in the products.
    fn operands<'a, T: Element>(
        &self,
        x: &TensorView<'a, T>,
        dy: &TensorView<'a, T>,
    ) -> cpu::Operands<'a, T> {
        let [gathered, plain] = if self.transposed { [dy, x] } else { [x, dy] };
        cpu::Operands { gathered: gathered.host(), plain: plain.host() }
    }
}
