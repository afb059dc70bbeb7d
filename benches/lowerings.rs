//! Times of this crate's operations over the shape catalogue: `cargo bench --bench lowerings --
//! 'forward/implicit'` runs those whose name matches. Throughput counts bytes that have to be moved
//! (unfold, fold, matrix) or floating-point operations (forward, backward; shown as elements).
//! Run as a test, it makes one pass over the smallest shape.

mod shapes;

use std::cell::LazyCell;
use std::time::Duration;

use convmat::{Device, Tensor};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use shapes::{CATALOGUE, Shape, eighths};

fn catalogue() -> Vec<Shape> {
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
    Tensor::zeros(&Device::Cpu, shape).expect("the catalogue fits in memory")
}

fn unfold(criterion: &mut Criterion) {
    let mut group = group(criterion, "unfold");
    for shape in catalogue() {
        group.throughput(Throughput::Bytes(shape.patch_bytes() as u64));
        let x = LazyCell::new(|| tensor(&shape.input_shape(), 1));
        let mut patches = LazyCell::new(|| zeros(&shape.patch_shape()));
        group.bench_function(shape.name, |bencher| {
            with_axes!(shape, D => {
                let conv = shape.conv::<D>();
                bencher.iter(|| conv.unfold_into(&*x, &mut *patches).unwrap());
            })
        });
    }
}

fn fold(criterion: &mut Criterion) {
    let mut group = group(criterion, "fold");
    for shape in catalogue() {
        group.throughput(Throughput::Bytes(shape.patch_bytes() as u64));
        let patches = LazyCell::new(|| tensor(&shape.patch_shape(), 1));
        let mut x = LazyCell::new(|| zeros(&shape.input_shape()));
        group.bench_function(shape.name, |bencher| {
            with_axes!(shape, D => {
                let conv = shape.conv::<D>();
                bencher.iter(|| conv.fold_into(&*patches, &mut *x).unwrap());
            })
        });
    }
}

criterion_group!(lowerings, unfold, fold);
criterion_main!(lowerings);
