//! System calls of a script, on sockets of ours: the client's verbs in their non-blocking form. A call that would wait
//! says so, and is tried again when something has happened or time has passed.

mod arguments;
mod data;
mod files;
mod options;
mod sockets;
mod wait;

use std::collections::BTreeMap;

use super::script::{Expression, Syscall};
use super::world::World;

pub use arguments::number;

/// A descriptor of the script.
enum Object {
    Socket(Sock),
    Epoll(wait::Epoll),
    /// One end of a pipe: the index of its bytes, and whether it is the end to write to.
    Pipe {
        bytes: usize,
        writes: bool,
    },
    /// A file that a script made: its length and the position in it.
    File {
        len: u64,
        at: u64,
    },
}

/// A socket of ours.
struct Sock {
    slot: u32,
    v6: bool,
    datagram: bool,
    nonblocking: bool,
    /// Where the first write is to connect to (TCP_FASTOPEN_CONNECT).
    deferred: Option<std::net::SocketAddr>,
    /// A connect() was started whose end the script has not heard of.
    connecting: bool,
    /// Options as they were set, by level and name.
    options: BTreeMap<(i64, i64), i64>,
    /// Bytes read and written so far.
    reads: u32,
    writes: u32,
    /// The key of cookies before this socket set another (TCP_FASTOPEN_KEY).
    former_key: Option<Option<[u8; 16]>>,
    /// How often a write found too little room.
    starved: u32,
}

/// A call under way.
pub struct Call {
    pub syscall: Syscall,
    /// Bytes done so far.
    done: usize,
    /// It has begun what it now waits for.
    begun: bool,
    /// When it gives up, in microseconds of the script.
    deadline: Option<i64>,
}

/// What a try came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// The result, or the errno.
    Done(Result<i64, i32>),
    Wait,
}

/// All descriptors of a script.
#[derive(Default)]
pub struct Calls {
    objects: BTreeMap<i64, Object>,
    pipes: Vec<std::collections::VecDeque<u8>>,
}

impl Call {
    pub fn new(syscall: Syscall) -> Self {
        Self { syscall, done: 0, begun: false, deadline: None }
    }

    /// Until when it waits, if not for ever.
    pub fn deadline(&self) -> Option<i64> {
        self.deadline
    }

    fn argument(&self, n: usize) -> Result<&Expression, String> {
        let missing = || format!("{}() is given {} arguments", self.syscall.name, self.syscall.arguments.len());
        self.syscall.arguments.get(n).ok_or_else(missing)
    }

    fn number(&self, world: &World, n: usize) -> Result<i64, String> {
        number(world, self.argument(n)?)
    }

    /// The descriptor that the script says it gets; None when it leaves that open.
    fn wanted(&self) -> Option<i64> {
        match self.syscall.result.value {
            Expression::Number(fd) if fd >= 0 => Some(fd),
            _ => None,
        }
    }
}

type Attempt = Result<Step, String>;

fn fails(errno: i32) -> Attempt {
    Ok(Step::Done(Err(errno)))
}

fn gives(value: i64) -> Attempt {
    Ok(Step::Done(Ok(value)))
}

impl Calls {
    /// Tries a call.
    ///
    /// # Errors
    /// It can't be understood, or gave something else than the script has beside its result (bytes, events, options).
    pub fn attempt(&mut self, world: &mut World, call: &mut Call) -> Attempt {
        match call.syscall.name.as_str() {
            "socket" => self.socket(world, call),
            "bind" => self.bind(world, call),
            "listen" => self.listen(world, call),
            "accept" | "accept4" => self.accept(world, call),
            "connect" => self.connect(world, call),
            "close" => self.close(world, call),
            "shutdown" => self.shutdown(world, call),
            "read" | "readv" | "recv" | "recvfrom" | "recvmsg" => self.receive(world, call),
            "write" | "writev" | "send" | "sendto" | "sendmsg" => self.send(world, call),
            "sendfile" => self.sendfile(world, call),
            "open" => self.open(world, call),
            "pipe" | "pipe2" => self.pipe(world, call),
            "splice" => self.splice(world, call),
            "fcntl" => self.fcntl(world, call),
            "ioctl" => self.ioctl(world, call),
            "getsockopt" => self.getsockopt(world, call),
            "setsockopt" => self.setsockopt(world, call),
            "poll" => self.poll(world, call),
            "epoll_create" | "epoll_create1" => self.epoll_create(world, call),
            "epoll_ctl" => self.epoll_ctl(world, call),
            "epoll_wait" | "epoll_pwait" => self.epoll_wait(world, call),
            other => Err(format!("{other}() is not supported")),
        }
    }

    /// Puts a new object under the number that the script wants, or the lowest free one.
    fn insert(&mut self, wanted: Option<i64>, object: Object) -> Result<i64, String> {
        let lowest = || (3..).find(|n| !self.objects.contains_key(n)).unwrap_or(3);
        let fd = wanted.unwrap_or_else(lowest);
        // A script may call a new socket like one that it never closed: that stays open without a name.
        self.objects.insert(fd, object);
        Ok(fd)
    }

    fn socket_at(&mut self, fd: i64) -> Result<&mut Sock, i32> {
        match self.objects.get_mut(&fd) {
            Some(Object::Socket(sock)) => Ok(sock),
            Some(_) => Err(libc::ENOTSOCK),
            None => Err(libc::EBADF),
        }
    }

    /// The slot of the socket that was made last, for code blocks about a connection that no call has shown yet.
    pub fn newest_slot(&self) -> Option<u32> {
        self.objects.values().rev().find_map(|o| match o {
            Object::Socket(s) => Some(s.slot),
            _ => None,
        })
    }
}

/// Gets the socket or ends the call with the errno.
macro_rules! socket {
    ($self:expr, $fd:expr) => {
        match $self.socket_at($fd) {
            Ok(sock) => sock,
            Err(errno) => return $crate::packetdrill::calls::fails(errno),
        }
    };
}
use socket;
