//! The host under test and the wire around it: time, frames in, frames out.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use sidestep_client::Session;
use sidestep_stack::{Instant, TcpInfo, TcpState};

use super::flows::Flow;
use super::script::{Body, Icmp, IpFields, Options, Packet, Quoted, flag};
use super::settings::{LINK, Settings};
use super::wire::{self, Ip, Live, LiveBody, LiveTcp};
use crate::clock::{Clock, VirtualClock};
use crate::local::{LocalEngine, LocalHost};

/// Where the clock stands when a script begins: far from zero, as on a machine that has been up for a while.
const START: Instant = Instant::from_nanos(1_000_000_000_000);
/// Remote ports are dealt out from here.
const FIRST_REMOTE_PORT: u16 = 49_152;
/// Time between two packets of a script that come together.
const TICK: Duration = Duration::from_micros(1);
/// Connections whose last numbers are kept.
const MOST_REMEMBERED: usize = 1000;
/// What an IP packet can carry, in bytes.
const LONGEST_PAYLOAD: u32 = 65_535;

pub struct World {
    pub settings: Settings,
    host: LocalHost,
    pub session: Session,
    clock: VirtualClock,
    /// What the stack sent and no event has taken yet.
    sent: VecDeque<Live>,
    /// Connections, oldest first.
    pub flows: Vec<Flow>,
    /// The one that packets without ports are of.
    pub current: Option<usize>,
    /// A socket listens, and the next SYN of the script opens a new flow.
    pub listening: bool,
    next_remote_port: u16,
    /// How often the stack was woken.
    steps: u64,
    /// Connections by their ports, as they were when the last packet came.
    last: BTreeMap<(u16, u16), TcpInfo>,
    /// What the stack sent and is no packet.
    pub broken: Option<String>,
}

impl World {
    /// # Errors
    /// The host can't be made of these settings.
    pub fn new(settings: Settings) -> Result<Self, String> {
        let clock = VirtualClock::at(START);
        let made = LocalEngine::in_memory(&settings.host(), clock.clone()).map_err(|e| format!("no host: {e}"))?;
        let session = made.attach(0).map_err(|e| format!("no session: {e}"))?;
        Ok(Self {
            settings,
            host: made,
            session,
            clock,
            sent: VecDeque::new(),
            flows: Vec::new(),
            current: None,
            listening: false,
            next_remote_port: FIRST_REMOTE_PORT,
            steps: 0,
            last: BTreeMap::new(),
            broken: None,
        })
    }

    /// Microseconds since the script began.
    pub fn now(&self) -> i64 {
        micros(self.clock.now())
    }

    /// When something happens by itself next.
    pub fn wake_at(&self) -> Option<Instant> {
        self.host.wake_at()
    }

    /// Lets the stack do what there is to do now.
    pub fn settle(&mut self) {
        self.host.settle();
        while let Some((at, frame)) = self.host.take_frame(0) {
            if self.settings.link_drops {
                continue;
            }
            match wire::read(&frame, micros(at)) {
                Ok(Some(live)) => self.sent.push_back(live),
                Ok(None) => {}
                Err(what) => self.broken = Some(format!("the stack sent what is no packet: {what}")),
            }
        }
    }

    /// Moves the clock to `limit` or to what happens before it, and lets it happen. False: `limit` was reached.
    ///
    /// # Errors
    /// The script has had all the wakings that the settings allow.
    pub fn step(&mut self, limit: i64) -> Result<bool, String> {
        self.steps += 1;
        if self.steps > self.settings.most_steps {
            return Err(format!("the stack was woken {} times: the script leads nowhere", self.settings.most_steps));
        }
        let limit = START + Duration::from_micros(u64::try_from(limit).unwrap_or(0));
        let next = self.wake_at().filter(|at| *at < limit);
        self.clock.set(next.unwrap_or(limit));
        self.settle();
        Ok(next.is_some())
    }

    /// How many bytes a SYN to the other end may carry; None without a cookie.
    pub fn fast_open_room(&self) -> Option<u32> {
        self.host.with_stack(0, |stack| stack.tcp_fast_open_room(self.settings.remote))
    }

    /// Changed settings reach the running stack.
    pub fn apply(&mut self) {
        let (tcp, mtu) = (self.settings.host().stack.tcp, self.settings.mtu);
        self.host.with_stack(0, |stack| stack.reconfigure(tcp, mtu));
    }

