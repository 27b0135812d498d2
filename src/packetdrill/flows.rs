//! A connection in two sets of numbers: the script's (a SYN has 0, timestamps are round) and the live ones.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::script::{TcpOption, flag};
use super::wire::LiveTcp;

#[derive(Clone, Debug)]
pub struct Flow {
    pub local: IpAddr,
    pub remote: IpAddr,
    pub local_port: u16,
    pub remote_port: u16,
    /// Script's numbers of the ports, remote one first, where it gives them.
    pub script_ports: Option<(u16, u16)>,
    /// Live minus script, of the stack's sequence numbers; None until it sent a SYN.
    offset: Option<u32>,
    /// How the script counts behind the SYNs: the stack's numbers, and its own.
    stacks: Counting,
    scripts: Counting,
    /// The script sent a SYN since: the next SYN of the stack may start anew.
    fresh: bool,
    /// The stack's timestamps, script's to live.
    timestamps: BTreeMap<u32, u32>,
    first_timestamp: Option<(u32, u32)>,
    /// The number on the wire of the first byte that the script sends.
    pub first_byte: u32,
    /// The slot of the socket that has it, once a call gave it to the script.
    pub slot: Option<u32>,
}

impl Flow {
    pub fn new(local: (IpAddr, u16), remote: (IpAddr, u16)) -> Self {
        Self {
            local: local.0,
            remote: remote.0,
            local_port: local.1,
            remote_port: remote.1,
            script_ports: None,
            offset: None,
            stacks: Counting::default(),
            scripts: Counting::default(),
            fresh: true,
            timestamps: BTreeMap::new(),
            first_timestamp: None,
            first_byte: 1,
            slot: None,
        }
    }

    /// Whether the stack's packet from `local` to `remote` port is of this flow.
    pub fn has_ports(&self, local: u16, remote: u16) -> bool {
        (self.local_port, self.remote_port) == (local, remote)
    }

    /// The script sent a SYN with this number.
    pub fn on_script_syn(&mut self, seq: u32) {
        self.first_byte = seq.wrapping_add(1);
        if self.scripts.from_zero.is_none() {
            // Not by a SYN in the middle of a connection.
            self.scripts = Counting::from(seq);
        }
        self.fresh = true;
    }

    /// The stack sent a SYN where the script has one with `script`.
    pub fn on_live_syn(&mut self, live: u32, script: u32) {
        if self.fresh || self.offset.is_none() {
            self.offset = Some(live.wrapping_sub(script));
            self.stacks = Counting::from(script);
            self.fresh = false;
        }
    }

    /// A number of the stack's stream, as it is on the wire.
    pub fn to_live(&self, script: u32) -> u32 {
        script.wrapping_add(self.stacks.base()).wrapping_add(self.offset.unwrap_or(0))
    }

    pub fn to_script(&self, live: u32) -> u32 {
        live.wrapping_sub(self.offset.unwrap_or(0)).wrapping_sub(self.stacks.base())
    }

    /// Where a number of the stack's is in its stream: what was written begins at 1.
    pub fn place_in_stream(&self, live: u32) -> u32 {
        live.wrapping_sub(self.offset.unwrap_or(0)).wrapping_sub(self.stacks.isn.unwrap_or(0))
    }

    /// A number of the script's own stream, as it is on the wire.
    pub fn own_to_live(&self, script: u32) -> u32 {
        script.wrapping_add(self.scripts.base())
    }

    /// The first packets behind the SYNs show how the script counts: `stacks` is a number of the stack's stream there,
    /// `scripts` one of its own.
    pub fn learn_counting(&mut self, stacks: Option<u32>, scripts: Option<u32>) {
        if self.offset.is_some() {
            stacks.into_iter().for_each(|n| self.stacks.learn(n));
        }
        scripts.into_iter().for_each(|n| self.scripts.learn(n));
    }

    /// The live timestamp that the script echoes as `script`. Those that were not seen are as far from the nearest one
    /// seen as the script says.
    pub fn live_timestamp(&self, script: u32) -> u32 {
        let near = self.timestamps.range(..=script).next_back().or_else(|| self.timestamps.iter().next());
        match near {
            _ if script == 0 => 0,
            Some((s, live)) => live.wrapping_add(script.wrapping_sub(*s)),
            None => script,
        }
    }

