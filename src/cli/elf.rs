//! Can LD_PRELOAD reach this program? The dynamic loader must start it, and must not distrust it.

use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::Failure;

/// bash's codes: found but can't be run, and not found.
const CANNOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;
/// elf(5)
const PT_INTERP: u32 = 3;
/// Longest line after "#!" that the kernel reads (BINPRM_BUF_SIZE).
const SCRIPT_LINE: usize = 256;
/// Interpreters of interpreters, as the kernel allows.
const SCRIPTS_DEEP: usize = 4;

#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = 62;
#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = 183;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const MACHINE: u16 = 0;

/// Finds `program` as execvp(3) would, and checks that the library will be loaded into it.
///
/// # Errors
/// Not found, not executable, or out of reach for LD_PRELOAD, and what to do.
pub fn find(program: &str) -> Result<PathBuf, Failure> {
    let path = resolve(program, std::env::var_os("PATH").as_deref())?;
    check(&path)?;
    Ok(path)
}

fn resolve(program: &str, search: Option<&std::ffi::OsStr>) -> Result<PathBuf, Failure> {
    let refuse = |code, message| Err(Failure { code, message });
    let mut unusable = None;
    let candidates: Vec<PathBuf> = if program.contains('/') {
        vec![program.into()]
    } else {
        std::env::split_paths(search.unwrap_or_default()).map(|folder| folder.join(program)).collect()
    };
    for path in candidates {
        let Ok(facts) = path.metadata() else { continue };
        if facts.is_file() && facts.mode() & 0o111 != 0 {
            return Ok(path);
        }
        unusable.get_or_insert((path, facts.is_dir()));
    }
    match unusable {
        Some((path, true)) => refuse(CANNOT_RUN, format!("{} is a folder, not a program", path.display())),
        Some((path, false)) => {
            refuse(CANNOT_RUN, format!("{} is not executable (`chmod +x` makes it so)", path.display()))
        }
        None => refuse(NOT_FOUND, format!("{program}: program not found; give its path, or check PATH")),
    }
}

fn check(path: &Path) -> Result<(), Failure> {
    let mut path = path.to_owned();
    for _ in 0..SCRIPTS_DEEP {
        match look(&path).map_err(|why| Failure { code: CANNOT_RUN, message: format!("{}: {why}", path.display()) })? {
            Kind::Script(interpreter) => path = interpreter,
            Kind::Dynamic | Kind::Unreadable => return Ok(()),
        }
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Dynamic,
    /// Its interpreter is what LD_PRELOAD has to reach.
    Script(PathBuf),
    /// Execute-only: the kernel will know better.
    Unreadable,
}

fn look(path: &Path) -> Result<Kind, String> {
    let Ok(mut file) = File::open(path) else { return Ok(Kind::Unreadable) };
    let facts = file.metadata().map_err(|e| e.to_string())?;
    // ld.so(8), secure-execution mode: LD_PRELOAD is ignored when the effective ids would change.
    let foreign_user = facts.mode() & libc::S_ISUID != 0 && facts.uid() != rustix::process::geteuid().as_raw();
    let foreign_group = facts.mode() & libc::S_ISGID != 0 && facts.gid() != rustix::process::getegid().as_raw();
    if foreign_user || foreign_group {
        return Err("is set-user-ID or set-group-ID, and the loader preloads nothing into such programs; \
                    run it as its owner, or a copy without the bit"
            .into());
    }
    let by_root = rustix::process::geteuid().is_root();
    if !by_root && rustix::fs::getxattr(path, c"security.capability", &mut [0_u8; 64][..]).is_ok() {
        return Err("has file capabilities, and the loader preloads nothing into such programs; \
                    run it as root, or a copy without them"
            .into());
    }
    let mut start = Vec::new();
    let read = file.by_ref().take(SCRIPT_LINE as u64).read_to_end(&mut start);
    read.map_err(|e| format!("can't be read: {e}"))?;
    if let Some(line) = start.strip_prefix(b"#!") {
        return script(line);
    }
    elf(&start, &file)
}

fn script(line: &[u8]) -> Result<Kind, String> {
    let line = line.split(|&b| b == b'\n').next().unwrap_or_default();
    let word = line.split(|b| b" \t".contains(b)).find(|w| !w.is_empty());
    let interpreter = word.ok_or("its first line names no interpreter after #!")?;
    Ok(Kind::Script(PathBuf::from(std::ffi::OsStr::from_bytes(interpreter))))
}

/// Reads the program headers, elf(5). A file that is neither ELF nor script may still be one for a shell, as execvp(3)
/// has it; the kernel decides.
fn elf(start: &[u8], file: &File) -> Result<Kind, String> {
    let Some(header) = start.first_chunk::<64>().filter(|h| h.starts_with(b"\x7fELF")) else {
        return Ok(Kind::Unreadable);
    };
    let half = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let (class, machine) = (header[4], half(18));
    if class != 2 || (MACHINE != 0 && machine != MACHINE) {
        return Err("is built for another kind of machine than this sidestep (32 bits, or another processor); \
                    the library can't be loaded into it"
            .into());
    }
    let mut at = [0; 8];
    at.copy_from_slice(&header[32..40]);
    let (table, entry_bytes, entries) = (u64::from_le_bytes(at), half(54), half(56));
    for index in 0..u64::from(entries) {
        let mut entry = [0; 56];
        let place = table.saturating_add(index * u64::from(entry_bytes));
        file.read_exact_at(&mut entry, place).map_err(|_| "is a damaged ELF file: its program headers are cut off")?;
        if u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]) == PT_INTERP {
            return dynamic(&entry, file);
        }
    }
    Err("is statically linked: LD_PRELOAD can't reach it; use a dynamically linked build, \
         or link the Sidestep client into it (include/sidestep.h)"
        .into())
}

