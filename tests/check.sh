#!/usr/bin/env bash
# Runs every check, the fast ones first. As root, or it asks sudo.
#
#   tests/check.sh [--no-lab | --long]
#
# --no-lab leaves out what runs for long: the laboratory and the virtual machine.
# --long takes hours: every scenario with both kinds of offloads and long loads, and every fuzz target for ten minutes.
set -euo pipefail
# shellcheck source=tests/prepare.sh
source "$(dirname "${BASH_SOURCE[0]}")/prepare.sh"

lab=(--jobs 2) long=
case "${1:-}" in
  '') ;;
  --no-lab) lab=() ;;
  --long) lab+=(--long --offloads both) long=yes ;;
  *)
    echo "usage: tests/check.sh [--no-lab | --long]" >&2
    exit 64
    ;;
esac

# Runs a command under a heading and says how long it took.
section() {
  local name=$1 start=$SECONDS
  shift
  echo "==> $name"
  if ! "$@"; then
    echo "==> $name: FAILED after $((SECONDS - start)) s" >&2
    exit 1
  fi
  echo "==> $name: ok, $((SECONDS - start)) s"
}

dependencies() {
  if ! cargo deny --version >/dev/null 2>&1; then
    echo "skipped: cargo-deny is not installed (cargo install cargo-deny --locked)"
    return
  fi
  cargo deny check bans licenses sources || return
  if cargo deny fetch db >/dev/null 2>&1; then
    cargo deny check advisories
  else
    echo "skipped: advisories: their database cannot be fetched"
  fi
}

one_version_each() {
  local twice
  twice=$(cargo tree --locked --workspace --duplicates --edges normal,build --depth 0)
  if [[ -n $twice ]]; then
    echo "$twice"
  fi
}

# Ten minutes of fuzzing for each target. What fails is left in tests/fuzz/artifacts.
fuzz() {
  local target
  if ! cargo fuzz --version >/dev/null 2>&1; then
    echo "skipped: cargo-fuzz is not installed (cargo install cargo-fuzz --locked)"
    return
  fi
  # cargo-fuzz wants a nightly compiler, or a stable one that is told to be.
  export RUSTC_BOOTSTRAP=1
  for target in $(cargo fuzz list --fuzz-dir tests/fuzz); do
    cargo fuzz run --fuzz-dir tests/fuzz "$target" -- -max_total_time=600 -verbosity=0 || return
  done
}

# Parts of the appliance test. What it takes beside the source comes from Debian's servers.
appliance() {
  local result=0
  if ! install_appliance_software; then
    echo "skipped: what it needs cannot be installed"
    return
  fi
  tests/appliance/run.sh "$@" || result=$?
  # EX_TEMPFAIL: it has said why.
  [[ $result == 0 || $result == 75 ]]
}

become_root "$@"
section "packages" install_basics
section "packages of the tests" install_test_software
section "format" cargo fmt --all --check
section "scripts" shellcheck -x tests/*.sh packaging/*.sh tests/appliance/*.sh .ci/run
section "lints" cargo clippy --workspace --all-targets --locked -- -D warnings
section "documentation" env RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet
section "dependencies" dependencies
section "dependencies in several versions (for information)" one_version_each
section "unit, simulation, rules and command-line tests" cargo test --workspace --locked --quiet
section "release build" cargo build --release --workspace --locked
section "memory" cargo test --release --locked --test memory
section "instruction counts" cargo test --release --locked --test instructions
section "appliance, packages and container" appliance packages container
if [[ ${#lab[@]} -gt 0 ]]; then
  section "laboratory" target/release/lab run "${lab[@]}"
  section "appliance, machine" appliance vm
fi
if [[ -n $long ]]; then
  section "fuzzing" fuzz
fi
echo "All checks passed in $SECONDS s."
