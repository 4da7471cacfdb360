#!/bin/bash
# On one host with a systemd of its own: both packages, tcpcopy alone (embedded) from the quick start's two lines, and
# intercept on the target; then what can happen to them, under load.
#
#   alone.sh PAYLOAD RESULTS
set -euo pipefail
payload=$1 results=$2
clients=/run/clients access=/var/log/nginx/target.log events=$results/events
source "$payload/common.sh"

# Where nothing that follows could be right.
give_up() {
  say "FAILED: $*"
  exit 1
}

# The clients' network, production on port 80 and the target on a port of the same host.
make_host() {
  ip netns add client
  ip link add clients type veth peer name eth0 netns client
  ip address add 10.90.0.2/24 dev clients
  ip link set clients up
  ip -n client address add 10.90.0.10/24 dev eth0
  ip -n client link set eth0 up
  cat >/etc/nginx/nginx.conf <<'END'
worker_processes 1;
events { worker_connections 512; }
http {
  log_format numbers '$msec $uri $status';
  keepalive_timeout 1h;
  keepalive_requests 1000000;
  server { listen 10.90.0.2:80; access_log /var/log/nginx/access.log numbers; location / { return 200 "done\n"; } }
  server { listen 127.0.0.1:8080; access_log /var/log/nginx/target.log numbers; location / { return 200 "done\n"; } }
}
END
  systemctl start nginx
}

install() {
  DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes "$payload/$1"/tcpcopy*.deb >"$results/apt-$1" 2>&1 ||
    fail "apt-get install: $(tail -n 3 "$results/apt-$1")"
}

# Sets what the sample file has as a comment.
configure() {
  local file=/etc/tcpcopy/$1.toml line
  shift
  for line in "$@"; do
    grep -q "^#${line%% *} = " "$file" || fail "$file does not list ${line%% *}"
    sed -i "s|^#${line%% *} = .*|$line|" "$file"
  done
}

# Whether a unit's journal has entries about an event, with these fields: `entries UNIT EVENT FIELD…`.
entries() {
  local unit=$1 event=$2 id
  shift 2
  id=$(sed -n "s/^ *$event = \"\([0-9a-f]*\)\";$/\1/p" "$payload/message_id.rs")
  journalctl --unit "$unit" --output json "MESSAGE_ID=${id:?}" | python3 "$payload/journal.py" "$unit $event" "$@"
}

# Something that happens under load: `event NAME MISSING COMMAND…`; see account.py.
event() {
  local name=$1 allowed=$2 begin
  shift 2
  begin=$(now)
  "$@" >>"$results/events-output" 2>&1 || fail "$name: $*"
  steady
  echo "${name// /_} $begin $(now) $allowed" >>"$events"
  say "$name: back"
}

main_pid() {
  systemctl show --property MainPID --value "$1"
}

another_process() {
  [[ $(main_pid "$1") != 0 && $(main_pid "$1") != "$2" ]]
}

# Until the watchdog sees to it.
freeze() {
  local pid
  pid=$(main_pid "$1")
  kill -STOP "$pid"
  within 60 another_process "$1" "$pid"
}

reload_wrong() {
  echo 'percnt = 3' >/etc/tcpcopy/tcpcopy.toml.d/wrong.toml
  systemctl reload tcpcopy
  within 10 entries tcpcopy CONFIG_REJECTED REASON || return 1
  rm /etc/tcpcopy/tcpcopy.toml.d/wrong.toml
  systemctl reload tcpcopy
  within 10 entries tcpcopy CONFIG_RELOADED
}

upgrade() {
  local before
  before=$(main_pid tcpcopy)
  install 2
  another_process tcpcopy "$before"
}

# A start that is refused: systemd tells why and does not try again.
refuse() {
  systemctl stop tcpcopy
  echo 'percnt = 3' >/etc/tcpcopy/tcpcopy.toml.d/wrong.toml
  if systemctl start tcpcopy; then return 1; fi
  systemctl status --no-pager --lines 2 tcpcopy | tee "$results/refused" || true
  [[ $(systemctl show --property ActiveState --value tcpcopy) == failed ]] || return 1
  grep -q "unknown key 'percnt'" "$results/refused" || return 1
  rm /etc/tcpcopy/tcpcopy.toml.d/wrong.toml
  systemctl reset-failed tcpcopy
  systemctl start tcpcopy
}

say "one host, Linux $(uname -r), systemd $(systemctl --version | awk 'NR == 1 { print $2 }')"
make_host
install 1
for unit in tcpcopy intercept intercept-rules; do
  ! systemctl is-enabled --quiet "$unit" || fail "installing has enabled $unit"
