//! setsockopt(2) and getsockopt(2) by Linux's numbers: what the stack knows, with Linux's ranges and errors.
//!
//! An option that isn't here fails with ENOPROTOOPT: whoever offers Linux's calls on top of this decides what else it
//! can answer for.

use core::sync::atomic::Ordering;

use rustix::io::Errno;
use sidestep_shm::Slot;
use sidestep_shm::slot::{CONGESTION, option, status};

use crate::address::is_udp;
use crate::session::Session;
use crate::socket::Number;

/// Least receive and send buffer as they are asked for: half of SOCK_MIN_RCVBUF and SOCK_MIN_SNDBUF of Linux.
const LEAST_BUFFER: [u32; 2] = [1152, 2304];
/// Most that a program may ask for, where Linux has net.core.rmem_max and wmem_max.
const MOST_BUFFER: u32 = 64 << 20;
/// What SO_RCVBUF and SO_SNDBUF say of a socket that nothing was set on and that isn't connected: the initial sizes.
const INITIAL_BUFFER: u32 = 131_072;
/// TCP_MAXSEG: TCP_MIN_MSS and MAX_TCP_WINDOW of Linux.
const SEGMENT: core::ops::RangeInclusive<i64> = 88..=32_767;
/// Longest TCP_LINGER2, and its default, in seconds.
const LONGEST_LINGER2: i64 = 120;
const DEFAULT_LINGER2: i32 = 60;
/// Of linux/tcp.h.
const TCP_FASTOPEN_NO_COOKIE: i32 = 34;
/// TCP_CA_NAME_MAX of Linux.
const NAME_BYTES: usize = 16;
/// tcpi_pmtu and tcpi_notsent_bytes in `struct tcp_info`.
const PATH_MTU_AT: usize = 60;
const NOT_SENT_AT: usize = 144;

/// An option with its value, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// A [`sidestep_shm::slot::option`] bit.
    Bit(u32, bool),
    Number(Number, u32),
}

/// Bits of options that a [`Setting`] may name.
const BITS: usize = 14;
/// Numbers, in the order of their [`Setting::index`].
const NUMBERS: [Number; 20] = [
    Number::KeepIdle,
    Number::KeepInterval,
    Number::KeepCount,
    Number::UserTimeout,
    Number::Linger,
    Number::Tos,
    Number::Ttl,
    Number::MaxSegment,
    Number::ReceiveBuffer,
    Number::SendBuffer,
    Number::WindowClamp,
    Number::NotSentLowat,
    Number::ReceiveLowat,
    Number::MaxPacingRate,
    Number::SynRetries,
    Number::DeferAccept,
    Number::Linger2,
    Number::MtuDiscovery,
    Number::Congestion,
    Number::FastOpen,
];

impl Setting {
    /// How many different ones there are: for tables of what was set.
    pub const COUNT: usize = BITS + NUMBERS.len();

    /// Which one it is, below [`Self::COUNT`].
    #[must_use]
    pub fn index(self) -> usize {
        match self {
            Self::Bit(bit, _) => (bit.trailing_zeros() as usize).min(BITS - 1),
            Self::Number(which, _) => BITS + NUMBERS.iter().position(|n| *n == which).unwrap_or(0),
        }
    }

    /// Its value; with the index, all of it.
    #[must_use]
    pub const fn value(self) -> u32 {
        match self {
            Self::Bit(_, on) => on as u32,
            Self::Number(_, number) => number,
        }
    }

    /// The setting that has this index and value. None: the index is too large.
    #[must_use]
    pub fn restore(index: usize, value: u32) -> Option<Self> {
        match index.checked_sub(BITS) {
            None => Some(Self::Bit(1 << index, value != 0)),
            Some(at) => NUMBERS.get(at).map(|which| Self::Number(*which, value)),
        }
    }

