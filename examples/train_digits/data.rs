//! The digits, and the batches that they are drawn in.

use std::path::Path;

use convmat::io::NpzReader;
use convmat::{Device, Error, Result, Tensor};
use rand_distr::{Distribution, StandardUniform};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::SeedableRng;

use crate::network::CLASSES;

/// Pixels of an image.
const PIXELS: usize = 64;

/// Images of 8×8 pixels from 0 to 1, and the digits they show.
pub struct Digits {
    images: Vec<f32>,
    pub labels: Vec<usize>,
}

/// The part of the data set that trains, and the part that tests.
pub fn load(path: &Path) -> Result<[Digits; 2]> {
    let mut file = NpzReader::open(path)?;
    let train = file.read("train")?.to_integers()?[0] as usize;
    let images: Tensor<f32> = file.read("images")?.convert()?;
    let mut images: Vec<f32> = images.into_vec()?.iter().map(|pixel| pixel / 16.0).collect();
    let mut labels: Vec<usize> =
        file.read("labels")?.to_integers()?.iter().map(|&label| label as usize).collect();
    if train > labels.len()
        || images.len() != labels.len() * PIXELS
        || labels.iter().any(|&label| label >= CLASSES)
    {
        return Err(Error::Invalid {
            argument: "data set".into(),
            value: path.display().to_string(),
            reason: "its images, labels and the number that train do not fit one another".into(),
        });
    }
    let test = Digits { images: images.split_off(train * PIXELS), labels: labels.split_off(train) };
    Ok([Digits { images, labels }, test])
}

impl Digits {
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// All images, `[N, 1, 8, 8]`.
    pub fn tensor(&self, device: &Device) -> Result<Tensor<f32>> {
        Tensor::from_vec(device, &[self.len(), 1, 8, 8], self.images.clone())
    }

    /// Some of the digits.
    pub fn pick(&self, indices: &[usize]) -> Digits {
        let image = |&at: &usize| &self.images[at * PIXELS..][..PIXELS];
        Digits {
            images: indices.iter().flat_map(image).copied().collect(),
            labels: indices.iter().map(|&at| self.labels[at]).collect(),
        }
    }
}

/// Random batches without end: each pass over the digits is in another order, and leaves out what fills no batch.
pub struct Batches<'a> {
    digits: &'a Digits,
    size: usize,
    order: Vec<usize>,
    next: usize,
    random: Xoshiro256PlusPlus,
}

impl<'a> Batches<'a> {
    pub fn new(digits: &'a Digits, size: usize, seed: u64) -> Self {
        let random = Xoshiro256PlusPlus::seed_from_u64(seed);
        Batches { digits, size, order: (0..digits.len()).collect(), next: digits.len(), random }
    }

    pub fn draw(&mut self) -> Digits {
        if self.next + self.size > self.order.len() {
            shuffle(&mut self.order, &mut self.random);
            self.next = 0;
        }
        self.next += self.size;
        self.digits.pick(&self.order[self.next - self.size..self.next])
    }
}

/// Fisher and Yates's shuffle.
fn shuffle(order: &mut [usize], random: &mut Xoshiro256PlusPlus) {
    for last in (1..order.len()).rev() {
        let uniform: f64 = StandardUniform.sample(random);
        order.swap(last, (uniform * (last + 1) as f64) as usize);
    }
}
