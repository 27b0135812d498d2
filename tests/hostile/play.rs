//! `cargo run -p sidestep-hostile -- TARGET FILE…` plays inputs of a fuzz target, so that a finding can be looked at with
//! an ordinary build and an ordinary debugger.

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let target = arguments.first().map(String::as_str).unwrap_or_default();
    let Some((_, run)) = sidestep_hostile::TARGETS.iter().find(|(name, _)| *name == target) else {
        let names: Vec<_> = sidestep_hostile::TARGETS.iter().map(|(name, _)| *name).collect();
        eprintln!("sidestep-hostile TARGET FILE…; the targets are {}", names.join(", "));
        std::process::exit(2);
    };
    for file in &arguments[1..] {
        match std::fs::read(file) {
            Ok(bytes) => run(&bytes),
            Err(error) => {
                eprintln!("{file}: {error}");
                std::process::exit(1);
            }
        }
        println!("{file}: survived");
    }
}
