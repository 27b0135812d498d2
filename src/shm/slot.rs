//! One socket, as both sides see it.
//!
//! A slot's life: **free** (number in the group's free set, or in the private list of its shard) → **claimed** by a
//! program that opens a socket, or handed out by a shard for an accepted connection → **held** by one process or
//! several ([`Slot::holders`]) → let go by the last → the engine finishes the protocol (FIN, retransmissions out of
//! the transmit ring) → free again, with another `generation`.
//!
//! Positions in streams are counts of bytes since the stream began; they never wrap (2^64). The index into a ring is
//! the position modulo the capacity, taken with a private mask.

use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// Shared state of one socket. All-zero memory is a free slot.
#[repr(C, align(64))]
pub struct Slot {
    // ---- written by the engine, hot -------------------------------------------------------------------------------
    /// End of what can be read: bytes of the stream received in order, or bytes of datagram records written.
    pub rx_tail: AtomicU64,
    /// End of what was acknowledged (or, for datagrams, taken): transmit ring space up to here is free again.
    pub tx_head: AtomicU64,
    /// [`status`] bits.
    pub status: AtomicU32,
    /// Grows by one each time the slot is freed.
    pub generation: AtomicU32,
    /// Where the received stream lies: see [`crate::split`].
    pub rx_map: AtomicU64,
    pub rx_blocks: [AtomicU32; 2],
    /// Bytes that the receive buffer holds at present, and that programs may have in the transmit buffer; 0: as much
    /// as the slot's own ring.
    pub rx_limit: AtomicU32,
    pub tx_limit: AtomicU32,
    /// The block in which what is sent should go on; 0: the slot's own ring.
    pub tx_offer: AtomicU32,
    /// The latency profile follows the program's next write and wants it stamped (`tx_probe_*`), if this is not
    /// `tx_probe_done`. 0: nothing is followed.
    pub tx_probe: AtomicU32,
    /// The same for the byte before this position of the received stream: who wakes for it, and who reads it.
    pub rx_probe: AtomicU64,

    // ---- written by programs, hot ---------------------------------------------------------------------------------
    /// End of what was read: receive ring space up to here is free again.
    pub rx_head: AtomicU64,
    /// `rx_probe` when a program noticed that there was something to read, and when that was: CLOCK_MONOTONIC, ns.
    pub woke_probe: AtomicU64,
    pub woke_ns: AtomicU64,
    /// The same for when it had read.
    pub read_probe: AtomicU64,
    pub read_ns: AtomicU64,
    _reader: [AtomicU64; 3],
    /// End of what was written into the transmit ring.
    pub tx_tail: AtomicU64,
    /// Where the stream to be sent lies: see [`crate::split`].
    pub tx_map: AtomicU64,
    pub tx_blocks: [AtomicU32; 2],
    /// [`request`] bits. Set by programs with `fetch_or`, never cleared while the socket lives.
    pub request: AtomicU32,
    /// `tx_probe` when a program last stamped a write; where that write ended, and when it was.
    pub tx_probe_done: AtomicU32,
    pub tx_probe_end: AtomicU64,
    pub tx_probe_ns: AtomicU64,
    _writer: [AtomicU32; 4],

    // ---- written by both ------------------------------------------------------------------------------------------
    /// Pending error, an errno: the engine sets it, a program takes it (SO_ERROR) by swapping in 0.
    pub error: AtomicU32,
    /// [`crate::lock`] among programs: who may read and advance `rx_head`.
    pub rx_lock: AtomicU32,
    /// The same for `tx_tail`.
    pub tx_lock: AtomicU32,
    /// The same for `wanted_*`, options and one-time calls (bind, listen, connect).
    pub call_lock: AtomicU32,
    /// Calls with MSG_ZEROCOPY since the beginning, and those that the program has been told of as done.
    pub copies_done: AtomicU32,
    pub copies_told: AtomicU32,
    _both: [AtomicU32; 10],

    // ---- written by the engine, cold ------------------------------------------------------------------------------
    /// Local and remote address; IPv4 in mapped form (`::ffff:a.b.c.d`), big-endian halves.
    pub local_address: [AtomicU64; 2],
    pub remote_address: [AtomicU64; 2],
    pub local_port: AtomicU32,
    pub remote_port: AtomicU32,
    /// Shard on which the socket lives: whose door to mark. Valid once the engine knows the socket.
    pub shard: AtomicU32,
    /// Listening slot that this connection came from, plus 1; 0 for none.
    pub listener: AtomicU32,
    /// Effective MSS for sending, in bytes of payload.
    pub send_mss: AtomicU32,
    /// TCP state as in Linux's `enum` (1 established … 10 listen).
    pub tcp_state: AtomicU32,
    /// Datagrams or connections dropped because a queue was full.
    pub drops: AtomicU32,
    /// How far the stream has been sent, only while TCP_NOTSENT_LOWAT is set.
    pub tx_next: AtomicU64,
    /// Datagrams: the newest [`Self::options_version`] that the engine has acted upon; connect() waits for it.
    pub seen_version: AtomicU32,
    _engine_cold: [AtomicU32; 13],

