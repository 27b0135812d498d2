//! Packet scripts that nobody wrote: an error with its line, or a run that ends; whatever the script asks for.

use sidestep::packetdrill::{Notes, Settings, Verdict, run_text};

/// Wakings of the stack that a script may take here: a script is free to wait through a day of keep-alives.
const STEPS: u64 = 2000;

/// The bytes are a script. Their number chooses the family, so that one corpus serves all three.
///
/// # Panics
/// When a failure doesn't say what is wrong.
pub fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut settings = Settings { most_steps: STEPS, most_bytes: 1 << 20, ..Settings::default() };
    let family = ["ipv4", "ipv6", "ipv4-mapped-ipv6"][bytes.len() % 3];
    settings.option("ip_version", family).expect("a family that there is");
    match run_text(text, &settings, &mut Notes::default()) {
        Verdict::Passed => {}
        Verdict::Failed(failure) | Verdict::Unsupported(failure) => assert!(!failure.what.is_empty()),
    }
}
