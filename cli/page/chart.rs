//! Series of numbers as geometry: paths, ticks and dots in the coordinates of a drawing. Colours are the page's.

use serde::Serialize;

/// Where the plot lies within a drawing of 360 by 200.
const LEFT: f64 = 46.0;
const RIGHT: f64 = 352.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 176.0;
/// More points than this are thinned to the ends and extremes of equal stretches, which look the same.
const STRETCHES: usize = 200;
/// Colours that tell series apart; more series begin again.
pub const COLOURS: usize = 8;
/// Ticks of an axis, about.
const TICKS: f64 = 4.0;

/// Numbers over steps.
#[derive(Clone, Debug, Default)]
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
    pub style: Style,
}

/// How a series is drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Style {
    #[default]
    Line,
    /// A line behind the others.
    Faint,
    /// A line with its few points marked.
    Dots,
}

/// What a chart's numbers are, for its ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    #[default]
    Number,
    Bytes,
    Rate,
    Small,
    Share,
}

/// A drawing.
#[derive(Clone, Debug, Serialize)]
pub struct Chart {
    pub title: String,
    pub unit: Unit,
    pub lines: Vec<Line>,
    /// Places from the left, and the step each stands for.
    pub x_ticks: Vec<(f64, String)>,
    pub y_ticks: Vec<(f64, String)>,
    /// Smallest, largest and last number of the first series that is not faint, as text.
    pub summary: String,
}

/// One series of a drawing.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    pub name: String,
    pub style: Style,
    pub colour: usize,
    pub path: String,
    pub dots: Vec<(f64, f64)>,
    /// `step value left top` of every point drawn, for whoever points at it.
    pub points: String,
}

/// The chart of these series; `None` without a point to draw.
pub fn chart(title: &str, unit: Unit, series: &[Series]) -> Option<Chart> {
    let finite = || series.iter().flat_map(|s| &s.points).filter(|(x, y)| x.is_finite() && y.is_finite());
    let range = |pick: fn(&(f64, f64)) -> f64| {
        finite().map(pick).fold(None, |range: Option<(f64, f64)>, v| {
            Some(range.map_or((v, v), |(low, high)| (low.min(v), high.max(v))))
        })
    };
    let (x_low, x_high) = range(|point| point.0)?;
    let (y_low, y_high) = padded(range(|point| point.1)?);
    let x = move |v: f64| LEFT + (v - x_low) / (x_high - x_low).max(f64::MIN_POSITIVE) * (RIGHT - LEFT);
    let y = move |v: f64| BOTTOM - (v - y_low) / (y_high - y_low) * (BOTTOM - TOP);
    let mut colour = 0;
    // A series without points keeps its colour from the others, so that each has the same in every chart.
    let coloured = series.iter().map(|s| {
        let own = colour % COLOURS;
        colour += usize::from(s.style != Style::Faint);
        (s, own)
    });
    let lines = coloured.filter(|(s, _)| !s.points.is_empty()).map(|(s, own)| line(s, own, &x, &y, unit)).collect();
    let told = series.iter().find(|s| s.style != Style::Faint).or(series.first());
    Some(Chart {
        title: title.to_string(),
        unit,
        lines,
        x_ticks: ticks(x_low, x_high, 1.0).into_iter().map(|v| (round(x(v)), told_step(v))).collect(),
        y_ticks: ticks(y_low, y_high, 0.0).into_iter().map(|v| (round(y(v)), told_number(v, unit))).collect(),
        summary: told.map(|s| summary(s, unit)).unwrap_or_default(),
    })
}

/// A running mean in which each point counts `weight` times as much as the next, corrected for its start, as TensorBoard
/// smooths.
pub fn smoothed(points: &[(f64, f64)], weight: f64) -> Vec<(f64, f64)> {
    let (mut mean, mut share) = (0.0, 0.0);
    let finite = points.iter().filter(|(_, y)| y.is_finite());
    let smooth = finite.map(|&(x, y)| {
        mean = mean * weight + (1.0 - weight) * y;
        share = share * weight + (1.0 - weight);
        (x, mean / share)
    });
    smooth.collect()
}

/// A number as the ticks and the legend write it.
pub fn told_number(v: f64, unit: Unit) -> String {
    use crate::report::format::{bytes, measure, percent, rate};
    match unit {
        Unit::Bytes if v >= 0.0 => bytes(v as u64),
        Unit::Rate if v >= 0.0 => rate(v),
        Unit::Share => percent(v),
        Unit::Small if v != 0.0 && v.abs() < 0.01 => {
            let text = format!("{v:.2e}");
            text.replace(".00e", "e").replace("0e", "e")
        }
        _ if v == 0.0 => "0".to_string(),
        _ if v == v.trunc() && v.abs() < 1e4 => format!("{v}"),
        _ => measure(v),
    }
}

fn told_step(v: f64) -> String {
    if v >= 10_000.0 { crate::report::format::rate(v) } else { format!("{v}") }
}

fn summary(series: &Series, unit: Unit) -> String {
    let values: Vec<f64> = series.points.iter().map(|point| point.1).filter(|v| v.is_finite()).collect();
    let Some(last) = values.last() else { return String::new() };
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let told = |v: f64| told_number(v, unit);
    format!("{}: {} to {}, last {}", series.name, told(low), told(high), told(*last))
}

