//! The scoreboard alone.

use super::*;
use proptest::prelude::*;

const MSS: u32 = 1000;
const LEAST: Duration = Duration::from_millis(10);

fn board(segments: u64) -> Scoreboard {
    let mut board = Scoreboard::new();
    for i in 0..segments {
        board.push(i * 1000, MSS, Instant::from_millis(i));
    }
    board
}

fn at(millis: u64) -> Instant {
    Instant::from_millis(millis)
}

fn lost(board: &Scoreboard) -> std::vec::Vec<u64> {
    board.sent.iter().filter(|s| s.is(LOST)).map(|s| s.seq / 1000).collect()
}

/// Segments from `left` to `right` were SACKed.
fn sack(board: &mut Scoreboard, left: u64, right: u64, now: Instant) -> Arrived {
    let mut arrived = Arrived::default();
    board.on_sacks(&[(left * 1000, right * 1000)], now, MSS, LEAST, &mut arrived);
    arrived
}

fn ack(board: &mut Scoreboard, segments: u64, now: Instant) -> Arrived {
    let mut arrived = Arrived::default();
    board.on_ack(segments * 1000, now, MSS, LEAST, &mut arrived);
    arrived
}

fn detect(board: &mut Scoreboard, now: Instant) -> Detected {
    let window = board.reordering_window(Some(LEAST), Duration::from_millis(20));
    board.detect(now, window)
}

#[test]
fn three_segments_beyond_a_gap_mark_it() {
    let mut board = board(10);
    for (right, expect) in [(2, false), (3, false), (4, true)] {
        // The newest of the last three left at 3 ms and took 17: the first is older than that.
        assert_eq!(sack(&mut board, right - 1, right, at(20)).segments, 1);
        assert_eq!(detect(&mut board, at(20)).found, expect);
    }
    assert_eq!(lost(&board), [0]);
    board.enter(Phase::Recovery, 10_000);
    assert_eq!(board.in_flight(), 6000);
    let (index, first) = board.next_lost().unwrap();
    assert_eq!((index, first.seq), (0, 0));
    board.retransmitted(index, 1000, at(21), false);
    assert_eq!((board.in_flight(), board.has_lost()), (7000, false));
    assert_eq!(board.counts(), Counts { unacked: 10, sacked: 3, lost: 1, retransmitted: 1 });
    let arrived = ack(&mut board, 4, at(30));
    // The retransmission gives no sample, and what was SACKed has been counted.
    assert_eq!((arrived.bytes, arrived.newest_rtt, arrived.retransmission), (1000, None, true));
    let arrived = ack(&mut board, 10, at(40));
    assert_eq!(arrived.oldest_rtt, Some(Duration::from_millis(36)));
    assert_eq!(arrived.newest_rtt, Some(Duration::from_millis(31)));
    assert!(board.is_empty() && board.in_flight() == 0);
    assert_eq!((board.reordered, board.reordering), (0, 3));
}

#[test]
fn two_segments_beyond_a_gap_mark_it_after_a_while() {
    let mut board = board(10);
    sack(&mut board, 1, 3, at(20));
    // Least / 4 longer than the newest took, from when it left itself.
    let detected = detect(&mut board, at(20));
    assert_eq!((detected.found, detected.look_again), (false, Some(at(20) + Duration::from_micros(500))));
    assert!(detect(&mut board, at(23)).found);
}

#[test]
fn reordering_is_noticed_and_allowed_for() {
    let mut board = Scoreboard::new();
    for i in 0..10 {
        board.push(i * 1000, MSS, at(0));
    }
    sack(&mut board, 5, 6, at(20));
    sack(&mut board, 2, 3, at(21));
    assert_eq!((board.reordered, board.reordering), (1, 4));
    // Three segments beyond a gap are no proof any more.
    sack(&mut board, 6, 9, at(21));
    assert!(!detect(&mut board, at(21)).found);
    let narrow = board.reordering_window(Some(LEAST), Duration::from_millis(20));
    // D-SACKs widen the window, once in a round trip, and up to the round trip.
    board.on_needless(0, 10_000);
    board.on_needless(0, 10_000);
    assert_eq!(board.reordering_window(Some(LEAST), Duration::from_millis(20)), narrow * 2);
    for _ in 0..20 {
        board.on_needless(10_000, 10_000);
    }
    assert_eq!(board.reordering_window(Some(LEAST), Duration::from_millis(20)), Duration::from_millis(20));
    for _ in 0..16 {
        board.enter(Phase::Recovery, 10_000);
        board.open();
    }
    assert_eq!(board.reordering_window(Some(LEAST), Duration::from_millis(20)), narrow);
}

