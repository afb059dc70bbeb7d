//! Covariances of patches and output gradients, against products of the oracle's patches.

use convmat::{
    Accumulator, Algorithm, Conv, CovarianceOptions, CovariancePlan, Device, Element, Error,
    Layout, PaddingMode, PlanOptions, SymmetricStorage, Tensor, Update, WeightSharing, with_axes,
};
use half::{bf16, f16};
use proptest::prelude::*;

use crate::catalogue::{
    accelerators, cases, conv, devices, integers, last, layers, on, randoms, tensor, values,
    variants,
};
use crate::oracle::Case;
use crate::plans::rayon_pool;

const SHARINGS: [WeightSharing; 2] = [WeightSharing::Expand, WeightSharing::Reduce];

/// For each group and example the patches as columns of `rows` entries, in f64.
struct Patches {
    groups: usize,
    rows: usize,
    /// `[group][example][position][row]`.
    data: Vec<Vec<Vec<Vec<f64>>>>,
}

impl Patches {
    /// Of a convolution, a 1 appended with a bias.
    fn of(case: &Case, x: &[f64], bias: bool) -> Self {
        let unfolded = case.unfold(x);
        let (per_group, taps) = (case.channels / case.groups, case.taps());
        let patch = |group: usize, n: usize, o: usize| {
            let entries = (0..per_group * taps).map(|row| {
                let (channel, tap) = entry(case.layout, per_group, taps, row);
                unfolded[case.patch_index(n, group * per_group + channel, tap, o)]
            });
            entries.chain(bias.then_some(1.0)).collect()
        };
        Patches::new(case, case.positions(), per_group * taps + usize::from(bias), patch)
    }

    /// Of the transposed convolution that maps the case's outputs to its inputs: what an input position
    /// gets from.
    fn of_transposed(case: &Case, x: &[f64], bias: bool) -> Self {
        let (per_group, taps) = (case.outputs / case.groups, case.taps());
        let positions: usize = case.input.iter().product();
        let mut sources = vec![vec![None; taps]; positions];
        case.each_tap(|o, tap, i| {
            if let Some(i) = i {
                sources[i][tap] = Some(o);
            }
        });
        let patch = |group: usize, n: usize, i: usize| {
            let entries = (0..per_group * taps).map(|row| {
                let (channel, tap) = entry(case.layout, per_group, taps, row);
                let channel = group * per_group + channel;
                sources[i][tap].map_or(0.0, |o| x[case.output_index(n, channel, o)])
            });
            entries.chain(bias.then_some(1.0)).collect()
        };
        Patches::new(case, positions, per_group * taps + usize::from(bias), patch)
    }

    /// The output gradients.
    fn of_gradients(case: &Case, dy: &[f64]) -> Self {
        let per_group = case.outputs / case.groups;
        let patch = |group: usize, n: usize, o: usize| {
            (0..per_group).map(|c| dy[case.output_index(n, group * per_group + c, o)]).collect()
        };
        Patches::new(case, case.positions(), per_group, patch)
    }

    fn new(
        case: &Case,
        positions: usize,
        rows: usize,
        patch: impl Fn(usize, usize, usize) -> Vec<f64>,
    ) -> Self {
        let patch = &patch;
        let example = |group, n| (0..positions).map(|o| patch(group, n, o)).collect();
        let group = |group| (0..case.batch).map(|n| example(group, n)).collect();
        Patches { groups: case.groups, rows, data: (0..case.groups).map(group).collect() }
    }

    /// The covariance, `[groups, rows, rows]`.
    fn covariance(&self, sharing: WeightSharing) -> Vec<f64> {
        let mut found = Vec::new();
        for examples in &self.data {
            let mut sums = vec![0.0; self.rows * self.rows];
            for positions in examples {
                let total = |row: usize| positions.iter().map(|patch| patch[row]).sum();
                let summed: Vec<f64> = (0..self.rows).map(total).collect();
                let vectors = match sharing {
                    WeightSharing::Expand => positions.clone(),
                    WeightSharing::Reduce => vec![summed],
                };
                for vector in vectors {
                    for (i, &left) in vector.iter().enumerate() {
                        let row = &mut sums[i * self.rows..][..self.rows];
                        row.iter_mut().zip(&vector).for_each(|(sum, right)| *sum += left * right);
                    }
                }
            }
            found.extend(sums);
        }
        found
    }

