//! sendmsg, recvmsg, sendmmsg, recvmmsg, with the control messages of UDP.

use core::ffi::{c_int, c_uint, c_void};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::sync::atomic::Ordering;

use libc::{cmsghdr, mmsghdr, msghdr, ssize_t, timespec};
use sidestep_client::copies::{NOTICE_BYTES, notice};
use sidestep_client::shm::datagram::Header;
use sidestep_client::{DatagramOptions, Session, now_ns};

use super::data::{KERNEL, destination, slot_to_send};
use super::{candidate, export, guard, ours};
use crate::errno::{Answer, Errno};
use crate::options::wants;
use crate::socket::Socket;
use crate::{address, engine, memory, real, rights, transfer};
use sidestep_client::shm::slot::option;

/// # Safety
/// As sendmsg.
unsafe fn send_message(
    session: &'static Session,
    socket: &'static Socket,
    fd: c_int,
    message: *const msghdr,
    flags: c_int,
) -> Result<ssize_t, Errno> {
    memory::readable(message.cast(), size_of::<msghdr>())?;
    // SAFETY: looked at.
    let m = unsafe { message.read_unaligned() };
    if m.msg_iovlen > transfer::MOST_PIECES {
        return Err(Errno(libc::EMSGSIZE));
    }
    let datagram = socket.is_datagram();
    // SAFETY: as above.
    let to = if datagram { unsafe { destination(socket, m.msg_name.cast(), m.msg_namelen)? } } else { None };
    let Some(slot) = slot_to_send(session, socket, fd, to)? else { return Ok(KERNEL) };
    let extra = send_options(&m, datagram)?;
    // SAFETY: as above.
    unsafe {
        transfer::sources(m.msg_iov, m.msg_iovlen, |bufs| {
            let sent = if datagram {
                transfer::send_datagram(session, socket, slot, bufs, flags, (to, &extra))
            } else {
                transfer::send(session, socket, slot, bufs, flags)
            };
            sent.map(|n| n as ssize_t)
        })
    }
}

/// # Safety
/// As recvmsg.
unsafe fn receive_message(
    session: &Session,
    socket: &Socket,
    slot: u32,
    message: *mut msghdr,
    flags: c_int,
) -> Result<ssize_t, Errno> {
    memory::writable(message.cast(), size_of::<msghdr>())?;
    // SAFETY: looked at.
    let mut m = unsafe { message.read_unaligned() };
    let pieces = m.msg_iovlen;
    if pieces > transfer::MOST_PIECES {
        return Err(Errno(libc::EMSGSIZE));
    }
    m.msg_flags = flags & libc::MSG_CMSG_CLOEXEC;
    let got;
    if socket.is_datagram() {
        // SAFETY: as above.
        let (n, header) = unsafe {
            transfer::targets(m.msg_iov, pieces, |bufs| transfer::receive_datagram(session, socket, slot, bufs, flags))?
        };
        // SAFETY: as above.
        unsafe {
            let mut len = m.msg_namelen;
            address::write(socket.domain(), &transfer::sender(socket, &header), m.msg_name.cast(), &raw mut len)?;
            m.msg_namelen = if m.msg_name.is_null() { 0 } else { len };
            write_control(socket, &mut m, &header);
        }
        if n < header.len as usize {
            m.msg_flags |= libc::MSG_TRUNC;
        }
        got = transfer::datagram_len(n, &header, flags);
    } else if flags & libc::MSG_ERRQUEUE != 0 {
        let range = session.take_copied(slot).ok_or(crate::errno::AGAIN)?;
        let (v6, room, mut used) = (socket.domain() == libc::AF_INET6, control_room(&m), 0);
        let what = if v6 { (libc::IPPROTO_IPV6, libc::IPV6_RECVERR) } else { (libc::IPPROTO_IP, libc::IP_RECVERR) };
        // Behind the notice comes the address of whoever complained: of nobody.
        let mut data = [0; NOTICE_BYTES + size_of::<libc::sockaddr_in6>()];
        data[..NOTICE_BYTES].copy_from_slice(&notice(range));
        let offender = if v6 { size_of::<libc::sockaddr_in6>() } else { size_of::<libc::sockaddr_in>() };
        // SAFETY: as above.
        unsafe { put_control(&mut m, room, &mut used, what, &data[..NOTICE_BYTES + offender]) };
        m.msg_controllen = used as _;
        m.msg_namelen = 0;
        m.msg_flags |= libc::MSG_ERRQUEUE;
        got = 0;
    } else {
        // SAFETY: as above.
        got = unsafe {
            transfer::targets(m.msg_iov, pieces, |bufs| transfer::receive(session, socket, slot, bufs, flags))?
        };
        m.msg_namelen = 0;
        let (room, mut used) = (control_room(&m), 0);
        if session.option(slot, option::TELL_QUEUE) {
            let left = session.queued_in(slot) as c_int;
            // SAFETY: as above.
            unsafe { put_control(&mut m, room, &mut used, (libc::IPPROTO_TCP, libc::TCP_CM_INQ), &left.to_ne_bytes()) };
        }
        m.msg_controllen = used as _;
    }
    // SAFETY: as above.
    unsafe { message.write_unaligned(m) };
    Ok(got as ssize_t)
}

