#!/usr/bin/env bash
# A fleet on this machine: private Redis and Postgres, a Proxmox VE simulator, mPanel's Node producer, our worker.
#   KEEP=1    leaves it running
source "$(dirname "$0")/lib.sh"

scripts/setup.sh
die "the demo is not part of this tree yet"
