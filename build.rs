//! Compiles `bpf/steer.bpf.c` for the kernel's BPF machine; `src/xdp/steering.rs` embeds the object.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, io};

const SOURCE: &str = "bpf/steer.bpf.c";

fn main() {
    println!("cargo::rerun-if-changed={SOURCE}");
    println!("cargo::rerun-if-env-changed=CLANG");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("steer.bpf.o");
    if let Err(why) = compile(&out) {
        for line in why.lines() {
            println!("cargo::error={line}");
        }
        std::process::exit(1);
    }
}

fn compile(out: &Path) -> Result<(), String> {
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".to_owned());
    let mut command = Command::new(&clang);
    // -g: the map definitions are read from the type information (BTF).
    command.args(["-target", "bpf", "-O2", "-g", "-Wall", "-Wextra", "-Werror"]);
    // Debian keeps <asm/types.h> in a folder by architecture, which clang does not search for the bpf target.
    if let Some(include) = multiarch_include() {
        command.arg("-I").arg(include);
    }
    let output = command.arg("-c").arg(SOURCE).arg("-o").arg(out).output().map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => format!(
            "`{clang}` was not found; it compiles {SOURCE}. On Debian and Ubuntu: \
             apt install clang libelf-dev zlib1g-dev m4 pkg-config linux-libc-dev (or set CLANG to another compiler)"
        ),
        _ => format!("cannot run `{clang}`: {e}"),
    })?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{command:?} failed:\n{}\nIf headers are missing, on Debian and Ubuntu: apt install linux-libc-dev",
        String::from_utf8_lossy(&output.stderr)
    ))
}

/// `/usr/include/x86_64-linux-gnu` and its likes; None where headers are not split by architecture.
fn multiarch_include() -> Option<PathBuf> {
    let arch = env::var("CARGO_CFG_TARGET_ARCH").ok()?;
    let path = PathBuf::from(format!("/usr/include/{arch}-linux-gnu"));
    path.is_dir().then_some(path)
}
