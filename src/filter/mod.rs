//! The gathering filter: the weight whose convolution is unfold.
//!
//! It is the identity of size (C/g)·K, viewed as a convolution weight and tiled once per group: output
//! channel (group, c, k) picks channel c of its group through tap k. Convolving with it copies each
//! patch entry to an output channel of its own.

mod cpu;
#[cfg(gpu)]
mod cuda;

use crate::device::Device;
#[cfg(gpu)]
use crate::device::cuda::Draft;
use crate::element::IndexWidth;
use crate::element::{Accumulator, Element};
use crate::error::{Error, Result, checked_product};
use crate::geometry::Conv;
use crate::matrix::{Coo, Csr, Indices};
use crate::memory::try_with_capacity;
use crate::plan::{Explanation, Plan, PlanOptions, Steps, Workspace, plan_type};
use crate::tensor::{Tensor, TensorViewMut};

plan_type! {
    /// A plan of [`Conv::gathering_filter`], made by [`Conv::plan_filter`].
    FilterPlan, cpu::Filter
}

/// The operand's number.
const FILTER: usize = 0;

impl<const D: usize> Conv<D> {
    /// The weight with which this convolution, applied to an input of `channels` channels, is
    /// [`Conv::unfold`]: output channel j is row j of the patches (channels first) or column j
    /// (channels last).
    ///
    /// | layout | shape | output channels ordered |
    /// |---|---|---|
    /// | channels-first | `[C·K, C/g, kernel…]` | (channel, tap) |
    /// | channels-last | `[kernel…, C/g, C·K]` | (group, tap, channel of the group) |
    ///
    /// Padding, stride and dilation play no part in it.
    ///
    /// # Errors
    /// [`Error::Invalid`] when an extent of the kernel is 0 or the channels are not a positive multiple
    /// of the groups; [`Error::TooLarge`] or [`Error::Allocation`] when it does not fit in memory.
    ///
    /// ```
    /// use convmat::Conv;
    /// let filter = Conv::new([2]).groups(2).gathering_filter::<f32>(2)?;
    /// assert_eq!(filter.shape(), [4, 1, 2]);
    /// assert_eq!(filter.as_slice().unwrap(), [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0]);
    /// # Ok::<(), convmat::Error>(())
    /// ```
    pub fn gathering_filter<T: Element>(&self, channels: usize) -> Result<Tensor<T>> {
        self.gathering_filter_on(&Device::Cpu, channels)
    }

    /// [`Conv::gathering_filter`], built on `device`.
    ///
    /// # Errors
    /// As [`Conv::gathering_filter`]; [`Error::Compile`] or [`Error::Device`] when the device fails.
    pub fn gathering_filter_on<T: Element>(
        &self,
        device: &Device,
        channels: usize,
    ) -> Result<Tensor<T>> {
        let plan = self.plan_filter::<T>(device, channels, PlanOptions::new())?;
        let mut filter = Tensor::for_result(device, plan.plan.shape(FILTER))?;
        plan.run(&mut filter, &mut plan.make_workspace()?)?;
        Ok(filter)
    }

