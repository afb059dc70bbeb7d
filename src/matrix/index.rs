//! The integers a sparse matrix stores its structure in: 32 bits where they suffice, else 64.

use std::fmt;

use crate::element::IndexWidth;
use crate::error::Result;
use crate::memory::try_with_capacity;

mod sealed {
    pub trait Sealed {}
    impl Sealed for i32 {}
    impl Sealed for i64 {}
}

/// An integer that row pointers and column indices are stored in: `i32` or `i64`.
pub trait Index: sealed::Sealed + bytemuck::Pod + Ord + fmt::Debug + Send + Sync + 'static {
    /// The run-time name of this type.
    const WIDTH: IndexWidth;

    /// The index as a number; negative ones, which no valid matrix has, come out huge.
    fn to_usize(self) -> usize;

    /// The number as an index; it must not exceed the width's limit.
    fn from_usize(value: usize) -> Self;

    /// The sum of two indices that does not exceed the width's limit.
    fn plus(self, other: Self) -> Self;

    /// The slice, if the view holds indices of this type.
    fn of(view: IndexView<'_>) -> Option<&[Self]>;

    /// The vector, if it holds indices of this type.
    fn take(indices: Indices) -> Result<Vec<Self>, Indices>;
}

macro_rules! index {
    ($t:ty, $width:ident) => {
        impl Index for $t {
            const WIDTH: IndexWidth = IndexWidth::$width;

            #[inline(always)]
            fn to_usize(self) -> usize {
                self as usize
            }
            #[inline(always)]
            fn from_usize(value: usize) -> Self {
                debug_assert!(Self::try_from(value).is_ok());
                value as Self
            }
            #[inline(always)]
            fn plus(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            fn of(view: IndexView<'_>) -> Option<&[Self]> {
                match view {
                    IndexView::$width(slice) => Some(slice),
                    _ => None,
                }
            }
            fn take(indices: Indices) -> Result<Vec<Self>, Indices> {
                match indices {
                    Indices::$width(vector) => Ok(vector),
                    other => Err(other),
                }
            }
        }

        impl From<Vec<$t>> for Indices {
            fn from(indices: Vec<$t>) -> Self {
                Indices::$width(indices)
            }
        }

        impl<'a> From<&'a [$t]> for IndexView<'a> {
            fn from(indices: &'a [$t]) -> Self {
                IndexView::$width(indices)
            }
        }
    };
}

index!(i32, I32);
index!(i64, I64);

/// Owned indices of either width.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Indices {
    /// 32-bit indices.
    I32(Vec<i32>),
    /// 64-bit indices.
    I64(Vec<i64>),
}

impl Indices {
    /// The indices, borrowed.
    pub fn view(&self) -> IndexView<'_> {
        match self {
            Indices::I32(v) => IndexView::I32(v),
            Indices::I64(v) => IndexView::I64(v),
        }
    }

    /// Number of indices.
    pub fn len(&self) -> usize {
        self.view().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How wide they are.
    pub fn width(&self) -> IndexWidth {
        self.view().width()
    }

    /// Numbers as indices of this width, which must be able to hold them.
    pub(crate) fn collect(
        what: &str,
        width: IndexWidth,
        values: impl ExactSizeIterator<Item = usize>,
    ) -> Result<Self> {
        fn gather<I: Index>(
            what: &str,
            values: impl ExactSizeIterator<Item = usize>,
        ) -> Result<Vec<I>> {
            let mut indices = try_with_capacity(what, values.len())?;
            indices.extend(values.map(I::from_usize));
            Ok(indices)
        }
        Ok(match width {
            IndexWidth::I32 => Indices::I32(gather(what, values)?),
            IndexWidth::I64 => Indices::I64(gather(what, values)?),
        })
    }
}

/// Borrowed indices of either width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexView<'a> {
    /// 32-bit indices.
    I32(&'a [i32]),
    /// 64-bit indices.
    I64(&'a [i64]),
}

impl<'a> IndexView<'a> {
    /// Number of indices.
    pub fn len(self) -> usize {
        match self {
            IndexView::I32(s) => s.len(),
            IndexView::I64(s) => s.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// How wide they are.
    pub fn width(self) -> IndexWidth {
        match self {
            IndexView::I32(_) => IndexWidth::I32,
            IndexView::I64(_) => IndexWidth::I64,
        }
    }

    /// The index at `position`; `None` past the end.
    pub fn get(self, position: usize) -> Option<usize> {
        match self {
            IndexView::I32(s) => s.get(position).map(|i| i.to_usize()),
            IndexView::I64(s) => s.get(position).map(|i| i.to_usize()),
        }
    }

    /// The indices as numbers.
    pub fn iter(self) -> impl ExactSizeIterator<Item = usize> + 'a {
        (0..self.len()).map(move |i| self.at(i))
    }

    /// The slice, if the indices are of type `I`.
    pub fn as_slice<I: Index>(self) -> Option<&'a [I]> {
        I::of(self)
    }

    /// The index at a position known to exist.
    #[inline(always)]
    pub(super) fn at(self, position: usize) -> usize {
        match self {
            IndexView::I32(s) => s[position].to_usize(),
            IndexView::I64(s) => s[position].to_usize(),
        }
    }

    /// The indices in `range`, which must lie inside.
    pub(super) fn slice(self, range: std::ops::Range<usize>) -> Self {
        match self {
            IndexView::I32(s) => IndexView::I32(&s[range]),
            IndexView::I64(s) => IndexView::I64(&s[range]),
        }
    }
}