/// What the control messages of a datagram ask for; of TCP's, whether Linux would take them.
///
/// # Errors
/// EINVAL: a message that isn't known, of the wrong length or out of range: ip_cmsg_send(), __sock_cmsg_send(). EFAULT.
fn send_options(m: &msghdr, datagram: bool) -> Result<DatagramOptions, Errno> {
    let mut options = DatagramOptions::default();
    if m.msg_controllen == 0 {
        return Ok(options);
    }
    memory::readable(m.msg_control.cast(), m.msg_controllen)?;
    let invalid = Err(Errno(libc::EINVAL));
    // SAFETY: the macros stay inside msg_controllen, which was looked at.
    unsafe {
        let mut c = libc::CMSG_FIRSTHDR(m);
        while let Some(head) = c.as_ref() {
            let at = c as usize - m.msg_control as usize;
            if head.cmsg_len < libc::CMSG_LEN(0) as usize || head.cmsg_len > m.msg_controllen - at {
                return invalid;
            }
            let data = libc::CMSG_DATA(c);
            let is = |bytes: usize| head.cmsg_len == libc::CMSG_LEN(bytes as u32) as usize;
            let int = || data.cast::<c_int>().read_unaligned();
            match (head.cmsg_level, head.cmsg_type) {
                (libc::SOL_SOCKET, libc::SCM_RIGHTS | libc::SCM_CREDENTIALS) => {}
                (libc::SOL_SOCKET, libc::SO_TIMESTAMPING | libc::SCM_TXTIME) => {}
                (libc::SOL_SOCKET, _) => return invalid,
                _ if !datagram => {}
                (libc::IPPROTO_IP, libc::IP_PKTINFO) if is(size_of::<libc::in_pktinfo>()) => {
                    let info = data.cast::<libc::in_pktinfo>().read_unaligned();
                    let source = Ipv4Addr::from(info.ipi_spec_dst.s_addr.to_ne_bytes());
                    options.local = (!source.is_unspecified()).then_some(IpAddr::V4(source));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) if is(size_of::<libc::in6_pktinfo>()) => {
                    let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                    let source = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                    options.local = (!source.is_unspecified()).then_some(IpAddr::V6(source));
                }
                (libc::IPPROTO_IP, libc::IP_TOS) if is(1) => options.tos = Some(*data),
                (libc::IPPROTO_IP, libc::IP_TOS) if is(4) && (0..=255).contains(&int()) => {
                    options.tos = Some(int() as u8);
                }
                (libc::IPPROTO_IP, libc::IP_TTL) if is(4) && (1..=255).contains(&int()) => {
                    options.ttl = Some(int() as u8);
                }
                // RFC 3542 6.3, 6.5: -1 is the default.
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) if is(4) && (-1..=255).contains(&int()) => {
                    options.tos = u8::try_from(int()).ok();
                }
                // A datagram for this machine alone has one hop here.
                (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) if is(4) && (-1..=255).contains(&int()) => {
                    options.ttl = u8::try_from(int()).ok().map(|hops| hops.max(1));
                }
                // UDP_SEGMENT: one call, many datagrams.
                (libc::IPPROTO_IP | libc::IPPROTO_IPV6 | libc::SOL_UDP, _) => return invalid,
                _ => {}
            }
            c = libc::CMSG_NXTHDR(m, c);
        }
    }
    Ok(options)
}

