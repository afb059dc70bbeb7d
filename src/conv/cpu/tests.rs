//! Plans: what they choose, and that runs depend on nothing but their operands.

use super::*;
use crate::geometry::{Conv, PaddingMode};
use crate::workers::ALIGNMENT;

/// A layer of these channels on images of 9 × 40.
fn layer(conv: Conv<2>, channels: usize, outputs: usize) -> Problem {
    Problem::new(&conv.bind([9, 40]).unwrap(), 2, channels, outputs).unwrap()
}

fn dense() -> Conv<2> {
    Conv::new([3, 3]).padding([1, 1])
}

fn depthwise() -> Problem {
    layer(dense().groups(6), 6, 6)
}

fn numbers<T: Element>(len: usize, seed: usize) -> Vec<T> {
    let number = |i: usize| ((i * 7919 + seed * 104_729) % 1013) as f64 / 506.0 - 1.0;
    (0..len).map(|i| T::from_f64(number(i))).collect()
}

fn by(algorithm: Algorithm) -> PlanOptions {
    PlanOptions::new().algorithm(algorithm)
}

/// What the run writes, in memory of these bytes.
fn result<T: Element>(
    len: usize,
    workers: &Workers,
    byte: u8,
    run: impl FnOnce(&mut [T], &mut [u8]),
) -> Vec<T> {
    let mut memory = vec![byte; workers.workspace() + ALIGNMENT];
    let start = memory.as_ptr().align_offset(ALIGNMENT);
    let mut result = vec![T::from_f64(7.0); len];
    run(&mut result, &mut memory[start..][..workers.workspace()]);
    result
}

/// Results by every algorithm that there is for the problem, in memory of these bytes.
fn results<T: Element>(p: &Problem, byte: u8) -> Vec<Vec<T>> {
    let (x_len, y_len) =
        (p.batch * p.channels * p.input_positions(), p.batch * p.outputs * p.output_positions());
    let (x, w, dy) = (numbers::<T>(x_len, 1), numbers::<T>(p.weight_len(), 2), numbers(y_len, 3));
    let (b, c) = (numbers::<T>(p.outputs, 4), numbers::<T>(p.channels, 5));
    let mut all = Vec::new();
    for algorithm in Algorithm::ALL {
        let (options, explanation) = (&by(algorithm), &mut Explanation::default());
        if let Ok((plan, workers)) = Forward::new::<T>(p, true, options, explanation) {
            all.push(result(y_len, &workers, byte, |y, memory| {
                plan.run(&workers, &x, &w, Some(&b), y, memory).unwrap();
            }));
        }
        if let Ok((plan, workers)) = BackwardInput::new::<T>(p, true, options, explanation) {
            all.push(result(x_len, &workers, byte, |dx, memory| {
                plan.run(&workers, &dy, &w, Some(&c), dx, memory).unwrap();
            }));
        }
        if let Ok((plan, workers)) = BackwardWeight::new::<T>(p, options, explanation) {
            all.push(result(w.len(), &workers, byte, |dw, memory| {
                plan.run(&workers, &x, &dy, dw, memory).unwrap();
            }));
        }
    }
    let explanation = &mut Explanation::default();
    let (plan, workers) =
        BackwardBias::new::<T>(p.layout, p.batch, p.outputs, p.output_positions(), explanation);
    all.push(result(p.outputs, &workers, byte, |db, memory| {
        plan.run(&workers, &dy, db, memory).unwrap();
    }));
    all
}

#[test]
fn runs_depend_on_neither_memory_nor_threads() {
    let mut problems = vec![depthwise()];
    for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
        problems.push(layer(dense().layout(layout), 5, 7));
        let strided = dense().stride([2, 3]).groups(2).layout(layout);
        problems.push(layer(strided.padding_mode(PaddingMode::Circular), 6, 4));
        problems.push(layer(strided, 6, 4));
    }
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    for p in &problems {
        let all = |byte: u8| {
            (results::<f32>(p, byte), results::<half::f16>(p, byte), results::<half::bf16>(p, byte))
        };
        let found = pool(1).install(|| all(0));
        assert!(found.0.len() >= 16);
        // All bits set: NaNs.
        let again = pool(3).install(|| all(0xff));
        assert_eq!(found, again, "{p:?}");
    }
}

