//! What a run found out.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::network::DirectionReport;

/// Everything. Two runs of one scenario and seed give the same, byte for byte.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub seed: u64,
    /// What is simulated, in seconds.
    pub seconds: f64,
    pub events: u64,
    /// Over every frame with its time.
    pub trace_hash: String,
    pub traffic: Vec<TrafficReport>,
    pub hosts: Vec<HostReport>,
    pub links: Vec<LinkReport>,
    #[serde(skip)]
    pub series: Vec<Series>,
}

#[derive(Clone, Debug, Serialize)]
pub struct TrafficReport {
    pub name: String,
    pub kind: &'static str,
    pub flows: Vec<FlowReport>,
    /// Sum over the flows, Mbit/s of payload.
    pub goodput_mbit: f64,
    /// Of the flows' goodputs (Jain, Chiu and Hawe 1984): 1 is even, 1/n is one against all.
    pub fairness: Option<f64>,
    /// What Reno's or CUBIC's law gives one flow alone on this path, Mbit/s.
    pub law_mbit: Option<f64>,
    /// The most payload that the path carries, Mbit/s.
    pub path_mbit: Option<f64>,
    /// Whether the goodput reaches the bar; None where the scenario sets none.
    pub reaches_bar: Option<bool>,
    /// Sum over the hosts that the traffic comes from and goes to.
    pub retransmitted_segments: u64,
    pub connected: u64,
    pub closed: u64,
    pub most_open: u64,
    pub connecting: Option<Percentiles>,
    pub requests: u64,
    pub answering: Option<Percentiles>,
    pub failures: BTreeMap<String, u64>,
    /// Places at which a stream was not what had been sent. Must be 0.
    pub damaged: u64,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct FlowReport {
    pub goodput_mbit: f64,
    pub bytes: u64,
    pub ended: bool,
}

/// Microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Percentiles {
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct HostReport {
    pub name: String,
    pub tcp_in: u64,
    pub tcp_out: u64,
    pub retransmitted: u64,
    pub resets_in: u64,
    pub resets_out: u64,
    pub checksum_errors: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct LinkReport {
    pub from: String,
    pub to: String,
    /// Share of the time in which the transmitter was busy; None without a rate.
    pub busy: Option<f64>,
    #[serde(flatten)]
    pub counters: DirectionReport,
}

/// One flow over time.
#[derive(Clone, Debug)]
pub struct Series {
    pub name: String,
    pub points: Vec<Point>,
}

/// Numbers at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    pub seconds: f64,
    /// Bytes.
    pub cwnd: Option<f64>,
    /// Milliseconds.
    pub rtt: Option<f64>,
    /// Mbit/s since the point before. None: not begun yet, or over.
    pub goodput: Option<f64>,
}

impl Percentiles {
    /// None: nothing was recorded.
    #[must_use]
    pub fn of(h: &Histogram<u64>) -> Option<Self> {
        let us = |ns: u64| ns as f64 / 1000.0;
        let at = |q| us(h.value_at_quantile(q));
        (!h.is_empty()).then(|| Self {
            mean: h.mean() / 1000.0,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: us(h.max()),
        })
    }
}

/// Jain's index. None for less than two.
#[must_use]
pub fn fairness(shares: &[f64]) -> Option<f64> {
    let sum: f64 = shares.iter().sum();
    let squares: f64 = shares.iter().map(|s| s * s).sum();
    (shares.len() > 1 && squares > 0.0).then(|| sum * sum / (shares.len() as f64 * squares))
}

impl Report {
    /// Anything that must not be: bytes that were not those sent.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.traffic.iter().any(|t| t.damaged > 0)
    }

