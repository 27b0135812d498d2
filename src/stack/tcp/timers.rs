//! What time does to a connection. Each has one place in the wheel, armed for its nearest deadline; a deadline that
//! moves away leaves it where it is, and the connection looks at its true deadlines when it fires.

use super::connection::{Connection, NEVER, ORIGIN};
use super::path::SUSPICIOUS_TIMEOUTS;
use super::recovery::Phase;
use crate::{Error, Instant, TcpConfig, TcpState};
use core::time::Duration;

/// Timeouts in a row after which a connection without an owner is given up (tcp_orphan_retries).
const ORPHAN_RETRIES: u8 = 8;

/// Peers don't answer at once: interrupts, scheduling. Linux allows for two ticks of its clock.
const TAIL_PROBE_MARGIN: Duration = Duration::from_millis(1);

/// How long so many retransmissions take of a connection with the shortest timeout. As Linux counts tcp_retries2: what a
/// program sees doesn't depend on the round trip (RFC 9293 3.8.3, R2).
fn patience(retries: u8, config: &TcpConfig) -> Duration {
    let (mut total, mut timeout) = (config.min_rto, config.min_rto);
    for _ in 0..retries {
        timeout = timeout.saturating_mul(2).min(config.max_rto);
        total = total.saturating_add(timeout);
    }
    total
}

impl Connection {
    /// The nearest deadline, [`NEVER`] without any.
    pub fn deadline(&self, config: &TcpConfig) -> Instant {
        let mut deadline = self.retransmit_at.min(self.reorder_at).min(self.ack_at).min(self.linger_at);
        if self.cork_at != Instant::ZERO {
            deadline = deadline.min(self.cork_at);
        }
        if self.options.keep_alive {
            deadline = deadline.min(self.keepalive_at(config));
        }
        deadline = deadline.min(self.tail_probe_at(config));
        if self.parked_until != Instant::ZERO {
            deadline = deadline.min(self.parked_until);
        }
        if let Some(limit) = self.user_timeout()
            && self.retransmit_at != NEVER
        {
            deadline = deadline.min(self.stalled_since + limit);
        }
        deadline
    }

    /// Starts and stops the retransmission and persist timers as the state demands. `idle`: nothing can be sent now.
    pub fn update_timers(&mut self, now: Instant, config: &TcpConfig, idle: bool) {
        let syn_outstanding = matches!(self.state, TcpState::SynSent | TcpState::SynReceived) && self.nxt > ORIGIN;
        let outstanding = !self.board.is_empty() || syn_outstanding;
        let persisting = !outstanding && (idle || self.persisting) && self.is_blocked_by_window();
        if persisting != self.persisting {
            // The two share a timer, but not how often it has fired.
            self.persisting = persisting;
            self.backoff = 0;
            self.retransmit_at = NEVER;
            if persisting {
                self.stalled_since = now;
            }
        }
        if !outstanding && !persisting {
            self.retransmit_at = NEVER;
        } else if self.retransmit_at == NEVER {
            // RFC 6298 5.1: started when something is sent and it isn't running.
            self.retransmit_at = now + self.timeout(config);
        }
    }

    /// Does what is due at `now`.
    pub fn on_timer(&mut self, now: Instant, config: &TcpConfig) {
        if self.state == TcpState::Closed {
            return;
        }
        if now >= self.linger_at {
            // As Linux: the peer keeps its half open for longer than anyone waits. It hears a RST if it goes on.
            self.end(None);
            return;
        }
        if now >= self.parked_until {
            self.parked_until = Instant::ZERO;
        }
        if now >= self.cork_at {
            // From here on it only waits for windows: that deadline has done its work, and must not come again.
            self.cork_at = Instant::ZERO;
        }
        if now >= self.ack_at {
            self.ack_at = NEVER;
            // No answer came in time.
            self.interactive = false;
            self.ack_due = true;
        }
        if let Some(limit) = self.user_timeout()
            && self.retransmit_at != NEVER
            && now >= self.stalled_since + limit
        {
            // RFC 5482.
            self.give_up();
            return;
        }
        if now >= self.reorder_at {
            self.on_reordering_timeout(now);
        }
        if now >= self.tail_probe_at(config) {
            // Where both are due the probe goes first; the other timer starts anew when it has left.
            self.tail_probe_due = true;
        } else if now >= self.retransmit_at {
            self.on_retransmission_timeout(now, config);
        }
        if self.state != TcpState::Closed && self.options.keep_alive && now >= self.keepalive_at(config) {
            if self.keepalives >= self.options.keepalive_probes.unwrap_or(config.keepalive_probes) {
                self.abort(Some(self.soft_error.unwrap_or(Error::TimedOut)));
                return;
            }
            self.keepalives += 1;
            self.probe_due = true;
        }
        if self.board.is_empty() {
            self.board.trim();
        }
    }

