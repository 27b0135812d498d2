//! Signals as messages: blocked for every thread, read from a signalfd(2), with who sent them.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// One signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    pub number: i32,
    /// Process id of the sender; 0 for the kernel.
    pub sender: u32,
    /// Sent with kill(2) or the like to this process. False: by the kernel, as a terminal does to its whole
    /// foreground group.
    pub deliberate: bool,
}

/// Blocked signals and their queue. Dropping it makes the signals do what they usually do again.
pub struct Signals {
    fd: OwnedFd,
    before: libc::sigset_t,
}

impl Signals {
    /// Blocks `numbers` for this thread and all threads and programs that it will start; see [`Self::spare`].
    /// SIGHUP stays ignored where it was (nohup(1)), while SIGCHLD is no longer: without it, wait(2) would tell nothing.
    ///
    /// # Errors
    /// What sigprocmask(2) and signalfd(2) say.
    pub fn block(numbers: &[i32]) -> io::Result<Self> {
        let mut set = MaybeUninit::uninit();
        let mut before = MaybeUninit::uninit();
        // SAFETY: sigemptyset initialises the set before it is used; SIG_DFL is no handler of ours; pthread_sigmask writes the old set to `before`,
        // which is read only when it succeeded.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for &number in numbers {
                if number == libc::SIGCHLD {
                    libc::signal(number, libc::SIG_DFL);
                }
                // A blocked signal is queued even if it is ignored, signal(7).
                if number != libc::SIGHUP || !ignored(number) {
                    libc::sigaddset(set.as_mut_ptr(), number);
                }
            }
            let error = libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), before.as_mut_ptr());
            if error != 0 {
                return Err(io::Error::from_raw_os_error(error));
            }
            let before = before.assume_init();
            let fd = libc::signalfd(-1, set.as_ptr(), libc::SFD_NONBLOCK | libc::SFD_CLOEXEC);
            if fd < 0 {
                let error = io::Error::last_os_error();
                libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
                return Err(error);
            }
            Ok(Self { fd: OwnedFd::from_raw_fd(fd), before })
        }
    }

    /// Lets `command` start with the mask from before: a blocked signal would stay blocked through exec.
    pub fn spare(&self, command: &mut Command) {
        let before = self.before;
        let restore = move || {
            // SAFETY: `before` is a set that pthread_sigmask gave; the call only reads it.
            match unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut()) } {
                0 => Ok(()),
                error => Err(io::Error::from_raw_os_error(error)),
            }
        };
        // SAFETY: between fork and exec the closure makes one call that signal-safety(7) allows, and no allocation.
        unsafe { command.pre_exec(restore) };
    }

    /// The next one that has come, without waiting.
    pub fn next(&self) -> Option<Received> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the kernel writes whole records only, of this size; all of it is plain numbers.
        let info = unsafe {
            let n = libc::read(self.fd.as_raw_fd(), info.as_mut_ptr().cast(), size);
            if n != size as isize {
                return None;
            }
            info.assume_init()
        };
        // sigaction(2): codes of 0 and below come from processes (SI_USER, SI_QUEUE, SI_TKILL).
        Some(Received { number: info.ssi_signo.cast_signed(), sender: info.ssi_pid, deliberate: info.ssi_code <= 0 })
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // SAFETY: `before` is a set that pthread_sigmask gave.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, std::ptr::null_mut()) };
    }
}

/// Whether whoever started this process told it to ignore a signal.
fn ignored(number: i32) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action sigaction(2) only writes the old one, which is read when it succeeded.
    unsafe {
        libc::sigaction(number, std::ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// Sends a signal by number, also those that have no name in a library (real-time ones).
///
/// # Errors
/// ESRCH when the process is gone, EPERM when it is somebody else's.
pub fn send(pid: u32, number: i32) -> io::Result<()> {
    let Some(pid) = i32::try_from(pid).ok().filter(|&p| p > 0) else {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    };
    // SAFETY: kill(2) takes numbers only.
    if unsafe { libc::kill(pid, number) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_comes_with_its_sender() {
        // A thread of its own, whose mask nobody else minds, and a signal that only this thread gets.
        let thread = std::thread::spawn(|| {
            let signals = Signals::block(&[libc::SIGUSR2]).unwrap();
            assert_eq!(signals.next(), None);
            // SAFETY: the thread names itself.
            unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGUSR2) };
            let got = signals.next().unwrap();
            assert_eq!((got.number, got.deliberate), (libc::SIGUSR2, true));
            assert_eq!(got.sender, std::process::id());
            assert_eq!(signals.next(), None);
        });
        thread.join().unwrap();
    }

    #[test]
    fn a_program_starts_with_the_signals_from_before() {
        let thread = std::thread::spawn(|| {
            let signals = Signals::block(&[libc::SIGUSR2]).unwrap();
            let mut command = Command::new("grep");
            command.args(["SigBlk", "/proc/self/status"]);
            let blocked = |command: &mut Command| String::from_utf8(command.output().unwrap().stdout).unwrap();
            let with = blocked(&mut command);
            signals.spare(&mut command);
            let without = blocked(&mut command);
            let mask = |line: &str| u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap();
            let bit = 1 << (libc::SIGUSR2 - 1);
            assert_eq!((mask(&with) & bit, mask(&without) & bit), (bit, 0));
        });
        thread.join().unwrap();
    }
}