    /// Whether every traffic reaches the bar that its scenario sets.
    #[must_use]
    pub fn reaches_bars(&self) -> bool {
        self.traffic.iter().all(|t| t.reaches_bar != Some(false))
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        for t in &self.traffic {
            t.text(&mut out, self.seconds);
        }
        let _ = writeln!(
            out,
            "\n{:<28} {:>12} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "link", "frames", "busy", "lost", "dropped", "marked", "longest"
        );
        for l in self.links.iter().take(LINKS_SHOWN) {
            let name = format!("{} > {}", l.from, l.to);
            let busy = l.busy.map_or_else(|| "-".into(), |b| format!("{:.1} %", b * 100.0));
            let (c, q) = (&l.counters.link, &l.counters.queue);
            let lost = c.lost + c.refused;
            let dropped = q.full + q.codel;
            let _ = writeln!(
                out,
                "{name:<28} {:>12} {busy:>9} {lost:>9} {dropped:>9} {:>9} {:>9}",
                c.frames, q.marked, q.longest
            );
        }
        if self.links.len() > LINKS_SHOWN {
            let _ = writeln!(out, "… and {} more (--json shows all)", self.links.len() - LINKS_SHOWN);
        }
        let _ = writeln!(
            out,
            "\n{} s simulated, {} events, seed {}, trace hash {}",
            self.seconds, self.events, self.seed, self.trace_hash
        );
        out
    }
}

/// Lines of the table of links; more are in the JSON.
const LINKS_SHOWN: usize = 24;
/// Lines of flows of one traffic.
const FLOWS_SHOWN: usize = 16;

impl TrafficReport {
    fn text(&self, out: &mut String, seconds: f64) {
        let _ = writeln!(out, "{} ({})", self.name, self.kind);
        if !self.flows.is_empty() {
            let mut line = format!("  goodput {:.2} Mbit/s", self.goodput_mbit);
            if let Some(path) = self.path_mbit.filter(|p| p.is_finite()) {
                let _ = write!(line, ", {:.1} % of what the path carries", self.goodput_mbit / path * 100.0);
            }
            if let Some(law) = self.law_mbit.filter(|l| l.is_finite() && self.flows.len() == 1) {
                let _ = write!(line, ", {:.2} times the CUBIC/Reno law", self.goodput_mbit / law);
            }
            if let Some(f) = self.fairness {
                let _ = write!(line, ", fairness {f:.4}");
            }
            let _ = writeln!(out, "{line}");
            if self.flows.len() > 1 {
                for (i, f) in self.flows.iter().take(FLOWS_SHOWN).enumerate() {
                    let end = if f.ended { ", ended" } else { "" };
                    let _ = writeln!(out, "    flow {}: {:.2} Mbit/s, {} bytes{end}", i + 1, f.goodput_mbit, f.bytes);
                }
                if self.flows.len() > FLOWS_SHOWN {
                    let _ = writeln!(out, "    … and {} more (--json shows all)", self.flows.len() - FLOWS_SHOWN);
                }
            }
        }
        let _ = writeln!(
            out,
            "  connections: {} opened, {} closed, {} at most at once; {} segments retransmitted",
            self.connected, self.closed, self.most_open, self.retransmitted_segments
        );
        if let Some(p) = &self.connecting {
            let _ = writeln!(out, "  connect  {}", p.text());
        }
        if let Some(p) = &self.answering {
            let rate = self.requests as f64 / seconds;
            let _ = writeln!(out, "  answer   {}; {} requests, {rate:.1} a second", p.text(), self.requests);
        }
        for (why, count) in &self.failures {
            let _ = writeln!(out, "  FAILED: {count} with {why}");
        }
        if self.reaches_bar == Some(false) {
            let _ = writeln!(out, "  BELOW THE BAR");
        }
        if self.damaged > 0 {
            let _ = writeln!(out, "  DAMAGED: in {} places a stream was not what had been sent", self.damaged);
        }
    }
}

impl Percentiles {
    fn text(&self) -> String {
        format!(
            "mean {} p50 {} p90 {} p99 {} p99.9 {} max {}",
            us(self.mean),
            us(self.p50),
            us(self.p90),
            us(self.p99),
            us(self.p999),
            us(self.max)
        )
    }
}

/// Microseconds in a unit that reads well.
fn us(us: f64) -> String {
    match us {
        ..1000.0 => format!("{us:.1} us"),
        ..1e6 => format!("{:.2} ms", us / 1e3),
        _ => format!("{:.2} s", us / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jain() {
        assert_eq!(fairness(&[5.0]), None);
        assert_eq!(fairness(&[5.0, 5.0, 5.0]), Some(1.0));
        assert_eq!(fairness(&[1.0, 0.0]), Some(0.5));
    }
}
