# shellcheck shell=bash
# Sourced by demo.sh and check.sh: becomes root, finds cargo, installs what is missing.
# Debian 12 with Rust and git is enough to begin with.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Runs the calling script again as root, unless it already is: network namespaces need that.
become_root() {
  if [[ $EUID -ne 0 ]]; then
    exec sudo --preserve-env=RUSTUP_HOME,RUSTUP_TOOLCHAIN env "PATH=$PATH" bash "$0" "$@"
  fi
  if [[ -n ${SUDO_USER:-} && $SUDO_USER != root ]]; then
    # The toolchain is the user's; what cargo downloads is root's own, and what it builds is given back.
    local home
    home=$(getent passwd "$SUDO_USER" | cut -d: -f6)
    export PATH="$PATH:$home/.cargo/bin"
    export RUSTUP_HOME="${RUSTUP_HOME:-$home/.rustup}"
    export HOME=/root
    trap 'give_back' EXIT
  fi
  export PATH="$PATH:/usr/sbin:/sbin"
  cd "$root" || exit 1
}

give_back() {
  if [[ -d $root/target ]]; then
    chown -R --reference="$root" "$root/target"
  fi
}

# Installs Debian packages, those that are missing. `file:package` wants a file, whichever package has it.
install_missing() {
  local missing=() wanted file package
  for wanted in "$@"; do
    file=${wanted%%:*} package=${wanted##*:}
    if [[ $file == /* ]]; then
      [[ -e $file ]] || missing+=("$package")
    elif ! dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed'; then
      missing+=("$package")
    fi
  done
  if [[ ${#missing[@]} -eq 0 ]]; then
    return
  fi
  echo "Installing ${missing[*]}"
  apt-get update -qq
  # A server that is installed must not start: nothing of ours runs outside the laboratory.
  local policy=/usr/sbin/policy-rc.d ours=
  if [[ ! -e $policy ]]; then
    ours=yes
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
  fi
  local result=0
  DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null || result=$?
  if [[ -n $ours ]]; then
    rm -f "$policy"
  fi
  return "$result"
}

# What building and the demonstration need.
install_basics() {
  install_missing gcc libc6-dev libmnl-dev libnftnl-dev pkg-config \
    nftables iproute2 ethtool util-linux /usr/sbin/nginx:nginx-light
  if ! command -v cargo >/dev/null; then
    echo "cargo is not there: install Rust first (https://rustup.rs)" >&2
    exit 69
  fi
}

# What the tests need beside that: the software that is replayed to, and what looks at documents, scripts,
# queues and instructions.
install_test_software() {
  install_missing redis-server redis-tools memcached postgresql-15 nghttp2-client nghttp2-server \
    python3-websockets python3-aiosmtpd iptables procps mandoc shellcheck valgrind
}

# What the appliance test builds, checks and boots packages with.
install_appliance_software() {
  install_missing dpkg-dev lintian rpm rpmlint mandoc mmdebstrap systemd-container e2fsprogs cpio busybox-static kmod \
    qemu-system-x86
}
