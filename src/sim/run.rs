//! From a scenario to a report.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use sidestep_stack::Instant;

use super::host::Host;
use super::law::Path;
use super::network::Network;
use super::pcap::Pcap;
use super::report::{FlowReport, HostReport, LinkReport, Percentiles, Point, Report, Series, TrafficReport, fairness};
use super::rng::Rng;
use super::scenario::{Kind, Scenario};
use super::switch::Switch;
use super::traffic::bulk::{BulkSender, Sink};
use super::traffic::connect::Connector;
use super::traffic::incast::Incast;
use super::traffic::request::{Requester, Responder};
use super::traffic::{Shared, Stats};
use crate::clock::VirtualClock;

/// What a run leaves beside its report.
#[derive(Default)]
pub struct RunOptions {
    /// A line for every frame.
    pub trace: Option<Box<dyn std::io::Write>>,
    /// A pcapng file of every host goes here; the folder must be there.
    pub pcap: Option<PathBuf>,
    /// Take numbers for a plot.
    pub series: bool,
}

/// Flows of which numbers are taken for plots: more lines nobody can tell apart.
const SERIES: usize = 8;
/// What a flow must get of a path that it could fill, slow start and all.
const FULL_SHARE: f64 = 0.95;
/// Events between two looks at the clock of whoever waits.
const EVENTS_A_LOOK: u64 = 50_000;

/// A scenario under way.
pub struct Run<'s> {
    scenario: &'s Scenario,
    pub network: Network,
    stats: Vec<Shared>,
    directions: Vec<(usize, usize)>,
    options: RunOptions,
    series: Vec<(Series, usize, usize, usize, u64)>,
}

impl<'s> Run<'s> {
    /// Builds hosts, links and programs.
    ///
    /// # Errors
    /// No descriptors or address space left; a file that can't be written.
    pub fn new(scenario: &'s Scenario, options: RunOptions) -> anyhow::Result<Self> {
        raise_descriptor_limit();
        let clock = VirtualClock::default();
        let mut network = Network::new(clock.clone(), scenario.seed);
        let mut hosts = Vec::new();
        for spec in &scenario.hosts {
            let mut rng = Rng::new(scenario.seed, &format!("host {}", spec.name));
            let mut config = spec.config.clone();
            config.seed = rng.seed();
            let host = Host::new(&config, clock.clone(), rng).with_context(|| {
                format!("make host {} of {} (each needs 7 descriptors)", spec.name, scenario.hosts.len())
            })?;
            hosts.push(host);
        }
        let stats: Vec<Shared> = scenario.traffic.iter().map(|t| Stats::new(flows(&t.kind) * t.from.len())).collect();
        for (t, stats) in scenario.traffic.iter().zip(&stats) {
            add_programs(scenario, t, stats, &mut hosts);
        }
        for (spec, host) in scenario.hosts.iter().zip(hosts) {
            network.add(&spec.name, Box::new(host));
        }
        for (n, name) in scenario.switches.iter().enumerate() {
            let node = scenario.hosts.len() + n;
            let ports = scenario.links.iter().filter(|l| l.ends.0 == node || l.ends.1 == node).count();
            network.add(name, Box::new(Switch::new(ports)));
        }
        let mut directions = Vec::new();
        for link in &scenario.links {
            let (forth, back) = network.connect(link.ends.0, link.ends.1, link.forth.clone(), link.back.clone());
            for (at, then_forth, then_back) in &link.changes {
                network.change(*at, forth, then_forth.clone());
                network.change(*at, back, then_back.clone());
            }
            directions.push((forth, back));
        }
        let mut run = Self { scenario, network, stats, directions, options, series: Vec::new() };
        run.watch()?;
        Ok(run)
    }

    fn watch(&mut self) -> anyhow::Result<()> {
        if let Some(out) = self.options.trace.take() {
            self.network.observers.trace_to(out);
        }
        if let Some(folder) = &self.options.pcap {
            for (node, host) in self.scenario.hosts.iter().enumerate() {
                let path = folder.join(format!("{}.pcapng", host.name));
                let file = std::fs::File::create(&path).with_context(|| format!("write {}", path.display()))?;
                let capture = Pcap::new(Box::new(std::io::BufWriter::new(file)), &host.name)?;
                self.network.observers.capture(node, capture);
            }
        }
        if self.options.series {
            for (t, spec) in self.scenario.traffic.iter().enumerate() {
                let each = flows(&spec.kind);
                for flow in 0..each * spec.from.len() {
                    let host = spec.from[flow / each];
                    let name = if each * spec.from.len() == 1 {
                        spec.name.clone()
                    } else {
                        format!("{} {}", spec.name, flow + 1)
                    };
                    self.series.push((Series { name, points: Vec::new() }, t, flow, host, 0));
                }
            }
            self.series.truncate(SERIES);
        }
        Ok(())
    }

