// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Which frames are the engine's? In: every frame of a queue. Out: ours -> the AF_XDP socket of the same queue,
// everything else -> XDP_PASS, untouched, to the kernel's stack.
//
// Two ways to own traffic (settings.mode):
//   own     the address belongs to the engine alone: all that is sent to it, ARP and neighbour solicitations that
//           ask for it, fragments included.
//   shared  the machine's own address: only TCP and UDP to marked ports, and ICMP errors about packets that left from
//           marked ports. ARP, ND, echo, later fragments and all the rest stay with the kernel.
//
// Whatever is in doubt goes to the kernel: an engine that hangs (heartbeat), a queue without a socket, a packet that
// is cut short.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

// The handful of definitions that bpf_helpers.h would give: without it the build needs nothing but clang and the
// kernel's exported headers.
#define SEC(name) __attribute__((section(name), used))
#define __uint(name, val) int(*name)[val]
#define __type(name, val) typeof(val) *name
#define __inline_always inline __attribute__((always_inline))

static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static __u64 (*const bpf_ktime_get_ns)(void) = (void *)BPF_FUNC_ktime_get_ns;
static long (*const bpf_redirect_map)(void *map, __u64 key, __u64 flags) = (void *)BPF_FUNC_redirect_map;

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define be16(x) __builtin_bswap16(x)
#define be32(x) __builtin_bswap32(x)
#else
#define be16(x) (x)
#define be32(x) (x)
#endif

// These numbers are shared with src/xdp/steering.rs.
#define MAX_QUEUES 64
#define MAX_ADDRESSES 1024
#define MODE_OWN 0
#define MODE_SHARED 1
#define FLAG_UNTAGGED_ONLY 1

// While a queue is flooded with SYNs: so many go on a second, and as many again of those that come a second time. Fewer
// than the stack answers beyond a listener's backlog (PER_SECOND in src/stack/tcp/gate.rs), more than honest clients need.
#define SYN_EVERY_NS (1000000000 / 10000)
#define SYN_BURST_NS 50000000
// The flood is over when so long no SYN was refused.
#define SYN_CALM_NS 1000000000
// SYNs are remembered by time slices of 2.1 s, this one's and the last one's; clients repeat them after 1 and 3 s.
#define SEEN_SHIFT 31
#define SEEN_WORDS (1 << 19)
#define SEEN_BITS 48

enum verdict {
	REDIRECTED, // given to a socket
	PASS_NOT_OURS, // another address, or no IP at all
	PASS_STALE, // ours, but the engine's heartbeat is too old
	PASS_NO_SOCKET, // ours, but nobody listens on this queue
	PASS_FRAGMENT, // shared mode: a later fragment carries no ports
	PASS_MALFORMED, // too short for what its headers say
	PASS_OTHER_PORT, // shared mode: our address, the kernel's port or protocol
	NEIGHBOR, // ARP and ND given to a socket (they count as REDIRECTED too)
	SYN_REFUSED, // dropped: one of a flood of SYNs
	VERDICTS,
};

struct settings {
	__u32 mode;
	__u32 queues; // queues with a socket are below this number
	__u64 heartbeat_timeout_ns; // 0: do not look at the heartbeat
	__u64 flags;
	__u64 secret; // what SYNs are remembered by: nobody outside can choose two that look the same
};

// Addresses are 16 bytes; IPv4 as ::ffff:a.b.c.d (RFC 4291 section 2.5.5.2).
struct address {
	__u32 word[4];
};

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, MAX_QUEUES);
	__type(key, __u32);
	__type(value, __u32);
} xsks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct settings);
} settings SEC(".maps");

// CLOCK_MONOTONIC ns of each queue's last turn, stored by the engine through mmap. In the second half, until when the
// queue's SYNs are judged: the engine begins it, refusals here prolong it.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 2 * MAX_QUEUES);
	__type(key, __u32);
	__type(value, __u64);
} heartbeat SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_ADDRESSES);
	__type(key, struct address);
	__type(value, __u8);
} addresses SEC(".maps");

// TCP ports first, UDP ports from 65536 on; 1 = the engine's.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2 * 65536);
	__type(key, __u32);
	__type(value, __u8);
} ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, VERDICTS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

// For each queue, when the next SYN may go on; and the next that was seen before. A queue is polled by one CPU at a time.
struct gate {
	__u64 first, again;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_QUEUES);
	__type(key, __u32);
	__type(value, struct gate);
} gates SEC(".maps");

