//! Single values out of text: addresses, ranges, durations, names from a list.

use std::net::IpAddr;
use std::time::Duration;

use sidestep_stack::Mac;

/// "10.0.0.2/24" or "fd00::2/64".
pub fn prefix(text: &str) -> Result<(IpAddr, u8), String> {
    let right = "write an address and a prefix length, as in \"10.0.0.2/24\" or \"fd00::2/64\"";
    let (address, bits) = text.split_once('/').ok_or_else(|| format!("\"{text}\" has no prefix length; {right}"))?;
    let address: IpAddr = address.parse().map_err(|_| format!("\"{address}\" is no IP address; {right}"))?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let bits = bits.parse().ok().filter(|&b: &u8| b <= most);
    Ok((address, bits.ok_or_else(|| format!("\"{text}\": the prefix length must be 0 to {most}"))?))
}

/// "default", or a prefix.
pub fn destination(text: &str, gateway: Option<IpAddr>) -> Result<(IpAddr, u8), String> {
    if text == "default" {
        let v6 = gateway.is_some_and(|g| g.is_ipv6());
        let any: IpAddr =
            if v6 { std::net::Ipv6Addr::UNSPECIFIED.into() } else { std::net::Ipv4Addr::UNSPECIFIED.into() };
        return Ok((any, 0));
    }
    prefix(text)
}

pub fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("\"{text}\" is no IP address; write one as in \"10.0.0.1\" or \"fd00::1\""))
}

/// "02:00:00:00:00:01"
pub fn mac(text: &str) -> Result<Mac, String> {
    let right =
        || format!("\"{text}\" is no Ethernet address; write six hexadecimal bytes, as in \"02:00:00:00:00:01\"");
    let bytes: Vec<u8> =
        text.split(':').map(|b| u8::from_str_radix(b, 16)).collect::<Result<_, _>>().map_err(|_| right())?;
    let mac: Mac = bytes.try_into().map_err(|_| right())?;
    if mac[0] & 1 == 1 {
        return Err(format!("\"{text}\" is a multicast address; the first byte must be even"));
    }
    Ok(mac)
}

/// "22" or "8000-8100".
pub fn ports(text: &str) -> Result<(u16, u16), String> {
    let right = || format!("\"{text}\" is no port or range of ports; write \"22\" or \"8000-8100\" (1 to 65535)");
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |t: &str| t.trim().parse::<u16>().ok().filter(|&p| p > 0).ok_or_else(right);
    let (first, last) = (port(first)?, port(last)?);
    if first > last {
        return Err(format!("\"{text}\": the first port must not be larger than the last"));
    }
    Ok((first, last))
}

/// "50us", "200ms", "60s".
pub fn duration(text: &str) -> Result<Duration, String> {
    let right = || format!("\"{text}\" is no duration; write a number and a unit: \"50us\", \"200ms\" or \"60s\"");
    let digits = text.trim_end_matches(|c: char| c.is_alphabetic());
    let number: u64 = digits.trim().parse().map_err(|_| right())?;
    match &text[digits.len()..] {
        "ns" => Ok(Duration::from_nanos(number)),
        "us" | "µs" => Ok(Duration::from_micros(number)),
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "min" => Ok(Duration::from_secs(number.saturating_mul(60))),
        _ => Err(right()),
    }
}

/// One of a list of words.
pub fn choice<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, String> {
    choices.iter().find(|(name, _)| *name == text).map(|&(_, value)| value).ok_or_else(|| {
        let names: Vec<_> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        format!("\"{text}\" is none of {}", names.join(", "))
    })
}

/// The known key that is spelled most alike, if any is close.
pub fn nearest<'a>(key: &str, known: &[&'a str]) -> Option<&'a str> {
    let (best, distance) = known.iter().map(|k| (*k, edit_distance(key, k))).min_by_key(|&(_, d)| d)?;
    (distance <= 1 + key.len() / 3).then_some(best)
}

/// Levenshtein's.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
