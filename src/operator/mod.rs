//! Linear operators: layers without their bias, matrices, closures, and what algebra makes of them.
//!
//! A vector is one flattened example, and a block of them the rows of a tensor `[vectors, n]`; vectors stay
//! on the operator's device. A layer is applied by planned convolutions, and nothing is assembled.

mod conv;
mod dense;
pub(crate) mod layer;
mod matrix;
mod sparse;

use std::fmt;
use std::ops::{Add, Mul, Neg, Sub};
use std::sync::Arc;

use crate::device::Device;
use crate::element::Accumulator;
use crate::error::{Error, Result};
use crate::panel::{Target, add_scaled};
use crate::tensor::view::expect_shape;
use crate::tensor::{Tensor, TensorView, TensorViewMut};
use layer::Layer;

/// A linear operator A from vectors of `n` elements to vectors of `m`, on one device: `[m, n]` is its shape.
///
/// A handle: clones are the same operator, and may be used from any thread. Elements are `f32` or `f64`.
/// Operators are made of layers ([`crate::Conv::operator`]), matrices ([`Operator::from_csr`],
/// [`Operator::from_dense`]) and closures ([`Operator::from_fn`]), and composed with `*`, `+`, `-`,
/// [`Operator::scale`] and [`Operator::adjoint`].
///
/// ```
/// use convmat::{Conv, Device, Tensor};
/// let conv = Conv::new([3]).padding([1]);
/// let weight = Tensor::from_vec(&Device::Cpu, &[1, 1, 3], vec![1.0f64, -2.0, 1.0])?;
/// let a = conv.operator(&weight, [4])?;
/// let x = Tensor::from_vec(&Device::Cpu, &[4], vec![1.0, 2.0, 3.0, 4.0])?;
/// assert_eq!(a.apply(&x)?.into_vec()?, [0.0, 0.0, 0.0, -5.0]);
///
/// // ‖AᵀA x‖² = xᵀ(AᵀA)²x: operators multiply.
/// let normal = &a.adjoint() * &a;
/// assert_eq!(normal.apply(&x)?.into_vec()?, [0.0, 0.0, -5.0, 10.0]);
/// # Ok::<(), convmat::Error>(())
/// ```
#[derive(Clone)]
pub struct Operator<T: Accumulator> {
    shape: [usize; 2],
    device: Device,
    expression: Arc<Expression<T>>,
}

/// What an operator is made of.
pub(crate) enum Expression<T: Accumulator> {
    Identity,
    /// A convolution or its adjoint: its numbers, and what applies it.
    Layer(Layer, Box<dyn Apply<T>>),
    /// What is known by its action alone: a matrix, a closure.
    Given(Given<T>, Box<dyn Apply<T>>),
    /// The first is applied last.
    Composition(Operator<T>, Operator<T>),
    /// With their factors.
    Sum(Vec<(f64, Operator<T>)>),
    Adjoint(Operator<T>),
}

/// A caller's operand.
pub(crate) enum Given<T: Accumulator> {
    Sparse(Arc<crate::matrix::Csr<T>>),
    Dense,
    Closure,
}

/// Which of an operator and its adjoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Direction {
    Forward,
    Adjoint,
}

impl Direction {
    pub(crate) fn reversed(self) -> Self {
        match self {
            Direction::Forward => Direction::Adjoint,
            Direction::Adjoint => Direction::Forward,
        }
    }
}

/// Applies an operator, or its adjoint, to the rows of `x` and overwrites the rows of `y`.
pub(crate) trait Apply<T>: Send + Sync {
    fn apply(
        &self,
        direction: Direction,
        x: TensorView<'_, T>,
        y: TensorViewMut<'_, T>,
    ) -> Result<()>;
}

/// A closure that applies an operator to the rows of its first argument.
type Action<T> = Box<dyn Fn(TensorView<'_, T>, TensorViewMut<'_, T>) -> Result<()> + Send + Sync>;

/// A caller's closures.
struct Closures<T> {
    forward: Action<T>,
    adjoint: Action<T>,
}

impl<T: Accumulator> Apply<T> for Closures<T> {
    fn apply(
        &self,
        direction: Direction,
        x: TensorView<'_, T>,
        y: TensorViewMut<'_, T>,
    ) -> Result<()> {
        match direction {
            Direction::Forward => (self.forward)(x, y),
            Direction::Adjoint => (self.adjoint)(x, y),
        }
    }
}

