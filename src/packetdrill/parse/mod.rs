//! From a script's text to [`Script`]: options, then events, each with its time. Recursive descent over the text; no
//! separate lexer, because what a character means depends on where it stands (`.` is a flag, a fraction or a range).

mod cursor;
mod packet;
mod syscall;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use super::script::{Event, Kind, Script, Time};
use cursor::{Cursor, Result};

pub use cursor::ParseError;

/// Parses a script. `defines`: names of the command line (`-D NAME=value`), put in wherever a name may stand.
///
/// # Errors
/// The first thing that isn't packetdrill's language, or is a part of it that this runner doesn't have, with line and
/// column.
pub fn parse(text: &str, defines: &BTreeMap<String, String>) -> std::result::Result<Script, ParseError> {
    let cursor = &mut Cursor::new(text, defines);
    let mut script = Script::default();
    while cursor.take("--") {
        let name = cursor.while_true(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        let value = if cursor.take("=") { cursor.rest_of_line() } else { String::new() };
        script.options.push((name, value.trim_matches('"').to_owned()));
    }
    while !cursor.is_end() {
        script.events.push(event(cursor)?);
    }
    Ok(script)
}

fn event(cursor: &mut Cursor<'_>) -> Result<Event> {
    let line = cursor.line();
    // Commands at the start and at the end of a script have no time.
    let time = match cursor.peek() {
        b'`' | b'%' => Time::Relative(0),
        _ => time(cursor)?,
    };
    let ends = if cursor.take("...") { Some(cursor.seconds()?) } else { None };
    let kind = match cursor.peek() {
        b'<' | b'>' => Kind::Packet(Box::new(packet::packet(cursor)?)),
        b'`' => {
            cursor.take("`");
            Kind::Shell(cursor.until("`")?)
        }
        b'%' => {
            cursor.expect("%{")?;
            Kind::Code(cursor.until("}%")?)
        }
        b if b.is_ascii_alphabetic() || b == b'_' => Kind::Syscall(Box::new(syscall::syscall(cursor, ends)?)),
        _ => {
            return cursor.unexpected("a packet, a system call, a command or code");
        }
    };
    if ends.is_some() && !matches!(kind, Kind::Syscall(_)) {
        return cursor.fail("only a system call can take time (\"...\")");
    }
    Ok(Event { line, time, kind })
}

fn time(cursor: &mut Cursor<'_>) -> Result<Time> {
    if cursor.take("*") {
        return Ok(Time::Any);
    }
    let relative = cursor.take("+");
    let from = cursor.seconds()?;
    if !cursor.take("~") {
        return Ok(if relative { Time::Relative(from) } else { Time::Absolute(from) });
    }
    if cursor.take("+") != relative {
        return cursor.fail("both ends of a range are relative, or none is");
    }
    let to = cursor.seconds()?;
    if to < from {
        return cursor.fail("the range ends before it starts");
    }
    Ok(if relative { Time::RelativeRange(from, to) } else { Time::AbsoluteRange(from, to) })
}
