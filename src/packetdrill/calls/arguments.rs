//! Arguments: numbers, addresses, structures.

use std::net::{IpAddr, SocketAddr};

use super::super::names;
use super::super::script::Expression;
use super::super::settings::Family;
use super::super::world::World;

/// The value of an argument that is a number.
///
/// # Errors
/// It is none.
pub fn number(world: &World, e: &Expression) -> Result<i64, String> {
    match e {
        Expression::Number(n) => Ok(*n),
        Expression::Or(all) => all.iter().try_fold(0, |sum, e| Ok(sum | number(world, e)?)),
        Expression::Name(name) => {
            let name = world.settings.define(name).unwrap_or_else(|| name.clone());
            let value = name.parse().ok().or_else(|| names::value(&name));
            value.ok_or_else(|| format!("{name} is no constant that this runner knows"))
        }
        // Numbers are kept as hosts have them.
        Expression::Call(name, arguments) if matches!(name.as_str(), "htons" | "htonl" | "ntohs" | "ntohl") => {
            number(world, arguments.first().ok_or("htons() of nothing")?)
        }
        Expression::List(all) if all.len() == 1 => number(world, &all[0]),
        other => Err(format!("{other} is no number")),
    }
}

/// A member of a structure.
pub fn field<'a>(e: &'a Expression, name: &str) -> Option<&'a Expression> {
    let Expression::Struct(fields) = e else { return None };
    fields.iter().find(|(n, _)| n == name).map(|(_, value)| value)
}

/// A socket address: `{sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr("1.2.3.4")}`; None for `...`.
///
/// # Errors
/// Something else.
pub fn address(world: &World, e: &Expression) -> Result<Option<SocketAddr>, String> {
    if *e == Expression::Ellipsis {
        return Ok(None);
    }
    let any = |names: &[&str]| names.iter().find_map(|n| field(e, n));
    let port = any(&["sin_port", "sin6_port"]).map_or(Ok(0), |p| number(world, p))?;
    let ip: IpAddr = match any(&["sin_addr", "sin6_addr"]) {
        Some(Expression::Call(_, arguments)) => match arguments.last() {
            Some(Expression::Text(text)) => text.parse().map_err(|_| format!("{text} is no address"))?,
            _ => return Err(format!("{e} is no address")),
        },
        Some(Expression::Name(name)) if name == "INADDR_ANY" => IpAddr::from([0, 0, 0, 0]),
        Some(Expression::Name(name)) if name == "in6addr_any" => IpAddr::from([0u16; 8]),
        None => IpAddr::from([0, 0, 0, 0]),
        _ => return Err(format!("{e} is no address")),
    };
    let port = u16::try_from(port).map_err(|_| format!("{port} is no port"))?;
    Ok(Some(SocketAddr::new(ip, port)))
}

/// An address as a socket of the script's family takes it.
pub fn as_socket_has_it(family: Family, v6_socket: bool, ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(v4) if v6_socket && family == Family::Mapped => v4.to_ipv6_mapped().into(),
        other => other,
    }
}

/// Bytes of each piece of an iovec: `[{..., 10}, {..., 20}]`. None in place of a null pointer's.
///
/// # Errors
/// It is none.
pub fn pieces(world: &World, e: &Expression) -> Result<Vec<(bool, usize)>, String> {
    let Expression::List(all) = e else { return Err(format!("{e} is no iovec")) };
    let one = |piece: &Expression| match piece {
        Expression::Struct(fields) if fields.len() == 2 => Ok((is_null(&fields[0].1), size(world, &fields[1].1)?)),
        other => Err(format!("{other} is no piece of an iovec")),
    };
    all.iter().map(one).collect()
}

/// A length.
///
/// # Errors
/// It is none.
pub fn size(world: &World, e: &Expression) -> Result<usize, String> {
    let n = number(world, e)?;
    usize::try_from(n).ok().filter(|n| *n <= world.settings.most_bytes).ok_or_else(|| format!("{n} is no length"))
}

/// A pointer that leads nowhere.
pub fn is_null(e: &Expression) -> bool {
    matches!(e, Expression::Name(n) if n == "NULL") || *e == Expression::Number(0)
}
