//! How many outputs are computed together on each axis, and whether that pays.

use super::cube::Tiles;
use super::transform::Tile;
use crate::conv::problem::Problem;
use crate::geometry::AxisMap;

/// The tiles by which a problem takes the least time, if there are any for its taps.
pub(super) fn tiles(p: &Problem) -> Option<Tiles> {
    best(p).map(|(tiles, _)| tiles)
}

/// Whether it is expected to be faster than all products one by one.
pub(in crate::conv::cpu) fn pays(p: &Problem) -> bool {
    let direct = (p.taps() * p.output_positions()) as f64 * pairs(p);
    best(p).is_some_and(|(_, cost)| cost < DIRECT * direct)
}

/// What is saved has to be worth the transforms' memory.
const DIRECT: f64 = 0.7;
/// Products in whose time a value of a tile is read or written, and transformed.
const VALUE: f64 = 24.0;

/// Channels times rows of all groups, and the batch.
fn pairs(p: &Problem) -> f64 {
    (p.batch * p.outputs) as f64 * p.channels_per_group() as f64
}

/// The cost in products.
fn cost(p: &Problem, tiles: &Tiles) -> f64 {
    let outputs = p.output_extents();
    let count: usize = (0..3).map(|axis| outputs[axis].div_ceil(tiles.outputs()[axis])).product();
    let products = (tiles.products() * count) as f64;
    let activations = (p.batch * (p.channels + p.outputs)) as f64;
    let weights = (tiles.products() * p.outputs * p.channels_per_group()) as f64;
    products * (pairs(p) + VALUE * activations) + VALUE * weights
}

fn best(p: &Problem) -> Option<(Tiles, f64)> {
    let of_axis = |map: &AxisMap| -> &'static [Tile] {
        let plain = map.stride() == 1 && (map.dilation() == 1 || map.taps() == 1);
        if plain { Tile::for_taps(map.taps()) } else { &[] }
    };
    let [d, h, w] = &*p.axes;
    let mut best: Option<(Tiles, f64)> = None;
    for &d in of_axis(d) {
        for &h in of_axis(h) {
            for &w in of_axis(w) {
                let tiles = Tiles([d, h, w]);
                let cost = cost(p, &tiles);
                let better = best.is_none_or(|(_, least)| cost < least);
                if tiles.products() > 1 && better {
                    best = Some((tiles, cost));
                }
            }
        }
    }
    best
}
