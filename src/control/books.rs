//! The books: who is attached, who has which port and which slot. What requests, notices and deaths do to them is in
//! [`super::requests`]; here is how they reach the shards, and the life of groups.
//!
//! They know no socket and no thread. The control thread ([`super::server`]) reads requests off connections and hands
//! them in; [`crate::local`] does so inside the caller's own call.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

use sidestep_shm::Geometry;
use sidestep_shm::layout::IN_TRANSIT;
use sidestep_shm::wire::RouteRule;
use sidestep_stack::ListenAddress;

use super::SHARD_PATIENCE;
use super::group::Group;
use super::lost::Suspects;
use super::ports::{Binding, PortTable, Protocol};
use super::transit::Transits;
use crate::shard::mailbox::{Mailbox, Message};
use crate::xdp::Steering;

/// What the control thread is made with.
#[derive(Debug, Clone)]
pub struct ControlSettings {
    pub geometry: Geometry,
    pub spin_us: u32,
    pub rules: Vec<RouteRule>,
    /// Addresses that a program may bind to.
    pub addresses: Vec<IpAddr>,
    /// Whether 127.0.0.0/8 and ::1 live in the stack.
    pub loopback_in_stack: bool,
    /// First and last port for bind() to port 0.
    pub ephemeral_ports: (u16, u16),
    /// The machine's own address: ports are marked for the XDP program and kept from the kernel's programs.
    pub shared_address: bool,
    /// Ports that programs of the engine may not have.
    pub kernel_ports: Vec<(u16, u16)>,
    /// Facts for `stats`, as JSON.
    pub facts: serde_json::Value,
}

/// Numbers that others want to see without asking.
#[derive(Debug, Default)]
pub struct EngineGauges {
    pub programs: AtomicUsize,
}

pub(super) struct GroupState {
    pub group: Arc<Group>,
    pub pids: Vec<Option<u32>>,
    /// By slot; in order, so that what happens to all of them happens in the same order every time.
    pub books: BTreeMap<u32, Book>,
}

/// What the control thread knows of a slot.
#[derive(Debug, Clone, Copy)]
pub(super) struct Book {
    pub protocol: Protocol,
    /// As the program gave it.
    pub address: [u8; 16],
    pub at: ListenAddress,
    pub reuse_port: bool,
    pub listening: bool,
}

/// Makes the shard of this number read its messages, where no thread of its own does. May leave it to a thread that
/// turns the shard right now.
pub type RunMessages = Box<dyn Fn(usize) + Send>;

/// See the module.
pub struct Books {
    pub(super) settings: ControlSettings,
    pub(super) groups: Vec<Option<GroupState>>,
    pub(super) ports: PortTable,
    pub(super) mailboxes: Arc<[Mailbox]>,
    pub(super) steering: Option<Arc<Mutex<Steering>>>,
    gauges: Arc<EngineGauges>,
    /// Ports of a shared address that nobody claims any more, but connections may still use.
    pub(super) leaving: Vec<(Protocol, u16, Binding)>,
    pub(super) transits: Transits,
    pub(super) suspects: Vec<Suspects>,
    /// State of the port chooser; any number will do, but two engines should not have the same.
    random: u64,
    /// None: shards have threads, which read their messages themselves.
    run_messages: Option<RunMessages>,
}

impl Books {
    /// `random` must not be zero.
    #[must_use]
    pub fn new(
        settings: ControlSettings,
        mailboxes: Arc<[Mailbox]>,
        steering: Option<Arc<Mutex<Steering>>>,
        gauges: Arc<EngineGauges>,
        random: u64,
        run_messages: Option<RunMessages>,
    ) -> Self {
        Self {
            settings,
            groups: Vec::new(),
            ports: PortTable::default(),
            mailboxes,
            steering,
            gauges,
            leaving: Vec::new(),
            transits: Transits::new(),
            suspects: Vec::new(),
            random,
            run_messages,
        }
    }

    // ---- shards ---------------------------------------------------------------------------------------------------

    /// Asks one shard and waits for its answer.
    pub(super) fn ask<T>(&self, shard: usize, make: impl FnOnce(SyncSender<T>) -> Message) -> Option<T> {
        let mailbox = self.mailboxes.get(shard)?;
        let answer = match &self.run_messages {
            None => mailbox.ask(make, SHARD_PATIENCE),
            Some(run) => {
                let (reply, answer) = sync_channel(1);
                mailbox.send(make(reply)).ok()?;
                run(shard);
                answer.recv_timeout(SHARD_PATIENCE).ok()
            }
        };
        if answer.is_none() {
            tracing::error!(shard, "a shard doesn't answer");
        }
        answer
    }

