//! Plans of operations with sparse weights, and what is refused.

use convmat::{Conv, Device, Error, Layout, PlanOptions, Pruning, SparseWeight, Tensor, Workspace};

use crate::catalogue::{accelerators, devices, integers, on, tensor, values};

/// A 3×3 layer of 4 → 6 channels in two groups.
fn layer() -> Conv<2> {
    Conv::new([3, 3]).padding([1, 1]).groups(2)
}

fn weight(seed: u64, threshold: f64) -> SparseWeight<f32> {
    let dense = tensor::<f32>(&[6, 2, 3, 3], &integers(108, seed, 2));
    SparseWeight::from_dense(&layer(), &dense, Pruning::Threshold(threshold)).unwrap()
}

#[test]
fn plans_run_many_times_on_other_values() {
    let (conv, options) = (layer(), PlanOptions::new());
    let weight = weight(1, 0.);
    let entries = weight.entries();
    for device in devices() {
        let mut there = weight.clone().to_device(device).unwrap();
        let (x, y) = ([2, 4, 5, 7], [2, 6, 5, 7]);
        let forward = conv.plan_sparse_forward(device, &x, &there, true, options).unwrap();
        let input = conv.plan_sparse_backward_input(device, &y, &there, [5, 7], options).unwrap();
        let gradient = conv.plan_sparse_backward_weight(device, &x, &y, &there, options).unwrap();
        let transposed =
            conv.plan_sparse_transposed(device, &y, &there, true, [0, 0], options).unwrap();
        let bytes =
            [forward.workspace(), input.workspace(), gradient.workspace(), transposed.workspace()];
        let mut workspace = Workspace::new(device, bytes.into_iter().max().unwrap()).unwrap();
        assert_eq!(forward.result_shape(), y);
        assert_eq!(gradient.result_shape(), [entries]);
        for seed in 1..3 {
            let of = |shape: &[usize], number: u64| {
                let len = shape.iter().product();
                on(device, &tensor::<f32>(shape, &integers(len, seed + number, 2)))
            };
            there.values_mut().copy_from(&of(&[entries], 5)).unwrap();
            let (input_x, dy, bias) = (of(&x, 10), of(&y, 20), of(&[6], 30));
            let (mut found_y, mut found_dx) =
                (Tensor::zeros(device, &y).unwrap(), Tensor::zeros(device, &x).unwrap());
            let mut found_dw = Tensor::zeros(device, &[entries]).unwrap();
            forward.run(&input_x, &there, Some(bias.view()), &mut found_y, &mut workspace).unwrap();
            input.run(&dy, &there, &mut found_dx, &mut workspace).unwrap();
            gradient.run(&input_x, &dy, &there, &mut found_dw, &mut workspace).unwrap();
            let dense = on(device, &there.to_dense().unwrap());
            let expected = conv.forward(&input_x, &dense, Some(bias.view())).unwrap();
            assert_eq!(values(&found_y), values(&expected));
            let expected = conv.backward_input(&dy, &dense, [5, 7]).unwrap();
            assert_eq!(values(&found_dx), values(&expected));
            let bias = of(&[4], 40);
            transposed.run(&dy, &there, Some(bias.view()), &mut found_dx, &mut workspace).unwrap();
            let expected = conv.transposed(&dy, &dense, Some(bias.view()), [0, 0]).unwrap();
            assert_eq!(values(&found_dx), values(&expected));
            let again = conv.sparse_backward_weight(&input_x, &dy, &there).unwrap();
            assert_eq!(found_dw.view().to_vec().unwrap(), again.values().to_vec().unwrap());
        }
        // A pattern with the same entries is the same, wherever it comes from.
        let same = SparseWeight::from_csr(&conv, &weight.to_csr().unwrap()).unwrap();
        let same = same.to_device(device).unwrap();
        let (input_x, mut found) =
            (Tensor::zeros(device, &x).unwrap(), Tensor::zeros(device, &y).unwrap());
        let bias = Tensor::zeros(device, &[6]).unwrap();
        forward.run(&input_x, &same, Some(bias.view()), &mut found, &mut workspace).unwrap();
        let other = self::weight(2, 0.).to_device(device).unwrap();
        let refused = forward
            .run(&input_x, &other, Some(bias.view()), &mut found, &mut workspace)
            .unwrap_err();
        assert!(refused.to_string().ends_with("the plan was made for another pattern"));
        let refused = forward.run(&input_x, &same, None, &mut found, &mut workspace).unwrap_err();
        assert!(matches!(refused, Error::Invalid { .. }), "{refused}");
    }
}

