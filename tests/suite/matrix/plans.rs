//! Plans of matrices and of products with them.

use super::*;
use crate::catalogue::{devices, on};

/// Layouts whose weights are packed and are not, with and without a bias, with taps that share columns.
fn layers() -> impl Iterator<Item = (Conv<2>, Vec<usize>, bool)> {
    let modes = [PaddingMode::Zeros, PaddingMode::Reflect];
    let layouts = [Layout::ChannelsFirst, Layout::ChannelsLast];
    modes.into_iter().flat_map(move |mode| {
        layouts.into_iter().flat_map(move |layout| {
            [false, true].into_iter().map(move |bias| {
                let conv = Conv::new([3, 2]).padding([1, 1]).padding_mode(mode).layout(layout);
                let conv = conv.groups(2).stride([1, 2]);
                (conv, layout.weight_shape(4, 3, &[3, 2]), bias)
            })
        })
    })
}

#[test]
fn plans_assemble_again_and_again() {
    for (conv, shape, with_bias) in layers() {
        for device in devices() {
            let plan =
                conv.plan_matrix::<f32>(device, &shape, with_bias, [5, 6], PlanOptions::new());
            let plan = plan.unwrap();
            let back = conv.plan_transposed_matrix::<f32>(
                device,
                &shape,
                false,
                [5, 4],
                [0, 0],
                PlanOptions::new(),
            );
            let back = back.unwrap();
            assert_eq!(plan.size(), conv.matrix_size(&shape, with_bias, [5, 6]).unwrap());
            let bytes = plan.workspace().max(back.workspace());
            let mut workspace = Workspace::new(device, bytes).unwrap();
            let len = shape.iter().product();
            let other = on(device, &tensor::<f32>(&shape, &vec![7.0; len]));
            let b = on(device, &tensor::<f32>(&[4], &integers(4, 9, 9)));
            let bias = with_bias.then(|| b.view());
            let mut target = conv.matrix(&other, bias.clone(), [5, 6]).unwrap();
            let mut turned = conv.transposed_matrix(&other, None, [5, 4], [0, 0]).unwrap();
            for seed in 0..2 {
                let w = on(device, &tensor::<f32>(&shape, &integers(len, seed, 9)));
                plan.run(&w, bias.clone(), &mut target, &mut workspace).unwrap();
                assert_eq!(target, conv.matrix(&w, bias.clone(), [5, 6]).unwrap());
                back.run(&w, None, &mut turned, &mut workspace).unwrap();
                assert_eq!(turned, conv.transposed_matrix(&w, None, [5, 4], [0, 0]).unwrap());
            }
            let explanation = plan.explanation();
            let merges = conv.mode() != PaddingMode::Zeros;
            assert_eq!((explanation.operation, explanation.flop > 0), ("matrix", merges));
            assert_eq!(back.explanation().operation, "transposed_matrix");
            assert!(!explanation.passes.is_empty() && !explanation.reason.is_empty());
        }
    }
}

#[test]
fn runs_of_matrix_plans_check_their_operands() {
    let conv = Conv::new([2]);
    for device in devices() {
        let w = on(device, &tensor::<f32>(&[1, 1, 2], &[1.0, -1.0]));
        let b = on(device, &tensor::<f32>(&[1], &[1.0]));
        let plan = conv.plan_matrix::<f32>(device, &[1, 1, 2], false, [3], PlanOptions::new());
        let plan = plan.unwrap();
        let mut workspace = plan.make_workspace().unwrap();
        let mut run = |w: &Tensor<f32>, b: Option<&Tensor<f32>>, target: &mut Csr<f32>| {
            let bias = b.map(Tensor::view);
            plan.run(w, bias, target, &mut workspace).map_err(|error| error.to_string())
        };
        let mut target = conv.matrix(&w, None, [3]).unwrap();
        assert!(
            run(&w, Some(&b), &mut target).unwrap_err().contains("the plan was made without one")
        );
        assert!(run(&b, None, &mut target).unwrap_err().contains("weight has shape [1]"));
        let mut larger = conv.matrix(&w, None, [4]).unwrap();
        assert!(run(&w, None, &mut larger).unwrap_err().contains("the matrix has shape [3, 4]"));
        assert_eq!(run(&w, None, &mut target), Ok(()));

        // Indices are as wide as was planned.
        let wide = PlanOptions::new().index_width(IndexWidth::I64);
        let wide = conv.plan_matrix::<f32>(device, &[1, 1, 2], false, [3], wide).unwrap();
        assert_eq!(wide.index_width(), IndexWidth::I64);
        let refused = wide.run(&w, None, &mut target, &mut workspace).unwrap_err();
        assert!(matches!(refused, Error::ElementType { .. }), "{refused}");
        assert_eq!(target, conv.matrix(&w, None, [3]).unwrap(), "it was left alone");
    }
    let narrow = PlanOptions::new().index_width(IndexWidth::I32);
    let conv = Conv::new([3, 3]).padding([1, 1]);
    let shape = [128, 128, 3, 3];
    let refused = conv.plan_matrix::<f32>(&Device::Cpu, &shape, false, [224, 224], narrow);
    assert!(refused.unwrap_err().to_string().contains("7354777600"));
}

