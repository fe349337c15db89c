#!/usr/bin/env bash
# A fleet on this machine: private Redis and Postgres, a Proxmox VE simulator, mPanel's Node producer, our worker.
#   KEEP=1    leaves it running until Ctrl-C
source "$(dirname "$0")/lib.sh"

FOR=demo scripts/setup.sh
private_temp demo
say "building mpanel-worker and the demo (the first time takes some minutes)"
cargo build --locked -p mpanel-worker --bin mpanel-worker -p mpanel-testkit --bin demo
"${CARGO_TARGET_DIR:-target}/debug/demo" ${KEEP:+--keep}
