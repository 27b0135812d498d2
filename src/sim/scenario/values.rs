//! Values of scenarios out of text: rates, sizes, probabilities.

use std::time::Duration;

use toml::de::DeValue;

use crate::config::values;

/// "100Mbit/s", "2.5Gbit/s"; "unlimited" is None.
pub fn rate(text: &str) -> Result<Option<u64>, String> {
    if text == "unlimited" {
        return Ok(None);
    }
    let right = || format!("\"{text}\" is no rate; write \"10Mbit/s\", \"1Gbit/s\", or \"unlimited\"");
    let (number, unit) = split(text).ok_or_else(right)?;
    let unit = match unit {
        "bit/s" => 1.0,
        "kbit/s" => 1e3,
        "Mbit/s" => 1e6,
        "Gbit/s" => 1e9,
        _ => return Err(right()),
    };
    let bits = number * unit;
    if (1.0..=1e13).contains(&bits) { Ok(Some(bits as u64)) } else { Err(right()) }
}

/// "64KiB", "10MB", or a number of bytes.
pub fn size(value: &DeValue<'_>) -> Result<u64, String> {
    if let Some(bytes) = integer(value) {
        return Ok(bytes);
    }
    let right = "must be a number of bytes, or a size as in \"64KiB\" or \"10MB\"";
    let (number, unit) = value.as_str().and_then(split).ok_or(right)?;
    let unit = match unit {
        "B" => 1.0,
        "kB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        "GiB" => 1024.0 * 1024.0 * 1024.0,
        _ => return Err(right.into()),
    };
    Ok((number * unit) as u64)
}

/// 0.01, or "1%".
pub fn probability(value: &DeValue<'_>) -> Result<f64, String> {
    let right = || "must be a probability: a number from 0 to 1, or a share as in \"0.1%\"".to_owned();
    let p = match value.as_str().map(|t| t.strip_suffix('%')) {
        Some(Some(percent)) => percent.trim().parse::<f64>().map_err(|_| right())? / 100.0,
        Some(None) => return Err(right()),
        None => number(value).ok_or_else(right)?,
    };
    if (0.0..=1.0).contains(&p) { Ok(p) } else { Err(right()) }
}

/// A number, whole or not, from `least` on.
pub fn real(value: &DeValue<'_>, least: f64, most: f64) -> Result<f64, String> {
    number(value)
        .filter(|n| (least..=most).contains(n))
        .ok_or_else(|| format!("must be a number from {least} to {most}"))
}

/// How long a queue may become.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum QueueLength {
    Frames(u64),
    Bytes(u64),
    /// Times rate x 2 x delay of the link.
    Bdp(f64),
}

/// 100, "64KiB", "1bdp".
pub fn queue_length(value: &DeValue<'_>) -> Result<QueueLength, String> {
    if let Some(frames) = integer(value) {
        return Ok(QueueLength::Frames(frames));
    }
    let right = "must be a number of frames, a size as in \"64KiB\", or a share of rate x 2 x delay as in \"1bdp\"";
    match value.as_str().and_then(split) {
        Some((share, "bdp")) if share > 0.0 => Ok(QueueLength::Bdp(share)),
        _ => size(value).map(QueueLength::Bytes).map_err(|_| right.into()),
    }
}

/// "50us", "0.2ms".
pub fn time(text: &str) -> Result<Duration, String> {
    values::duration(text).or_else(|error| {
        let (number, unit) = split(text).ok_or_else(|| error.clone())?;
        let one = values::duration(&format!("1{unit}")).map_err(|_| error)?;
        Ok(one.mul_f64(number))
    })
}

fn integer(value: &DeValue<'_>) -> Option<u64> {
    let i = value.as_integer()?;
    u64::from_str_radix(i.as_str(), i.radix()).ok()
}

fn number(value: &DeValue<'_>) -> Option<f64> {
    integer(value).map(|n| n as f64).or_else(|| value.as_float()?.as_str().parse().ok())
}

/// A number that is not negative, and its unit.
fn split(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let at = text.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
    let number = text[..at].parse().ok()?;
    Some((number, text[at..].trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_times() {
        assert_eq!(rate("2.5Gbit/s"), Ok(Some(2_500_000_000)));
        assert_eq!(rate("10 Mbit/s"), Ok(Some(10_000_000)));
        assert_eq!(rate("unlimited"), Ok(None));
        assert!(rate("10Mbps").is_err() && rate("0bit/s").is_err() && rate("-1Mbit/s").is_err());
        assert_eq!(time("0.2ms"), Ok(Duration::from_micros(200)));
        assert_eq!(time("3s"), Ok(Duration::from_secs(3)));
        assert!(time("3").is_err());
    }
}
