//! docs/HOSTILE.md promises a test for each input: the tests must exist, and the files that it names.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(folder).expect("a folder of the repository").flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).expect("a source file");
            found.push((path, text));
        }
    }
}

#[test]
fn every_test_and_file_of_the_table_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut all = Vec::new();
    sources(&root.join("src"), &mut all);
    sources(&root.join("tests"), &mut all);
    let page = fs::read_to_string(root.join("docs/HOSTILE.md")).expect("the page");
    let (mut tests, mut files) = (0, 0);
    for row in page.lines().filter(|line| line.starts_with('|') && line.contains('`')) {
        for word in row.split('`').skip(1).step_by(2) {
            if let Some(name) = word.strip_prefix("e2e::") {
                assert!(all.iter().any(|(_, text)| text.contains(&format!("\"{name}\""))), "no case {name}");
                tests += 1;
            } else if let Some((module, name)) = word.split_once("::") {
                let file = format!("{module}.rs");
                let is_it =
                    |(path, text): &(PathBuf, String)| path.ends_with(&file) && text.contains(&format!("fn {name}("));
                assert!(all.iter().any(is_it), "no test {word}");
                tests += 1;
            } else if word.ends_with(".rs") || word.ends_with('/') {
                let places = ["src/stack", "src/stack/tcp", ""].map(|p| root.join(p).join(word));
                assert!(places.iter().any(|p| p.exists()), "no file {word}");
                files += 1;
            }
        }
    }
    assert!(tests > 40 && files > 30, "{tests} tests and {files} files: the table was not read");
}
