//! Averages and schedules.

use super::*;

/// The values of a state that batches change.
fn contents(state: &KfacState<f64, 1>) -> Vec<Vec<f64>> {
    let tensors = [state.input_factor(), state.output_factor(), state.second_moments()];
    tensors.into_iter().flatten().map(values).collect()
}

fn batches() -> Vec<(Tensor<f64>, Tensor<f64>)> {
    let batch = |(seed, n): (u64, usize)| {
        let x = tensor(&[n, 4, 4], &randoms(n * 16, 2 * seed + 30));
        let dy = tensor(&[n, 6, 3], &randoms(n * 18, 2 * seed + 31));
        (x, dy)
    };
    [(0, 3), (1, 1), (2, 4), (3, 2), (4, 3), (5, 2), (6, 1)].into_iter().map(batch).collect()
}

fn new(options: KfacOptions) -> KfacState<f64, 1> {
    KfacState::new(&Device::Cpu, small().0, options).unwrap()
}

fn joined(batches: &[(Tensor<f64>, Tensor<f64>)]) -> (Tensor<f64>, Tensor<f64>) {
    let (mut x, mut dy, mut n) = (Vec::new(), Vec::new(), 0);
    for (batch, gradients) in batches {
        x.extend(values(batch));
        dy.extend(values(gradients));
        n += batch.shape()[0];
    }
    (tensor(&[n, 4, 4], &x), tensor(&[n, 6, 3], &dy))
}

fn assert_same(found: &KfacState<f64, 1>, expected: &KfacState<f64, 1>, what: &str) {
    for (found, expected) in contents(found).iter().zip(contents(expected)) {
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() <= 1e-13 * (1.0 + expected.abs()), "{what}");
        }
    }
}

/// Without a decay, batches are as one batch of all their examples.
#[test]
fn plain_averages_are_over_examples() {
    for method in [KfacMethod::Kfac, KfacMethod::Ekfac, KfacMethod::Diagonal] {
        for sharing in SHARINGS {
            let options = KfacOptions::new().method(method).sharing(sharing);
            let (mut parts, mut whole) = (new(options), new(options));
            batches().iter().for_each(|(x, dy)| parts.accumulate(x, dy).unwrap());
            let (x, dy) = joined(&batches());
            whole.accumulate(&x, &dy).unwrap();
            assert_eq!(parts.examples(), 16);
            assert_same(&parts, &whole, &format!("{method}, {sharing}"));
        }
    }
}

/// With a decay, the first batch counts in full, and each later one 1 − β.
#[test]
fn running_averages_decay() {
    let beta = 0.75;
    for method in KfacMethod::ALL {
        let options = KfacOptions::new().method(method).decay(beta);
        let mut state = new(options);
        let mut expected: Vec<Vec<f64>> = Vec::new();
        for (x, dy) in batches() {
            state.accumulate(&x, &dy).unwrap();
            let mut one = new(options);
            one.accumulate(&x, &dy).unwrap();
            let new = contents(&one);
            expected = match expected.is_empty() {
                true => new,
                false => {
                    let mix = |(old, new): (&f64, &f64)| beta * old + (1.0 - beta) * new;
                    let each =
                        |(old, new): (&Vec<f64>, &Vec<f64>)| old.iter().zip(new).map(mix).collect();
                    expected.iter().zip(&new).map(each).collect()
                }
            };
        }
        for (found, expected) in contents(&state).iter().zip(&expected) {
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() <= 1e-13 * (1.0 + expected.abs()), "{method}");
            }
        }
    }
}

/// Shampoo's matrices are sums, without a decay.
#[test]
fn shampoo_adds_up() {
    let options = KfacOptions::new().method(KfacMethod::Shampoo);
    let mut state = new(options);
    let mut sums = vec![vec![0.0; 2 * 25], vec![0.0; 2 * 9]];
    for (x, dy) in batches() {
        state.accumulate(&x, &dy).unwrap();
        let gradient = state.mean_gradient(&x, &dy).unwrap();
        for group in 0..2 {
            let dw = block(&gradient, group);
            let products = [dw.transpose() * &dw, &dw * dw.transpose()];
            for (sum, product) in sums.iter_mut().zip(products) {
                let len = product.len();
                let part = sum[group * len..][..len].iter_mut();
                part.zip(row_major(&product)).for_each(|(sum, new)| *sum += new);
            }
        }
    }
    for (found, expected) in contents(&state).iter().zip(&sums) {
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() <= 1e-12 * (1.0 + expected.abs()));
        }
    }
}