    /// Asks every shard; None for those that don't answer.
    pub(super) fn ask_all<T>(&self, make: impl Fn(SyncSender<T>) -> Message) -> Vec<Option<T>> {
        (0..self.mailboxes.len()).map(|shard| self.ask(shard, &make)).collect()
    }

    // ---- groups ---------------------------------------------------------------------------------------------------

    pub(super) fn group(&self, group: u32) -> Option<&GroupState> {
        self.groups.get(group as usize)?.as_ref()
    }

    pub(super) fn group_mut(&mut self, group: u32) -> Option<&mut GroupState> {
        self.groups.get_mut(group as usize)?.as_mut()
    }

    /// Finds the group of a token, or makes it on every shard.
    pub(super) fn group_of(&mut self, token: u128) -> io::Result<u32> {
        if token != 0
            && let Some(known) = self.group_index(token)
        {
            return Ok(known);
        }
        let index = self.groups.iter().position(Option::is_none).unwrap_or(self.groups.len());
        let token = if token == 0 { u128::from(self.draw()) << 64 | u128::from(self.draw()) } else { token };
        let group = Arc::new(Group::new(index as u32, token, self.settings.geometry)?);
        let added = self.ask_all(|reply| Message::AddGroup { group: Arc::clone(&group), reply });
        if added.iter().any(Option::is_none) {
            return Err(io::Error::other("a shard doesn't answer"));
        }
        let state = GroupState { group, pids: vec![None; IN_TRANSIT as usize], books: BTreeMap::new() };
        if index == self.groups.len() {
            self.groups.push(Some(state));
        } else {
            self.groups[index] = Some(state);
        }
        Ok(index as u32)
    }

    /// The group of this token, if somebody is in it or sockets of it live on.
    #[must_use]
    pub fn group_index(&self, token: u128) -> Option<u32> {
        self.groups.iter().flatten().find(|g| g.group.token == token).map(|g| g.group.index)
    }

    /// What a process held is let go, its event queues are free, its locks open.
    pub fn process_died(&mut self, group: u32, process: u32) {
        let Some(state) = self.group_mut(group) else { return };
        if let Some(pid) = state.pids.get_mut(process as usize) {
            *pid = None;
        }
        let last = state.pids.iter().all(Option::is_none);
        let shared = Arc::clone(&state.group);
        let region = shared.region();
        if let Some(p) = region.process(process) {
            p.pid.store(0, Ordering::Release);
        }
        for queue in 0..sidestep_shm::layout::MAX_EVENT_QUEUES {
            let Some(q) = region.event_queue(queue) else { break };
            if q.owner.load(Ordering::Acquire) == process + 1 {
                self.ask_all(|reply| Message::EventQueue { group, queue, doorbell: None, reply });
                q.door.open();
                q.dirty.clear();
                q.owner.store(0, Ordering::Release);
            }
        }
        let held: Vec<u32> = self.group(group).map(|s| s.books.keys().copied().collect()).unwrap_or_default();
        for slot in held {
            if let Some(shared_slot) = region.slot(slot) {
                shared_slot.break_locks(process);
                shared_slot.let_go(process);
                if last {
                    shared_slot.let_all_go();
                }
            }
        }
        self.ask_all(|reply| Message::ProcessDied { group, process, last, reply });
        let unheld: Vec<u32> = self
            .group(group)
            .map(|s| s.books.keys().copied().filter(|&n| region.slot(n).is_some_and(|s| !s.is_held())).collect())
            .unwrap_or_default();
        for slot in unheld {
            self.unheld(group, slot);
        }
        if !last {
            self.find_lost(group, process);
        }
        self.count_programs();
    }

    pub(super) fn count_programs(&self) {
        let programs = self.groups.iter().flatten().map(|g| g.pids.iter().flatten().count()).sum();
        self.gauges.programs.store(programs, Ordering::Release);
    }

    /// Groups that have neither processes nor sockets give their memory back. False while a group without processes
    /// still has sockets.
    pub fn drop_empty_groups(&mut self) -> bool {
        let mut all_gone = true;
        for index in 0..self.groups.len() {
            let Some(state) = &self.groups[index] else { continue };
            if state.pids.iter().any(Option::is_some) {
                continue;
            }
            let group = index as u32;
            let empty = state.books.is_empty()
                && self.ask_all(|reply| Message::CountSockets { group, reply }).iter().all(|c| *c == Some(0));
            if empty {
                self.ask_all(|reply| Message::RemoveGroup { group, reply });
                self.groups[index] = None;
            }
            all_gone &= empty;
        }
        all_gone
    }

    /// A number nobody can guess from outside: xorshift over a seed from the kernel.
    pub(super) fn draw(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}