    /// Reads what a program hands to setsockopt(). None: not an option of the stack's.
    ///
    /// # Errors
    /// EINVAL: too short, or out of range. ENOENT: no such congestion control.
    pub fn parse(level: i32, name: i32, value: &[u8]) -> Result<Option<Self>, Errno> {
        use Number as N;
        let bit = |bit| Ok(Some(Self::Bit(bit, int(value)? != 0)));
        let put = |which, number| Ok(Some(Self::Number(which, number)));
        let within = |which, range: core::ops::RangeInclusive<i64>| {
            let number = i64::from(int(value)?);
            if range.contains(&number) { put(which, number as u32) } else { Err(Errno::INVAL) }
        };
        // -1 gives the default back, which is 0 here.
        let or_default = |which, most: i64| {
            let number = i64::from(byte_or_int(value)?);
            if (-1..=most).contains(&number) { put(which, number.max(0) as u32) } else { Err(Errno::INVAL) }
        };
        match (level, name) {
            (libc::IPPROTO_TCP, libc::TCP_NODELAY) => bit(option::NO_DELAY),
            (libc::IPPROTO_TCP, libc::TCP_CORK) => bit(option::CORK),
            (libc::IPPROTO_TCP, libc::TCP_QUICKACK) => bit(option::QUICK_ACK),
            (libc::IPPROTO_TCP, libc::TCP_INQ) => match int(value)? {
                0 | 1 => bit(option::TELL_QUEUE),
                _ => Err(Errno::INVAL),
            },
            (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE) => within(N::KeepIdle, 1..=32_767),
            (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL) => within(N::KeepInterval, 1..=32_767),
            (libc::IPPROTO_TCP, libc::TCP_KEEPCNT) => within(N::KeepCount, 1..=127),
            (libc::IPPROTO_TCP, libc::TCP_SYNCNT) => within(N::SynRetries, 1..=127),
            (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT) => within(N::UserTimeout, 0..=i64::from(i32::MAX)),
            (libc::IPPROTO_TCP, libc::TCP_MAXSEG) => match int(value)? {
                0 => put(N::MaxSegment, 0),
                _ => within(N::MaxSegment, SEGMENT),
            },
            (libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP) => {
                let clamp = int(value)?.cast_unsigned();
                put(N::WindowClamp, if clamp == 0 { 0 } else { clamp.clamp(LEAST_BUFFER[0], i32::MAX as u32) })
            }
            (libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT) => put(N::NotSentLowat, int(value)?.cast_unsigned()),
            (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT) => put(N::DeferAccept, int(value)?.clamp(0, 255) as u32),
            (libc::IPPROTO_TCP, libc::TCP_LINGER2) => {
                put(N::Linger2, i64::from(int(value)?).clamp(-1, LONGEST_LINGER2) as i32 as u32)
            }
            (libc::IPPROTO_TCP, libc::TCP_CONGESTION) => {
                if value.is_empty() {
                    return Err(Errno::INVAL);
                }
                let name = value.split(|b| *b == 0).next().unwrap_or_default();
                let found = CONGESTION.iter().position(|known| known.as_bytes() == name).ok_or(Errno::NOENT)?;
                put(N::Congestion, found as u32 + 1)
            }
            (libc::IPPROTO_TCP, libc::TCP_FASTOPEN) => match int(value)? {
                queue @ 0.. => put(N::FastOpen, queue.min(0xffff).cast_unsigned()),
                _ => Err(Errno::INVAL),
            },
            (libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT) => match int(value)? {
                0 | 1 => bit(option::FAST_OPEN),
                _ => Err(Errno::INVAL),
            },
            (libc::IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE) => match int(value)? {
                0 | 1 => bit(option::NO_COOKIE),
                _ => Err(Errno::INVAL),
            },
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE) => bit(option::KEEP_ALIVE),
            (libc::SOL_SOCKET, libc::SO_REUSEADDR) => bit(option::REUSE_ADDRESS),
            (libc::SOL_SOCKET, libc::SO_REUSEPORT) => bit(option::REUSE_PORT),
            (libc::SOL_SOCKET, libc::SO_BROADCAST) => bit(option::BROADCAST),
            (libc::SOL_SOCKET, libc::SO_ZEROCOPY) => match int(value)? {
                0 | 1 => bit(option::ZERO_COPY),
                _ => Err(Errno::INVAL),
            },
            (libc::SOL_SOCKET, libc::SO_RCVBUF | libc::SO_RCVBUFFORCE) => {
                put(N::ReceiveBuffer, int(value)?.cast_unsigned().clamp(LEAST_BUFFER[0], MOST_BUFFER))
            }
            (libc::SOL_SOCKET, libc::SO_SNDBUF | libc::SO_SNDBUFFORCE) => {
                put(N::SendBuffer, int(value)?.cast_unsigned().clamp(LEAST_BUFFER[1], MOST_BUFFER))
            }
            (libc::SOL_SOCKET, libc::SO_RCVLOWAT) => {
                let least = int(value)?;
                put(N::ReceiveLowat, if least < 0 { i32::MAX as u32 } else { least as u32 })
            }
            (libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE) => {
                let rate = match value.first_chunk() {
                    Some(long) => u64::from_ne_bytes(*long),
                    None => u64::from(int(value)?.cast_unsigned()),
                };
                // All ones, in either width, is "no bound"; so is what no link of ours reaches.
                put(N::MaxPacingRate, u32::try_from(rate).ok().filter(|r| *r != u32::MAX).unwrap_or(0))
            }
            (libc::SOL_SOCKET, libc::SO_LINGER) => {
                let (Some(on), Some(seconds)) = (value.first_chunk(), value.get(4..).and_then(<[u8]>::first_chunk))
                else {
                    return Err(Errno::INVAL);
                };
                let seconds = i32::from_ne_bytes(*seconds).max(0).cast_unsigned();
                put(N::Linger, if i32::from_ne_bytes(*on) == 0 { 0 } else { seconds + 1 })
            }
            (libc::IPPROTO_IP, libc::IP_TOS) => put(N::Tos, (byte_or_int(value)? & 0xff).cast_unsigned()),
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => or_default(N::Tos, 255),
            (libc::IPPROTO_IP, libc::IP_TTL) => match byte_or_int(value)? {
                0 => Err(Errno::INVAL),
                _ => or_default(N::Ttl, 255),
            },
            (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS | libc::IPV6_MULTICAST_HOPS) => or_default(N::Ttl, 255),
            (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY) => bit(option::V6_ONLY),
            (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER) | (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER) => {
                match byte_or_int(value)? {
                    how @ 0..=5 => put(N::MtuDiscovery, how.cast_unsigned() + 1),
                    _ => Err(Errno::INVAL),
                }
            }
            _ => Ok(None),
        }
    }
}