#[test]
fn blocks_that_come_together_are_no_reordering() {
    let mut board = board(10);
    let mut arrived = Arrived::default();
    board.on_sacks(&[(7000, 8000), (4000, 5000), (1000, 2000)], at(20), MSS, LEAST, &mut arrived);
    assert_eq!((arrived.segments, board.reordered), (3, 0));
    // Nor is what the same acknowledgment acknowledges below.
    board.on_ack(1000, at(20), MSS, LEAST, &mut arrived);
    assert_eq!((arrived.segments, board.reordered), (4, 0));
    // What comes later is.
    ack(&mut board, 4, at(21));
    assert_eq!((board.reordered, board.reordering), (1, 6));
}

#[test]
fn a_lost_retransmission_is_found_by_time() {
    let mut board = board(10);
    sack(&mut board, 1, 5, at(20));
    assert!(detect(&mut board, at(20)).found);
    board.enter(Phase::Recovery, 10_000);
    board.retransmitted(0, 1000, at(21), false);
    // Both leave in one moment: then the order is that of the numbers.
    board.push(10_000, MSS, at(21));
    sack(&mut board, 10, 11, at(41));
    let patient = board.detect(at(41), Duration::from_millis(2));
    assert!(!lost(&board).contains(&0));
    assert_eq!(patient.look_again, Some(at(43)));
    let detected = board.detect(at(43), Duration::from_millis(2));
    assert!(detected.found && detected.again && lost(&board).contains(&0));
}

#[test]
fn an_arrival_that_is_too_early_is_of_an_earlier_transmission() {
    let mut board = board(10);
    board.on_timeout(10_000, at(100));
    board.retransmitted(0, 1000, at(100), false);
    ack(&mut board, 1, at(101));
    assert_eq!(board.newest, (Instant::ZERO, 0));
}

#[test]
fn a_timeout_spares_what_left_a_moment_ago() {
    let mut board = board(4);
    sack(&mut board, 3, 4, at(20));
    board.push(4000, MSS, at(99));
    board.on_timeout(5000, at(100));
    assert_eq!(lost(&board), [0, 1, 2]);
    assert_eq!(board.in_flight(), 1000);
}

#[test]
fn new_reno() {
    let mut board = board(10);
    board.on_duplicate(MSS, &mut Arrived::default());
    board.on_duplicate(MSS, &mut Arrived::default());
    assert_eq!((board.detect_by_order(false).found, board.in_flight()), (false, 8000));
    board.on_duplicate(MSS, &mut Arrived::default());
    assert!(board.detect_by_order(false).found);
    board.enter(Phase::Recovery, 10_000);
    board.retransmitted(0, 1000, at(20), false);
    for _ in 0..1000 {
        board.on_duplicate(MSS, &mut Arrived::default());
    }
    assert!(board.in_flight() <= 10_000, "made-up duplicates don't wrap");
    ack(&mut board, 3, at(30));
    assert!(board.detect_by_order(true).found);
    assert_eq!(lost(&board), [3]);
}

#[test]
fn timeouts_take_back_what_was_reneged() {
    let mut board = board(4);
    sack(&mut board, 1, 3, at(9));
    board.on_timeout(4000, at(30));
    assert_eq!(lost(&board), [0, 3]);
    ack(&mut board, 1, at(31));
    board.on_timeout(4000, at(60));
    assert_eq!(lost(&board), [1, 2, 3]);
    // And what is SACKed then counts again.
    assert_eq!(sack(&mut board, 2, 3, at(61)).segments, 1);
}

#[test]
fn smaller_segments_split() {
    let mut board = board(2);
    board.on_smaller_segments(600);
    let (index, _) = board.next_lost().unwrap();
    board.retransmitted(index, 600, at(3), false);
    let (index, next) = board.next_lost().unwrap();
    assert_eq!((index, next.seq, next.len), (1, 600, 400));
}

