//! Addresses as shared memory and control messages carry them: 16 bytes, IPv4 in mapped form.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// 16 bytes of an address: what a program's side of the border writes.
pub use sidestep_client::to_wire as mapped;

/// The address that 16 bytes mean: mapped ones are IPv4.
#[must_use]
pub fn unmapped(bytes: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(bytes).to_canonical()
}

/// Address and port together.
#[must_use]
pub fn endpoint(bytes: [u8; 16], port: u16) -> SocketAddr {
    SocketAddr::new(unmapped(bytes), port)
}

/// Whether the 16 bytes are `::` or the mapped form of 0.0.0.0.
#[must_use]
pub fn is_unspecified(bytes: [u8; 16]) -> bool {
    unmapped(bytes).is_unspecified()
}