#[test]
fn plans_multiply_any_matrix_of_the_size() {
    let (conv, shape, _) = layers().next().unwrap();
    let len = shape.iter().product();
    for device in devices() {
        let matrices = [1, 2].map(|seed| {
            let w = on(device, &tensor::<f16>(&shape, &integers(len, seed, 2)));
            conv.matrix(&w, None, [5, 6]).unwrap()
        });
        let [rows, columns] = matrices[0].shape();
        for vectors in [None, Some(0), Some(1), Some(4)] {
            let panel = |extent: usize| match vectors {
                None => vec![extent],
                Some(vectors) => vec![extent, vectors],
            };
            let count = vectors.unwrap_or(1);
            let there = |extent: usize| {
                on(device, &tensor::<f16>(&panel(extent), &integers(extent * count, 3, 2)))
            };
            let (x, y) = (there(columns), there(rows));
            let product = vectors.map_or(Product::vector(), Product::matrix);
            let forward = matrices[0].plan_product(product, PlanOptions::new()).unwrap();
            let back = matrices[0].plan_product(product.adjoint(), PlanOptions::new()).unwrap();
            let flop = 2 * (matrices[0].nnz() * count) as u64;
            assert_eq!((forward.explanation().flop, back.explanation().flop), (flop, flop));
            let bytes = forward.workspace().max(back.workspace());
            let mut workspace = Workspace::new(device, bytes).unwrap();
            for matrix in &matrices {
                let dense = matrix.to_dense().unwrap();
                let dense = values(&dense);
                let mut found = on(device, &tensor::<f16>(&panel(rows), &vec![7.0; rows * count]));
                forward.run(matrix, &x, &mut found, &mut workspace).unwrap();
                let mut turned =
                    on(device, &tensor::<f16>(&panel(columns), &vec![7.0; columns * count]));
                back.run(matrix, &y, &mut turned, &mut workspace).unwrap();
                let (x, y) = (values(&x), values(&y));
                let at = |row: usize, column: usize| dense[row * columns + column];
                for v in 0..count {
                    for row in 0..rows {
                        let sum: f64 = (0..columns).map(|c| at(row, c) * x[c * count + v]).sum();
                        assert_eq!(values(&found)[row * count + v], sum);
                    }
                    for column in 0..columns {
                        let sum: f64 = (0..rows).map(|r| at(r, column) * y[r * count + v]).sum();
                        assert_eq!(values(&turned)[column * count + v], sum);
                    }
                }
            }
        }
        let plan = matrices[0].plan_product(Product::vector(), PlanOptions::new()).unwrap();
        let mut workspace = plan.make_workspace().unwrap();
        let (x, mut y) = (
            on(device, &tensor::<f16>(&[columns], &vec![0.0; columns])),
            on(device, &tensor::<f16>(&[rows], &vec![0.0; rows])),
        );
        let turned = matrices[0].transpose().unwrap();
        let refused = plan.run(&turned, &x, &mut y, &mut workspace).unwrap_err();
        assert!(refused.to_string().contains("the matrix has shape"), "{refused}");
        assert_eq!(turned.try_clone().unwrap(), turned);
        let csc = turned.into_transposed_csc();
        assert_eq!(csc.try_clone().unwrap(), csc);
    }
}