    /// Keeps what the connections are like, for those that what comes next will end.
    fn remember(&mut self) {
        let last = &mut self.last;
        self.host.with_stack(0, |stack| {
            stack.tcp_for_each(&mut |_, _, info| {
                last.insert((info.local.port(), info.remote.port()), info);
            });
        });
        if self.last.len() > MOST_REMEMBERED {
            self.last.pop_first();
        }
    }

    /// Numbers of the connection that code blocks ask about; of one that has ended, those that it had. None: there is
    /// none.
    pub fn tcp_info(&self, slot: Option<u32>) -> Option<TcpInfo> {
        self.live_info(slot).or_else(|| {
            let flow = match slot {
                Some(slot) => self.flows.iter().rev().find(|flow| flow.slot == Some(slot))?,
                None => self.flows.get(self.current?)?,
            };
            let last = self.last.get(&(flow.local_port, flow.remote_port))?;
            Some(TcpInfo { state: TcpState::Closed, ..*last })
        })
    }

    fn live_info(&self, slot: Option<u32>) -> Option<TcpInfo> {
        self.host.with_stack(0, |stack| stack.note_time(self.clock.now()));
        if let Some(info) = slot.and_then(|slot| self.host.tcp_info(&self.session, slot)) {
            return Some(info);
        }
        let flow = self.flows.get(self.current?)?;
        let mut found = None;
        self.host.with_stack(0, |stack| {
            stack.tcp_for_each(&mut |_, _, info| {
                if flow.has_ports(info.local.port(), info.remote.port()) {
                    found = Some(info);
                }
            });
        });
        found
    }

    // ---- flows ----------------------------------------------------------------------------------------------------

    pub fn new_flow(&mut self, local_port: u16, remote_port: Option<u16>) -> usize {
        let remote_port = remote_port.unwrap_or_else(|| {
            self.next_remote_port = self.next_remote_port.checked_add(1).unwrap_or(FIRST_REMOTE_PORT);
            self.next_remote_port - 1
        });
        let (local, remote) = (self.settings.local, self.settings.remote);
        self.flows.push(Flow::new((local, local_port), (remote, remote_port)));
        self.current = Some(self.flows.len() - 1);
        self.flows.len() - 1
    }

    /// The flow of a connection that accept() or connect() gave to the script.
    pub fn own(&mut self, slot: u32, local_port: u16, remote_port: u16) {
        let found = self.flows.iter().rposition(|f| f.has_ports(local_port, remote_port));
        let index = found.unwrap_or_else(|| self.new_flow(local_port, Some(remote_port)));
        self.flows[index].slot = Some(slot);
        self.current = Some(index);
    }

    /// The socket in `old` is given up with a reset, and its flow goes over to `fresh`.
    pub fn disconnect(&mut self, old: u32, fresh: u32) {
        self.remember();
        let _ = self.session.abort(old);
        self.session.close(old);
        self.flows.iter_mut().filter(|flow| flow.slot == Some(old)).for_each(|flow| flow.slot = Some(fresh));
        self.settle();
    }

    /// The number on the wire of the first byte that the socket in `slot` receives.
    pub fn first_byte(&self, slot: u32) -> u32 {
        self.flows.iter().rev().find(|f| f.slot == Some(slot)).map_or(1, |f| f.first_byte)
    }

    /// The flow that a packet of the script is of.
    fn flow_of(&mut self, packet: &Packet) -> Result<usize, String> {
        let Body::Tcp(tcp) = &packet.body else {
            return match self.current {
                Some(index) => Ok(index),
                // The first datagram to a bound socket.
                None if packet.inbound => Ok(self.new_flow(self.settings.bind_port, None)),
                None => Err("no socket could send this packet: none was connected or bound and written to".into()),
            };
        };
        if let Some((source, destination)) = tcp.ports {
            let ports = if packet.inbound { (source, destination) } else { (destination, source) };
            if let Some(index) = self.flows.iter().rposition(|f| f.script_ports == Some(ports)) {
                return Ok(index);
            }
            if !packet.inbound {
                return Err("no connection has these ports".into());
            }
            let local = self.settings.bind_port;
            let index = self.new_flow(local, None);
            self.flows[index].script_ports = Some(ports);
            return Ok(index);
        }
        let opens = packet.inbound && tcp.flags & (flag::SYN | flag::ACK) == flag::SYN;
        match self.current {
            Some(index) if !(opens && self.listening) => Ok(index),
            // Also a segment to a port on which nobody listens.
            _ if packet.inbound => {
                self.listening = false;
                Ok(self.new_flow(self.settings.bind_port, None))
            }
            _ => Err("no connection could send this packet: there is none".into()),
        }
    }

