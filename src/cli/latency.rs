//! `sidestep latency`: where the time of requests goes, live from an engine.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sidestep::bench::hist;
use sidestep::bench::report::svg::{Scale, Series, bars, escape, lines};
use sidestep::bench::report::{machine, page};
use sidestep::control::inspect;
use sidestep::latency::{LatencyReport, SINGLE_STAGES, STAGES, STAMPS, StageReport, Timeline, summarize};
use sidestep_shm::wire::inspect::{LATENCY, LATENCY_RECENT};

use super::{Failure, control_or_default, print, table};

#[derive(Debug, Args)]
pub struct LatencyArgs {
    /// Control socket of the engine [default: $SIDESTEP_SOCKET, else /run/sidestep/engine.sock]
    #[arg(long, value_name = "SOCKET")]
    control: Option<String>,
    /// Only requests of this process (of those that were followed last); of the engine in it, if it has one
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// Only requests of sockets with this local or remote address, port, or both: 10.0.0.2, :80, 10.0.0.2:80
    #[arg(long, value_name = "ADDRESS", value_parser = endpoint)]
    socket: Option<Endpoint>,
    /// Only this shard
    #[arg(long, value_name = "N")]
    shard: Option<u32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Write a report that a browser shows
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write a percentile distribution for each stage into this folder (HdrHistogram's text form, microseconds)
    #[arg(long, value_name = "FOLDER")]
    hgrm: Option<PathBuf>,
}

/// An end of a connection, or a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Endpoint {
    address: Option<IpAddr>,
    port: Option<u16>,
}

/// The engine's answer.
#[derive(Debug, Deserialize)]
struct Answer {
    stamps: Vec<String>,
    shards: Vec<Shard>,
}

#[derive(Debug, Deserialize)]
struct Shard {
    shard: u32,
    every: u32,
    followed: u64,
    abandoned: u64,
    garbled: u64,
    stages: Vec<StageReport>,
    slowest: Vec<Request>,
    recent: Vec<Request>,
}

/// A request with whose it was.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Request {
    #[serde(flatten)]
    line: Timeline,
    pid: Option<u32>,
}

/// What is shown.
struct Shown {
    stages: Vec<StageReport>,
    slowest: Vec<Request>,
    followed: u64,
    abandoned: u64,
    garbled: u64,
    every: u32,
    shards: Vec<(u32, Vec<StageReport>)>,
}

/// Slowest requests shown.
const SLOWEST: usize = 16;

pub fn main(args: &LatencyArgs) -> Result<ExitCode, Failure> {
    let in_program = args.pid.filter(|_| args.control.is_none()).and_then(super::library_of);
    let control = in_program.unwrap_or_else(|| control_or_default(args.control.clone()));
    let one_by_one = args.pid.is_some() || args.socket.is_some();
    let text = inspect(&control, if one_by_one { LATENCY_RECENT } else { LATENCY })?;
    let answer: Answer = serde_json::from_str(&text).context("read the engine's answer (another version?)")?;
    if answer.stamps != STAMPS {
        return Err(anyhow::anyhow!("the engine at {control} has other stages (another version?)").into());
    }
    let shown = args.choose(answer.shards)?;
    if let Some(path) = &args.html {
        std::fs::write(path, shown.html()).with_context(|| format!("write {}", path.display()))?;
    }
    if let Some(folder) = &args.hgrm {
        shown.write_hgrm(folder).with_context(|| format!("write into {}", folder.display()))?;
    }
    Ok(print(&if args.json { shown.json() } else { shown.text(one_by_one) }))
}

impl LatencyArgs {
    fn choose(&self, shards: Vec<Shard>) -> Result<Shown, Failure> {
        if let Some(wanted) = self.shard
            && shards.iter().all(|s| s.shard != wanted)
        {
            return Err(Failure::usage(format!("there is no shard {wanted}; the engine has {}", shards.len())));
        }
        let shards: Vec<Shard> = shards.into_iter().filter(|s| self.shard.is_none_or(|n| n == s.shard)).collect();
        let is_it = |r: &Request| {
            self.pid.is_none_or(|pid| r.pid == Some(pid))
                && self.socket.is_none_or(|e| e.is(r.line.local) || e.is(r.line.remote))
        };
        let sum = |part: fn(&Shard) -> u64| shards.iter().map(part).sum();
        let (mut followed, every) = (sum(|s| s.followed), shards.first().map_or(0, |s| s.every));
        let (abandoned, garbled) = (sum(|s| s.abandoned), sum(|s| s.garbled));
        let of_shards;
        let (stages, mut slowest) = if self.pid.is_some() || self.socket.is_some() {
            let chosen: Vec<Request> = shards.iter().flat_map(|s| &s.recent).filter(|r| is_it(r)).cloned().collect();
            followed = chosen.len() as u64;
            of_shards = Vec::new();
            (summarize(chosen.iter().map(|r| &r.line), [].iter()), chosen)
        } else {
            let of_shard = |s: &Shard| LatencyReport { stages: s.stages.clone(), ..LatencyReport::default() };
            let reports: Vec<LatencyReport> = shards.iter().map(of_shard).collect();
            of_shards = shards.iter().map(|s| (s.shard, s.stages.clone())).collect();
            (summarize([].iter(), reports.iter()), shards.iter().flat_map(|s| s.slowest.clone()).collect())
        };
        slowest.sort_by_key(|r| std::cmp::Reverse(r.line.total()));
        slowest.truncate(SLOWEST);
        Ok(Shown { stages, slowest, followed, abandoned, garbled, every, shards: of_shards })
    }
}

