//! The way back from the gradient by a padded input to that by the input, where padded positions read inputs.

use crate::conv::problem::Problem;
use crate::element::{Accumulator, Element};
use crate::error::Result;
use crate::geometry::{Axes, AxisMap, Layout, Strides};
use crate::patches::pieces::digits;
use crate::workers::{Shared, Workers};

/// Lines of elements that follow each other: of a channel, or channels last of all of them.
#[derive(Debug)]
pub(super) struct Unpad {
    layout: Layout,
    strides: Strides,
    /// Images, and channels of one where they lie apart.
    planes: [usize; 2],
    /// Elements at a position.
    unit: usize,
    inputs: [usize; 3],
    padded: [usize; 3],
    /// The padded positions that read each input, of the outer axes.
    readers: [Vec<Vec<usize>>; 2],
    /// The input behind each padded position of the last axis.
    sources: Vec<Option<usize>>,
}

/// The same problem on an input that is padded already.
pub(super) fn padded_problem(p: &Problem) -> Result<Problem> {
    let [d, h, w] = &*p.axes;
    let maps = [d.on_padded_input()?, h.on_padded_input()?, w.on_padded_input()?];
    Ok(Problem { axes: Axes::new(maps), ..p.clone() })
}

impl Unpad {
    pub fn new(p: &Problem) -> Self {
        let [d, h, w] = &*p.axes;
        let readers = [d, h].map(|map| {
            let mut readers = vec![Vec::new(); map.inputs()];
            let padded = (0..map.padded_extent()).filter_map(|q| Some((map.padded_source(q)?, q)));
            padded.for_each(|(input, q)| readers[input].push(q));
            readers
        });
        let (channels, unit) = match p.layout {
            Layout::ChannelsFirst => (p.channels, 1),
            Layout::ChannelsLast => (1, p.channels),
        };
        Unpad {
            layout: p.layout,
            strides: p.input_strides(),
            planes: [p.batch, channels],
            unit,
            inputs: p.input_extents(),
            padded: [d, h, w].map(AxisMap::padded_extent),
            readers,
            sources: (0..w.padded_extent()).map(|q| w.padded_source(q)).collect(),
        }
    }

    /// Elements of a line of the input.
    pub fn line_len(&self) -> usize {
        self.inputs[2] * self.unit
    }

    /// Elements of the padded gradient.
    pub fn padded_len(&self) -> usize {
        let [images, channels] = self.planes;
        images * channels * self.padded.iter().product::<usize>() * self.unit
    }

    pub fn tasks(&self) -> usize {
        let [images, channels] = self.planes;
        images * channels * self.inputs[0] * self.inputs[1]
    }

    /// Adds up what padded positions of each input have, and the bias.
    pub fn run<T: Element>(
        &self,
        workers: &Workers,
        padded: &[T::Acc],
        bias: Option<&[T]>,
        target: &Shared<T>,
        memory: &mut [u8],
    ) -> Result<()> {
        let [images, channels] = self.planes;
        let [depth, height, _] = self.inputs;
        let padded_line = self.padded[2] * self.unit;
        workers.share_out(self.tasks(), memory, |task, scratch| {
            let [image, channel, d, h] = digits(task, [images, channels, depth, height]);
            let line = scratch.take::<T::Acc>(self.line_len());
            match (bias, self.layout) {
                (None, _) => line.fill(T::Acc::ZERO),
                (Some(bias), Layout::ChannelsFirst) => line.fill(bias[channel].to_acc()),
                (Some(bias), Layout::ChannelsLast) => {
                    line.chunks_exact_mut(self.unit).for_each(|line| T::widen(bias, line));
                }
            }
            let plane = (image * channels + channel) * self.padded[0];
            for (&d, &h) in self.readers[0][d]
                .iter()
                .flat_map(|d| self.readers[1][h].iter().map(move |h| (d, h)))
            {
                let start = ((plane + d) * self.padded[1] + h) * padded_line;
                let from = padded[start..][..padded_line].chunks_exact(self.unit);
                for (from, input) in from.zip(&self.sources) {
                    let Some(input) = input else { continue };
                    let sums = &mut line[input * self.unit..][..self.unit];
                    sums.iter_mut().zip(from).for_each(|(sum, &value)| *sum += value);
                }
            }
            let start = self.strides.at(image, channel, (d * height + h) * self.inputs[2]);
            // SAFETY: a task has a line of its own.
            T::narrow(line, unsafe { target.run(start, line.len()) });
            Ok(())
        })
    }
}
