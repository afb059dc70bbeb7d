//! Spectra and norms of layers.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use convmat::{
    Conv, Device, Method, NormOptions, Operator, SpectrumOptions, Tensor, TensorView,
    TensorViewMut, Top,
};

use super::job::{Answer, Buffer, Buffers, Job, Operands, Result};

/// What is asked of every weight.
#[derive(Clone, Copy)]
pub enum Question {
    /// So many of the largest values, to residuals of this part of the largest.
    Largest(usize, f64),
    /// As many by two power iterations.
    LowRank(usize),
    /// All values of a circulant layer.
    Circular,
    /// The norm, within 1 %.
    Norm,
}

/// The values that are compared, and timed.
pub const LARGEST: Question = Question::Largest(6, 1e-6);
/// The sketch of `torch.svd_lowrank`, and how good its values are.
pub const LOW_RANK: Question = Question::LowRank(300);
pub const LOW_RANK_REFERENCE: Question = Question::Largest(300, 1e-4);

/// A question about layers that differ in nothing but their weights.
pub struct Spectra<const D: usize> {
    conv: Conv<D>,
    size: [usize; D],
    weights: Vec<Tensor<f32>>,
    question: Question,
    /// There is no form that writes into a caller's.
    none: [Buffer; 0],
}

/// What was found, weight after weight.
#[derive(Default)]
struct Found {
    values: Vec<f64>,
    /// In parts of the largest value.
    residuals: Vec<f64>,
    probabilistic: Vec<f64>,
    upper: Vec<f64>,
    applications: Vec<f64>,
    /// Seconds in applications, and in all, of iterations on many vectors.
    seconds: Vec<f64>,
}

impl<const D: usize> Spectra<D> {
    pub fn new(operands: &Operands, question: Question) -> Result<Self> {
        let shape = operands.shape;
        let weights = operands.read_all("w", &shape.weight_shape())?;
        let (conv, size) = (shape.conv(), shape.input_size());
        Ok(Spectra { conv, size, weights, question, none: [] })
    }
}

impl<const D: usize> Job for Spectra<D> {
    fn fresh(&self) -> Result<Box<dyn Answer>> {
        let mut found = Found::default();
        for weight in &self.weights {
            found.add(&self.conv.operator(weight, self.size)?, self.question)?;
        }
        Ok(Box::new(found))
    }

    fn into(&mut self) -> Result<()> {
        Err("spectra have no such form".into())
    }

    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.none
    }
}

impl Found {
    fn add(&mut self, operator: &Operator<f32>, question: Question) -> Result<()> {
        let options = match question {
            Question::Norm => return self.add_norm(operator),
            Question::Largest(count, tolerance) => {
                let options = SpectrumOptions::new().method(Method::Lanczos).tolerance(tolerance);
                options.top(Top::Count(count))
            }
            Question::LowRank(count) => {
                let options = SpectrumOptions::new().method(Method::Randomized).iterations(2);
                options.top(Top::Count(count))
            }
            Question::Circular => {
                SpectrumOptions::new().method(Method::Circular).top(Top::All).vectors(false)
            }
        };
        let nanoseconds = Arc::new(AtomicU64::new(0));
        let iterates = !matches!(question, Question::Circular);
        let timed = iterates.then(|| timed(operator, &nanoseconds));
        let operator = timed.as_ref().unwrap_or(operator);
        let start = Instant::now();
        let found = operator.spectrum(&options, &mut |_| ControlFlow::Continue(()))?;
        if iterates {
            let applying = nanoseconds.load(Ordering::Relaxed) as f64 / 1e9;
            self.seconds.extend([applying, start.elapsed().as_secs_f64()]);
        }
        let largest = found.values.first().copied().unwrap_or(0.0);
        if matches!(question, Question::Largest(..)) && !found.is_converged() {
            let residual = found.residuals.iter().fold(0f64, |most, &r| most.max(r / largest));
            let missing = found.converged.iter().filter(|&&converged| !converged).count();
            let (values, spent) = (found.values.len(), found.applications);
            return Err(format!(
                "{missing} of {values} values have not converged after {spent} applications: \
                 residuals are up to {residual:.1e} of the largest value"
            )
            .into());
        }
        self.residuals.extend(found.residuals.iter().map(|residual| residual / largest));
        self.values.extend(found.values);
        self.applications.push(found.applications as f64);
        Ok(())
    }

    fn add_norm(&mut self, operator: &Operator<f32>) -> Result<()> {
        let options = NormOptions::new().gap(0.01);
        let norm = operator.norm(&options, &mut |_| ControlFlow::Continue(()))?;
        self.values.push(norm.lower);
        self.probabilistic.push(norm.probabilistic_upper.unwrap_or(f64::INFINITY));
        self.upper.push(norm.upper.unwrap_or(f64::INFINITY));
        self.applications.push(norm.applications as f64);
        Ok(())
    }
}

/// The same operator, adding up the time that its applications take.
fn timed(operator: &Operator<f32>, nanoseconds: &Arc<AtomicU64>) -> Operator<f32> {
    type Apply =
        fn(&Operator<f32>, TensorView<'_, f32>, TensorViewMut<'_, f32>) -> convmat::Result<()>;
    let apply = |apply: Apply| {
        let (operator, nanoseconds) = (operator.clone(), nanoseconds.clone());
        move |x: TensorView<'_, f32>, y: TensorViewMut<'_, f32>| {
            let start = Instant::now();
            let done = apply(&operator, x, y);
            nanoseconds.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
            done
        }
    };
    let forward = apply(|operator, x, y| operator.apply_into(x, y));
    let adjoint = apply(|operator, y, x| operator.apply_adjoint_into(y, x));
    Operator::from_fn(&Device::Cpu, operator.shape(), forward, adjoint)
}

impl Answer for Found {
    fn parts(&self) -> Vec<(&'static str, &[u8])> {
        let parts = [
            ("values", &self.values),
            ("residuals", &self.residuals),
            ("probabilistic", &self.probabilistic),
            ("upper", &self.upper),
            ("applications", &self.applications),
            ("seconds", &self.seconds),
        ];
        parts.map(|(name, numbers)| (name, bytemuck::cast_slice(numbers))).into()
    }
}