// A Bloom filter in two halves. A word has the time slice that it is of in its upper 16 bits: one of an older slice
// counts as empty, so nothing has to be cleared. CPUs that write a word at once lose a bit at worst.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2 * SEEN_WORDS);
	__type(key, __u32);
	__type(value, __u64);
} seen SEC(".maps");

#define NEXT_HOP_OPTIONS 0
#define NEXT_ICMP 1
#define NEXT_TCP 6
#define NEXT_UDP 17
#define NEXT_ROUTING 43
#define NEXT_FRAGMENT 44
#define NEXT_AUTH 51
#define NEXT_ICMPV6 58
#define NEXT_DEST_OPTIONS 60

// A packet with at least as many headers as this goes to the kernel; real ones have none or one.
#define MAX_EXTENSIONS 6

struct vlan_tag {
	__be16 tci;
	__be16 proto;
};

// RFC 826, for Ethernet and IPv4.
struct arp {
	__be16 htype, ptype;
	__u8 hlen, plen;
	__be16 op;
	__u8 sha[6], spa[4], tha[6], tpa[4];
};

struct icmp {
	__u8 type, code;
	__be16 checksum;
	__u32 rest;
};

struct extension {
	__u8 next, len;
	__be16 fragment; // of a fragment header: offset << 3 | more
	__u32 rest;
};

static __inline_always void count(__u32 verdict)
{
	__u64 *n = bpf_map_lookup_elem(&counters, &verdict);
	if (n)
		*n += 1;
}

static __inline_always int is_our_v4(__be32 address)
{
	struct address key = { { 0, 0, be32(0xffff), address } };
	return bpf_map_lookup_elem(&addresses, &key) != 0;
}

static __inline_always int is_our_v6(const void *address)
{
	struct address key;
	__builtin_memcpy(&key, address, sizeof(key));
	return bpf_map_lookup_elem(&addresses, &key) != 0;
}

static __inline_always int is_our_port(int udp, __be16 port)
{
	__u32 index = be16(port) + (udp ? 65536 : 0);
	__u8 *ours = bpf_map_lookup_elem(&ports, &index);
	return ours && *ours;
}

// What follows IPv6's extension headers.
struct upper {
	void *at;
	__u8 next;
	__u8 later_fragment;
	__u8 bad;
};

static __inline_always struct upper skip_extensions(void *at, void *end, __u8 next)
{
	struct upper upper = { at, next, 0, 0 };
#pragma unroll
	for (int i = 0; i < MAX_EXTENSIONS; i++) {
		struct extension *extension = upper.at;
		if (upper.next != NEXT_HOP_OPTIONS && upper.next != NEXT_ROUTING && upper.next != NEXT_DEST_OPTIONS &&
		    upper.next != NEXT_FRAGMENT && upper.next != NEXT_AUTH)
			return upper;
		if ((void *)(extension + 1) > end) {
			upper.bad = 1;
			return upper;
		}
		if (upper.next == NEXT_FRAGMENT) {
			if (be16(extension->fragment) & 0xfff8) {
				upper.later_fragment = 1;
				return upper;
			}
			upper.at += 8;
		} else if (upper.next == NEXT_AUTH) {
			// RFC 4302 section 2.2: in 4-byte units, minus 2.
			upper.at += ((__u32)extension->len + 2) * 4;
		} else {
			upper.at += ((__u32)extension->len + 1) * 8;
		}
		upper.next = extension->next;
	}
	upper.bad = 1;
	return upper;
}

// An ICMP error quotes the packet that it is about: ours if that one left from a marked port of our address.
static __inline_always enum verdict quoted_v4(void *at, void *end)
{
	struct iphdr *ip = at;
	if ((void *)(ip + 1) > end)
		return PASS_MALFORMED;
	if (!is_our_v4(ip->saddr))
		return PASS_OTHER_PORT;
	if (be16(ip->frag_off) & 0x1fff)
		return PASS_FRAGMENT;
	if (ip->protocol != NEXT_TCP && ip->protocol != NEXT_UDP)
		return PASS_OTHER_PORT;
	__u32 length = ip->ihl * 4;
	__be16 *port = at + length;
	if (length < sizeof(*ip) || (void *)(port + 2) > end)
		return PASS_MALFORMED;
	return is_our_port(ip->protocol == NEXT_UDP, port[0]) ? REDIRECTED : PASS_OTHER_PORT;
}

