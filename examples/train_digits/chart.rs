//! Loss curves as SVG.

use std::error::Error;
use std::path::Path;

use convmat::io::{check_writable, write_file};
use plotters::prelude::*;
use plotters::style::register_font;

use crate::report::{Race, TARGET};
use crate::training::Row;

/// Colours that the colour-blind tell apart, too (Okabe & Ito).
const COLOURS: [RGBColor; 4] =
    [RGBColor(230, 159, 0), RGBColor(0, 114, 178), RGBColor(213, 94, 0), RGBColor(0, 158, 115)];
/// What the font is called that texts are measured with; viewers show their own of that name.
const FONT: &str = "sans-serif";

const BY_STEPS: &str = "loss_by_steps.svg";
const BY_SECONDS: &str = "loss_by_seconds.svg";

/// Fails where the charts cannot be written to this folder, which is made: better known before the training.
pub fn check(folder: &Path) -> Result<(), Box<dyn Error>> {
    std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    for name in [BY_STEPS, BY_SECONDS] {
        check_writable(folder.join(name))?;
    }
    Ok(())
}

/// Writes the curves against steps and against seconds to a folder: both drawings are complete before the
/// first is written.
pub fn write(folder: &Path, races: &[Race]) -> Result<(), Box<dyn Error>> {
    register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT)
        .map_err(|_| "the font for the charts cannot be read")?;
    let by_steps = draw(races, "Steps", |row| row.step as f64)?;
    let by_seconds = draw(races, "Seconds of training", |row| row.seconds)?;
    for (name, text) in [(BY_STEPS, by_steps), (BY_SECONDS, by_seconds)] {
        let path = folder.join(name);
        write_file(&path, text.as_bytes())?;
        println!("chart: {}", path.display());
    }
    Ok(())
}

/// Mean training losses over `x`, the losses on a logarithmic scale.
fn draw(races: &[Race], x_name: &str, x: fn(&Row) -> f64) -> Result<String, Box<dyn Error>> {
    let means: Vec<Vec<Row>> = races.iter().map(Race::mean).collect();
    let rows = || means.iter().flatten();
    let losses = || rows().map(|row| row.train.loss).filter(|loss| loss.is_finite());
    let least = losses().fold(TARGET, f64::min).max(1e-6) / 1.2;
    let most = losses().fold(TARGET, f64::max) * 1.2;
    let end = rows().map(x).fold(1e-9, f64::max);

    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (900, 540)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(16)
            .x_label_area_size(48)
            .y_label_area_size(76)
            .build_cartesian_2d(0.0..end, (least..most).log_scale())?;
        chart
            .configure_mesh()
            .x_desc(x_name)
            .y_desc("Training loss (nats)")
            .label_style((FONT, 16))
            .axis_desc_style((FONT, 18))
            .y_label_formatter(&|loss| format!("{loss}"))
            .light_line_style(WHITE)
            .draw()?;
        let target = PathElement::new([(0.0, TARGET), (end, TARGET)], BLACK.mix(0.5));
        let label = format!("loss {TARGET}");
        chart.draw_series([target])?.label(label).legend(|at| key(at, BLACK.mix(0.5)));
        for ((race, rows), colour) in races.iter().zip(&means).zip(COLOURS) {
            let style = colour.stroke_width(2);
            let points: Vec<_> = rows.iter().map(|row| (x(row), row.train.loss)).collect();
            chart
                .draw_series([PathElement::new(points, style)])?
                .label(race.recipe.method.to_string())
                .legend(move |at| key(at, style));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerLeft)
            .background_style(WHITE)
            .border_style(BLACK.mix(0.3))
            .label_font((FONT, 16))
            .draw()?;
        area.present()?;
    }
    Ok(text)
}

/// A line of the legend.
fn key((x, y): (i32, i32), style: impl Into<ShapeStyle>) -> PathElement<(i32, i32)> {
    PathElement::new([(x, y), (x + 20, y)], style)
}