    fn on_retransmission_timeout(&mut self, now: Instant, config: &TcpConfig) {
        let retries = match self.state {
            TcpState::SynSent if self.options.syn_retries > 0 => self.options.syn_retries,
            TcpState::SynSent => config.syn_retries,
            TcpState::SynReceived => config.synack_retries,
            _ if self.orphan => ORPHAN_RETRIES.min(config.data_retries),
            _ => config.data_retries,
        };
        let give_up = match self.state {
            TcpState::SynSent | TcpState::SynReceived => self.backoff >= retries,
            // RFC 5482: the program's own limit counts in place of ours.
            _ if self.user_timeout().is_some() => false,
            // A window may stay shut for ever (RFC 9293 3.8.6.1) as long as someone says so, but not for nobody's sake.
            _ if self.persisting && !self.orphan => self.probes >= retries,
            _ if self.persisting => self.backoff >= retries,
            _ => self.timeouts > 0 && now.since(self.stats.timeout_since()) >= patience(retries, config),
        };
        if give_up {
            self.give_up();
            return;
        }
        // RFC 6298 5.5.
        self.backoff = self.backoff.saturating_add(1).min(64);
        self.retransmit_at = now + self.timeout(config);
        match self.state {
            TcpState::SynSent | TcpState::SynReceived => self.syn_due = true,
            _ if self.persisting => {
                self.probes += 1;
                if self.send_edge > self.nxt {
                    self.small_due = true;
                } else {
                    self.probe_due = true;
                }
            }
            _ => {
                self.stats.on_timeout(now);
                self.enter_timeout(now);
                self.timeouts = self.timeouts.saturating_add(1);
                if config.mtu_probing && self.timeouts > SUSPICIOUS_TIMEOUTS {
                    self.suspect_black_hole(now);
                }
            }
        }
    }

    /// RFC 9293 3.10.8, USER TIMEOUT: the owner hears of it, the peer doesn't: it didn't answer.
    fn give_up(&mut self) {
        self.end(Some(self.soft_error.unwrap_or(Error::TimedOut)));
    }

    /// When a tail loss probe is due (RFC 8985 7.2): a loss that nothing follows shows itself by no acknowledgment, and
    /// two round trips are much sooner than the retransmission timer. [`NEVER`] when none may be sent.
    fn tail_probe_at(&self, config: &TcpConfig) -> Instant {
        let allowed = config.tail_loss_probes
            && self.sack
            && self.rtt.has_sample()
            && !self.board.is_empty()
            && !self.persisting
            && matches!(self.board.phase(), Phase::Open | Phase::Reduction)
            && !self.board.is_disordered()
            && self.tail_probe.is_none()
            && !self.tail_probe_due;
        if !allowed {
            return NEVER;
        }
        // The peer may hold back the ACK of a lone segment (WCDelAckT; as Linux, the minimum of the timeout).
        let margin = if self.board.len() == 1 { config.min_rto } else { TAIL_PROBE_MARGIN };
        let at = self.last_send.max(self.stalled_since) + 2 * self.rtt.smoothed() + margin;
        // Not later than the other timer, in whose place it is then.
        at.min(self.retransmit_at)
    }

    fn keepalive_at(&self, config: &TcpConfig) -> Instant {
        // Data in flight asks the same question.
        if !self.is_synchronized() || !self.board.is_empty() || self.persisting {
            return NEVER;
        }
        let idle = self.options.keepalive_idle.unwrap_or(config.keepalive_idle);
        let interval = self.options.keepalive_interval.unwrap_or(config.keepalive_interval);
        self.last_receive + idle + interval.saturating_mul(u32::from(self.keepalives))
    }

    fn user_timeout(&self) -> Option<Duration> {
        self.options.user_timeout.filter(|limit| !limit.is_zero())
    }
}