    /// The number of products that an element is summed of, at most.
    fn terms(&self) -> usize {
        let examples = self.data.first().map_or(0, Vec::len);
        examples * self.data.first().and_then(|e| e.first()).map_or(0, |p| p.len().pow(2))
    }

    fn shape(&self, storage: SymmetricStorage) -> Vec<usize> {
        match storage {
            SymmetricStorage::Full => vec![self.groups, self.rows, self.rows],
            SymmetricStorage::Packed => vec![self.groups, self.rows * (self.rows + 1) / 2],
        }
    }

    /// What is stored of a matrix of this shape.
    fn stored(&self, full: &[f64], storage: SymmetricStorage) -> Vec<f64> {
        let d = self.rows;
        if storage == SymmetricStorage::Full {
            return full.to_vec();
        }
        let lower = |group: usize, i: usize| &full[(group * d + i) * d..][..=i];
        (0..self.groups).flat_map(|g| (0..d).flat_map(move |i| lower(g, i).to_vec())).collect()
    }
}

/// Channel and tap of a row, in the order of unfold's rows.
fn entry(layout: Layout, per_group: usize, taps: usize, row: usize) -> (usize, usize) {
    match layout {
        Layout::ChannelsFirst => (row / taps, row % taps),
        Layout::ChannelsLast => (row % per_group, row / per_group),
    }
}

/// Whose covariance a case is checked on.
#[derive(Clone, Copy, Debug)]
enum Of {
    Input,
    Transposed,
    Gradient,
}

impl Of {
    fn shape(self, case: &Case) -> Vec<usize> {
        if let Of::Input = self { case.input_shape() } else { case.output_shape() }
    }

    fn patches(self, case: &Case, x: &[f64], options: Options) -> Patches {
        match self {
            Of::Input => Patches::of(case, x, options.bias),
            Of::Transposed => Patches::of_transposed(case, x, options.bias),
            Of::Gradient => Patches::of_gradients(case, x),
        }
    }

    /// A target of 3s that new sums are added to, by a plan.
    fn run<T: Element, F: Accumulator>(
        self,
        case: &Case,
        x: &Tensor<T>,
        options: Options,
        update: Update,
    ) -> Tensor<F> {
        with_axes!(case.spatial, D => self.run_over::<T, F, D>(case, x, options, update)).unwrap()
    }

    fn run_over<T: Element, F: Accumulator, const D: usize>(
        self,
        case: &Case,
        x: &Tensor<T>,
        options: Options,
        update: Update,
    ) -> Result<Tensor<F>, Error> {
        let (device, shape) = (&x.device(), x.shape());
        let (conv, wanted, plan) = (conv::<D>(case), options.wanted(), PlanOptions::new());
        let plan = match self {
            Of::Input => conv.plan_covariance::<T, F>(device, shape, wanted, plan)?,
            Of::Transposed => {
                let extra = output_padding::<D>(case);
                conv.plan_transposed_covariance::<T, F>(device, shape, extra, wanted, plan)?
            }
            Of::Gradient => conv.plan_gradient_covariance::<T, F>(device, shape, wanted, plan)?,
        };
        let len: usize = plan.result_shape().iter().product();
        let mut target = on(device, &tensor::<F>(plan.result_shape(), &vec![3.0; len]));
        plan.run(x, update, &mut target, &mut plan.make_workspace()?)?;
        Ok(target)
    }
}

/// The output padding with which the transposed convolution gives the case's input.
fn output_padding<const D: usize>(case: &Case) -> [usize; D] {
    let outputs = case.output();
    last(std::array::from_fn(|a| {
        let span = case.dilation[a] * (case.kernel[a] - 1) + 1;
        let least = (outputs[a] - 1) * case.stride[a] + span;
        case.input[a] + case.low[a] + case.high[a] - least
    }))
}

#[derive(Clone, Copy, Debug)]
struct Options {
    bias: bool,
    sharing: WeightSharing,
    storage: SymmetricStorage,
}

impl Options {
    fn wanted(self) -> CovarianceOptions {
        let Options { bias, sharing, storage } = self;
        CovarianceOptions::new().bias(bias).sharing(sharing).storage(storage)
    }

