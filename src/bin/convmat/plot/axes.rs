//! Axes: where values are in a figure, and which of them get a tick.

use super::canvas::{Anchor, BLACK, Canvas, GREY, LIGHT};
use crate::failure::Failure;
use crate::report;

const LABEL_SIZE: f64 = 17.0;
const TICK_SIZE: f64 = 15.0;

/// One axis: the values at its two ends, and the ends in units.
#[derive(Clone, Copy)]
pub struct Axis {
    pub values: [f64; 2],
    pub units: [f64; 2],
    pub logarithmic: bool,
}

impl Axis {
    pub fn place(&self, value: f64) -> f64 {
        let scale = |v: f64| if self.logarithmic { v.log10() } else { v };
        let [low, high] = self.values.map(scale);
        let share = (scale(value) - low) / (high - low);
        self.units[0] + share * (self.units[1] - self.units[0])
    }
}

/// A tick and, unless it is a minor one, what is written beside it.
#[derive(Debug, PartialEq)]
pub struct Tick {
    pub value: f64,
    pub label: Option<String>,
}

/// At most about `most` whole numbers that are easy to read.
pub fn whole_ticks(from: usize, to: usize, most: usize) -> Vec<Tick> {
    let step = (step_of((to.saturating_sub(from)) as f64, most).max(1.0)) as usize;
    let mut values: Vec<usize> = (from.div_ceil(step)..=to / step).map(|k| k * step).collect();
    // The first value says where counting starts.
    if values.first() != Some(&from) {
        if values.first().is_some_and(|&next| next - from < step / 2 + step % 2) {
            values[0] = from;
        } else {
            values.insert(0, from);
        }
    }
    let tick = |value| Tick { value: value as f64, label: Some(report::count(value)) };
    values.into_iter().map(tick).collect()
}

/// About `most` values between the ends that are easy to read.
pub fn linear_ticks([low, high]: [f64; 2], most: usize) -> Vec<Tick> {
    let step = step_of(high - low, most);
    let decimals = (-step.log10().floor()).max(0.0) as usize;
    let plain = (1e-4..1e6).contains(&high.abs());
    let (from, to) = ((low / step - 1e-9).ceil() as i64, (high / step + 1e-9).floor() as i64);
    let tick = |k: i64| {
        let value = k as f64 * step;
        let label = match plain {
            true => format!("{value:.decimals$}"),
            false if k == 0 => "0".into(),
            // As many digits as tell the ticks apart.
            false => {
                let digits = (high.abs().log10().floor() - step.log10().floor()).max(0.0) as usize;
                format!("{value:.digits$e}")
            }
        };
        Tick { value, label: Some(label) }
    };
    (from..=to).map(tick).collect()
}

/// Powers of ten between the ends; where there are few of them, their multiples as well.
pub fn logarithmic_ticks([low, high]: [f64; 2], most: usize) -> Vec<Tick> {
    let (from, to) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    let decades = (to - from).max(1) as usize;
    let few = (high / low).log10() < 3.0 + 1e-9;
    let every = decades.div_ceil(most) as i32;
    let inside = |value: f64| (low * (1.0 - 1e-9)..=high * (1.0 + 1e-9)).contains(&value);
    let plain = from >= -4 && to <= 5;
    let mut ticks = Vec::new();
    for exponent in from..=to {
        for digit in 1..=9 {
            let value = f64::from(digit) * 10f64.powi(exponent);
            let labelled = match digit {
                1 => exponent.rem_euclid(every) == 0,
                2 | 5 => few,
                _ => false,
            };
            if inside(value) && (digit == 1 || decades <= 8) {
                let decimals = (-exponent).max(0) as usize;
                let text = || match plain {
                    true => format!("{value:.decimals$}"),
                    false => format!("{digit}e{exponent}"),
                };
                ticks.push(Tick { value, label: labelled.then(text) });
            }
        }
    }
    ticks
}

/// 1, 2 or 5 times a power of ten, so that there are about `most` steps in the length.
fn step_of(length: f64, most: usize) -> f64 {
    let least = (length / most as f64).max(f64::MIN_POSITIVE);
    let power = 10f64.powf(least.log10().floor());
    let factors = [1.0, 2.0, 5.0, 10.0];
    power * factors.into_iter().find(|f| f * power >= least * (1.0 - 1e-9)).unwrap_or(10.0)
}

/// A frame with ticks on the left and below, and words for both axes.
pub struct Frame<'a> {
    pub x: Axis,
    pub y: Axis,
    pub x_ticks: &'a [Tick],
    pub y_ticks: &'a [Tick],
    pub x_label: &'a str,
    pub y_label: &'a str,
}

