#!/usr/bin/env bash
# Everything that decides whether a change is good. Prints each stage with its time, goes on after a failure,
# ends with a summary; leaves no process and no file behind.
#   scripts/test.sh [STAGE...]     all stages when none is named
#   FLEET_TEST_TIER=full           the long runs too (make test-full)
source "$(dirname "$0")/lib.sh"

ALL="setup fmt clippy deny unit integration conformance proxmox differential"
WANTED=${*:-$ALL}
for name in $WANTED; do
  case " $ALL " in *" $name "*) ;; *) die "no stage $name; stages: $ALL" ;; esac
done
export FLEET_TEST_TIER=${FLEET_TEST_TIER:-fast}
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}
private_temp test
LOG=$TMPDIR/output.log

run_setup() { scripts/setup.sh; }
run_fmt() { cargo fmt --all --check; }
run_clippy() { cargo clippy --workspace --all-targets --locked --quiet -- -D warnings; }
run_deny() { scripts/deny.sh; }

run_unit() {
  local failed=0
  cargo test --workspace --locked --no-fail-fast --lib --bins --examples || failed=1
  cargo test --workspace --locked --no-fail-fast --doc || failed=1
  return $failed
}

# Programs under test are built first: tests start them by path.
run_integration() {
  cargo build --workspace --locked --bins && cargo test --workspace --locked --no-fail-fast --test '*' || return 1
  if [ "$FLEET_TEST_TIER" = full ]; then
    # The same servers as Valkey.
    FLEET_REDIS_SERVER=valkey-server cargo test -p mpanel-connect -p mpanel-engine --locked --no-fail-fast --test '*'
  fi
}

run_conformance() {
  cargo run --quiet --locked -p mpanel-testkit --bin conformance -- \
    --scenarios testkit/data/scenarios --golden testkit/data/golden
}

# The simulator by an independent client's eyes: proxmoxer, over HTTPS, as it would talk to a real host.
run_proxmox() {
  local token="root@pam!fleet=11111111-2222-3333-4444-555555555555" out=$TMPDIR/pve-sim.out sim url failed=0
  cargo build --quiet --locked -p mpanel-testkit --bin pve-sim || return 1
  # Waits for the first line without looking again and again.
  mkfifo "$out"
  "${CARGO_TARGET_DIR:-target}/debug/pve-sim" --listen 127.0.0.1:0 --nodes 2 --auth-delay-ms 100 --token "$token" >"$out" &
  sim=$!
  read -r _ url _ <"$out" || failed=1
  PVE_URL=$url PVE_TOKEN_ID=${token%=*} PVE_TOKEN_SECRET=${token#*=} \
    "$TOOLS/proxmoxer/bin/python" -B -m pytest -q -p no:cacheprovider -W ignore testkit/data/proxmox || failed=1
  kill "$sim" 2>/dev/null
  wait "$sim" 2>/dev/null
  return $failed
}

# Half of the sequences against each version. The first seed of the full tier moves on every day.
run_differential() {
  local seed=1 count=1000
  if [ "$FLEET_TEST_TIER" = full ]; then seed=$(($(date +%s) / 86400 * 100000)) count=10000; fi
  cargo run --quiet --locked -p mpanel-testkit --bin differential -- --seed "$seed" --count "$count"
}

say "mpanel-fleet: $WANTED (tier $FLEET_TEST_TIER), $(nproc) cores"
for name in $WANTED; do
  stage "$name" "run_$name"
  if [ "$name" = setup ] && [ "${RESULTS[0]}" != ok ]; then break; fi
done

fine=0
summary || fine=1
awk '/^test result:/ { passed += $4; failed += $6; ignored += $8 } END { printf "tests: %d passed, %d failed, %d ignored\n", passed, failed, ignored }' "$LOG"
grep -h '^!!!' "$LOG" || true
if [ $fine = 0 ]; then say "all good in $SECONDS s"; else say "NOT good, see above ($SECONDS s)"; fi
exit $fine
