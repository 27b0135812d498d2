//! What is simulated: hosts, switches, links, traffic. Read from TOML ([`parse`]), valid by construction.

mod file;
mod links;
mod matrix;
mod traffic;
mod values;

use std::path::Path;
use std::time::Duration;

use sidestep_stack::Instant;

use super::link::LinkConfig;
use super::traffic::bulk::BulkPlan;
use super::traffic::connect::ConnectPlan;
use super::traffic::incast::IncastPlan;
use super::traffic::request::RequestPlan;
use crate::config::ConfigError;
use crate::local::LocalConfig;

pub use matrix::{Choice, Variant};

/// A whole scenario.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub duration: Duration,
    pub seed: u64,
    /// How often numbers are taken for plots.
    pub sample: Duration,
    /// Hosts first, then switches: their numbers are the nodes' numbers.
    pub hosts: Vec<HostSpec>,
    pub switches: Vec<String>,
    pub links: Vec<LinkSpec>,
    pub traffic: Vec<TrafficSpec>,
}

/// One host.
#[derive(Clone, Debug)]
pub struct HostSpec {
    pub name: String,
    /// All but the seed.
    pub config: LocalConfig,
}

/// One link, and what becomes of it.
#[derive(Clone, Debug)]
pub struct LinkSpec {
    /// Nodes.
    pub ends: (usize, usize),
    pub forth: LinkConfig,
    pub back: LinkConfig,
    /// From these times on it is like this.
    pub changes: Vec<(Instant, LinkConfig, LinkConfig)>,
}

/// One kind of traffic between hosts.
#[derive(Clone, Debug)]
pub struct TrafficSpec {
    pub name: String,
    pub kind: Kind,
    /// Hosts.
    pub from: Vec<usize>,
    pub to: Vec<usize>,
    pub port: u16,
    pub backlog: u32,
    /// Goodput must reach the law's ([`super::law`]); where that is more than the link carries, 95 % of that.
    pub bar: bool,
}

/// What the programs do.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// `flows` from each host.
    Bulk {
        flows: usize,
        plan: BulkPlan,
    },
    Request(RequestPlan),
    Connect(ConnectPlan),
    Incast(IncastPlan),
}

impl Kind {
    /// Its word in a file.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Bulk { plan: BulkPlan { on_off: Some(_), .. }, .. } => "on-off",
            Self::Bulk { .. } => "bulk",
            Self::Request(_) => "request",
            Self::Connect(_) => "connect",
            Self::Incast(_) => "incast",
        }
    }

    /// When it begins, and when it ends if it does before the run.
    #[must_use]
    pub const fn times(&self) -> (Duration, Option<Duration>) {
        match self {
            Self::Bulk { plan, .. } => (plan.start, plan.stop),
            Self::Request(plan) => (plan.start, plan.stop),
            Self::Connect(plan) => (plan.start, plan.stop),
            Self::Incast(plan) => (plan.start, plan.stop),
        }
    }
}

impl Scenario {
    /// Reads a file: one scenario, or one for each point of its `[matrix]`.
    ///
    /// # Errors
    /// What is wrong, in which line, and what would be right.
    pub fn from_file(path: &Path) -> Result<Vec<(Variant, Self)>, ConfigError> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|e| ConfigError {
            file: file.clone(),
            position: None,
            what: format!("can't read the scenario: {e}; see config/sim/ for examples"),
        })?;
        Self::parse(&text, &file)
    }

    /// Checks text; `file` is its name in messages.
    ///
    /// # Errors
    /// As [`Self::from_file`].
    pub fn parse(text: &str, file: &str) -> Result<Vec<(Variant, Self)>, ConfigError> {
        file::parse(text, file)
    }

    /// Name of a node.
    #[must_use]
    pub fn node_name(&self, node: usize) -> &str {
        match self.hosts.get(node) {
            Some(host) => &host.name,
            None => self.switches.get(node - self.hosts.len()).map_or("?", String::as_str),
        }
    }

    /// The links from one node to another, with the direction in which they are passed (true: forth). None: there is
    /// no way.
    #[must_use]
    pub fn path(&self, from: usize, to: usize) -> Option<Vec<(usize, bool)>> {
        let mut came: Vec<Option<(usize, usize, bool)>> = vec![None; self.hosts.len() + self.switches.len()];
        let mut look = std::collections::VecDeque::from([from]);
        while let Some(node) = look.pop_front() {
            for (i, link) in self.links.iter().enumerate() {
                let (next, forth) = match link.ends {
                    (a, b) if a == node => (b, true),
                    (a, b) if b == node => (a, false),
                    _ => continue,
                };
                if next != from && came[next].is_none() {
                    came[next] = Some((node, i, forth));
                    look.push_back(next);
                }
            }
        }
        let (mut at, mut path) = (to, Vec::new());
        while at != from {
            let (before, link, forth) = came[at]?;
            path.push((link, forth));
            at = before;
        }
        path.reverse();
        Some(path)
    }
}

#[cfg(test)]
mod tests;
