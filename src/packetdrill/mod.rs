//! `sidestep packetdrill`: scripts in packetdrill's language against this stack, in virtual time.

mod code;
pub mod parse;
pub mod script;
