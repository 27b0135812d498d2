//! What a script is run under: options, sysctls, routes. And how that maps to a host of ours.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use sidestep_stack::{Congestion, Ecn, FastOpen, InterfaceAddress, NeighborMode, Route, StaticNeighbor, TcpConfig};

use super::wire::Link;
use crate::local::{HostAddress, LocalConfig};

/// Ethernet addresses of the two ends.
pub const LINK: Link = Link { stack: [2, 0, 0, 0, 0, 1], script: [2, 0, 0, 0, 0, 2] };

/// What a send buffer holds once there is a connection: Linux expands its 16 KiB then to ten segments twice over
/// (tcp_sndbuf_expand), and lets one write go beyond that.
const EXPANDED: u32 = 65_536;

/// Which addresses sockets and packets have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
    /// IPv6 sockets, IPv4 packets.
    Mapped,
}

#[derive(Clone, Debug)]
pub struct Settings {
    pub family: Family,
    pub local: IpAddr,
    pub remote: IpAddr,
    pub prefix_bits: u8,
    pub mtu: usize,
    /// Packets of the script that are longer than this come as several segments at once; None: as one.
    pub mss: Option<u16>,
    pub tolerance_us: i64,
    pub tolerance_percent: f64,
    /// Microseconds of a tick of the stack's timestamps; 0: they are not checked.
    pub timestamp_tick_us: i64,
    pub bind_port: u16,
    pub connect_port: u16,
    pub ephemeral_ports: (u16, u16),
    pub tcp: TcpConfig,
    pub defines: BTreeMap<String, String>,
    /// Files of the script by name, and how long they are.
    pub files: BTreeMap<String, u64>,
    /// Nothing that the stack sends gets anywhere.
    pub link_drops: bool,
    /// How often a script may have the stack woken, so that none runs for ever.
    pub most_steps: u64,
    /// Bytes of one call's buffers, at most.
    pub most_bytes: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            family: Family::V4,
            local: Ipv4Addr::new(192, 168, 0, 1).into(),
            remote: Ipv4Addr::new(192, 0, 2, 1).into(),
            prefix_bits: 16,
            mtu: 1500,
            mss: None,
            tolerance_us: 4000,
            tolerance_percent: 1.0,
            timestamp_tick_us: 0,
            bind_port: 8080,
            connect_port: 8080,
            // Linux's.
            ephemeral_ports: (32_768, 60_999),
            // Linux's buffers, which decide the window scale; and no pacing, which is its queueing discipline's.
            tcp: TcpConfig {
                rmem: [4096, 131_072, 6 << 20],
                wmem: [4096, EXPANDED, 4 << 20],
                pacing: false,
                ..TcpConfig::default()
            },
            defines: BTreeMap::new(),
            files: BTreeMap::new(),
            link_drops: false,
            most_steps: 10_000_000,
            most_bytes: 1 << 28,
        }
    }
}

impl Settings {
    /// An option of the command line or of the script, without its dashes.
    ///
    /// # Errors
    /// An option that this runner doesn't have, or a value that makes no sense.
    pub fn option(&mut self, name: &str, value: &str) -> Result<(), String> {
        let wrong = || format!("--{name}={value}: this is no value for it");
        match name {
            "ip_version" => self.set_family(value).ok_or_else(wrong)?,
            "local_ip" => self.local = value.parse().map_err(|_| wrong())?,
            "remote_ip" => self.remote = value.split('/').next().unwrap_or_default().parse().map_err(|_| wrong())?,
            "netmask_ip" => {
                let mask: Ipv4Addr = value.parse().map_err(|_| wrong())?;
                self.prefix_bits = u32::from(mask).leading_ones() as u8;
            }
            "mtu" => self.set_mtu(value).ok_or_else(wrong)?,
            "mss" => self.mss = Some(value.parse().map_err(|_| wrong())?),
            "tolerance_usecs" => self.tolerance_us = i64::from(value.parse::<u32>().map_err(|_| wrong())?),
            "tolerance_percent" => self.tolerance_percent = value.parse().map_err(|_| wrong())?,
            "tcp_ts_tick_usecs" => self.timestamp_tick_us = i64::from(value.parse::<u32>().map_err(|_| wrong())?),
            "bind_port" => self.bind_port = value.parse().map_err(|_| wrong())?,
            "connect_port" => self.connect_port = value.parse().map_err(|_| wrong())?,
            "speed" | "gateway_ip" | "init_scripts" | "non_fatal" | "dry_run" | "verbose" | "debug"
            | "persistent_tun_dev" | "send_omit_free" | "wire_client_dev" | "code_command" | "code_format"
            | "tcp_ts_ecr_scaled" | "is_anyip" | "wire_server_ip" | "wire_server_port" | "wire_server_dev"
            | "code_sockopt" | "no_cleanup" | "strict_segments" | "udp_encaps" | "ip_tun" | "packet_timeout" => {}
            "define" => {
                let (name, value) = value.split_once('=').ok_or_else(wrong)?;
                self.defines.insert(name.to_owned(), value.to_owned());
            }
            "wire_client" | "wire_server" | "so_filename" | "so_flags" => {
                return Err(format!("--{name}: scripts run in this process, in virtual time"));
            }
            _ => return Err(format!("--{name}: no such option")),
        }
        Ok(())
    }

