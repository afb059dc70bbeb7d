//! From values that a program knows when it runs to the constants and types that the library is generic
//! over: the number of spatial axes, and the element type.

/// Evaluates an expression with a constant that is a number of spatial axes known at run time.
///
/// `with_axes!(axes, D => body)` takes `axes` as a `usize` and makes `D` a constant of that value in
/// `body`, which is compiled for 1, 2 and 3 axes. The body is a `Result`, and so is the whole.
///
/// # Errors
/// What the body fails with; for any other number of axes [`Error::Invalid`](crate::Error::Invalid),
/// converted to the body's type of errors.
///
/// ```
/// use convmat::{Conv, Device, Error, Tensor, with_axes};
///
/// fn patches(x: &Tensor<f32>, kernel: usize) -> Result<Tensor<f32>, Error> {
///     let axes = x.shape().len().saturating_sub(2);
///     with_axes!(axes, D => Conv::new([kernel; D]).unfold(x))
/// }
///
/// let x = |shape: &[usize]| Tensor::<f32>::zeros(&Device::Cpu, shape);
/// assert_eq!(patches(&x(&[1, 2, 9])?, 3)?.shape(), [1, 2 * 3, 7]);
/// assert_eq!(patches(&x(&[1, 2, 9, 9])?, 3)?.shape(), [1, 2 * 9, 49]);
/// let error = patches(&x(&[1, 2])?, 3).unwrap_err();
/// assert_eq!(error.to_string(), "number of spatial axes is 0: expected 1, 2 or 3");
/// # Ok::<(), Error>(())
/// ```
#[macro_export]
macro_rules! with_axes {
    ($axes:expr, $D:ident => $body:expr $(,)?) => {{
        let axes: usize = $axes;
        match axes {
            1 => {
                const $D: usize = 1;
                $body
            }
            2 => {
                const $D: usize = 2;
                $body
            }
            3 => {
                const $D: usize = 3;
                $body
            }
            _ => ::core::result::Result::Err(::core::convert::From::from($crate::Error::Invalid {
                argument: ::std::string::String::from("number of spatial axes"),
                value: ::std::string::ToString::to_string(&axes),
                reason: ::std::string::String::from("expected 1, 2 or 3"),
            })),
        }
    }};
}

/// Evaluates an expression with a type that is an element type known at run time.
///
/// `with_dtype!(dtype, T => body)` takes `dtype` as a [`DType`](crate::DType) and makes `T` a name of
/// that type in `body`, which is compiled for all of them. The body is a `Result`, and so is the whole.
///
/// # Errors
/// What the body fails with; for an element type that this macro does not know
/// [`Error::ElementType`](crate::Error::ElementType), converted to the body's type of errors.
///
/// ```
/// use convmat::{Conv, DType, Error, with_axes, with_dtype};
///
/// /// Bytes of a gathering filter for one channel.
/// fn bytes(dtype: DType, axes: usize) -> Result<usize, Error> {
///     with_dtype!(dtype, T => with_axes!(axes, D => {
///         let filter = Conv::new([3; D]).gathering_filter::<T>(1);
///         filter.map(|filter| filter.len() * size_of::<T>())
///     }))
/// }
///
/// assert_eq!(bytes(DType::BF16, 1)?, 3 * 3 * 2);
/// assert_eq!(bytes(DType::F64, 2)?, 9 * 9 * 8);
/// # Ok::<(), Error>(())
/// ```
#[macro_export]
macro_rules! with_dtype {
    ($dtype:expr, $T:ident => $body:expr $(,)?) => {{
        let dtype: $crate::DType = $dtype;
        match dtype {
            $crate::DType::F16 => {
                type $T = $crate::half::f16;
                $body
            }
            $crate::DType::BF16 => {
                type $T = $crate::half::bf16;
                $body
            }
            $crate::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::DType::F64 => {
                type $T = f64;
                $body
            }
            // Types may be added to the crate, which a program that uses this macro has to expect.
            #[allow(unreachable_patterns)]
            _ => ::core::result::Result::Err(::core::convert::From::from(
                $crate::Error::ElementType {
                    argument: ::std::string::String::from("element type"),
                    expected: ::std::string::String::from("f16, bf16, f32 or f64"),
                    found: ::std::string::ToString::to_string(&dtype),
                },
            )),
        }
    }};
}
