//! Virtual channels, cut into blocks.

use std::ops::Range;

use super::BLOCK;
use crate::covariance::cpu::folding::Folding;
use crate::covariance::problem::Problem;

/// The channels of a group in one phase, from some channel on.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    /// `None` for the appended 1.
    pub phase: Option<usize>,
    pub channels: Range<usize>,
    /// The first one's place in its block.
    pub at: usize,
}

/// Virtual channels that are side by side.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub pieces: Vec<Piece>,
    pub channels: usize,
    /// The same rounded up to whole vectors.
    pub width: usize,
    /// Elements of the blocks before, at one position.
    pub offset: usize,
}

/// The virtual channels of a group, phase by phase, cut into blocks; the appended 1 has its own.
pub(super) fn blocks(p: &Problem, folding: &Folding, lanes: usize) -> Vec<Block> {
    let per_group = p.channels_per_group();
    let all = per_group * folding.phases();
    let (mut blocks, mut offset): (Vec<Block>, _) = (Vec::new(), 0);
    for start in (0..all).step_by(BLOCK) {
        let end = (start + BLOCK).min(all);
        let mut pieces = Vec::new();
        let mut at = start;
        while at < end {
            let (phase, channel) = (at / per_group, at % per_group);
            let count = (per_group - channel).min(end - at);
            let channels = channel..channel + count;
            pieces.push(Piece { phase: Some(phase), channels, at: at - start });
            at += count;
        }
        let (channels, width) = (end - start, (end - start).next_multiple_of(lanes));
        blocks.push(Block { pieces, channels, width, offset });
        offset += width;
    }
    if p.bias {
        let pieces = vec![Piece { phase: None, channels: 0..1, at: 0 }];
        blocks.push(Block { pieces, channels: 1, width: lanes, offset });
    }
    blocks
}

/// Elements of all blocks at a position.
pub(super) fn width(blocks: &[Block]) -> usize {
    blocks.iter().map(|block| block.width).sum()
}

/// Elements of the widest block at a position.
pub(super) fn widest(blocks: &[Block]) -> usize {
    blocks.iter().map(|block| block.width).max().unwrap_or(0)
}

impl Block {
    pub(super) fn is_one(&self) -> bool {
        self.pieces[0].phase.is_none()
    }

    pub(super) fn pieces_in(&self, rows: &Range<usize>) -> impl Iterator<Item = &Piece> {
        self.pieces.iter().filter(move |piece| {
            piece.at < rows.end && rows.start < piece.at + piece.channels.len()
        })
    }
}