impl<T: Accumulator> Operator<T> {
    fn new(shape: [usize; 2], device: &Device, expression: Expression<T>) -> Self {
        Operator { shape, device: device.clone(), expression: Arc::new(expression) }
    }

    /// The identity on vectors of `n` elements.
    pub fn identity(device: &Device, n: usize) -> Self {
        Operator::new([n, n], device, Expression::Identity)
    }

    /// An operator `[m, n]` that closures apply: `forward` overwrites its second argument `[vectors, m]`
    /// with A·x of each row of the first, `[vectors, n]`, and `adjoint` `[vectors, n]` with Aᵀ·y of each row
    /// of `[vectors, m]`. Both have to be linear, and adjoint to one another: ⟨A·x, y⟩ = ⟨x, Aᵀ·y⟩.
    ///
    /// ```
    /// use convmat::{Device, Operator};
    /// // The two elements change places, and one is tripled.
    /// let swap = Operator::<f64>::from_fn(
    ///     &Device::Cpu,
    ///     [2, 2],
    ///     |x, mut y| {
    ///         let (x, y) = (x.to_vec()?, y.as_mut_slice().expect("on the host"));
    ///         x.chunks(2).zip(y.chunks_mut(2)).for_each(|(x, y)| (y[0], y[1]) = (x[1], 3.0 * x[0]));
    ///         Ok(())
    ///     },
    ///     |y, mut x| {
    ///         let (y, x) = (y.to_vec()?, x.as_mut_slice().expect("on the host"));
    ///         y.chunks(2).zip(x.chunks_mut(2)).for_each(|(y, x)| (x[0], x[1]) = (3.0 * y[1], y[0]));
    ///         Ok(())
    ///     },
    /// );
    /// assert!((swap.svd(2)?.values[0] - 3.0).abs() < 1e-9);
    /// # Ok::<(), convmat::Error>(())
    /// ```
    pub fn from_fn(
        device: &Device,
        shape: [usize; 2],
        forward: impl Fn(TensorView<'_, T>, TensorViewMut<'_, T>) -> Result<()> + Send + Sync + 'static,
        adjoint: impl Fn(TensorView<'_, T>, TensorViewMut<'_, T>) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        let closures = Closures { forward: Box::new(forward), adjoint: Box::new(adjoint) };
        Operator::new(shape, device, Expression::Given(Given::Closure, Box::new(closures)))
    }

    /// Rows m and columns n: the lengths of results and of operands, in elements.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Where it is applied.
    pub fn device(&self) -> &Device {
        &self.device
    }

    pub(crate) fn expression(&self) -> &Expression<T> {
        &self.expression
    }