    /// What an IP packet can be long. None: nothing can be that long or short.
    pub fn set_mtu(&mut self, value: &str) -> Option<()> {
        self.mtu = value.parse().ok().filter(|mtu| (68..=65_535).contains(mtu))?;
        Some(())
    }

    /// Addresses as the original has them. Those that were given as options before stay.
    fn set_family(&mut self, value: &str) -> Option<()> {
        let fresh = Self::default();
        let was_default = self.local == fresh.local && self.remote == fresh.remote;
        self.family = match value {
            "ipv4" => Family::V4,
            "ipv6" => Family::V6,
            "ipv4-mapped-ipv6" => Family::Mapped,
            _ => return None,
        };
        if self.family == Family::V6 && was_default {
            self.local = Ipv6Addr::new(0xfd3d, 0x0a0b, 0x17d6, 0, 0, 0, 0, 1).into();
            self.remote = Ipv6Addr::new(0xfd3d, 0xfa7b, 0xd17d, 0, 0, 0, 0, 1).into();
            self.prefix_bits = 64;
        } else if self.family != Family::V6 && self.local.is_ipv6() {
            (self.local, self.remote, self.prefix_bits) = (fresh.local, fresh.remote, fresh.prefix_bits);
        }
        Some(())
    }

    /// The names that `text` may use: what was defined, and the cookies of the family that it is for.
    pub fn names_for(&self, text: &str) -> BTreeMap<String, String> {
        let mut own = self.clone();
        for line in text.lines().take_while(|line| !line.starts_with('`')) {
            if let Some(family) = line.trim().strip_prefix("--ip_version=") {
                own.set_family(family);
            }
        }
        for name in ["TFO_COOKIE", "TFO_COOKIE_ZERO"] {
            if let Some(value) = own.define(name) {
                own.defines.insert(name.to_owned(), value);
            }
        }
        own.defines
    }

    /// Names of C that depend on the family.
    pub fn define(&self, name: &str) -> Option<String> {
        let six = self.family != Family::V4;
        self.defines.get(name).cloned().or_else(|| match name {
            // Of the key that the scripts' common defaults set, and of one of zeros.
            "TFO_COOKIE" => {
                Some(if self.family == Family::V6 { "c1d1e9742a47a9bc" } else { "3021b9d889017eeb" }.into())
            }
            "TFO_COOKIE_ZERO" => {
                Some(if self.family == Family::V6 { "82af1a8f9a205c34" } else { "b7c12350a90dc8f5" }.into())
            }
            "CMSG_LEVEL_IP" => Some(if six { "SOL_IPV6" } else { "SOL_IP" }.into()),
            "CMSG_TYPE_RECVERR" => Some(if six { "IPV6_RECVERR" } else { "IP_RECVERR" }.into()),
            _ => None,
        })
    }

