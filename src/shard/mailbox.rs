//! What other threads may leave for a shard: messages of the control thread, and frames of other shards.
//!
//! Both queues are bounded. A frame that finds its queue full is dropped and counted, as a NIC would; TCP sends it
//! again. A message is never dropped: the control thread is told and tries again.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use rustix::event::{EventfdFlags, eventfd};
use sidestep_stack::{Error, ListenAddress, NeighborUpdate, TCP_INFO_BYTES, TcpOptions};

use super::view::{ShardReport, SocketRow};
use crate::control::group::Group;
use crate::latency::LatencyReport;

/// Frames that wait at most for one shard. A burst of one NAPI poll (64) from each of 16 shards fits.
const FRAMES: usize = 1024;
/// Messages that wait at most: the control thread has one or two under way.
const MESSAGES: usize = 1024;
/// Times that a full box is tried within the patience of whoever asks.
const TRIES: u32 = 20;

/// A frame that its first shard could not place.
#[derive(Debug)]
pub struct Foreign {
    pub frame: Box<[u8]>,
    /// Shards that may still be asked, this one included. At 1 this shard is the last and must answer.
    pub hops_left: u32,
}

/// From the control thread. `reply` is answered before the shard's next turn ends.
#[derive(Debug)]
pub enum Message {
    AddGroup {
        group: Arc<Group>,
        reply: SyncSender<()>,
    },
    /// Drop the view of a group without processes; false while the shard still has sockets of it.
    RemoveGroup {
        group: u32,
        reply: SyncSender<bool>,
    },
    /// Sockets of the group on this shard.
    CountSockets {
        group: u32,
        reply: SyncSender<usize>,
    },
    /// Event queue `queue` is rung by sending a byte to this descriptor.
    EventQueue {
        group: u32,
        queue: u32,
        doorbell: Option<Arc<OwnedFd>>,
        reply: SyncSender<()>,
    },
    ProcessDied {
        group: u32,
        process: u32,
        /// No process of the group is left: whatever its memory says, nobody holds anything.
        last: bool,
        reply: SyncSender<()>,
    },
    Listen {
        group: u32,
        slot: u32,
        at: ListenAddress,
        backlog: u32,
        options: Box<TcpOptions>,
        reuse_port: bool,
        reply: SyncSender<Result<(), Error>>,
    },
    /// A listening or datagram socket ends here; connections that wait to be accepted are reset.
    CloseShared {
        group: u32,
        slot: u32,
        reply: SyncSender<()>,
    },
    OpenDatagram {
        group: u32,
        slot: u32,
        at: ListenAddress,
        /// It shares what comes with others of its port by a hash: SO_REUSEPORT.
        reuse: bool,
        reply: SyncSender<Result<(), Error>>,
    },
    Neighbor(NeighborUpdate),
    /// Whether any connection, TIME-WAIT included, has a local address that `at` covers.
    UsesPort {
        at: ListenAddress,
        reply: SyncSender<bool>,
    },
    /// TCP_INFO of a socket, as Linux's structure. None: the stack has it no more.
    Info {
        group: u32,
        slot: u32,
        reply: SyncSender<Option<Box<[u8; TCP_INFO_BYTES]>>>,
    },
    Sockets {
        reply: SyncSender<Vec<SocketRow>>,
    },
    Report {
        reply: SyncSender<Box<ShardReport>>,
    },
    /// Where the time goes; with `recent`, also the requests that were followed last.
    Latency {
        recent: bool,
        reply: SyncSender<Box<LatencyReport>>,
    },
    Stop,
}

/// From a shard to the control thread.
#[derive(Debug)]
pub enum Notice {
    /// The last holder of a slot that the control thread keeps books on (bound, listening, datagram) is gone.
    Unheld { group: u32, slot: u32 },
    /// The stack wants to know a neighbour that the kernel resolves.
    NeighborWanted { address: std::net::IpAddr },
}

/// One shard's letter box.
#[derive(Debug)]
pub struct Mailbox {
    frames: ArrayQueue<Foreign>,
    messages: ArrayQueue<Message>,
    /// Up while the shard sleeps or is about to.
    sleeping: AtomicBool,
    wake: OwnedFd,
    /// Frames dropped because `frames` was full.
    pub frames_dropped: AtomicU64,
}

impl Mailbox {
    /// # Errors
    /// No descriptor left for the eventfd.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            frames: ArrayQueue::new(FRAMES),
            messages: ArrayQueue::new(MESSAGES),
            sleeping: AtomicBool::new(false),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            frames_dropped: AtomicU64::new(0),
        })
    }

    /// Leaves a frame of another shard.
    pub fn hand_over(&self, foreign: Foreign) {
        if self.frames.push(foreign).is_err() {
            self.frames_dropped.fetch_add(1, Ordering::Relaxed);
        }
        self.ring();
    }

    /// Leaves a message; gives it back when the queue is full.
    pub fn send(&self, message: Message) -> Result<(), Message> {
        let sent = self.messages.push(message);
        self.ring();
        sent
    }

    /// Asks the shard and waits for its answer; None when none comes within `patience`.
    pub fn ask<T>(&self, make: impl FnOnce(SyncSender<T>) -> Message, patience: Duration) -> Option<T> {
        let (reply, answer) = sync_channel(1);
        let mut message = make(reply);
        // The box is full only if the shard's core was taken for long; it is asked again until patience ends.
        for _ in 0..TRIES {
            match self.send(message) {
                Ok(()) => return answer.recv_timeout(patience).ok(),
                Err(back) => message = back,
            }
            std::thread::park_timeout(patience / TRIES);
        }
        None
    }

    pub(super) fn next_frame(&self) -> Option<Foreign> {
        self.frames.pop()
    }

    pub(super) fn next_message(&self) -> Option<Message> {
        self.messages.pop()
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty() && self.messages.is_empty()
    }

    /// The shard is about to sleep: false when something has come that it must look at first.
    pub(super) fn prepare_sleep(&self) -> bool {
        self.sleeping.store(true, Ordering::SeqCst);
        self.is_empty()
    }

    pub(super) fn awake(&self) {
        self.sleeping.store(false, Ordering::SeqCst);
    }

    /// Polls readable (edge-triggered: it is never read) when something was left for a sleeping shard.
    pub(super) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    fn ring(&self) {
        if self.sleeping.load(Ordering::SeqCst) && self.sleeping.swap(false, Ordering::SeqCst) {
            // The counter can't overflow in the lifetime of a machine; a failed write means that it is readable.
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }
}

/// The control thread's letter box.
#[derive(Debug)]
pub struct Notices {
    queue: crossbeam_queue::SegQueue<Notice>,
    wake: OwnedFd,
}

impl Notices {
    /// # Errors
    /// No descriptor left for the eventfd.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            queue: crossbeam_queue::SegQueue::new(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// Leaves a notice. Their number is bounded by that of slots and neighbours: each says a thing once.
    pub fn push(&self, notice: Notice) {
        self.queue.push(notice);
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    pub fn pop(&self) -> Option<Notice> {
        self.queue.pop()
    }

    /// Readable while notices wait; [`Self::silence`] before popping.
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    pub fn silence(&self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.wake, &mut count);
    }
}