impl Endpoint {
    fn is(self, at: SocketAddr) -> bool {
        self.address.is_none_or(|a| a == at.ip().to_canonical()) && self.port.is_none_or(|p| p == at.port())
    }
}

fn endpoint(text: &str) -> Result<Endpoint, String> {
    if let Some(port) = text.strip_prefix(':')
        && let Ok(port) = port.parse()
    {
        return Ok(Endpoint { address: None, port: Some(port) });
    }
    if let Ok(both) = text.parse::<SocketAddr>() {
        return Ok(Endpoint { address: Some(both.ip()), port: Some(both.port()) });
    }
    let address = text.trim_matches(['[', ']']).parse().map_err(|_| "must be an address, :PORT, or ADDRESS:PORT")?;
    Ok(Endpoint { address: Some(address), port: None })
}

impl Shown {
    fn text(&self, one_by_one: bool) -> String {
        if self.every == 0 {
            return "nothing is followed: the engine was started with latency_every = 0\n".into();
        }
        let mut out = match one_by_one {
            true => format!("{} requests, of those that were followed last\n\n", self.followed),
            false => format!("{} requests followed, one data segment in {}", self.followed, self.every),
        };
        if !one_by_one {
            if self.abandoned + self.garbled > 0 {
                out += &format!("; {} given up, {} with stamps that can't be", self.abandoned, self.garbled);
            }
            out += "\n\n";
        }
        let heading = ["stage", "from", "to", "count", "mean us", "p50", "p90", "p99", "p99.9", "max"];
        let mut rows = vec![heading.map(str::to_owned).to_vec()];
        for (n, (s, stage)) in self.stages.iter().zip(&STAGES).enumerate() {
            if n == SINGLE_STAGES {
                rows.push(Vec::new());
            }
            let us = |v: f64| if s.count == 0 { "-".into() } else { format!("{v:.1}") };
            let mut row =
                vec![s.stage.clone(), STAMPS[stage.from].into(), STAMPS[stage.to].into(), s.count.to_string()];
            row.extend([s.mean_us, s.p50_us, s.p90_us, s.p99_us, s.p999_us, s.max_us].map(us));
            rows.push(row);
        }
        out += &table::render(&rows, &[3, 4, 5, 6, 7, 8, 9]);
        if !self.slowest.is_empty() {
            out += "\nThe slowest, stage by stage in us:\n\n";
            let mut heading = vec!["total".to_owned(), "local".into(), "remote".into(), "pid".into()];
            heading.extend(STAGES[..SINGLE_STAGES].iter().map(|s| s.name.to_owned()));
            let mut rows = vec![heading];
            for r in &self.slowest {
                let pid = r.pid.map_or_else(|| "-".into(), |p| p.to_string());
                let mut row = vec![us(r.line.total()), r.line.local.to_string(), r.line.remote.to_string(), pid];
                row.extend(STAGES[..SINGLE_STAGES].iter().map(|s| r.line.stage(s).map_or_else(|| "-".into(), us)));
                rows.push(row);
            }
            let right: Vec<usize> = std::iter::once(0).chain(3..rows[0].len()).collect();
            out += &table::render(&rows, &right);
        }
        out
    }

    fn json(&self) -> String {
        let slowest: Vec<_> =
            self.slowest.iter().map(|r| json!({ "total_us": r.line.total() as f64 / 1e3, "request": r })).collect();
        let value = json!({
            "every": self.every,
            "followed": self.followed,
            "abandoned": self.abandoned,
            "garbled": self.garbled,
            "stages": self.stages,
            "stamps": STAMPS,
            "slowest": slowest,
            "shards": self.shards.iter().map(|(n, stages)| json!({ "shard": n, "stages": stages })).collect::<Vec<_>>(),
        });
        format!("{value}\n")
    }

    fn write_hgrm(&self, folder: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        for stage in self.stages.iter().filter(|s| s.count > 0) {
            let name = format!("{}.hgrm", stage.stage.replace(' ', "-"));
            std::fs::write(folder.join(name), hist::hgrm(&stage.histogram()))?;
        }
        Ok(())
    }

