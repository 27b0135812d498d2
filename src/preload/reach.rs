//! Programs that this library can't get into: static ones. `sidestep run` refuses them; one that a program starts runs
//! on the kernel's network, and that is said.

use core::ffi::{CStr, c_char};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::engine;

/// elf(5)
const PT_INTERP: u32 = 3;

/// Says that `program` is out of reach, if it is. `searched`: it is looked for on PATH, as execvp(3) does.
///
/// # Safety
/// `program` is null or a string.
pub unsafe fn look(program: *const c_char, searched: bool) {
    if program.is_null() || engine::settings().is_none() {
        return;
    }
    // SAFETY: the caller's word.
    let name = OsStr::from_bytes(unsafe { CStr::from_ptr(program) }.to_bytes());
    let path = if searched && !name.as_bytes().contains(&b'/') { on_path(name) } else { Some(PathBuf::from(name)) };
    if let Some(path) = path.filter(|path| is_static(path)) {
        engine::say(&format!(
            "sidestep: {} is statically linked, so it runs on the kernel's network and not on Sidestep\n",
            path.display()
        ));
    }
}

fn on_path(name: &OsStr) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// Whether a file is a program without a dynamic loader. The loader itself has none, and loads what it is told to.
fn is_static(path: &Path) -> bool {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(4096).read_to_end(&mut start));
    let is_loader = path.file_name().is_some_and(|n| n.as_bytes().starts_with(b"ld-") || n.as_bytes() == b"ld.so");
    read.is_ok() && !is_loader && has_no_loader(&start)
}

/// Whether the program headers of a 64-bit ELF file, all of which are at hand, name no loader.
fn has_no_loader(start: &[u8]) -> bool {
    let Some(header) = start.first_chunk::<64>().filter(|h| h.starts_with(b"\x7fELF\x02")) else { return false };
    let half = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let table = header[32..].first_chunk::<8>().and_then(|at| usize::try_from(u64::from_le_bytes(*at)).ok());
    let (Some(table), entry, entries) = (table, half(54), half(56)) else { return false };
    let kind =
        |n: usize| start.get(table.checked_add(n * entry)?..)?.first_chunk::<4>().map(|b| u32::from_le_bytes(*b));
    entries > 0 && (0..entries).all(|n| kind(n).is_some_and(|kind| kind != PT_INTERP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_is_dynamic_and_the_loader_is_no_static_program() {
        assert!(!is_static(Path::new("/bin/sh")));
        assert!(!is_static(Path::new("/lib64/ld-linux-x86-64.so.2")));
        assert!(!is_static(Path::new("/etc/passwd")) && !is_static(Path::new("/nonexistent")));
        assert!(on_path(OsStr::new("sh")).is_some());
    }

    #[test]
    fn headers_tell() {
        let mut file = vec![0; 64 + 2 * 56];
        file[..5].copy_from_slice(b"\x7fELF\x02");
        file[32] = 64;
        file[54] = 56;
        file[56] = 2;
        file[64] = 1;
        assert!(has_no_loader(&file));
        file[64 + 56] = 3;
        assert!(!has_no_loader(&file));
        assert!(!has_no_loader(&file[..100]), "headers that are not at hand");
    }
}
