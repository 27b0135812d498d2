//! Examples that need nothing but this process run as tests. Those in C run in tests/e2e.

#[path = "../examples/library.rs"]
mod library;

#[test]
fn library_echoes_in_place_with_a_hook() {
    library::main().unwrap();
}