static __inline_always enum verdict quoted_v6(void *at, void *end)
{
	struct ipv6hdr *ip = at;
	if ((void *)(ip + 1) > end)
		return PASS_MALFORMED;
	if (!is_our_v6(&ip->saddr))
		return PASS_OTHER_PORT;
	struct upper upper = skip_extensions(ip + 1, end, ip->nexthdr);
	if (upper.bad)
		return PASS_MALFORMED;
	if (upper.later_fragment)
		return PASS_FRAGMENT;
	if (upper.next != NEXT_TCP && upper.next != NEXT_UDP)
		return PASS_OTHER_PORT;
	__be16 *port = upper.at;
	if ((void *)(port + 2) > end)
		return PASS_MALFORMED;
	return is_our_port(upper.next == NEXT_UDP, port[0]) ? REDIRECTED : PASS_OTHER_PORT;
}

static __inline_always enum verdict ports_of(void *at, void *end, int udp)
{
	__be16 *port = at;
	if ((void *)(port + 2) > end)
		return PASS_MALFORMED;
	return is_our_port(udp, port[1]) ? REDIRECTED : PASS_OTHER_PORT;
}

static __inline_always enum verdict ipv4(void *at, void *end, __u32 mode)
{
	struct iphdr *ip = at;
	if ((void *)(ip + 1) > end)
		return PASS_MALFORMED;
	if (!is_our_v4(ip->daddr))
		return PASS_NOT_OURS;
	if (mode == MODE_OWN)
		return REDIRECTED;

	__u32 length = ip->ihl * 4;
	if (length < sizeof(*ip))
		return PASS_MALFORMED;
	// The ports are in the first fragment only. It still goes to the engine: the kernel must not answer for a port
	// that isn't its own, and from the later fragments alone neither side can build a packet.
	if (be16(ip->frag_off) & 0x1fff)
		return PASS_FRAGMENT;
	void *upper = at + length;
	if (ip->protocol == NEXT_TCP)
		return ports_of(upper, end, 0);
	if (ip->protocol == NEXT_UDP)
		return ports_of(upper, end, 1);
	if (ip->protocol != NEXT_ICMP)
		return PASS_OTHER_PORT;
	struct icmp *icmp = upper;
	if ((void *)(icmp + 1) > end)
		return PASS_MALFORMED;
	// RFC 792: destination unreachable, time exceeded, parameter problem.
	if (icmp->type != 3 && icmp->type != 11 && icmp->type != 12)
		return PASS_OTHER_PORT;
	return quoted_v4(icmp + 1, end);
}

static __inline_always enum verdict ipv6(void *at, void *end, __u32 mode)
{
	struct ipv6hdr *ip = at;
	if ((void *)(ip + 1) > end)
		return PASS_MALFORMED;
	int to_us = is_our_v6(&ip->daddr);
	int own = mode == MODE_OWN;
	int multicast = ip->daddr.s6_addr[0] == 0xff;
	if (!to_us && !(own && multicast))
		return PASS_NOT_OURS;
	// Nearly all of it: no need to look further. ICMPv6 is looked at only to count neighbour discovery.
	if (own && to_us && ip->nexthdr != NEXT_ICMPV6)
		return REDIRECTED;

	struct upper upper = skip_extensions(ip + 1, end, ip->nexthdr);
	if (upper.bad)
		return PASS_MALFORMED;
	if (upper.later_fragment)
		return own && !to_us ? PASS_NOT_OURS : PASS_FRAGMENT;
	if (upper.next == NEXT_ICMPV6) {
		struct icmp *icmp = upper.at;
		if ((void *)(icmp + 1) > end)
			return own && to_us ? REDIRECTED : PASS_MALFORMED;
		if (own) {
			// RFC 4861 sections 4.3 and 4.4. Advertisements to all nodes are about the kernel's neighbours as much as
			// ours; the kernel keeps them and we ask again when an entry goes stale.
			if (icmp->type == 136 && to_us)
				return NEIGHBOR;
			if (icmp->type == 135) {
				struct address *target = (void *)(icmp + 1);
				if ((void *)(target + 1) > end)
					return PASS_MALFORMED;
				if (is_our_v6(target))
					return NEIGHBOR;
			}
			return to_us ? REDIRECTED : PASS_NOT_OURS;
		}
		// RFC 4443 section 3: types 1 to 4 are errors about us.
		if (icmp->type < 1 || icmp->type > 4)
			return PASS_OTHER_PORT;
		return quoted_v6(icmp + 1, end);
	}
	if (own)
		return PASS_NOT_OURS;
	if (upper.next == NEXT_TCP)
		return ports_of(upper.at, end, 0);
	if (upper.next == NEXT_UDP)
		return ports_of(upper.at, end, 1);
	return PASS_OTHER_PORT;
}

