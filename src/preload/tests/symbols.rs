//! What the library exports is what it means to replace, and nothing else: a name too many would take a function of the
//! program's or of another library's.

use std::collections::BTreeSet;
use std::process::Command;

/// One name a line; lines that begin with '#' say why.
const EXPECTED: &str = include_str!("../symbols.txt");

#[test]
fn the_library_exports_its_list_and_nothing_else() {
    let tests = std::env::current_exe().expect("this program's path");
    let library = tests.parent().expect("target folder").join("libsidestep_preload.so");
    let Ok(output) = Command::new("nm").args(["-D", "--defined-only", "--format=posix"]).arg(&library).output() else {
        println!("skipped: nm (binutils) is not installed");
        return;
    };
    assert!(output.status.success(), "nm {}: {}", library.display(), String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let found: BTreeSet<&str> = text.lines().filter_map(|line| line.split(' ').next()).collect();
    let expected: BTreeSet<&str> = EXPECTED.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let extra: Vec<_> = found.difference(&expected).collect();
    let missing: Vec<_> = expected.difference(&found).collect();
    assert!(extra.is_empty() && missing.is_empty(), "not in symbols.txt: {extra:?}; only there: {missing:?}");
}
