//! `sidestep ss`: the sockets on an engine, in the columns of ss(8).

use std::process::ExitCode;

use anyhow::Context;
use serde::Deserialize;
use sidestep::control::inspect;
use sidestep_shm::wire::inspect::SOCKETS;

use super::{Failure, print, table};

/// What the table shows of a row; the JSON has more.
#[derive(Debug, Deserialize)]
struct Row {
    protocol: String,
    state: String,
    recv_q: u64,
    send_q: u64,
    local: String,
    remote: String,
    shard: u32,
    #[serde(default)]
    pids: Vec<u32>,
    program: Option<String>,
    #[serde(default)]
    cwnd: u64,
    #[serde(default)]
    srtt_us: u64,
    #[serde(default)]
    retransmits: u64,
}

pub fn main(control: &str, json: bool) -> Result<ExitCode, Failure> {
    let text = inspect(control, SOCKETS)?;
    if json {
        return Ok(print(&format!("{text}\n")));
    }
    let rows: Vec<Row> = serde_json::from_str(&text).context("read the engine's answer (another version?)")?;
    Ok(print(&render(&rows)))
}

fn render(rows: &[Row]) -> String {
    let heading = ["Netid", "State", "Recv-Q", "Send-Q", "Local", "Peer", "Shard", "cwnd", "rtt", "retrans", "Process"];
    let mut lines = vec![heading.map(str::to_owned).to_vec()];
    let mut sorted: Vec<&Row> = rows.iter().collect();
    // Listeners first: what an administrator looks for.
    sorted.sort_by_key(|r| (r.state != "LISTEN", r.protocol.clone(), r.local.clone(), r.remote.clone()));
    for row in sorted {
        let connected = row.protocol == "tcp" && row.state != "LISTEN";
        let if_connected = |text: String| if connected { text } else { "-".into() };
        lines.push(vec![
            row.protocol.clone(),
            row.state.clone(),
            row.recv_q.to_string(),
            row.send_q.to_string(),
            row.local.clone(),
            row.remote.clone(),
            if row.state == "LISTEN" { "all".into() } else { row.shard.to_string() },
            if_connected(row.cwnd.to_string()),
            if_connected(milliseconds(row.srtt_us)),
            if_connected(row.retransmits.to_string()),
            process(row),
        ]);
    }
    table::render(&lines, &[2, 3, 7, 8, 9])
}

fn milliseconds(us: u64) -> String {
    format!("{}.{:03}ms", us / 1000, us % 1000)
}

fn process(row: &Row) -> String {
    let pids = row.pids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    match &row.program {
        Some(name) => format!("{name} ({pids})"),
        None if pids.is_empty() => "-".into(),
        None => pids,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_the_engine_becomes_a_line() {
        let text = r#"[
            {"protocol":"tcp","state":"ESTAB","recv_q":0,"send_q":17,"local":"10.0.0.2:80","remote":"10.0.0.1:5000",
             "shard":1,"group":0,"slot":7,"processes":[0],"pids":[42,43],"cwnd":14600,"srtt_us":1234,"retransmits":2,
             "rx_bytes":1,"tx_bytes":2,"program":"nginx"},
            {"protocol":"tcp","state":"LISTEN","recv_q":0,"send_q":511,"local":"0.0.0.0:80","remote":"0.0.0.0:0",
             "shard":0,"group":null,"slot":null,"processes":[],"pids":[],"cwnd":0,"srtt_us":0,"retransmits":0,
             "rx_bytes":0,"tx_bytes":0,"program":null}]"#;
        let shown = render(&serde_json::from_str::<Vec<Row>>(text).unwrap());
        let words = |n: usize| shown.lines().nth(n).unwrap().split_whitespace().collect::<Vec<_>>();
        assert_eq!(words(1), ["tcp", "LISTEN", "0", "511", "0.0.0.0:80", "0.0.0.0:0", "all", "-", "-", "-", "-"]);
        let estab = ["tcp", "ESTAB", "0", "17", "10.0.0.2:80", "10.0.0.1:5000", "1", "14600", "1.234ms", "2", "nginx"];
        assert_eq!(words(2)[..11], estab);
        assert!(shown.contains("nginx (42,43)"));
    }
}
