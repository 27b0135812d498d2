//! Files and pipes, as far as scripts move bytes between them and sockets.

use std::collections::VecDeque;

use super::super::script::Expression;
use super::super::world::World;
use super::arguments::{is_null, number, size};
use super::data::{How, send_stream};
use super::{Attempt, Call, Calls, Object, Step, fails, gives, socket};

/// Bytes that a pipe holds.
const PIPE: usize = 65_536;

impl Calls {
    pub(super) fn open(&mut self, world: &mut World, call: &Call) -> Attempt {
        let Expression::Text(name) = call.argument(0)? else { return Err("open() of what is no name".into()) };
        match world.settings.files.get(name).copied() {
            Some(len) => gives(self.insert(call.wanted(), Object::File { len, at: 0 })?),
            None => fails(libc::ENOENT),
        }
    }

    pub(super) fn pipe(&mut self, world: &mut World, call: &Call) -> Attempt {
        let Expression::List(ends) = call.argument(0)? else { return Err("pipe() without a pair".into()) };
        let wanted: Vec<Option<i64>> = ends.iter().map(|e| number(world, e).ok()).collect();
        let [read, write] = wanted[..] else { return Err("pipe() without a pair".into()) };
        self.pipes.push(VecDeque::new());
        let bytes = self.pipes.len() - 1;
        self.insert(read, Object::Pipe { bytes, writes: false })?;
        self.insert(write, Object::Pipe { bytes, writes: true })?;
        gives(0)
    }

    pub(super) fn read_file(&mut self, fd: i64, most: usize) -> Attempt {
        match self.objects.get_mut(&fd) {
            Some(Object::File { len, at }) => {
                let n = (*len - *at).min(most as u64);
                *at += n;
                gives(n as i64)
            }
            Some(Object::Pipe { bytes, writes: false }) => {
                let bytes = &mut self.pipes[*bytes];
                let n = bytes.len().min(most);
                bytes.drain(..n);
                if n == 0 && most > 0 { Ok(Step::Wait) } else { gives(n as i64) }
            }
            _ => fails(libc::EBADF),
        }
    }

    pub(super) fn write_pipe(&mut self, fd: i64, len: usize) -> Attempt {
        let Some(Object::Pipe { bytes, writes: true }) = self.objects.get(&fd) else { return fails(libc::EBADF) };
        let bytes = &mut self.pipes[*bytes];
        let n = len.min(PIPE - bytes.len().min(PIPE));
        bytes.extend(std::iter::repeat_n(0, n));
        if n == 0 && len > 0 { Ok(Step::Wait) } else { gives(n as i64) }
    }

    pub(super) fn sendfile(&mut self, world: &mut World, call: &mut Call) -> Attempt {
        let (to, from) = (call.number(world, 0)?, call.number(world, 1)?);
        let offset = match call.argument(2)? {
            e if is_null(e) => None,
            Expression::List(all) if all.first() == Some(&Expression::Ellipsis) => None,
            e => Some(number(world, e)?),
        };
        let count = size(world, call.argument(3)?)?;
        let Some(Object::File { len, at }) = self.objects.get(&from) else { return fails(libc::EINVAL) };
        let start = offset.map_or(*at, |o| u64::try_from(o).unwrap_or(0));
        let total = len.saturating_sub(start).min(count as u64) as usize;
        let sock = socket!(self, to);
        let waits = !sock.nonblocking;
        // More than what fits one segment is sent as with MSG_MORE up to its end, which this is.
        let step = send_stream(world, sock, call, total, How { waits, ..How::default() })?;
        if let (Step::Done(Ok(sent)), None, Some(Object::File { at, .. })) =
            (&step, offset, self.objects.get_mut(&from))
        {
            *at += *sent as u64;
        }
        Ok(step)
    }

    pub(super) fn splice(&mut self, world: &mut World, call: &mut Call) -> Attempt {
        let (from, to) = (call.number(world, 0)?, call.number(world, 2)?);
        let most = size(world, call.argument(4)?)?;
        match (self.objects.get(&from), self.objects.get(&to)) {
            (Some(Object::Socket(s)), Some(Object::Pipe { bytes, writes: true })) => {
                let (slot, pipe, waits) = (s.slot, *bytes, !s.nonblocking);
                let room = most.min(PIPE - self.pipes[pipe].len().min(PIPE));
                let mut buffer = vec![0; room];
                match world.session.receive(slot, &mut [std::io::IoSliceMut::new(&mut buffer)], false) {
                    Ok(n) => {
                        self.pipes[pipe].extend(&buffer[..n]);
                        gives(n as i64)
                    }
                    Err(sidestep_client::Errno::AGAIN) if waits => Ok(Step::Wait),
                    Err(error) => fails(error.raw_os_error()),
                }
            }
            (Some(Object::Pipe { bytes, writes: false }), Some(Object::Socket(_))) => {
                let pipe = *bytes;
                let n = self.pipes[pipe].len().min(most);
                if n == 0 {
                    return Ok(Step::Wait);
                }
                let sock = socket!(self, to);
                let waits = !sock.nonblocking;
                let step = send_stream(world, sock, call, n, How { waits, ..How::default() })?;
                if let Step::Done(Ok(sent)) = step {
                    self.pipes[pipe].drain(..sent as usize);
                }
                Ok(step)
            }
            (None, _) | (_, None) => fails(libc::EBADF),
            _ => fails(libc::EINVAL),
        }
    }
}