    // ---- written by programs, cold --------------------------------------------------------------------------------
    /// Where `request::CONNECT` goes.
    pub wanted_remote_address: [AtomicU64; 2],
    /// Local address for it, unspecified (`::`) when any will do.
    pub wanted_local_address: [AtomicU64; 2],
    pub wanted_remote_port: AtomicU32,
    /// Local port for it, 0 when any will do.
    pub wanted_local_port: AtomicU32,
    /// [`kind`] of socket.
    pub kind: AtomicU32,
    /// [`option`] bits, read by the engine when `request::OPTIONS` was set and the slot marked.
    pub options: AtomicU32,
    /// TCP_KEEPIDLE, TCP_KEEPINTVL in seconds, TCP_KEEPCNT; 0 means the default.
    pub keep_idle_s: AtomicU32,
    pub keep_interval_s: AtomicU32,
    pub keep_count: AtomicU32,
    /// TCP_USER_TIMEOUT in milliseconds, 0 for none.
    pub user_timeout_ms: AtomicU32,
    /// SO_LINGER seconds + 1, 0 when off; 1 (zero seconds) turns the last close into a reset.
    pub linger: AtomicU32,
    /// IP_TOS / IPV6_TCLASS, and TTL / hop limit (0: the default).
    pub tos: AtomicU32,
    pub ttl: AtomicU32,
    /// TCP_MAXSEG, 0 for none.
    pub max_segment: AtomicU32,
    /// Bumped by programs with every change of an option.
    pub options_version: AtomicU32,
    /// SO_RCVBUF and SO_SNDBUF as they were asked for, in bytes; 0: the buffers grow by themselves.
    pub receive_buffer: AtomicU32,
    pub send_buffer: AtomicU32,
    /// TCP_WINDOW_CLAMP and TCP_NOTSENT_LOWAT in bytes, 0 for none.
    pub window_clamp: AtomicU32,
    pub notsent_lowat: AtomicU32,
    /// SO_RCVLOWAT in bytes, 0 for 1. Only programs look at it.
    pub receive_lowat: AtomicU32,
    /// SO_MAX_PACING_RATE in bytes a second, 0 for none.
    pub max_pacing_rate: AtomicU32,
    /// TCP_SYNCNT, TCP_DEFER_ACCEPT in seconds; 0 for none or the default.
    pub syn_retries: AtomicU32,
    pub defer_accept: AtomicU32,
    /// TCP_LINGER2 in seconds, as an i32: 0 for the default, below 0 for none.
    pub linger2: AtomicU32,
    /// IP_MTU_DISCOVER + 1; 0 for the default.
    pub mtu_discovery: AtomicU32,
    /// TCP_CONGESTION: position in [`CONGESTION`] + 1; 0 for the configuration's.
    pub congestion: AtomicU32,

    // ---- sets -----------------------------------------------------------------------------------------------------
    /// A bit for each process that has the socket open. Programs set and clear their own; the engine clears those of
    /// the dead. No bit left, and the slot marked: the last holder is gone.
    pub holders: [AtomicU64; 16],
    /// A bit for each event queue that wants to hear of this socket. Written by programs.
    pub watchers: [AtomicU64; 16],
    /// A bit for each word of `watchers` that may be non-zero: set before, never cleared while the socket lives.
    pub watcher_words: AtomicU32,
    /// TCP_FASTOPEN of a listener: connections that cookies may have opened before their peers answer.
    pub fast_open: AtomicU32,
    /// Where the last record ended (MSG_EOR): twice the position in the stream, and 1. Written before the bytes are
    /// announced; of several between two looks of the engine only the last counts.
    pub record_end: AtomicU32,
    _watch: [AtomicU32; 13],
}

/// Names of congestion controllers, as TCP_CONGESTION has them.
pub const CONGESTION: [&str; 4] = ["cubic", "reno", "dctcp", "bbr"];

