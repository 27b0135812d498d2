#!/bin/sh
# Prepares a NIC for Sidestep: as many queues as the configuration serves, and what AF_XDP likes. Prints what it does,
# and how to undo it.
#
#   nic-setup.sh DEVICE QUEUES [busy]
#
# "busy" also sets what busy_poll = true wants: interrupts deferred while the engine polls.
set -eu

if [ $# -lt 2 ] || [ "$1" = --help ]; then
    sed -n '2,7s/^# \{0,1\}//p' "$0"
    exit 2
fi
device=$1 queues=$2 busy=${3:-}
sys=/sys/class/net/$device
[ -d "$sys" ] || { echo "nic-setup: there is no device $device; see 'ip link'" >&2; exit 1; }
case $queues in '' | *[!0-9]* | 0) echo "nic-setup: '$queues' is no number of queues" >&2; exit 2 ;; esac

# Prints a command and runs it; a device that can't is told about and passed over.
try() {
    echo "+ $*"
    "$@" || echo "  (not possible on this device; going on)"
}

echo "# before:"
ethtool -l "$device" 2>/dev/null || echo "# $device does not say how many queues it has"
# Every queue that gets traffic must be served, else that traffic goes to the kernel.
try ethtool -L "$device" combined "$queues"
# Packets merged by the NIC don't fit the engine's frames; XDP drivers refuse them or turn this off by themselves.
try ethtool -K "$device" lro off
# The engine has no VLAN interfaces, and tags in the frame keep tagged traffic with the kernel.
try ethtool -K "$device" rxvlan off
# Deep device rings: a burst may come while a shard does something else.
try ethtool -G "$device" rx 2048 tx 2048
if [ "$busy" = busy ]; then
    echo "# undo: echo $(cat "$sys/napi_defer_hard_irqs") > $sys/napi_defer_hard_irqs"
    echo "# undo: echo $(cat "$sys/gro_flush_timeout") > $sys/gro_flush_timeout"
    echo "+ napi_defer_hard_irqs 2, gro_flush_timeout 200000 ns"
    echo 2 >"$sys/napi_defer_hard_irqs"
    echo 200000 >"$sys/gro_flush_timeout"
fi

node=$(cat "$sys/device/numa_node" 2>/dev/null || echo -1)
if [ "$node" -ge 0 ]; then
    echo "# $device is on NUMA node $node; CPUs there, for 'cores' in the configuration:"
    cat "/sys/devices/system/node/node$node/cpulist"
fi
