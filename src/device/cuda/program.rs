//! What a computation queues on a device, worked out beforehand.
//!
//! A capability's `cuda` writes a [`Draft`]: the launches, products and clearings in their order, on
//! operands and a workspace that have numbers in place of addresses. Nothing of the device is needed for
//! that but facts. [`Draft::prepare`] compiles the kernels and copies tables to the device; running the
//! [`Program`] then puts the addresses in and queues the steps. It allocates, compiles, hashes and formats
//! nothing, so it may be captured in a graph.

use std::marker::PhantomData;
use std::sync::Arc;

use super::driver::{Kernel, Resources};
use super::gemm::Gemm;
use super::kernel::pointer::{Arguments, PerRun, Pointer};
use super::tables::Table;
use super::{CudaDevice, DeviceBuffer, Spec, Work};
use crate::device::{FULL_ALIGNMENT, common_alignment};
use crate::element::DType;
use crate::error::{Error, Result};

/// Multiples at which pieces of a workspace begin, in bytes.
const PIECE: usize = 256;

/// The workspace's slot; operands follow.
const WORKSPACE: u8 = 0;

/// Slots of operands end here, those of the numbers that each run gives begin.
const FIRST_NUMBER: u8 = 12;

/// Slots of those numbers end here, those of tables begin.
const FIRST_TABLE: u8 = 16;

/// Elements that a program reads or writes, wherever they will be.
#[derive(Debug)]
pub(crate) struct Region<T> {
    pointer: Pointer,
    len: usize,
    /// What divides the address of the operand that this is part of.
    alignment: u64,
    elements: PhantomData<T>,
}

impl<T> Clone for Region<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Region<T> {}

impl<T> Region<T> {
    pub(crate) fn pointer(&self) -> Pointer {
        self.pointer
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// A number that has the powers of two, up to [`FULL_ALIGNMENT`], which will divide the address.
    pub(crate) fn alignment(&self) -> u64 {
        self.pointer.distance() | self.alignment
    }

    /// Some of the elements.
    pub(crate) fn slice(&self, range: std::ops::Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len);
        let pointer = self.pointer.offset(range.start * size_of::<T>());
        Region { pointer, len: range.len(), ..*self }
    }

    /// The same memory as elements of another type, as many as fit.
    pub(crate) fn cast<U>(&self) -> Region<U> {
        let len = self.len * size_of::<T>() / size_of::<U>();
        Region { pointer: self.pointer, len, alignment: self.alignment, elements: PhantomData }
    }
}

/// A program that is being written.
#[derive(Debug)]
pub(crate) struct Draft {
    device: CudaDevice,
    /// What divides the addresses of all operands, in bytes.
    alignment: u64,
    /// Whether products of f32 may round their factors to TF32.
    tf32: bool,
    steps: Vec<DraftStep>,
    operands: u8,
    numbers: u8,
    tables: Vec<Numbers>,
    /// Bytes of the workspace that are in use, and the most that were.
    held: usize,
    workspace: usize,
    /// Seconds that all steps are expected to take.
    seconds: f64,
}

