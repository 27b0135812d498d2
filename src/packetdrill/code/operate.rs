//! Operators and functions on values.

use std::cmp::Ordering;

use super::value::Value;

type Outcome = Result<Value, String>;

/// Characters of a formatted number, at most.
const WIDEST: usize = 200;

pub(super) fn binary(op: &str, a: &Value, b: &Value) -> Outcome {
    let unfit = || format!("{op} does not work on {a} and {b}");
    match (op, a, b) {
        ("%", Value::Text(format), _) => return percent(format, b).map(Value::Text),
        ("+", Value::Text(x), Value::Text(y)) => return Ok(Value::Text(format!("{x}{y}"))),
        _ => {}
    }
    if let (Some(x), Some(y)) = (a.int(), b.int()) {
        let too_large = || format!("{x} {op} {y} is too large");
        let by_zero = || format!("{x} {op} {y}: division by zero");
        let shift = || u32::try_from(y).map_err(|_| unfit());
        return Ok(Value::Int(match op {
            "+" => x.checked_add(y).ok_or_else(too_large)?,
            "-" => x.checked_sub(y).ok_or_else(too_large)?,
            "*" => x.checked_mul(y).ok_or_else(too_large)?,
            "**" => u32::try_from(y).ok().and_then(|y| x.checked_pow(y)).ok_or_else(too_large)?,
            // Python 3: a division gives a fraction.
            "/" if y == 0 => return Err(by_zero()),
            "/" => return Ok(Value::Float(x as f64 / y as f64)),
            "//" => floor_divide(x, y).ok_or_else(by_zero)?,
            "%" => floor_divide(x, y).map(|q| x - q * y).ok_or_else(by_zero)?,
            "&" => x & y,
            "|" => x | y,
            "^" => x ^ y,
            "<<" => x.checked_shl(shift()?).ok_or_else(too_large)?,
            ">>" => x.checked_shr(shift()?).unwrap_or(if x < 0 { -1 } else { 0 }),
            _ => return Err(unfit()),
        }));
    }
    let (x, y) = a.float().zip(b.float()).ok_or_else(unfit)?;
    Ok(Value::Float(match op {
        "+" => x + y,
        "-" => x - y,
        "*" => x * y,
        "/" => x / y,
        "//" => (x / y).floor(),
        "%" => x - (x / y).floor() * y,
        "**" => x.powf(y),
        _ => return Err(unfit()),
    }))
}

fn floor_divide(x: i64, y: i64) -> Option<i64> {
    let q = x.checked_div(y)?;
    Some(if x % y != 0 && (x < 0) != (y < 0) { q - 1 } else { q })
}

pub(super) fn unary(op: &str, a: &Value) -> Outcome {
    match (op, a) {
        ("-", Value::Float(x)) => Ok(Value::Float(-x)),
        ("-", _) => a.int().and_then(i64::checked_neg).map(Value::Int).ok_or_else(|| format!("-{a} makes no sense")),
        ("+", _) => Ok(a.clone()),
        _ => a.int().map(|n| Value::Int(!n)).ok_or_else(|| format!("~{a} makes no sense")),
    }
}

pub(super) fn compare(op: &str, a: &Value, b: &Value) -> Result<bool, String> {
    if let (Value::Tuple(_), "in" | "not in") | (_, "in" | "not in") = (b, op) {
        let Value::Tuple(all) = b else { return Err(format!("{b} holds nothing to look for {a} in")) };
        let mut there = false;
        for item in all {
            there |= compare("==", a, item)?;
        }
        return Ok(there == (op == "in"));
    }
    let order = match (a, b) {
        (Value::Text(x), Value::Text(y)) => Some(x.cmp(y)),
        (Value::None, Value::None) => Some(Ordering::Equal),
        _ => match (a.int(), b.int()) {
            (Some(x), Some(y)) => Some(x.cmp(&y)),
            _ => a.float().zip(b.float()).and_then(|(x, y)| x.partial_cmp(&y)),
        },
    };
    match (op, order) {
        ("==" | "is", _) => Ok(order == Some(Ordering::Equal)),
        ("!=" | "is not", _) => Ok(order != Some(Ordering::Equal)),
        ("<", Some(o)) => Ok(o.is_lt()),
        ("<=", Some(o)) => Ok(o.is_le()),
        (">", Some(o)) => Ok(o.is_gt()),
        (">=", Some(o)) => Ok(o.is_ge()),
        _ => Err(format!("{a} {op} {b}: these can't be compared")),
    }
}

