//! Commands between backticks. Nothing is executed: the commands that scripts use to set Linux up are understood and
//! done to the [`Settings`]; others are reported.

use super::settings::Settings;

/// What a block of commands came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Commands and sysctls that mean nothing here.
    pub skipped: Vec<String>,
    /// Microseconds that it takes (sleep).
    pub takes: i64,
}

/// Does what `text` says, as far as it is known.
///
/// # Errors
/// A value that a known setting can't have.
pub fn run(text: &str, settings: &mut Settings) -> Result<Outcome, String> {
    let mut outcome = Outcome::default();
    for command in commands(text) {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        if !words.is_empty() && !one(&words, settings, &mut outcome)? {
            outcome.skipped.push(words.join(" "));
        }
    }
    Ok(outcome)
}

/// One command. False: it means nothing here.
fn one(words: &[&str], settings: &mut Settings, outcome: &mut Outcome) -> Result<bool, String> {
    let program = words[0].rsplit('/').next().unwrap_or_default();
    match program {
        "defaults.sh" => settings.defaults().map(|()| true),
        "sysctl" | "set_sysctls.py" => {
            for assignment in words[1..].iter().filter(|w| !w.starts_with('-')) {
                let (name, value) = assignment.split_once('=').unwrap_or((assignment, ""));
                set(name, value, settings, outcome)?;
            }
            Ok(true)
        }
        "echo" => {
            let Some(to) = words.iter().position(|w| *w == ">") else { return Ok(false) };
            let value = words[1..to].iter().filter(|w| **w != "-n").copied().collect::<Vec<_>>().join(" ");
            match words.get(to + 1).and_then(|file| file.strip_prefix("/proc/sys/")) {
                Some(name) => set(name, &value, settings, outcome)?,
                None => return Ok(false),
            }
            Ok(true)
        }
        "ip" => ip(&words[1..], settings),
        "tc" => {
            if words.contains(&"pfifo") && words.windows(2).any(|w| w == ["limit", "0"]) {
                settings.link_drops = true;
            }
            if words.contains(&"fq") {
                settings.tcp.pacing = true;
                return Ok(true);
            }
            Ok(words.contains(&"pfifo") || words.contains(&"delete") || words.contains(&"del"))
        }
        // Offloads are the device's; what they change is how many packets a burst is, and that is not compared.
        "ethtool" => Ok(true),
        "dd" => {
            let value = |name: &str| words.iter().find_map(|w| w.strip_prefix(name));
            let number = |name| value(name).map_or(Some(1), |n| n.parse::<u64>().ok());
            if let (Some(file), Some(size), Some(count)) = (value("of="), number("bs="), number("count=")) {
                settings.files.insert(file.to_owned(), size.saturating_mul(count));
            }
            Ok(true)
        }
        "truncate" => {
            if let [.., "-s", size, file] = words
                && let Ok(size) = size.parse()
            {
                settings.files.insert((*file).to_owned(), size);
            }
            Ok(true)
        }
        "rm" => {
            words[1..].iter().for_each(|file| _ = settings.files.remove(*file));
            Ok(true)
        }
        "sleep" => {
            let seconds: f64 = words.get(1).and_then(|w| w.parse().ok()).unwrap_or(0.0);
            outcome.takes += (seconds.clamp(0.0, 86_400.0) * 1e6) as i64;
            Ok(true)
        }
        "true" | ":" | "sync" => Ok(true),
        name if name.starts_with("sysctl_restore") => Ok(true),
        // Reads Linux's counters; without a pipe it only resets what the next call tells.
        "nstat" => Ok(true),
        _ => Ok(false),
    }
}

fn set(name: &str, value: &str, settings: &mut Settings, outcome: &mut Outcome) -> Result<(), String> {
    let path = name.strip_prefix("/proc/sys/").unwrap_or(name).replace('/', ".");
    let last = path.rsplit('.').next().unwrap_or_default();
    if !settings.sysctl(last, value)? {
        outcome.skipped.push(format!("{path}={value}"));
    }
    Ok(())
}

