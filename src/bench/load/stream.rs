//! Bytes one way, as many as go. Written bytes count when the stack has taken them: what still lies in its buffers at
//! the end is less than a thousandth of a second's worth of a fast link. Reading (`reverse`) counts what arrived.

use std::io;
use std::time::Duration;

use sidestep_client::now_ns;

use super::Job;
use super::rr::connect_all;
use crate::bench::net::{Handle, Net};
use crate::bench::serve::Role;

/// Calls on one connection before another has its turn.
const CALLS: usize = 16;

pub(super) fn run<N: Net>(mut net: N, mut job: Job<'_>, reverse: bool) -> io::Result<()> {
    let handles = connect_all(&mut net, &job, if reverse { Role::Source } else { Role::Discard })?;
    if job.wait_for_start().is_none() {
        return Ok(());
    }
    let mut buf = vec![0x5a; job.load.size as usize];
    // Connections that may be able to go on; the others wait for an event.
    let mut able: Vec<Handle> = handles.clone();
    let mut ready = Vec::new();
    loop {
        let now = now_ns();
        job.recorder.tick(now);
        if job.is_over(now) {
            break;
        }
        let mut failed = None;
        able.retain(|&handle| match move_some(&mut net, handle, reverse, &mut buf, &mut job) {
            Ok(more) => more,
            Err(error) => {
                failed = Some(error);
                false
            }
        });
        if let Some(error) = failed {
            job.recorder.error(now);
            return Err(error);
        }
        let timeout = if able.is_empty() { None } else { Some(Duration::ZERO) };
        net.wait(timeout, &mut ready)?;
        for event in &ready {
            let wanted = if reverse { event.readable } else { event.writable };
            if wanted && !able.contains(&event.handle) {
                able.push(event.handle);
            }
        }
    }
    job.recorder.finish();
    Ok(())
}

/// True: there may be more at once.
fn move_some<N: Net>(
    net: &mut N,
    handle: Handle,
    reverse: bool,
    buf: &mut [u8],
    job: &mut Job<'_>,
) -> io::Result<bool> {
    for _ in 0..CALLS {
        let moved = if reverse { net.read(handle, buf)? } else { net.write(handle, buf)? };
        match moved {
            None => return Ok(false),
            Some(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed a connection")),
            Some(n) => job.recorder.moved(now_ns(), 1, n as u64),
        }
    }
    Ok(true)
}
