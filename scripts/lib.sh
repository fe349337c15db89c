# Shared by the scripts: messages, cargo, stages with their time, and a clean-up that leaves nothing behind.
# Sourced, with the repository as working directory.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ROOT=$PWD
TOOLS=$ROOT/.cache/tools

say() { printf '%s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# cargo on PATH or where rustup puts it; cargo-deny where setup puts it.
export PATH="$PATH:$HOME/.cargo/bin:$TOOLS/bin"

# version_at_least HAVE WANT
version_at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

# --- a private temp dir; every process that has it in its environment or arguments is ours -------------------

private_temp() {
  export TMPDIR
  TMPDIR=$(mktemp -d "${TMPDIR:-/tmp}/fleet-$1-XXXXXX")
  # Postgres runs under another account when we are root, and has to pass through.
  chmod 755 "$TMPDIR"
  trap 'clean_up' EXIT
  trap 'INTERRUPTED=1; exit 130' INT
  trap 'INTERRUPTED=1; exit 143' TERM HUP
}
INTERRUPTED=0
LOG=/dev/null

# Pids of processes that carry $TMPDIR in environment, arguments or working directory (Redis overwrites the first
# two with its title), this shell and its own helpers excepted.
left_over() {
  local dir pid
  for dir in /proc/[0-9]*; do
    pid=${dir#/proc/}
    [ "$pid" = $$ ] || [ "$pid" = "$BASHPID" ] && continue
    if [[ $(readlink "$dir/cwd" 2>/dev/null) == "$TMPDIR"* ]] ||
      grep -qsF -- "$TMPDIR" "$dir/environ" "$dir/cmdline" 2>/dev/null; then
      case $(sed -n 's/^PPid:\t//p' "$dir/status" 2>/dev/null) in
        $$ | "$BASHPID" | '') ;; # the helper that asks, or gone meanwhile
        *) echo "$pid" ;;
      esac
    fi
  done
}

clean_up() {
  local pids pid
  trap - EXIT INT TERM HUP
  pids=$(jobs -p)
  [ -z "$pids" ] || kill $pids 2>/dev/null || true
  if [ $INTERRUPTED = 1 ]; then
    pids=$(left_over)
    [ -z "$pids" ] || kill $pids 2>/dev/null || true
  fi
  # The servers of a test end by themselves a moment after it.
  for _ in 1 2 3 4 5 6 7 8 9 10; do
    pids=$(left_over)
    [ -z "$pids" ] && break
    sleep 0.2
  done
  if [ -n "$pids" ]; then
    for pid in $pids; do
      say "ended what was left behind: $pid $(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | cut -c 1-120)"
    done
    kill -QUIT $pids 2>/dev/null || true
    sleep 0.5
    pids=$(left_over)
    [ -z "$pids" ] || kill -KILL $pids 2>/dev/null || true
  fi
  rm -rf -- "$TMPDIR"
}

# --- stages ---------------------------------------------------------------------------------------------------

STAGES=() RESULTS=() TIMES=()

# stage NAME COMMAND...: runs it, copies its output to $LOG, remembers the result, goes on after a failure.
stage() {
  local name=$1 began=$SECONDS result=ok
  shift
  say ""
  say "=== $name: $*"
  # In the background, since a signal is acted on while the shell waits, not while it runs a command.
  (set -o pipefail && "$@" </dev/null 2>&1 | tee -a "$LOG") &
  wait $! || result=FAILED
  STAGES+=("$name") RESULTS+=("$result") TIMES+=($((SECONDS - began)))
  say "=== $name: $result, $((SECONDS - began)) s"
}

# Table of all stages; fails when one of them did.
summary() {
  local i failed=0
  say ""
  say "stage            result   seconds"
  for i in "${!STAGES[@]}"; do
    printf '%-16s %-8s %7d\n' "${STAGES[i]}" "${RESULTS[i]}" "${TIMES[i]}"
    [ "${RESULTS[i]}" = ok ] || failed=$((failed + 1))
  done
  return $((failed > 0))
}
