//! What the papers say.

use convmat::{Convention, LevenbergMarquardt};

use super::*;

/// With one output position, a convolution is a linear layer: A = xᵀx/N, G = gᵀg/N.
#[test]
fn one_position_is_a_linear_layer() {
    let (n, channels, outputs) = (6, 3, 4);
    let x = randoms(n * channels * 6, 1);
    let dy = randoms(n * outputs, 2);
    for sharing in SHARINGS {
        let layer = KfacLayer::new(Conv::new([2, 3]), channels, outputs, [2, 3]).bias(true);
        let options = KfacOptions::new().sharing(sharing);
        let mut state = KfacState::<f64, 2>::new(&Device::Cpu, layer, options).unwrap();
        let (input, gradient) =
            (tensor(&[n, channels, 2, 3], &x), tensor(&[n, outputs, 1, 1], &dy));
        state.accumulate::<f64>(&input, &gradient).unwrap();
        let rows = DMatrix::from_row_slice(n, channels * 6, &x).insert_column(channels * 6, 1.0);
        let a = rows.transpose() * &rows / n as f64;
        let gradients = DMatrix::from_row_slice(n, outputs, &dy);
        let g = gradients.transpose() * &gradients / n as f64;
        assert_close(&block(state.input_factor().unwrap(), 0), &a, 1e-14, "A");
        assert_close(&block(state.output_factor().unwrap(), 0), &g, 1e-14, "G");
    }
}

/// For a squared loss and one position, K-FAC is the Gauss–Newton matrix: the loss's Hessian is the
/// identity, which is what output gradients √O·e_c, one for each output c, make of G.
#[test]
fn one_position_and_squared_loss_give_gauss_newton() {
    let (n, channels, outputs) = (40, 2, 3);
    let conv = Conv::new([2, 2]);
    let x = tensor::<f64>(&[n, channels, 2, 2], &randoms(n * channels * 4, 3));
    let d = channels * 4;
    // The outputs are linear in the weights: Jacobians are outputs for one weight at a time.
    let mut jacobians = vec![DMatrix::zeros(outputs, outputs * d); n];
    for weight in 0..outputs * d {
        let mut unit = vec![0.0; outputs * d];
        unit[weight] = 1.0;
        let unit = tensor::<f64>(&[outputs, channels, 2, 2], &unit);
        let y = values(&conv.forward(&x, &unit, None).unwrap());
        for (example, jacobian) in jacobians.iter_mut().enumerate() {
            (0..outputs).for_each(|o| jacobian[(o, weight)] = y[example * outputs + o]);
        }
    }
    let squares = jacobians.iter().map(|j| j.transpose() * j);
    let gauss_newton = squares.reduce(|sum, next| sum + next).unwrap() / n as f64;

    let layer = KfacLayer::new(conv, channels, outputs, [2, 2]);
    let options = KfacOptions::new().damping(1e-20);
    let mut state = KfacState::<f64, 2>::new(&Device::Cpu, layer, options).unwrap();
    for output in 0..outputs {
        let mut dy = vec![0.0; n * outputs];
        (0..n).for_each(|e| dy[e * outputs + output] = (outputs as f64).sqrt());
        state.accumulate::<f64>(&x, &tensor(&[n, outputs, 1, 1], &dy)).unwrap();
    }
    let (a, g) =
        (block(state.input_factor().unwrap(), 0), block(state.output_factor().unwrap(), 0));
    assert_close(&g.kronecker(&a), &gauss_newton, 1e-13, "the Gauss–Newton matrix");
    state.refresh().unwrap();
    let gradient = randoms(outputs * d, 4);
    let found = state.precondition(&tensor(&[outputs, d], &gradient)).unwrap();
    let right = DMatrix::from_column_slice(outputs * d, 1, &gradient);
    let step = gauss_newton.lu().solve(&right).unwrap();
    let found = DMatrix::from_column_slice(outputs * d, 1, &values(&found));
    assert_close(&found, &step, 1e-8, "its step");
}

