//! sd_notify(3): tells systemd how things stand, by one datagram a message. Without systemd it does nothing.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The way to whoever started us.
pub struct Notify {
    to: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notify {
    /// By NOTIFY_SOCKET and WATCHDOG_USEC.
    pub fn from_environment() -> Self {
        let variable = |name| std::env::var(name).ok();
        Self::new(variable("NOTIFY_SOCKET"), variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"))
    }

    fn new(socket: Option<String>, watchdog_us: Option<String>, watchdog_pid: Option<String>) -> Self {
        let to = socket.and_then(|name| {
            let address = match name.strip_prefix('@') {
                Some(name) => SocketAddr::from_abstract_name(name),
                None => SocketAddr::from_pathname(&name),
            };
            let ready = address.and_then(|address| Ok((UnixDatagram::unbound()?, address)));
            ready.inspect_err(|error| tracing::warn!(%error, socket = name, "can't notify the service manager")).ok()
        });
        // sd_watchdog_enabled(3): the variable is ours only if the pid is.
        let ours = watchdog_pid.is_none_or(|pid| pid == std::process::id().to_string());
        let limit = watchdog_us.and_then(|us| us.parse().ok()).map(Duration::from_micros);
        // A third of the limit: one late answer must not end the engine.
        Self { to, watchdog: limit.filter(|l| ours && !l.is_zero()).map(|l| l / 3) }
    }

    /// Sends `state`, as in "READY=1".
    pub fn say(&self, state: &str) {
        if let Some((socket, address)) = &self.to
            && let Err(error) = socket.send_to_addr(state.as_bytes(), address)
        {
            tracing::warn!(%error, state, "can't notify the service manager");
        }
    }

    /// How often the manager wants WATCHDOG=1; None: not at all.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog.filter(|_| self.to.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_at_paths_and_at_abstract_names() {
        let name = format!("sidestep-notify-{}", std::process::id());
        let path = std::env::temp_dir().join(&name);
        let _ = std::fs::remove_file(&path);
        let by_path = UnixDatagram::bind(&path).unwrap();
        let by_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        for (socket, at) in [(by_path, path.to_str().unwrap().to_owned()), (by_name, format!("@{name}"))] {
            let notify = Notify::new(Some(at), Some("3000000".into()), None);
            notify.say("READY=1");
            let mut buffer = [0; 32];
            let n = socket.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..n], b"READY=1");
            assert_eq!(notify.watchdog(), Some(Duration::from_secs(1)));
        }
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn nothing_is_said_to_nobody() {
        let notify = Notify::new(None, Some("1000000".into()), None);
        notify.say("READY=1");
        assert_eq!(notify.watchdog(), None);
        let of_another = Notify::new(Some("@x".into()), Some("1000000".into()), Some("1".into()));
        assert_eq!(of_another.watchdog(), None);
    }
}