#[test]
fn mistakes_are_explained() {
    let mut board = board(10);
    board.begin_undo(0, true);
    assert_eq!(board.undo().unexplained, None, "nothing was sent again, so nothing is explained");
    sack(&mut board, 1, 5, at(20));
    detect(&mut board, at(20));
    board.retransmitted(0, 1000, at(21), false);
    assert_eq!((board.undo().unexplained, board.undo().first_at), (Some(1), Some(at(21))));
    board.retransmitted(9, 1000, at(22), true);
    assert_eq!(board.undo().unexplained, Some(1), "a probe is no part of it");
    board.explain(1, 1000);
    assert_eq!(board.undo().unexplained, Some(0));
    board.on_timeout(10_000, at(300));
    assert!(board.has_lost());
    board.unmark();
    assert!(!board.has_lost());
    assert_eq!(board.in_flight(), 6000);
}

/// A window of 20,000 segments with every tenth lost: what an acknowledgment costs must not grow with it.
#[test]
fn large_windows_are_walked_once() {
    let mut board = board(20_000);
    board.enter(Phase::Recovery, 20_000_000);
    let mut now = at(30_000);
    let mut right = 1_u64;
    while right < 20_000 {
        right += 2;
        // As a receiver reports it: one block that grows, and the two before.
        let first = right / 10 * 10;
        let mut blocks = std::vec::Vec::new();
        for start in [first, first.saturating_sub(10), first.saturating_sub(20)] {
            let end = if start == first { right } else { start + 10 };
            if end > start + 1 && end <= 20_000 {
                blocks.push(((start + 1) * 1000, end * 1000));
            }
        }
        board.on_sacks(&blocks, now, MSS, LEAST, &mut Arrived::default());
        board.detect(now, Duration::ZERO);
        now = now + Duration::from_micros(10);
        if let Some((index, sent)) = board.next_lost() {
            board.retransmitted(index, sent.len, now, false);
        }
    }
    assert_eq!(board.places().scan_from, 20_000_000);
    assert!(lost(&board).len() < 20);
}

proptest! {
    /// Whatever acknowledgments come, the sums match the records.
    #[test]
    fn sums_hold(steps in prop::collection::vec((0_u8..8, 0_u64..40, 0_u64..40), 1..80)) {
        let mut board = board(20);
        let (mut una, mut nxt) = (0, 20_000);
        for (time, (what, a, b)) in steps.into_iter().enumerate() {
            let now = at(100 + time as u64);
            let mut arrived = Arrived::default();
            match what {
                0 => { board.push(nxt, MSS, now); nxt += 1000; }
                1 => {
                    let ack = (una + a * 333).min(nxt);
                    if ack > una { board.on_ack(ack, now, MSS, LEAST, &mut arrived); una = ack; }
                    if una >= board.recovery_point() { board.open(); }
                }
                2 => {
                    let l = una + a * 250;
                    let r = (l + b * 250).min(nxt);
                    if l < r { board.on_sacks(&[(l, r), (una, una)], now, MSS, LEAST, &mut arrived); }
                }
                3 => if board.detect(now, Duration::from_millis(a)).found { board.enter(Phase::Recovery, nxt); },
                4 => if let Some((index, sent)) = board.next_lost() {
                    board.retransmitted(index, (b as u32 * 100 + 1).min(sent.len), now, false);
                },
                5 if b > 20 => if let Some((index, sent)) = board.last_in_flight() {
                    board.retransmitted(index, sent.len, now, true);
                },
                5 => board.on_duplicate(MSS, &mut arrived),
                6 => if b > 20 { board.unmark(); } else { board.on_smaller_segments(600); },
                _ => if !board.is_empty() { board.on_timeout(nxt, now) },
            }
            let of = |flag: u8| move |s: &&Sent| s.flags & (SACKED | LOST) == flag;
            let sum = |flag| board.sent.iter().filter(of(flag)).map(|s| u64::from(s.len)).sum::<u64>();
            prop_assert_eq!(board.sacked, sum(SACKED));
            prop_assert_eq!(board.sacked_segments as usize, board.sent.iter().filter(of(SACKED)).count());
            prop_assert_eq!(board.lost, sum(LOST));
            let first = board.sent.iter().position(|s| s.is(LOST));
            prop_assert_eq!(board.next_lost().map(|(index, _)| index), first);
            prop_assert_eq!(board.in_flight(), sum(0).saturating_sub(board.duplicated));
            let again = board.sent.iter().filter(|s| s.flags == RETRANSMITTED).count();
            prop_assert_eq!(board.retransmissions as usize, again);
        }
    }
}
