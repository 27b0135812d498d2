//! Library mode: an engine in this process whose shards have no threads. Whoever waits for a socket runs them.
//!
//! ```text
//!   a call that waits                                what it asks of the driver
//!   look at readiness ─ nothing ─▶ spin:             [`Driver::turn`]   frames in, commands, frames out; look again
//!                                  sleep:            [`Driver::prepare_sleep`]
//!                                    Lead            poll its descriptor too: nobody else sleeps for the shards
//!                                    Follow          only the own doorbell: another thread turns, and rings it
//!                                    Work            turn again
//!   a call that sends                                [`Driver::sent`]   now, or with the next wait
//!   a wait that gave events                          [`Driver::found`]  one: answers leave in send(); many: together
//! ```

use std::os::fd::BorrowedFd;

/// What a thread that wants to sleep may do. Give it back to [`Driver::awake`] unless it is `Work`.
#[derive(Debug)]
#[must_use]
pub enum Rest<'a> {
    /// There is something to do: turn, and look again.
    Work,
    /// Another thread does what there is to do, and rings.
    Follow,
    /// This thread sleeps for the shards.
    Lead {
        /// Readable when a shard has something to do.
        wake: BorrowedFd<'a>,
        /// When one has although nothing comes, in nanoseconds from now.
        timeout_ns: u64,
    },
}

/// Runs the shards of an engine in this process, in the thread that calls. Any thread may, at any time; none of these
/// calls waits for longer than another thread's turn takes.
pub trait Driver: Send + Sync {
    /// A turn of every shard that no other thread turns now. False when others drive: this thread should rather let
    /// them run.
    fn turn(&self) -> bool;

    /// `shard` has something to send. True: it was done, or is being done; false: it is done with the next turn.
    fn sent(&self, shard: u32) -> bool;

    /// A read found nothing. True: there may be something now.
    fn dry(&self) -> bool;

    /// A wait gave so many events: with more than one, what is sent in answer to them may leave together.
    fn found(&self, events: usize);

    /// Before poll(): see [`Rest`].
    fn prepare_sleep(&self) -> Rest<'_>;

    /// After it.
    fn awake(&self, rest: &Rest<'_>);
}

/// A [`Rest`] that is given back when it ends; one that there is also without a driver.
pub struct Resting<'a> {
    driver: Option<&'a dyn Driver>,
    rest: Rest<'a>,
}

impl<'a> Resting<'a> {
    pub(crate) fn begin(driver: Option<&'a dyn Driver>) -> Self {
        Self { rest: driver.map_or(Rest::Follow, Driver::prepare_sleep), driver }
    }

    /// There is something to do: don't sleep.
    #[must_use]
    pub fn has_work(&self) -> bool {
        matches!(self.rest, Rest::Work)
    }

    /// What has to be polled along.
    #[must_use]
    pub fn wake(&self) -> Option<BorrowedFd<'a>> {
        match self.rest {
            Rest::Lead { wake, .. } => Some(wake),
            _ => None,
        }
    }

    /// How long the sleep may last that should last `ns`.
    #[must_use]
    pub fn limit(&self, ns: u64) -> u64 {
        match self.rest {
            Rest::Lead { timeout_ns, .. } => ns.min(timeout_ns),
            _ => ns,
        }
    }
}

impl Drop for Resting<'_> {
    fn drop(&mut self) {
        if let Some(driver) = self.driver
            && !self.has_work()
        {
            driver.awake(&self.rest);
        }
    }
}
