//! Singular values in order.

use super::Format;
use super::axes::{Axis, Frame, linear_ticks, logarithmic_ticks, title, whole_ticks};
use super::canvas::{Anchor, BLACK, Canvas, Colour, Dashes, GREY, HEIGHT, LIGHT, WIDTH, render};
use crate::failure::Failure;
use crate::report::rounded;

/// What is drawn as one line.
pub struct Series {
    pub name: String,
    /// Descending.
    pub values: Vec<f64>,
    /// Where the norm is known to be.
    pub bracket: Option<[f64; 2]>,
}

const TOP: f64 = 70.0;
const BOTTOM: f64 = HEIGHT - 68.0;
const LEFT: f64 = 105.0;
const RIGHT: f64 = WIDTH - 30.0;

/// Room for the names of several series, on the right.
const LEGEND: f64 = 215.0;
const LEGEND_LINE: f64 = 20.0;
const LEGEND_LETTERS: usize = 24;

/// From this ratio of the largest to the least value on, equal ratios get equal room.
const WIDE: f64 = 100.0;

/// Values below this share of the largest are rounding, and are drawn at the lower edge as zeros are.
const FLOOR: f64 = 1e-20;

/// More points than these would lie on one another.
const MOST_POINTS: usize = 5000;

/// Different in lightness as well, for prints without colour; the dashes tell apart what still is alike.
const STYLES: [(Colour, Dashes); 6] = [
    (plotters::style::RGBColor(0, 60, 120), &[]),
    (plotters::style::RGBColor(213, 94, 0), &[9.0, 4.0]),
    (plotters::style::RGBColor(0, 128, 96), &[2.0, 3.0]),
    (plotters::style::RGBColor(120, 30, 90), &[10.0, 3.0, 2.0, 3.0]),
    (plotters::style::RGBColor(70, 150, 210), &[]),
    (plotters::style::RGBColor(0, 0, 0), &[5.0, 3.0]),
];

/// A picture of these series, at least one.
pub fn plot(heading: &str, series: &[Series], format: Format) -> Result<Vec<u8>, Failure> {
    render(format, |canvas| Figure::new(series).draw(canvas, heading))
}

struct Figure<'a> {
    series: &'a [Series],
    x: Axis,
    y: Axis,
    /// Values below are drawn there; 0 if the axis is linear.
    floor: f64,
    /// The most points of a series.
    points: usize,
}

impl<'a> Figure<'a> {
    fn new(series: &'a [Series]) -> Self {
        let values = || series.iter().flat_map(|s| &s.values).copied().filter(|v| v.is_finite());
        let ends = series.iter().flat_map(|s| s.bracket).flatten().filter(|v| v.is_finite());
        let largest = values().chain(ends).fold(0.0, f64::max);
        let least = values().filter(|&v| v > largest * FLOOR).fold(largest, f64::min);
        let logarithmic = least > 0.0 && largest > WIDE * least;
        let (range, floor) = match logarithmic {
            true => {
                // A margin of the picture's height, not of the values.
                let margin = (largest / least).powf(0.04);
                ([least / margin, largest * margin], least / margin)
            }
            false if largest > 0.0 => ([0.0, largest * 1.08], 0.0),
            false => ([0.0, 1.0], 0.0),
        };
        let points = series.iter().map(|s| s.values.len()).max().unwrap_or(0).max(1);
        let margin = (0.02 * points as f64).max(0.5);
        // Room for the brackets of several series, side by side.
        let side_by_side = series.len() > 1 && series.iter().any(|s| s.bracket.is_some());
        let before = if side_by_side { (0.08 * points as f64).max(0.8) } else { margin };
        let right = if series.len() > 1 { RIGHT - LEGEND } else { RIGHT };
        let x = Axis {
            values: [1.0 - before, points as f64 + margin],
            units: [LEFT, right],
            logarithmic: false,
        };
        let y = Axis { values: range, units: [BOTTOM, TOP], logarithmic };
        Figure { series, x, y, floor, points }
    }

    fn draw(&self, canvas: &mut Canvas<'_>, heading: &str) -> Result<(), Failure> {
        let width = self.x.units[1] - self.x.units[0];
        let y_ticks = match self.y.logarithmic {
            true => logarithmic_ticks(self.y.values, 9),
            false => linear_ticks(self.y.values, 8),
        };
        let frame = Frame {
            x: self.x,
            y: self.y,
            x_ticks: &whole_ticks(1, self.points, (width / 80.0) as usize),
            y_ticks: &y_ticks,
            x_label: "index",
            y_label: "singular value",
        };
        let low = |v: &f64| self.y.logarithmic && *v <= self.floor;
        let at_edge = self.series.iter().flat_map(|s| &s.values).filter(|v| low(v)).count();
        let below = match at_edge {
            0 => String::new(),
            1 => "one value that is zero or nearly so is at the lower edge".into(),
            n => format!("{n} values that are zero or nearly so are at the lower edge"),
        };
        title(canvas, LEFT, heading, &below)?;
        frame.draw_grid(canvas)?;
        let single = self.series.len() == 1;
        if single {
            self.draw_band(canvas)?;
        }
        for (i, series) in self.series.iter().enumerate() {
            if !single {
                self.draw_bracket(canvas, series, i)?;
            }
            self.draw_series(canvas, series, i)?;
        }
        frame.draw(canvas)?;
        if single { self.label_band(canvas) } else { self.draw_legend(canvas) }
    }