/// Bytes for control messages.
fn control_room(m: &msghdr) -> usize {
    if m.msg_control.is_null() { 0 } else { m.msg_controllen }
}

/// Writes one control message behind `used` bytes of others, if there is room.
///
/// # Safety
/// `m.msg_control` must point to `room` bytes.
unsafe fn put_control(m: &mut msghdr, room: usize, used: &mut usize, (level, kind): (c_int, c_int), data: &[u8]) {
    // SAFETY: arithmetic only.
    let (space, len) = unsafe { (libc::CMSG_SPACE(data.len() as u32), libc::CMSG_LEN(data.len() as u32)) };
    if *used + len as usize > room {
        m.msg_flags |= libc::MSG_CTRUNC;
        return;
    }
    let head = cmsghdr { cmsg_len: len as _, cmsg_level: level, cmsg_type: kind };
    // SAFETY: inside `room` bytes, by the check above; the data comes behind the header, as CMSG_DATA says.
    unsafe {
        let at = m.msg_control.cast::<u8>().add(*used);
        at.cast::<cmsghdr>().write_unaligned(head);
        let behind = libc::CMSG_LEN(0) as usize;
        core::ptr::copy_nonoverlapping(data.as_ptr(), at.add(behind), data.len());
    }
    *used = (*used + space as usize).min(room);
}