fn line(series: &Series, colour: usize, x: &impl Fn(f64) -> f64, y: &impl Fn(f64) -> f64, unit: Unit) -> Line {
    let kept = thinned(&series.points);
    let (mut path, mut points, mut is_down) = (String::new(), Vec::new(), false);
    for &(step, value) in &kept {
        if !value.is_finite() {
            is_down = false;
            continue;
        }
        let (left, top) = (round(x(step)), round(y(value)));
        path.push_str(&format!("{}{left} {top}", if is_down { "L" } else { "M" }));
        points.push(format!("{step}|{}|{left}|{top}", told_number(value, unit)));
        is_down = true;
    }
    let marked = series.style == Style::Dots || points.len() == 1;
    let dots = kept.iter().filter(|(_, v)| marked && v.is_finite()).map(|&(s, v)| (round(x(s)), round(y(v))));
    Line {
        name: series.name.clone(),
        style: series.style,
        colour,
        path,
        dots: dots.collect(),
        points: points.join(";"),
    }
}

/// First, lowest, highest and last point of equal stretches.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= STRETCHES * 4 {
        return points.to_vec();
    }
    let mut kept = Vec::new();
    for stretch in points.chunks(points.len().div_ceil(STRETCHES)) {
        let by_value = |a: &usize, b: &usize| stretch[*a].1.total_cmp(&stretch[*b].1);
        let places = 0..stretch.len();
        let low = places.clone().min_by(by_value).unwrap_or(0);
        let high = places.max_by(by_value).unwrap_or(0);
        let mut places = vec![0, low, high, stretch.len() - 1];
        places.sort_unstable();
        places.dedup();
        kept.extend(places.into_iter().map(|i| stretch[i]));
    }
    kept
}

/// A range with room above and below; one that begins near zero begins at it.
fn padded((low, high): (f64, f64)) -> (f64, f64) {
    if low == high {
        let room = if low == 0.0 { 1.0 } else { low.abs() * 0.1 };
        return (low - room, high + room);
    }
    let room = (high - low) * 0.05;
    let floor = if low >= 0.0 && low < (high - low) * 0.5 { 0.0 } else { low - room };
    (floor, high + room)
}

/// Round numbers within a range, `least` apart or more.
fn ticks(low: f64, high: f64, least: f64) -> Vec<f64> {
    let rough = ((high - low) / TICKS).max(least);
    if rough <= 0.0 || !rough.is_finite() {
        return vec![low];
    }
    let scale = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|n| n * scale).find(|step| *step >= rough * 0.999);
    let step = step.unwrap_or(rough);
    let first = (low / step).ceil() as i64;
    let last = (high / step).floor() as i64;
    // The product, not a sum of steps: 3 * 0.1 is nearer to 0.3 than three additions.
    (first..=last).take(12).map(|i| decimal(i as f64 * step)).collect()
}

/// Without the last digits that binary fractions leave.
fn decimal(v: f64) -> f64 {
    format!("{v:.12e}").parse().unwrap_or(v)
}

fn round(v: f64) -> f64 {
    (v * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(points: &[(f64, f64)], style: Style) -> Series {
        Series { name: "loss".into(), points: points.to_vec(), style }
    }

    #[test]
    fn a_line_goes_from_corner_to_corner() {
        let drawn = chart("loss", Unit::Number, &[series(&[(0.0, 0.0), (5.0, f64::NAN), (10.0, 100.0)], Style::Line)]);
        let drawn = drawn.expect("there are points");
        // The highest number has a twentieth of room above it.
        assert_eq!(drawn.lines[0].path, "M46 176M352 16");
        assert_eq!(drawn.lines[0].points, "0|0|46|176;10|100|352|16");
        assert_eq!(drawn.summary, "loss: 0 to 100, last 100");
        let labels: Vec<&str> = drawn.y_ticks.iter().map(|tick| tick.1.as_str()).collect();
        assert_eq!(labels, ["0", "50", "100"]);
        assert_eq!(drawn.x_ticks[1], (199.0, "5".to_string()));
        assert!(chart("loss", Unit::Number, &[series(&[(0.0, f64::NAN)], Style::Line)]).is_none());
    }

    #[test]
    fn many_points_keep_their_extremes() {
        let mut points: Vec<(f64, f64)> = (0..100_000).map(|i| (f64::from(i), 1.0)).collect();
        points[77_777].1 = 9.0;
        points[33_333].1 = -9.0;
        let kept = thinned(&points);
        assert!(kept.len() <= STRETCHES * 4, "{}", kept.len());
        assert!(kept.contains(&(77_777.0, 9.0)) && kept.contains(&(33_333.0, -9.0)) && kept.contains(&(99_999.0, 1.0)));
    }

    #[test]
    fn smoothing_is_a_mean_from_the_first_point_on() {
        let smooth = smoothed(&[(1.0, 4.0), (2.0, 2.0)], 0.5);
        assert_eq!(smooth[0].1, 4.0);
        assert!((smooth[1].1 - 8.0 / 3.0).abs() < 1e-12, "(4 * 0.5 + 2) / 1.5");
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(ticks(0.0, 270.0, 1.0), [0.0, 100.0, 200.0]);
        assert_eq!(ticks(0.0, 0.0005, 0.0), [0.0, 0.0002, 0.0004]);
        assert_eq!(ticks(1.0, 2.0, 1.0), [1.0, 2.0]);
        assert_eq!(told_number(0.0002, Unit::Small), "2e-4");
        assert_eq!(told_number(0.00025, Unit::Small), "2.5e-4");
    }
}
