#!/bin/bash
# In the virtual machine: four hosts, each with its own systemd, journal and network, set up as the quick start says; then
# what can happen to them.
#
#   hosts.sh PAYLOAD RESULTS
set -euo pipefail
payload=$1 results=$2
hosts=(client online target assistant)
# As in the quick start; the clients have a network of their own.
declare -A cards=([client]=02:00:00:00:00:01 [online]=02:00:00:00:00:02 [target]=02:00:00:00:00:03 [assistant]=02:00:00:00:00:04)
declare -A addresses=([client]=10.90.0.10/16 [online]=10.91.2.1/24 [target]=10.91.2.2/24 [assistant]=10.91.2.3/24)
source "$payload/common.sh"

# Runs a command on a host: `on HOST COMMAND…`.
on() {
  local leader=/run/hosts/$1/leader
  shift
  nsenter --all --target "$(<"$leader")" -- "$@"
}

# The process 1 of a host, as long as there is one.
find_leader() {
  local nspawn
  nspawn=$(systemctl show --property MainPID --value "host-$1")
  [[ $nspawn != 0 ]] && pgrep --parent "$nspawn" --exact systemd >"/run/hosts/$1/leader"
}

make_root() {
  local host=$1 tree=/run/hosts/$1
  mkdir -p "$tree"
  mount -t tmpfs -o size=256m "$host" "$tree"
  mkdir "$tree"/{upper,work,root}
  mount -t overlay overlay -o "lowerdir=/,upperdir=$tree/upper,workdir=$tree/work" "$tree/root"
  local unit
  for unit in payload.service console-getty.service systemd-logind.service systemd-udevd.service; do
    ln -sf /dev/null "$tree/root/etc/systemd/system/$unit"
  done
  echo "$host" >"$tree/root/etc/hostname"
  : >"$tree/root/etc/fstab"
  : >"$tree/root/etc/machine-id"
  mkdir -p "$tree/root/var/log/journal" "$tree/root/root/packages"
  rm -rf "$tree/root/var/log/journal"/*
  cp "$payload"/1/*.deb "$tree/root/root/packages/"
}

# A network as it is on a machine that was just switched on: interfaces without addresses.
make_network() {
  ip netns add "$1"
  # A machine has the same card after a reboot: its neighbours need not look for it anew.
  ip link add "port-$1" netns switch type veth peer name eth0 address "${cards[$1]}" netns "$1"
  ip -n switch link set "port-$1" master "$2" up
  if [[ $1 == online || $1 == assistant ]]; then
    # They would pass a response on, if it got that far.
    ip netns exec "$1" sysctl --quiet --write net.ipv4.ip_forward=1
  fi
  if [[ $1 == online ]]; then
    ip link add port-clients netns switch type veth peer name eth1 address 02:00:00:00:01:02 netns online
    ip -n switch link set port-clients master clients up
  fi
}

# The host's own units give it its addresses, once the network may be there.
describe_network() {
  local host=$1 directory=/run/hosts/$1/root/etc/systemd
  mkdir -p "$directory/network"
  {
    printf '[Match]\nName=eth0\n[Network]\nAddress=%s\nLinkLocalAddressing=no\n' "${addresses[$host]}"
    case $host in
      client) printf '[Route]\nDestination=10.91.0.0/16\nGateway=10.90.0.2\n' ;;
      assistant) printf '[Route]\nDestination=10.90.0.0/16\nGateway=10.91.2.1\n' ;;
    esac
  } >"$directory/network/eth0.network"
  if [[ $host == online ]]; then
    printf '[Match]\nName=eth1\n[Network]\nAddress=10.90.0.2/16\nLinkLocalAddressing=no\n' >"$directory/network/eth1.network"
  fi
  mkdir -p "$directory/system/multi-user.target.wants"
  ln -sf /lib/systemd/system/systemd-networkd.service "$directory/system/multi-user.target.wants/"
}

boot() {
  systemd-run --quiet --unit "host-$1" --property Delegate=yes --property KillMode=mixed --collect \
    systemd-nspawn --quiet --directory "/run/hosts/$1/root" --register=no --keep-unit --boot \
    --network-namespace-path "/run/netns/$1" --capability=all --hostname "$1" --console=pipe \
    systemd.unit=multi-user.target
  within 30 find_leader "$1" || fail "$1 does not start"
}

is_up() {
  local state
  state=$(on "$1" systemctl is-system-running) || true
  [[ $state == running || $state == degraded ]]
}

serve() {
  cat >"/run/hosts/$1/root/etc/nginx/nginx.conf" <<'END'
worker_processes 1;
events { worker_connections 512; }
http {
  log_format numbers '$msec $uri $status';
  access_log /var/log/nginx/access.log numbers;
  keepalive_timeout 1h;
  keepalive_requests 1000000;
  server {
    listen 80;
    location / { return 200 "done\n"; }
  }
  server {
    listen 8080;
    access_log /var/log/nginx/second.log numbers;
    location / { return 200 "done\n"; }
  }
}
END
  on "$1" systemctl enable --quiet --now nginx
}

install() {
  on "$1" env DEBIAN_FRONTEND=noninteractive sh -c "apt-get install --quiet --yes /root/packages/$2_*.deb" \
    >"$results/$1-apt" 2>&1 || fail "$1: apt-get install $2: $(tail -n 3 "$results/$1-apt")"
}

source "$payload/scenes.sh"

say "four hosts, Linux $(uname -r)"
ip netns add switch
for bridge in clients servers; do
  ip -n switch link add "$bridge" type bridge
  ip -n switch link set "$bridge" up
done
for host in "${hosts[@]}"; do
  make_root "$host"
  make_network "$host" "$([[ $host == client ]] && echo clients || echo servers)"
  describe_network "$host"
  boot "$host"
done
for host in "${hosts[@]}"; do
  within 60 is_up "$host" || fail "$host is $(on "$host" systemctl is-system-running)"
done
say "are up"
serve online
serve target
scenes
for host in "${hosts[@]}"; do
  on "$host" journalctl --boot --no-pager --output=short-monotonic >"$results/$host-journal" || true
done
say "$failures failures"
exit $((failures > 0))