/// Λ is the diagonal of the empirical Fisher matrix in the basis of the eigenvectors, and with that the basis'
/// best approximation: no worse than K-FAC's in Frobenius norm (George et al. 2018).
fn check_second_moments<const D: usize>(problem: &Problem, what: &str) {
    for sharing in SHARINGS {
        let options = KfacOptions::new().method(KfacMethod::Ekfac).sharing(sharing);
        let state = prepared::<D>(problem, options);
        let (input, output) = state.basis().unwrap();
        for (number, group) in problem.groups().iter().enumerate() {
            let what = format!("{what}, {sharing}, group {number}");
            let (a, g) = group.factors(sharing);
            let (q_a, q_g) = (block(input.vectors(), number), block(output.vectors(), number));
            for (eigen, q, factor) in [(input, &q_a, &a), (output, &q_g, &g)] {
                let n = factor.nrows();
                let found = &values(eigen.values())[number * n..][..n];
                assert!(found.is_sorted() && found[0] >= 0.0, "{what}: {found:?}");
                let diagonal = DMatrix::from_diagonal(&nalgebra::DVector::from_row_slice(found));
                assert_close(&(q * diagonal * q.transpose()), factor, 1e-12, &what);
                assert_close(&(q.transpose() * q), &DMatrix::identity(n, n), 1e-12, &what);
            }
            let (basis, fisher) = (q_g.kronecker(&q_a), group.fisher());
            let rotated = basis.transpose() * &fisher * &basis;
            let moments = block(state.second_moments().unwrap(), number);
            let moments = row_major(&moments);
            let found = DMatrix::from_column_slice(moments.len(), 1, &moments);
            let expected = rotated.diagonal();
            let expected = DMatrix::from_column_slice(moments.len(), 1, expected.as_slice());
            assert_close(&found, &expected, 1e-11, &what);
            let diagonal = DMatrix::from_diagonal(&nalgebra::DVector::from_row_slice(&moments));
            let ekfac = (&fisher - &basis * diagonal * basis.transpose()).norm();
            let kfac = (&fisher - g.kronecker(&a)).norm();
            assert!(ekfac <= kfac * (1.0 + 1e-12), "{what}: {ekfac} against {kfac}");
        }
    }
}

#[test]
fn second_moments_are_the_best_in_their_basis() {
    for (name, problem) in problems() {
        over!(problem, D => check_second_moments::<D>(&problem, &name));
    }
}

/// A grouped convolution is independent convolutions, and so are its factors, bases and gradients.
#[test]
fn groups_are_independent() {
    let (groups, n, channels, outputs) = (3, 7, 2, 4);
    let conv = Conv::new([3, 2]).padding([1, 1]).stride([2, 1]);
    let (x, dy) = (randoms(n * groups * channels * 30, 5), randoms(n * groups * outputs * 21, 6));
    let part = |data: &[f64], each: usize, group: usize| -> Vec<f64> {
        data.chunks_exact(groups * each)
            .flat_map(|image| &image[group * each..][..each])
            .copied()
            .collect()
    };
    for method in KfacMethod::ALL {
        let options = KfacOptions::new().method(method).damping(0.02);
        let layer = |groups: usize| {
            let conv = conv.groups(groups);
            KfacLayer::new(conv, groups * channels, groups * outputs, [5, 6]).bias(true)
        };
        let mut all = KfacState::<f64, 2>::new(&Device::Cpu, layer(groups), options).unwrap();
        let x_all = tensor::<f64>(&[n, groups * channels, 5, 6], &x);
        let dy_all = tensor::<f64>(&[n, groups * outputs, 3, 7], &dy);
        all.step(&x_all, &dy_all).unwrap();
        let gradient = all.mean_gradient(&x_all, &dy_all).unwrap();
        let found = all.precondition(&gradient).unwrap();
        for group in 0..groups {
            let mut one = KfacState::<f64, 2>::new(&Device::Cpu, layer(1), options).unwrap();
            let x = tensor::<f64>(&[n, channels, 5, 6], &part(&x, channels * 30, group));
            let dy = tensor::<f64>(&[n, outputs, 3, 7], &part(&dy, outputs * 21, group));
            one.step(&x, &dy).unwrap();
            let gradient = one.mean_gradient(&x, &dy).unwrap();
            let expected = one.precondition(&gradient).unwrap();
            let what = format!("{method}, group {group}");
            assert_close(&block(&found, group), &block(&expected, 0), 1e-10, &what);
            if let (Some(all), Some(one)) = (all.input_factor(), one.input_factor()) {
                assert_close(&block(all, group), &block(one, 0), 1e-14, &what);
            }
        }
    }
}

/// Conventions differ in where powers of T are, and all that say so agree in the product.
#[test]
fn conventions_keep_the_product() {
    let (_, case) = named().pop().unwrap();
    let problem = Problem::new(&case, true);
    let state = prepared::<2>(&problem, KfacOptions::new());
    let t = problem.positions();
    let (a, g) =
        (block(state.input_factor().unwrap(), 0), block(state.output_factor().unwrap(), 0));
    let canonical = g.kronecker(&a);
    for convention in Convention::ALL {
        let (input, output) = state.factors_in(convention).unwrap();
        let scales = convention.scales(t);
        let product = block(&output, 0).kronecker(&block(&input, 0)) * scales.product;
        let power = if convention.agrees() { 1.0 } else { (t as f64).powi(-5) };
        assert_close(&product, &(&canonical * power), 1e-14, &convention.to_string());
        for other in Convention::ALL {
            let there = convention.to(other, t);
            let back = other.to(convention, t);
            for (there, back) in [
                (there.input, back.input),
                (there.output, back.output),
                (there.product, back.product),
            ] {
                assert!((there * back - 1.0).abs() < 1e-14, "{convention} to {other}");
            }
        }
        // With the π correction it does not matter in which of those that agree the damping is added.
        let gradient = tensor::<f64>(a_gradient(&state), &randoms(39, 7));
        let plain = state.precondition(&gradient).unwrap();
        let other = prepared::<2>(&problem, KfacOptions::new().convention(convention));
        let found = other.precondition(&gradient).unwrap();
        let difference = (block(&found, 0) - block(&plain, 0)).norm();
        let same = difference <= 1e-10 * block(&plain, 0).norm();
        assert_eq!(same, convention.agrees(), "{convention}: {difference}");
    }
}

