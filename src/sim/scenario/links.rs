//! What a link is like, out of its table.

use toml::Spanned;
use toml::de::DeValue;

use super::file::table;
use super::values::{QueueLength, probability, queue_length, rate, time};
use crate::config::section::{Problem, Section};
use crate::sim::link::LinkConfig;
use crate::sim::loss::Loss;
use crate::sim::queue::{CodelConfig, QueueConfig};

/// What `back` and `change` may say.
pub const WAY_KEYS: &[&str] = &[
    "at",
    "rate",
    "overhead",
    "delay",
    "jitter",
    "queue",
    "ecn_from",
    "codel",
    "loss",
    "reorder",
    "reorder_by",
    "duplicate",
    "corrupt",
    "mtu",
    "down",
    "back",
];
const BURST_KEYS: &[&str] = &["enter", "leave", "good", "bad"];
const CODEL_KEYS: &[&str] = &["target", "interval", "ecn"];

/// A queue of one BDP is never shorter than this: on short paths a BDP is a few frames, and no switch has so few.
const LEAST_BDP_FRAMES: u64 = 64;

/// The other direction: as `forth`, but for what stands here.
pub fn back(value: &Spanned<DeValue<'_>>, forth: &LinkConfig) -> Result<LinkConfig, Problem> {
    let t = table(value, "link.back")?;
    way(&Section::new("link.back", &t, WAY_KEYS)?, forth)
}

/// One direction of a link: `base`, but for what the section says.
pub fn way(s: &Section<'_, '_>, base: &LinkConfig) -> Result<LinkConfig, Problem> {
    let mut way = base.clone();
    if let Some(rate) = s.text("rate", rate)? {
        way.rate = rate;
    }
    if let Some(bytes) = s.number("overhead", 0, 1000)? {
        way.overhead = bytes as u32;
    }
    for (key, field) in [("delay", &mut way.delay), ("jitter", &mut way.jitter), ("reorder_by", &mut way.reorder_by)] {
        if let Some(d) = s.text(key, time)? {
            *field = d;
        }
    }
    for (key, field) in
        [("reorder", &mut way.reorder), ("duplicate", &mut way.duplicate), ("corrupt", &mut way.corrupt)]
    {
        if let Some(p) = s.any(key, probability)? {
            *field = p;
        }
    }
    if let Some(mtu) = s.number("mtu", 68, 9000)? {
        way.mtu = Some(mtu as usize);
    }
    if let Some(down) = s.boolean("down")? {
        way.down = down;
    }
    if let Some(v) = s.value("loss") {
        way.loss = match v.get_ref() {
            DeValue::Table(_) => burst(v)?,
            other => Loss::Independent(probability(other).map_err(|e| {
                s.wrong("loss", format!("{e}; or bursts: {{ enter = 0.001, leave = 0.2, bad = 0.5 }}"))
            })?),
        };
    }
    queue(s, &mut way)?;
    Ok(way)
}

fn burst(value: &Spanned<DeValue<'_>>) -> Result<Loss, Problem> {
    let t = table(value, "link.loss")?;
    let s = Section::new("link.loss", &t, BURST_KEYS)?;
    let need = |key| Ok(s.any(key, probability)?.ok_or_else(|| s.wrong(key, "is missing")))?;
    let or = |key, default| Ok::<f64, Problem>(s.any(key, probability)?.unwrap_or(default));
    Ok(Loss::Burst { enter: need("enter")?, leave: need("leave")?, good: or("good", 0.0)?, bad: or("bad", 1.0)? })
}

fn queue(s: &Section<'_, '_>, way: &mut LinkConfig) -> Result<(), Problem> {
    if let Some(length) = s.any("queue", queue_length)? {
        let q = QueueConfig { frames: usize::MAX, bytes: u64::MAX, ..way.queue };
        way.queue = match length {
            QueueLength::Frames(n) => QueueConfig { frames: n.max(1) as usize, ..q },
            QueueLength::Bytes(n) => QueueConfig { bytes: n, ..q },
            QueueLength::Bdp(share) => {
                let rate = way.rate.ok_or_else(|| s.wrong("queue", "a BDP needs a rate"))?;
                let bytes = rate as f64 / 8.0 * 2.0 * way.delay.as_secs_f64() * share;
                QueueConfig { frames: ((bytes / 1514.0).ceil() as u64).max(LEAST_BDP_FRAMES) as usize, ..q }
            }
        };
    }
    if let Some(frames) = s.number("ecn_from", 0, 1 << 30)? {
        way.queue.mark_from = Some(frames as usize);
    }
    match s.value("codel").map(Spanned::get_ref) {
        None | Some(DeValue::Boolean(false)) => {}
        Some(DeValue::Boolean(true)) => way.queue.codel = Some(CodelConfig::default()),
        Some(DeValue::Table(_)) => {
            let t = table(s.value("codel").expect("looked at above"), "link.codel")?;
            let c = Section::new("link.codel", &t, CODEL_KEYS)?;
            let d = CodelConfig::default();
            let target = c.text("target", time)?.unwrap_or(d.target);
            let interval = c.text("interval", time)?.unwrap_or(d.interval);
            let ecn = c.boolean("ecn")?.unwrap_or(d.ecn);
            if target.is_zero() || interval < target {
                return Err(c.wrong("interval", "must not be less than target, and target not 0 (RFC 8289 4.4)"));
            }
            way.queue.codel = Some(CodelConfig { target, interval, ecn });
        }
        Some(_) => {
            return Err(s.wrong("codel", "must be true, or a table as in { target = \"5ms\", interval = \"100ms\" }"));
        }
    }
    Ok(())
}
