#!/bin/bash
# stream.sh: one sidestep stream with perf of whole machine
B=${BIN:-/tmp/w/target-bulk/release/sidestep}
cd /tmp/w/bulk
$B bench compare -t stream -s sidestep --rounds 1 --time 4 $MT & P=$!
sleep 2.5; perf record -a -g -F 2500 -o perf.data -- sleep 1.5 >/dev/null 2>&1
wait $P
