//! Gradients of single examples on CUDA: patches by the kernel of unfold, gradients and their rotations by
//! the product engine, and the rest by `kernels/per_example/examples.cu`.
//!
//! As many examples at a time as keep what is stored within [`BYTES`], one at least.

use std::ops::Range;

use super::problem::Problem;
use crate::device::cuda::structs::{ArrangeArgs, BiasColumnArgs, ExamplesArgs, WidenArgs};
use crate::device::cuda::{Draft, Gemm, Matrix, Pointer, Region, Spec, THREADS, blocks};
use crate::element::{Accumulator, Element};
use crate::error::Result;
use crate::geometry::Layout;
use crate::patches::pieces::Pieces;
use crate::plan::Explanation;
use crate::product::cuda::multiply;
use crate::unfold::Call;
use crate::unfold::cuda::unfold;

/// Bytes of patches and gradients at a time, unless an example's are more.
const BYTES: usize = 64 << 20;

/// The operands that all programs read.
#[derive(Clone, Copy)]
pub(super) struct Operands<T> {
    pub x: Region<T>,
    pub dy: Region<T>,
}

/// A number of a run, in the place of an operand's address: the last ones, as they are no operands.
#[derive(Clone, Copy)]
pub(super) struct Number(Pointer);

impl Number {
    pub fn of(draft: &mut Draft) -> Self {
        Number(draft.operand::<u8>(0).pointer())
    }

    /// What a run gives as its address.
    pub fn word(value: f64) -> u64 {
        value.to_bits()
    }
}

/// Operands of a program, and the problem.
pub(super) struct Examples<'p, T> {
    p: &'p Problem,
    operands: Operands<T>,
    /// Bytes of patches and gradients at a time, about.
    bytes: usize,
}

impl<'p, T: Element> Examples<'p, T> {
    /// The first two operands of a draft, whose workspace may have so many bytes.
    pub fn new(draft: &mut Draft, p: &'p Problem, limit: Option<u64>) -> Self {
        let [x, dy] = match p.transposed {
            true => [p.plain_len(), p.gathered_len()],
            false => [p.gathered_len(), p.plain_len()],
        };
        let [x, dy] = [x, dy].map(|len| draft.operand::<T>(p.batch * len));
        let limit = limit.map_or(BYTES, |limit| usize::try_from(limit).unwrap_or(BYTES));
        Examples { p, operands: Operands { x, dy }, bytes: limit.min(BYTES) }
    }

    /// Examples at a time, if each takes so many copies of its gradient.
    fn chunks<F: Accumulator>(&self, copies: usize) -> Pieces {
        let p = self.p;
        let patches = p.gathered * p.taps() * p.positions();
        let widened = p.gathered_len() + p.plain_len();
        let products = if p.transposed { p.gradient_len() } else { 0 };
        let each = patches + widened + products + copies * p.gradient_len();
        let most = self.bytes / size_of::<F>() / each.max(1);
        Pieces::new(p.batch, most.clamp(1, p.batch.max(1)))
    }

    /// All gradients, into `target`.
    pub fn gradients<F: Accumulator>(&self, draft: &mut Draft, target: Region<F>) -> Result<()> {
        let len = self.p.gradient_len();
        for chunk in self.chunks::<F>(1).each() {
            let target = target.slice(chunk.start * len..chunk.end * len);
            self.compute(draft, chunk, target)?;
        }
        Ok(())
    }

    /// All norms, into `norms`.
    pub fn norms<F: Accumulator>(&self, draft: &mut Draft, norms: Region<F>) -> Result<()> {
        self.each_chunk::<F>(draft, 1, |draft, chunk, [gradients, ..]| {
            let arguments = ExamplesArgs {
                norms: norms.slice(chunk.clone()).pointer(),
                ..self.arguments(gradients, &chunk)
            };
            let spec = Spec::new("examples.cu", "find_norms").element(F::DTYPE);
            // SAFETY: the kernel reads the gradients of the chunk's examples and writes their norms.
            unsafe { draft.launch(spec, [chunk.len() as u32, 1, 1], THREADS, &arguments) };
            Ok(())
        })
    }

    /// The sum of gradients scaled to a norm of at most `limit`, into `target`.
    pub fn clipped<F: Accumulator>(
        &self,
        draft: &mut Draft,
        norms: Region<F>,
        target: Region<F>,
        limit: Number,
    ) -> Result<()> {
        self.norms(draft, norms)?;
        if self.p.batch == 0 {
            draft.clear(target);
        }
        self.each_chunk::<F>(draft, 1, |draft, chunk, [gradients, ..]| {
            let arguments = ExamplesArgs {
                norms: norms.slice(chunk.clone()).pointer(),
                target: target.pointer(),
                scale: limit.0,
                ..self.arguments(gradients, &chunk)
            };
            self.sum::<F>(draft, "sum_clipped", &arguments)
        })
    }

