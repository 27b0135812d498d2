//! Pictures as SVG text: lines over logarithmic or linear axes, and stacked bars. No script, no font, no other file.

use std::fmt::Write as _;

const WIDTH: f64 = 820.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 78.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 20.0;
const BOTTOM: f64 = 54.0;
/// Names stand below the picture, in columns.
const LEGEND_COLUMNS: usize = 3;
const LEGEND_ROW: f64 = 18.0;

/// Colours that differ in lightness too; after the last they begin again.
const COLOURS: [&str; 10] =
    ["#1d4ed8", "#c2410c", "#15803d", "#7e22ce", "#0891b2", "#be123c", "#a16207", "#475569", "#65a30d", "#111827"];

/// The colour of series `n`.
#[must_use]
pub fn colour(n: usize) -> &'static str {
    COLOURS[n % COLOURS.len()]
}

/// One line of a picture.
#[derive(Clone, Debug)]
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
    /// A dot at each point.
    pub dots: bool,
    /// Number of its colour, and whether the line is dashed: two lines of one thing share a colour.
    pub colour: usize,
    pub dashed: bool,
}

/// An axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// From 0.
    Linear,
    Logarithmic,
    /// The value is the share above; each step to the right is a tenth of it: 50 %, 90 %, 99 %, …
    Nines,
}