/// `ip link set dev tun0 mtu 9000`, `ip route … rto_min 10ms`.
fn ip(words: &[&str], settings: &mut Settings) -> Result<bool, String> {
    let words: Vec<&str> = words.iter().copied().filter(|w| !w.starts_with('-')).collect();
    let after = |name: &str| words.windows(2).find(|w| w[0] == name).map(|w| w[1]);
    match words.first().copied() {
        Some("tcp_metrics" | "netns" | "addr" | "address" | "neigh") => Ok(true),
        Some("link") => {
            if let Some(mtu) = after("mtu") {
                settings.set_mtu(mtu).ok_or_else(|| format!("ip link: mtu {mtu}"))?;
            }
            Ok(true)
        }
        Some("route") => {
            let mut known = true;
            for option in ["initcwnd", "initrwnd", "mtu", "advmss", "congctl", "quickack", "features", "cwnd", "window"]
            {
                known &= after(option).is_none();
            }
            if let Some(time) = after("rto_min") {
                settings.tcp.min_rto = duration(time).ok_or_else(|| format!("ip route: rto_min {time}"))?;
            }
            Ok(known)
        }
        _ => Ok(false),
    }
}

/// `10ms`, `1s`, `500us`; a bare number is milliseconds.
fn duration(text: &str) -> Option<std::time::Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().ok()?;
    Some(match &text[digits.len()..] {
        "s" => std::time::Duration::from_secs(number),
        "" | "ms" => std::time::Duration::from_millis(number),
        "us" => std::time::Duration::from_micros(number),
        _ => return None,
    })
}

/// Splits into commands and those into words, as a shell would: quotes, `$((…))`, `\` before a newline, comments. A
/// pipe ends a command; what comes behind it only looks at output.
fn commands(text: &str) -> Vec<Vec<String>> {
    let mut all = vec![Vec::new()];
    let mut word = String::new();
    let mut has_word = false;
    let mut quote = None;
    let mut piped = false;
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let mut skip = c.len_utf8();
        let mut end_word = false;
        let mut end_command = false;
        if let Some(sum) = rest.strip_prefix("$((").filter(|_| quote != Some('\'')) {
            let end = sum.find("))").unwrap_or(sum.len());
            word += &arithmetic(&sum[..end]).map_or_else(|| sum[..end].to_owned(), |n| n.to_string());
            has_word = true;
            skip = (3 + end + 2).min(rest.len());
        } else if rest.starts_with("\\\n") {
            skip = 2;
            end_word = quote.is_none();
        } else if quote == Some(c) {
            quote = None;
        } else if quote.is_some() {
            word.push(c);
        } else {
            match c {
                '\'' | '"' => {
                    quote = Some(c);
                    has_word = true;
                }
                '#' if word.is_empty() => skip = rest.find('\n').unwrap_or(rest.len()),
                '\n' | ';' => end_command = true,
                '&' | '|' => {
                    let double = rest[1..].starts_with(c);
                    skip += usize::from(double);
                    end_command = true;
                    if c == '|' && !double {
                        piped = true;
                    }
                }
                '>' => {
                    // `2>/dev/null`, `> file`.
                    let to_nothing = rest[1..].trim_start().strip_prefix("/dev/null");
                    if word == "2" || to_nothing.is_some() {
                        if word == "2" {
                            word.clear();
                            has_word = false;
                        }
                        let after = rest[1..].trim_start_matches([' ', '&']);
                        let len =
                            after.find(|c: char| c.is_whitespace() || c == ';' || c == '|').unwrap_or(after.len());
                        skip = rest.len() - after.len() + len;
                        end_word = true;
                    } else {
                        if has_word {
                            all.last_mut().into_iter().for_each(|l| l.push(std::mem::take(&mut word)));
                        }
                        word.push('>');
                        has_word = true;
                        end_word = true;
                    }
                }
                c if c.is_whitespace() => end_word = true,
                c => {
                    word.push(c);
                    has_word = true;
                }
            }
        }
        if (end_word || end_command) && has_word {
            all.last_mut().into_iter().for_each(|l| l.push(std::mem::take(&mut word)));
            has_word = false;
        }
        if end_command {
            // What stands behind a pipe is kept as one command with what stands before it.
            if piped {
                all.last_mut().into_iter().for_each(|l| l.push("|".into()));
                piped = false;
            } else {
                all.push(Vec::new());
            }
        }
        rest = &rest[skip..];
    }
    if has_word {
        all.last_mut().into_iter().for_each(|l| l.push(word.clone()));
    }
    all.retain(|words| !words.is_empty());
    all
}