    fn y(&self, value: f64) -> f64 {
        self.y.place(value.clamp(self.y.values[0], self.y.values[1]))
    }

    fn draw_series(
        &self,
        canvas: &mut Canvas<'_>,
        series: &Series,
        index: usize,
    ) -> Result<(), Failure> {
        let (colour, dashes) = STYLES[index % STYLES.len()];
        let finite = series.values.iter().enumerate().filter(|(_, v)| v.is_finite());
        let points: Vec<_> =
            finite.map(|(i, &v)| [self.x.place((i + 1) as f64), self.y(v)]).collect();
        let points = thinned(points);
        canvas.line(&points, colour, 1.6, dashes)?;
        // Where there is room between them, the values themselves are marked.
        let spacing = (self.x.units[1] - self.x.units[0]) / self.points as f64;
        if spacing >= 7.0 {
            for &point in &points {
                mark(canvas, point, index, colour)?;
            }
        }
        Ok(())
    }

    /// Where the norm of the only series is.
    fn draw_band(&self, canvas: &mut Canvas<'_>) -> Result<(), Failure> {
        let Some(bracket) = self.series[0].bracket else { return Ok(()) };
        let [left, right] = self.x.units;
        let [low, high] = bracket.map(|v| self.y(v));
        canvas.rectangle([left, high], [right, low], LIGHT)?;
        for y in [low, high] {
            canvas.line(&[[left, y], [right, y]], GREY, 1.0, &[6.0, 3.0])?;
        }
        Ok(())
    }

    fn label_band(&self, canvas: &mut Canvas<'_>) -> Result<(), Failure> {
        let Some(bracket) = self.series[0].bracket else { return Ok(()) };
        let place = [self.x.units[1] - 8.0, self.y(bracket[0]) + 14.0];
        canvas.text(&norm_text(bracket), place, 15.0, Anchor::Right, BLACK)
    }

    /// Where the norm of one of several series is: at the left edge, before the first value.
    fn draw_bracket(
        &self,
        canvas: &mut Canvas<'_>,
        series: &Series,
        index: usize,
    ) -> Result<(), Failure> {
        let Some(bracket) = series.bracket else { return Ok(()) };
        let (colour, _) = STYLES[index % STYLES.len()];
        let [low, high] = bracket.map(|v| self.y(v));
        let x = self.x.units[0];
        let share = (index as f64 + 0.7) / (self.series.len() as f64 + 0.4);
        let middle = x + share * (self.x.place(1.0) - x);
        canvas.line(&[[middle, low], [middle, high]], colour, 1.6, &[])?;
        for y in [low, high] {
            canvas.line(&[[middle - 3.0, y], [middle + 3.0, y]], colour, 1.6, &[])?;
        }
        Ok(())
    }

    fn draw_legend(&self, canvas: &mut Canvas<'_>) -> Result<(), Failure> {
        let left = self.x.units[1] + 14.0;
        let lines = |s: &Series| if s.bracket.is_some() { 2.0 } else { 1.0 };
        let mut y = TOP + LEGEND_LINE / 2.0;
        for (i, series) in self.series.iter().enumerate() {
            let rest = self.series.len() - i;
            // The last line is for those that have none.
            if y + LEGEND_LINE * lines(series) > BOTTOM && rest > 1 {
                let text = format!("and {rest} more");
                return canvas.text(&text, [left, y], 14.0, Anchor::Left, GREY);
            }
            let (colour, dashes) = STYLES[i % STYLES.len()];
            canvas.line(&[[left, y], [left + 34.0, y]], colour, 1.6, dashes)?;
            mark(canvas, [left + 17.0, y], i, colour)?;
            let name = shortened(&series.name, LEGEND_LETTERS);
            canvas.text(&name, [left + 42.0, y], 14.0, Anchor::Left, BLACK)?;
            if let Some(bracket) = series.bracket {
                let place = [left + 42.0, y + LEGEND_LINE - 3.0];
                canvas.text(&norm_text(bracket), place, 13.0, Anchor::Left, BLACK)?;
            }
            y += LEGEND_LINE * lines(series) + 3.0;
        }
        Ok(())
    }
}