    // ---- packets --------------------------------------------------------------------------------------------------

    /// Puts a packet of the script on the wire and lets the stack take it.
    ///
    /// # Errors
    /// It can't be built, or is of no connection.
    pub fn inject(&mut self, packet: &Packet) -> Result<(), String> {
        let index = self.flow_of(packet)?;
        let flow = &mut self.flows[index];
        let ip = ip_of(flow.remote, flow.local, &packet.ip);
        let frame = match &packet.body {
            Body::Tcp(tcp) => {
                if tcp.flags & flag::SYN != 0 {
                    flow.on_script_syn(tcp.seq);
                }
                let Options::These(options) = &tcp.options else {
                    return Err("the options of a packet to be sent can't be left open (<...>)".into());
                };
                let syn = tcp.flags & flag::SYN != 0;
                if !syn {
                    flow.learn_counting(tcp.ack.filter(|_| tcp.flags & flag::ACK != 0), Some(tcp.seq));
                }
                let seq = if syn { tcp.seq } else { flow.own_to_live(tcp.seq) };
                let segment = LiveTcp {
                    source: flow.remote_port,
                    destination: flow.local_port,
                    seq,
                    // With the flag and no number it is the number of the stack's SYN.
                    ack: if tcp.flags & flag::ACK != 0 || tcp.ack.is_some() {
                        flow.to_live(tcp.ack.unwrap_or(0))
                    } else {
                        0
                    },
                    flags: tcp.flags,
                    window: tcp.window.unwrap_or(0),
                    urgent: tcp.urgent.unwrap_or(0),
                    options: flow.live_options(options),
                    ..LiveTcp::default()
                };
                if tcp.len > LONGEST_PAYLOAD {
                    return Err(format!("no packet has {} bytes of payload", tcp.len));
                }
                let first = seq.wrapping_add(u32::from(syn));
                let payload: Vec<u8> = (0..tcp.len).map(|i| pattern(first.wrapping_add(i))).collect();
                wire::tcp_frame(LINK, ip, &segment, &payload)?
            }
            Body::Udp(len) => {
                let payload: Vec<u8> = (0..u32::from(*len)).map(pattern).collect();
                wire::udp_frame(LINK, ip, (flow.remote_port, flow.local_port), &payload)?
            }
            Body::Icmp(icmp) => icmp_frame(flow, ip, icmp)?,
        };
        self.remember();
        // No two packets meet at the same moment: what was sent before one came was sent before it.
        self.clock.set(self.clock.now() + TICK);
        self.host.put_frame(0, frame);
        self.settle();
        Ok(())
    }

    /// The next packet that the stack sent on the flow of `expected`; packets of other flows before it are dropped.
    /// Parts of what Linux would have sent as one packet come as one.
    ///
    /// # Errors
    /// No flow could have sent it, or what came is broken.
    pub fn take(&mut self, expected: &Packet) -> Result<Option<Live>, String> {
        let flow = match self.flow_of(expected) {
            Ok(index) => index,
            // The packet may show which ports the stack chose.
            Err(error) if self.sent.is_empty() => return Err(error),
            Err(error) => self.adopt().ok_or(error)?,
        };
        while let Some(live) = self.sent.pop_front() {
            if !is_of(&self.flows[flow], &live) {
                continue;
            }
            let mut live = live;
            if let (LiveBody::Tcp(tcp), Body::Tcp(wanted)) = (&mut live.body, &expected.body) {
                let mss = self.tcp_info(self.flows[flow].slot).map_or(u32::MAX, |info| info.send_mss);
                tcp.full = tcp.payload >= mss.max(1);
                self.gather(tcp, wanted.len);
            }
            return Ok(Some(live));
        }
        Ok(None)
    }

    /// Joins segments until there are `len` bytes.
    fn gather(&mut self, tcp: &mut LiveTcp, len: u32) {
        while tcp.payload < len
            && let Some(Live { body: LiveBody::Tcp(next), .. }) = self.sent.front()
            && tcp.payload + next.payload <= len
            && super::matching::merge(tcp, next)
        {
            self.sent.pop_front();
        }
    }

    /// A flow for the oldest packet that was sent, of a socket that was never connected (datagrams).
    fn adopt(&mut self) -> Option<usize> {
        let (local, remote) = ports_of(self.sent.front()?)?;
        Some(self.new_flow(local, Some(remote)))
    }