    fn all(of: Of) -> Vec<Options> {
        let mut found = Vec::new();
        for sharing in SHARINGS {
            let gradient = matches!(of, Of::Gradient);
            for bias in if gradient { &[false][..] } else { &[false, true] } {
                for storage in [SymmetricStorage::Full, SymmetricStorage::Packed] {
                    found.push(Options { bias: *bias, sharing, storage });
                }
            }
        }
        found
    }
}

/// Small integers agree exactly, whatever the method, and so do what was there before and its decay.
fn check_integers<T: Element, F: Accumulator>(of: Of, case: &Case, device: &Device) {
    let x = integers(of.shape(case).iter().product(), 5, 3);
    let input = on(device, &tensor::<T>(&of.shape(case), &x));
    for options in Options::all(of) {
        let patches = of.patches(case, &x, options);
        let full = patches.covariance(options.sharing);
        let stored = patches.stored(&full, options.storage);
        for (update, old, scale) in [
            (Update::replace(1.0), 0.0, 1.0),
            (Update::add(2.0), 3.0, 2.0),
            (Update::new(0.5, -1.0), 1.5, -1.0),
        ] {
            let found = of.run::<T, F>(case, &input, options, update);
            assert_eq!(found.shape(), patches.shape(options.storage));
            let expected: Vec<f64> = stored.iter().map(|sum| old + scale * sum).collect();
            assert_eq!(values(&found), expected, "{of:?} {options:?} {case:?} on {device}");
        }
    }
}

/// Full mantissas: close to the f64 product of the rounded values, the same bytes twice, symmetric.
fn check_randoms<T: Element, F: Accumulator>(of: Of, case: &Case, device: &Device) {
    let shape = of.shape(case);
    let host = tensor::<T>(&shape, &randoms(shape.iter().product(), 6));
    let (input, x) = (on(device, &host), values(&host));
    let sizes: Vec<f64> = x.iter().map(|v| v.abs()).collect();
    for options in Options::all(of) {
        let found = of.run::<T, F>(case, &input, options, Update::replace(1.0));
        assert_eq!(of.run::<T, F>(case, &input, options, Update::replace(1.0)), found);
        let patches = of.patches(case, &x, options);
        let expected = patches.stored(&patches.covariance(options.sharing), options.storage);
        let scales = of.patches(case, &sizes, options);
        let scales = scales.stored(&scales.covariance(options.sharing), options.storage);
        let limit = 2.0 * F::DTYPE.unit_roundoff() * (4.0 + (patches.terms() as f64).sqrt());
        let found = values(&found);
        for (at, (&found, &expected)) in found.iter().zip(&expected).enumerate() {
            assert!(
                (found - expected).abs() <= limit * scales[at],
                "{found} for {expected} at {at}: {of:?} {options:?} {case:?} on {device}"
            );
        }
        if options.storage == SymmetricStorage::Full {
            let d = patches.rows;
            for (group, i, j) in (0..found.len()).map(|at| (at / d / d, at / d % d, at % d)) {
                let [here, there] = [(i, j), (j, i)].map(|(i, j)| found[(group * d + i) * d + j]);
                assert_eq!(here.to_bits(), there.to_bits());
            }
        }
    }
}

fn transposed(case: &Case) -> bool {
    case.mode == PaddingMode::Zeros
        && (0..3).all(|a| {
            let span = case.dilation[a] * (case.kernel[a] - 1) + 1;
            let least = (case.output()[a] - 1) * case.stride[a] + span;
            let extra = case.input[a] + case.low[a] + case.high[a] - least;
            extra < case.stride[a].max(case.dilation[a])
        })
}

