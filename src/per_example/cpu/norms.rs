//! Norms of gradients that are not stored: of their pieces, or from Gram matrices of positions, whichever
//! takes fewer operations (Bu et al. 2022, "Scalable and efficient training of large convolutional neural
//! networks with differential privacy").

use super::gram::Gram;
use super::source::{Operands, Source};
use super::tiles::Tiles;
use crate::element::{Accumulator, Element};
use crate::error::{Error, Result};
use crate::patches::pieces::digits;
use crate::per_example::problem::Problem;
use crate::plan::{Explanation, Pass};
use crate::workers::{Room, Scratch, Shared, Workers};

/// What an addition that is looked up counts beside one in a matrix product, when forms are compared.
const LOOK_UP: u64 = 64;

/// `‖∇W_n‖` for every n.
#[derive(Debug)]
pub(crate) struct Norms {
    problem: Problem,
    source: Source,
    tiles: Tiles,
    gram: Option<Gram>,
}

/// What finding them takes.
pub(super) struct Needs {
    pub tasks: usize,
    pub room: Room,
    pub common: Room,
}

/// A way to find norms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Direct,
    GramOfPatches,
    GramOfInputs,
}

impl Norms {
    /// By the form that takes the fewest operations.
    pub fn new<T: Element, F: Accumulator>(
        p: &Problem,
        explanation: &mut Explanation,
    ) -> Result<(Self, Workers)> {
        let (norms, Needs { tasks, room, common }) = Norms::by::<T, F>(p, None, explanation)?;
        Ok((norms, Workers::new(tasks, room).with_common(common)))
    }

    /// By the given form, if there is one.
    ///
    /// # Errors
    /// [`Error::Invalid`] when a form is given that does not exist for the layer.
    pub(super) fn by<T: Element, F: Accumulator>(
        p: &Problem,
        form: Option<Form>,
        explanation: &mut Explanation,
    ) -> Result<(Self, Needs)> {
        let grams = [Gram::gathered(p), Gram::looked_up(p)];
        let direct = p.gradient_flop();
        let [patches, inputs] = grams.each_ref().map(|gram| gram.as_ref().map(Gram::flop));
        let look_ups = (p.groups * p.taps()) as u64
            * (p.positions() as u64).pow(2).div_ceil(2)
            * (LOOK_UP - 1);
        let costs = [
            Some((Form::Direct, direct)),
            patches.map(|flop| (Form::GramOfPatches, flop)),
            inputs.map(|flop| (Form::GramOfInputs, flop.saturating_add(look_ups))),
        ];
        let cheapest = costs.into_iter().flatten().min_by_key(|&(_, flop)| flop);
        let chosen = form.or(cheapest.map(|(form, _)| form)).unwrap_or(Form::Direct);
        let [gathered, looked_up] = grams;
        let gram = match chosen {
            Form::Direct => None,
            Form::GramOfPatches => Some(gathered),
            Form::GramOfInputs => Some(looked_up),
        };
        let gram = match gram {
            Some(None) => {
                let reason = "the layer has too many positions";
                return Err(Error::invalid("form", format!("{chosen:?}"), reason));
            }
            Some(gram) => gram,
            None => None,
        };
        let count = |flop: Option<u64>| flop.map_or("too large".into(), |flop| flop.to_string());
        explanation.algorithm = gram.as_ref().map_or("direct", Gram::name).into();
        explanation.reason = format!(
            "FLOP of an example: {direct} direct, {} by Gram matrices of patches, {} by those of inputs \
             besides look-ups",
            count(patches),
            count(inputs)
        );
        let source = Source::new::<T, F>(p, usize::MAX, false);
        let tiles = Tiles::new::<F>(p);
        let norms = Norms { problem: p.clone(), source, tiles, gram };
        let tasks = norms.source.chunks.longest() * norms.pieces();
        explanation.passes.push(match &norms.gram {
            None => norms.tiles.explain::<F>(tasks, "sum up squares"),
            Some(gram) => Pass::on_cpu("products of pairs of positions", tasks).by(gram.name()),
        });
        let room = match &norms.gram {
            None => norms.tiles.room::<F>(),
            Some(gram) => gram.room::<F>().or(Room::default().and::<F>(p.rows())),
        };
        let common = norms.source.room::<F>(Room::default().and::<f64>(p.batch * norms.pieces()));
        Ok((norms, Needs { tasks, room, common }))
    }

    /// Parts of an example's sum.
    fn pieces(&self) -> usize {
        match &self.gram {
            None => self.tiles.pieces(),
            Some(_) => self.problem.groups + usize::from(self.problem.bias),
        }
    }

    /// Writes the norms of all examples.
    pub fn run<T: Element, F: Accumulator>(
        &self,
        workers: &Workers,
        operands: Operands<'_, T>,
        norms: &mut [F],
        memory: &mut [u8],
    ) -> Result<()> {
        let (common, memory) = workers.split(memory);
        self.find(workers, operands, norms, common, memory)
    }

    /// [`Norms::run`] in memory that is used otherwise afterwards.
    pub(super) fn find<T: Element, F: Accumulator>(
        &self,
        workers: &Workers,
        operands: Operands<'_, T>,
        norms: &mut [F],
        mut common: Scratch,
        memory: &mut [u8],
    ) -> Result<()> {
        let Norms { problem: p, source, .. } = self;
        let pieces = self.pieces();
        let squares = common.take::<f64>(p.batch * pieces);
        let mut copies = source.copies::<F>(&mut common);
        for chunk in source.chunks.each() {
            let read = source.load(workers, p, operands, chunk.clone(), None, &mut copies)?;
            let squares = Shared::new(&mut squares[chunk.start * pieces..chunk.end * pieces]);
            workers.share_out(chunk.len() * pieces, memory, |task, scratch| {
                let [n, piece] = digits(task, [chunk.len(), pieces]);
                let mut sum = 0.0;
                match &self.gram {
                    Some(gram) if piece < p.groups => {
                        sum = gram.sum(read.gathered, read.plain, n, piece, scratch);
                    }
                    // The bias's column is the last piece of both.
                    _ => {
                        let piece =
                            if self.gram.is_some() { self.tiles.pieces() - 1 } else { piece };
                        let (gathered, plain) = (read.gathered, read.plain);
                        self.tiles.sum(gathered, plain, n..n + 1, piece, scratch, |part| {
                            sum += squared(part.sums);
                        });
                    }
                }
                // SAFETY: every task has an element of its own.
                unsafe { squares.run(task, 1)[0] = sum };
                Ok(())
            })?;
        }
        for (norm, squares) in norms.iter_mut().zip(squares.chunks_exact(pieces)) {
            // Rounding may leave less than nothing of Gram matrices' sums.
            let sum: f64 = squares.iter().sum();
            *norm = F::from_f64(if sum < 0.0 { 0.0 } else { sum.sqrt() });
        }
        Ok(())
    }
}

/// The sum of the squares, in f64.
fn squared<F: Accumulator>(values: &[F]) -> f64 {
    let mut lanes = [0.0; 8];
    let mut chunks = values.chunks_exact(8);
    for chunk in &mut chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, value)| *lane += value.to_f64().powi(2));
    }
    let rest: f64 = chunks.remainder().iter().map(|value| value.to_f64().powi(2)).sum();
    lanes.iter().sum::<f64>() + rest
}
