//! Times of this crate's operations over the shape catalogue: `cargo bench --bench lowerings --
//! 'forward/implicit'` runs those whose name matches, `--shape "8x64x56x56 64x64x3x3 p1"` (see
//! `benches/README.md`) another layer than the catalogue's. Throughput counts bytes that have to be moved
//! (unfold, fold, matrix) or floating-point operations (forward, backward; shown as elements).
//! Run as a test, it makes one pass over the smallest shape.

mod shapes;

use std::cell::LazyCell;
use std::process::{Command, ExitCode};
use std::time::Duration;

use convmat::{Algorithm, CsrBuffers, DType, Device, Error, Tensor, with_axes};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group};
use shapes::description::Given;
use shapes::{CATALOGUE, Shape, eighths};

/// The loops of the definition are timed on layers of at most this many products.
const NAIVE_LIMIT: usize = 250_000_000;

/// Where the layers of `--shape` are, a name between bars: criterion reads the command line by itself and
/// refuses flags that are not its own, so this program runs itself without them.
const LAYERS: &str = "CONVMAT_BENCH_LAYERS";

/// The layers to run: those of `--shape`, or the catalogue.
fn layers() -> Vec<Shape> {
    if let Ok(names) = std::env::var(LAYERS) {
        return names.split('|').map(|name| name.parse().expect("a layer's name")).collect();
    }
    let given = |flag: &str| std::env::args().any(|argument| argument == flag);
    let measuring = given("--bench") && !given("--test");
    CATALOGUE.into_iter().filter(|shape| measuring || shape.name == "notebook").collect()
}

fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(10).warm_up_time(Duration::from_millis(300));
    group.measurement_time(Duration::from_secs(1));
    group
}

fn tensor(shape: &[usize], seed: u64) -> Tensor<f32> {
    let values = eighths(shape.iter().product(), seed);
    Tensor::from_vec(&Device::Cpu, shape, values).expect("as many values as the shape says")
}

fn zeros(shape: &[usize]) -> Tensor<f32> {
    Tensor::zeros(&Device::Cpu, shape).expect("the layer fits in memory")
}

fn unfold(criterion: &mut Criterion) {
    let mut group = group(criterion, "unfold");
    for shape in layers() {
        group.throughput(Throughput::Bytes(shape.patch_bytes() as u64));
        let x = LazyCell::new(|| tensor(&shape.input_shape(), 1));
        let mut patches = LazyCell::new(|| zeros(&shape.patch_shape()));
        group.bench_function(shape.name, |bencher| {
            with_axes!(shape.spatial, D => {
                let conv = shape.conv::<D>();
                bencher.iter(|| conv.unfold_into(&*x, &mut *patches).unwrap());
                Ok::<(), Error>(())
            })
            .unwrap();
        });
    }
}

fn fold(criterion: &mut Criterion) {
    let mut group = group(criterion, "fold");
    for shape in layers() {
        group.throughput(Throughput::Bytes(shape.patch_bytes() as u64));
        let patches = LazyCell::new(|| tensor(&shape.patch_shape(), 1));
        let mut x = LazyCell::new(|| zeros(&shape.input_shape()));
        group.bench_function(shape.name, |bencher| {
            with_axes!(shape.spatial, D => {
                let conv = shape.conv::<D>();
                bencher.iter(|| conv.fold_into(&*patches, &mut *x).unwrap());
                Ok::<(), Error>(())
            })
            .unwrap();
        });
    }
}

/// The operands and gradients of one layer.
struct Layer {
    x: Tensor<f32>,
    w: Tensor<f32>,
    b: Tensor<f32>,
    y: Tensor<f32>,
    result: Tensor<f32>,
}

impl Layer {
    fn new(shape: &Shape, result: Vec<usize>) -> Self {
        Layer {
            x: tensor(&shape.input_shape(), 1),
            w: tensor(&shape.weight_shape(), 2),
            b: tensor(&[shape.outputs], 3),
            y: tensor(&shape.output_shape(), 4),
            result: zeros(&result),
        }
    }
}