    /// Checks the numbers that only the flow knows, and turns the packet into the script's.
    ///
    /// # Errors
    /// Its timestamp or payload is wrong.
    pub fn translate(&mut self, expected: &Packet, live: &mut Live) -> Result<(), String> {
        let Some(index) = ports_of(live).and_then(|(l, r)| self.flows.iter().rposition(|f| f.has_ports(l, r))) else {
            return Ok(());
        };
        let tick = self.settings.timestamp_tick_us;
        let slack = (tick > 0).then(|| 1 + self.settings.tolerance_us / tick.max(1));
        let flow = &mut self.flows[index];
        let (LiveBody::Tcp(tcp), Body::Tcp(wanted)) = (&mut live.body, &expected.body) else { return Ok(()) };
        if tcp.flags & flag::SYN != 0 && wanted.flags & flag::SYN != 0 {
            flow.on_live_syn(tcp.seq, wanted.seq);
        } else if (tcp.flags | wanted.flags) & flag::SYN == 0 {
            flow.learn_counting(Some(wanted.seq), wanted.ack.filter(|_| wanted.flags & flag::ACK != 0));
        }
        let first = flow.place_in_stream(tcp.seq).wrapping_add(u32::from(tcp.flags & flag::SYN != 0));
        *tcp = flow.in_script_numbers(tcp);
        if let Some(at) = (0..tcp.payload).find(|i| tcp.data.get(*i as usize) != Some(&pattern(first.wrapping_add(*i))))
        {
            return Err(format!("byte {at} of its payload is not the one that was written"));
        }
        if let (Some(value), Some(want)) = (tcp.timestamp_value(), timestamp_of(&wanted.options)) {
            flow.on_live_timestamp(want, value, slack)?;
        }
        Ok(())
    }
}

/// Every stream carries this: the byte at a script's sequence number.
pub fn pattern(seq: u32) -> u8 {
    (seq ^ seq >> 8) as u8
}

fn micros(at: Instant) -> i64 {
    at.since(START).as_micros() as i64
}

fn timestamp_of(options: &Options) -> Option<u32> {
    let Options::These(options) = options else { return None };
    options.iter().find_map(|o| match o {
        super::script::TcpOption::Timestamps { value, .. } => Some(*value),
        _ => None,
    })
}

fn ip_of(source: IpAddr, destination: IpAddr, fields: &IpFields) -> Ip {
    Ip {
        source,
        destination,
        tos: fields.tos.unwrap_or(0) & 0xfc | fields.ecn.unwrap_or(fields.tos.unwrap_or(0) & 3),
        ttl: fields.ttl.unwrap_or(255),
        flow_label: fields.flow_label.unwrap_or(0),
    }
}

/// Local and remote port.
fn ports_of(live: &Live) -> Option<(u16, u16)> {
    match &live.body {
        LiveBody::Tcp(tcp) => Some((tcp.source, tcp.destination)),
        LiveBody::Udp { source, destination, .. } => Some((*source, *destination)),
        LiveBody::Icmp { .. } => None,
    }
}

fn is_of(flow: &Flow, live: &Live) -> bool {
    live.destination == flow.remote && ports_of(live).is_none_or(|(l, r)| flow.has_ports(l, r))
}

/// An error about a packet of ours.
fn icmp_frame(flow: &Flow, ip: Ip, icmp: &Icmp) -> Result<Vec<u8>, String> {
    let quoted_ip = Ip { source: flow.local, destination: flow.remote, tos: 0, ttl: 64, flow_label: 0 };
    let quoted = match icmp.quoted {
        None => Vec::new(),
        Some(Quoted::Tcp { len, .. }) if len > LONGEST_PAYLOAD => {
            return Err(format!("no packet has {len} bytes of payload"));
        }
        Some(Quoted::Tcp { seq, len }) => {
            let tcp = LiveTcp {
                source: flow.local_port,
                destination: flow.remote_port,
                seq: flow.to_live(seq),
                flags: flag::ACK,
                ..LiveTcp::default()
            };
            wire::quote_tcp(quoted_ip, &tcp, len as usize)?
        }
        Some(Quoted::Udp { len }) => wire::quote_udp(quoted_ip, (flow.local_port, flow.remote_port), usize::from(len))?,
    };
    if icmp.v6 != ip.source.is_ipv6() {
        return Err("the kind of ICMP doesn't fit the family of the addresses".into());
    }
    wire::icmp_frame(LINK, ip, (icmp.kind, icmp.code), icmp.mtu.unwrap_or(0), &quoted)
}
