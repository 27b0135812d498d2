//! A script from its first event to its last.

use sidestep_stack::{TcpInfo, TcpState};

use super::calls::{Call, Calls, Step, number};
use super::code::{self, Names};
use super::matching::{compare, spell_expected, spell_live};
use super::script::{Event, Expression, Kind, Packet, Script, Syscall, Time};
use super::settings::Settings;
use super::wire::Live;
use super::world::World;
use super::{info, names, shell};

/// How much later than expected a packet may come to be shown in the error, in microseconds.
const PATIENCE_US: i64 = 10_000_000;
/// The longest time that anything is waited for: beyond every timer of TCP but keep-alive, in microseconds.
const LONGEST_US: i64 = 86_400_000_000;

/// The latest time that a script may have, in microseconds: the stack's clock counts nanoseconds in 64 bits.
const LATEST_US: i64 = 100_000_000_000_000;

/// Why a script did not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub line: usize,
    pub what: String,
}

/// What is told beside the outcome.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// What was skipped or printed, with the line.
    pub lines: Vec<(usize, String)>,
    /// Every event as it happens.
    pub trace: Vec<String>,
}

struct Pending {
    call: Call,
    line: usize,
    /// When it is to return.
    ends: Option<(i64, i64)>,
}

struct Runner<'a> {
    settings: Settings,
    /// Made with the first event that needs it: commands before it only change settings.
    world: Option<World>,
    calls: Calls,
    code: Names,
    pending: Option<Pending>,
    /// Where relative times count from.
    last: i64,
    notes: &'a mut Notes,
}

/// Runs a script under `settings`, to which it adds its own.
///
/// # Errors
/// The first event that doesn't come as the script has it.
pub fn run(script: &Script, mut settings: Settings, notes: &mut Notes) -> Result<(), Failure> {
    for (name, value) in &script.options {
        settings.option(name, value).map_err(|what| Failure { line: 0, what })?;
    }
    let mut runner = Runner {
        settings,
        world: None,
        calls: Calls::default(),
        code: Names::default(),
        pending: None,
        last: 0,
        notes,
    };
    for event in &script.events {
        runner.event(event).map_err(|what| Failure { line: event.line, what })?;
    }
    let line = script.events.last().map_or(0, |e| e.line);
    runner.finish_pending().map_err(|(at, what)| Failure { line: at.unwrap_or(line), what })
}

/// A failure that belongs to an earlier line than the event that met it.
type Late = (Option<usize>, String);