/// The int that nearly every option is.
fn int(value: &[u8]) -> Result<i32, Errno> {
    value.first_chunk().map(|b| i32::from_ne_bytes(*b)).ok_or(Errno::INVAL)
}

/// Options of IP take a single byte too, and what is shorter than an int for one; nothing at all for 0.
fn byte_or_int(value: &[u8]) -> Result<i32, Errno> {
    match value {
        [] => Ok(0),
        [byte] | [byte, _] | [byte, _, _] => Ok(i32::from(*byte)),
        _ => int(value),
    }
}

impl Session {
    /// setsockopt(2).
    ///
    /// # Errors
    /// ENOPROTOOPT: not an option of the stack's, or not of UDP. EINVAL, ENOENT as [`Setting::parse`]; EINVAL too for a
    /// TCP_WINDOW_CLAMP of 0 once connected.
    pub fn setsockopt(&self, slot: u32, level: i32, name: i32, value: &[u8]) -> Result<(), Errno> {
        let shared = self.slot(slot)?;
        let setting = Setting::parse(level, name, value)?.ok_or(Errno::NOPROTOOPT)?;
        if level == libc::IPPROTO_TCP && is_udp(shared.kind.load(Ordering::Relaxed)) {
            return Err(Errno::NOPROTOOPT);
        }
        if matches!(setting, Setting::Bit(option::ZERO_COPY, _)) && is_udp(shared.kind.load(Ordering::Relaxed)) {
            // Datagrams give no notice.
            return Err(Errno::OPNOTSUPP);
        }
        if matches!(setting, Setting::Bit(option::V6_ONLY, _))
            && shared.status.load(Ordering::Relaxed) & status::BOUND != 0
        {
            return Err(Errno::INVAL);
        }
        // The two bits of ECN are TCP's own.
        let setting = match setting {
            Setting::Number(Number::Tos, tos) if !is_udp(shared.kind.load(Ordering::Relaxed)) => {
                Setting::Number(Number::Tos, tos & !3)
            }
            other => other,
        };
        if setting == Setting::Number(Number::WindowClamp, 0)
            && shared.status.load(Ordering::Relaxed) & (status::CONNECTED | status::CONNECTING) != 0
        {
            return Err(Errno::INVAL);
        }
        self.set(slot, setting)
    }

