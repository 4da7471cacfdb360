# shellcheck shell=bash
# Sourced by the scripts of the appliance test: where things are, and what all of them need.
set -euo pipefail

appliance=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$appliance/../.." && pwd)
# Images, packages and results; nothing outside it is written.
store=$root/target/appliance
mkdir -p "$store"
cd "$root"

say() {
  echo "[$(date +%T)] $*"
}

# Ends the test where it cannot be made, which is no fault of what it tests.
skip() {
  echo "skipped: $*" >&2
  exit 75
}

# Nothing here may mount, install or boot anything where the machine's own processes could see it.
must_be_private() {
  if [[ $(readlink /proc/self/ns/mnt) == "$(readlink /proc/1/ns/mnt)" ]]; then
    echo "refused: this must run in a mount namespace of its own" >&2
    exit 70
  fi
  mount --make-rprivate /
}
