//! Facts about a network device, read through ioctl(2); see netdevice(7) and linux/ethtool.h. Sets nothing.

use std::ffi::CStr;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};

use super::sys;
use crate::port::PortError;

/// A network device of this process's network namespace.
#[derive(Clone, Debug)]
pub struct Nic {
    pub name: String,
    pub ifindex: u32,
    pub mac: [u8; 6],
    /// Bytes of payload of the largest frame, without the Ethernet header.
    pub mtu: u32,
    /// Queues in use, not those that could be.
    pub rx_queues: u32,
    pub tx_queues: u32,
    /// Empty if the device does not say.
    pub driver: String,
    /// Whether packets that leave by the kernel's own ways have their checksums when they are out: a veth pair hands them
    /// over as they are.
    pub finishes_checksums: bool,
    /// How the device spreads flows over queues; None if it does not say (veth, for one).
    pub rss: Option<Rss>,
    /// Addresses that the kernel's stack has on the device.
    pub addresses: Vec<IpAddr>,
}

/// Receive-side scaling: which queue a flow's frames arrive on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rss {
    /// 40 or 52 bytes.
    pub key: Vec<u8>,
    /// Queue by hash; indexed by the hash's low bits, so its length is a power of two on known devices.
    pub indirection: Vec<u32>,
    /// The hash is Toeplitz's, and not made symmetric by the device; otherwise nobody can tell the queue.
    pub toeplitz: bool,
    pub tcp4: HashedFields,
    pub tcp6: HashedFields,
    pub udp4: HashedFields,
    pub udp6: HashedFields,
}

/// What of a flow goes into the hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashedFields {
    /// Both addresses and both ports.
    Ports,
    /// Both addresses only.
    Addresses,
    /// Something else, or not said.
    Unknown,
}

impl Nic {
    /// Reads the facts of the device called `name`.
    pub fn query(name: &str) -> Result<Self, PortError> {
        let what = || format!("read the facts of the device {name}");
        let fd = control_socket().map_err(|e| sys::error(what(), e, ""))?;
        if name.is_empty() || name.len() >= libc::IFNAMSIZ {
            return Err(sys::error(what(), io::Error::from_raw_os_error(libc::ENODEV), no_such_device()));
        }
        let ifindex = netdevice::name_to_index(&fd, name)
            .map_err(|e| sys::error(format!("find the network device {name}"), e.into(), no_such_device()))?;
        Self::read(&fd, name.to_owned(), ifindex).map_err(|e| sys::error(what(), e, ""))
    }

    /// Reads the facts of the device with this number.
    pub fn by_index(ifindex: u32) -> Result<Self, PortError> {
        let what = format!("find the network device number {ifindex}");
        let fd = control_socket().map_err(|e| sys::error(&what, e, ""))?;
        let name = netdevice::index_to_name(&fd, ifindex).map_err(|e| sys::error(&what, e.into(), no_such_device()))?;
        Self::read(&fd, name.clone(), ifindex).map_err(|e| sys::error(format!("read the facts of {name}"), e, ""))
    }

    fn read(fd: &OwnedFd, name: String, ifindex: u32) -> io::Result<Self> {
        let mut request = Request::new(&name);
        request.ioctl(fd, libc::SIOCGIFHWADDR as _)?;
        // SAFETY: the kernel filled this member of the union.
        let hardware = unsafe { request.0.ifr_ifru.ifru_hwaddr };
        let mut mac = [0; 6];
        for (to, from) in mac.iter_mut().zip(hardware.sa_data) {
            *to = from as u8;
        }
        request.ioctl(fd, libc::SIOCGIFMTU as _)?;
        // SAFETY: the kernel filled this member of the union.
        let mtu = unsafe { request.0.ifr_ifru.ifru_mtu } as u32;
        let (rx_queues, tx_queues) = channels(fd, &name);
        Ok(Self {
            ifindex,
            mac,
            mtu,
            rx_queues,
            tx_queues,
            finishes_checksums: driver(fd, &name) != "veth" || !leaves_checksums(fd, &name),
            driver: driver(fd, &name),
            rss: rss(fd, &name),
            addresses: kernel_addresses(&name)?,
            name,
        })
    }
}