/// Gives the control messages that the socket was told to give.
///
/// # Safety
/// As recvmsg.
unsafe fn write_control(socket: &Socket, m: &mut msghdr, header: &Header) {
    let room = control_room(m);
    let wanted = socket.wants.load(Ordering::Relaxed);
    let mut used = 0;
    let local = Ipv6Addr::from(header.local);
    // SAFETY: the caller's word.
    let mut put = |level: c_int, kind: c_int, data: &[u8]| unsafe {
        put_control(m, room, &mut used, (level, kind), data);
    };
    if wanted & wants::PKTINFO4 != 0 && socket.domain() == libc::AF_INET {
        let v4 = local.to_ipv4_mapped().unwrap_or(Ipv4Addr::UNSPECIFIED).octets();
        // struct in_pktinfo: interface, local address, destination address of the packet.
        let mut info = [0; 12];
        info[4..8].copy_from_slice(&v4);
        info[8..12].copy_from_slice(&v4);
        put(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
    }
    if wanted & wants::PKTINFO6 != 0 {
        // struct in6_pktinfo: address, interface.
        let mut info = [0; 20];
        info[..16].copy_from_slice(&header.local);
        put(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
    }
    let v4 = local.to_ipv4_mapped().is_some();
    if v4 && wanted & wants::TOS4 != 0 {
        put(libc::IPPROTO_IP, libc::IP_TOS, &[header.tos]);
    }
    if !v4 && wanted & wants::TOS6 != 0 {
        put(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &c_int::from(header.tos).to_ne_bytes());
    }
    if v4 && wanted & wants::TTL4 != 0 {
        put(libc::IPPROTO_IP, libc::IP_TTL, &c_int::from(header.ttl).to_ne_bytes());
    }
    if !v4 && wanted & wants::TTL6 != 0 {
        put(libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT, &c_int::from(header.ttl).to_ne_bytes());
    }
    m.msg_controllen = used as _;
}

/// sendmsg of the kernel's, with whatever sockets of the stack are in the message.
///
/// # Safety
/// As sendmsg.
unsafe fn pass_on(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
    // SAFETY: the caller's word.
    unsafe {
        if engine::session().is_none() || memory::readable(message.cast(), size_of::<msghdr>()).is_err() {
            return real::sendmsg(fd, message, flags);
        }
        let m = message.read_unaligned();
        if m.msg_controllen == 0 || memory::readable(m.msg_control.cast(), m.msg_controllen).is_err() {
            return real::sendmsg(fd, message, flags);
        }
        rights::sending(&m, || real::sendmsg(fd, message, flags)).answer()
    }
}

/// What came with a message that the kernel has written.
///
/// # Safety
/// As recvmsg, after it.
unsafe fn take_in(m: &msghdr) {
    let error = crate::errno::get();
    let _: c_int = guard(|| {
        // SAFETY: the caller's word.
        unsafe { rights::received(m) };
        Ok(0)
    });
    crate::errno::set(error);
}

export! {
    /// sendmsg(2).
    fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
        let Some((session, socket)) = candidate(fd) else { return pass_on(fd, message, flags) };
        let outcome = guard(|| send_message(session, socket, fd, message, flags));
        if outcome == KERNEL { real::sendmsg(fd, message, flags) } else { outcome }
    }

    /// recvmsg(2).
    fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t {
        let Some((session, socket, slot)) = ours(fd) else {
            let got = real::recvmsg(fd, message, flags);
            if got >= 0 && (*message).msg_controllen > 0 {
                take_in(&*message);
            }
            return got;
        };
        guard(|| receive_message(session, socket, slot, message, flags))
    }

    /// sendmmsg(2).
    fn sendmmsg(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int) -> c_int {
        if candidate(fd).is_none() {
            if engine::session().is_none() || messages.is_null() {
                return real::sendmmsg(fd, messages, count, flags);
            }
            let one = |n: u32| &raw const (*messages.add(n as usize)).msg_hdr;
            if (0..count).all(|n| (*one(n)).msg_controllen == 0) {
                return real::sendmmsg(fd, messages, count, flags);
            }
        }
        let mut done = 0;
        for i in 0..count.min(1024) as usize {
            let one = messages.add(i);
            let sent = sendmsg(fd, &raw const (*one).msg_hdr, flags);
            if sent < 0 {
                break;
            }
            (*one).msg_len = sent as c_uint;
            done += 1;
        }
        if done == 0 && count > 0 { -1 } else { done }
    }

    /// recvmmsg(2).
    fn recvmmsg(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int, timeout: *mut timespec) -> c_int {
        if ours(fd).is_none() {
            let got = real::recvmmsg(fd, messages, count, flags, timeout);
            for n in 0..usize::try_from(got).unwrap_or(0) {
                take_in(&(*messages.add(n)).msg_hdr);
            }
            return got;
        }
        // As in Linux, the time is only looked at after each datagram: recvmmsg(2), BUGS.
        let until = match super::wait::timeout(timeout) {
            Ok(timeout) => timeout.map(|t| now_ns().saturating_add(t)),
            Err(Errno(error)) => {
                crate::errno::set(error);
                return -1;
            }
        };
        let mut flags_now = flags & !libc::MSG_WAITFORONE;
        let mut done = 0;
        for i in 0..count.min(1024) as usize {
            let one = messages.add(i);
            let got = recvmsg(fd, &raw mut (*one).msg_hdr, flags_now);
            if got < 0 {
                break;
            }
            (*one).msg_len = got as c_uint;
            done += 1;
            if flags & libc::MSG_WAITFORONE != 0 {
                flags_now |= libc::MSG_DONTWAIT;
            }
            if until.is_some_and(|until| now_ns() >= until) {
                break;
            }
        }
        if done == 0 && count > 0 { -1 } else { done }
    }
}

const _: () = {
    // The layouts that are written by hand above.
    assert!(size_of::<libc::in_pktinfo>() == 12 && size_of::<libc::in6_pktinfo>() == 20);
    assert!(size_of::<*mut c_void>() == 8);
};