/// Steps are the calls that the schedule names, to the last bit.
#[test]
fn steps_follow_the_schedule() {
    let gradient = tensor::<f64>(&[2, 3, 5], &randoms(30, 41));
    for method in KfacMethod::ALL {
        for (update, refresh) in [(1, 1), (2, 3), (3, 2), (1, 5)] {
            let options = KfacOptions::new().method(method).decay(0.9);
            let scheduled = options.update_every(update).refresh_every(refresh);
            let (mut found, mut expected) = (new(scheduled), new(options));
            for (step, (x, dy)) in (0u64..).zip(batches()) {
                found.step(&x, &dy).unwrap();
                if step % update == 0 {
                    expected.accumulate(&x, &dy).unwrap();
                }
                if step % refresh == 0 {
                    expected.refresh().unwrap();
                }
                if step % update == 0 && method == KfacMethod::Ekfac {
                    expected.accumulate_second_moments(&x, &dy).unwrap();
                }
                assert_eq!(found.steps(), step + 1);
                assert_eq!(contents(&found), contents(&expected), "{method} {update} {refresh}");
                let [found, expected] =
                    [&found, &expected].map(|state| state.precondition(&gradient).unwrap());
                assert_eq!(found, expected, "{method} {update} {refresh}, step {step}");
            }
        }
    }
}

/// After the first refresh Λ is what K-FAC says, the products of the eigenvalues, until data replace it.
#[test]
fn second_moments_start_from_kfac() {
    let (_, x, dy) = small();
    let mut state = new(KfacOptions::new().method(KfacMethod::Ekfac));
    state.accumulate(&x, &dy).unwrap();
    assert!(state.second_moments().is_none());
    state.refresh().unwrap();
    let (input, output) = state.basis().unwrap();
    let (a, g) = (values(input.values()), values(output.values()));
    let products: Vec<f64> = (0..30).map(|at| g[at / 5] * a[at / 15 * 5 + at % 5]).collect();
    assert_eq!(values(state.second_moments().unwrap()), products);
    state.accumulate_second_moments(&x, &dy).unwrap();
    let first = values(state.second_moments().unwrap());
    assert_ne!(first, products);
    // As if there had been no second refresh before data.
    let mut other = new(KfacOptions::new().method(KfacMethod::Ekfac));
    other.accumulate(&x, &dy).unwrap();
    other.refresh().unwrap();
    other.refresh().unwrap();
    assert_eq!(values(other.second_moments().unwrap()), products);
    other.accumulate_second_moments(&x, &dy).unwrap();
    assert_eq!(values(other.second_moments().unwrap()), first);
}

/// Later refreshes carry Λ over to the new eigenvectors: the diagonal there of Q·diag(Λ)·Qᵀ, of which the
/// trace stays, and Λ itself where the eigenvectors stay.
#[test]
fn refreshes_carry_second_moments_over() {
    let mut state = new(KfacOptions::new().method(KfacMethod::Ekfac).decay(0.9));
    for (x, dy) in batches() {
        state.accumulate(&x, &dy).unwrap();
        state.refresh().unwrap();
        state.accumulate_second_moments(&x, &dy).unwrap();
        let old = state.second_moments().unwrap().clone();
        state.refresh().unwrap();
        let same = state.second_moments().unwrap();
        let close = |a: f64, b: f64| (a - b).abs() <= 1e-12 * (1.0 + b.abs());
        assert!(values(same).into_iter().zip(values(&old)).all(|(a, b)| close(a, b)));
        let basis = |state: &KfacState<f64, 1>, group: usize| {
            let (input, output) = state.basis().unwrap();
            let [q_a, q_g] = [input, output].map(|eigen| block(eigen.vectors(), group));
            q_a.kronecker(&q_g)
        };
        let before = [0, 1].map(|group| basis(&state, group));
        let old = [0, 1].map(|group| block(state.second_moments().unwrap(), group));
        state.accumulate(&turned(&x), &dy).unwrap();
        state.refresh().unwrap();
        for group in [0, 1] {
            // Columns of dW, one after the other, are rows of A ⊗ G.
            let (outputs, rows) = (old[group].nrows(), old[group].ncols());
            let diagonal = DVector::from_iterator(outputs * rows, old[group].iter().copied());
            let fisher =
                &before[group] * DMatrix::from_diagonal(&diagonal) * before[group].transpose();
            let now = basis(&state, group);
            let expected = (now.transpose() * fisher * &now).diagonal();
            let found = block(state.second_moments().unwrap(), group);
            assert!(found.iter().zip(expected.iter()).all(|(&a, &b)| close(a, b)));
            assert!(close(found.sum(), old[group].sum()));
        }
    }
}

/// Other data of the same shape.
fn turned(x: &Tensor<f64>) -> Tensor<f64> {
    let data: Vec<f64> = values(x).iter().rev().map(|value| value * 0.7 + 0.1).collect();
    tensor(x.shape(), &data)
}