    fn html(&self) -> String {
        let mut body = machine().map_or_else(String::new, |m| format!("<p>{}</p>\n", escape(&m)));
        body += &format!("<p>{} requests followed, one data segment in {}.</p>\n", self.followed, self.every);
        let parts: Vec<&str> = STAGES[..SINGLE_STAGES - 1].iter().map(|s| s.name).collect();
        let row = |name: &str, part: fn(&StageReport) -> f64| {
            (name.to_owned(), self.stages[..SINGLE_STAGES - 1].iter().map(part).collect())
        };
        body += "<h2>Where the time goes, us (medians and 99th percentiles of each stage do not add up to those of the \
                 whole)</h2>\n";
        body += &bars(&parts, &[row("mean", |s| s.mean_us), row("p50", |s| s.p50_us), row("p99", |s| s.p99_us)], "us");
        let curve = |(colour, s): (usize, &StageReport)| Series {
            name: format!("{} (p50 {:.1} us)", s.stage, s.p50_us),
            points: hist::curve(&s.histogram()),
            dots: false,
            colour,
            dashed: false,
        };
        for (title, range) in [("Each stage", 0..SINGLE_STAGES), ("Together", SINGLE_STAGES..STAGES.len())] {
            let series: Vec<Series> =
                self.stages[range].iter().filter(|s| s.count > 0).enumerate().map(curve).collect();
            body += &format!("<h2>{title}</h2>\n");
            body += &lines(&series, (Scale::Nines, "share of requests that were faster"), (Scale::Logarithmic, "us"));
        }
        if !self.slowest.is_empty() {
            let rows: Vec<(String, Vec<f64>)> = self
                .slowest
                .iter()
                .map(|r| {
                    let of = |s| r.line.stage(s).map_or(0.0, |ns| ns as f64 / 1e3);
                    (
                        format!("{} from {}", r.line.local, r.line.remote),
                        STAGES[..SINGLE_STAGES - 1].iter().map(of).collect(),
                    )
                })
                .collect();
            body += "<h2>The slowest requests</h2>\n";
            body += &bars(&parts, &rows, "us");
        }
        page("Sidestep: where the time goes", &body)
    }
}

fn us(ns: u64) -> String {
    format!("{:.1}", ns as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(number: u32, remote: &str, pid: u32) -> Shard {
        let line = Timeline {
            group: 0,
            slot: 1,
            process: 0,
            local: "10.0.0.1:80".parse().unwrap(),
            remote: remote.parse().unwrap(),
            stamps: [1, 2, 4, 8, 9, 12, 20, 21, 22, 30, 60].map(|us| us * 1000),
        };
        let stages = summarize([line.clone()].iter(), [].iter());
        let request = Request { line, pid: Some(pid) };
        Shard {
            shard: number,
            every: 64,
            followed: 1,
            abandoned: 0,
            garbled: 0,
            stages,
            slowest: vec![request.clone()],
            recent: vec![request],
        }
    }

    fn args(words: &[&str]) -> LatencyArgs {
        use clap::Parser;
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            args: LatencyArgs,
        }
        Line::try_parse_from(std::iter::once(&"latency").chain(words)).unwrap_or_else(|e| panic!("{e}")).args
    }

    #[test]
    fn requests_are_chosen_by_process_socket_and_shard() {
        let both = || vec![shard(0, "10.0.0.2:5000", 11), shard(1, "10.0.0.3:6000", 12)];
        let followed = |words: &[&str]| args(words).choose(both()).unwrap_or_else(|e| panic!("{e:?}")).followed;
        assert_eq!(followed(&[]), 2);
        assert_eq!(followed(&["--shard", "1"]), 1);
        assert_eq!((followed(&["--pid", "12"]), followed(&["--pid", "13"])), (1, 0));
        assert_eq!((followed(&["--socket", ":80"]), followed(&["--socket", "10.0.0.3:6000"])), (2, 1));
        assert_eq!(followed(&["--socket", "10.0.0.2", "--shard", "1"]), 0);
        assert!(args(&["--shard", "7"]).choose(both()).is_err());
    }

    #[test]
    fn all_forms_show_the_stages() {
        let shown = args(&[]).choose(vec![shard(0, "10.0.0.2:5000", 11)]).unwrap_or_else(|e| panic!("{e:?}"));
        let text = shown.text(false);
        let wake = text.lines().find(|l| l.starts_with("wake")).unwrap();
        assert_eq!(wake.split_whitespace().collect::<Vec<_>>()[1..5], ["published", "woke", "1", "4.0"], "{text}");
        assert!(text.contains("10.0.0.2:5000") && text.contains("29.0"), "{text}");
        let value: serde_json::Value = serde_json::from_str(&shown.json()).unwrap();
        assert_eq!(value["stages"][12]["stage"], "request");
        assert_eq!(value["slowest"][0]["request"]["pid"], 11);
        let html = shown.html();
        assert!(html.contains("<svg") && !html.contains("NaN"), "{html}");
    }

    #[test]
    fn ends_of_connections_are_read() {
        assert_eq!(endpoint(":80"), Ok(Endpoint { address: None, port: Some(80) }));
        assert_eq!(endpoint("fd00::1").map(|e| e.port), Ok(None));
        assert_eq!(endpoint("[fd00::1]:80").map(|e| e.port), Ok(Some(80)));
        assert!(endpoint("nginx").is_err());
    }
}