/// Every algorithm on every layer, as `GROUP/ALGORITHM/LAYER`.
fn each_algorithm(
    criterion: &mut Criterion,
    name: &str,
    result: fn(&Shape) -> Vec<usize>,
    run: fn(&Shape, &mut Layer, Algorithm),
) {
    for algorithm in Algorithm::GENERAL {
        let mut group = group(criterion, &format!("{name}/{algorithm}"));
        for shape in layers() {
            if algorithm == Algorithm::Naive && shape.products() > NAIVE_LIMIT {
                continue;
            }
            group.throughput(Throughput::Elements(2 * shape.products() as u64));
            let mut layer = LazyCell::new(|| Layer::new(&shape, result(&shape)));
            group.bench_function(shape.name, |bencher| {
                bencher.iter(|| run(&shape, &mut layer, algorithm));
            });
        }
    }
}

fn forward(criterion: &mut Criterion) {
    each_algorithm(criterion, "forward", Shape::output_shape, |shape, layer, algorithm| {
        let Layer { x, w, b, result, .. } = layer;
        let run = with_axes!(shape.spatial, D => {
            shape.conv::<D>().forward_into(&*x, &*w, Some(b.view()), result, algorithm)
        });
        run.unwrap();
    });
}

fn backward(criterion: &mut Criterion) {
    each_algorithm(criterion, "backward_input", Shape::input_shape, |shape, layer, algorithm| {
        let Layer { w, y, result, .. } = layer;
        let run = with_axes!(shape.spatial, D => {
            shape.conv::<D>().backward_input_into(&*y, &*w, result, algorithm)
        });
        run.unwrap();
    });
    each_algorithm(criterion, "backward_weight", Shape::weight_shape, |shape, layer, algorithm| {
        let Layer { x, y, result, .. } = layer;
        let run = with_axes!(shape.spatial, D => {
            shape.conv::<D>().backward_weight_into(&*x, &*y, result, algorithm)
        });
        run.unwrap();
    });
}

fn matrix(criterion: &mut Criterion) {
    let mut group = group(criterion, "matrix");
    for shape in layers() {
        let shape = match shape.for_matrix() {
            Ok(shape) => shape,
            Err(reason) => {
                eprintln!("matrix/{}: no smaller input will do: {reason}", shape.name);
                continue;
            }
        };
        let (w, b) = (tensor(&shape.weight_shape(), 2), tensor(&[shape.outputs], 3));
        with_axes!(shape.spatial, D => {
            let (conv, input) = (shape.conv::<D>(), shape.input_size::<D>());
            let size = conv.matrix_size(w.shape(), true, input).expect("the layer is sound");
            group.throughput(Throughput::Bytes(size.bytes(DType::F32)));
            let mut arrays = LazyCell::new(|| {
                let entries = size.nnz() as usize;
                (vec![0i32; size.rows() as usize + 1], vec![0i32; entries], vec![0f32; entries])
            });
            group.bench_function(shape.name, |bencher| {
                bencher.iter(|| {
                    let (indptr, indices, data) = &mut *arrays;
                    let buffers = CsrBuffers { indptr, indices, data };
                    conv.matrix_into(&w, Some(b.view()), input, buffers).unwrap();
                });
            });
            Ok::<(), Error>(())
        })
        .unwrap();
    }
}

criterion_group!(lowerings, unfold, fold, forward, backward, matrix);

fn main() -> ExitCode {
    let Given { shapes, others } = Given::from_command_line("lowerings");
    if shapes.is_empty() {
        lowerings();
        Criterion::default().configure_from_args().final_summary();
        return ExitCode::SUCCESS;
    }
    let names: Vec<&str> = shapes.iter().map(|shape| shape.name).collect();
    let this = std::env::current_exe().expect("a program knows where it is");
    let status = Command::new(this).args(others).env(LAYERS, names.join("|")).status();
    match status.expect("it runs already").success() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
