//! The loop of one core, on one page.

use std::sync::Arc;
use std::time::Duration;

use sidestep_shm::layout::HEARTBEAT_EVERY_NS;
use sidestep_stack::{Instant, Stack, Unknown, Verdict};

use super::apps::Apps;
use super::mailbox::{Foreign, Mailbox, Notices};
use crate::clock::Clock;
use crate::latency::Profile;
use crate::port::FrameIo;

/// Frames taken from the device in one turn: as one NAPI poll, so that commands and timers never wait long.
const RX_BUDGET: usize = 64;
/// Frames given to the device in one turn. More than `RX_BUDGET`: bulk senders answer one ACK with several segments.
const TX_BUDGET: usize = 256;
/// Foreign frames taken in one turn.
const HANDOFF_BUDGET: usize = 64;

/// What one turn did. All zero: idle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    pub received: usize,
    pub handed: usize,
    pub commands: usize,
    pub sent: usize,
}

impl Turn {
    /// Whether there was nothing to do.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        *self == Self::default()
    }
}

/// Counters of the loop itself. All only grow.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct LoopCounters {
    pub turns: u64,
    pub idle_turns: u64,
    pub sleeps: u64,
    pub handed_over: u64,
    pub handed_in: u64,
}

/// One core's share of the engine.
pub struct Shard<P, C> {
    pub(super) number: u32,
    pub(super) port: P,
    pub(super) clock: C,
    pub(super) stack: Stack,
    pub(super) apps: Apps,
    pub(super) mailboxes: Arc<[Mailbox]>,
    pub(super) counters: LoopCounters,
    /// Tells whoever watches over this shard (the XDP program) that it is alive at this time, and whether more SYNs came
    /// since the last time than it answers.
    heartbeat: Box<dyn FnMut(Instant, bool) + Send>,
    next_beat: Instant,
    pub(super) stopping: bool,
    /// Messages were read outside a turn: the next one has something to tell.
    pub(super) pending: bool,
}

impl<P: FrameIo, C: Clock> Shard<P, C> {
    pub fn new(
        number: u32,
        port: P,
        clock: C,
        stack: Stack,
        mailboxes: Arc<[Mailbox]>,
        notices: Arc<Notices>,
        heartbeat: Box<dyn FnMut(Instant, bool) + Send>,
    ) -> Self {
        let apps = Apps::new(number, notices);
        let mut stack = stack;
        stack.set_shared(mailboxes.len() > 1);
        let counters = LoopCounters::default();
        Self {
            number,
            port,
            clock,
            stack,
            apps,
            mailboxes,
            counters,
            heartbeat,
            next_beat: Instant::ZERO,
            stopping: false,
            pending: false,
        }
    }

    /// Follows one data segment in `every` through its stages; 0: none (which is how a shard begins).
    pub fn profile_latency(&mut self, every: u32) {
        self.apps.latency = Profile::new(every);
    }

    /// rx -> ingress -> app commands -> events -> egress -> tx -> timers. Never blocks.
    pub fn turn(&mut self) -> Turn {
        let now = self.clock.now();
        self.stack.note_time(now);
        self.beat(now);
        self.pending = false;

        let received = self.receive(now);
        let handed = self.take_foreign(now);
        self.messages(now);
        let commands = self.apps.commands(&mut self.stack, now);
        if self.apps.latency.owes_any() {
            self.apps.latency.stamp_seen(self.clock.now());
        }
        if self.stack.next_deadline().is_some_and(|at| at <= now) {
            self.stack.handle_timers(now, &mut self.apps);
        }
        // Programs first: they may start while the frames leave.
        self.apps.deliver(&mut self.stack, now);
        if self.apps.latency.owes_any() {
            self.apps.latency.stamp_published(self.clock.now());
        }
        let mut sent = self.send(now);
        if self.apps.abort_due(&mut self.stack, now) {
            sent += self.send(now);
        }
        // Packets from us to us are handled while sending.
        self.apps.deliver(&mut self.stack, now);
        self.hand_over_strays();
        if self.apps.latency.is_following() {
            self.apps.look_at_followed(now);
        }

        let turn = Turn { received, handed, commands, sent };
        self.counters.turns += 1;
        self.counters.idle_turns += u64::from(turn.is_idle());
        turn
    }

    /// When the next turn is due although nothing comes in.
    #[must_use]
    pub fn next_deadline(&self) -> Instant {
        self.stack.next_deadline().map_or(self.next_beat, |t| t.min(self.next_beat))
    }

