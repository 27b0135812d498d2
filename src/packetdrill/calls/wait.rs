//! poll() and epoll: the client's own bookkeeping of interests, with the script's clock.

use libc::epoll_event;
use sidestep_client::interest::Interests;

use super::super::script::Expression;
use super::super::world::World;
use super::arguments::{field, number};
use super::sockets::expect;
use super::{Attempt, Call, Calls, Object, Step, fails, gives};

/// One epoll instance.
pub(super) struct Epoll(Interests);

impl Calls {
    pub(super) fn poll(&mut self, world: &mut World, call: &mut Call) -> Attempt {
        let Expression::List(entries) = call.argument(0)?.clone() else { return Err("poll() without a list".into()) };
        let timeout = call.number(world, 2)?;
        let mut ready = 0;
        let mut all = Vec::new();
        for entry in &entries {
            let part = |name: &str| field(entry, name).ok_or_else(|| format!("{entry} has no {name}"));
            let (fd, events) = (number(world, part("fd")?)?, number(world, part("events")?)?);
            let always = i64::from(libc::POLLERR | libc::POLLHUP | libc::POLLNVAL);
            let got = match self.objects.get(&fd) {
                Some(Object::Socket(s)) => i64::from(world.session.readiness(s.slot)) & (events | always),
                Some(_) => 0,
                None if fd < 0 => 0,
                None => i64::from(libc::POLLNVAL),
            };
            ready += i64::from(got != 0);
            all.push((part("revents")?, fd, got));
        }
        if ready == 0 && timeout != 0 && waits(world, call, timeout) {
            return Ok(Step::Wait);
        }
        for (wanted, fd, got) in all {
            expect(world, &format!("revents of descriptor {fd} is"), wanted, got)?;
        }
        gives(ready)
    }

    pub(super) fn epoll_create(&mut self, world: &World, call: &Call) -> Attempt {
        if call.syscall.name == "epoll_create" && call.number(world, 0)? <= 0 {
            return fails(libc::EINVAL);
        }
        gives(self.insert(call.wanted(), Object::Epoll(Epoll(Interests::new())))?)
    }

    pub(super) fn epoll_ctl(&mut self, world: &World, call: &Call) -> Attempt {
        let (epfd, what, fd) = (call.number(world, 0)?, call.number(world, 1)? as i32, call.number(world, 2)?);
        let slot = match self.objects.get(&fd) {
            Some(Object::Socket(s)) => s.slot,
            Some(_) => return fails(libc::EPERM),
            None => return fails(libc::EBADF),
        };
        let Some(Object::Epoll(Epoll(interests))) = self.objects.get_mut(&epfd) else { return fails(libc::EBADF) };
        let (mut events, mut data) = (0, 0);
        if what != libc::EPOLL_CTL_DEL {
            let event = call.argument(3)?;
            events = field(event, "events").map_or(Ok(0), |e| number(world, e))? as u32;
            data = data_of(world, event)?.unwrap_or(0) as u64;
        }
        let event = (what != libc::EPOLL_CTL_DEL).then_some((events, data));
        match interests.control(slot, fd as i32, what, event) {
            Ok(()) => gives(0),
            Err(errno) => fails(errno.raw_os_error()),
        }
    }

    pub(super) fn epoll_wait(&mut self, world: &mut World, call: &mut Call) -> Attempt {
        let epfd = call.number(world, 0)?;
        // `epoll_wait(5, {events=…, fd=4}, 1, 0)`, or a list of several.
        let wanted = match call.argument(1)?.clone() {
            Expression::List(all) => all,
            one => vec![one],
        };
        let (most, timeout) = (call.number(world, 2)?, call.number(world, 3)?);
        let sockets: Vec<(u32, u32)> = self
            .objects
            .values()
            .filter_map(|o| match o {
                Object::Socket(s) => Some((s.slot, s.starved)),
                _ => None,
            })
            .collect();
        let Some(Object::Epoll(Epoll(interests))) = self.objects.get_mut(&epfd) else { return fails(libc::EBADF) };
        if most <= 0 {
            return fails(libc::EINVAL);
        }
        // The engine's marks only save looking at sockets in vain.
        interests.mark_all();
        let mut out = vec![epoll_event { events: 0, u64: 0 }; usize::try_from(most).unwrap_or(1).min(1024)];
        let session = &world.session;
        let found = interests.collect(&mut out, |slot| {
            let starved = sockets.iter().find(|s| s.0 == slot)?.1;
            session.look(slot, starved)
        });
        if found == 0 && timeout != 0 && waits(world, call, timeout) {
            return Ok(Step::Wait);
        }
        for (event, wanted) in out[..found].iter().zip(&wanted) {
            if let Some(events) = field(wanted, "events") {
                expect(world, "events is", events, i64::from(event.events))?;
            }
            if let Some(data) = data_of(world, wanted)?.filter(|_| found > 0) {
                expect(world, "the event's data is", &Expression::Number(data), event.u64.cast_signed())?;
            }
        }
        gives(found as i64)
    }

    pub(super) fn forget_in_epolls(&mut self, slot: u32) {
        for object in self.objects.values_mut() {
            if let Object::Epoll(Epoll(interests)) = object {
                interests.forget(slot);
            }
        }
    }
}

/// Whether a call with a timeout in milliseconds goes on waiting.
fn waits(world: &World, call: &mut Call, timeout: i64) -> bool {
    if timeout < 0 {
        return true;
    }
    let deadline = *call.deadline.get_or_insert(world.now() + timeout * 1000);
    world.now() < deadline
}

fn data_of(world: &World, event: &Expression) -> Result<Option<i64>, String> {
    let value = ["fd", "u32", "u64", "ptr"].iter().find_map(|n| field(event, n));
    value.filter(|v| **v != Expression::Ellipsis).map(|v| number(world, v)).transpose()
}
