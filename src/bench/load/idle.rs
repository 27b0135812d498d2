//! Connections that do nothing. Each is proved alive before and after by one echo; in between only the clock is looked
//! at. What counts is the CPU time.

use std::io;
use std::time::Duration;

use sidestep_client::now_ns;

use super::rr::connect_all;
use super::{Job, SET_UP};
use crate::bench::net::{Handle, Net};
use crate::bench::serve::Role;

pub(super) fn run<N: Net>(mut net: N, mut job: Job<'_>) -> io::Result<()> {
    let handles = connect_all(&mut net, &job, Role::Echo)?;
    let alive = echo_each(&mut net, &handles)?;
    if alive != handles.len() {
        let what = format!("{alive} of {} connections answer", handles.len());
        return Err(io::Error::new(io::ErrorKind::ConnectionReset, what));
    }
    if job.wait_for_start().is_none() {
        return Ok(());
    }
    let mut ready = Vec::new();
    loop {
        let now = now_ns();
        job.recorder.tick(now);
        if job.is_over(now) {
            break;
        }
        let left = Duration::from_nanos(job.recorder.end() - now);
        net.wait(Some(left), &mut ready)?;
    }
    job.recorder.finish();
    let alive = echo_each(&mut net, &handles)?;
    if alive == handles.len() {
        return Ok(());
    }
    let what = format!("{alive} of {} connections still answer after idling", handles.len());
    Err(io::Error::new(io::ErrorKind::ConnectionReset, what))
}

/// How many answered.
fn echo_each<N: Net>(net: &mut N, handles: &[Handle]) -> io::Result<usize> {
    let mut ready = Vec::new();
    let mut buf = [0; 64];
    let mut answered = 0;
    for &handle in handles {
        net.write(handle, b"?")?;
    }
    let until = now_ns() + SET_UP.as_nanos() as u64;
    while answered < handles.len() && now_ns() < until {
        net.wait(Some(Duration::from_millis(100)), &mut ready)?;
        for event in ready.iter().filter(|e| e.readable) {
            answered += usize::from(matches!(net.read(event.handle, &mut buf), Ok(Some(1..))));
        }
    }
    Ok(answered)
}
