//! Scenarios of the simulator that nobody wrote: an error, or scenarios that can be built.

use sidestep::sim::scenario::Scenario;

/// The bytes are a scenario's file.
///
/// # Panics
/// When an error says nothing, or what was taken has ends that lead nowhere.
pub fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Scenario::parse(text, "fuzzed.toml") {
        Ok(all) => {
            for (_, scenario) in all {
                let nodes = scenario.hosts.len() + scenario.switches.len();
                assert!(!scenario.hosts.is_empty() && !scenario.duration.is_zero());
                assert!(scenario.links.iter().all(|l| l.ends.0 < nodes && l.ends.1 < nodes && l.ends.0 != l.ends.1));
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