pub(super) fn call(name: &str, arguments: &[Value]) -> Outcome {
    let one = || match arguments {
        [only] => Ok(only),
        _ => Err(format!("{name}() takes one value")),
    };
    let unfit = || format!("{name}() does not work on {}", Value::Tuple(arguments.to_vec()));
    match name {
        "abs" => match one()? {
            Value::Float(x) => Ok(Value::Float(x.abs())),
            other => other.int().and_then(i64::checked_abs).map(Value::Int).ok_or_else(unfit),
        },
        "int" => match one()? {
            Value::Text(s) => s.trim().parse().map(Value::Int).map_err(|_| unfit()),
            Value::Float(x) => Ok(Value::Int(x.trunc() as i64)),
            other => other.int().map(Value::Int).ok_or_else(unfit),
        },
        "round" => one()?.float().map(|x| Value::Int(x.round_ties_even() as i64)).ok_or_else(unfit),
        "float" => one()?.float().map(Value::Float).ok_or_else(unfit),
        "str" | "repr" => Ok(Value::Text(one()?.to_string())),
        "bool" => Ok(Value::Bool(one()?.is_true())),
        "len" => match one()? {
            Value::Text(s) => Ok(Value::Int(s.chars().count() as i64)),
            Value::Tuple(all) => Ok(Value::Int(all.len() as i64)),
            _ => Err(unfit()),
        },
        "min" | "max" => {
            let all = match arguments {
                [Value::Tuple(all)] => all,
                other => other,
            };
            let mut best = all.first().ok_or_else(unfit)?.clone();
            for value in &all[1..] {
                if compare(if name == "min" { "<" } else { ">" }, value, &best)? {
                    best = value.clone();
                }
            }
            Ok(best)
        }
        _ => Err(format!("{name}() is no function that this runner has")),
    }
}

/// `'cwnd=%d' % 10`.
fn percent(format: &str, values: &Value) -> Result<String, String> {
    let mut values = match values {
        Value::Tuple(all) => all.as_slice(),
        one => std::slice::from_ref(one),
    }
    .iter();
    let mut out = String::new();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut spec = String::new();
        while chars.peek().is_some_and(|c| c.is_ascii_digit() || "-+ 0.#l".contains(*c)) {
            spec.extend(chars.next());
        }
        let kind = chars.next().ok_or("a format ends behind %")?;
        if kind == '%' {
            out.push('%');
            continue;
        }
        let value = values.next().ok_or("a format has more places than values")?;
        let number = || value.float().ok_or_else(|| format!("%{kind} wants a number, not {value}"));
        let places = || spec.split('.').nth(1).and_then(|p| p.parse().ok()).map(|p: usize| p.min(WIDEST));
        let text = match kind {
            'd' | 'i' | 'u' => format!("{}", number()?.trunc() as i64),
            'x' => format!("{:x}", number()? as i64),
            'f' | 'F' => format!("{:.*}", places().unwrap_or(6), number()?),
            'g' | 'e' => format!("{}", number()?),
            's' | 'r' => value.to_string(),
            other => return Err(format!("%{other} is no format that this runner has")),
        };
        let width = spec.trim_start_matches(['-', '+', ' ', '#']).split('.').next().unwrap_or_default();
        let (fill, width) = if width.starts_with('0') { ('0', width) } else { (' ', width) };
        let missing =
            width.trim_end_matches('l').parse::<usize>().unwrap_or(0).min(WIDEST).saturating_sub(text.chars().count());
        out.extend(std::iter::repeat_n(fill, missing));
        out += &text;
    }
    Ok(out)
}
