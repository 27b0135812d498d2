//! `libsidestep`: the whole engine in the program's own process, for C programs and for `sidestep run --library`.
//! Everything that it does is in [`engine::library`]; here is only what has to have a C name.

pub use engine::library::Library;