/// Products, sums and shifts of whole numbers.
fn arithmetic(text: &str) -> Option<i64> {
    let mut sum = 0i64;
    for term in text.split('+') {
        let mut product = 1i64;
        for factor in term.split('*') {
            let mut parts = factor.split("<<").map(|p| p.trim().parse::<i64>());
            let mut value = parts.next()?.ok()?;
            for shift in parts {
                value = value.checked_shl(u32::try_from(shift.ok()?).ok()?)?;
            }
            product = product.checked_mul(value)?;
        }
        sum = sum.checked_add(product)?;
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(text: &str) -> (Settings, Outcome) {
        let mut settings = Settings::default();
        let outcome = run(text, &mut settings).unwrap();
        (settings, outcome)
    }

    #[test]
    fn sysctls_in_all_their_forms() {
        let (s, out) = done(
            "./defaults.sh\nsysctl -q net.ipv4.tcp_rmem=\"4096 131072 $((32*1024*1024))\" # why\n\
             ../common/set_sysctls.py /proc/sys/net/ipv4/tcp_timestamps=0 \\\n  /proc/sys/net/ipv4/tcp_sack=0\n\
             echo 7 > /proc/sys/net/ipv4/tcp_syn_retries; sysctl -e -q net/ipv4/ip_local_port_range='1024 65000'\n\
             /tmp/sysctl_restore_${PPID}.sh",
        );
        assert_eq!(s.tcp.rmem, [4096, 131_072, 32 << 20]);
        assert!(!s.tcp.timestamps && !s.tcp.sack);
        assert_eq!(s.tcp.syn_retries, 7);
        assert_eq!(s.ephemeral_ports, (1024, 65_000));
        assert_eq!(out, Outcome::default());
    }

    #[test]
    fn other_commands() {
        let (s, out) = done(
            "ip link set dev tun0 mtu 9000\nip route change 192.0.2.0/24 dev tun0 rto_min 10ms\n\
             ethtool -K tun0 tso off 2>/dev/null\ntc qdisc delete dev tun0 root 2>/dev/null ; tc qdisc add dev tun0 root pfifo limit 0\n\
             /bin/dd bs=2 count=5 if=/dev/zero of=/tmp/x status=none && sleep .5\nnstat > /dev/null",
        );
        assert_eq!((s.mtu, s.tcp.min_rto.as_millis(), s.link_drops), (9000, 10, true));
        assert_eq!(s.files.get("/tmp/x"), Some(&10));
        assert_eq!(out, Outcome { skipped: Vec::new(), takes: 500_000 });
    }

    #[test]
    fn what_is_unknown_is_reported_and_not_done() {
        let (_, out) = done("sysctl -q net.ipv4.tcp_plb_enabled=1\nrm_everything -r /\nnstat | grep -q TcpExt");
        assert_eq!(out.skipped, ["net.ipv4.tcp_plb_enabled=1", "rm_everything -r /"]);
        assert!(run("sysctl net.ipv4.tcp_sack=maybe", &mut Settings::default()).is_err());
    }
}
