#!/usr/bin/env bash
# Dependencies: bans, licences and sources always; advisories where the RustSec database can be had. Where it
# cannot, one loud line says so: that is never a silent pass.
source "$(dirname "$0")/lib.sh"

cargo deny --locked check --hide-inclusion-graph bans licenses sources

if timeout 60 cargo deny --locked fetch db >/dev/null 2>&1; then
  cargo deny --locked check --disable-fetch --hide-inclusion-graph advisories
else
  say "!!! advisories NOT checked: database unreachable"
fi