/// Lines, with a legend.
#[must_use]
pub fn lines(series: &[Series], x: (Scale, &str), y: (Scale, &str)) -> String {
    let xs = Axis::over(series.iter().flat_map(|s| s.points.iter().map(|p| p.0)), x.0, LEFT, WIDTH - RIGHT);
    let ys = Axis::over(series.iter().flat_map(|s| s.points.iter().map(|p| p.1)), y.0, HEIGHT - BOTTOM, TOP);
    let mut out = begin(HEIGHT + LEGEND_ROW * series.len().div_ceil(LEGEND_COLUMNS) as f64);
    for (at, label) in ys.marks() {
        let _ = writeln!(out, "<path d=\"M{LEFT} {at:.1}H{:.1}\" stroke=\"#ddd\"/>", WIDTH - RIGHT);
        text(&mut out, LEFT - 8.0, at + 4.0, "end", "#333", &label);
    }
    for (at, label) in xs.marks() {
        let _ = writeln!(out, "<path d=\"M{at:.1} {TOP}V{:.1}\" stroke=\"#eee\"/>", HEIGHT - BOTTOM);
        text(&mut out, at, HEIGHT - BOTTOM + 18.0, "middle", "#333", &label);
    }
    text(&mut out, (LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 12.0, "middle", "#333", x.1);
    text(&mut out, 8.0, 13.0, "start", "#333", y.1);
    for (n, s) in series.iter().enumerate() {
        let colour = colour(s.colour);
        let path: Vec<String> = s.points.iter().map(|p| format!("{:.1} {:.1}", xs.at(p.0), ys.at(p.1))).collect();
        if path.len() > 1 {
            let path = path.join("L");
            let dashes = if s.dashed { " stroke-dasharray=\"6 4\"" } else { "" };
            let _ = writeln!(out, "<path d=\"M{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dashes}/>");
        }
        if s.dots || s.points.len() == 1 {
            for p in &s.points {
                let _ = writeln!(
                    out,
                    "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\" fill=\"{colour}\"/>",
                    xs.at(p.0),
                    ys.at(p.1)
                );
            }
        }
        let (row, column) = ((n / LEGEND_COLUMNS) as f64, (n % LEGEND_COLUMNS) as f64);
        text(&mut out, LEFT + 245.0 * column, HEIGHT + 8.0 + LEGEND_ROW * row, "start", colour, &s.name);
    }
    out + "</svg>\n"
}

/// Horizontal bars, each of parts in the order of `parts`.
#[must_use]
pub fn bars(parts: &[&str], rows: &[(String, Vec<f64>)], unit: &str) -> String {
    const ROW: f64 = 26.0;
    const NAMES: f64 = 230.0;
    let most = rows.iter().map(|(_, values)| values.iter().sum::<f64>()).fold(0.0, f64::max).max(1e-9);
    const NAMES_A_ROW: usize = 5;
    let legend = LEGEND_ROW * parts.len().div_ceil(NAMES_A_ROW) as f64;
    let mut out = begin(22.0 + legend + ROW * rows.len() as f64);
    for (n, part) in parts.iter().enumerate() {
        let (row, column) = ((n / NAMES_A_ROW) as f64, (n % NAMES_A_ROW) as f64);
        text(&mut out, NAMES + 110.0 * column, 16.0 + LEGEND_ROW * row, "start", colour(n), part);
    }
    for (row, (name, values)) in rows.iter().enumerate() {
        let top = 10.0 + legend + ROW * row as f64;
        text(&mut out, NAMES - 8.0, top + 14.0, "end", "#333", name);
        let mut x = NAMES;
        for (n, value) in values.iter().enumerate() {
            let width = (WIDTH - NAMES - 110.0) * value / most;
            if width > 0.05 {
                let _ = writeln!(
                    out,
                    "<rect x=\"{x:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{:.1}\" fill=\"{}\"/>",
                    ROW - 7.0,
                    colour(n)
                );
            }
            x += width;
        }
        text(&mut out, x + 6.0, top + 14.0, "start", "#333", &format!("{} {unit}", short(values.iter().sum())));
    }
    out + "</svg>\n"
}

/// Text that is safe between tags and in attributes.
#[must_use]
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A number with three significant digits and a prefix.
#[must_use]
pub fn short(value: f64) -> String {
    let (scaled, prefix) = match value.abs() {
        v if v >= 1e9 => (value / 1e9, " G"),
        v if v >= 1e6 => (value / 1e6, " M"),
        v if v >= 1e4 => (value / 1e3, " k"),
        _ => (value, ""),
    };
    let digits = match scaled.abs() {
        v if v >= 100.0 || v == 0.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{scaled:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{prefix}")
}

fn begin(height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-size=\"13\" \
         font-family=\"sans-serif\">\n"
    )
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, colour: &str, words: &str) {
    let words = escape(words);
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{words}</text>");
}

/// Values to places.
struct Axis {
    scale: Scale,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64>, scale: Scale, from: f64, to: f64) -> Self {
        let raised = values.filter(|v| v.is_finite()).map(|v| raise(scale, v));
        let (mut low, mut high) =
            raised.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        match scale {
            Scale::Linear => (low, high) = (0.0, if high > 0.0 { high * 1.05 } else { 1.0 }),
            Scale::Logarithmic => (low, high) = (low.floor(), high.ceil().max(low.floor() + 1.0)),
            Scale::Nines => (low, high) = (0.0, high.ceil().max(1.0)),
        }
        Self { scale, low, high, from, to }
    }

    fn at(&self, value: f64) -> f64 {
        let share = (raise(self.scale, value) - self.low) / (self.high - self.low);
        self.from + (self.to - self.from) * share.clamp(0.0, 1.0)
    }

    /// Places with their labels.
    fn marks(&self) -> Vec<(f64, String)> {
        match self.scale {
            Scale::Linear => {
                let rough = self.high / 5.0;
                let decade = 10f64.powf(rough.log10().floor());
                let step = [1.0, 2.0, 5.0, 10.0].map(|n| n * decade).into_iter().find(|s| *s >= rough).unwrap_or(rough);
                let count = (self.high / step).floor() as u32;
                (0..=count).map(|n| f64::from(n) * step).map(|v| (self.at(v), short(v))).collect()
            }
            Scale::Logarithmic => {
                let decades = (self.low as i32)..=(self.high as i32);
                let steps: &[f64] = if self.high - self.low > 3.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
                let values = decades.flat_map(|d| steps.iter().map(move |s| s * 10f64.powi(d)));
                values.filter(|v| v.log10() <= self.high + 1e-9).map(|v| (self.at(v), short(v))).collect()
            }
            Scale::Nines => {
                let shares = [
                    (0.5, "50 %"),
                    (0.1, "90 %"),
                    (0.01, "99 %"),
                    (0.001, "99.9 %"),
                    (0.0001, "99.99 %"),
                    (0.00001, "99.999 %"),
                ];
                let inside = shares.into_iter().filter(|(above, _)| -f64::log10(*above) <= self.high + 1e-9);
                inside.map(|(above, label)| (self.at(above), label.to_owned())).collect()
            }
        }
    }
}

fn raise(scale: Scale, value: f64) -> f64 {
    match scale {
        Scale::Linear => value,
        Scale::Logarithmic => value.max(1e-3).log10(),
        Scale::Nines => -value.max(1e-9).log10(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_follow_values() {
        let log = Axis::over([3.0, 800.0].into_iter(), Scale::Logarithmic, 0.0, 300.0);
        assert_eq!((log.at(1.0), log.at(10.0), log.at(1000.0)), (0.0, 100.0, 300.0));
        let nines = Axis::over([1.0, 0.001].into_iter(), Scale::Nines, 0.0, 300.0);
        assert!((nines.at(0.1) - 100.0).abs() < 1e-9);
        let linear = Axis::over([2.0, 10.0].into_iter(), Scale::Linear, 0.0, 105.0);
        assert!((linear.at(10.0) - 100.0).abs() < 1e-9);
        assert_eq!(linear.marks().len(), 3, "0, 5, 10 and no more: {:?}", linear.marks());
    }

    #[test]
    fn nothing_to_show_is_shown() {
        for scale in [Scale::Linear, Scale::Logarithmic, Scale::Nines] {
            let picture = lines(&[], (scale, "x"), (scale, "y"));
            assert!(picture.ends_with("</svg>\n") && !picture.contains("NaN") && !picture.contains("inf"));
        }
        assert!(!bars(&["a"], &[("x".into(), vec![0.0])], "%").contains("NaN"));
    }

    #[test]
    fn names_can_not_break_out() {
        let series = Series { name: "<script>".into(), points: vec![(1.0, 1.0)], dots: true, colour: 0, dashed: false };
        assert!(!lines(&[series], (Scale::Linear, ""), (Scale::Linear, "")).contains("<script>"));
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            [0.0, 1.5, 12.34, 123.4, 9999.0, 123_456.0, 2e6].map(short),
            ["0", "1.5", "12.3", "123", "9999", "123 k", "2 M"]
        );
    }
}