/// Bits of [`Slot::status`].
pub mod status {
    /// The engine has this socket.
    pub const OPEN: u32 = 1;
    /// SYN sent.
    pub const CONNECTING: u32 = 1 << 1;
    /// Handshake finished; or, for datagrams, a peer is set.
    pub const CONNECTED: u32 = 1 << 2;
    /// Accepts connections.
    pub const LISTENING: u32 = 1 << 3;
    /// The peer's FIN came; the stream ends at `rx_tail`.
    pub const PEER_FINISHED: u32 = 1 << 4;
    /// Our FIN is on its way or acknowledged: nothing more can be sent.
    pub const FINISHED: u32 = 1 << 5;
    /// Broken: `error` had the reason. Reads drain what is there, then end; writes fail.
    pub const BROKEN: u32 = 1 << 6;
    /// The protocol is over.
    pub const CLOSED: u32 = 1 << 7;
    /// Bound to a local port.
    pub const BOUND: u32 = 1 << 8;
}

/// Bits of [`Slot::request`].
pub mod request {
    /// Connect to `wanted_*`.
    pub const CONNECT: u32 = 1;
    /// shutdown(SHUT_WR): FIN after what is in the transmit ring.
    pub const FINISH: u32 = 1 << 1;
    /// shutdown(SHUT_RD): the program reads no more.
    pub const STOP_READING: u32 = 1 << 2;
    /// Options were changed at least once.
    pub const OPTIONS: u32 = 1 << 3;
    /// Reset instead of closing.
    pub const ABORT: u32 = 1 << 4;
    /// Records were ended at least once: `record_end` is to be looked at.
    pub const RECORD: u32 = 1 << 5;
}

/// Bits of [`Slot::options`].
pub mod option {
    /// TCP_NODELAY.
    pub const NO_DELAY: u32 = 1;
    /// TCP_CORK.
    pub const CORK: u32 = 1 << 1;
    /// SO_KEEPALIVE.
    pub const KEEP_ALIVE: u32 = 1 << 2;
    /// TCP_QUICKACK.
    pub const QUICK_ACK: u32 = 1 << 3;
    /// IPV6_V6ONLY.
    pub const V6_ONLY: u32 = 1 << 4;
    /// SO_REUSEADDR.
    pub const REUSE_ADDRESS: u32 = 1 << 5;
    /// SO_REUSEPORT.
    pub const REUSE_PORT: u32 = 1 << 6;
    /// SO_BROADCAST.
    pub const BROADCAST: u32 = 1 << 7;
    /// More data follows at once (MSG_MORE): hold back a partial segment.
    pub const MORE: u32 = 1 << 8;
    /// TCP_INQ: recvmsg() tells how much is left to read. Only programs look at it.
    pub const TELL_QUEUE: u32 = 1 << 9;
    /// SO_ZEROCOPY. Programs are told when bytes given with MSG_ZEROCOPY are theirs again: at once, they are copied.
    pub const ZERO_COPY: u32 = 1 << 10;
    /// O_NONBLOCK, which belongs to what all descriptors and processes share. Only programs look at it.
    pub const NON_BLOCKING: u32 = 1 << 11;
    /// TCP_FASTOPEN_CONNECT, and what MSG_FASTOPEN sets: the SYN asks for a cookie, or brings it and the first bytes.
    pub const FAST_OPEN: u32 = 1 << 12;
    /// TCP_FASTOPEN_NO_COOKIE.
    pub const NO_COOKIE: u32 = 1 << 13;
}

/// Values of [`Slot::kind`].
pub mod kind {
    /// TCP on IPv4.
    pub const TCP4: u32 = 1;
    /// TCP on IPv6 (dual-stack unless V6_ONLY).
    pub const TCP6: u32 = 2;
    /// UDP on IPv4.
    pub const UDP4: u32 = 3;
    /// UDP on IPv6.
    pub const UDP6: u32 = 4;
}

impl Slot {
    /// Process `process` has the socket open.
    pub fn hold(&self, process: u32) {
        if let Some(word) = self.holders.get(process as usize / 64) {
            word.fetch_or(1 << (process % 64), Ordering::SeqCst);
        }
    }

    /// Process `process` no longer has it open; true when its bit was set.
    pub fn let_go(&self, process: u32) -> bool {
        let bit = 1 << (process % 64);
        self.holders.get(process as usize / 64).is_some_and(|w| w.fetch_and(!bit, Ordering::SeqCst) & bit != 0)
    }

    /// Opens the locks that a dead process left behind: the engine's.
    pub fn break_locks(&self, process: u32) {
        for word in [&self.rx_lock, &self.tx_lock, &self.call_lock] {
            crate::lock::break_for(word, process);
        }
    }

    /// No process has it open any more: the engine's, when a group has no process left.
    pub fn let_all_go(&self) {
        self.holders.iter().for_each(|w| w.store(0, Ordering::SeqCst));
    }

    /// Whether this process has it open.
    #[must_use]
    pub fn is_held_by(&self, process: u32) -> bool {
        let bit = 1 << (process % 64);
        self.holders.get(process as usize / 64).is_some_and(|w| w.load(Ordering::SeqCst) & bit != 0)
    }