    fn receive(&mut self, now: Instant) -> usize {
        let (stack, apps, mailboxes, number) = (&mut self.stack, &mut self.apps, &self.mailboxes, self.number);
        let clock = &self.clock;
        let alone = mailboxes.len() == 1;
        let mut handed_over = 0;
        let received = self.port.receive(RX_BUDGET, |frame| {
            let unknown = if alone { Unknown::Answer } else { Unknown::Report };
            if !alone && is_neighbor_answer(frame) {
                // The answer comes to whichever queue the NIC likes; the question may have been another shard's.
                for (other, mailbox) in mailboxes.iter().enumerate() {
                    if other != number as usize {
                        mailbox.hand_over(Foreign { frame: (&*frame).into(), hops_left: 1 });
                    }
                }
            }
            let followed = apps.latency.arm().then(|| clock.now());
            let verdict = stack.handle_frame(now, frame, apps, unknown);
            if let Some(taken) = followed {
                apps.follow_segment(taken, clock.now());
            }
            if let Verdict::Elsewhere { protocol, local_port, .. } = verdict {
                handed_over += 1;
                let to = next_shard(number, mailboxes.len() as u32, protocol, local_port);
                let hops_left = mailboxes.len() as u32 - 1;
                mailboxes[to as usize].hand_over(Foreign { frame: (&*frame).into(), hops_left });
            }
        });
        self.counters.handed_over += handed_over;
        received
    }

    /// Frames that another shard could not place. The last one asked answers as if there were no other.
    fn take_foreign(&mut self, now: Instant) -> usize {
        let mine = &self.mailboxes[self.number as usize];
        let mut taken = 0;
        while taken < HANDOFF_BUDGET
            && let Some(mut foreign) = mine.next_frame()
        {
            taken += 1;
            let unknown = if foreign.hops_left <= 1 { Unknown::Answer } else { Unknown::Report };
            if let Verdict::Elsewhere { .. } = self.stack.handle_stray(now, &foreign.frame, &mut self.apps, unknown) {
                foreign.hops_left -= 1;
                let to = (self.number + 1) % self.mailboxes.len() as u32;
                self.mailboxes[to as usize].hand_over(foreign);
            }
        }
        self.counters.handed_in += taken as u64;
        taken
    }

    /// Packets that came into being here (loopback, whole datagrams out of fragments) and belong to another shard.
    fn hand_over_strays(&mut self) {
        while let Some(stray) = self.stack.poll_stray() {
            self.counters.handed_over += 1;
            let shards = self.mailboxes.len() as u32;
            let to = next_shard(self.number, shards, stray.protocol, stray.local_port);
            self.mailboxes[to as usize].hand_over(Foreign { frame: stray.frame.into(), hops_left: shards - 1 });
        }
    }

    fn send(&mut self, now: Instant) -> usize {
        if !self.stack.has_output() {
            // Copy-mode transmission may still have frames that the kernel did not take: flush looks.
            self.port.flush();
            return 0;
        }
        let mut sent = 0;
        // Bulk in large packets where the device cuts them, the rest frame by frame, by turns as it comes.
        while sent < TX_BUDGET {
            let before = sent;
            sent += self.send_large(now, TX_BUDGET - sent);
            let large = self.port.large_capacity();
            let (stack, apps, clock) = (&mut self.stack, &mut self.apps, &self.clock);
            sent += self.port.transmit(TX_BUDGET - sent.min(TX_BUDGET), |buffer| {
                if large > 0 && stack.has_large(now, large) {
                    return None;
                }
                let length = stack.poll_frame(now, buffer, apps);
                if apps.latency.owes_built() {
                    apps.latency.stamp_built(clock.now());
                }
                length
            });
            if large == 0 || sent == before || !self.stack.has_output() {
                break;
            }
        }
        if self.apps.latency.owes_sent() {
            let queued = self.clock.now();
            self.port.flush();
            self.apps.latency.stamp_sent(queued, self.clock.now());
        } else {
            self.port.flush();
        }
        sent
    }

    /// Packets that the device cuts into frames; how many those are.
    fn send_large(&mut self, now: Instant, budget: usize) -> usize {
        let mut sent = 0;
        while sent < budget && self.port.large_capacity() > 0 {
            let (stack, apps, clock) = (&mut self.stack, &mut self.apps, &self.clock);
            let frames = self.port.transmit_large(|buffer| {
                let large = stack.poll_large(now, buffer, apps);
                if apps.latency.owes_built() {
                    apps.latency.stamp_built(clock.now());
                }
                large
            });
            if frames == 0 {
                break;
            }
            sent += frames;
        }
        sent
    }

    fn beat(&mut self, now: Instant) {
        if now >= self.next_beat {
            // Four beats fit into the time after which anyone would worry.
            self.next_beat = now + Duration::from_nanos(HEARTBEAT_EVERY_NS / 2);
            (self.heartbeat)(now, self.stack.take_flooded());
            self.apps.sweep(&self.stack);
            if self.number == 0 {
                self.apps.beat(now);
            }
        }
    }
}

/// An ARP reply (RFC 826) or a neighbour advertisement (RFC 4861), untagged and without extension headers.
fn is_neighbor_answer(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some([0x08, 0x06]) => frame.get(20..22) == Some(&[0, 2]),
        Some([0x86, 0xdd]) => frame.get(20) == Some(&58) && frame.get(54) == Some(&136),
        _ => false,
    }
}

/// Whom to ask about a frame that is not ours: a datagram's shard follows from its port; for TCP, the neighbour.
fn next_shard(me: u32, shards: u32, protocol: u8, local_port: u16) -> u32 {
    let home = crate::control::ports::datagram_shard(local_port, shards);
    if protocol == 17 && home != me { home } else { (me + 1) % shards }
}