#[test]
fn one_image_is_divided_without_a_trace() {
    // Three threads divide its rows and its outputs; slabs hold fewer channels than a sum has terms.
    let p = Problem::new(&dense().bind([60, 60]).unwrap(), 1, 26, 64).unwrap();
    let (x, w) = (numbers::<f32>(26 * 3600, 1), numbers::<f32>(p.weight_len(), 2));
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let (options, explanation) = (&by(Algorithm::Implicit), &mut Explanation::default());
            let (plan, workers) = Forward::new::<f32>(&p, true, options, explanation).unwrap();
            let y = result(64 * 3600, &workers, 0, |y, memory| {
                plan.run(&workers, &x, &w, None, y, memory).unwrap();
            });
            (explanation.passes.last().unwrap().to_string(), y)
        })
    };
    let (one, three) = (on(1), on(3));
    assert_ne!(one.0, three.0);
    assert!(one.1 == three.1);
}

/// The algorithm's name and the reason, for `y`, `dx` and `dw`.
fn choices(p: &Problem, algorithm: Algorithm) -> [Result<(String, String)>; 3] {
    let options = &by(algorithm);
    let told = |make: &dyn Fn(&mut Explanation) -> Result<()>| {
        let mut explanation = Explanation::default();
        make(&mut explanation)?;
        assert!(!explanation.passes.is_empty());
        Ok((explanation.algorithm, explanation.reason))
    };
    [
        told(&|e| Forward::new::<f32>(p, false, options, e).map(drop)),
        told(&|e| BackwardInput::new::<f32>(p, true, options, e).map(drop)),
        told(&|e| BackwardWeight::new::<f32>(p, options, e).map(drop)),
    ]
}

#[test]
fn named_algorithms_are_taken_or_refused() {
    let p = layer(dense(), 5, 7);
    for algorithm in Algorithm::ALL {
        for choice in choices(&p, algorithm) {
            match algorithm {
                Algorithm::Direct | Algorithm::Depthwise => {
                    assert!(matches!(choice, Err(Error::Invalid { .. })), "{algorithm}");
                }
                Algorithm::Auto => assert!(choice.is_ok()),
                _ => assert_eq!(choice.unwrap(), (algorithm.to_string(), ASKED.to_string())),
            }
        }
    }
}

#[test]
fn depthwise_layers_are_found() {
    let [y, dx, dw] = choices(&depthwise(), Algorithm::Depthwise);
    assert_eq!((&*y.unwrap().0, &*dx.unwrap().0), ("depthwise", "depthwise"));
    assert!(dw.is_err());
    let [y, dx, dw] = choices(&depthwise(), Algorithm::Auto).map(|choice| choice.unwrap().0);
    assert_eq!([&*y, &*dx, &*dw], ["depthwise", "depthwise", "implicit"]);
    let [y, dx, _] = choices(&depthwise(), Algorithm::Implicit).map(|choice| choice.unwrap().0);
    assert_eq!([&*y, &*dx], ["implicit", "implicit"]);
}

#[test]
fn the_input_gradient_of_other_padding_modes_is_im2col() {
    let p = layer(dense().padding_mode(PaddingMode::Reflect).groups(6), 6, 6);
    for algorithm in [Algorithm::Implicit, Algorithm::Auto] {
        let [y, dx, _] = choices(&p, algorithm).map(Result::unwrap);
        assert_ne!(y.0, "im2col");
        assert_eq!(dx.0, "im2col");
        assert!(dx.1.contains("implicit"), "{}", dx.1);
    }
    let [y, dx, _] = choices(&p, Algorithm::Depthwise);
    assert!(y.is_ok() && dx.is_err());
}