    /// Applies an option that was parsed before.
    ///
    /// # Errors
    /// EBADF: no such slot.
    pub fn set(&self, slot: u32, setting: Setting) -> Result<(), Errno> {
        match setting {
            Setting::Bit(bit, on) => self.set_option(slot, bit, on),
            Setting::Number(which, number) => self.set_number(slot, which, number),
        }
    }

    /// getsockopt(2): writes the value to the front of `out` and returns its length. What doesn't fit is cut, as on
    /// Linux.
    ///
    /// # Errors
    /// ENOPROTOOPT: not an option of the stack's. ENOTCONN: IP_MTU before there is a path.
    pub fn getsockopt(&self, slot: u32, level: i32, name: i32, out: &mut [u8]) -> Result<usize, Errno> {
        let shared = self.slot(slot)?;
        let udp = is_udp(shared.kind.load(Ordering::Relaxed));
        if udp && level == libc::IPPROTO_TCP {
            return Err(Errno::NOPROTOOPT);
        }
        let number = match (level, name) {
            (libc::IPPROTO_TCP, libc::TCP_INFO) => return Ok(copy(&self.tcp_info(slot)?, out)),
            (libc::IPPROTO_TCP, libc::TCP_CONGESTION) => {
                let mut text = [0; NAME_BYTES];
                let chosen = (shared.congestion.load(Ordering::Relaxed) as usize).saturating_sub(1);
                let known = CONGESTION.get(chosen).copied().unwrap_or(CONGESTION[0]).as_bytes();
                text[..known.len()].copy_from_slice(known);
                return Ok(copy(&text, out));
            }
            (libc::SOL_SOCKET, libc::SO_LINGER) => {
                let linger = shared.linger.load(Ordering::Relaxed);
                let mut value = [0; 8];
                value[..4].copy_from_slice(&i32::from(linger != 0).to_ne_bytes());
                value[4..].copy_from_slice(&linger.saturating_sub(1).to_ne_bytes());
                return Ok(copy(&value, out));
            }
            (libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE) => {
                let rate = shared.max_pacing_rate.load(Ordering::Relaxed);
                if out.len() >= 8 {
                    let rate = if rate == 0 { u64::MAX } else { rate.into() };
                    return Ok(copy(&rate.to_ne_bytes(), out));
                }
                (if rate == 0 { u32::MAX } else { rate }).cast_signed()
            }
            (libc::SOL_SOCKET, libc::SO_ERROR) => self.take_error(slot).cast_signed(),
            (libc::SOL_SOCKET, libc::SO_ACCEPTCONN) => i32::from(self.is_listening(slot)),
            // Which of the engine's shards serves it: what programs that spread their work use the NIC's queue for.
            (libc::SOL_SOCKET, libc::SO_INCOMING_NAPI_ID) => {
                let open = shared.status.load(Ordering::Relaxed) & status::CONNECTED != 0;
                if open { shared.shard.load(Ordering::Relaxed).cast_signed().wrapping_add(1) } else { 0 }
            }
            (libc::IPPROTO_IP, libc::IP_MTU) | (libc::IPPROTO_IPV6, libc::IPV6_MTU) if !udp => {
                match word(&self.tcp_info(slot)?, PATH_MTU_AT) {
                    0 => return Err(Errno::NOTCONN),
                    mtu => mtu.cast_signed(),
                }
            }
            _ => self.number_option(shared, level, name).ok_or(Errno::NOPROTOOPT)?,
        };
        Ok(copy(&number.to_ne_bytes(), out))
    }

