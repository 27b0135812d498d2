//! What a traffic does, out of its table.

use std::time::Duration;

use super::Kind;
use super::values::{real, size, time};
use crate::config::section::{Problem, Section};
use crate::config::values::choice;
use crate::sim::traffic::bulk::BulkPlan;
use crate::sim::traffic::connect::ConnectPlan;
use crate::sim::traffic::incast::IncastPlan;
use crate::sim::traffic::request::{self, RequestPlan};

/// The first ones are for every kind.
pub const TRAFFIC_KEYS: &[&str] = &[
    "name",
    "kind",
    "from",
    "to",
    "port",
    "backlog",
    "start",
    "stop",
    "bar",
    "flows",
    "bytes",
    "on",
    "off",
    "connections",
    "per_connection",
    "request",
    "response",
    "think",
    "rate",
    "total",
    "hold",
    "pause",
];
/// How many of them.
const COMMON: usize = 8;

/// Kind and plan.
pub fn traffic_kind(s: &Section<'_, '_>) -> Result<Kind, Problem> {
    let words = ["bulk", "on-off", "request", "connect", "incast"].map(|w| (w, w));
    let word = s.text("kind", |t| choice(t, &words))?;
    let word = word.ok_or_else(|| s.wrong("kind", "is missing; one of bulk, on-off, request, connect, incast"))?;
    let only: &[&str] = match word {
        "bulk" => &["flows", "bytes", "bar"],
        "on-off" => &["flows", "bytes", "on", "off"],
        "request" => &["connections", "per_connection", "request", "response", "think"],
        "connect" => &["rate", "total", "hold"],
        _ => &["response", "pause"],
    };
    let common = &TRAFFIC_KEYS[..COMMON];
    for &key in TRAFFIC_KEYS {
        if s.value(key).is_some() && !common.contains(&key) && !only.contains(&key) {
            let what = format!("is no key of kind = \"{word}\"; those are: {}", only.join(", "));
            return Err(s.wrong(key, what));
        }
    }
    let start = s.text("start", time)?.unwrap_or_default();
    let stop = s.text("stop", time)?;
    if stop.is_some_and(|stop| stop <= start) {
        return Err(s.wrong("stop", "must be later than start"));
    }
    let bytes = |key, least: u64, default| -> Result<u32, Problem> {
        let n = s.any(key, size)?.unwrap_or(default);
        let fits = (least..=u64::from(u32::MAX)).contains(&n);
        if fits {
            Ok(n as u32)
        } else {
            Err(s.wrong(key, format!("must be {least} bytes or more, and less than 4 GiB")))
        }
    };
    let least = u64::from(request::HEADER);
    Ok(match word {
        "bulk" | "on-off" => {
            let flows = s.number("flows", 1, 1 << 20)?.unwrap_or(1) as usize;
            let on_off = if word == "on-off" {
                let on = s.text("on", time)?.unwrap_or(Duration::from_secs(1));
                Some((on, s.text("off", time)?.unwrap_or(Duration::from_secs(1))))
            } else {
                None
            };
            Kind::Bulk { flows, plan: BulkPlan { start, stop, bytes: s.any("bytes", size)?, on_off } }
        }
        "request" => Kind::Request(RequestPlan {
            start,
            stop,
            connections: s.number("connections", 1, 1 << 20)?.unwrap_or(1) as usize,
            per_connection: s.number("per_connection", 1, u64::MAX >> 1)?,
            request: bytes("request", least, 64)?,
            response: bytes("response", 1, 1024)?,
            think: s.text("think", time)?.unwrap_or_default(),
        }),
        "connect" => Kind::Connect(ConnectPlan {
            start,
            stop,
            rate: s.any("rate", |v| real(v, 0.001, 1e9))?.unwrap_or(1000.0),
            total: s.number("total", 1, 1 << 40)?,
            hold: s
                .text("hold", |t| if t == "forever" { Ok(None) } else { time(t).map(Some) })?
                .unwrap_or(Some(Duration::ZERO)),
        }),
        _ => Kind::Incast(IncastPlan {
            start,
            stop,
            response: bytes("response", 1, 32 * 1024)?,
            pause: s.text("pause", time)?.unwrap_or(Duration::from_millis(10)),
        }),
    })
}