static __inline_always enum verdict arp(void *at, void *end, __u32 mode)
{
	struct arp *arp = at;
	if (mode != MODE_OWN)
		return PASS_NOT_OURS;
	if ((void *)(arp + 1) > end)
		return PASS_MALFORMED;
	if (arp->htype != be16(1) || arp->ptype != be16(ETH_P_IP) || arp->hlen != 6 || arp->plen != 4)
		return PASS_NOT_OURS;
	// Questions for our address, and answers to our own questions: both carry it as target.
	__be32 target;
	__builtin_memcpy(&target, arp->tpa, sizeof(target));
	return is_our_v4(target) ? NEIGHBOR : PASS_NOT_OURS;
}

static __inline_always enum verdict classify(void *at, void *end, const struct settings *settings)
{
	struct ethhdr *eth = at;
	if ((void *)(eth + 1) > end)
		return PASS_MALFORMED;
	at = eth + 1;
	__be16 proto = eth->h_proto;
#pragma unroll
	for (int i = 0; i < 2; i++) {
		if (proto != be16(ETH_P_8021Q) && proto != be16(ETH_P_8021AD))
			break;
		if (settings->flags & FLAG_UNTAGGED_ONLY)
			return PASS_NOT_OURS;
		struct vlan_tag *tag = at;
		if ((void *)(tag + 1) > end)
			return PASS_MALFORMED;
		proto = tag->proto;
		at = tag + 1;
	}
	if (proto == be16(ETH_P_IP))
		return ipv4(at, end, settings->mode);
	if (proto == be16(ETH_P_IPV6))
		return ipv6(at, end, settings->mode);
	if (proto == be16(ETH_P_ARP))
		return arp(at, end, settings->mode);
	return PASS_NOT_OURS;
}

struct tcp {
	__be16 source, destination;
	__be32 sequence, acknowledgement;
	__u8 offset, flags;
};

#define TCP_SYN 0x02
#define TCP_ACK 0x10