    /// Bytes that were written and never sent (SIOCOUTQNSD).
    ///
    /// # Errors
    /// As [`Self::tcp_info`].
    pub fn not_sent(&self, slot: u32) -> Result<u32, Errno> {
        self.tcp_info(slot).map(|info| word(&info, NOT_SENT_AT))
    }

    /// Options that are a number, as they stand in the slot.
    fn number_option(&self, shared: &Slot, level: i32, name: i32) -> Option<i32> {
        let load = |word: &sidestep_shm::sync::AtomicU32| word.load(Ordering::Relaxed);
        let bit = |bit| i32::from(load(&shared.options) & bit != 0);
        let or = |word, default: i32| match load(word) {
            0 => default,
            number => number.cast_signed(),
        };
        let v6 = !crate::address::is_v4(load(&shared.kind));
        Some(match (level, name) {
            (libc::IPPROTO_TCP, libc::TCP_NODELAY) => bit(option::NO_DELAY),
            (libc::IPPROTO_TCP, libc::TCP_CORK) => bit(option::CORK),
            (libc::IPPROTO_TCP, libc::TCP_QUICKACK) => 1,
            (libc::IPPROTO_TCP, libc::TCP_INQ) => bit(option::TELL_QUEUE),
            (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE) => or(&shared.keep_idle_s, 7200),
            (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL) => or(&shared.keep_interval_s, 75),
            (libc::IPPROTO_TCP, libc::TCP_KEEPCNT) => or(&shared.keep_count, 9),
            (libc::IPPROTO_TCP, libc::TCP_SYNCNT) => or(&shared.syn_retries, 6),
            (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT) => or(&shared.user_timeout_ms, 0),
            // As Linux: what was asked for, until there is a connection.
            (libc::IPPROTO_TCP, libc::TCP_MAXSEG) => or(&shared.send_mss, or(&shared.max_segment, 536)),
            (libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP) => or(&shared.window_clamp, or(&shared.rx_limit, 0)),
            (libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT) => or(&shared.notsent_lowat, 0),
            (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT) => defer_seconds(load(&shared.defer_accept)),
            (libc::IPPROTO_TCP, libc::TCP_LINGER2) => or(&shared.linger2, DEFAULT_LINGER2),
            (libc::IPPROTO_TCP, libc::TCP_FASTOPEN) => or(&shared.fast_open, 0),
            (libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT) => bit(option::FAST_OPEN),
            (libc::IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE) => bit(option::NO_COOKIE),
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE) => bit(option::KEEP_ALIVE),
            (libc::SOL_SOCKET, libc::SO_REUSEADDR) => bit(option::REUSE_ADDRESS),
            (libc::SOL_SOCKET, libc::SO_REUSEPORT) => bit(option::REUSE_PORT),
            (libc::SOL_SOCKET, libc::SO_BROADCAST) => bit(option::BROADCAST),
            (libc::SOL_SOCKET, libc::SO_ZEROCOPY) => bit(option::ZERO_COPY),
            // Twice what was asked for (socket(7)); of one that grows by itself, likewise.
            (libc::SOL_SOCKET, libc::SO_RCVBUF) => doubled(load(&shared.receive_buffer), load(&shared.rx_limit)),
            (libc::SOL_SOCKET, libc::SO_SNDBUF) => doubled(load(&shared.send_buffer), load(&shared.tx_limit)),
            (libc::SOL_SOCKET, libc::SO_RCVLOWAT) => or(&shared.receive_lowat, 1),
            (libc::IPPROTO_IP, libc::IP_TOS) | (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => or(&shared.tos, 0),
            (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS) => or(&shared.ttl, 64),
            (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS) => or(&shared.ttl, 1),
            (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY) if v6 => bit(option::V6_ONLY),
            (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER) | (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER) => {
                or(&shared.mtu_discovery, 2) - 1
            }
            _ => return None,
        })
    }
}