    /// [`Conv::gathering_filter`] into a buffer of the caller's, all of which is overwritten.
    ///
    /// # Errors
    /// As [`Conv::gathering_filter_on`]; also when `filter` has another shape.
    pub fn gathering_filter_into<'a, T: Element>(
        &self,
        channels: usize,
        filter: impl Into<TensorViewMut<'a, T>>,
    ) -> Result<()> {
        let filter = filter.into();
        let options = PlanOptions::for_addresses(&[filter.address()]);
        let plan = self.plan_filter::<T>(&filter.device(), channels, options)?;
        plan.run(filter, &mut plan.make_workspace()?)
    }

    /// A plan of [`Conv::gathering_filter`] for an input of `channels` channels.
    ///
    /// # Errors
    /// As [`Conv::gathering_filter_on`].
    pub fn plan_filter<T: Element>(
        &self,
        device: &Device,
        channels: usize,
        options: PlanOptions,
    ) -> Result<FilterPlan<T>> {
        let size = FilterSize::new(self, channels)?;
        let layout = self.axis_order();
        let shape = layout.weight_shape(size.rows, size.channels_per_group, &self.kernel_size());
        let len = checked_product("the gathering filter", &[size.rows, size.block])?;
        let mut explanation = Explanation {
            operation: "gathering_filter",
            subject: format!("{channels} channels, {shape:?} {} by {self}", T::DTYPE),
            algorithm: "fill".into(),
            bytes: (len * size_of::<T>()) as u64,
            ..Explanation::default()
        };
        let steps = match device {
            Device::Cpu => {
                let (plan, workers) = cpu::Filter::new::<T>(layout, &size, &mut explanation);
                Steps::Cpu { plan, workers }
            }
            #[cfg(gpu)]
            Device::Cuda(cuda) => {
                let mut draft = Draft::new(cuda, options.alignment_for(size_of::<T>())?);
                let filter = draft.operand::<T>(len);
                cuda::fill(&mut draft, layout, &size, filter)?;
                explanation.reason = "a thread stores as many neighbours as one store moves".into();
                Steps::Cuda(draft.prepare()?)
            }
        };
        let operands = vec![("filter", shape)];
        Ok(FilterPlan::of(Plan::new(device, &options, explanation, operands, steps)?))
    }

    /// [`Conv::gathering_filter`] as a sparse matrix `[C·K, (C/g)·K]` of triplets, in row-major order.
    ///
    /// Row j is output channel j, the columns are the weight's other axes flattened in their order:
    /// (channel of the group, tap) with channels first, (tap, channel of the group) with channels last.
    /// In either layout the matrix is the same: the identity tiled once per group. (A dense weight with
    /// channels last has its output channels last: flattened to two axes it is the transpose.)
    ///
    /// # Errors
    /// As [`Conv::gathering_filter`].
    pub fn gathering_filter_coo<T: Element>(&self, channels: usize) -> Result<Coo<T>> {
        let size = FilterSize::new(self, channels)?;
        let rows = Indices::collect(WHAT, size.width(), 0..size.rows)?;
        Coo::new([size.rows, size.block], rows, size.columns()?, size.values()?)
    }

    /// [`Conv::gathering_filter_coo`] in compressed sparse row form.
    ///
    /// # Errors
    /// As [`Conv::gathering_filter`].
    pub fn gathering_filter_csr<T: Element>(&self, channels: usize) -> Result<Csr<T>> {
        self.gathering_filter_csr_on(&Device::Cpu, channels)
    }

    /// [`Conv::gathering_filter_csr`], made on a device.
    ///
    /// # Errors
    /// As [`Conv::gathering_filter`].
    pub fn gathering_filter_csr_on<T: Element>(
        &self,
        device: &Device,
        channels: usize,
    ) -> Result<Csr<T>> {
        let size = FilterSize::new(self, channels)?;
        match device {
            Device::Cpu => {
                let indptr = Indices::collect(WHAT, size.width(), 0..size.rows + 1)?;
                Csr::new([size.rows, size.block], indptr, size.columns()?, size.values()?)
            }
            #[cfg(gpu)]
            Device::Cuda(device) => {
                Ok(Csr::on_cuda([size.rows, size.block], cuda::sparse(device, &size)?))
            }
        }
    }
}

impl<T: Element> FilterPlan<T> {
    /// Writes all of `filter`.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::DeviceMismatch`] or [`Error::Invalid`] when filter or workspace are not
    /// those that were planned for; [`Error::Device`] when the device fails.
    pub fn run<'a>(
        &self,
        filter: impl Into<TensorViewMut<'a, T>>,
        workspace: &mut Workspace<'_>,
    ) -> Result<()> {
        let filter = filter.into();
        self.plan.check(&[(FILTER, filter.shape(), &filter.device())])?;
        match self.plan.steps() {
            Steps::Cpu { plan, workers } => {
                let memory = workspace.host(workers.workspace())?;
                plan.run(workers, filter.host(), memory)
            }
            #[cfg(gpu)]
            Steps::Cuda(program) => {
                // SAFETY: the filter was checked, and is borrowed.
                unsafe { self.plan.queue(program, &[filter.address()], workspace) }
            }
        }
    }
}

const WHAT: &str = "the sparse gathering filter";

/// The one place that says what the filter's ones are.
fn one<T: Element>() -> T {
    T::from_acc(T::Acc::ONE)
}

/// The filter as a matrix: `rows / block` identities of size `block`, stacked.
#[derive(Debug)]
struct FilterSize {
    channels_per_group: usize,
    /// C·K.
    rows: usize,
    /// (C/g)·K.
    block: usize,
}

impl FilterSize {
    fn new<const D: usize>(conv: &Conv<D>, channels: usize) -> Result<Self> {
        let kernel = conv.kernel_size();
        if let Some(axis) = kernel.iter().position(|&extent| extent == 0) {
            let argument = format!("kernel on axis {axis}");
            return Err(Error::invalid(argument, 0, "it must be at least 1"));
        }
        let groups = conv.group_count();
        if groups == 0 {
            return Err(Error::invalid("groups", 0, "it must be at least 1"));
        }
        if channels == 0 || !channels.is_multiple_of(groups) {
            let reason = format!("it must be a positive multiple of groups = {groups}");
            return Err(Error::invalid("channels", channels, reason));
        }
        let rows = checked_product(WHAT, &[&[channels][..], &kernel].concat())?;
        Ok(FilterSize { channels_per_group: channels / groups, rows, block: rows / groups })
    }

    fn width(&self) -> IndexWidth {
        IndexWidth::for_matrix([self.rows as u64, self.block as u64], self.rows as u64)
    }

    fn columns(&self) -> Result<Indices> {
        let columns = (0..self.rows).map(|row| row % self.block);
        Indices::collect(WHAT, self.width(), columns)
    }

    fn values<T: Element>(&self) -> Result<Vec<T>> {
        let mut values = try_with_capacity(WHAT, self.rows)?;
        values.resize(self.rows, one());
        Ok(values)
    }
}
