//! System calls: `sendmsg(4, {msg_iov(1)=[{..., 10}], msg_flags=0}, MSG_MORE) = -1 EAGAIN (…)`.

use super::super::script::{Expression, Outcome, Syscall};
use super::cursor::{Cursor, Result};

pub(super) fn syscall(cursor: &mut Cursor<'_>, ends: Option<i64>) -> Result<Syscall> {
    let name = cursor.name()?;
    cursor.expect("(")?;
    let arguments = list(cursor, ")")?;
    cursor.expect("=")?;
    let value = expression(cursor)?;
    let mut errno = None;
    if cursor.peek() == b'E' {
        let word = cursor.name()?;
        errno = Some(word);
    }
    // What follows in parentheses explains the errno, or the number (`0x2 (flags O_RDWR)`).
    if cursor.take("(") {
        cursor.until(")")?;
    }
    Ok(Syscall { name, arguments, ends, result: Outcome { value, errno } })
}

fn list(cursor: &mut Cursor<'_>, end: &str) -> Result<Vec<Expression>> {
    let mut all = Vec::new();
    while !cursor.take(end) {
        all.push(expression(cursor)?);
        if !cursor.take(",") && !cursor.sees(end) {
            return cursor.unexpected(&format!("\",\" or {end:?}"));
        }
    }
    Ok(all)
}

fn expression(cursor: &mut Cursor<'_>) -> Result<Expression> {
    cursor.deeper(alternatives)
}

fn alternatives(cursor: &mut Cursor<'_>) -> Result<Expression> {
    let first = operand(cursor)?;
    let mut all = vec![first];
    while cursor.take("|") {
        all.push(operand(cursor)?);
    }
    Ok(if all.len() == 1 { all.remove(0) } else { Expression::Or(all) })
}

fn operand(cursor: &mut Cursor<'_>) -> Result<Expression> {
    Ok(match cursor.peek() {
        b'.' => {
            cursor.expect("...")?;
            Expression::Ellipsis
        }
        b'[' => {
            cursor.expect("[")?;
            Expression::List(list(cursor, "]")?)
        }
        b'{' => {
            cursor.expect("{")?;
            structure(cursor)?
        }
        b'"' => {
            cursor.expect("\"")?;
            Expression::Text(unescape(&cursor.until("\"")?))
        }
        b'-' => {
            cursor.expect("-")?;
            Expression::Number(-(cursor.small::<i64>()?))
        }
        b'0'..=b'9' => {
            let number = cursor.number()?;
            // 0xffffffffffffffff is -1 where C has a long.
            Expression::Number(number as i64)
        }
        _ => {
            let name = cursor.name()?;
            if let Ok(number) = name.parse() {
                return Ok(Expression::Number(number));
            }
            if cursor.take("(") {
                return Ok(Expression::Call(name, list(cursor, ")")?));
            }
            Expression::Name(name)
        }
    })
}

/// After the brace. Fields have names, but the members of an iovec don't; `msg_iov(2)=` also says how many.
fn structure(cursor: &mut Cursor<'_>) -> Result<Expression> {
    let mut fields = Vec::new();
    while !cursor.take("}") {
        let mark = cursor.mark();
        let name =
            if cursor.peek().is_ascii_alphabetic() || cursor.peek() == b'_' { cursor.word() } else { String::new() };
        if !name.is_empty() && cursor.take("(") {
            cursor.until(")")?;
        }
        if !name.is_empty() && cursor.take("=") {
            fields.push((name, expression(cursor)?));
        } else {
            cursor.back(mark);
            fields.push((String::new(), expression(cursor)?));
        }
        if !cursor.take(",") && !cursor.sees("}") {
            return cursor.unexpected("\",\" or \"}\"");
        }
    }
    Ok(Expression::Struct(fields))
}

fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, if c == '\\' { chars.next() } else { None }) {
            ('\\', Some('n')) => out.push('\n'),
            ('\\', Some('t')) => out.push('\t'),
            ('\\', Some('0')) => out.push('\0'),
            ('\\', Some('x')) => {
                let digits: String = chars.by_ref().take(2).collect();
                out.push(u8::from_str_radix(&digits, 16).map_or('x', char::from));
            }
            ('\\', Some(other)) => out.push(other),
            (c, _) => out.push(c),
        }
    }
    out
}
