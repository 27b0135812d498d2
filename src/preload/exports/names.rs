//! Name lookups. The C library asks name servers over sockets of its own, which it reaches without any symbol that
//! could be replaced; [`dispatch::within`] catches those system calls while a lookup runs.

use core::ffi::{c_char, c_int, c_void};

use libc::{addrinfo, hostent, size_t, sockaddr, socklen_t};

use super::export;
use crate::{dispatch, engine, real};

export! {
    /// getaddrinfo(3). AI_ADDRCONFIG is taken away: it would ask which address families the kernel's interfaces have,
    /// and those are not the stack's. What can't be reached comes last all the same, because a source address for
    /// each result is looked up on the stack.
    fn getaddrinfo(
        node: *const c_char,
        service: *const c_char,
        hints: *const addrinfo,
        out: *mut *mut addrinfo,
    ) -> c_int {
        let mut own;
        let mut asked = hints;
        if let Some(given) = hints.as_ref()
            && engine::settings().is_some()
        {
            own = *given;
            own.ai_flags &= !libc::AI_ADDRCONFIG;
            asked = &raw const own;
        }
        dispatch::within(|| real::getaddrinfo(node, service, asked, out))
    }

    /// getnameinfo(3).
    fn getnameinfo(
        address: *const sockaddr,
        len: socklen_t,
        host: *mut c_char,
        host_len: socklen_t,
        service: *mut c_char,
        service_len: socklen_t,
        flags: c_int,
    ) -> c_int {
        dispatch::within(|| real::getnameinfo(address, len, host, host_len, service, service_len, flags))
    }

    /// gethostbyname(3).
    fn gethostbyname(name: *const c_char) -> *mut hostent {
        dispatch::within(|| real::gethostbyname(name))
    }

    /// gethostbyname2(3).
    fn gethostbyname2(name: *const c_char, family: c_int) -> *mut hostent {
        dispatch::within(|| real::gethostbyname2(name, family))
    }

    /// gethostbyaddr(3).
    fn gethostbyaddr(address: *const c_void, len: socklen_t, family: c_int) -> *mut hostent {
        dispatch::within(|| real::gethostbyaddr(address, len, family))
    }

    /// gethostbyname_r(3).
    fn gethostbyname_r(
        name: *const c_char,
        out: *mut hostent,
        buffer: *mut c_char,
        room: size_t,
        found: *mut *mut hostent,
        error: *mut c_int,
    ) -> c_int {
        dispatch::within(|| real::gethostbyname_r(name, out, buffer, room, found, error))
    }

    /// gethostbyname2_r(3).
    fn gethostbyname2_r(
        name: *const c_char,
        family: c_int,
        out: *mut hostent,
        buffer: *mut c_char,
        room: size_t,
        found: *mut *mut hostent,
        error: *mut c_int,
    ) -> c_int {
        dispatch::within(|| real::gethostbyname2_r(name, family, out, buffer, room, found, error))
    }

    /// gethostbyaddr_r(3).
    fn gethostbyaddr_r(
        address: *const c_void,
        len: socklen_t,
        family: c_int,
        out: *mut hostent,
        buffer: *mut c_char,
        room: size_t,
        found: *mut *mut hostent,
        error: *mut c_int,
    ) -> c_int {
        dispatch::within(|| real::gethostbyaddr_r(address, len, family, out, buffer, room, found, error))
    }

    /// res_query(3).
    fn res_query(name: *const c_char, class: c_int, kind: c_int, answer: *mut u8, room: c_int) -> c_int {
        dispatch::within(|| real::res_query(name, class, kind, answer, room))
    }

    /// res_query(3), as programs built before glibc 2.34 call it; likewise below.
    fn __res_query(name: *const c_char, class: c_int, kind: c_int, answer: *mut u8, room: c_int) -> c_int {
        res_query(name, class, kind, answer, room)
    }

    /// res_search(3).
    fn res_search(name: *const c_char, class: c_int, kind: c_int, answer: *mut u8, room: c_int) -> c_int {
        dispatch::within(|| real::res_search(name, class, kind, answer, room))
    }

    /// res_search(3).
    fn __res_search(name: *const c_char, class: c_int, kind: c_int, answer: *mut u8, room: c_int) -> c_int {
        res_search(name, class, kind, answer, room)
    }

    /// res_querydomain(3).
    fn res_querydomain(
        name: *const c_char,
        domain: *const c_char,
        class: c_int,
        kind: c_int,
        answer: *mut u8,
        room: c_int,
    ) -> c_int {
        dispatch::within(|| real::res_querydomain(name, domain, class, kind, answer, room))
    }

    /// res_querydomain(3).
    fn __res_querydomain(
        name: *const c_char,
        domain: *const c_char,
        class: c_int,
        kind: c_int,
        answer: *mut u8,
        room: c_int,
    ) -> c_int {
        res_querydomain(name, domain, class, kind, answer, room)
    }

    /// res_send(3).
    fn res_send(question: *const u8, len: c_int, answer: *mut u8, room: c_int) -> c_int {
        dispatch::within(|| real::res_send(question, len, answer, room))
    }

    /// res_send(3).
    fn __res_send(question: *const u8, len: c_int, answer: *mut u8, room: c_int) -> c_int {
        res_send(question, len, answer, room)
    }

    /// res_nquery(3).
    fn res_nquery(
        state: *mut c_void,
        name: *const c_char,
        class: c_int,
        kind: c_int,
        answer: *mut u8,
        room: c_int,
    ) -> c_int {
        dispatch::within(|| real::res_nquery(state, name, class, kind, answer, room))
    }

    /// res_nquery(3).
    fn __res_nquery(
        state: *mut c_void,
        name: *const c_char,
        class: c_int,
        kind: c_int,
        answer: *mut u8,
        room: c_int,
    ) -> c_int {
        res_nquery(state, name, class, kind, answer, room)
    }

    /// res_nsearch(3).
    fn res_nsearch(
        state: *mut c_void,
        name: *const c_char,
        class: c_int,
        kind: c_int,
        answer: *mut u8,
        room: c_int,
    ) -> c_int {
        dispatch::within(|| real::res_nsearch(state, name, class, kind, answer, room))
    }

    /// res_nsearch(3).
    fn __res_nsearch(
        state: *mut c_void,
        name: *const c_char,
        class: c_int,
        kind: c_int,
        answer: *mut u8,
        room: c_int,
    ) -> c_int {
        res_nsearch(state, name, class, kind, answer, room)
    }

    /// res_nquerydomain(3).
    fn res_nquerydomain(
        state: *mut c_void,
        name: *const c_char,
        domain: *const c_char,
        class: c_int,
        kind: c_int,
        answer: *mut u8,
        room: c_int,
    ) -> c_int {
        dispatch::within(|| real::res_nquerydomain(state, name, domain, class, kind, answer, room))
    }

    /// res_nsend(3).
    fn res_nsend(state: *mut c_void, question: *const u8, len: c_int, answer: *mut u8, room: c_int) -> c_int {
        dispatch::within(|| real::res_nsend(state, question, len, answer, room))
    }

    /// res_nsend(3).
    fn __res_nsend(state: *mut c_void, question: *const u8, len: c_int, answer: *mut u8, room: c_int) -> c_int {
        res_nsend(state, question, len, answer, room)
    }
}
