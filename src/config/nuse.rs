//! An old `nuse.conf` of LibOS/NUSE, translated.
//!
//! ```text
//! interface eth0            route
//!     address 10.0.0.2          network 0.0.0.0
//!     netmask 255.255.255.0     netmask 0.0.0.0
//!     macaddr 02:00:00:00:00:02 gateway 10.0.0.1
//!     viftype RAW
//! ```
//!
//! The translation goes through TOML, so that defaults and checks are those of every configuration.

use std::fmt::Write;
use std::net::Ipv4Addr;

use super::values::{mac, nearest};
use super::{Config, ConfigError, file};

const INTERFACE_KEYS: [&str; 4] = ["address", "netmask", "macaddr", "viftype"];
const ROUTE_KEYS: [&str; 3] = ["network", "netmask", "gateway"];

/// Whether the first word of the text opens a block of `nuse.conf`. In TOML that word would be followed by `=`.
pub fn looks_like(text: &str) -> bool {
    let first = text.lines().map(words).find(|w| !w.is_empty()).unwrap_or_default();
    match first[..] {
        ["interface", second, ..] => !second.starts_with('='),
        ["route"] => true,
        _ => false,
    }
}

/// A value and where it stands.
#[derive(Clone)]
struct At<'a> {
    line: usize,
    column: usize,
    text: &'a str,
}

struct Block<'a> {
    head: At<'a>,
    /// Of an interface.
    name: Option<&'a str>,
    entries: Vec<(&'a str, At<'a>)>,
}

/// Position and what is wrong.
type Problem = ((usize, usize), String);

/// Reads and translates.
///
/// # Errors
/// What is wrong and where, and what to write in TOML for what has no counterpart.
pub fn parse(text: &str, file: &str) -> Result<Config, ConfigError> {
    let wrong = |position, what| ConfigError { file: file.into(), position, what };
    let toml = translate(text).map_err(|(position, what)| wrong(Some(position), what))?;
    // What is still wrong concerns the translation as a whole: its lines are not the file's.
    file::parse(&toml, file).map_err(|e| wrong(None, e.what))
}

fn translate(text: &str) -> Result<String, Problem> {
    let blocks = blocks(text)?;
    let mut interfaces = blocks.iter().filter(|b| b.name.is_some());
    let Some(first) = interfaces.next() else {
        return Err(((1, 1), "there is no `interface NAME` block; it says where frames come from".into()));
    };
    if let Some(second) = interfaces.next() {
        let what = "interface: an engine has one interface as yet; start a second engine for the other";
        return Err((place(&second.head), what.into()));
    }
    let mut out = interface(first)?;
    let routes = blocks.iter().filter(|b| b.name.is_none()).map(route).collect::<Result<Vec<_>, _>>()?;
    let _ = writeln!(out, "routes = [{}]", routes.join(", "));
    Ok(out)
}

fn interface(block: &Block<'_>) -> Result<String, Problem> {
    let need = |key: &str, example: &str| {
        let problem = || (place(&block.head), format!("interface.{key}: is missing; write `{key} {example}`"));
        block.value(key).ok_or_else(problem)
    };
    let address = ipv4("interface.address", &need("address", "10.0.0.2")?)?;
    let bits = netmask("interface.netmask", &need("netmask", "255.255.255.0")?)?;
    let mut out = String::from("[[interface]]\n");
    let _ = writeln!(out, "name = {:?}", block.name.unwrap_or_default());
    let _ = writeln!(out, "addresses = [\"{address}/{bits}\"]");
    if let Some(value) = block.value("macaddr") {
        mac(value.text).map_err(|e| (place(&value), format!("interface.macaddr: {e}")))?;
        let _ = writeln!(out, "mac = {:?}", value.text);
    }
    let backend = match block.value("viftype") {
        None => "af_packet",
        Some(value) => match value.text.to_ascii_uppercase().as_str() {
            "RAW" => "af_packet",
            "TAP" => "tap",
            "PIPE" => "pipe",
            "DPDK" | "NETMAP" => {
                let what = format!(
                    "interface.viftype: {} has no meaning here: AF_XDP takes its place and needs no driver of its own; write \
                     RAW, or a TOML file with backend = \"af_xdp\" (config/nic-own-address.toml)",
                    value.text
                );
                return Err((place(&value), what));
            }
            _ => {
                let what = format!("interface.viftype: {:?} is none of RAW, TAP, PIPE", value.text);
                return Err((place(&value), what));
            }
        },
    };
    let _ = writeln!(out, "backend = \"{backend}\"");
    Ok(out)
}