    /// Whether any process has it open.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.holders.iter().any(|w| w.load(Ordering::SeqCst) != 0)
    }

    /// Event queue `queue` hears of the socket from now on. Look at the socket's state after this, not before.
    pub fn watch(&self, queue: u32) {
        if let Some(word) = self.watchers.get(queue as usize / 64) {
            self.watcher_words.fetch_or(1 << (queue / 64), Ordering::SeqCst);
            word.fetch_or(1 << (queue % 64), Ordering::SeqCst);
        }
    }

    /// Event queue `queue` hears of it no more.
    pub fn unwatch(&self, queue: u32) {
        if let Some(word) = self.watchers.get(queue as usize / 64) {
            word.fetch_and(!(1 << (queue % 64)), Ordering::SeqCst);
        }
    }

    /// Calls `each` with every event queue that watches. The engine calls this after it wrote the state.
    pub fn each_watcher(&self, mut each: impl FnMut(u32)) {
        let mut words = self.watcher_words.load(Ordering::SeqCst) & 0xffff;
        while words != 0 {
            let w = words.trailing_zeros();
            words &= words - 1;
            let mut bits = self.watchers[w as usize].load(Ordering::SeqCst);
            while bits != 0 {
                each(w * 64 + bits.trailing_zeros());
                bits &= bits - 1;
            }
        }
    }

    /// Makes the slot as new, for its next socket. The engine's, before it frees or hands out the slot.
    pub fn reset(&self) {
        let words: [&AtomicU32; 55] = [
            &self.status,
            &self.request,
            &self.error,
            &self.rx_lock,
            &self.tx_lock,
            &self.call_lock,
            &self.local_port,
            &self.remote_port,
            &self.shard,
            &self.listener,
            &self.send_mss,
            &self.rx_blocks[0],
            &self.rx_blocks[1],
            &self.rx_limit,
            &self.tx_limit,
            &self.tx_offer,
            &self.tx_probe,
            &self.tx_probe_done,
            &self.tx_blocks[0],
            &self.tx_blocks[1],
            &self.tcp_state,
            &self.drops,
            &self.seen_version,
            &self.wanted_remote_port,
            &self.wanted_local_port,
            &self.kind,
            &self.options,
            &self.keep_idle_s,
            &self.keep_interval_s,
            &self.keep_count,
            &self.user_timeout_ms,
            &self.linger,
            &self.tos,
            &self.ttl,
            &self.max_segment,
            &self.options_version,
            &self.receive_buffer,
            &self.send_buffer,
            &self.window_clamp,
            &self.notsent_lowat,
            &self.receive_lowat,
            &self.max_pacing_rate,
            &self.syn_retries,
            &self.defer_accept,
            &self.linger2,
            &self.mtu_discovery,
            &self.congestion,
            &self.fast_open,
            &self.record_end,
            &self.watcher_words,
            &self._watch[0],
            &self._both[0],
            &self.copies_done,
            &self.copies_told,
            &self._engine_cold[0],
        ];
        let long =
            [&self.rx_tail, &self.tx_head, &self.rx_head, &self.tx_tail, &self.rx_map, &self.tx_map, &self.tx_next]
                .into_iter();
        let probes = [
            &self.rx_probe,
            &self.woke_probe,
            &self.woke_ns,
            &self.read_probe,
            &self.read_ns,
            &self.tx_probe_end,
            &self.tx_probe_ns,
        ];
        let long = long.chain(probes);
        let addresses =
            [&self.local_address, &self.remote_address, &self.wanted_local_address, &self.wanted_remote_address];
        words.into_iter().for_each(|w| w.store(0, Ordering::Relaxed));
        long.chain(addresses.into_iter().flatten()).chain(&self.holders).chain(&self.watchers).for_each(|w| {
            if w.load(Ordering::Relaxed) != 0 {
                w.store(0, Ordering::Relaxed);
            }
        });
        self.generation.fetch_add(1, Ordering::Release);
    }
}

/// Writes a 16-byte address (IPv6, or IPv4 in mapped form) into a pair of words.
pub fn store_address(words: &[AtomicU64; 2], address: [u8; 16]) {
    let whole = u128::from_be_bytes(address);
    words[0].store((whole >> 64) as u64, Ordering::Relaxed);
    words[1].store(whole as u64, Ordering::Relaxed);
}

/// Reads what [`store_address`] wrote.
#[must_use]
pub fn load_address(words: &[AtomicU64; 2]) -> [u8; 16] {
    (u128::from(words[0].load(Ordering::Relaxed)) << 64 | u128::from(words[1].load(Ordering::Relaxed))).to_be_bytes()
}