impl Frame<'_> {
    fn sides(&self) -> [f64; 4] {
        let [left, right] = self.x.units;
        let (top, bottom) =
            (self.y.units[0].min(self.y.units[1]), self.y.units[0].max(self.y.units[1]));
        [left, right, top, bottom]
    }

    /// The lines across, which belong below everything else.
    pub fn draw_grid(&self, canvas: &mut Canvas<'_>) -> Result<(), Failure> {
        let [left, right, top, bottom] = self.sides();
        let labelled = |ticks: &[Tick], axis: Axis| {
            let ticks = ticks.iter().filter(|tick| tick.label.is_some());
            ticks.map(|tick| axis.place(tick.value)).collect::<Vec<_>>()
        };
        for x in labelled(self.x_ticks, self.x) {
            canvas.line(&[[x, top], [x, bottom]], LIGHT, 1.0, &[])?;
        }
        for y in labelled(self.y_ticks, self.y) {
            canvas.line(&[[left, y], [right, y]], LIGHT, 1.0, &[])?;
        }
        Ok(())
    }

    pub fn draw(&self, canvas: &mut Canvas<'_>) -> Result<(), Failure> {
        let [left, right, top, bottom] = self.sides();
        let frame = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]];
        canvas.line(&frame, BLACK, 1.0, &[])?;
        for tick in self.x_ticks {
            let x = self.x.place(tick.value);
            let length = if tick.label.is_some() { 6.0 } else { 3.0 };
            canvas.line(&[[x, bottom], [x, bottom + length]], BLACK, 1.0, &[])?;
            if let Some(label) = &tick.label {
                canvas.text(label, [x, bottom + 18.0], TICK_SIZE, Anchor::Middle, BLACK)?;
            }
        }
        for tick in self.y_ticks {
            let y = self.y.place(tick.value);
            let length = if tick.label.is_some() { 6.0 } else { 3.0 };
            canvas.line(&[[left - length, y], [left, y]], BLACK, 1.0, &[])?;
            if let Some(label) = &tick.label {
                canvas.text(label, [left - 10.0, y], TICK_SIZE, Anchor::Right, BLACK)?;
            }
        }
        let (x, y) = ((left + right) / 2.0, (top + bottom) / 2.0);
        canvas.text(self.x_label, [x, bottom + 46.0], LABEL_SIZE, Anchor::Middle, BLACK)?;
        // Beside the longest of the ticks' labels.
        let letters = |tick: &Tick| tick.label.as_ref().map_or(0, |label| label.chars().count());
        let longest = self.y_ticks.iter().map(letters).max().unwrap_or(0);
        let beside = left - 30.0 - 8.0 * longest as f64;
        canvas.text(self.y_label, [beside, y], LABEL_SIZE, Anchor::Upwards, BLACK)
    }
}

/// The title of a figure and, below it, what else there is to say.
pub fn title(canvas: &mut Canvas<'_>, x: f64, title: &str, below: &str) -> Result<(), Failure> {
    canvas.text(title, [x, 24.0], 21.0, Anchor::Left, BLACK)?;
    if below.is_empty() {
        Ok(())
    } else {
        canvas.text(below, [x, 49.0], TICK_SIZE, Anchor::Left, GREY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(ticks: &[Tick]) -> Vec<&str> {
        ticks.iter().filter_map(|tick| tick.label.as_deref()).collect()
    }

    #[test]
    fn ticks_are_easy_to_read() {
        assert_eq!(labels(&whole_ticks(1, 1, 8)), ["1"]);
        assert_eq!(labels(&whole_ticks(1, 6, 8)), ["1", "2", "3", "4", "5", "6"]);
        assert_eq!(labels(&whole_ticks(0, 20, 5)), ["0", "5", "10", "15", "20"]);
        assert_eq!(
            labels(&whole_ticks(1, 5000, 5)),
            ["1", "1,000", "2,000", "3,000", "4,000", "5,000"]
        );
        assert_eq!(
            labels(&linear_ticks([0.0, 1.0], 5)),
            ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
        );
        assert_eq!(labels(&linear_ticks([0.0, 3e8], 3)), ["0", "1e8", "2e8", "3e8"]);
        assert_eq!(labels(&logarithmic_ticks([1e-2, 10.0], 8)).len(), 10);
        assert_eq!(labels(&logarithmic_ticks([1e-12, 1.0], 6)).len(), 7);
        assert_eq!(
            labels(&logarithmic_ticks([0.5, 200.0], 8)),
            ["0.5", "1", "2", "5", "10", "20", "50", "100", "200"]
        );
    }
}