/// A route as an inline table.
fn route(block: &Block<'_>) -> Result<String, Problem> {
    let need = |key: &str| {
        let problem =
            || (place(&block.head), format!("route.{key}: is missing; a route has network, netmask and gateway"));
        block.value(key).ok_or_else(problem)
    };
    let network_at = need("network")?;
    let network = ipv4("route.network", &network_at)?;
    let bits = netmask("route.netmask", &need("netmask")?)?;
    let gateway = ipv4("route.gateway", &need("gateway")?)?;
    Ok(format!("{{ to = \"{network}/{bits}\", via = \"{gateway}\" }}"))
}

fn ipv4(key: &str, value: &At<'_>) -> Result<Ipv4Addr, Problem> {
    let wrong = |_| (place(value), format!("{key}: {:?} is no IPv4 address; write one as in 10.0.0.2", value.text));
    value.text.parse().map_err(wrong)
}

/// Prefix length of a mask.
fn netmask(key: &str, value: &At<'_>) -> Result<u32, Problem> {
    let mask = ipv4(key, value)?.to_bits();
    if mask.leading_ones() + mask.trailing_zeros() < 32 {
        let what = format!("{key}: {} has ones after zeroes; write one as in 255.255.255.0", value.text);
        return Err((place(value), what));
    }
    Ok(mask.leading_ones())
}

fn blocks(text: &str) -> Result<Vec<Block<'_>>, Problem> {
    let mut blocks: Vec<Block<'_>> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let words = words(line);
        let here = |word| At { line: index + 1, column: column(line, word), text: word };
        match (&words[..], blocks.last_mut()) {
            ([], _) => {}
            (["interface", name], _) => {
                blocks.push(Block { head: here(words[0]), name: Some(name), entries: Vec::new() });
            }
            (["interface", ..], _) => {
                return Err((place(&here(words[0])), "interface: write `interface NAME`".into()));
            }
            (["route"], _) => blocks.push(Block { head: here(words[0]), name: None, entries: Vec::new() }),
            ([key, value], Some(block)) => block.add(here(key), here(value))?,
            ([key, ..], Some(_)) => return Err((place(&here(key)), format!("{key}: write one word and its value"))),
            ([key, ..], None) => {
                let what = format!("{key}: stands in no block; begin with `interface NAME` or `route`");
                return Err((place(&here(key)), what));
            }
        }
    }
    Ok(blocks)
}

impl<'a> Block<'a> {
    fn add(&mut self, key: At<'a>, value: At<'a>) -> Result<(), Problem> {
        let (kind, known) =
            if self.name.is_some() { ("interface", &INTERFACE_KEYS[..]) } else { ("route", &ROUTE_KEYS[..]) };
        if !known.contains(&key.text) {
            let hint = match nearest(key.text, known) {
                Some(k) => format!("did you mean `{k}`?"),
                None => format!("known here: {}; the rest can be said in TOML (config/)", known.join(", ")),
            };
            return Err((place(&key), format!("{kind}.{}: no such key; {hint}", key.text)));
        }
        if self.value(key.text).is_some() {
            return Err((place(&key), format!("{kind}.{}: stands twice in one block", key.text)));
        }
        self.entries.push((key.text, value));
        Ok(())
    }

    fn value(&self, key: &str) -> Option<At<'a>> {
        self.entries.iter().find(|(k, _)| *k == key).map(|(_, value)| value.clone())
    }
}

fn place(at: &At<'_>) -> (usize, usize) {
    (at.line, at.column)
}

/// Words of a line, without its comment.
fn words(line: &str) -> Vec<&str> {
    line.split('#').next().unwrap_or_default().split_whitespace().collect()
}

/// Column of a word that is a part of `line`, from 1.
fn column(line: &str, word: &str) -> usize {
    word.as_ptr().addr() - line.as_ptr().addr() + 1
}