    /// The stack sent `live` where the script has `script`. With a tick both clocks must have moved as far since the
    /// first one; `slack` ticks are forgiven.
    pub fn on_live_timestamp(&mut self, script: u32, live: u32, check: Option<i64>) -> Result<(), String> {
        let (script0, live0) = *self.first_timestamp.get_or_insert((script, live));
        self.timestamps.insert(script, live);
        let moved = live.wrapping_sub(live0).cast_signed();
        let wanted = script.wrapping_sub(script0).cast_signed();
        match check {
            Some(slack) if (i64::from(moved) - i64::from(wanted)).abs() > slack => {
                Err(format!("its timestamp moved by {moved} since the first one, expected {wanted}"))
            }
            _ => Ok(()),
        }
    }

    /// A segment of the stack in the script's numbers. Its timestamp stays live.
    pub fn in_script_numbers(&self, live: &LiveTcp) -> LiveTcp {
        if live.flags & flag::SYN != 0 {
            // A SYN and its acknowledgment have the numbers as they are.
            let seq = live.seq.wrapping_sub(self.offset.unwrap_or(0));
            return LiveTcp { seq, ..live.clone() };
        }
        let own = |live: u32| live.wrapping_sub(self.scripts.base());
        let ack = if live.flags & flag::ACK != 0 { own(live.ack) } else { live.ack };
        let options = live.options.iter().map(|option| match option {
            TcpOption::Sack(blocks) => TcpOption::Sack(blocks.iter().map(|(l, r)| (own(*l), own(*r))).collect()),
            other => other.clone(),
        });
        LiveTcp { seq: self.to_script(live.seq), ack, options: options.collect(), ..live.clone() }
    }

    /// Options of a packet that the script sends, in live numbers.
    pub fn live_options(&self, options: &[TcpOption]) -> Vec<TcpOption> {
        let live = |option: &TcpOption| match option {
            TcpOption::Sack(blocks) => {
                TcpOption::Sack(blocks.iter().map(|(l, r)| (self.to_live(*l), self.to_live(*r))).collect())
            }
            TcpOption::Timestamps { value, echo } => {
                TcpOption::Timestamps { value: *value, echo: self.live_timestamp(*echo) }
            }
            other => other.clone(),
        };
        options.iter().map(live).collect()
    }
}

/// How a script counts a stream whose SYN doesn't have the number 0: on from there, or from 0 all the same, as the
/// original program has it. Scripts of both kinds are about.
#[derive(Clone, Copy, Debug, Default)]
struct Counting {
    /// None before a SYN.
    isn: Option<u32>,
    from_zero: Option<bool>,
}

impl Counting {
    const fn from(isn: u32) -> Self {
        Self { isn: Some(isn), from_zero: None }
    }

    fn learn(&mut self, number: u32) {
        if let (None, Some(isn)) = (self.from_zero, self.isn) {
            // The first number behind a SYN is one more than its own.
            let far = |isn: u32| number.wrapping_sub(isn.wrapping_add(1)).cast_signed().unsigned_abs();
            self.from_zero = Some(far(0) < far(isn));
        }
    }

    /// What the script leaves off.
    const fn base(&self) -> u32 {
        match (self.from_zero, self.isn) {
            (Some(true), Some(isn)) => isn,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_both_ways() {
        let any = IpAddr::from([0, 0, 0, 0]);
        let mut flow = Flow::new((any, 1), (any, 2));
        assert_eq!(flow.to_live(5), 5);
        flow.on_live_syn(u32::MAX, 0);
        assert_eq!((flow.to_live(2), flow.to_script(1)), (1, 2));
        // A repeated SYN changes nothing, one after the script's SYN may.
        flow.on_live_syn(77, 0);
        assert_eq!(flow.to_script(1), 2);
        flow.on_script_syn(0);
        flow.on_live_syn(77, 0);
        assert_eq!(flow.to_live(1), 78);
        // A script that begins elsewhere and counts from 0 all the same, and one that counts on.
        for (first, base) in [(1, 5000), (5001, 0)] {
            let mut flow = Flow::new((any, 1), (any, 2));
            flow.on_script_syn(5000);
            flow.learn_counting(None, Some(first));
            assert_eq!(flow.own_to_live(first), 5001);
            flow.learn_counting(None, Some(7777));
            assert_eq!(flow.own_to_live(9), 9 + base);
        }
        assert!(flow.on_live_timestamp(100, 5000, Some(0)).is_ok());
        assert!(flow.on_live_timestamp(300, 5201, Some(1)).is_ok());
        assert!(flow.on_live_timestamp(400, 5305, Some(1)).is_err());
        assert_eq!(flow.live_timestamp(100), 5000);
        assert_eq!(flow.live_timestamp(310), 5211);
        assert_eq!(flow.live_timestamp(0), 0);
    }
}
