//! `sidestep stats`: an engine's counters. Whatever the engine counts is shown: a line a counter, a column a shard.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Context;
use serde_json::Value;
use sidestep::control::inspect;
use sidestep_shm::wire::inspect::STATS;

use super::{Failure, print, table};

pub fn main(control: &str, json: bool) -> Result<ExitCode, Failure> {
    let text = inspect(control, STATS)?;
    if json {
        return Ok(print(&format!("{text}\n")));
    }
    let value: Value = serde_json::from_str(&text).context("read the engine's answer (another version?)")?;
    Ok(print(&render(&value)))
}

fn render(value: &Value) -> String {
    let mut out = String::new();
    for (name, part) in value.as_object().into_iter().flatten() {
        match part {
            Value::Null => {}
            Value::Array(list) if name == "shards" => {
                out.push_str(&shards(list));
                out.push('\n');
            }
            _ => {
                let lines: Vec<Vec<String>> = flatten(name, part).into_iter().map(|(k, v)| vec![k, v]).collect();
                if !lines.is_empty() {
                    out.push_str(&table::render(&lines, &[]));
                    out.push('\n');
                }
            }
        }
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

/// Counters below each other, shards beside each other, their sum at the end. Lines of zeroes only are left out.
fn shards(list: &[Value]) -> String {
    let mut rows: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut heading = vec!["shard".to_owned()];
    for (column, shard) in list.iter().enumerate() {
        heading.push(shard["shard"].as_u64().map_or_else(|| column.to_string(), |n| n.to_string()));
        for (key, cell) in flatten("", shard).into_iter().filter(|(key, _)| key != "shard") {
            let row = rows.entry(key).or_default();
            row.resize(column, String::new());
            row.push(cell);
        }
    }
    if list.len() > 1 {
        heading.push("all".into());
    }
    let mut lines = vec![heading];
    for (key, mut cells) in rows {
        cells.resize(list.len(), String::new());
        if cells.iter().all(|c| c == "0" || c.is_empty()) {
            continue;
        }
        if list.len() > 1 {
            let sum: Option<u64> = cells.iter().filter(|c| !c.is_empty()).map(|c| c.parse::<u64>().ok()).sum();
            cells.push(sum.map_or_else(String::new, |n| n.to_string()));
        }
        cells.insert(0, key);
        lines.push(cells);
    }
    let columns: Vec<usize> = (1..=list.len() + 1).collect();
    table::render(&lines, &columns)
}

/// Every value with the path to it, "stack.frames_in".
fn flatten(path: &str, value: &Value) -> Vec<(String, String)> {
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match value {
        Value::Object(map) => map.iter().flat_map(|(k, v)| flatten(&below(k), v)).collect(),
        Value::Array(list) if list.iter().any(|v| v.is_object()) => {
            list.iter().enumerate().flat_map(|(i, v)| flatten(&below(&i.to_string()), v)).collect()
        }
        Value::Array(list) => vec![(path.to_owned(), list.iter().map(plain).collect::<Vec<_>>().join(" "))],
        other => vec![(path.to_owned(), plain(other))],
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        Value::Null => "-".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn shards_stand_beside_each_other_with_their_sum() {
        let value = json!({
            "engine": {"interface": "eth1", "queues": [0, 1]},
            "shards": [{"shard": 0, "stack": {"tcp_in": 5, "drops": 0}}, {"shard": 1, "stack": {"tcp_in": 7, "drops": 0}}],
            "steering": null,
            "groups": [{"group": 0, "pids": [9, 10]}],
        });
        let shown = render(&value);
        let has = |words: &[&str]| shown.lines().any(|l| l.split_whitespace().collect::<Vec<_>>() == words);
        assert!(has(&["shard", "0", "1", "all"]), "{shown}");
        assert!(has(&["stack.tcp_in", "5", "7", "12"]), "{shown}");
        assert!(has(&["engine.queues", "0", "1"]), "{shown}");
        assert!(has(&["groups.0.pids", "9", "10"]), "{shown}");
        assert!(!shown.contains("drops") && !shown.contains("steering"), "{shown}");
    }
}