fn a_gradient(state: &KfacState<f64, 2>) -> &'static [usize] {
    assert_eq!(state.input_factor().unwrap().shape(), [1, 13, 13]);
    &[1, 3, 13]
}

/// Few large eigenvalues and the mean of the others: within the bound, and exact where the others are equal.
#[test]
fn low_ranks_keep_their_bounds() {
    let (n, channels, outputs) = (30, 12, 9);
    let conv = Conv::new([1]);
    // Channels of decaying size, so that eigenvalues decay.
    let decayed = |len: usize, channels: usize, seed: u64| -> Vec<f64> {
        let values = randoms(len, seed).into_iter().enumerate();
        values.map(|(at, value)| value * 0.5f64.powi((at / 4 % channels) as i32)).collect()
    };
    let x = tensor::<f64>(&[n, channels, 4], &decayed(n * channels * 4, channels, 8));
    let dy = tensor::<f64>(&[n, outputs, 4], &decayed(n * outputs * 4, outputs, 9));
    let layer = KfacLayer::new(conv, channels, outputs, [4]);
    let new = |options| {
        let mut state = KfacState::<f64, 1>::new(&Device::Cpu, layer, options).unwrap();
        state.step(&x, &dy).unwrap();
        state
    };
    let options = KfacOptions::new().damping(1e-2);
    let dense = new(options);
    assert_eq!(dense.low_rank_bounds(), [None, None]);
    let gradient = dense.mean_gradient(&x, &dy).unwrap();
    let exact = block(&dense.precondition(&gradient).unwrap(), 0);
    let mut errors = Vec::new();
    for rank in [1, 4, 8] {
        let state = new(options.rank(rank));
        let factors = [state.input_factor().unwrap(), state.output_factor().unwrap()];
        for (bounds, factor) in state.low_rank_bounds().into_iter().zip(factors) {
            let bound = bounds.unwrap()[0];
            let eigen = block(factor, 0).symmetric_eigen();
            let mut found = eigen.eigenvalues.as_slice().to_vec();
            found.sort_by(|a, b| b.total_cmp(a));
            let others = &found[rank..];
            let mean = others.iter().sum::<f64>() / others.len() as f64;
            let distances: Vec<f64> = others.iter().map(|value| (value - mean).abs()).collect();
            let frobenius = distances.iter().map(|d| d * d).sum::<f64>().sqrt();
            let spectral = distances.iter().fold(0.0f64, |most, d| most.max(*d));
            assert!((bound.frobenius - frobenius).abs() <= 1e-6 * found[0], "rank {rank}");
            assert!(bound.spectral >= spectral - 1e-9 * found[0], "rank {rank}");
        }
        let found = block(&state.precondition(&gradient).unwrap(), 0);
        errors.push((found - &exact).norm() / exact.norm());
    }
    assert!(errors.is_sorted_by(|a, b| a > b) && errors[2] < 0.05, "{errors:?}");
    // With all but one eigenvalue nothing is replaced.
    let found = new(options.rank(11)).precondition(&gradient).unwrap();
    assert_close(&block(&found, 0), &exact, 1e-8, "rank 11 of 12 and of 9");
}

#[test]
fn damping_adapts_as_levenberg_and_marquardts() {
    let mut damping =
        LevenbergMarquardt::new(2.0).unwrap().omega(0.5).unwrap().interval(2).unwrap();
    assert_eq!(damping.update(0.76).unwrap(), 0.5);
    assert_eq!(damping.update(0.75).unwrap(), 0.5);
    assert_eq!(damping.update(0.25).unwrap(), 0.5);
    assert_eq!(damping.update(f64::NEG_INFINITY).unwrap(), 2.0);
    assert!(damping.update(f64::NAN).is_err());
    assert_eq!(damping.damping(), 2.0);
    let mut bounded = damping.bounds(1.0, 3.0).unwrap();
    assert_eq!((bounded.update(0.0).unwrap(), bounded.update(1.0).unwrap()), (3.0, 1.0));
    for wrong in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(LevenbergMarquardt::new(wrong).unwrap_err().to_string().contains("damping"));
        assert!(damping.omega(wrong).is_err() && damping.bounds(wrong, 1.0).is_err());
    }
    assert!(damping.bounds(2.0, 1.0).is_err() && damping.interval(0).is_err());
}