done
configure tcpcopy 'map = ["80-127.0.0.1:8080"]' 'embedded = true'
systemctl enable --quiet --now tcpcopy || give_up "tcpcopy does not start: $(systemctl status --no-pager tcpcopy | tail -n 3)"
intercept keygen /etc/tcpcopy/keys/one >/dev/null
configure intercept 'target = ["127.0.0.1:8080"]' 'on-target = true' 'clients = ["10.99.0.0/24"]'
systemctl enable --quiet --now intercept || give_up "intercept does not start: $(systemctl status --no-pager intercept | tail -n 3)"

ip netns exec client python3 "$payload/load.py" 10.90.0.2 "$clients" 2>"$results/load" &
load=$!
within 30 caught_up || give_up "nothing is replayed"
for unit in tcpcopy intercept intercept-rules; do
  systemctl is-active --quiet "$unit" || fail "$unit is not active"
  systemctl status --no-pager --lines 1 "$unit" >>"$results/status-texts" || true
done
for unit in tcpcopy intercept; do
  needs_what_it_has "$unit" || fail "$unit has capabilities that it does not need"
done
grep 'Status:' "$results/status-texts"
[[ $(ps -o user= -p "$(main_pid tcpcopy)") == tcpcopy ]] || fail "tcpcopy runs as $(ps -o user= -p "$(main_pid tcpcopy)")"

within 60 test_lines 150 || fail "the clients do not go on"
event "nothing at all" none true
event "journald restarts" none systemctl restart systemd-journald
event "ruleset flushed" all nft flush ruleset
event "kill -9" all systemctl kill --signal KILL tcpcopy
event "SIGSTOP" all freeze tcpcopy
event "a wrong file" none reload_wrong
event "upgrade" all upgrade
event "a refused start" all refuse
within 10 nft list chain ip intercept blackhole >/dev/null || fail "intercept's rules are not back"

kill -TERM "$load"
wait "$load" || true
within 30 caught_up || true
cp "$clients" "$access" "$results/"
python3 "$payload/account.py" "$clients" "$access" "$events" || fail "the account"
entries tcpcopy READY RULES SINK WORKERS || fail "the journal: ready"
entries tcpcopy FAILED EXIT_CODE=78 || fail "the journal: failed"
entries intercept READY RULES LISTEN || fail "the journal: intercept"
entries intercept RULES_BACK WHAT || fail "the journal: rules"

# The socket unit holds the port while intercept is stopped, and starts nothing.
systemctl is-active --quiet intercept.socket || fail "intercept.socket is not active"
systemctl stop intercept
timeout 5 bash -c ': >/dev/tcp/127.0.0.1/36524' || fail "the tunnel's port is not held while intercept is stopped"
! systemctl is-active --quiet intercept || fail "a connection has started intercept"
systemctl start intercept || fail "intercept does not start with its socket"
entries intercept READY LISTEN || fail "the journal: intercept with its socket"

# Removed: closed until the printed commands are run, which need nothing of the package.
closed() {
  nft list chain ip intercept blackhole >/dev/null && ip rule | grep -q '^74:.*lookup 1952688480' &&
    ip route show table 1952688480 | grep -q '^default dev intercept-a960'
}
closed || fail "not both layers are in force"
apt-get remove --quiet --yes tcpcopy tcpcopy-intercept >"$results/remove" 2>&1 || fail "remove: $(tail -n 3 "$results/remove")"
closed || fail "removing the package has opened the host"
apt-get purge --quiet --yes tcpcopy tcpcopy-intercept >"$results/purge" 2>&1 || fail "purge: $(tail -n 3 "$results/purge")"
closed || fail "purging the package has opened the host"
for said in remove purge; do
  sed -n 's/\r$//; s/^  //p' "$results/$said" | grep -E '^(nft|while|ip) ' >"$results/commands-$said"
  [[ -s $results/commands-$said ]] || fail "$said does not say how to open the host"
done
bash "$results/commands-purge" >>"$results/events-output" 2>&1 || true
! ip rule | grep -q 1952688480 || fail "rules of the routing policy are left: $(ip rule)"
! ip link | grep -q intercept- || fail "the device is left"
[[ -z $(nft list tables) ]] || fail "rules are left: $(nft list tables)"
[[ ! -e /etc/tcpcopy ]] || fail "purge leaves $(ls -R /etc/tcpcopy)"
say "$failures failures"
exit $((failures > 0))