impl Runner<'_> {
    fn event(&mut self, event: &Event) -> Result<(), String> {
        let base = match event.time {
            Time::Relative(_) | Time::RelativeRange(..) => self.last,
            _ => 0,
        };
        let (from, to) = match event.time {
            Time::Any => (0, LONGEST_US),
            Time::Absolute(t) | Time::Relative(t) => (base + t, base + t),
            Time::AbsoluteRange(a, b) | Time::RelativeRange(a, b) => (base + a, base + b),
        };
        if to > LATEST_US {
            return Err(format!("{} is later than this runner's clock goes", seconds(to)));
        }
        let exact = from == to;
        match &event.kind {
            Kind::Packet(packet) if !packet.inbound => {
                let at = self.expect(event, packet, from, to)?;
                self.last = if exact { from } else { at };
                return Ok(());
            }
            Kind::Shell(text) => {
                if self.world.is_some() {
                    self.wait_for(event, from)?;
                }
                let takes = self.shell(event.line, text)?;
                self.last = if event.time == Time::Any { self.now() } else { from } + takes;
                if takes > 0 {
                    self.advance(self.last)?;
                }
                return Ok(());
            }
            _ => {}
        }
        self.wait_for(event, from)?;
        let time = event.time;
        let start = if time == Time::Any { self.now() } else { from };
        match &event.kind {
            Kind::Packet(packet) => {
                self.trace(|| format!("inject {}", spell_expected(packet)));
                self.world()?.inject(packet)?;
                self.retry()?;
            }
            Kind::Syscall(call) => self.call(event.line, call, base)?,
            Kind::Code(text) => self.code(event.line, text)?,
            Kind::Shell(_) => {}
        }
        self.last = start;
        self.check_world()
    }

    fn world(&mut self) -> Result<&mut World, String> {
        if self.world.is_none() {
            self.world = Some(World::new(self.settings.clone())?);
        }
        self.world.as_mut().ok_or_else(|| "no host".into())
    }

    fn now(&self) -> i64 {
        self.world.as_ref().map_or(self.last, World::now)
    }

    fn check_world(&mut self) -> Result<(), String> {
        self.world.as_mut().and_then(|w| w.broken.take()).map_or(Ok(()), Err)
    }

    fn trace(&mut self, what: impl FnOnce() -> String) {
        let now = self.now();
        self.notes.trace.push(format!("{:10.6} {}", now as f64 / 1e6, what()));
    }

    // ---- time -----------------------------------------------------------------------------------------------------

    /// Waits until an event is due. It must not be overdue.
    fn wait_for(&mut self, event: &Event, at: i64) -> Result<(), String> {
        self.world()?;
        if event.time == Time::Any {
            return Ok(());
        }
        self.advance(at)?;
        let now = self.now();
        let slack = self.slack(at);
        if now > at + slack {
            return Err(format!("it is {} already; the event was due at {}", seconds(now), seconds(at)));
        }
        Ok(())
    }

    /// Lets time pass until `to`.
    fn advance(&mut self, to: i64) -> Result<(), String> {
        self.world()?.settle();
        self.retry()?;
        while self.now() < to {
            let limit = self.limit(to);
            self.world()?.step(limit)?;
            self.retry()?;
        }
        Ok(())
    }

    /// `to`, or the end of what a waiting call waits for.
    fn limit(&self, to: i64) -> i64 {
        let deadline = self.pending.as_ref().and_then(|p| p.call.deadline());
        deadline.filter(|d| *d > self.now()).map_or(to, |d| d.min(to))
    }

    /// How far from `at` still counts.
    fn slack(&self, at: i64) -> i64 {
        let share = self.settings.tolerance_percent / 100.0 * (at - self.last).max(0) as f64;
        self.settings.tolerance_us.max(share as i64)
    }

    // ---- packets --------------------------------------------------------------------------------------------------

    /// Waits for a packet of the stack and compares it. Returns when it came.
    fn expect(&mut self, event: &Event, packet: &Packet, from: i64, to: i64) -> Result<i64, String> {
        self.world()?.settle();
        self.retry()?;
        let wanted = spell_expected(packet);
        let give_up = if event.time == Time::Any { self.now() + LONGEST_US } else { to.max(self.now()) + PATIENCE_US };
        let mut live = loop {
            if let Some(live) = self.world()?.take(packet)? {
                break live;
            }
            if self.now() >= give_up {
                return Err(format!("no packet was sent\n  expected: {wanted}"));
            }
            let limit = self.limit(give_up);
            self.world()?.step(limit)?;
            self.retry()?;
        };
        let actual = |live: &Live| format!("\n  expected: {wanted}\n  actual:   {}", spell_live(live, &packet.ip));
        let translated = self.world()?.translate(packet, &mut live);
        self.trace(|| format!("sent   {}", spell_live(&live, &packet.ip)));
        translated.and_then(|()| compare(packet, &live)).map_err(|what| format!("{what}{}", actual(&live)))?;
        let at = live.at;
        let early = at < from - self.slack(from);
        if event.time != Time::Any && (early || at > to + self.slack(to)) {
            let range = if from == to { seconds(from) } else { format!("{}~{}", seconds(from), seconds(to)) };
            let word = if early { "too early" } else { "too late" };
            return Err(format!("{word}: sent at {}, expected at {range}{}", seconds(at), actual(&live)));
        }
        self.check_world()?;
        Ok(at)
    }

    // ---- system calls ---------------------------------------------------------------------------------------------

    fn call(&mut self, line: usize, syscall: &Syscall, base: i64) -> Result<(), String> {
        self.finish_pending().map_err(|(_, what)| what)?;
        self.trace(|| format!("call   {syscall}"));
        let ends = syscall.ends.map(|at| base.saturating_add(at).min(LATEST_US));
        let slack = ends.map_or(0, |at| self.slack(at));
        let call = Call::new(syscall.clone());
        self.pending = Some(Pending { call, line, ends: ends.map(|at| (at, slack)) });
        self.retry()?;
        if ends.is_none() {
            // A call without "..." that waits all the same keeps the script waiting.
            self.finish_pending().map_err(|(_, what)| what)?;
        }
        Ok(())
    }

    /// Tries the waiting call again, and after it the stack.
    fn retry(&mut self) -> Result<(), String> {
        let Some(mut pending) = self.pending.take() else { return Ok(()) };
        let line = pending.line;
        let world = self.world.as_mut().ok_or("no host")?;
        let spelt = pending.call.syscall.to_string();
        let named = |what: String| format!("line {line}: {spelt}: {what}");
        let step = self.calls.attempt(world, &mut pending.call).map_err(named)?;
        world.settle();
        let Step::Done(result) = step else {
            self.pending = Some(pending);
            return Ok(());
        };
        check_result(world, &pending.call.syscall, result).map_err(named)?;
        let now = world.now();
        if let Some((at, slack)) = pending.ends
            && (now < at - slack || now > at + slack)
        {
            return Err(named(format!("returned at {}, expected at {}", seconds(now), seconds(at))));
        }
        Ok(())
    }

    /// Lets time pass until the waiting call has returned.
    fn finish_pending(&mut self) -> Result<(), Late> {
        while let Some(pending) = &self.pending {
            let (line, spelt) = (pending.line, pending.call.syscall.to_string());
            let now = self.now();
            let limit = pending.ends.map_or(now + LONGEST_US, |(at, slack)| at.max(now) + slack);
            let limit = self.limit(limit);
            let failed = |what: String| (Some(line), what);
            let moved = self.world().map_err(failed)?.step(limit).map_err(failed)?;
            self.retry().map_err(failed)?;
            if !moved && self.pending.is_some() && self.pending.as_ref().and_then(|p| p.call.deadline()) != Some(limit)
            {
                return Err((Some(line), format!("line {line}: {spelt} does not return")));
            }
        }
        Ok(())
    }

    // ---- code and commands ----------------------------------------------------------------------------------------

    fn code(&mut self, line: usize, text: &str) -> Result<(), String> {
        self.finish_pending().map_err(|(_, what)| what)?;
        let newest = self.calls.newest_slot();
        let world = self.world()?;
        let slot = world.current.map_or(newest, |i| world.flows[i].slot);
        let found = world.tcp_info(slot);
        let state = slot
            .and_then(|s| world.session.region().slot(s))
            .map_or(0, |s| s.tcp_state.load(std::sync::atomic::Ordering::Relaxed));
        names::for_code().for_each(|(name, value)| self.code.give(name, value));
        info::give(&mut self.code, found.as_ref(), state);
        let notes = &mut self.notes.lines;
        code::run(text, &mut self.code, &mut |printed| notes.push((line, printed.to_owned())))
    }

    fn shell(&mut self, line: usize, text: &str) -> Result<i64, String> {
        let settings = self.world.as_mut().map_or(&mut self.settings, |w| &mut w.settings);
        let outcome = shell::run(text, settings)?;
        if let Some(world) = &mut self.world {
            self.settings = world.settings.clone();
            world.apply();
        }
        self.notes.lines.extend(outcome.skipped.into_iter().map(|what| (line, format!("skipped: {what}"))));
        Ok(outcome.takes)
    }
}