    /// Runs to the end. `look` is called now and then with the share that is done and the events so far.
    ///
    /// # Errors
    /// A trace or capture that could not be written.
    pub fn finish(mut self, look: &mut dyn FnMut(f64, u64)) -> anyhow::Result<Report> {
        let end = Instant::ZERO + self.scenario.duration;
        let step = if self.series.is_empty() { self.scenario.duration } else { self.scenario.sample };
        let mut next = Instant::ZERO;
        while next < end {
            next = (next + step).min(end);
            while !self.network.run(next, EVENTS_A_LOOK) {
                let done = self.network.now().as_nanos() as f64 / end.as_nanos() as f64;
                look(done, self.network.happened());
            }
            self.sample(step);
        }
        let report = self.report();
        self.network.observers.finish().context("write the trace or a capture")?;
        Ok(report)
    }

    fn sample(&mut self, step: Duration) {
        let seconds = self.network.now().as_nanos() as f64 / 1e9;
        for (series, traffic, flow, host, before) in &mut self.series {
            let flow = self.stats[*traffic].borrow().flows[*flow];
            let info = flow.slot.and_then(|slot| self.network.node_as::<Host>(*host).tcp_info(slot));
            let bits = (flow.received - *before) as f64 * 8.0;
            let is_on = flow.started.is_some() && flow.ended.is_none();
            *before = flow.received;
            series.points.push(Point {
                seconds,
                cwnd: info.map(|i| f64::from(i.cwnd)),
                rtt: info.filter(|i| !i.srtt.is_zero()).map(|i| i.srtt.as_secs_f64() * 1e3),
                goodput: (bits > 0.0 || is_on).then(|| bits / step.as_secs_f64() / 1e6),
            });
        }
    }

    fn report(&mut self) -> Report {
        let scenario = self.scenario;
        let hosts: Vec<HostReport> = (0..scenario.hosts.len())
            .map(|n| {
                let c = self.network.node_as::<Host>(n).counters();
                HostReport {
                    name: scenario.hosts[n].name.clone(),
                    tcp_in: c.tcp_in,
                    tcp_out: c.tcp_out,
                    retransmitted: c.tcp_retransmits,
                    resets_in: c.tcp_resets_in,
                    resets_out: c.tcp_resets_out,
                    checksum_errors: c.drop_checksum,
                }
            })
            .collect();
        let traffic = (0..scenario.traffic.len()).map(|t| self.traffic_report(t, &hosts)).collect();
        let mut links = Vec::new();
        for (spec, (forth, back)) in scenario.links.iter().zip(&self.directions) {
            let (a, b) = spec.ends;
            for (direction, from, to) in [(*forth, a, b), (*back, b, a)] {
                let counters = self.network.report(direction);
                let config = self.network.link(direction);
                // Of the rate at the end; where it changed, that is no share of anything.
                let busy = config.rate.filter(|_| spec.changes.is_empty()).map(|rate| {
                    let bytes = counters.link.bytes + counters.link.frames * u64::from(config.overhead);
                    bytes as f64 * 8.0 / rate as f64 / scenario.duration.as_secs_f64()
                });
                let name = |n| scenario.node_name(n).to_owned();
                links.push(LinkReport { from: name(from), to: name(to), busy, counters });
            }
        }
        Report {
            seed: scenario.seed,
            seconds: scenario.duration.as_secs_f64(),
            events: self.network.happened(),
            trace_hash: format!("{:016x}", self.network.observers.hash()),
            traffic,
            hosts,
            links,
            series: self.series.drain(..).map(|s| s.0).collect(),
        }
    }