// A SYN that opens a connection: a hash of whom it is from and its number. Else 0: what has extension headers, tags or
// fragments is for the stack to judge.
static __inline_always __u64 opening(void *at, void *end, __u64 secret)
{
	struct ethhdr *eth = at;
	if ((void *)(eth + 1) > end)
		return 0;
	struct tcp *tcp;
	__u64 from;
	if (eth->h_proto == be16(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);
		if ((void *)(ip + 1) > end || ip->protocol != NEXT_TCP || ip->ihl < 5 || (be16(ip->frag_off) & 0x3fff))
			return 0;
		from = ip->saddr;
		tcp = (void *)ip + ip->ihl * 4;
	} else if (eth->h_proto == be16(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(eth + 1);
		if ((void *)(ip + 1) > end || ip->nexthdr != NEXT_TCP)
			return 0;
		__u32 *word = ip->saddr.s6_addr32;
		from = ((__u64)word[0] << 32 | word[1]) * 0x9e3779b97f4a7c15 ^ ((__u64)word[2] << 32 | word[3]);
		tcp = (void *)(ip + 1);
	} else {
		return 0;
	}
	if ((void *)(tcp + 1) > end || (tcp->flags & (TCP_SYN | TCP_ACK)) != TCP_SYN)
		return 0;
	__u64 hash = (from ^ secret) * 0x9e3779b97f4a7c15;
	hash = (hash ^ hash >> 29 ^ ((__u64)tcp->source << 48 | (__u64)tcp->destination << 32 | tcp->sequence)) *
	       0xbf58476d1ce4e5b9;
	hash = (hash ^ hash >> 32) * 0x94d049bb133111eb;
	return (hash ^ hash >> 29) | 1;
}

static __inline_always int take(__u64 *free_at, __u64 now)
{
	__u64 at = *free_at;
	if (at + SYN_BURST_NS < now)
		at = now - SYN_BURST_NS;
	if (at > now)
		return 0;
	*free_at = at + SYN_EVERY_NS;
	return 1;
}

// Whether this SYN was here before. If not, it is remembered.
static __inline_always int was_seen(__u64 hash, __u64 now)
{
	__u64 slice = now >> SEEN_SHIFT;
	__u32 place = hash & (SEEN_WORDS - 1);
	__u64 bits = 1ULL << ((hash >> 24 & 0xff) * SEEN_BITS >> 8) | 1ULL << ((hash >> 32 & 0xff) * SEEN_BITS >> 8) |
		     1ULL << ((hash >> 40 & 0xff) * SEEN_BITS >> 8);
	__u32 here = place + (slice & 1 ? SEEN_WORDS : 0), there = place + (slice & 1 ? 0 : SEEN_WORDS);
	__u64 *last = bpf_map_lookup_elem(&seen, &there), *word = bpf_map_lookup_elem(&seen, &here);
	if (!last || !word)
		return 0;
	__u64 before = *last, now_in = *word;
	if (before >> SEEN_BITS == (slice - 1 & 0xffff) && (before & bits) == bits)
		return 1;
	__u64 tag = (slice & 0xffff) << SEEN_BITS;
	if (now_in >> SEEN_BITS != (slice & 0xffff))
		now_in = tag;
	if ((now_in & bits) == bits)
		return 1;
	*word = now_in | bits;
	return 0;
}

// In a flood: whether this SYN is one too many. Which ones are is not left to chance: a client repeats its SYN, a
// spoofed one comes once. As src/stack/tcp/gate.rs does it, but before anything was spent on the frame.
static __inline_always int is_one_too_many(struct xdp_md *ctx, __u32 queue, __u64 now, __u64 secret)
{
	__u64 hash = opening((void *)(long)ctx->data, (void *)(long)ctx->data_end, secret);
	struct gate *gate = bpf_map_lookup_elem(&gates, &queue);
	if (!hash || !gate || take(&gate->first, now))
		return 0;
	return !was_seen(hash, now) || !take(&gate->again, now);
}

static __inline_always int steer_frame(struct xdp_md *ctx)
{
	__u32 zero = 0, queue = ctx->rx_queue_index;
	struct settings *settings_now = bpf_map_lookup_elem(&settings, &zero);
	if (!settings_now)
		return XDP_PASS;

	enum verdict verdict = classify((void *)(long)ctx->data, (void *)(long)ctx->data_end, settings_now);
	if (verdict != REDIRECTED && verdict != NEIGHBOR) {
		count(verdict);
		return XDP_PASS;
	}

	__u64 *beat = bpf_map_lookup_elem(&heartbeat, &queue);
	if (!beat || queue >= settings_now->queues || queue >= MAX_QUEUES) {
		count(PASS_NO_SOCKET);
		return XDP_PASS;
	}
	__u64 timeout = settings_now->heartbeat_timeout_ns;
	if (timeout) {
		// Signed: the engine may have beaten after we read the clock.
		__s64 age = (__s64)(bpf_ktime_get_ns() - *(volatile __u64 *)beat);
		if (age > (__s64)timeout) {
			count(PASS_STALE);
			return XDP_PASS;
		}
	}

	__u32 second = queue + MAX_QUEUES;
	__u64 *judged_until = bpf_map_lookup_elem(&heartbeat, &second);
	if (judged_until && *(volatile __u64 *)judged_until) {
		__u64 now = bpf_ktime_get_ns();
		if (now < *(volatile __u64 *)judged_until && is_one_too_many(ctx, queue, now, settings_now->secret)) {
			*(volatile __u64 *)judged_until = now + SYN_CALM_NS;
			count(SYN_REFUSED);
			return XDP_DROP;
		}
	}

	// A socket that was closed has left the map by itself: the flags say what to do then.
	int action = bpf_redirect_map(&xsks, queue, XDP_PASS);
	if (action != XDP_REDIRECT) {
		count(PASS_NO_SOCKET);
		return action;
	}
	count(REDIRECTED);
	if (verdict == NEIGHBOR)
		count(NEIGHBOR);
	return action;
}

SEC("xdp")
int steer(struct xdp_md *ctx)
{
	return steer_frame(ctx);
}

// The same for devices whose MTU does not fit one page: the headers are in the first buffer all the same.
SEC("xdp.frags")
int steer_frags(struct xdp_md *ctx)
{
	return steer_frame(ctx);
}

char _license[] SEC("license") = "Dual MIT/GPL";