/// Runs of plans only launch and copy, as a stream that is captured into a graph demands: tables and packed
/// weights were made with the plan.
#[cfg(all(feature = "simulator", unix))]
#[test]
fn runs_may_be_captured_in_a_graph() {
    use crate::catalogue::sanitized;
    use crate::plans::run_captured;
    let Some(device) = sanitized() else { return };
    let Device::Cuda(cuda) = &device else { unreachable!("the simulator is a CUDA device") };
    for (conv, shape, with_bias) in layers() {
        let options = PlanOptions::new();
        let len = shape.iter().product();
        let w = on(&device, &tensor::<f32>(&shape, &integers(len, 1, 9)));
        let b = with_bias.then(|| on(&device, &tensor::<f32>(&[4], &integers(4, 9, 9))));
        let plan = conv.plan_matrix::<f32>(&device, &shape, with_bias, [5, 6], options).unwrap();
        let expected = conv.matrix(&w, &b, [5, 6]).unwrap();
        let zeros = on(&device, &tensor::<f32>(&shape, &vec![0.0; len]));
        let mut target = conv.matrix(&zeros, &b, [5, 6]).unwrap();
        let mut workspace = plan.make_workspace().unwrap();
        run_captured(cuda, || plan.run(&w, &b, &mut target, &mut workspace));
        assert_eq!(target, expected);

        let [rows, columns] = expected.shape();
        let y = on(&device, &tensor::<f32>(&[rows], &integers(rows, 2, 9)));
        let mut x = Tensor::zeros(&device, &[columns]).unwrap();
        let plan = expected.plan_product(Product::vector().adjoint(), options).unwrap();
        let mut workspace = plan.make_workspace().unwrap();
        run_captured(cuda, || plan.run(&expected, &y, &mut x, &mut workspace));
        assert_eq!(x, expected.adjoint_mul_vector(&y).unwrap());

        let plan = conv.plan_filter::<f32>(&device, 6, options).unwrap();
        let mut filter = Tensor::zeros(&device, plan.result_shape()).unwrap();
        let mut workspace = plan.make_workspace().unwrap();
        run_captured(cuda, || plan.run(&mut filter, &mut workspace));
        assert_eq!(filter, conv.gathering_filter_on(&device, 6).unwrap());
    }
}

/// A repeated run builds no table and takes no memory but its workspace.
#[test]
fn runs_on_the_cpu_allocate_nothing() {
    use crate::plans::{allocations, rayon_pool};
    let check = |name: &str, run: &mut dyn FnMut() -> Result<(), Error>| {
        run().unwrap();
        let before = allocations();
        run().unwrap();
        assert_eq!(allocations() - before, 0, "{name}");
    };
    rayon_pool(1).install(|| {
        for (conv, shape, with_bias) in layers() {
            let options = PlanOptions::new();
            let len = shape.iter().product();
            let w = tensor::<f16>(&shape, &integers(len, 1, 9));
            let b = with_bias.then(|| tensor::<f16>(&[4], &integers(4, 9, 9)));
            let plan =
                conv.plan_matrix::<f16>(&Device::Cpu, &shape, with_bias, [5, 6], options).unwrap();
            let mut matrix = conv.matrix(&w, &b, [5, 6]).unwrap();
            let mut workspace = plan.make_workspace().unwrap();
            check("matrix", &mut || plan.run(&w, &b, &mut matrix, &mut workspace));
            let [rows, columns] = matrix.shape();
            let mut y = tensor::<f16>(&[rows, 3], &integers(3 * rows, 2, 2));
            let mut x = tensor::<f16>(&[columns, 3], &integers(3 * columns, 2, 2));
            let forward = matrix.plan_product(Product::matrix(3), options).unwrap();
            let back = matrix.plan_product(Product::matrix(3).adjoint(), options).unwrap();
            let mut workspace = forward.make_workspace().unwrap();
            check("product", &mut || forward.run(&matrix, &x, &mut y, &mut workspace));
            let mut workspace = back.make_workspace().unwrap();
            check("adjoint", &mut || back.run(&matrix, &y, &mut x, &mut workspace));
            let plan = conv.plan_filter::<f16>(&Device::Cpu, 6, options).unwrap();
            let mut filter = Tensor::zeros(&Device::Cpu, plan.result_shape()).unwrap();
            let mut workspace = plan.make_workspace().unwrap();
            check("filter", &mut || plan.run(&mut filter, &mut workspace));
        }
    });
}