    fn traffic_report(&self, index: usize, hosts: &[HostReport]) -> TrafficReport {
        let spec = &self.scenario.traffic[index];
        let stats = self.stats[index].borrow();
        let end = Instant::ZERO + spec.kind.times().1.unwrap_or(self.scenario.duration).min(self.scenario.duration);
        let flows: Vec<FlowReport> = stats
            .flows
            .iter()
            .map(|f| {
                let until = f.ended.unwrap_or(end.max(f.started.unwrap_or(end)));
                let time = f.started.map_or(0.0, |s| until.since(s).as_secs_f64());
                let goodput_mbit = if time > 0.0 { f.received as f64 * 8.0 / time / 1e6 } else { 0.0 };
                FlowReport { goodput_mbit, bytes: f.received, ended: f.ended.is_some() }
            })
            .collect();
        let shares: Vec<f64> = flows.iter().map(|f| f.goodput_mbit).collect();
        let path =
            matches!(spec.kind, Kind::Bulk { .. }).then(|| path_of(self.scenario, spec.from[0], spec.to[0])).flatten();
        let goodput_mbit: f64 = shares.iter().sum();
        let bar = path.filter(|_| spec.bar).map(|p| p.law().min(FULL_SHARE * p.payload_rate()) / 1e6);
        TrafficReport {
            name: spec.name.clone(),
            kind: spec.kind.word(),
            goodput_mbit,
            reaches_bar: bar.map(|bar| goodput_mbit >= bar),
            fairness: fairness(&shares),
            law_mbit: path.map(|p| p.law() / 1e6),
            path_mbit: path.map(|p| p.payload_rate() / 1e6),
            retransmitted_segments: spec.from.iter().chain(&spec.to).map(|&h| hosts[h].retransmitted).sum(),
            connected: stats.connected,
            closed: stats.closed,
            most_open: stats.most_open,
            connecting: Percentiles::of(&stats.connecting),
            requests: stats.requests,
            answering: Percentiles::of(&stats.answering),
            failures: stats.failures.clone(),
            damaged: stats.damaged,
            flows,
        }
    }
}

/// Flows of each host.
const fn flows(kind: &Kind) -> usize {
    match kind {
        Kind::Bulk { flows, .. } => *flows,
        _ => 0,
    }
}

fn add_programs(scenario: &Scenario, t: &super::scenario::TrafficSpec, stats: &Shared, hosts: &mut [Host]) {
    let at = |host: usize| SocketAddr::new(scenario.hosts[host].config.stack.addresses[0].address, t.port);
    for &host in &t.to {
        hosts[host].add(match t.kind {
            Kind::Bulk { .. } | Kind::Connect(_) => Box::new(Sink::new(at(host), t.backlog, stats.clone())),
            Kind::Request(_) | Kind::Incast(_) => Box::new(Responder::new(at(host), t.backlog, stats.clone())),
        });
    }
    // Those of `to` take turns.
    let turn = |n: usize| at(t.to[n % t.to.len()]);
    for (n, &host) in t.from.iter().enumerate() {
        hosts[host].add(match t.kind {
            Kind::Bulk { flows, plan } => {
                let to = (0..flows).map(|f| turn(n * flows + f)).collect();
                Box::new(BulkSender::new(plan, to, n * flows, stats.clone()))
            }
            Kind::Request(plan) => Box::new(Requester::new(plan, turn(n), stats.clone())),
            Kind::Connect(plan) => {
                // Hosts begin at different servers.
                let to = (0..t.to.len()).map(|s| turn(n + s)).collect();
                Box::new(Connector::new(plan, to, stats.clone()))
            }
            Kind::Incast(plan) => Box::new(Incast::new(plan, t.to.iter().map(|&h| at(h)).collect(), stats.clone())),
        });
    }
}

/// What stands in the file about the way from one host to another.
fn path_of(scenario: &Scenario, from: usize, to: usize) -> Option<Path> {
    let links = scenario.path(from, to)?;
    let stack = |h: usize| &scenario.hosts[h].config.stack;
    let mtu = stack(from).mtu.min(stack(to).mtu) as u32;
    let ip = if stack(from).addresses[0].address.is_ipv4() { 20 } else { 40 };
    let timestamps = if stack(from).tcp.timestamps && stack(to).tcp.timestamps { 12 } else { 0 };
    let mut path =
        Path { rate: None, rtt: Duration::ZERO, loss: 0.0, mss: mtu - ip - 20 - timestamps, frame: mtu + 14 };
    let mut overhead = 0;
    for (link, is_forth) in links {
        let spec = &scenario.links[link];
        let (there, home) = if is_forth { (&spec.forth, &spec.back) } else { (&spec.back, &spec.forth) };
        path.rtt += there.delay + home.delay + (there.jitter + home.jitter) / 2;
        path.loss = 1.0 - (1.0 - path.loss) * (1.0 - there.loss.mean());
        if let Some(rate) = there.rate
            && path.rate.is_none_or(|slowest| rate < slowest)
        {
            (path.rate, overhead) = (Some(rate), there.overhead);
        }
    }
    path.frame += overhead;
    Some(path)
}

/// Many hosts need many descriptors; the soft limit is often 1,024.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Too few are noticed, and named, when they run out.
    let _ = setrlimit(Resource::Nofile, limit);
}