fn doubled(asked: u32, present: u32) -> i32 {
    match (asked, present) {
        (0, 0) => INITIAL_BUFFER.cast_signed(),
        (0, present) => i32::try_from(present.saturating_mul(2)).unwrap_or(i32::MAX),
        (asked, _) => i32::try_from(asked.saturating_mul(2)).unwrap_or(i32::MAX),
    }
}

/// Linux keeps TCP_DEFER_ACCEPT as a number of retransmissions and gives back the time that these take.
fn defer_seconds(asked: u32) -> i32 {
    let (mut timeout, mut total) = (1, 1);
    if asked == 0 {
        return 0;
    }
    while total < asked {
        timeout = (timeout * 2).min(120);
        total += timeout;
    }
    total.cast_signed()
}

fn copy(value: &[u8], out: &mut [u8]) -> usize {
    let n = value.len().min(out.len());
    out[..n].copy_from_slice(&value[..n]);
    n
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u32::from_ne_bytes(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(level: i32, name: i32, value: i32) -> Result<Option<Setting>, Errno> {
        Setting::parse(level, name, &value.to_ne_bytes())
    }

    #[test]
    fn ranges_are_linuxs() {
        let tcp = |name, value| parse(libc::IPPROTO_TCP, name, value);
        assert_eq!(tcp(libc::TCP_MAXSEG, 87), Err(Errno::INVAL));
        assert_eq!(tcp(libc::TCP_MAXSEG, 88), Ok(Some(Setting::Number(Number::MaxSegment, 88))));
        assert_eq!(tcp(libc::TCP_KEEPIDLE, 0), Err(Errno::INVAL));
        assert_eq!(tcp(libc::TCP_SYNCNT, 128), Err(Errno::INVAL));
        assert_eq!(tcp(libc::TCP_LINGER2, -7), Ok(Some(Setting::Number(Number::Linger2, u32::MAX))));
        assert_eq!(tcp(libc::TCP_LINGER2, 500), Ok(Some(Setting::Number(Number::Linger2, 120))));
        assert_eq!(tcp(libc::TCP_INQ, 2), Err(Errno::INVAL));
        assert_eq!(tcp(libc::TCP_MD5SIG, 0), Ok(None));
        let socket = |name, value| parse(libc::SOL_SOCKET, name, value);
        assert_eq!(socket(libc::SO_SNDBUF, 1), Ok(Some(Setting::Number(Number::SendBuffer, 2304))));
        assert_eq!(socket(libc::SO_RCVBUF, -1), Ok(Some(Setting::Number(Number::ReceiveBuffer, MOST_BUFFER))));
        assert_eq!(socket(libc::SO_MAX_PACING_RATE, -1), Ok(Some(Setting::Number(Number::MaxPacingRate, 0))));
        assert_eq!(Setting::parse(libc::SOL_SOCKET, libc::SO_RCVBUF, &[1, 2]), Err(Errno::INVAL));
        assert_eq!(Setting::parse(libc::IPPROTO_IP, libc::IP_TOS, &[0x10]), Ok(Some(Setting::Number(Number::Tos, 16))));
        assert_eq!(parse(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, 6), Err(Errno::INVAL));
        let congestion = |name: &[u8]| Setting::parse(libc::IPPROTO_TCP, libc::TCP_CONGESTION, name);
        assert_eq!(congestion(b"reno"), Ok(Some(Setting::Number(Number::Congestion, 2))));
        assert_eq!(congestion(b"cubic\0rest"), Ok(Some(Setting::Number(Number::Congestion, 1))));
        assert_eq!(congestion(b"vegas"), Err(Errno::NOENT));
    }

    #[test]
    fn settings_can_be_kept_as_index_and_value() {
        for index in 0..Setting::COUNT {
            let setting = Setting::restore(index, 1).unwrap();
            assert_eq!((setting.index(), setting.value()), (index, 1));
        }
        assert_eq!(Setting::restore(Setting::COUNT, 1), None);
    }

    #[test]
    fn deferring_is_told_in_retransmissions() {
        assert_eq!([0, 1, 2, 3, 4, 8, 100].map(defer_seconds), [0, 1, 3, 3, 7, 15, 127]);
    }
}