fn check_result(world: &World, syscall: &Syscall, result: Result<i64, i32>) -> Result<(), String> {
    let wanted = &syscall.result;
    let got = match result {
        Ok(value) => value.to_string(),
        Err(errno) => format!("-1 {}", names::errno(errno)),
    };
    let fits = match (result, &wanted.errno) {
        _ if wanted.value == Expression::Ellipsis => true,
        (Err(errno), Some(name)) => names::value(name) == Some(i64::from(errno)) && number(world, &wanted.value)? == -1,
        (Err(_), None) => number(world, &wanted.value)? == -1,
        (Ok(_), Some(_)) => false,
        (Ok(value), None) => number(world, &wanted.value)? == value,
    };
    let errno = wanted.errno.as_ref().map_or_else(String::new, |e| format!(" {e}"));
    if fits { Ok(()) } else { Err(format!("returned {got}, expected {}{errno}", wanted.value)) }
}

fn seconds(us: i64) -> String {
    format!("{:.6} s", us as f64 / 1e6)
}

/// For [`info`]: a connection that the stack has no record of is closed.
pub(super) fn state_of(info: Option<&TcpInfo>, slot_state: u32) -> u32 {
    match (info, slot_state) {
        (Some(info), _) => info.state as u32,
        (None, 0) => TcpState::Closed as u32,
        (None, state) => state,
    }
}