fn kinds(case: &Case) -> Vec<Of> {
    let all = [Of::Input, Of::Gradient, Of::Transposed];
    all.into_iter().filter(|of| !matches!(of, Of::Transposed) || transposed(case)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn covariances_of_integers_are_exact(case in cases()) {
        for of in kinds(&case) {
            check_integers::<f32, f32>(of, &case, &Device::Cpu);
            check_integers::<f32, f64>(of, &case, &Device::Cpu);
            check_integers::<f64, f64>(of, &case, &Device::Cpu);
            check_integers::<f16, f32>(of, &case, &Device::Cpu);
            check_integers::<bf16, f64>(of, &case, &Device::Cpu);
        }
    }

    #[test]
    fn covariances_are_close_to_products_of_patches(case in cases()) {
        for of in kinds(&case) {
            check_randoms::<f32, f32>(of, &case, &Device::Cpu);
            check_randoms::<f32, f64>(of, &case, &Device::Cpu);
            check_randoms::<f64, f64>(of, &case, &Device::Cpu);
            check_randoms::<f16, f32>(of, &case, &Device::Cpu);
            check_randoms::<bf16, f32>(of, &case, &Device::Cpu);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn accelerators_agree_exactly_on_integers(case in cases()) {
        for device in accelerators() {
            for of in kinds(&case) {
                check_integers::<f32, f32>(of, &case, device);
                check_integers::<f16, f64>(of, &case, device);
            }
        }
    }

    #[test]
    fn accelerators_are_close_to_products_of_patches(case in cases()) {
        for device in accelerators() {
            for of in kinds(&case) {
                check_randoms::<f64, f64>(of, &case, device);
                check_randoms::<bf16, f32>(of, &case, device);
            }
        }
    }
}

/// Several tiles on a side, of which the last is not full, terms shared by several blocks, and a workspace
/// for some of the tiles only.
#[test]
fn accelerators_cut_large_triangles_into_tiles() {
    for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
        for channels in [16, 46] {
            let case =
                Case { channels, outputs: channels, groups: 2, layout, ..layers()[0].clone() };
            for device in accelerators() {
                check_integers::<f32, f32>(Of::Input, &case, device);
                check_integers::<f16, f32>(Of::Input, &case, device);
                check_integers::<f32, f64>(Of::Transposed, &case, device);
                let x = integers(case.input_shape().iter().product(), 5, 3);
                let input = on(device, &tensor::<f32>(&case.input_shape(), &x));
                let (conv, wanted) = (conv::<2>(&case), CovarianceOptions::new());
                let run = |options: PlanOptions| {
                    let plan =
                        conv.plan_covariance::<f32, f32>(device, input.shape(), wanted, options);
                    let plan = plan.unwrap();
                    let mut found = Tensor::<f32>::zeros(device, plan.result_shape()).unwrap();
                    let mut workspace = plan.make_workspace().unwrap();
                    plan.run(&input, Update::replace(1.0), &mut found, &mut workspace).unwrap();
                    (values(&found), plan.workspace(), plan.explanation().passes.len())
                };
                let whole = run(PlanOptions::new());
                let limited = run(PlanOptions::new().workspace_limit(1 << 16));
                assert!(limited.0 == whole.0, "{case:?} on {device}");
                assert!(limited.1 <= 1 << 16 && (channels < 46 || limited.2 > whole.2));
            }
        }
    }
}

/// Kernels made for one layer, and with wide indices.
#[test]
fn variants_of_kernels_agree() {
    let all = layers();
    let first = all.len() / 2;
    // Strided, boxes, depthwise; and with channels last strided, reflecting, depthwise.
    for case in [1, 12, 13, first + 1, first + 8, first + 13].map(|at| &all[at]) {
        for device in variants() {
            for of in kinds(case) {
                check_integers::<f32, f32>(of, case, &device);
                check_randoms::<f16, f32>(of, case, &device);
            }
        }
    }
}

/// Layers of usual sizes.
#[test]
fn layers_of_usual_kinds() {
    for case in layers() {
        for of in kinds(&case) {
            check_integers::<f32, f32>(of, &case, &Device::Cpu);
            check_randoms::<f64, f64>(of, &case, &Device::Cpu);
        }
    }
}

/// More channels than a block has, more positions than a panel, more entries than are written at a time, and
/// prime extents: by every algorithm, with little workspace too, and by any number of threads.
#[test]
fn large_layers_are_cut_into_blocks_and_panels() {
    let case = |channels: usize, groups: usize, layout: Layout| Case {
        batch: 3,
        channels,
        outputs: groups,
        groups,
        spatial: 2,
        input: [1, 13, 11],
        kernel: [1, 3, 2],
        stride: [1, 2, 1],
        dilation: [1, 1, 3],
        low: [0, 1, 2],
        high: [0, 2, 1],
        mode: PaddingMode::Circular,
        layout,
    };
    for case in [
        case(97, 1, Layout::ChannelsFirst),
        case(97, 1, Layout::ChannelsLast),
        case(134, 2, Layout::ChannelsFirst),
        case(57, 19, Layout::ChannelsFirst),
        case(37, 37, Layout::ChannelsLast),
    ] {
        let x = integers(case.input_len(), 7, 3);
        let input = tensor::<f32>(&case.input_shape(), &x);
        for sharing in SHARINGS {
            let expected = Patches::of(&case, &x, true).covariance(sharing);
            let options = CovarianceOptions::new().bias(true).sharing(sharing);
            let conv = conv::<2>(&case);
            let plan = |plan: PlanOptions| {
                conv.plan_covariance::<f32, f32>(&Device::Cpu, input.shape(), options, plan)
                    .unwrap()
            };
            let run = |plan: &CovariancePlan<f32, f32>| {
                let mut found = Tensor::zeros(&Device::Cpu, plan.result_shape()).unwrap();
                let mut workspace = plan.make_workspace().unwrap();
                plan.run(&input, Update::replace(1.0), &mut found, &mut workspace).unwrap();
                found
            };
            for algorithm in [Algorithm::Auto, Algorithm::Shifted, Algorithm::Im2col] {
                let all = plan(PlanOptions::new().algorithm(algorithm));
                assert_eq!(values(&run(&all)), expected, "{algorithm}, {case:?}");
            }
            // Less workspace than it would take: panels are smaller, and there are more of them.
            let limit = plan(PlanOptions::new()).workspace() * 7 / 8;
            let less = plan(PlanOptions::new().workspace_limit(limit));
            assert!(less.workspace() <= limit, "{less}");
            assert_eq!(values(&run(&less)), expected, "{limit} bytes, {case:?}");
            // Full mantissas: the same bytes by one thread and by several.
            let randoms = randoms(case.input_len(), 8);
            let input = tensor::<f32>(&case.input_shape(), &randoms);
            let by = |threads: usize| {
                let covariance = || conv.covariance::<f32, f32>(&input, options).unwrap();
                rayon_pool(threads).install(covariance)
            };
            let one = by(1);
            for threads in [2, 3, 7] {
                assert_eq!(by(threads), one, "{threads} threads, {case:?}");
            }
        }
    }
}

#[test]
fn wrong_operands_are_errors() {
    let conv = Conv::new([3]).groups(2);
    let x = tensor::<f64>(&[1, 4, 5], &[0.0; 20]);
    let options = CovarianceOptions::new();
    let error = conv.covariance::<f64, f32>(&x, options).unwrap_err();
    assert!(error.to_string().contains("covariance has element type f32"), "{error}");
    let error = conv.groups(3).covariance::<f64, f64>(&x, options).unwrap_err();
    assert!(error.to_string().contains("input channels is 4"), "{error}");
    let error = conv.gradient_covariance::<f64, f64>(&x, options.bias(true)).unwrap_err();
    assert!(error.to_string().contains("bias is true"), "{error}");
    let circular = conv.padding([1]).padding_mode(PaddingMode::Circular);
    let error = circular.transposed_covariance::<f64, f64>(&x, [0], options).unwrap_err();
    assert!(error.to_string().contains("padding mode is circular"), "{error}");
    let mut target = tensor::<f64>(&[2, 6, 6], &[1.0; 72]);
    let before = target.clone();
    let update = Update::new(f64::NAN, 1.0);
    let error = conv.covariance_into(&x, options, update, &mut target).unwrap_err();
    assert!(error.to_string().contains("decay is NaN"), "{error}");
    let packed = options.storage(SymmetricStorage::Packed);
    let error = conv.covariance_into(&x, packed, Update::add(1.0), &mut target).unwrap_err();
    assert!(error.to_string().contains("expected [2, 21]"), "{error}");
    assert_eq!(target, before);
}

/// A target that is not read may hold anything.
#[test]
fn what_is_replaced_is_not_read() {
    for device in devices() {
        for sharing in SHARINGS {
            let x = on(device, &tensor::<f32>(&[1, 1, 2], &[1.0, 2.0]));
            let mut target = on(device, &tensor::<f32>(&[1, 2, 2], &[f64::NAN; 4]));
            let options = CovarianceOptions::new().bias(true).sharing(sharing);
            Conv::new([1]).covariance_into(&x, options, Update::replace(0.5), &mut target).unwrap();
            match sharing {
                WeightSharing::Expand => assert_eq!(values(&target), [2.5, 1.5, 1.5, 1.0]),
                WeightSharing::Reduce => assert_eq!(values(&target), [4.5, 3.0, 3.0, 2.0]),
            }
        }
    }
}
