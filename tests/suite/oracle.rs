//! Independent references: plain f64 loops written from the definitions in PyTorch's documentation,
//! sharing no code with the crate.

use convmat::{Layout, PaddingMode};

/// A fully resolved case, D promoted to 3 by axes of extent 1.
#[derive(Clone, Debug)]
pub struct Case {
    pub batch: usize,
    pub channels: usize,
    pub outputs: usize,
    pub groups: usize,
    pub spatial: usize,
    pub input: [usize; 3],
    pub kernel: [usize; 3],
    pub stride: [usize; 3],
    pub dilation: [usize; 3],
    pub low: [usize; 3],
    pub high: [usize; 3],
    pub mode: PaddingMode,
    pub layout: Layout,
}

/// Input position read by output `o` through tap `k`, by PyTorch's definition of each mode.
pub fn source(c: &Case, axis: usize, o: usize, k: usize) -> Option<usize> {
    let size = c.input[axis] as i64;
    let i = (o * c.stride[axis] + k * c.dilation[axis]) as i64 - c.low[axis] as i64;
    if i >= 0 && i < size {
        return Some(i as usize);
    }
    match c.mode {
        PaddingMode::Zeros => None,
        PaddingMode::Replicate => Some(if i < 0 { 0 } else { size as usize - 1 }),
        PaddingMode::Circular => Some(((i + size) % size) as usize),
        PaddingMode::Reflect => Some(if i < 0 { -i } else { 2 * size - 2 - i } as usize),
    }
}

impl Case {
    pub fn output(&self) -> [usize; 3] {
        std::array::from_fn(|a| {
            let span = self.dilation[a] * (self.kernel[a] - 1) + 1;
            (self.input[a] + self.low[a] + self.high[a] - span) / self.stride[a] + 1
        })
    }

    pub fn taps(&self) -> usize {
        self.kernel.iter().product()
    }

    pub fn positions(&self) -> usize {
        self.output().iter().product()
    }

    pub fn input_len(&self) -> usize {
        self.batch * self.channels * self.input.iter().product::<usize>()
    }

    pub fn output_len(&self) -> usize {
        self.batch * self.outputs * self.positions()
    }

    pub fn weight_len(&self) -> usize {
        self.outputs * self.channels / self.groups * self.taps()
    }

    /// Flat index of activation element (n, c, position) among `channels` × `positions`.
    fn activation(&self, channels: usize, positions: usize, n: usize, c: usize, p: usize) -> usize {
        match self.layout {
            Layout::ChannelsFirst => (n * channels + c) * positions + p,
            Layout::ChannelsLast => (n * positions + p) * channels + c,
        }
    }

    pub fn input_index(&self, n: usize, c: usize, i: usize) -> usize {
        self.activation(self.channels, self.input.iter().product(), n, c, i)
    }

    pub fn output_index(&self, n: usize, co: usize, o: usize) -> usize {
        self.activation(self.outputs, self.positions(), n, co, o)
    }

    pub fn weight_index(&self, co: usize, ci: usize, tap: usize) -> usize {
        let per_group = self.channels / self.groups;
        match self.layout {
            Layout::ChannelsFirst => (co * per_group + ci) * self.taps() + tap,
            Layout::ChannelsLast => (tap * per_group + ci) * self.outputs + co,
        }
    }

    /// Flat index of patch entry (n, c, tap, o).
    pub fn patch_index(&self, n: usize, c: usize, tap: usize, o: usize) -> usize {
        let (taps, positions) = (self.taps(), self.positions());
        let per_group = self.channels / self.groups;
        match self.layout {
            Layout::ChannelsFirst => ((n * self.channels + c) * taps + tap) * positions + o,
            Layout::ChannelsLast => {
                let row = (c / per_group * taps + tap) * per_group + c % per_group;
                (n * positions + o) * self.channels * taps + row
            }
        }
    }

    /// Calls `visit(o, tap, i)` for every output position, tap and the input position it reads.
    pub fn each_tap(&self, mut visit: impl FnMut(usize, usize, Option<usize>)) {
        let (out, k, size) = (self.output(), self.kernel, self.input);
        for o in 0..self.positions() {
            let at = [o / (out[1] * out[2]), o / out[2] % out[1], o % out[2]];
            for tap in 0..self.taps() {
                let taps = [tap / (k[1] * k[2]), tap / k[2] % k[1], tap % k[2]];
                let i: Option<Vec<usize>> =
                    (0..3).map(|a| source(self, a, at[a], taps[a])).collect();
                visit(o, tap, i.map(|i| (i[0] * size[1] + i[1]) * size[2] + i[2]));
            }
        }
    }

    /// Calls `visit(y index, w index, x index)` for every product of the convolution.
    fn each_product(&self, mut visit: impl FnMut(usize, usize, usize)) {
        let (per_in, per_out) = (self.channels / self.groups, self.outputs / self.groups);
        self.each_tap(|o, tap, i| {
            let Some(i) = i else { return };
            for n in 0..self.batch {
                for co in 0..self.outputs {
                    for ci in 0..per_in {
                        let c = co / per_out * per_in + ci;
                        visit(
                            self.output_index(n, co, o),
                            self.weight_index(co, ci, tap),
                            self.input_index(n, c, i),
                        );
                    }
                }
            }
        });
    }

    pub fn unfold(&self, x: &[f64]) -> Vec<f64> {
        let mut patches = vec![0.0; self.batch * self.channels * self.taps() * self.positions()];
        self.each_tap(|o, tap, i| {
            for n in 0..self.batch {
                for c in 0..self.channels {
                    patches[self.patch_index(n, c, tap, o)] =
                        i.map_or(0.0, |i| x[self.input_index(n, c, i)]);
                }
            }
        });
        patches
    }

    pub fn fold(&self, patches: &[f64]) -> Vec<f64> {
        let mut x = vec![0.0; self.input_len()];
        self.each_tap(|o, tap, i| {
            let Some(i) = i else { return };
            for n in 0..self.batch {
                for c in 0..self.channels {
                    x[self.input_index(n, c, i)] += patches[self.patch_index(n, c, tap, o)];
                }
            }
        });
        x
    }

    pub fn forward(&self, x: &[f64], w: &[f64], bias: Option<&[f64]>) -> Vec<f64> {
        let mut y = vec![0.0; self.output_len()];
        if let Some(bias) = bias {
            for n in 0..self.batch {
                for co in 0..self.outputs {
                    for o in 0..self.positions() {
                        y[self.output_index(n, co, o)] = bias[co];
                    }
                }
            }
        }
        self.each_product(|yi, wi, xi| y[yi] += w[wi] * x[xi]);
        y
    }

    pub fn backward_input(&self, dy: &[f64], w: &[f64]) -> Vec<f64> {
        let mut dx = vec![0.0; self.input_len()];
        self.each_product(|yi, wi, xi| dx[xi] += w[wi] * dy[yi]);
        dx
    }

    pub fn backward_weight(&self, x: &[f64], dy: &[f64]) -> Vec<f64> {
        let mut dw = vec![0.0; self.weight_len()];
        self.each_product(|yi, wi, xi| dw[wi] += dy[yi] * x[xi]);
        dw
    }

    pub fn backward_bias(&self, dy: &[f64]) -> Vec<f64> {
        let mut db = vec![0.0; self.outputs];
        for n in 0..self.batch {
            for co in 0..self.outputs {
                for o in 0..self.positions() {
                    db[co] += dy[self.output_index(n, co, o)];
                }
            }
        }
        db
    }
}
