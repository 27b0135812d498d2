//! What [`crate::stages`] needs of this module.

use alloc::vec::Vec;
use core::net::SocketAddr;

use super::flow::{FlowKey, FlowRef, FlowTable};
use super::segment::Segment;
use crate::siphash::SipKey;

pub fn parse(segment: &[u8]) -> Option<usize> {
    Segment::parse(segment).map(|s| s.payload.len())
}

#[derive(Debug)]
pub struct Flows {
    key: SipKey,
    table: FlowTable,
    keys: Vec<FlowKey>,
    local: SocketAddr,
}

impl Flows {
    pub fn new(local: SocketAddr, remotes: impl Iterator<Item = SocketAddr>) -> Self {
        let key = SipKey::derive(&[7; 32], 1);
        let keys: Vec<FlowKey> = remotes.map(|remote| FlowKey::new(local, remote)).collect();
        let mut table = FlowTable::new();
        for (n, flow) in (0..).zip(&keys) {
            table.insert(flow.hash(key), FlowRef::Connection(n));
        }
        Self { key, table, keys, local }
    }

    pub fn find(&self, remote: SocketAddr) -> Option<u32> {
        let wanted = FlowKey::new(self.local, remote);
        let is_it = |reference| matches!(reference, FlowRef::Connection(n) if self.keys.get(n as usize).is_some_and(|k| *k == wanted));
        match self.table.find(wanted.hash(self.key), is_it) {
            Some(FlowRef::Connection(n)) => Some(n),
            _ => None,
        }
    }
}
