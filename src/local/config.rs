//! What a local engine is made with.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use sidestep_client::shm::Geometry;
use sidestep_client::shm::layout::GeometryError;
use sidestep_client::shm::wire::RouteRule;
use sidestep_stack::{InterfaceAddress, Limits, NeighborMode, Stack, StackConfig, TcpConfig};

use crate::control::ControlSettings;
use crate::control::address::mapped;
use crate::engine::{port_share, shard_seed};

/// An address with its prefix, "10.0.0.1/24".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostAddress(pub InterfaceAddress);

impl FromStr for HostAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no address with a prefix length, like 10.0.0.1/24 or fd00::1/64");
        let (address, bits) = text.split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let prefix_bits: u8 = bits.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        if prefix_bits > most {
            return Err(wrong());
        }
        Ok(Self(InterfaceAddress { address, prefix_bits }))
    }
}

/// Everything that a [`super::LocalEngine`] follows from, beside the calls made on it.
#[derive(Clone, Debug)]
pub struct LocalConfig {
    /// Shards of [`super::LocalEngine::in_memory`].
    pub shards: u32,
    /// The stack of every shard; `ephemeral_ports` is split between them.
    pub stack: StackConfig,
    /// All that looks random in the engine comes from here.
    pub seed: [u8; 32],
    /// Memory of each group; `shards` is filled in.
    pub geometry: Geometry,
    /// Frames that a memory port takes before somebody takes them out.
    pub transmit_ring: usize,
    /// Whether 127.0.0.0/8 and ::1 may be bound.
    pub loopback: bool,
}

impl LocalConfig {
    /// A host with one address on one link: ARP and NDP of its own, an MTU of 1,500, one shard, stream buffers of
    /// 128 KiB that grow, 1,024 sockets to open and 1,024 to accept, an Ethernet address made of its IP address.
    #[must_use]
    pub fn new(address: HostAddress) -> Self {
        let address = address.0;
        let stack = StackConfig {
            mac: mac_of(address.address),
            mtu: 1500,
            addresses: vec![address],
            routes: Vec::new(),
            neighbors: Vec::new(),
            neighbor_mode: NeighborMode::Own,
            ephemeral_ports: (49_152, 65_535),
            rss: None,
            checksums: true,
            tcp: TcpConfig::default(),
            limits: Limits::default(),
        };
        let geometry = Geometry {
            shards: 1,
            open_slots: 1024,
            accept_slots: 1024,
            rx_bytes: 1 << 17,
            tx_bytes: 1 << 17,
            pool_bytes: 1 << 32,
        };
        Self { shards: 1, stack, seed: [0; 32], geometry, transmit_ring: usize::MAX, loopback: true }
    }

    /// The same with another seed.
    #[must_use]
    pub fn seeded(mut self, seed: u64) -> Self {
        self.seed[..8].copy_from_slice(&seed.to_le_bytes());
        self
    }

    pub(super) fn stack(&self, number: u32, shards: u32) -> Stack {
        let mut config = self.stack.clone();
        config.ephemeral_ports = port_share(config.ephemeral_ports, number, shards);
        Stack::new(config, shard_seed(self.seed, number))
    }

    pub(super) fn control_settings(&self, shards: usize) -> Result<ControlSettings, GeometryError> {
        let geometry = Geometry { shards: shards as u32, ..self.geometry }.validate()?;
        let rule = |address: IpAddr, prefix_bits| RouteRule { prefix: mapped(address), prefix_bits, kernel: false };
        Ok(ControlSettings {
            geometry,
            spin_us: 0,
            rules: vec![rule(Ipv4Addr::LOCALHOST.into(), 104), rule(Ipv6Addr::LOCALHOST.into(), 128)],
            addresses: self.stack.addresses.iter().map(|a| a.address).collect(),
            loopback_in_stack: self.loopback,
            ephemeral_ports: self.stack.ephemeral_ports,
            shared_address: false,
            kernel_ports: Vec::new(),
            facts: serde_json::json!({ "version": env!("CARGO_PKG_VERSION"), "interface": "memory" }),
        })
    }

    /// State of the port chooser: anything but zero.
    pub(super) fn random(&self) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.seed[..8]);
        // An odd constant (the golden ratio), so that small seeds differ in more than their last bits.
        u64::from_le_bytes(bytes).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
    }
}

/// A locally administered address (IEEE 802c) that says whose it is.
fn mac_of(address: IpAddr) -> [u8; 6] {
    let bytes = mapped(address);
    [2, 0, bytes[12], bytes[13], bytes[14], bytes[15]]
}
