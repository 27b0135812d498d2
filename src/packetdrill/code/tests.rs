use super::{Names, run};

fn names() -> Names {
    let mut names = Names::default();
    names.give("tcpi_snd_cwnd", 10);
    names.give("tcpi_rtt", 12_345);
    names.give("tcpi_options", 7);
    names
}

fn outcome(code: &str) -> Result<(), String> {
    run(code, &mut names(), &mut |_| {})
}

#[test]
fn assertions_hold_or_say_what_does_not() {
    for code in [
        "assert tcpi_snd_cwnd == 10, tcpi_snd_cwnd",
        "assert 5000 <= tcpi_rtt <= 20000, 'srtt=%d us' % tcpi_rtt",
        "assert (tcpi_options & 2) != 0, tcpi_options; \\\n   assert tcpi_snd_cwnd == 1460 - 1450;\\\n",
        "assert 7 // 2 == 3 and -7 // 2 == -4 and -7 % 3 == 2 and 7 / 2 == 3.5",
        "assert 2 ** 3 + 1 << 1 == 18 # a comment; assert False",
        "assert not False or undefined",
        "assert tcpi_snd_cwnd in (9, 10) and 3 not in [1, 2]",
        "x = 3\ny = x * 2 if x > 2 else 0\nassert (\n  y ==\n 6)",
        "assert abs(-4) == max(1, 4, 2) == min((4, 9)) == len('four')",
        "assert '%3d|%05.1f|%s' % (7, 2.25, 'a') == '  7|002.2|a'",
        "pass; print('fine')",
    ] {
        assert_eq!(outcome(code), Ok(()), "{code}");
    }
    assert_eq!(
        outcome("assert tcpi_snd_cwnd == 11, 'cwnd=%d' % tcpi_snd_cwnd").unwrap_err(),
        "assertion failed: tcpi_snd_cwnd == 11: cwnd=10"
    );
    assert_eq!(
        outcome("assert 20000 <= tcpi_rtt <= 30000").unwrap_err(),
        "assertion failed: 20000 <= tcpi_rtt <= 30000"
    );
    assert!(outcome("assert tcpi_rtt < 20000\nassert tcpi_snd_cwnd == 9").is_err());
}

#[test]
fn what_is_no_code_is_an_error() {
    for code in
        ["assert nothing_known == 1", "assert 1 +", "assert (1", "x y", "assert 1 / 0", "f(1)", "assert 'a' < 1", "'"]
    {
        assert!(outcome(code).is_err(), "{code}");
    }
    // Also where it doesn't count for the outcome: the form is checked.
    assert!(outcome("assert 1 == 1, (2").is_err());
}

#[test]
fn names_live_from_block_to_block_and_output_is_handed_on() {
    let mut names = names();
    let mut out = Vec::new();
    run("before = tcpi_snd_cwnd", &mut names, &mut |_| {}).unwrap();
    names.give("tcpi_snd_cwnd", 12);
    run("assert tcpi_snd_cwnd == before + 2\nprint 'grew by', tcpi_snd_cwnd - before", &mut names, &mut |l| {
        out.push(l.to_owned());
    })
    .unwrap();
    assert_eq!(out, ["grew by 2"]);
}
