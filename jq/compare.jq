#!/usr/bin/env -S jq -nrf
# Lay what was remeasured beside what the card says, a line a run.
#
# example:
#   bin/remeasure --shards build/demo/shards < build/vits-relu/checked.jsonl | bin/compare

def digits: . * 1e6 | round / 1e6;
def off(a; b): if a == b then "same" else "\((b - a) / a * 10000 | round | . / 100 + 0) % off" end;

try (
  inputs
  | "\(.repo)  layer \(.layer)  \(.run_id)"
    + "  L0 \(.l0 | digits), measured \(.l0_measured | digits) (\(off(.l0; .l0_measured)))"
    + "  NMSE \(.nmse | digits), measured \(.nmse_measured | digits) (\(off(.nmse; .nmse_measured)))"
) catch ("compare: \(.)\n" | halt_error(1))
