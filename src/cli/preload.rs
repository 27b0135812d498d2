//! Where the preload library is, and whether the loader will take it; and the library with the engine.

use std::path::{Path, PathBuf};

use super::Failure;

/// Names the library when it is nowhere near this command.
const OVERRIDE: &str = "SIDESTEP_PRELOAD";
const FILE: &str = "libsidestep_preload.so";
/// The same for the engine as a library.
const LIBRARY_OVERRIDE: &str = "SIDESTEP_LIBRARY_FILE";
const LIBRARY_FILE: &str = "libsidestep.so";

/// Finds the preload library.
///
/// # Errors
/// Where it was looked for, and what to do.
pub fn find() -> Result<PathBuf, Failure> {
    usable(find_file(FILE, OVERRIDE)?)
}

/// Finds the library with the engine.
///
/// # Errors
/// As [`find`].
pub fn find_library() -> Result<PathBuf, Failure> {
    let path = find_file(LIBRARY_FILE, LIBRARY_OVERRIDE)?;
    Ok(path.canonicalize().unwrap_or(path))
}

fn find_file(file: &str, by_name: &str) -> Result<PathBuf, Failure> {
    if let Some(path) = std::env::var_os(by_name).filter(|p| !p.is_empty()) {
        let path = std::path::absolute(PathBuf::from(path)).unwrap_or_default();
        return if path.is_file() {
            Ok(path)
        } else {
            Err(Failure::usage(format!("{by_name} names {}, which is not a file", path.display())))
        };
    }
    let own = std::env::current_exe().unwrap_or_default();
    let places = places(own.parent().unwrap_or(Path::new("/")), file);
    match places.iter().find(|p| p.is_file()) {
        Some(path) => Ok(path.clone()),
        None => {
            let looked: Vec<_> = places.iter().filter_map(|p| p.parent()).map(|p| p.display().to_string()).collect();
            Err(Failure::usage(format!(
                "{file} was not found in {}; build it with `cargo build --release --workspace`, or name it with {by_name}",
                looked.join(", ")
            )))
        }
    }
}

/// Beside the command (cargo's target folder), then as installed.
fn places(own: &Path, file: &str) -> Vec<PathBuf> {
    let installed = ["/usr/local/lib/sidestep", "/usr/lib/sidestep"].map(PathBuf::from);
    let near = [own.to_owned(), own.join("deps"), own.join("../lib/sidestep"), own.join("../lib")];
    near.into_iter().chain(installed).map(|folder| folder.join(file)).collect()
}

/// ld.so(8) takes spaces and colons in LD_PRELOAD for separators, and offers no way to quote them.
fn usable(path: PathBuf) -> Result<PathBuf, Failure> {
    let path = path.canonicalize().unwrap_or(path);
    match path.to_str() {
        Some(text) if !text.contains([' ', ':']) => Ok(path),
        _ => Err(Failure::usage(format!(
            "{} has a space or a colon in its path, which LD_PRELOAD can't carry; copy it elsewhere and name it with {OVERRIDE}",
            path.display()
        ))),
    }
}

/// The new value of LD_PRELOAD: ours first, so that what else is preloaded finds our calls, then what was there.
pub fn variable(library: &Path, before: Option<&str>) -> String {
    let library = library.display().to_string();
    match before.map(str::trim).filter(|b| !b.is_empty()) {
        Some(before) if before.split([' ', ':']).any(|b| b == library) => before.to_owned(),
        Some(before) => format!("{library}:{before}"),
        None => library,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_preloaded_stays_so() {
        let ours = Path::new("/x/libsidestep_preload.so");
        assert_eq!(variable(ours, None), "/x/libsidestep_preload.so");
        assert_eq!(variable(ours, Some("/y.so")), "/x/libsidestep_preload.so:/y.so");
        assert_eq!(variable(ours, Some("/y.so /x/libsidestep_preload.so")), "/y.so /x/libsidestep_preload.so");
    }

    #[test]
    fn a_path_that_the_loader_would_split_is_refused() {
        assert!(usable("/no such/x.so".into()).is_err());
        assert!(usable("/no:such/x.so".into()).is_err());
        assert!(usable("/nosuch/x.so".into()).is_ok());
    }
}
