#!/usr/bin/env bash
# Shows a steady load being replayed through the whole chain, for half a minute. As root, or it asks sudo.
#
#   tests/demo.sh [--seconds N]
#
# All hosts are network namespaces that go away with it: the machine's own network is not touched.
set -euo pipefail
# shellcheck source=tests/prepare.sh
source "$(dirname "${BASH_SOURCE[0]}")/prepare.sh"

become_root "$@"
install_basics
cargo build --release --workspace --locked
target/release/lab demo "$@"
