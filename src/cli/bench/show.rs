//! Tables and progress on a terminal.

use std::io::{IsTerminal, Write};

use sidestep::bench::load::Progress;
use sidestep::bench::measure::Measurement;

use crate::cli::table;

/// A line on stderr while a test runs: rewritten on a terminal, one a round elsewhere.
pub struct ProgressLine {
    on: bool,
    terminal: bool,
    name: String,
    rounds: u32,
    last_round: u32,
    dirty: bool,
}

impl ProgressLine {
    pub fn new(on: bool, test: &str, stack: &str, rounds: u32) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { on, terminal, name: format!("{test} on {stack}"), rounds, last_round: 0, dirty: false }
    }

    pub fn show(&mut self, p: &Progress) {
        if !self.on || (!self.terminal && p.round == self.last_round) {
            return;
        }
        self.last_round = p.round;
        let mut text = format!("{}: round {} of {}, {:.0} s", self.name, p.round, self.rounds, p.seconds);
        if p.p50_us.is_some() {
            text += &format!(", {:.0}/s", p.rate_per_s);
        }
        if let (Some(p50), Some(p99)) = (p.p50_us, p.p99_us) {
            text += &format!(", p50 {p50:.1} us, p99 {p99:.1} us");
        } else {
            text += &format!(", {:.2} Gbit/s", p.gbit_per_s);
        }
        if self.terminal {
            eprint!("\r\x1b[K{text}");
            let _ = std::io::stderr().flush();
            self.dirty = true;
        } else {
            eprintln!("{text}");
        }
    }

    pub fn end(&mut self) {
        if std::mem::take(&mut self.dirty) {
            eprint!("\r\x1b[K");
        }
    }
}

/// One line a measurement.
pub fn table(all: &[Measurement]) -> String {
    let ratios = all.iter().any(|m| m.ratio_to_kernel.is_some() || m.ratio_to_raw.is_some());
    let mut heading: Vec<String> = [
        "test", "stack", "conns", "size", "rate/s", "range", "p50 us", "p99 us", "p99.9 us", "Gbit/s", "user", "sys",
        "softirq", "cores",
    ]
    .map(str::to_owned)
    .to_vec();
    if ratios {
        heading.extend(["x kernel", "x raw"].map(str::to_owned));
    }
    heading.push("note".into());
    let mut lines = vec![heading];
    for m in all {
        let some = |value: Option<f64>, digits: usize| value.map_or_else(|| "-".into(), |v| format!("{v:.digits$}"));
        let cpu =
            |part: fn(&sidestep::bench::cpu::CpuShare) -> f64| format!("{:.0}%", m.cpu.iter().map(part).sum::<f64>());
        let mut line = vec![
            m.test.clone(),
            m.stack.clone(),
            m.connections.to_string(),
            m.size.to_string(),
            format!("{:.0}", m.rate_per_s),
            format!("{:.0}-{:.0}", m.rate_range[0], m.rate_range[1]),
            some(m.p50_us, 1),
            some(m.p99_us, 1),
            some(m.p999_us, 1),
            if m.gbit_per_s > 0.0 { format!("{:.2}", m.gbit_per_s) } else { "-".into() },
            cpu(|c| c.user),
            cpu(|c| c.system),
            cpu(|c| c.softirq),
            format!("{:.2}", m.cores_busy()),
        ];
        if ratios {
            line.extend([some(m.ratio_to_kernel, 2), some(m.ratio_to_raw, 2)]);
        }
        line.push(notes(m));
        lines.push(line);
    }
    let right: Vec<usize> = (2..lines[0].len() - 1).collect();
    table::render(&lines, &right)
}

fn notes(m: &Measurement) -> String {
    let mut notes = Vec::new();
    if let Some(rate) = m.intended_rate {
        notes.push(format!("open loop {rate:.0}/s"));
    }
    if m.depth > 1 {
        notes.push(format!("depth {}", m.depth));
    }
    if m.errors > 0 {
        notes.push(format!("{} errors", m.errors));
    }
    if m.lost > 0 {
        notes.push(format!("{} lost", m.lost));
    }
    if !m.note.is_empty() {
        notes.push(m.note.clone());
    }
    notes.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_is_a_line() {
        let m = Measurement {
            test: "rr".into(),
            stack: "kernel".into(),
            connections: 32,
            size: 64,
            rate_per_s: 1234.4,
            rate_range: [1000.0, 2000.0],
            p50_us: Some(8.04),
            depth: 2,
            ratio_to_kernel: Some(1.0),
            ..Measurement::default()
        };
        let shown = table(&[m]);
        let words: Vec<_> = shown.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(words[..8], ["rr", "kernel", "32", "64", "1234", "1000-2000", "8.0", "-"]);
        assert!(shown.ends_with("1.00      -  depth 2\n"), "{shown}");
    }
}