    /// A·x for one vector `[n]`, or for each row of `[vectors, n]`: shape `[m]` or `[vectors, m]`.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::DeviceMismatch`] for an operand that does not fit; what applying fails
    /// with.
    pub fn apply<'x>(&self, x: impl Into<TensorView<'x, T>>) -> Result<Tensor<T>> {
        self.applied(Direction::Forward, x.into())
    }

    /// Aᵀ·y for one vector `[m]`, or for each row of `[vectors, m]`: shape `[n]` or `[vectors, n]`.
    ///
    /// # Errors
    /// As [`Operator::apply`].
    pub fn apply_adjoint<'y>(&self, y: impl Into<TensorView<'y, T>>) -> Result<Tensor<T>> {
        self.applied(Direction::Adjoint, y.into())
    }

    /// [`Operator::apply`] into a caller's tensor, all of which is overwritten.
    ///
    /// # Errors
    /// As [`Operator::apply`]; [`Error::Shape`] also for a result of another shape.
    pub fn apply_into<'x, 'y>(
        &self,
        x: impl Into<TensorView<'x, T>>,
        y: impl Into<TensorViewMut<'y, T>>,
    ) -> Result<()> {
        self.checked(Direction::Forward, x.into(), y.into())
    }

    /// [`Operator::apply_adjoint`] into a caller's tensor, all of which is overwritten.
    ///
    /// # Errors
    /// As [`Operator::apply_into`].
    pub fn apply_adjoint_into<'x, 'y>(
        &self,
        y: impl Into<TensorView<'y, T>>,
        x: impl Into<TensorViewMut<'x, T>>,
    ) -> Result<()> {
        self.checked(Direction::Adjoint, y.into(), x.into())
    }

    fn applied(&self, direction: Direction, x: TensorView<'_, T>) -> Result<Tensor<T>> {
        let mut shape = x.shape().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = self.extents(direction)[1];
        }
        let mut y = Tensor::for_result(&self.device, &shape)?;
        self.checked(direction, x, y.view_mut())?;
        Ok(y)
    }

    /// The length of operands, and of results.
    fn extents(&self, direction: Direction) -> [usize; 2] {
        match direction {
            Direction::Forward => [self.shape[1], self.shape[0]],
            Direction::Adjoint => self.shape,
        }
    }

    fn checked(
        &self,
        direction: Direction,
        x: TensorView<'_, T>,
        y: TensorViewMut<'_, T>,
    ) -> Result<()> {
        let [from, to] = self.extents(direction);
        let (vectors, result) = match *x.shape() {
            [len] if len == from => (1, vec![to]),
            [vectors, len] if len == from => (vectors, vec![vectors, to]),
            _ => {
                let expected = format!("[{from}] or [vectors, {from}]");
                return Err(Error::shape("the operator's operand", expected, x.shape()));
            }
        };
        expect_shape("the operator's result", &result, y.shape())?;
        for (name, device) in
            [("the operator's operand", x.device()), ("the operator's result", y.device())]
        {
            if device != self.device {
                return Err(Error::DeviceMismatch {
                    left: "the operator".into(),
                    left_device: self.device.to_string(),
                    right: name.into(),
                    right_device: device.to_string(),
                });
            }
        }
        let (x, y) = (x.with_shape(&[vectors, from]), y.with_shape(&[vectors, to]));
        self.run(direction, x, y)
    }

    /// Applies it to blocks `[vectors, n]` that are known to fit.
    pub(crate) fn run(
        &self,
        direction: Direction,
        x: TensorView<'_, T>,
        mut y: TensorViewMut<'_, T>,
    ) -> Result<()> {
        let vectors = x.shape()[0];
        if vectors == 0 {
            return Ok(());
        }
        match &*self.expression {
            Expression::Identity => add_scaled(1.0, &x, y, Target::Replaced),
            Expression::Layer(_, apply) | Expression::Given(_, apply) => {
                apply.apply(direction, x, y)
            }
            Expression::Adjoint(inner) => inner.run(direction.reversed(), x, y),
            Expression::Composition(outer, inner) => {
                let (first, second) = match direction {
                    Direction::Forward => (inner, outer),
                    Direction::Adjoint => (outer, inner),
                };
                let between = [vectors, first.extents(direction)[1]];
                let mut between = Tensor::for_result(&self.device, &between)?;
                first.run(direction, x, between.view_mut())?;
                second.run(direction, between.view(), y)
            }
            Expression::Sum(terms) => {
                let mut term = Tensor::for_result(&self.device, y.shape())?;
                let mut target = Target::Replaced;
                for (factor, operator) in terms {
                    operator.run(direction, x.clone(), term.view_mut())?;
                    add_scaled(*factor, &term.view(), y.reborrow(), target)?;
                    target = Target::Kept;
                }
                Ok(())
            }
        }
    }

    /// Aᵀ.
    pub fn adjoint(&self) -> Self {
        if let Expression::Adjoint(inner) = &*self.expression {
            return inner.clone();
        }
        let [m, n] = self.shape;
        Operator::new([n, m], &self.device, Expression::Adjoint(self.clone()))
    }

    /// factor·A.
    pub fn scale(&self, factor: f64) -> Self {
        Operator::new(self.shape, &self.device, Expression::Sum(vec![(factor, self.clone())]))
    }

    /// I − A.
    ///
    /// # Errors
    /// [`Error::Shape`] unless A is square.
    pub fn complement(&self) -> Result<Self> {
        let [m, n] = self.shape;
        expect_shape("the operator", &[n, n], &[m, n])?;
        Operator::identity(&self.device, n).minus(self)
    }

    /// A·B: `inner` is applied first.
    ///
    /// # Errors
    /// [`Error::Shape`] when B does not give what A takes; [`Error::DeviceMismatch`].
    pub fn compose(&self, inner: &Self) -> Result<Self> {
        let shape = [self.shape[0], inner.shape[1]];
        if inner.shape[0] != self.shape[1] {
            let expected = format!("[{}, n], what the outer operator takes", self.shape[1]);
            return Err(Error::shape("the inner operator", expected, &inner.shape));
        }
        self.same_device(inner)?;
        let composition = Expression::Composition(self.clone(), inner.clone());
        Ok(Operator::new(shape, &self.device, composition))
    }

    /// A + B.
    ///
    /// # Errors
    /// [`Error::Shape`] when their shapes differ; [`Error::DeviceMismatch`].
    pub fn plus(&self, other: &Self) -> Result<Self> {
        self.sum(1.0, other)
    }

    /// A − B.
    ///
    /// # Errors
    /// As [`Operator::plus`].
    pub fn minus(&self, other: &Self) -> Result<Self> {
        self.sum(-1.0, other)
    }

    /// A + factor·B.
    fn sum(&self, factor: f64, other: &Self) -> Result<Self> {
        expect_shape("the operator to be added", &self.shape, &other.shape)?;
        self.same_device(other)?;
        let terms = vec![(1.0, self.clone()), (factor, other.clone())];
        Ok(Operator::new(self.shape, &self.device, Expression::Sum(terms)))
    }

    fn same_device(&self, other: &Self) -> Result<()> {
        if self.device == other.device {
            return Ok(());
        }
        Err(Error::DeviceMismatch {
            left: "the operator".into(),
            left_device: self.device.to_string(),
            right: "the other operator".into(),
            right_device: other.device.to_string(),
        })
    }
}