fn norm_text([low, high]: [f64; 2]) -> String {
    format!("norm {} to {}", rounded(low, 4), rounded(high, 4))
}

/// The mark of a value: a different shape for each of the first series.
fn mark(
    canvas: &mut Canvas<'_>,
    [x, y]: [f64; 2],
    index: usize,
    colour: Colour,
) -> Result<(), Failure> {
    let corners = |corners: &[[f64; 2]]| corners.iter().map(|[dx, dy]| [x + dx, y + dy]).collect();
    let corners: Vec<[f64; 2]> = match index % 4 {
        0 => return canvas.disc([x, y], 3.0, colour),
        1 => corners(&[[-3.0, -3.0], [3.0, -3.0], [3.0, 3.0], [-3.0, 3.0]]),
        2 => corners(&[[0.0, -4.0], [4.0, 3.0], [-4.0, 3.0]]),
        _ => corners(&[[0.0, -4.5], [4.5, 0.0], [0.0, 4.5], [-4.5, 0.0]]),
    };
    canvas.polygon(&corners, colour)
}

/// At most [`MOST_POINTS`] of the points, evenly, with both ends.
fn thinned(points: Vec<[f64; 2]>) -> Vec<[f64; 2]> {
    if points.len() <= MOST_POINTS {
        return points;
    }
    let last = points.len() - 1;
    (0..MOST_POINTS).map(|i| points[i * last / (MOST_POINTS - 1)]).collect()
}

/// A long name without its beginning: its end is what tells layers apart.
pub fn shortened(name: &str, most: usize) -> String {
    let letters = name.chars().count();
    if letters <= most {
        return name.into();
    }
    let end: String = name.chars().skip(letters + 1 - most).collect();
    format!("…{end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn svg(series: &[Series]) -> String {
        String::from_utf8(plot("a heading", series, Format::Svg).unwrap()).unwrap()
    }

    fn series(values: impl IntoIterator<Item = f64>, bracket: Option<[f64; 2]>) -> Series {
        Series { name: "conv1".into(), values: values.into_iter().collect(), bracket }
    }

    /// Values that take the axis to its limits: none of them panics or leaves the frame.
    #[test]
    fn any_values_are_drawn_inside_the_frame() {
        let geometric = |n| (0..n).map(|i| 0.5f64.powi(i));
        for one in [
            series([], None),
            series([2.5], Some([2.4, 2.6])),
            series([0.0; 4], Some([0.0, 0.0])),
            series(geometric(60).chain([1e-300, 0.0, 0.0]), Some([1.0, 5.0])),
            series([f64::MAX, 1.0, f64::MIN_POSITIVE], None),
            series([f64::NAN, f64::INFINITY, 1.0], Some([1.0, 5.0])),
            series((0..20_000).map(|i| 3.0 - i as f64 / 1e4), None),
        ] {
            let picture = svg(&[one]);
            assert!(picture.contains("a heading") && picture.contains("singular value"));
            assert!(!picture.contains("NaN") && !picture.contains("inf"), "{picture}");
            for points in picture.lines().filter_map(|line| line.split_once("points=\"")) {
                let (points, _) = points.1.split_once('"').unwrap();
                for point in points.split_whitespace() {
                    let (x, y) = point.split_once(',').unwrap();
                    let [x, y] = [x, y].map(|text| text.parse::<f64>().unwrap());
                    assert!((0.0..=WIDTH).contains(&x) && (0.0..=HEIGHT).contains(&y), "{point}");
                }
            }
        }
    }

    #[test]
    fn wide_values_get_powers_of_ten_and_zeros_are_told() {
        let wide = svg(&[series([1.0, 1e-3, 0.0], None)]);
        assert!(wide.contains("\n0.01\n"), "{wide}");
        assert!(wide.contains("one value that is zero"), "{wide}");
        let narrow = svg(&[series([1.0, 0.5, 0.0], None)]);
        assert!(narrow.contains("\n0.2\n") && !narrow.contains("zero"), "{narrow}");
    }

    #[test]
    fn several_series_have_a_legend() {
        let two = svg(&[series([3.0, 1.0], Some([3.0, 3.5])), series([2.0], None)]);
        assert!(two.contains("norm 3 to 3.5") && two.matches("conv1").count() == 2, "{two}");
        let many: Vec<_> = (0..60).map(|_| series([1.0], None)).collect();
        assert!(svg(&many).contains(" more"));
    }

    #[test]
    fn thousands_of_points_become_fewer_with_both_ends() {
        let points: Vec<_> = (0..100_000).map(|i| [f64::from(i), 0.0]).collect();
        let fewer = thinned(points.clone());
        assert_eq!(
            (fewer.len(), fewer[0], fewer[MOST_POINTS - 1]),
            (5000, points[0], points[99_999])
        );
    }
}
