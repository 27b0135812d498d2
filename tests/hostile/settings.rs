//! Configuration files that nobody wrote: an error, or a configuration that is the same after being written out.

use sidestep::config::Config;

/// The bytes are a configuration.
///
/// # Panics
/// When what was taken is not taken again once it is written out.
pub fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Config::parse(text, "fuzzed.toml") {
        Ok(config) => {
            let written = config.to_toml();
            let again = Config::parse(&written, "written.toml");
            assert_eq!(again.map(|c| c.to_toml()).ok().as_deref(), Some(&written[..]), "written out:\n{written}");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
