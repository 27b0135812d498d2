// A lossy link for tests: drops one in a hundred TCP segments that carry data, at random. Everything else passes.
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>

#define SEC(name) __attribute__((section(name), used))

static unsigned int (*random_number)(void) = (void *)BPF_FUNC_get_prandom_u32;

SEC("xdp")
int lossy(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);
	struct tcphdr *tcp = (void *)(ip + 1);

	if ((void *)(tcp + 1) > end || eth->h_proto != __builtin_bswap16(ETH_P_IP))
		return XDP_PASS;
	if (ip->ihl != 5 || ip->protocol != IPPROTO_TCP)
		return XDP_PASS;
	if (__builtin_bswap16(ip->tot_len) <= 20 + tcp->doff * 4)
		return XDP_PASS;
	return random_number() % 100 == 0 ? XDP_DROP : XDP_PASS;
}

char licence_of_this_program[] SEC("license") = "GPL";