/// [`Operator::compose`].
///
/// # Panics
/// When the shapes or devices do not fit, as products of ndarray's matrices do; [`Operator::compose`]
/// returns an error.
impl<T: Accumulator> Mul for &Operator<T> {
    type Output = Operator<T>;

    fn mul(self, inner: Self) -> Operator<T> {
        self.compose(inner).unwrap_or_else(|error| panic!("{error}"))
    }
}

/// [`Operator::scale`].
impl<T: Accumulator> Mul<&Operator<T>> for f64 {
    type Output = Operator<T>;

    fn mul(self, operator: &Operator<T>) -> Operator<T> {
        operator.scale(self)
    }
}

/// [`Operator::plus`].
///
/// # Panics
/// When the shapes or devices do not fit.
impl<T: Accumulator> Add for &Operator<T> {
    type Output = Operator<T>;

    fn add(self, other: Self) -> Operator<T> {
        self.plus(other).unwrap_or_else(|error| panic!("{error}"))
    }
}

/// [`Operator::minus`].
///
/// # Panics
/// When the shapes or devices do not fit.
impl<T: Accumulator> Sub for &Operator<T> {
    type Output = Operator<T>;

    fn sub(self, other: Self) -> Operator<T> {
        self.minus(other).unwrap_or_else(|error| panic!("{error}"))
    }
}

/// −A.
impl<T: Accumulator> Neg for &Operator<T> {
    type Output = Operator<T>;

    fn neg(self) -> Operator<T> {
        self.scale(-1.0)
    }
}

/// What it is made of, and its shape: `a layer [128, 64]`.
impl<T: Accumulator> fmt::Display for Operator<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match &*self.expression {
            Expression::Identity => "the identity",
            Expression::Layer(layer, _) if layer.transposed => "a transposed layer",
            Expression::Layer(..) => "a layer",
            Expression::Given(Given::Sparse(_), _) => "a sparse matrix",
            Expression::Given(Given::Dense, _) => "a dense matrix",
            Expression::Given(Given::Closure, _) => "a closure",
            Expression::Composition(..) => "a composition",
            Expression::Sum(..) => "a sum",
            Expression::Adjoint(_) => "an adjoint",
        };
        write!(f, "{what} [{}, {}]", self.shape[0], self.shape[1])
    }
}

impl<T: Accumulator> fmt::Debug for Operator<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} of {} on {}", T::DTYPE, self.device)
    }
}