fn dynamic(entry: &[u8; 56], file: &File) -> Result<Kind, String> {
    let word = |at: usize| entry[at..at + 8].iter().rev().fold(0_u64, |n, &b| n << 8 | u64::from(b));
    let mut name = vec![0; word(32).min(256) as usize];
    file.read_exact_at(&mut name, word(8)).map_err(|_| "is a damaged ELF file: its loader's name is cut off")?;
    if name.windows(7).any(|w| w == b"ld-musl") && !cfg!(target_env = "musl") {
        return Err("is linked against musl, and this sidestep's library against glibc; use a glibc build of it".into());
    }
    Ok(Kind::Dynamic)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A folder that is gone when the test is over.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("sidestep-elf-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }
        fn file(&self, name: &str, bytes: &[u8], mode: u32) -> PathBuf {
            let path = self.0.join(name);
            std::fs::write(&path, bytes).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// An ELF file with one program header of type `kind`, whose segment holds `name`.
    fn elf_file(machine: u16, kind: u32, name: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 64 + 56];
        bytes[..5].copy_from_slice(b"\x7fELF\x02");
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
        bytes[54..56].copy_from_slice(&56_u16.to_le_bytes());
        bytes[56..58].copy_from_slice(&1_u16.to_le_bytes());
        bytes[64..68].copy_from_slice(&kind.to_le_bytes());
        bytes[72..80].copy_from_slice(&120_u64.to_le_bytes());
        bytes[96..104].copy_from_slice(&(name.len() as u64).to_le_bytes());
        bytes.extend_from_slice(name);
        bytes
    }

    #[test]
    fn programs_of_this_machine_are_reached() {
        assert_eq!(look(Path::new("/bin/sh")), Ok(Kind::Dynamic));
        assert_eq!(look(&std::env::current_exe().unwrap()), Ok(Kind::Dynamic));
    }

    #[test]
    fn what_the_loader_can_not_reach_is_refused() {
        let folder = Folder::new("reach");
        let cases: [(&str, Vec<u8>, &str); 4] = [
            ("static", elf_file(MACHINE, 1, b""), "statically linked"),
            ("musl", elf_file(MACHINE, PT_INTERP, b"/lib/ld-musl-x86_64.so.1\0"), "musl"),
            ("foreign", elf_file(40, PT_INTERP, b"/lib/ld.so\0"), "another kind of machine"),
            ("cut", elf_file(MACHINE, PT_INTERP, b"/lib/ld.so\0")[..100].to_vec(), "damaged"),
        ];
        for (name, bytes, says) in cases {
            let path = folder.file(name, &bytes, 0o755);
            let failure = find(path.to_str().unwrap()).unwrap_err();
            assert!(failure.message.contains(says), "{name}: {}", failure.message);
            assert_eq!(failure.code, CANNOT_RUN);
            // A script is as reachable as its interpreter.
            let script = folder.file("script", format!("#! {} -x\n", path.display()).as_bytes(), 0o755);
            assert!(find(script.to_str().unwrap()).is_err());
        }
        let fine = folder.file("fine", &elf_file(MACHINE, PT_INTERP, b"/lib64/ld-linux-x86-64.so.2\0"), 0o755);
        assert!(find(fine.to_str().unwrap()).is_ok());
        let script = folder.file("shell", b"#!/bin/sh\necho\n", 0o755);
        assert!(find(script.to_str().unwrap()).is_ok());
    }

    #[test]
    fn finding_is_as_a_shell_does_it() {
        let folder = Folder::new("find");
        folder.file("plain", b"x", 0o644);
        folder.file("tool", b"#!/bin/sh\n", 0o755);
        let search = Some(folder.0.as_os_str());
        assert!(resolve("tool", search).is_ok());
        assert_eq!(resolve("plain", search).unwrap_err().code, CANNOT_RUN);
        assert_eq!(resolve("absent", search).unwrap_err().code, NOT_FOUND);
        assert_eq!(resolve(folder.0.to_str().unwrap(), None).unwrap_err().code, CANNOT_RUN);
        assert_eq!(resolve("/no/such/program", None).unwrap_err().code, NOT_FOUND);
    }
}
