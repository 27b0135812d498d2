//! setsockopt() and getsockopt(): the client's table, and what is only kept.

use sidestep_client::Errno;

use super::super::script::Expression;
use super::super::world::World;
use super::arguments::{field, number};
use super::sockets::expect;
use super::{Attempt, Call, Calls, fails, gives, socket};

/// Of linux/tcp.h.
const TCP_FASTOPEN_KEY: i32 = 33;
/// Most bytes of an option's value.
const LARGEST: usize = 256;

impl Calls {
    pub(super) fn setsockopt(&mut self, world: &mut World, call: &Call) -> Attempt {
        let sock = socket!(self, call.number(world, 0)?);
        let (level, name) = (call.number(world, 1)?, call.number(world, 2)?);
        let value = bytes_of(world, call.argument(3)?, call.number(world, 4)?)?;
        match world.session.setsockopt(sock.slot, level as i32, name as i32, &value) {
            Ok(()) => gives(0),
            Err(Errno::NOPROTOOPT) => match (level as i32, name as i32) {
                (libc::IPPROTO_TCP, TCP_FASTOPEN_KEY) if !matches!(value.len(), 16 | 32) => fails(libc::EINVAL),
                (libc::IPPROTO_TCP, TCP_FASTOPEN_KEY) => {
                    // The stack has one key for all listeners: it is this one's for as long as there is this one.
                    sock.former_key.get_or_insert(world.settings.tcp.fast_open_key);
                    world.settings.tcp.fast_open_key = value.first_chunk().copied();
                    world.apply();
                    gives(0)
                }
                (libc::IPPROTO_TCP, libc::TCP_MD5SIG) => Err("MD5 signatures are not supported".into()),
                _ => {
                    // Linux has it, and the stack has no use for it.
                    let kept = value.first_chunk().map_or(0, |b| i64::from(i32::from_ne_bytes(*b)));
                    sock.options.insert((level, name), kept);
                    gives(0)
                }
            },
            Err(error) => fails(error.raw_os_error()),
        }
    }

    pub(super) fn getsockopt(&mut self, world: &mut World, call: &Call) -> Attempt {
        let sock = socket!(self, call.number(world, 0)?);
        let (level, name) = (call.number(world, 1)?, call.number(world, 2)?);
        let mut value = [0; LARGEST];
        let wanted = call.argument(3)?;
        match world.session.getsockopt(sock.slot, level as i32, name as i32, &mut value) {
            Ok(len) => {
                let word = |at: usize| value[at..].first_chunk().map_or(0, |b| i64::from(i32::from_ne_bytes(*b)));
                if (level as i32, name as i32) == (libc::SOL_SOCKET, libc::SO_ERROR) {
                    sock.connecting &= word(0) == 0;
                }
                if let Expression::Struct(_) = wanted {
                    for (name, got) in [("onoff", word(0)), ("linger", word(4))] {
                        let there = field(wanted, name).or_else(|| field(wanted, &format!("l_{name}")));
                        there.map_or(Ok(()), |w| expect(world, &format!("{name} is"), w, got))?;
                    }
                } else if let Expression::Text(text) = wanted {
                    let got = value[..len].split(|b| *b == 0).next().unwrap_or_default();
                    if got != text.as_bytes() {
                        return Err(format!("the option is {:?}, expected {text:?}", String::from_utf8_lossy(got)));
                    }
                } else {
                    // 0xffffffff is -1 where C has an int.
                    let got = match wanted {
                        Expression::List(all) if matches!(all[..], [Expression::Number(n)] if n > i32::MAX.into()) => {
                            word(0) & 0xffff_ffff
                        }
                        _ => word(0),
                    };
                    expect(world, "the option is", wanted, got)?;
                }
                gives(0)
            }
            Err(Errno::NOPROTOOPT) => {
                let kept = match (level as i32, name as i32) {
                    (libc::SOL_SOCKET, libc::SO_TYPE) => 1 + i64::from(sock.datagram),
                    _ => sock.options.get(&(level, name)).copied().unwrap_or(0),
                };
                expect(world, "the option is", wanted, kept)?;
                gives(0)
            }
            Err(error) => fails(error.raw_os_error()),
        }
    }
}

/// An option's value as it lies in memory.
fn bytes_of(world: &World, e: &Expression, len: i64) -> Result<Vec<u8>, String> {
    let int = |e: &Expression| -> Result<[u8; 4], String> { Ok((number(world, e)? as i32).to_ne_bytes()) };
    let either = |a: &str, b: &str| field(e, a).or_else(|| field(e, b));
    let mut bytes = match e {
        // A byte of any value is written \x.., and kept as the character of that number.
        Expression::Text(text) => text.chars().map(|c| c as u8).collect(),
        Expression::Struct(_) => match (either("onoff", "l_onoff"), either("linger", "l_linger")) {
            (Some(on), Some(seconds)) => [int(on)?, int(seconds)?].concat(),
            _ => return Err(format!("{e} is no value of an option that this runner knows")),
        },
        _ if len == 8 => number(world, e)?.to_ne_bytes().to_vec(),
        _ => int(e)?.to_vec(),
    };
    bytes.truncate(usize::try_from(len).unwrap_or(0));
    Ok(bytes)
}
