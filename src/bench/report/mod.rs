//! Measurements as one HTML file that needs nothing else.

pub mod svg;

use std::fmt::Write as _;

use super::measure::Measurement;
use svg::{Scale, Series, bars, escape, lines};

/// What everything in a report has around it.
#[must_use]
pub fn page(title: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\n<style>\n\
         body {{ font: 15px sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; color: #111; }}\n\
         table {{ border-collapse: collapse; font-size: 13px; }}\n\
         td, th {{ padding: 3px 9px; border-bottom: 1px solid #ddd; text-align: right; }}\n\
         td:first-child, th:first-child, td:nth-child(2), th:nth-child(2), td:last-child, th:last-child \
         {{ text-align: left; }}\n\
         svg {{ width: 100%; height: auto; }}\n</style></head><body>\n<h1>{title}</h1>\n{body}</body></html>\n"
    )
}

/// The report: table, percentile curves, throughput against latency, cores, CPU.
#[must_use]
pub fn render(measurements: &[Measurement], skipped: &[String]) -> String {
    let mut body = String::new();
    if let Some(machine) = machine() {
        let _ = writeln!(body, "<p>{}</p>", escape(&machine));
    }
    body += &table(measurements);
    for line in skipped {
        let _ = writeln!(body, "<p>Not run: {}</p>", escape(line));
    }
    for (name, group) in groups(measurements) {
        let curves: Vec<Series> = group
            .iter()
            .filter(|m| !m.curve.is_empty())
            .enumerate()
            .map(|(n, m)| Series { name: label(m), points: m.curve.clone(), dots: false, colour: n, dashed: false })
            .collect();
        if !curves.is_empty() {
            let _ = writeln!(body, "<h2>Latency: {}</h2>", escape(&name));
            body += &lines(&curves, (Scale::Nines, "share of requests that were faster"), (Scale::Logarithmic, "us"));
        }
    }
    body += &against(measurements);
    body += &cores(measurements);
    let rows: Vec<(String, Vec<f64>)> = measurements
        .iter()
        .filter(|m| !m.cpu.is_empty())
        .map(|m| {
            let sum = |part: fn(&super::cpu::CpuShare) -> f64| m.cpu.iter().map(part).sum::<f64>();
            (format!("{}, {}", group_name(m), m.stack), vec![sum(|c| c.user), sum(|c| c.system), sum(|c| c.softirq)])
        })
        .collect();
    if !rows.is_empty() {
        body += "<h2>CPU, both sides together (100 % is one core)</h2>\n";
        body += &bars(&["user", "system", "softirq"], &rows, "%");
    }
    page("Sidestep: measurements", &body)
}

fn table(all: &[Measurement]) -> String {
    let mut out = String::from("<table><tr>");
    for name in [
        "test", "stack", "rate/s", "range", "p50 us", "p99 us", "p99.9 us", "Gbit/s", "cores", "x kernel", "x raw",
        "note",
    ] {
        let _ = write!(out, "<th>{name}</th>");
    }
    out += "</tr>\n";
    for m in all {
        let some = |value: Option<f64>, digits: usize| value.map_or_else(String::new, |v| format!("{v:.digits$}"));
        let cells = [
            escape(&group_name(m)),
            escape(&m.stack),
            format!("{:.0}", m.rate_per_s),
            format!("{:.0} to {:.0}", m.rate_range[0], m.rate_range[1]),
            some(m.p50_us, 1),
            some(m.p99_us, 1),
            some(m.p999_us, 1),
            if m.gbit_per_s > 0.0 { format!("{:.2}", m.gbit_per_s) } else { String::new() },
            format!("{:.2}", m.cores_busy()),
            some(m.ratio_to_kernel, 2),
            some(m.ratio_to_raw, 2),
            escape(&m.note),
        ];
        let cells: String = cells.iter().map(|cell| format!("<td>{cell}</td>")).collect();
        let _ = writeln!(out, "<tr>{cells}</tr>");
    }
    out + "</table>\n<p>Medians of the rounds; ratios above 1 are in the stack's favour.</p>\n"
}

/// Throughput against latency: a line a stack through its numbers of connections.
fn against(all: &[Measurement]) -> String {
    let mut tests: Vec<&str> = Vec::new();
    for m in all.iter().filter(|m| m.p99_us.is_some()) {
        if !tests.contains(&m.test.as_str()) {
            tests.push(&m.test);
        }
    }
    let mut out = String::new();
    for test in tests {
        let of_test = || all.iter().filter(|m| m.test == test);
        let mut stacks: Vec<String> = Vec::new();
        for m in of_test() {
            if !stacks.contains(&m.stack) {
                stacks.push(m.stack.clone());
            }
        }
        let line = |colour: usize, stack: &String, name: &str, part: fn(&Measurement) -> Option<f64>| {
            let of_stack = of_test().filter(|m| m.stack == *stack);
            // In the order of connections: the line is the way that a stack takes as load grows.
            let mut points: Vec<(u32, (f64, f64))> =
                of_stack.filter_map(|m| Some((m.connections, (m.rate_per_s, part(m)?)))).collect();
            points.sort_by_key(|(connections, _)| *connections);
            let points = points.into_iter().map(|(_, point)| point).collect();
            Series { name: format!("{stack}, {name}"), points, dots: true, colour, dashed: name == "p99" }
        };
        let series: Vec<Series> = stacks
            .iter()
            .enumerate()
            .flat_map(|(n, stack)| [line(n, stack, "p50", |m| m.p50_us), line(n, stack, "p99", |m| m.p99_us)])
            .collect();
        let _ = writeln!(out, "<h2>Throughput against latency: {}</h2>", escape(test));
        out += &lines(&series, (Scale::Linear, "a second"), (Scale::Logarithmic, "us"));
    }
    out
}

/// Rates over the number of shards.
fn cores(all: &[Measurement]) -> String {
    let mut points: Vec<(f64, f64)> =
        all.iter().filter(|m| m.test == "cores").map(|m| (f64::from(m.shards), m.rate_per_s)).collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    let Some(&(shards, rate)) = points.first() else { return String::new() };
    let ideal = points.iter().map(|(n, _)| (*n, rate / shards * n)).collect();
    let series = [
        Series { name: "measured".into(), points, dots: true, colour: 0, dashed: false },
        Series { name: "as many times the first".into(), points: ideal, dots: false, colour: 7, dashed: true },
    ];
    let picture = lines(&series, (Scale::Linear, "shards"), (Scale::Linear, "requests a second"));
    format!("<h2>Cores</h2>\n{picture}")
}

/// Measurements of one test and size, in the order in which they first appear.
fn groups(all: &[Measurement]) -> Vec<(String, Vec<&Measurement>)> {
    let mut groups: Vec<(String, Vec<&Measurement>)> = Vec::new();
    for m in all {
        let name = group_name(m);
        match groups.iter_mut().find(|(known, _)| *known == name) {
            Some((_, group)) => group.push(m),
            None => groups.push((name, vec![m])),
        }
    }
    groups
}

fn group_name(m: &Measurement) -> String {
    let mut name = m.test.clone();
    if m.connections > 0 {
        let _ = write!(name, ", {} connection{}", m.connections, if m.connections == 1 { "" } else { "s" });
    }
    if m.size > 1 {
        let _ = write!(name, ", {} bytes", m.size);
    }
    name
}

fn label(m: &Measurement) -> String {
    let p99 = m.p99_us.map_or_else(String::new, |p| format!(" (p99 {p:.1} us)"));
    format!("{}{p99}", m.stack)
}

/// Kernel, processor, cores: figures mean little without them.
#[must_use]
pub fn machine() -> Option<String> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let cpu = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let model = cpu.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": ")).map_or("", |(_, name)| name);
    let cores = cpu.lines().filter(|l| l.starts_with("processor")).count();
    let version = env!("CARGO_PKG_VERSION");
    Some(format!("Sidestep {version}, Linux {}, {cores} cores, {model}", kernel.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_one_file_with_a_curve_for_each_stack() {
        let of = |stack: &str, connections, rate| Measurement {
            test: "rr".into(),
            stack: stack.into(),
            connections,
            size: 64,
            rate_per_s: rate,
            p50_us: Some(1e6 / rate),
            p99_us: Some(2e6 / rate),
            curve: vec![(1.0, 5.0), (0.1, 9.0), (0.01, 30.0)],
            cpu: vec![super::super::cpu::CpuShare { user: 50.0, ..Default::default() }],
            ..Measurement::default()
        };
        let all = [of("kernel", 1, 1e5), of("sidestep", 1, 2e5), of("kernel", 32, 2e5), of("sidestep", 32, 5e5)];
        let html = render(&all, &["nginx: not <installed>".into()]);
        assert_eq!(html.matches("<h2>Latency").count(), 2);
        assert_eq!(html.matches("<h2>Throughput").count(), 1);
        assert!(html.contains("not &lt;installed&gt;") && html.ends_with("</html>\n"));
        for word in ["NaN", "http://", "https://", "<script", "<link"] {
            assert!(!html.replace("http://www.w3.org/2000/svg", "").contains(word), "{word}");
        }
    }
}
