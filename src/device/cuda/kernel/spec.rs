//! Which kernel, and what it is compiled for.

use std::fmt::Write as _;
use std::hash::{Hash, Hasher};

use super::sources::Source;
use crate::device::cuda::driver::Unit;
use crate::element::DType;
use crate::geometry::{Axes, AxisMap, Layout, PaddingMode};

/// Kernels made for one layer are worth compiling up to so many taps, whose loops are then unrolled.
const MOST_UNROLLED_TAPS: usize = 64;

/// Whether [`Spec::geometry`] makes the layer's numbers known at compile time.
pub(crate) fn is_specialised(maps: &Axes, specialise: bool) -> bool {
    specialise && maps.iter().map(AxisMap::taps).product::<usize>() <= MOST_UNROLLED_TAPS
}

/// What no number that the index map forms on an axis exceeds.
pub(crate) fn axis_bound(maps: &Axes) -> usize {
    let bound = |map: &AxisMap| {
        let parts = [map.inputs(), map.inputs(), map.low().unsigned_abs() as usize];
        let parts = parts.into_iter().chain([map.padded_extent(), map.stride(), map.dilation()]);
        parts.fold(0, usize::saturating_add)
    };
    maps.iter().map(bound).max().unwrap_or(0)
}

/// The mode as kernels/lib/geometry.cuh names and numbers it. Axes that are never read outside the input say
/// `zeros`, whatever the convolution's mode.
pub(super) fn mode(maps: &Axes) -> (&'static str, i64) {
    let mode = maps.iter().map(AxisMap::mode).find(|&mode| mode != PaddingMode::Zeros);
    match mode.unwrap_or(PaddingMode::Zeros) {
        PaddingMode::Zeros => ("ZEROS", 0),
        PaddingMode::Reflect => ("REFLECT", 1),
        PaddingMode::Replicate => ("REPLICATE", 2),
        PaddingMode::Circular => ("CIRCULAR", 3),
    }
}

/// A kernel and what it is compiled for: the definitions in front of its source.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Spec {
    source: &'static Source,
    entry: &'static str,
    definitions: Vec<(&'static str, String)>,
    check: Check,
}

/// C++ that a kernel's source has to satisfy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Check(&'static str);

/// By the length alone: launches look specs up, and the text is long.
impl Hash for Check {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.len().hash(state);
    }
}

impl Spec {
    /// The kernel `entry` of this file of `kernels/`.
    pub(crate) fn new(file: &'static str, entry: &'static str) -> Self {
        Spec {
            source: Source::named(file),
            entry,
            definitions: Vec::new(),
            check: Check::default(),
        }
    }

    /// Another kernel of the same file.
    pub(crate) fn entry_of(self, entry: &'static str) -> Self {
        Spec { entry, ..self }
    }

    pub(crate) fn define(mut self, name: &'static str, value: impl ToString) -> Self {
        self.definitions.push((name, value.to_string()));
        self
    }

    /// Compiles only if the source satisfies `check`: the [`Arguments::CHECK`] of what it is launched with.
    ///
    /// [`Arguments::CHECK`]: crate::device::cuda::Arguments::CHECK
    pub(crate) fn checked_by(self, check: &'static str) -> Self {
        Spec { check: Check(check), ..self }
    }

    pub(crate) fn element(self, dtype: DType) -> Self {
        self.define("ELEMENT", dtype)
    }

    pub(crate) fn layout(self, layout: Layout) -> Self {
        self.define(
            "LAYOUT",
            match layout {
                Layout::ChannelsFirst => "CHANNELS_FIRST",
                Layout::ChannelsLast => "CHANNELS_LAST",
            },
        )
    }

    pub(super) fn source(&self) -> &'static Source {
        self.source
    }

    /// The first macro that it defines and the source does not have.
    pub(super) fn unknown_switch(&self) -> Option<&'static str> {
        let known = |name: &str| self.source.switches.contains(&name);
        self.definitions.iter().map(|(name, _)| *name).find(|name| !known(name))
    }

    pub(crate) fn entry(&self) -> &'static str {
        self.entry
    }

    /// For people and error messages.
    pub(crate) fn describe(&self) -> String {
        let definitions = self.definitions();
        let space = if definitions.is_empty() { "" } else { " " };
        format!("{}{space}{definitions}", self.entry)
    }

    /// What is defined, for people.
    pub(crate) fn definitions(&self) -> String {
        let all: Vec<_> =
            self.definitions.iter().map(|(name, of)| format!("{name}={of}")).collect();
        all.join(" ")
    }

    /// Whether a name is defined as this.
    pub(crate) fn defines(&self, wanted: &str, value: &str) -> bool {
        self.definitions.iter().any(|(name, of)| *name == wanted && of == value)
    }

    /// Rows and columns of the result that a block computes, for kernels that say so.
    pub(crate) fn tile(&self) -> Option<[usize; 2]> {
        let value = |wanted| {
            let found = self.definitions.iter().find(|(name, _)| *name == wanted);
            found.and_then(|(_, value)| value.parse().ok())
        };
        Some([value("TILE_ROWS")?, value("TILE_COLUMNS")?])
    }

    /// What to compile.
    pub(crate) fn unit(&self) -> Unit {
        let mut text = String::new();
        for (name, value) in &self.definitions {
            writeln!(text, "#define {name} {value}").expect("strings take writes");
        }
        writeln!(text, "#include \"{}\"", self.source.name).expect("strings take writes");
        text.push_str(self.check.0);
        Unit { file: self.source.name, text }
    }
}

impl Spec {
    /// With `specialise`, compiles for the layer's taps, strides, dilations and padding mode; without,
    /// those are arguments.
    pub(crate) fn geometry(self, maps: &Axes, specialise: bool) -> Self {
        if !is_specialised(maps, specialise) {
            return self;
        }
        let three = |of: fn(&AxisMap) -> usize| {
            let [d, h, w] = maps.each_ref().map(of);
            format!("{d}, {h}, {w}")
        };
        self.mode(maps, specialise)
            .define("TAPS", three(AxisMap::taps))
            .define("STRIDES", three(AxisMap::stride))
            .define("DILATIONS", three(AxisMap::dilation))
    }

    /// With `specialise`, compiles for the layer's padding mode alone.
    pub(crate) fn mode(self, maps: &Axes, specialise: bool) -> Self {
        if specialise { self.define("MODE", mode(maps).0) } else { self }
    }

    /// The width of indices: 64 bits if any of these counts, which bound every number the kernel forms,
    /// comes near 2³¹, or if `wide` demands it.
    pub(crate) fn index(self, counts: &[usize], wide: bool) -> Self {
        let large = counts.iter().any(|&count| count >= (1 << 31) - (1 << 20));
        self.define("INDEX_BITS", if wide || large { 64 } else { 32 })
    }
}
