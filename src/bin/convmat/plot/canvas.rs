//! What figures are drawn on: the text of an SVG, or the pixels of a PNG. Both measure in the same units.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Once;

use plotters::backend::{BitMapBackend, DrawingBackend, SVGBackend};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{
    FontStyle, FontTransform, IntoFont, RGBColor, ShapeStyle, TextStyle, register_font,
};

use super::Format;
use crate::failure::Failure;

/// Extent of every figure in units.
pub const WIDTH: f64 = 900.0;
pub const HEIGHT: f64 = 600.0;

/// Pixels per unit of a PNG: 300 per inch where the figure is 6 inches wide.
const PNG_SCALE: f64 = 2.0;

/// Every SVG viewer has a font for this name; for a PNG one is registered under it.
const FONT: &str = "sans-serif";

pub type Colour = RGBColor;

pub const BLACK: Colour = RGBColor(0, 0, 0);
pub const GREY: Colour = RGBColor(90, 90, 90);
pub const LIGHT: Colour = RGBColor(225, 225, 225);
const WHITE: Colour = RGBColor(255, 255, 255);

/// Lengths of dashes and of the gaps after them, in units; none for a solid line.
pub type Dashes = &'static [f64];

/// Which point of a text is at the place given for it.
#[derive(Clone, Copy)]
pub enum Anchor {
    Left,
    Middle,
    Right,
    /// The middle of a text that runs upwards.
    Upwards,
}

pub struct Canvas<'a> {
    backend: Backend<'a>,
    scale: f64,
    /// The cells of an SVG by their shade, which its backend would write at many times their length.
    cells: BTreeMap<u8, String>,
}

enum Backend<'a> {
    Svg(SVGBackend<'a>),
    Png(BitMapBackend<'a>),
}

/// Calls a method of either backend.
macro_rules! draw {
    ($canvas:expr, $method:ident($($argument:expr),*)) => {
        match &mut $canvas.backend {
            Backend::Svg(backend) => backend.$method($($argument),*).map_err(failed),
            Backend::Png(backend) => backend.$method($($argument),*).map_err(failed),
        }
    };
}

fn failed(error: impl Display) -> Failure {
    Failure::run(format!("the picture for --plot cannot be drawn: {error}"))
}

/// The bytes of a file with what `draw` draws on white.
pub fn render(
    format: Format,
    draw: impl FnOnce(&mut Canvas<'_>) -> Result<(), Failure>,
) -> Result<Vec<u8>, Failure> {
    register();
    let scale = if format == Format::Png { PNG_SCALE } else { 1.0 };
    let (width, height) = ((WIDTH * scale) as u32, (HEIGHT * scale) as u32);
    let mut text = String::new();
    let mut pixels =
        vec![255; if format == Format::Png { (width * height * 3) as usize } else { 0 }];
    let backend = match format {
        Format::Svg => Backend::Svg(SVGBackend::with_string(&mut text, (width, height))),
        Format::Png => Backend::Png(BitMapBackend::with_buffer(&mut pixels, (width, height))),
    };
    let canvas = Canvas { backend, scale, cells: BTreeMap::new() };
    let cells = canvas.drawn(draw)?;
    match format {
        Format::Svg => {
            let end = text.rfind("</svg>").unwrap_or(text.len());
            let path = |(shade, path): (u8, String)| {
                format!("<path fill=\"#{shade:02x}{shade:02x}{shade:02x}\" d=\"{path}\"/>\n")
            };
            text.insert_str(end, &cells.into_iter().map(path).collect::<String>());
            Ok(text.into_bytes())
        }
        Format::Png => png(width, height, &pixels).map_err(failed),
    }
}

fn register() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // If it fails, then so does drawing the first text, with an error that is reported.
        let _ = register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT);
    });
}

fn png(width: u32, height: u32, pixels: &[u8]) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(bytes)
}

