//! The gathering filter: its sparse forms, and convolving with it is unfold.

use convmat::{Conv, Error, Layout, Tensor};
use proptest::prelude::*;

use crate::catalogue::{cases, conv, integers, values};
use crate::oracle::Case;
use crate::with_rank;

fn filter(c: &Case) -> Tensor<f32> {
    with_rank!(c, D => conv::<D>(c).gathering_filter(c.channels)).unwrap()
}

/// The dense weight flattened to `[output channel, everything else in the weight's order]`.
fn flattened(c: &Case, weight: &Tensor<f32>) -> Vec<f64> {
    let outputs = c.channels * c.taps();
    let dense = values(weight);
    match c.layout {
        Layout::ChannelsFirst => dense,
        Layout::ChannelsLast => {
            let others = dense.len() / outputs;
            (0..dense.len()).map(|i| dense[i % others * outputs + i / others]).collect()
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn convolving_with_it_is_unfold_by_definition(c in cases(), seed: u64) {
        let weight = filter(&c);
        let gather = Case { outputs: c.channels * c.taps(), ..c.clone() };
        assert_eq!(weight.shape(), gather.weight_shape());
        let x = integers(c.input_len(), seed, 1000);
        let y = gather.forward(&x, &values(&weight), None);
        // Channels-first y [N, C·K, L] and channels-last y [N, L, C·K] are the patches.
        assert_eq!(y, c.unfold(&x));
    }

    #[test]
    fn sparse_forms_equal_the_dense_one(c in cases()) {
        let dense = flattened(&c, &filter(&c));
        let (coo, csr) = with_rank!(c, D => {
            let conv = conv::<D>(&c);
            (conv.gathering_filter_coo::<f32>(c.channels), conv.gathering_filter_csr(c.channels))
        });
        let (coo, csr) = (coo.unwrap(), csr.unwrap());
        let rows = c.channels * c.taps();
        assert_eq!((coo.shape(), coo.nnz()), ([rows, rows / c.groups], rows));
        assert_eq!(values(&coo.to_dense().unwrap()), dense);
        assert_eq!(values(&csr.to_dense().unwrap()), dense);
        assert_eq!(coo.to_csr().unwrap(), csr);
        assert_eq!(csr.to_coo().unwrap(), coo);
    }
}

#[test]
fn impossible_filters_are_refused() {
    let error = |conv: Conv<2>, channels| conv.gathering_filter::<f32>(channels).unwrap_err();
    let message = error(Conv::new([2, 2]).groups(3), 4).to_string();
    assert_eq!(message, "channels is 4: it must be a positive multiple of groups = 3");
    assert_eq!(
        error(Conv::new([2, 0]), 4).to_string(),
        "kernel on axis 1 is 0: it must be at least 1"
    );
    assert_eq!(
        error(Conv::new([1, 1]).groups(0), 4).to_string(),
        "groups is 0: it must be at least 1"
    );
    assert!(matches!(error(Conv::new([1, 1]), 1 << 40), Error::TooLarge { .. }));
    assert!(matches!(error(Conv::new([1 << 40, 1 << 40]), 1), Error::TooLarge { .. }));
}
