//! std-like