impl Canvas<'_> {
    /// Draws, and returns the cells that the backend does not know of.
    fn drawn(
        mut self,
        draw: impl FnOnce(&mut Self) -> Result<(), Failure>,
    ) -> Result<BTreeMap<u8, String>, Failure> {
        self.rectangle([0.0, 0.0], [WIDTH, HEIGHT], WHITE)?;
        draw(&mut self)?;
        draw!(self, present())?;
        Ok(self.cells)
    }

    fn place(&self, [x, y]: [f64; 2]) -> (i32, i32) {
        ((x * self.scale).round() as i32, (y * self.scale).round() as i32)
    }

    /// A filled rectangle.
    pub fn rectangle(
        &mut self,
        from: [f64; 2],
        to: [f64; 2],
        colour: Colour,
    ) -> Result<(), Failure> {
        let (from, to) = (self.place(from), self.place(to));
        let style = ShapeStyle { color: colour.into(), filled: true, stroke_width: 0 };
        draw!(self, draw_rect(from, to, &style, true))
    }

    /// A line through these points.
    pub fn line(
        &mut self,
        points: &[[f64; 2]],
        colour: Colour,
        width: f64,
        dashes: Dashes,
    ) -> Result<(), Failure> {
        let stroke_width = (width * self.scale).round().max(1.0) as u32;
        let style = ShapeStyle { color: colour.into(), filled: false, stroke_width };
        for part in dashed(points, dashes) {
            let mut places: Vec<_> = part.iter().map(|&point| self.place(point)).collect();
            places.dedup();
            if places.len() > 1 {
                draw!(self, draw_path(places.clone(), &style))?;
            }
        }
        Ok(())
    }

    /// A filled polygon with these corners.
    pub fn polygon(&mut self, corners: &[[f64; 2]], colour: Colour) -> Result<(), Failure> {
        let style = ShapeStyle { color: colour.into(), filled: true, stroke_width: 0 };
        let places: Vec<_> = corners.iter().map(|&corner| self.place(corner)).collect();
        draw!(self, fill_polygon(places.clone(), &style))
    }

    /// A disc.
    pub fn disc(&mut self, centre: [f64; 2], radius: f64, colour: Colour) -> Result<(), Failure> {
        let style = ShapeStyle { color: colour.into(), filled: true, stroke_width: 0 };
        let (centre, radius) = (self.place(centre), (radius * self.scale).round() as u32);
        draw!(self, draw_circle(centre, radius, &style, true))
    }

    /// A text whose middle line is at the place.
    pub fn text(
        &mut self,
        text: &str,
        at: [f64; 2],
        size: f64,
        anchor: Anchor,
        colour: Colour,
    ) -> Result<(), Failure> {
        let horizontal = match anchor {
            Anchor::Left => HPos::Left,
            Anchor::Right => HPos::Right,
            Anchor::Middle | Anchor::Upwards => HPos::Center,
        };
        let mut font = (FONT, size * self.scale).into_font();
        if let Anchor::Upwards = anchor {
            font = font.transform(FontTransform::Rotate270);
        }
        let style = TextStyle::from(font).pos(Pos::new(horizontal, VPos::Center)).color(&colour);
        // The pixels' backend takes a text for lower than it is, and puts it too high.
        let lower = if let Backend::Png(_) = self.backend { 0.13 * size } else { 0.0 };
        let [x, y] = at;
        let place = match anchor {
            Anchor::Upwards => self.place([x + lower, y]),
            _ => self.place([x, y + lower]),
        };
        draw!(self, draw_text(text, &style, place))
    }

    /// A grid of cells from this corner on, each `width` by `height` units: rows of one shade per cell, of
    /// which `None` leaves the background.
    pub fn cells(
        &mut self,
        [left, top]: [f64; 2],
        [width, height]: [f64; 2],
        columns: usize,
        shades: &[Option<u8>],
    ) -> Result<(), Failure> {
        for (row, shades) in shades.chunks(columns.max(1)).enumerate() {
            let (y, mut column) = (top + row as f64 * height, 0);
            for run in shades.chunk_by(|a, b| a == b) {
                let (from, to) = (column, column + run.len());
                column = to;
                let Some(shade) = run[0] else { continue };
                let (x, end) = (left + from as f64 * width, left + to as f64 * width);
                match &mut self.backend {
                    Backend::Svg(_) => {
                        let path = self.cells.entry(shade).or_default();
                        path.push_str(&format!("\nM{x} {y}H{end}v{height}H{x}z"));
                    }
                    Backend::Png(_) => {
                        let corner = [end, y + height];
                        self.rectangle([x, y], corner, RGBColor(shade, shade, shade))?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// The pieces of a line that are drawn.
fn dashed(points: &[[f64; 2]], dashes: Dashes) -> Vec<Vec<[f64; 2]>> {
    if dashes.is_empty() {
        return vec![points.to_vec()];
    }
    let (mut pieces, mut piece) = (Vec::new(), Vec::from_iter(points.first().copied()));
    // Which dash or gap it is, and how much of it is left.
    let (mut index, mut left) = (0, dashes[0]);
    for ends in points.windows(2) {
        let [from, to] = [ends[0], ends[1]];
        let length = (to[0] - from[0]).hypot(to[1] - from[1]);
        let mut done = 0.0;
        while length - done > left {
            done += left;
            let share = done / length;
            let at = [0, 1].map(|axis| from[axis] + share * (to[axis] - from[axis]));
            piece.push(at);
            if index % 2 == 0 {
                pieces.push(std::mem::take(&mut piece));
            }
            piece = vec![at];
            index = (index + 1) % dashes.len();
            left = dashes[index];
        }
        left -= length - done;
        piece.push(to);
    }
    if index % 2 == 0 {
        pieces.push(piece);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dashes_go_round_corners() {
        let line = [[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]];
        assert_eq!(dashed(&line, &[]), [line.to_vec()]);
        let corner = vec![[2.0, 0.0], [3.0, 0.0], [3.0, 1.0]];
        let expected = [vec![[0.0, 0.0], [1.0, 0.0]], corner, vec![[3.0, 2.0], [3.0, 3.0]]];
        assert_eq!(dashed(&line, &[1.0, 1.0, 2.0, 1.0]), expected);
    }
}