/// What a program has on the device from when it is prepared.
#[derive(Debug)]
enum Numbers {
    /// Only read, so that programs may share it.
    Table(&'static str, Vec<i32>),
    /// So many zeros of its own.
    Counters(&'static str, usize),
}

#[derive(Debug)]
enum DraftStep {
    Launch {
        spec: Spec,
        grid: [u32; 3],
        threads: u32,
        arguments: Box<[u64]>,
        /// Where the arguments have what is filled in later.
        open: &'static [usize],
    },
    Gemm(Gemm),
    Clear {
        target: Pointer,
        bytes: usize,
    },
}

impl Draft {
    /// A program for operands whose addresses `alignment` divides, a power of two.
    pub(crate) fn new(device: &CudaDevice, alignment: u64) -> Self {
        Draft {
            device: device.clone(),
            alignment: alignment.min(FULL_ALIGNMENT),
            tf32: false,
            steps: Vec::new(),
            operands: 0,
            numbers: 0,
            tables: Vec::new(),
            held: 0,
            workspace: 0,
            seconds: 0.0,
        }
    }

    /// A program for operands at these addresses.
    pub(crate) fn for_addresses(device: &CudaDevice, addresses: &[u64]) -> Self {
        Draft::new(device, common_alignment(addresses))
    }

    /// Has products of f32 round their factors to TF32, where the device can.
    pub(crate) fn allow_tf32(&mut self, allow: bool) {
        self.tf32 = allow && self.device.driver().capability() >= 80;
    }

    /// Whether products of factors of this type round them to TF32.
    pub(crate) fn rounds_to_tf32(&self, dtype: DType) -> bool {
        self.tf32 && dtype == DType::F32
    }

    pub(crate) fn device(&self) -> &CudaDevice {
        &self.device
    }

    /// The next operand, of `len` elements: runs are given operands in this order.
    pub(crate) fn operand<T>(&mut self, len: usize) -> Region<T> {
        self.operands += 1;
        assert!(self.operands < FIRST_NUMBER, "programs have fewer operands");
        let pointer = Pointer::slot(self.operands);
        Region { pointer, len, alignment: self.alignment, elements: PhantomData }
    }

    /// The next number that is another in every run: runs are given numbers in this order.
    pub(crate) fn number(&mut self) -> PerRun {
        let slot = FIRST_NUMBER + self.numbers;
        assert!(slot < FIRST_TABLE, "programs have fewer numbers");
        self.numbers += 1;
        PerRun::slot(slot)
    }

    /// What divides the addresses of all operands.
    pub(crate) fn alignment(&self) -> u64 {
        self.alignment
    }

    /// A number that has the powers of two, up to what kernels ask for, which will divide this address.
    pub(crate) fn alignment_of(&self, pointer: Pointer) -> u64 {
        let whole = match pointer.unresolved() {
            Some(slot) if slot != usize::from(WORKSPACE) => self.alignment,
            _ => FULL_ALIGNMENT,
        };
        pointer.distance() | whole
    }

    /// `len` elements of the workspace, of any value, until they are given back by [`Draft::release`].
    ///
    /// # Errors
    /// [`Error::TooLarge`] when their bytes cannot be counted.
    pub(crate) fn workspace<T>(&mut self, what: &str, len: usize) -> Result<Region<T>> {
        let piece = len.checked_mul(size_of::<T>()).and_then(|b| b.checked_next_multiple_of(PIECE));
        let end = piece.and_then(|bytes| self.held.checked_add(bytes));
        let Some(end) = end.filter(|&end| end as u64 <= i64::MAX as u64 / 256) else {
            return Err(Error::TooLarge {
                what: what.into(),
                value: format!("{len} x {}", size_of::<T>()),
                limit: i64::MAX as u64 / 256,
            });
        };
        let pointer = Pointer::slot(WORKSPACE).offset(self.held);
        self.held = end;
        self.workspace = self.workspace.max(end);
        Ok(Region { pointer, len, alignment: FULL_ALIGNMENT, elements: PhantomData })
    }

    /// An empty draft of the same program, to see what some way to write it would take.
    pub(crate) fn trial(&self) -> Self {
        let mut trial = Draft::new(&self.device, self.alignment);
        (trial.operands, trial.numbers, trial.held) = (self.operands, self.numbers, self.held);
        trial.tf32 = self.tf32;
        trial
    }

    /// Bytes of the workspace that the steps so far need.
    pub(crate) fn workspace_bytes(&self) -> usize {
        self.workspace
    }

    /// Says what the next launch, or products, will do.
    pub(crate) fn expect(&mut self, work: Work) {
        self.seconds += work.seconds(self.device.target()).0;
    }

    /// Seconds that the steps so far are expected to take, by public figures of such a device.
    pub(crate) fn seconds(&self) -> f64 {
        self.seconds
    }

    /// How much of the workspace is in use, for [`Draft::release`].
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Gives back the parts of the workspace that were taken since `held` was asked for: later steps may
    /// use the same memory.
    pub(crate) fn release(&mut self, held: usize) {
        self.held = held;
    }

    /// Numbers that kernels read, on the device from when the program is prepared.
    pub(crate) fn table(&mut self, what: &'static str, table: Vec<i32>) -> Pointer {
        self.numbers_on_device(Numbers::Table(what, table))
    }

    /// Counters that are zero when the program is prepared, and that launches leave at zero: the runs of a program,
    /// and of graphs that have it, follow each other on its device's stream, so that nothing has to clear them in
    /// between.
    pub(crate) fn counters(&mut self, what: &'static str, len: usize) -> Pointer {
        self.numbers_on_device(Numbers::Counters(what, len))
    }

    fn numbers_on_device(&mut self, numbers: Numbers) -> Pointer {
        self.tables.push(numbers);
        let slot = usize::from(FIRST_TABLE) + self.tables.len() - 1;
        Pointer::slot(u8::try_from(slot).expect("programs have few tables"))
    }

    /// A launch; none if the grid is empty.
    ///
    /// # Safety
    /// Regions in `arguments` are as large as the kernel takes them to be, and what it writes nothing else
    /// of the launch uses.
    pub(crate) unsafe fn launch<A: Arguments>(
        &mut self,
        spec: Spec,
        grid: [u32; 3],
        threads: u32,
        arguments: &A,
    ) {
        if grid.contains(&0) {
            return;
        }
        let words = bytemuck::pod_collect_to_vec(bytemuck::bytes_of(arguments));
        self.steps.push(DraftStep::Launch {
            spec: spec.checked_by(A::CHECK),
            grid,
            threads,
            arguments: words.into(),
            open: A::OPEN,
        });
    }

    /// A batch of products by cuBLAS.
    ///
    /// # Safety
    /// The matrices are as large as sizes, leading dimensions and strides say, and the result overlaps
    /// neither factor.
    pub(crate) unsafe fn gemm(&mut self, gemm: Gemm) {
        self.steps.push(DraftStep::Gemm(gemm));
    }

    /// Sets the bytes of all elements to zero.
    pub(crate) fn clear<T>(&mut self, region: Region<T>) {
        if region.len > 0 {
            let bytes = region.len * size_of::<T>();
            self.steps.push(DraftStep::Clear { target: region.pointer, bytes });
        }
    }

    /// Compiles what is launched, and copies the tables to the device.
    ///
    /// # Errors
    /// [`Error::Compile`], [`Error::Device`], [`Error::Allocation`].
    pub(crate) fn prepare(self) -> Result<Program> {
        let device = self.device;
        let tables = self.tables.iter().map(|numbers| match numbers {
            Numbers::Table(what, table) => device.table(what, table),
            Numbers::Counters(what, len) => device.counters(what, *len),
        });
        let tables = tables.collect::<Result<Vec<Table>>>()?;
        let known = |pointer: Pointer| match pointer.unresolved() {
            Some(slot) if slot >= usize::from(FIRST_TABLE) => {
                let table = &tables[slot - usize::from(FIRST_TABLE)];
                Pointer::at(table.address()).offset(pointer.distance() as usize)
            }
            _ => pointer,
        };
        let mut steps = Vec::with_capacity(self.steps.len());
        for step in self.steps {
            steps.push(match step {
                DraftStep::Launch { spec, grid, threads, mut arguments, open: places } => {
                    let kernel = device.kernel(&spec)?;
                    let mut open = Vec::new();
                    for &at in places {
                        let word: &mut Pointer = bytemuck::cast_mut(&mut arguments[at / 8]);
                        *word = known(*word);
                        if word.unresolved().is_some() {
                            open.push((at / 8) as u32);
                        }
                    }
                    assert!(arguments.len() <= MOST_WORDS, "kernels have fewer arguments");
                    Step::Launch { spec, kernel, grid, threads, arguments, open: open.into() }
                }
                DraftStep::Gemm(gemm) => Step::Gemm(gemm),
                DraftStep::Clear { target, bytes } => Step::Clear { target, bytes },
            });
        }
        let (alignment, workspace) = (self.alignment, self.workspace);
        Ok(Program { device, steps: steps.into(), alignment, workspace, _tables: tables })
    }

    /// Prepares it, takes a workspace and runs: for what is done once.
    ///
    /// # Errors
    /// As [`Draft::prepare`] and [`Program::run`].
    ///
    /// # Safety
    /// As [`Program::run`], for `addresses`.
    pub(crate) unsafe fn run_once(self, addresses: &[u64]) -> Result<()> {
        let program = self.prepare()?;
        let workspace = DeviceBuffer::<u8>::new(&program.device, "a workspace", program.workspace)?;
        // SAFETY: promised by the caller; the workspace is as large as the program needs, and is given back
        // to the device behind the work that was queued.
        unsafe { program.run(addresses, &[], workspace.view().address()) }
    }
}

/// 8-byte words of a kernel's arguments, at most.
const MOST_WORDS: usize = 160;

/// A program that is ready to run.
#[derive(Debug)]
pub(crate) struct Program {
    device: CudaDevice,
    steps: Box<[Step]>,
    alignment: u64,
    workspace: usize,
    /// Which steps have addresses of.
    _tables: Vec<Table>,
}

#[derive(Debug)]
enum Step {
    Launch {
        spec: Spec,
        kernel: Arc<dyn Kernel>,
        grid: [u32; 3],
        threads: u32,
        arguments: Box<[u64]>,
        /// The words of the arguments that a run fills in.
        open: Box<[u32]>,
    },
    Gemm(Gemm),
    Clear {
        target: Pointer,
        bytes: usize,
    },
}

/// A step that a run queues.
pub(crate) enum Queued<'a> {
    Launch { spec: &'a Spec, grid: [u32; 3], threads: u32, needs: Resources },
    Gemm(&'a Gemm),
    Clear { bytes: usize },
}

impl Program {
    /// Whether a product rounds factors of f32 to TF32.
    pub(crate) fn rounds_to_tf32(&self) -> bool {
        self.steps.iter().any(|step| match step {
            Step::Launch { spec, .. } => spec.defines("MMA", "mma_tf32"),
            Step::Gemm(gemm) => gemm.tf32,
            Step::Clear { .. } => false,
        })
    }

    /// Its steps, for whoever explains them.
    pub(crate) fn queued(&self) -> impl Iterator<Item = Queued<'_>> {
        self.steps.iter().map(|step| match step {
            &Step::Launch { ref spec, ref kernel, grid, threads, .. } => {
                Queued::Launch { spec, grid, threads, needs: kernel.resources() }
            }
            Step::Gemm(gemm) => Queued::Gemm(gemm),
            Step::Clear { bytes, .. } => Queued::Clear { bytes: *bytes },
        })
    }

    /// Bytes of the workspace.
    pub(crate) fn workspace(&self) -> usize {
        self.workspace
    }

    /// What divides the addresses of operands.
    pub(crate) fn alignment(&self) -> u64 {
        self.alignment
    }

    /// Queues the steps on these operands, with these numbers and a workspace.
    ///
    /// # Errors
    /// [`Error::Device`] when a call fails.
    ///
    /// # Safety
    /// `addresses` are those of the draft's operands, in its order, as `numbers` are: live memory of the device, as large and
    /// as aligned as the draft took them to be, and what is written is borrowed for that. So is
    /// `workspace`, a multiple of 256.
    pub(crate) unsafe fn run(
        &self,
        addresses: &[u64],
        numbers: &[f64],
        workspace: u64,
    ) -> Result<()> {
        let mut slots = [0; FIRST_TABLE as usize];
        slots[usize::from(WORKSPACE)] = workspace;
        slots[1..=addresses.len()].copy_from_slice(addresses);
        let open = slots[usize::from(FIRST_NUMBER)..].iter_mut();
        open.zip(numbers).for_each(|(slot, number)| *slot = number.to_bits());
        let driver = self.device.driver();
        for step in &self.steps {
            match step {
                Step::Launch { kernel, grid, threads, arguments, open, .. } => {
                    log::debug!(
                        "{}: {grid:?} blocks of {threads} threads of {kernel:?}",
                        self.device
                    );
                    let mut words = [0; MOST_WORDS];
                    let words = &mut words[..arguments.len()];
                    words.copy_from_slice(arguments);
                    for &at in open {
                        let word = &mut words[at as usize];
                        let pointer: Pointer = bytemuck::cast(*word);
                        *word = pointer.resolve(&slots);
                    }
                    // SAFETY: the draft's author answers for the arguments, the caller for the addresses.
                    unsafe { kernel.launch(*grid, *threads, bytemuck::cast_slice(words))? };
                }
                Step::Gemm(gemm) => {
                    // SAFETY: as above.
                    unsafe { driver.gemm(&gemm.resolved(&slots))? };
                }
                Step::Clear { target, bytes } => {
                    // SAFETY: as above.
                    unsafe { driver.clear(target.resolve(&slots), *bytes)? };
                }
            }
        }
        Ok(())
    }
}
