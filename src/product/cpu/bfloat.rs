//! bf16 from and to f32, compiled for each instruction set.

use half::bf16;

use super::vector::Instructions;

/// Has a loop over elements compiled for each instruction set, and runs it by the one that is used.
macro_rules! conversion {
    ($(#[$doc:meta])* $name:ident, $source:ty, $target:ty, $convert:expr) => {
        $(#[$doc])*
        pub(crate) fn $name(source: &[$source], target: &mut [$target]) {
            #[inline(always)]
            fn all(source: &[$source], target: &mut [$target]) {
                target.iter_mut().zip(source).for_each(|(to, &from)| *to = $convert(from));
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f")]
            fn by_avx512(source: &[$source], target: &mut [$target]) {
                all(source, target);
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2")]
            fn by_avx2(source: &[$source], target: &mut [$target]) {
                all(source, target);
            }
            assert_eq!(source.len(), target.len());
            match Instructions::best() {
                // SAFETY: this machine has the instructions that are used.
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx512 => unsafe { by_avx512(source, target) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx2 => unsafe { by_avx2(source, target) },
                Instructions::Portable => all(source, target),
            }
        }
    };
}

conversion!(
    /// Widens exactly.
    widen,
    bf16,
    f32,
    bf16::to_f32
);
conversion!(
    /// Rounds to nearest, ties to even.
    narrow,
    f32,
    bf16,
    rounded
);

/// Without branches, so that loops are over vectors.
#[inline(always)]
fn rounded(value: f32) -> bf16 {
    let bits = value.to_bits();
    let upper = bits >> 16;
    // Half of the last place that is kept, less one where that is even: ties then are carried only if it is odd.
    let nearest = bits.wrapping_add(0x7fff + (upper & 1)) >> 16;
    // What is left of a NaN has to be one.
    bf16::from_bits(if value.is_nan() { upper | 0x40 } else { nearest } as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_upper_halves_with_ties_and_their_neighbours_are_rounded() {
        for lower in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
            let source: Vec<f32> =
                (0..=0xffffu32).map(|upper| f32::from_bits(upper << 16 | lower)).collect();
            let mut target = vec![bf16::ZERO; source.len()];
            narrow(&source, &mut target);
            for (found, value) in target.iter().zip(source) {
                assert_eq!(found.to_bits(), bf16::from_f32(value).to_bits(), "{value:e}");
            }
        }
    }
}
