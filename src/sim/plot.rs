//! A picture of a run: congestion window, round-trip time and goodput of the bulk flows over time, as SVG.

use std::fmt::Write as _;

use super::report::{Point, Report, Series};

const WIDTH: f64 = 960.0;
const PANEL: f64 = 220.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 58.0;
const GAP: f64 = 44.0;
/// Okabe and Ito's colours: eight that people with any colour vision can tell apart.
const COLOURS: [&str; 8] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#b8a600"];

/// A panel: its title, and the number it shows.
type Panel = (&'static str, fn(&Point) -> Option<f64>);

const PANELS: [Panel; 3] = [
    ("congestion window, KiB", |p| p.cwnd.map(|c| c / 1024.0)),
    ("smoothed round-trip time, ms", |p| p.rtt),
    ("goodput, Mbit/s", |p| p.goodput),
];

/// The picture of a report that was made with series.
#[must_use]
pub fn svg(report: &Report, title: &str) -> String {
    let height = TOP + PANELS.len() as f64 * (PANEL + GAP) + 10.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let what = escape(title);
    let _ = writeln!(
        out,
        "<text x=\"{LEFT}\" y=\"20\" font-size=\"15\" font-weight=\"bold\">{what}</text>\
         <text x=\"{}\" y=\"20\" text-anchor=\"end\" fill=\"#666\">seed {}, trace {}</text>",
        WIDTH - RIGHT,
        report.seed,
        report.trace_hash
    );
    legend(&mut out, &report.series);
    for (n, panel) in PANELS.iter().enumerate() {
        draw(&mut out, panel, TOP + 14.0 + n as f64 * (PANEL + GAP), report);
    }
    out.push_str("</svg>\n");
    out
}

fn legend(out: &mut String, series: &[Series]) {
    let mut x = LEFT;
    for (s, colour) in series.iter().zip(COLOURS) {
        let name = escape(&s.name);
        let _ = writeln!(
            out,
            "<line x1=\"{x}\" x2=\"{}\" y1=\"36\" y2=\"36\" stroke=\"{colour}\" stroke-width=\"3\"/>\
             <text x=\"{}\" y=\"40\">{name}</text>",
            x + 18.0,
            x + 22.0
        );
        // About the width of the text.
        x += 34.0 + 7.0 * s.name.chars().count() as f64;
    }
}

fn draw(out: &mut String, (title, value): &Panel, top: f64, report: &Report) {
    let values = || report.series.iter().flat_map(|s| s.points.iter().filter_map(value));
    let most = values().fold(0.0f64, f64::max);
    let (step, most) = scale(if most > 0.0 { most } else { 1.0 });
    let (time_step, _) = scale(report.seconds);
    let (bottom, right) = (top + PANEL, WIDTH - RIGHT);
    let x = |t: f64| LEFT + t / report.seconds * (right - LEFT);
    let y = |v: f64| bottom - v / most * PANEL;

    let _ = writeln!(out, "<text x=\"{LEFT}\" y=\"{}\" font-weight=\"bold\">{title}</text>", top - 6.0);
    for n in 0..=(most / step).round() as u32 {
        let v = f64::from(n) * step;
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{0:.1}\" y2=\"{0:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{1}\" y=\"{2:.1}\" text-anchor=\"end\" fill=\"#444\">{3}</text>",
            y(v),
            LEFT - 6.0,
            y(v) + 4.0,
            number(v)
        );
    }
    for n in 0..=(report.seconds / time_step).floor() as u32 {
        let t = f64::from(n) * time_step;
        let _ = writeln!(
            out,
            "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{top}\" y2=\"{bottom}\" stroke=\"#eee\"/>\
             <text x=\"{0:.1}\" y=\"{1}\" text-anchor=\"middle\" fill=\"#444\">{2} s</text>",
            x(t),
            bottom + 16.0,
            number(t)
        );
    }
    let _ = writeln!(
        out,
        "<rect x=\"{LEFT}\" y=\"{top}\" width=\"{}\" height=\"{PANEL}\" fill=\"none\" stroke=\"#888\"/>",
        right - LEFT
    );
    for (series, colour) in report.series.iter().zip(COLOURS) {
        // Where there is no value the line ends, and begins anew.
        for piece in series.points.split(|p| value(p).is_none()).filter(|piece| !piece.is_empty()) {
            let mut points = String::new();
            for p in piece {
                let _ = write!(points, "{:.1},{:.1} ", x(p.seconds), y(value(p).unwrap_or_default()));
            }
            let _ = writeln!(
                out,
                "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.3\" stroke-linejoin=\"round\" \
                 points=\"{}\"/>",
                points.trim_end()
            );
        }
    }
}

/// Distance of grid lines, 1, 2 or 5 times a power of ten, and the end of the axis.
fn scale(most: f64) -> (f64, f64) {
    let magnitude = 10f64.powf((most / 5.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|s| s * magnitude).into_iter().find(|s| most / s <= 6.0);
    let step = step.unwrap_or(magnitude * 10.0);
    (step, (most / step).ceil() * step)
}

fn number(v: f64) -> String {
    let text = format!("{v:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_round_numbers() {
        assert_eq!(scale(957.0), (200.0, 1000.0));
        assert_eq!(scale(60.0), (10.0, 60.0));
        assert_eq!(scale(0.25), (0.05, 0.25));
        assert_eq!((number(0.3), number(200.0), number(0.0)), ("0.3".into(), "200".into(), "0".into()));
    }
}