    /// A sysctl below net.ipv4 or net.core, by its last name. False: none that the stack has.
    ///
    /// # Errors
    /// A value that makes no sense.
    pub fn sysctl(&mut self, name: &str, value: &str) -> Result<bool, String> {
        let wrong = || format!("{name}={value}: this is no value for it");
        let number = || value.trim().parse::<u32>().map_err(|_| wrong());
        let small = || value.trim().parse::<u8>().map_err(|_| wrong());
        let seconds = || number().map(|n| Duration::from_secs(n.into()));
        let on = || number().map(|n| n != 0);
        let triple = || -> Result<[u32; 3], String> {
            let words: Result<Vec<u32>, _> = value.split_whitespace().map(str::parse).collect();
            words.ok().and_then(|w| w.try_into().ok()).ok_or_else(wrong)
        };
        match name {
            "tcp_timestamps" => self.tcp.timestamps = on()?,
            "tcp_window_scaling" => self.tcp.window_scaling = on()?,
            "tcp_sack" => self.tcp.sack = on()?,
            "tcp_syn_retries" => self.tcp.syn_retries = small()?,
            "tcp_synack_retries" => self.tcp.synack_retries = small()?,
            "tcp_retries2" => self.tcp.data_retries = small()?,
            "tcp_fin_timeout" => self.tcp.fin_timeout = seconds()?,
            "tcp_keepalive_time" => self.tcp.keepalive_idle = seconds()?,
            "tcp_keepalive_intvl" => self.tcp.keepalive_interval = seconds()?,
            "tcp_keepalive_probes" => self.tcp.keepalive_probes = small()?,
            "tcp_rto_min_us" | "tcp_min_rto_us" => self.tcp.min_rto = Duration::from_micros(number()?.into()),
            "tcp_rto_max_ms" => self.tcp.max_rto = Duration::from_millis(number()?.into()),
            "tcp_congestion_control" => {
                let found = Congestion::by_name(value.trim());
                self.tcp.congestion =
                    found.ok_or_else(|| format!("{name}={value}: the stack has no such algorithm"))?;
            }
            "tcp_ecn" => {
                // 3 to 5 ask for Accurate ECN (RFC 9768), which isn't there; RFC 3168 is what is left of it.
                self.tcp.ecn = match number()? {
                    0 => Ecn::Off,
                    1 | 4 => Ecn::Request,
                    2 | 5 => Ecn::Accept,
                    3 => return Err("Accurate ECN (tcp_ecn=3) is not supported".into()),
                    _ => return Err(wrong()),
                }
            }
            "tcp_syncookies" => self.tcp.always_cookies = number()? == 2,
            "tcp_fastopen" => {
                let bits = value
                    .trim()
                    .strip_prefix("0x")
                    .map_or_else(|| value.trim().parse().ok(), |hex| u32::from_str_radix(hex, 16).ok());
                self.tcp.fast_open = FastOpen::from_bits(bits.ok_or_else(wrong)?);
            }
            "tcp_fastopen_key" => self.tcp.fast_open_key = Some(fast_open_key(value).ok_or_else(wrong)?),
            "tcp_slow_start_after_idle" => self.tcp.slow_start_after_idle = on()?,
            "tcp_early_retrans" => self.tcp.tail_loss_probes = on()?,
            "tcp_rmem" => self.tcp.rmem = triple()?,
            "tcp_wmem" => {
                self.tcp.wmem = triple()?;
                self.tcp.wmem[1] = self.tcp.wmem[1].max(EXPANDED).min(self.tcp.wmem[2]);
            }
            "ip_local_port_range" => {
                let words: Vec<&str> = value.split_whitespace().collect();
                let [first, last] = words[..] else { return Err(wrong()) };
                self.ephemeral_ports = (first.parse().map_err(|_| wrong())?, last.parse().map_err(|_| wrong())?);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The settings that the scripts' common defaults make.
    ///
    /// # Errors
    /// None, as long as the values fit [`Self::sysctl`].
    pub fn defaults(&mut self) -> Result<(), String> {
        for (name, value) in [
            ("tcp_rmem", "4096 540000 15728640"),
            ("tcp_wmem", "4096 262144 4194304"),
            ("tcp_timestamps", "1"),
            ("tcp_syn_retries", "5"),
            ("tcp_synack_retries", "5"),
            ("tcp_frto", "2"),
            ("tcp_sack", "1"),
            ("tcp_dsack", "1"),
            ("tcp_reordering", "3"),
            ("tcp_congestion_control", "cubic"),
            ("tcp_slow_start_after_idle", "0"),
            ("tcp_early_retrans", "4"),
            ("tcp_recovery", "1"),
            ("tcp_ecn", "0"),
            ("tcp_syncookies", "1"),
            ("tcp_fastopen", "0x3"),
            ("tcp_fastopen_key", "a1a1a1a1-b2b2b2b2-c3c3c3c3-d4d4d4d4"),
        ] {
            self.sysctl(name, value)?;
        }
        Ok(())
    }

    /// The host under test.
    pub fn host(&self) -> LocalConfig {
        let address = InterfaceAddress { address: self.local, prefix_bits: self.prefix_bits };
        let mut config = LocalConfig::new(HostAddress(address)).seeded(1);
        // Everything goes to the script, which needs no address of its own on the link.
        let gateway: IpAddr = match self.local {
            IpAddr::V4(_) => Ipv4Addr::new(192, 168, 0, 2).into(),
            IpAddr::V6(_) => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2).into(),
        };
        let any: IpAddr = if gateway.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        config.stack.mac = LINK.stack;
        config.stack.mtu = self.mtu;
        config.stack.routes = vec![Route { network: any, prefix_bits: 0, gateway: Some(gateway) }];
        config.stack.neighbors = vec![StaticNeighbor { address: gateway, mac: LINK.script }];
        config.stack.neighbor_mode = NeighborMode::External;
        config.stack.ephemeral_ports = self.ephemeral_ports;
        config.stack.tcp = self.tcp;
        config.geometry.open_slots = 256;
        config.geometry.accept_slots = 256;
        config.geometry.rx_bytes = power_of_two(self.tcp.rmem[2]);
        config.geometry.tx_bytes = power_of_two(self.tcp.wmem[2]);
        config
    }
}

/// Four words in hexadecimal, as Linux prints the key; of several the first is the one that cookies are made with.
fn fast_open_key(text: &str) -> Option<[u8; 16]> {
    let first = text.split(',').next()?.trim();
    let words: Option<Vec<u32>> = first.split('-').map(|word| u32::from_str_radix(word, 16).ok()).collect();
    let bytes: Vec<u8> = words?.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.try_into().ok()
}

/// The largest power of two that is not more than `bytes`, within what a host takes.
fn power_of_two(bytes: u32) -> u32 {
    (1 << bytes.max(1).ilog2()).clamp(1 << 16, 1 << 24)
}