impl Rss {
    /// Whether the queue of a TCP packet follows from key, table, addresses and ports alone. If not, the table says
    /// nothing about where a connection's packets arrive.
    pub fn tells_tcp_queues(&self) -> bool {
        self.toeplitz && self.tcp4 == HashedFields::Ports && self.tcp6 == HashedFields::Ports
    }
}

fn no_such_device() -> &'static str {
    "`ip link` lists the devices of this network namespace"
}

/// Any socket serves for ioctls on devices; this one works without the privilege to make packet sockets.
fn control_socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?)
}

/// `struct ifreq` with the device's name filled in.
struct Request(libc::ifreq);

impl Request {
    fn new(name: &str) -> Self {
        // SAFETY: all zeros is a valid ifreq: numbers, arrays and null pointers.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // The last byte stays zero: names are shorter than IFNAMSIZ, `query` saw to it and the kernel does.
        for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        Self(request)
    }

    fn ioctl(&mut self, fd: &OwnedFd, code: u64) -> io::Result<()> {
        // SAFETY: the codes used here read and write one ifreq (and, for ethtool, what ifru_data points to, which
        // `ethtool` below keeps alive and long enough).
        let rc = unsafe { libc::ioctl(fd.as_raw_fd(), code as _, &raw mut self.0) };
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

const SIOCETHTOOL: u64 = 0x8946;
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GTXCSUM: u32 = 0x16;
const ETHTOOL_GRXFH: u32 = 0x29;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETHTOOL_GRSSH: u32 = 0x46;

/// Runs one ethtool command on a buffer of 32-bit words, which must be as long as the command's structure.
fn ethtool(fd: &OwnedFd, name: &str, words: &mut [u32]) -> io::Result<()> {
    let mut request = Request::new(name);
    request.0.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
    request.ioctl(fd, SIOCETHTOOL)
}

/// Receive and transmit queues in use.
fn channels(fd: &OwnedFd, name: &str) -> (u32, u32) {
    // struct ethtool_channels: cmd, max rx tx other combined, then the same four in use.
    let mut words = [0; 9];
    words[0] = ETHTOOL_GCHANNELS;
    if ethtool(fd, name, &mut words).is_ok() {
        let [rx, tx, _, combined] = [words[5], words[6], words[7], words[8]];
        if rx + combined > 0 {
            return (rx + combined, (tx + combined).max(1));
        }
    }
    // Drivers that have one queue do not answer. sysfs shows the namespace that it was mounted in, so it is only a
    // second choice.
    let count = |kind: &str| {
        let entries = std::fs::read_dir(format!("/sys/class/net/{name}/queues")).into_iter().flatten().flatten();
        entries.filter(|e| e.file_name().to_string_lossy().starts_with(kind)).count().max(1) as u32
    };
    (count("rx-"), count("tx-"))
}

fn driver(fd: &OwnedFd, name: &str) -> String {
    // struct ethtool_drvinfo: cmd, char driver[32], …; 196 bytes.
    let mut words = [0; 49];
    words[0] = ETHTOOL_GDRVINFO;
    if ethtool(fd, name, &mut words).is_err() {
        return String::new();
    }
    let bytes: Vec<u8> = words[1..9].iter().flat_map(|w| w.to_ne_bytes()).take_while(|&b| b != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whether the kernel leaves checksums to the device.
fn leaves_checksums(fd: &OwnedFd, name: &str) -> bool {
    // struct ethtool_value.
    let mut words = [ETHTOOL_GTXCSUM, 0];
    ethtool(fd, name, &mut words).is_err() || words[1] != 0
}

fn rss(fd: &OwnedFd, name: &str) -> Option<Rss> {
    // struct ethtool_rxfh: cmd, context, indir_size, key_size, hfunc + input_xfrm + reserved, reserved; then the
    // indirection table in words and the key in bytes. Sizes of zero ask for the sizes.
    const HEAD: usize = 6;
    // Tables are at most a few thousand entries on any device; more is nonsense that must not become an allocation.
    const LIMIT: u32 = 1 << 16;
    let mut sizes = [ETHTOOL_GRSSH, 0, 0, 0, 0, 0];
    ethtool(fd, name, &mut sizes).ok()?;
    let (indirection, key) = (sizes[2], sizes[3]);
    if indirection == 0 || key == 0 || indirection > LIMIT || key > LIMIT {
        return None;
    }
    let mut words = vec![0; HEAD + indirection as usize + (key as usize).div_ceil(4)];
    words[..HEAD].copy_from_slice(&[ETHTOOL_GRSSH, 0, indirection, key, 0, 0]);
    ethtool(fd, name, &mut words).ok()?;
    let [hash_function, transformation, ..] = words[4].to_ne_bytes();
    let (table, key_words) = words[HEAD..].split_at(indirection as usize);
    let mut key_bytes: Vec<u8> = key_words.iter().flat_map(|w| w.to_ne_bytes()).collect();
    key_bytes.truncate(key as usize);
    Some(Rss {
        key: key_bytes,
        indirection: table.to_vec(),
        // ETH_RSS_HASH_TOP is bit 0; drivers that leave the field zero mean it too (older kernels).
        toeplitz: hash_function & !1 == 0 && transformation == 0,
        tcp4: hashed_fields(fd, name, 0x01),
        udp4: hashed_fields(fd, name, 0x02),
        tcp6: hashed_fields(fd, name, 0x05),
        udp6: hashed_fields(fd, name, 0x06),
    })
}

/// ETHTOOL_GRXFH for a flow type (TCP_V4_FLOW 1, UDP_V4_FLOW 2, TCP_V6_FLOW 5, UDP_V6_FLOW 6).
fn hashed_fields(fd: &OwnedFd, name: &str, flow: u32) -> HashedFields {
    // RXH_IP_SRC 16, RXH_IP_DST 32, RXH_L4_B_0_1 (source port) 64, RXH_L4_B_2_3 128.
    const ADDRESSES: u64 = 16 | 32;
    const PORTS: u64 = ADDRESSES | 64 | 128;
    // struct ethtool_rxnfc: cmd, flow_type, u64 data, …; 192 bytes.
    let mut words = [0; 48];
    words[0] = ETHTOOL_GRXFH;
    words[1] = flow;
    if ethtool(fd, name, &mut words).is_err() {
        return HashedFields::Unknown;
    }
    let [a, b, c, d] = words[2].to_ne_bytes();
    let [e, f, g, h] = words[3].to_ne_bytes();
    match u64::from_ne_bytes([a, b, c, d, e, f, g, h]) {
        PORTS => HashedFields::Ports,
        ADDRESSES => HashedFields::Addresses,
        _ => HashedFields::Unknown,
    }
}

/// The addresses of one device, by getifaddrs(3).
fn kernel_addresses(name: &str) -> io::Result<Vec<IpAddr>> {
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: `list` is a valid place for the result.
    if unsafe { libc::getifaddrs(&raw mut list) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut addresses = Vec::new();
    let mut at = list;
    // SAFETY: `at` walks the list that getifaddrs made, which is valid until freeifaddrs below.
    while let Some(entry) = unsafe { at.as_ref() } {
        // SAFETY: names in the list are C strings.
        let same = unsafe { CStr::from_ptr(entry.ifa_name) }.to_bytes() == name.as_bytes();
        if same && !entry.ifa_addr.is_null() {
            // SAFETY: every sockaddr begins with its family, and the family says which structure is there. The
            // structures may lie unaligned.
            unsafe {
                match i32::from((*entry.ifa_addr).sa_family) {
                    libc::AF_INET => {
                        let v4 = entry.ifa_addr.cast::<libc::sockaddr_in>().read_unaligned();
                        addresses.push(IpAddr::V4(Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes())));
                    }
                    libc::AF_INET6 => {
                        let v6 = entry.ifa_addr.cast::<libc::sockaddr_in6>().read_unaligned();
                        addresses.push(IpAddr::V6(Ipv6Addr::from(v6.sin6_addr.s6_addr)));
                    }
                    _ => {}
                }
            }
        }
        at = entry.ifa_next;
    }
    // SAFETY: the list came from getifaddrs and nothing refers to it any more.
    unsafe { libc::freeifaddrs(list) };
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_facts() {
        let lo = Nic::query("lo").unwrap();
        assert_eq!(lo.mac, [0; 6]);
        assert!(lo.mtu >= 1_500 && lo.rx_queues == 1);
        assert_eq!(Nic::by_index(lo.ifindex).unwrap().name, "lo");
    }

    #[test]
    fn a_missing_device_is_named() {
        let error = Nic::query("no-such-nic").unwrap_err().to_string();
        assert!(error.contains("no-such-nic") && error.contains("ip link"), "{error}");
        assert!(Nic::query("a-name-far-too-long-for-a-device").is_err());
    }
}
