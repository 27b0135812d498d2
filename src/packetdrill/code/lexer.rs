//! Code to tokens. A newline ends a statement, except inside brackets and after a backslash.

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Name(String),
    Int(i64),
    Float(f64),
    Text(String),
    /// An operator or bracket.
    Mark(&'static str),
    /// Newline or `;`.
    End,
}

/// Longest first.
const MARKS: [&str; 28] = [
    "**", "//", "==", "!=", "<=", ">=", "<<", ">>", "+", "-", "*", "/", "%", "(", ")", "[", "]", "{", "}", ",", "<",
    ">", "=", "&", "|", "^", "~", ":",
];

pub(super) fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut out = Vec::new();
    let mut rest = text;
    let mut depth = 0i32;
    while let Some(first) = rest.chars().next() {
        let skip = |n: usize| &rest[n..];
        if first == '\n' || first == ';' {
            if depth == 0 || first == ';' {
                out.push(Token::End);
            }
            rest = skip(1);
        } else if first.is_whitespace() || first == '\\' {
            // A backslash before the newline: the statement goes on.
            let joined = first == '\\' && rest[1..].trim_start_matches([' ', '\t', '\r']).starts_with('\n');
            rest = if joined { &rest[rest.find('\n').unwrap_or(0) + 1..] } else { skip(first.len_utf8()) };
        } else if first == '#' {
            rest = &rest[rest.find('\n').unwrap_or(rest.len())..];
        } else if first.is_ascii_digit() || first == '.' {
            let (token, len) = number(rest)?;
            out.push(token);
            rest = skip(len);
        } else if first.is_alphabetic() || first == '_' {
            let len = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            out.push(Token::Name(rest[..len].to_owned()));
            rest = skip(len);
        } else if first == '\'' || first == '"' {
            let len = rest[1..].find(first).ok_or("a string has no end")?;
            out.push(Token::Text(rest[1..=len].to_owned()));
            rest = skip(len + 2);
        } else {
            let mark = MARKS
                .into_iter()
                .find(|m| rest.starts_with(m))
                .ok_or_else(|| format!("{first:?} makes no sense here"))?;
            match mark {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" => depth -= 1,
                _ => {}
            }
            out.push(Token::Mark(mark));
            rest = skip(mark.len());
        }
    }
    out.push(Token::End);
    Ok(out)
}

fn number(text: &str) -> Result<(Token, usize), String> {
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        let len = hex.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(hex.len());
        let value = u64::from_str_radix(&hex[..len], 16).map_err(|_| format!("0x{} is no number", &hex[..len]))?;
        return Ok((Token::Int(value as i64), len + 2));
    }
    let mut len = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    if text[len..].starts_with(['e', 'E']) {
        let exponent = &text[len + 1..];
        let sign = usize::from(exponent.starts_with(['+', '-']));
        let digits = exponent[sign..].find(|c: char| !c.is_ascii_digit()).unwrap_or(exponent.len() - sign);
        len += if digits > 0 { 1 + sign + digits } else { 0 };
    }
    let word = &text[..len];
    let token = match word.parse::<i64>() {
        Ok(n) => Token::Int(n),
        Err(_) => Token::Float(word.parse().map_err(|_| format!("{word} is no number"))?),
    };
    // Python 2's long integers.
    Ok((token, len + usize::from(text[len..].starts_with('L'))))
}
