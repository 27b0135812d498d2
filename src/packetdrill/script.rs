//! A script as the parser gives it: options, then events in order. Nothing here knows a socket or a packet's bytes.

use std::fmt;

/// A whole script.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// `--name=value` lines and `--name` lines, in order, without the dashes.
    pub options: Vec<(String, String)>,
    pub events: Vec<Event>,
}

/// One thing that happens, with the time at which it is to.
#[derive(Clone, Debug)]
pub struct Event {
    /// Of the event's first character, from 1.
    pub line: usize,
    pub time: Time,
    pub kind: Kind,
}

/// When. Microseconds; relative ones count from the event before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    /// `*`: whenever it happens.
    Any,
    /// From the start of the script.
    Absolute(i64),
    Relative(i64),
    AbsoluteRange(i64, i64),
    RelativeRange(i64, i64),
}

#[derive(Clone, Debug)]
pub enum Kind {
    Packet(Box<Packet>),
    Syscall(Box<Syscall>),
    /// Between backticks.
    Shell(String),
    /// Between `%{` and `}%`.
    Code(String),
}

/// A packet that goes into the stack under test, or is expected out of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// `<`.
    pub inbound: bool,
    pub ip: IpFields,
    pub body: Body,
}

/// What `[…]` before a packet says of its IP header. None: not checked, or the default when injected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IpFields {
    /// 0 not capable, 1 ECT(1), 2 ECT(0), 3 CE (RFC 3168 5).
    pub ecn: Option<u8>,
    /// The whole byte, ECN's bits included.
    pub tos: Option<u8>,
    pub ttl: Option<u8>,
    pub flow_label: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    Tcp(Tcp),
    /// Payload bytes.
    Udp(u16),
    Icmp(Icmp),
}

/// Bits of [`Tcp::flags`], as in bytes 12 and 13 of the header.
pub mod flag {
    pub const FIN: u16 = 1;
    pub const SYN: u16 = 2;
    pub const RST: u16 = 4;
    pub const PSH: u16 = 8;
    pub const ACK: u16 = 16;
    pub const URG: u16 = 32;
    pub const ECE: u16 = 64;
    pub const CWR: u16 = 128;
    /// RFC 9768.
    pub const AE: u16 = 256;
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tcp {
    /// Source and destination, when the script names them.
    pub ports: Option<(u16, u16)>,
    pub flags: u16,
    /// In the script's numbers: 0 is the SYN.
    pub seq: u32,
    /// Payload bytes.
    pub len: u32,
    pub ack: Option<u32>,
    /// As in the header, not scaled.
    pub window: Option<u16>,
    pub urgent: Option<u16>,
    pub options: Options,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Options {
    /// `<...>`: whatever comes.
    Any,
    These(Vec<TcpOption>),
}

impl Default for Options {
    fn default() -> Self {
        Self::These(Vec::new())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TcpOption {
    Eol,
    Nop,
    Mss(u16),
    WindowScale(u8),
    SackOk,
    Sack(Vec<(u32, u32)>),
    Timestamps {
        value: u32,
        echo: u32,
    },
    /// RFC 7413, its own number, or 254 with the magic of the experiment.
    FastOpen {
        cookie: Vec<u8>,
        experimental: bool,
    },
    Md5(Vec<u8>),
    Other {
        kind: u8,
        data: Vec<u8>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Icmp {
    pub v6: bool,
    pub kind: u8,
    pub code: u8,
    pub mtu: Option<u32>,
    pub quoted: Option<Quoted>,
}

/// Of the packet that an ICMP error complains about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quoted {
    Tcp { seq: u32, len: u32 },
    Udp { len: u16 },
}

/// A system call with what it is to return.
#[derive(Clone, Debug, PartialEq)]
pub struct Syscall {
    pub name: String,
    pub arguments: Vec<Expression>,
    /// When a call that waits is to return: microseconds from where its time counts from.
    pub ends: Option<i64>,
    pub result: Outcome,
}

/// What is expected of a call.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub value: Expression,
    /// `EAGAIN`, …
    pub errno: Option<String>,
}

/// An argument.
#[derive(Clone, Debug, PartialEq)]
pub enum Expression {
    /// `...`: the runner's choice; in a result, anything.
    Ellipsis,
    Number(i64),
    Text(String),
    /// A constant of C's, by name.
    Name(String),
    /// `A|B`.
    Or(Vec<Expression>),
    List(Vec<Expression>),
    /// `{name=value, …}`. Values without a name have an empty one.
    Struct(Vec<(String, Expression)>),
    /// `htons(80)`.
    Call(String, Vec<Expression>),
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let join = |f: &mut fmt::Formatter<'_>, all: &[Self], between: &str| {
            all.iter().enumerate().try_for_each(|(i, e)| write!(f, "{}{e}", if i > 0 { between } else { "" }))
        };
        match self {
            Self::Ellipsis => f.write_str("..."),
            Self::Number(n) => write!(f, "{n}"),
            Self::Text(s) => write!(f, "{s:?}"),
            Self::Name(n) => f.write_str(n),
            Self::Or(all) => join(f, all, "|"),
            Self::List(all) => {
                f.write_str("[")?;
                join(f, all, ", ")?;
                f.write_str("]")
            }
            Self::Call(name, all) => {
                write!(f, "{name}(")?;
                join(f, all, ", ")?;
                f.write_str(")")
            }
            Self::Struct(fields) => {
                f.write_str("{")?;
                for (i, (name, value)) in fields.iter().enumerate() {
                    let comma = if i > 0 { ", " } else { "" };
                    match name.as_str() {
                        "" => write!(f, "{comma}{value}")?,
                        _ => write!(f, "{comma}{name}={value}")?,
                    }
                }
                f.write_str("}")
            }
        }
    }
}

impl fmt::Display for Syscall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Expression::Call(self.name.clone(), self.arguments.clone()))
    }
}
