//! docs/RFC.md says which test shows which requirement: all of them exist, and no number of RFC 9293 is missing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What the RFC's appendix B numbers: MUST-1 to MUST-69, SHLD-1 to SHLD-31, each of them there once (its MAYs and its
/// one REC are choices).
const MUSTS: u32 = 69;
const SHOULDS: u32 = 31;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}

/// Every Rust file below `at`.
fn sources(at: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(at).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Names of the functions behind a `#[test]`, or inside proptest!, which has the attribute too.
fn tests() -> BTreeSet<String> {
    let mut files = Vec::new();
    for folder in ["src", "tests"] {
        sources(&root().join(folder), &mut files);
    }
    let mut names = BTreeSet::new();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("readable");
        let mut after_attribute = false;
        for line in text.lines().map(str::trim) {
            if line == "#[test]" {
                after_attribute = true;
            } else if let Some(rest) = line.strip_prefix("fn ").filter(|_| after_attribute) {
                names.extend(rest.split(['(', '<']).next().map(str::to_owned));
                after_attribute = false;
            } else if !line.starts_with("#[") && !line.starts_with("//") {
                after_attribute = false;
            }
        }
    }
    names
}

/// What stands in backticks in a cell.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// Cells of every row of the tables, with the number of its line. Headings have no backticks in their last cell.
fn rows(text: &str) -> Vec<(usize, Vec<&str>)> {
    text.lines()
        .enumerate()
        .filter(|(_, line)| line.starts_with("| "))
        .map(|(n, line)| (n + 1, line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>()))
        .filter(|(_, cells)| cells.last().is_some_and(|last| last.contains('`')))
        .collect()
}

#[test]
fn every_test_and_file_of_the_index_exists() {
    let text = std::fs::read_to_string(root().join("docs/RFC.md")).expect("docs/RFC.md");
    let tests = tests();
    let rows = rows(&text);
    assert!(rows.len() > 150, "{} rows", rows.len());
    let mut wrong = Vec::new();
    for (line, cells) in &rows {
        let [.., places, shown_by] = cells[..] else { panic!("line {line}: too few columns") };
        for place in quoted(places) {
            let path = if place.starts_with("src/") { place.to_owned() } else { format!("src/stack/tcp/{place}") };
            if !root().join(&path).is_file() {
                wrong.push(format!("line {line}: no file {place}"));
            }
        }
        for name in quoted(shown_by) {
            let exists = if name.contains('/') {
                root().join("tests/packets").join(format!("{name}.pkt")).is_file()
            } else {
                tests.contains(name)
            };
            if !exists {
                wrong.push(format!("line {line}: no test {name}"));
            }
        }
        if quoted(places).count() == 0 {
            wrong.push(format!("line {line}: no file"));
        }
    }
    assert!(wrong.is_empty(), "docs/RFC.md:\n{}", wrong.join("\n"));
}

#[test]
fn every_number_of_rfc_9293_is_there_once() {
    let text = std::fs::read_to_string(root().join("docs/RFC.md")).expect("docs/RFC.md");
    let rows = rows(&text);
    for (kind, count) in [("MUST", MUSTS), ("SHLD", SHOULDS)] {
        let numbers: Vec<u32> =
            rows.iter().filter_map(|(_, cells)| cells[0].strip_prefix(kind)?.strip_prefix('-')?.parse().ok()).collect();
        assert_eq!(numbers, (1..=count).collect::<Vec<_>>(), "{kind}");
    }
}