#[test]
fn plans_say_what_they_do() {
    let (conv, options, weight) = (layer(), PlanOptions::new(), weight(1, 0.));
    let plan = conv.plan_sparse_forward(&Device::Cpu, &[2, 4, 5, 7], &weight, false, options);
    let plan = plan.unwrap();
    let entries = weight.entries();
    let text = plan.to_string();
    let expected = format!(
        "sparse_forward of input [2, 4, 5, 7], weight values [{entries}], output [2, 6, 5, 7] f32, \
         {entries} of 108 entries stored, 3×3, padding 1×1, groups 2 on cpu\n  \
         algorithm direct: every entry multiplies a contiguous run of the input\n"
    );
    assert!(text.starts_with(&expected), "{text}");
    assert_eq!(plan.explanation().flop, 2 * 2 * 35 * entries as u64);
    let filter = SparseWeight::from_coo(&conv, &conv.gathering_filter_coo::<f32>(4).unwrap());
    let filter = filter.unwrap();
    let plan = conv.plan_sparse_forward(&Device::Cpu, &[2, 4, 5, 7], &filter, false, options);
    assert_eq!(plan.unwrap().explanation().algorithm, "gather");
    let tight = options.workspace_limit(1);
    let refused = conv.plan_sparse_forward(&Device::Cpu, &[2, 4, 5, 7], &weight, false, tight);
    assert!(matches!(refused, Err(Error::Invalid { .. })));
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    let (conv, weight) = (layer(), weight(1, 0.));
    let x = tensor::<f32>(&[1, 4, 3, 3], &[0.; 36]);
    let error = |conv: &Conv<2>, x: &Tensor<f32>| {
        conv.sparse_forward(x, &weight, None).unwrap_err().to_string()
    };
    let last = conv.layout(Layout::ChannelsLast);
    let there = tensor::<f32>(&[1, 3, 3, 4], &[0.; 36]);
    assert_eq!(
        error(&last, &there),
        "weight layout is channels-first: the convolution is channels-last"
    );
    let kernel = Conv::new([3, 1]).groups(2);
    let expected = "weight has shape [6, 2, 3, 3], expected [6, 2, 3, 1], the convolution's kernel";
    assert_eq!(error(&kernel, &x), expected);
    let groups = conv.groups(4);
    let expected = "weight output channels is 6: they must be a positive multiple of groups = 4";
    assert_eq!(error(&groups, &x), expected);
    let expected = "input has shape [1, 4, 3, 3], expected 2 channels, as the weight has";
    assert_eq!(error(&conv.groups(1), &x), expected);
    let dy = tensor::<f32>(&[1, 6, 3, 3], &[0.; 54]);
    let refused = conv.sparse_backward_input(&dy, &weight, [4, 4]).unwrap_err();
    assert!(matches!(refused, Error::Shape { .. }), "{refused}");
    let refused = conv.sparse_backward_weight(&x, &x, &weight).unwrap_err();
    assert!(matches!(refused, Error::Shape { .. }), "{refused}");
    for device in accelerators() {
        let there = on(device, &x);
        let refused = conv.sparse_forward(&there, &weight, None).unwrap_err();
        assert!(matches!(refused, Error::DeviceMismatch { .. }), "{refused}");
    }
}
