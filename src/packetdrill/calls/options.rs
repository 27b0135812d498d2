//! setsockopt() and getsockopt(): what the stack knows goes to the slot; the rest is kept as it was set.

use sidestep_client::shm::slot::option;
use sidestep_client::{Number, Session};

use super::super::script::Expression;
use super::super::world::World;
use super::arguments::{field, number};
use super::sockets::{BITS, NUMBERS, expect};
use super::{Attempt, Call, Calls, fails, gives, socket};

enum Meaning {
    Bit(u32),
    Number(Number, std::ops::RangeInclusive<i64>),
}

/// What an option is on the slot, with the values that Linux takes.
fn meaning(level: i32, name: i32) -> Option<Meaning> {
    use Meaning::Bit;
    let number = |which, from, to| Some(Meaning::Number(which, from..=to));
    match (level, name) {
        (libc::IPPROTO_TCP, libc::TCP_NODELAY) => Some(Bit(option::NO_DELAY)),
        (libc::IPPROTO_TCP, libc::TCP_CORK) => Some(Bit(option::CORK)),
        (libc::IPPROTO_TCP, libc::TCP_QUICKACK) => Some(Bit(option::QUICK_ACK)),
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE) => Some(Bit(option::KEEP_ALIVE)),
        (libc::SOL_SOCKET, libc::SO_REUSEADDR) => Some(Bit(option::REUSE_ADDRESS)),
        (libc::SOL_SOCKET, libc::SO_REUSEPORT) => Some(Bit(option::REUSE_PORT)),
        (libc::SOL_SOCKET, libc::SO_BROADCAST) => Some(Bit(option::BROADCAST)),
        (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY) => Some(Bit(option::V6_ONLY)),
        (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE) => number(Number::KeepIdle, 1, 32_767),
        (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL) => number(Number::KeepInterval, 1, 32_767),
        (libc::IPPROTO_TCP, libc::TCP_KEEPCNT) => number(Number::KeepCount, 1, 127),
        (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT) => number(Number::UserTimeout, 0, i64::from(i32::MAX)),
        (libc::IPPROTO_TCP, libc::TCP_MAXSEG) => number(Number::MaxSegment, 88, 32_767),
        (libc::IPPROTO_IP, libc::IP_TOS) | (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => number(Number::Tos, -1, 255),
        (libc::IPPROTO_IP, libc::IP_TTL) => number(Number::Ttl, 1, 255),
        (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS) => number(Number::Ttl, -1, 255),
        _ => None,
    }
}

/// Gives a new connection the options of its listener.
pub(super) fn inherit(session: &Session, from: u32, to: u32) {
    for bit in BITS {
        let _ = session.set_option(to, bit, session.option(from, bit));
    }
    for which in NUMBERS {
        let _ = session.set_number(to, which, session.number(from, which));
    }
}

impl Calls {
    pub(super) fn setsockopt(&mut self, world: &mut World, call: &Call) -> Attempt {
        let sock = socket!(self, call.number(world, 0)?);
        let (level, name) = (call.number(world, 1)?, call.number(world, 2)?);
        let (session, slot) = (&world.session, sock.slot);
        let argument = call.argument(3)?;
        if let Some(on) = field(argument, "onoff").or_else(|| field(argument, "l_onoff")) {
            let seconds = field(argument, "linger").or_else(|| field(argument, "l_linger"));
            let seconds = seconds.map_or(Ok(0), |s| number(world, s))?;
            let value = if number(world, on)? == 0 { 0 } else { u32::try_from(seconds).unwrap_or(0).saturating_add(1) };
            return done(session.set_number(slot, Number::Linger, value));
        }
        if let Expression::Text(text) = argument {
            return text_option(world, level as i32, name as i32, text);
        }
        let value = number(world, argument)?;
        match meaning(level as i32, name as i32) {
            Some(Meaning::Bit(bit)) => {
                sock.options.insert((level, name), i64::from(value != 0));
                done(session.set_option(slot, bit, value != 0))
            }
            Some(Meaning::Number(_, range)) if !range.contains(&value) => fails(libc::EINVAL),
            Some(Meaning::Number(which, _)) => {
                sock.options.insert((level, name), value);
                done(session.set_number(slot, which, u32::try_from(value).unwrap_or(0)))
            }
            None => match (level as i32, name as i32) {
                (libc::SOL_SOCKET, libc::SO_ZEROCOPY) => fails(libc::EOPNOTSUPP),
                (libc::IPPROTO_TCP, libc::TCP_FASTOPEN | libc::TCP_FASTOPEN_CONNECT | libc::TCP_MD5SIG) => {
                    Err("TCP Fast Open and MD5 signatures are not supported".into())
                }
                _ => {
                    sock.options.insert((level, name), value);
                    gives(0)
                }
            },
        }
    }

    pub(super) fn getsockopt(&mut self, world: &mut World, call: &Call) -> Attempt {
        let sock = socket!(self, call.number(world, 0)?);
        let (level, name) = (call.number(world, 1)?, call.number(world, 2)?);
        let (session, slot) = (&world.session, sock.slot);
        let number_of = |level: i64, name: i64| sock.options.get(&(level, name)).copied();
        let answer = match (level as i32, name as i32) {
            (libc::SOL_SOCKET, libc::SO_ERROR) => {
                let error = session.take_error(slot);
                sock.connecting &= error == 0;
                i64::from(error)
            }
            (libc::SOL_SOCKET, libc::SO_ACCEPTCONN) => i64::from(session.is_listening(slot)),
            (libc::SOL_SOCKET, libc::SO_TYPE) => {
                if sock.datagram {
                    2
                } else {
                    1
                }
            }
            (libc::IPPROTO_TCP, libc::TCP_MAXSEG) => {
                world.tcp_info(Some(slot)).map_or(536, |info| i64::from(info.send_mss))
            }
            (libc::IPPROTO_IP, libc::IP_TTL) => number_of(level, name).unwrap_or(64),
            (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS) => number_of(level, name).unwrap_or(64),
            (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE) => number_of(level, name).unwrap_or(7200),
            (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL) => number_of(level, name).unwrap_or(75),
            (libc::IPPROTO_TCP, libc::TCP_KEEPCNT) => number_of(level, name).unwrap_or(9),
            _ => number_of(level, name).unwrap_or(0),
        };
        expect(world, "the option is", call.argument(3)?, answer)?;
        gives(0)
    }
}

/// TCP_CONGESTION.
fn text_option(_world: &World, level: i32, name: i32, text: &str) -> Attempt {
    match (level, name) {
        (libc::IPPROTO_TCP, libc::TCP_CONGESTION) if text == "cubic" || text == "reno" => gives(0),
        (libc::IPPROTO_TCP, libc::TCP_CONGESTION) => fails(libc::ENOENT),
        _ => Err(format!("setsockopt() with the text {text:?} is not supported")),
    }
}

fn done(outcome: Result<(), sidestep_client::Errno>) -> Attempt {
    match outcome {
        Ok(()) => gives(0),
        Err(error) => fails(error.raw_os_error()),
    }
}
