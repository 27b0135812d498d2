//! Transcripts of the programs of `tests/posix`: read, compared line by line, and held against the differences that
//! `docs/POSIX.md` explains.
//!
//! A line is `FUNCTION.LABEL: what happened`; one line compared is one check, named `posix::PROGRAM::FUNCTION.LABEL`.

use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;

/// The heading in `docs/POSIX.md` under which the suite's differences stand, each row with the names of its checks in
/// the first column and the reason in the last.
pub const SECTION: &str = "## Differences that the parity suite counts";
/// What stands for a line that one side doesn't have.
const NOTHING: &str = "(nothing)";
/// The line with which a function of a program ends when all went well. Not a check of its own.
const GOOD_END: &str = "exit 0";

/// What a program wrote: names of lines in order, and what they said.
#[derive(Debug)]
pub struct Transcript {
    order: Vec<String>,
    lines: BTreeMap<String, String>,
}

impl Transcript {
    /// # Errors
    /// A line of another form, or two lines of one name: then the comparison would say less than it seems to.
    pub fn parse(text: &str) -> Result<Self> {
        let mut transcript = Self { order: Vec::new(), lines: BTreeMap::new() };
        for line in text.lines() {
            let (name, said) = line.split_once(": ").with_context(|| format!("no transcript line: {line:?}"))?;
            ensure!(!name.contains(' ') && name.contains('.'), "no transcript line: {line:?}");
            let twice = transcript.lines.insert(name.to_owned(), said.to_owned());
            ensure!(twice.is_none(), "two lines are named {name}");
            transcript.order.push(name.to_owned());
        }
        Ok(transcript)
    }

    fn said(&self, name: &str) -> &str {
        self.lines.get(name).map_or(NOTHING, String::as_str)
    }
}

/// What came of comparing two transcripts.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Lines compared.
    pub checks: u32,
    /// Those that differ as documented.
    pub known: u32,
    /// What must not be: check, and what is wrong with it.
    pub wrong: Vec<(String, String)>,
}

impl Comparison {
    /// Holds `ours` against `kernel`. `documented` are the names of [`documented`], of all programs.
    #[must_use]
    pub fn of(program: &str, kernel: &Transcript, ours: &Transcript, documented: &[String]) -> Self {
        let mut result = Self::default();
        let only_ours = ours.order.iter().filter(|name| !kernel.lines.contains_key(*name));
        let names: Vec<&String> = kernel.order.iter().chain(only_ours).collect();
        let mut used = vec![false; documented.len()];
        for name in names {
            let (theirs, mine) = (kernel.said(name), ours.said(name));
            if name.ends_with(".END") && theirs == GOOD_END && mine == GOOD_END {
                continue;
            }
            if name.ends_with(".END") && theirs != GOOD_END {
                result.wrong.push((format!("{program}::{name}"), format!("fails on the kernel itself: {theirs}")));
                continue;
            }
            result.checks += 1;
            let full = format!("{program}::{name}");
            let documented = documented.iter().position(|d| covers(d, &full));
            match (theirs == mine, documented) {
                (true, _) => {}
                (false, Some(row)) => {
                    used[row] = true;
                    result.known += 1;
                }
                (false, None) => {
                    result.wrong.push((full, format!("kernel: {theirs}\n       sidestep: {mine}")));
                }
            }
        }
        let own = format!("{program}::");
        for (name, used) in documented.iter().zip(used) {
            if name.starts_with(&own) && !used {
                result.wrong.push((name.clone(), "docs/POSIX.md explains a difference that is not there".to_owned()));
            }
        }
        result
    }
}

/// Whether the documented name, which may end in `*`, means `check`.
fn covers(documented: &str, check: &str) -> bool {
    match documented.strip_suffix('*') {
        Some(start) => check.starts_with(start),
        None => documented == check,
    }
}

/// The names of the checks whose differences `page` explains: all that stands in backticks in the first column of the
/// table under [`SECTION`].
///
/// # Errors
/// A row without a reason, or a name that stands there twice.
pub fn documented(page: &str) -> Result<Vec<String>> {
    let mut names: Vec<String> = Vec::new();
    let section = page.lines().skip_while(|line| *line != SECTION).skip(1).take_while(|line| !line.starts_with("## "));
    for row in section.filter(|line| line.starts_with("| `")) {
        let columns: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        ensure!(columns.len() == 3 && columns[2].len() >= 10, "a row without what differs or why: {row}");
        for name in columns[0].split('`').skip(1).step_by(2) {
            if names.iter().any(|known| covers(known, name)) {
                bail!("{name} is explained twice");
            }
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# X\n## Differences that the parity suite counts\n\n| Checks | What | Why |\n|---|---|---|\n\
        | `tcp::f.a` `tcp::f.b` | other errno | because it is so |\n| `udp::g.*` | all of it | nobody knows this |\n\
        \n## Next\n| `not::this` | x | a reason that is long enough |\n";

    fn compare(kernel: &str, ours: &str, documented: &[&str]) -> Comparison {
        let documented: Vec<String> = documented.iter().map(|&d| d.to_owned()).collect();
        let (kernel, ours) = (Transcript::parse(kernel).unwrap(), Transcript::parse(ours).unwrap());
        Comparison::of("tcp", &kernel, &ours, &documented)
    }

    #[test]
    fn names_are_found_in_their_section_only() {
        assert_eq!(documented(PAGE).unwrap(), ["tcp::f.a", "tcp::f.b", "udp::g.*"]);
        assert!(documented(&PAGE.replace("because it is so", "-")).is_err());
        assert!(documented(&PAGE.replace("tcp::f.b", "tcp::f.a")).is_err());
    }

    #[test]
    fn what_differs_is_wrong_unless_documented_and_the_other_way_round() {
        let kernel = "f.a: 1\nf.b: -1 EINVAL\nf.END: exit 0\n";
        let same = compare(kernel, kernel, &[]);
        assert_eq!((same.checks, same.known, same.wrong.len()), (2, 0, 0));
        let ours = "f.a: 1\nf.b: 0\nf.END: exit 0\n";
        assert_eq!(compare(kernel, ours, &[]).wrong[0].0, "tcp::f.b");
        assert_eq!(compare(kernel, ours, &["tcp::f.b"]).known, 1);
        assert_eq!(compare(kernel, ours, &["tcp::f.*"]).wrong, []);
        assert_eq!(compare(kernel, kernel, &["tcp::f.b", "udp::x.y"]).wrong[0].0, "tcp::f.b");
    }

    #[test]
    fn a_crash_and_a_missing_line_are_differences() {
        let kernel = "f.a: 1\nf.END: exit 0\n";
        let crashed = compare(kernel, "f.END: signal 11\n", &[]);
        assert_eq!(crashed.wrong.iter().map(|w| w.0.as_str()).collect::<Vec<_>>(), ["tcp::f.a", "tcp::f.END"]);
        let hung = "f.a: 1\nf.END: signal 14\n";
        assert_eq!(compare(hung, hung, &[]).wrong[0].0, "tcp::f.END", "a program that hangs everywhere shows nothing");
        assert_eq!(compare(kernel, "f.a: 1\nf.c: 1\nf.END: exit 0\n", &[]).wrong[0].0, "tcp::f.c");
        assert!(Transcript::parse("f.a: 1\nf.a: 1\n").is_err());
        assert!(Transcript::parse("free text\n").is_err());
    }
}