    /// Squares of gradients rotated by `q_a` and `q_g`, added to `target`.
    pub fn moment<F: Accumulator>(
        &self,
        draft: &mut Draft,
        [q_a, q_g]: [Option<Region<F>>; 2],
        target: Region<F>,
        [decay, scale]: [Number; 2],
    ) -> Result<()> {
        let finish = |draft: &mut Draft, chunk: &Range<usize>, gradients: Region<F>| {
            let arguments = ExamplesArgs {
                target: target.pointer(),
                decay: decay.0,
                scale: scale.0,
                ..self.arguments(gradients, chunk)
            };
            self.sum::<F>(draft, "sum_squares", &arguments)
        };
        if self.p.batch == 0 {
            let none = draft.workspace::<F>("no gradients", 0)?;
            return finish(draft, &(0..0), none);
        }
        self.each_chunk::<F>(draft, 2, |draft, chunk, [mut gradients, mut other]| {
            for (q, left) in [(q_a, false), (q_g, true)] {
                if let Some(q) = q {
                    self.rotate(draft, chunk.len(), gradients, q, left, other)?;
                    std::mem::swap(&mut gradients, &mut other);
                }
            }
            finish(draft, &chunk, gradients)
        })
    }

    /// Has the gradients of all examples computed, and then used, some at a time, with as much memory again
    /// if there are to be two `copies`.
    fn each_chunk<F: Accumulator>(
        &self,
        draft: &mut Draft,
        copies: usize,
        mut then: impl FnMut(&mut Draft, Range<usize>, [Region<F>; 2]) -> Result<()>,
    ) -> Result<()> {
        let chunks = self.chunks::<F>(copies);
        let held = draft.held();
        let len = chunks.longest() * self.p.gradient_len();
        let gradients = draft.workspace::<F>("gradients", len)?;
        let other = draft.workspace::<F>("rotated gradients", len * (copies - 1))?;
        for chunk in chunks.each() {
            self.compute(draft, chunk.clone(), gradients)?;
            then(draft, chunk, [gradients, other])?;
        }
        draft.release(held);
        Ok(())
    }

    /// The arguments that say which gradients.
    fn arguments<F>(&self, gradients: Region<F>, chunk: &Range<usize>) -> ExamplesArgs {
        ExamplesArgs {
            gradients: gradients.pointer(),
            norms: Pointer::NULL,
            target: Pointer::NULL,
            decay: Pointer::NULL,
            scale: Pointer::NULL,
            length: self.p.gradient_len() as i64,
            examples: chunk.len() as i64,
            first: i64::from(chunk.start == 0),
        }
    }

    fn sum<F: Accumulator>(
        &self,
        draft: &mut Draft,
        entry: &'static str,
        arguments: &ExamplesArgs,
    ) -> Result<()> {
        let spec = Spec::new("examples.cu", entry).element(F::DTYPE);
        let grid = blocks(self.p.gradient_len(), THREADS)?;
        // SAFETY: the kernel reads the gradients, and norms, of as many examples as the arguments say, and
        // reads and writes the target, which is as long as one gradient.
        unsafe { draft.launch(spec, grid, THREADS, arguments) };
        Ok(())
    }

    /// An operand's elements of some examples as accumulators.
    fn read<F: Accumulator>(
        &self,
        draft: &mut Draft,
        region: Region<T>,
        chunk: &Range<usize>,
    ) -> Result<Region<F>> {
        let len = region.len() / self.p.batch.max(1);
        let region = region.slice(chunk.start * len..chunk.end * len);
        if T::DTYPE == F::DTYPE {
            return Ok(region.cast());
        }
        let wide = draft.workspace::<F>("widened operands", region.len())?;
        let arguments = WidenArgs {
            input: region.pointer(),
            output: wide.pointer(),
            length: region.len() as i64,
        };
        let spec = Spec::new("examples.cu", "widen").element(F::DTYPE).define("SOURCE", T::DTYPE);
        // SAFETY: both are of this length, and the workspace is no operand.
        unsafe { draft.launch(spec, blocks(region.len(), THREADS)?, THREADS, &arguments) };
        Ok(wide)
    }

    /// The gradients of some examples, `[example][g, O/g, d]`.
    fn compute<F: Accumulator>(
        &self,
        draft: &mut Draft,
        chunk: Range<usize>,
        target: Region<F>,
    ) -> Result<()> {
        let p = self.p;
        let held = draft.held();
        let Operands { x, dy } = self.operands;
        let (x, dy) = (self.read::<F>(draft, x, &chunk)?, self.read::<F>(draft, dy, &chunk)?);
        let [gathered, plain] = if p.transposed { [dy, x] } else { [x, dy] };
        let per_image = p.gathered * p.taps() * p.positions();
        let patches = draft.workspace::<F>("patches", chunk.len() * per_image)?;
        let call = Call {
            layout: p.layout,
            axes: p.axes.clone(),
            batch: chunk.len(),
            channels: p.gathered,
            groups: p.groups,
        };
        unfold(draft, &call, gathered, patches)?;
        let (rows, entries) = (p.plain_per_group(), p.entries());
        let (products, leading) = if p.transposed {
            let len = chunk.len() * p.groups * rows * entries;
            (draft.workspace::<F>("products", len)?, entries)
        } else {
            (target, p.columns())
        };
        self.multiply(draft, chunk.len(), plain, patches, products, leading)?;
        let spec = |entry| Spec::new("examples.cu", entry).element(F::DTYPE).layout(p.layout);
        if p.transposed {
            let arguments = ArrangeArgs {
                products: products.pointer(),
                gradients: target.pointer(),
                length: products.len() as i64,
                rows: rows as i64,
                channels: p.gathered_per_group() as i64,
                taps: p.taps() as i64,
                columns: p.columns() as i64,
            };
            let grid = blocks(products.len(), THREADS)?;
            // SAFETY: the kernel reads all products and writes an element of the gradients for each.
            unsafe { draft.launch(spec("arrange"), grid, THREADS, &arguments) };
        }
        if p.bias {
            let channels = p.groups * p.rows();
            let sums = chunk.len() * channels;
            let arguments = BiasColumnArgs {
                dy: dy.pointer(),
                gradients: target.pointer(),
                sums: sums as i64,
                channels: channels as i64,
                positions: (dy.len() / sums.max(1)) as i64,
                columns: p.columns() as i64,
            };
            // SAFETY: the kernel reads all of dy and writes the last column of the gradients' rows.
            unsafe {
                draft.launch(spec("bias_column"), blocks(sums, 8)?, THREADS, &arguments);
            }
        }
        draft.release(held);
        Ok(())
    }

    /// Plain rows by patches, for some examples and all groups, into rows `leading` apart.
    fn multiply<F: Accumulator>(
        &self,
        draft: &mut Draft,
        examples: usize,
        plain: Region<F>,
        patches: Region<F>,
        products: Region<F>,
        leading: usize,
    ) -> Result<()> {
        let p = self.p;
        let (m, n, k) = (p.plain_per_group(), p.entries(), p.positions());
        // From a group to the next, and from an example.
        let (a_steps, b_steps, first) = match p.layout {
            Layout::ChannelsFirst => ([m * k, p.plain_len()], n * k, true),
            Layout::ChannelsLast => ([m, p.plain_len()], n, false),
        };
        let [a_leading, b_leading] = if first { [k, k] } else { [p.plain, p.groups * n] };
        let steps = [a_steps, [b_steps, p.groups * n * k], [m * leading, p.groups * m * leading]];
        let by_example = p.groups >= examples;
        let (batch, times) = if by_example { (p.groups, examples) } else { (examples, p.groups) };
        let [within, between] = if by_example { [0, 1] } else { [1, 0] };
        for time in 0..times {
            let matrix = |region: Region<F>, leading, steps: [usize; 2], transposed| Matrix {
                address: region.pointer().offset(time * steps[between] * size_of::<F>()),
                leading,
                stride: steps[within],
                transposed,
            };
            let gemm = Gemm {
                dtype: F::DTYPE,
                output: F::DTYPE,
                m,
                n,
                k,
                batch,
                a: matrix(plain, a_leading, steps[0], !first),
                b: matrix(patches, b_leading, steps[1], first),
                c: matrix(products, leading, steps[2], false),
                alpha: 1.0,
                beta: 0.0,
                tf32: false,
            };
            // SAFETY: the operands have these sizes, and the products are apart from both.
            unsafe { multiply(draft, &gemm)? };
        }
        Ok(())
    }

    /// Gradients times Q, or Qᵀ times gradients from the `left`.
    fn rotate<F: Accumulator>(
        &self,
        draft: &mut Draft,
        examples: usize,
        gradients: Region<F>,
        q: Region<F>,
        left: bool,
        target: Region<F>,
    ) -> Result<()> {
        let p = self.p;
        let (m, n) = (p.rows(), p.columns());
        for group in 0..p.groups {
            let at = |region: Region<F>, step: usize| {
                region.pointer().offset(group * step * size_of::<F>())
            };
            let of_examples = |region: Region<F>| Matrix {
                address: at(region, m * n),
                leading: n,
                stride: p.gradient_len(),
                transposed: false,
            };
            let side = if left { m } else { n };
            let q =
                Matrix { address: at(q, side * side), leading: side, stride: 0, transposed: left };
            let (a, b) =
                if left { (q, of_examples(gradients)) } else { (of_examples(gradients), q) };
            let gemm = Gemm {
                dtype: F::DTYPE,
                output: F::DTYPE,
                m,
                n,
                k: side,
                batch: examples,
                a,
                b,
                c: of_examples(target),
                alpha: 1.0,
                beta: 0.0,
                tf32: false,
            };
            // SAFETY: gradients, rotation and target have these sizes, and are apart.
            unsafe { multiply(draft, &gemm)? };
        }
        Ok(())
    }
}

/// How it is done: there is one way.
pub(super) fn explain(explanation: &mut Explanation) {
    explanation.algorithm = "examples".into();
    explanation.reason =
        "patches, then a product for each example's gradient: the one way on this device".into();
}
