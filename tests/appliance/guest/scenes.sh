# shellcheck shell=bash
# Sourced by hosts.sh: the quick start, and what happens under load.

clients=/run/hosts/client/root/root/clients
access=/run/hosts/target/root/var/log/nginx/access.log
events=$results/events

scenes() {
  say "the quick start"
  quick_start
  watch_for_leaks
  cp "$payload/load.py" /run/hosts/client/root/root/
  on client python3 /root/load.py 10.90.0.2 /root/clients 2>"$results/load" &
  within 30 caught_up || fail "nothing is replayed"
  look_at_units

  say "what can happen"
  within 60 test_lines 150 || fail "the clients do not go on"
  : >"$events"
  event "nothing at all" none on client true
  event "journald restarts" none restart_journals
  event "ruleset flushed, online" none on online nft flush ruleset
  event "ruleset flushed, assistant" none on assistant nft flush ruleset
  event "nftables restarts, assistant" none on assistant systemctl restart nftables
  event "nftables restarts, online" none on online systemctl restart nftables
  event "disk full, online" none fill_disk
  event "clock an hour ahead" none date --set "+1 hour"
  event "interface down for 2 s, online" all interface_down
  event "kill -9, tcpcopy" all on online systemctl kill --signal KILL tcpcopy
  event "kill -9, intercept" all on assistant systemctl kill --signal KILL intercept
  event "SIGSTOP, tcpcopy" all freeze online tcpcopy
  event "SIGSTOP, intercept" all freeze assistant intercept
  event "upgrade, intercept" all upgrade assistant tcpcopy-intercept
  event "upgrade, tcpcopy" all upgrade online tcpcopy
  event "reload, both" none reload
  event "a wrong file, both" none reload_wrong
  event "a second instance" none second_instance
  event "reboot, assistant" all reboot_assistant
  event "reboot, target" all reboot_target
  event "reboot, online" down reboot online
  on client pkill --signal TERM --full load.py
  wait
  within 30 caught_up || true
  python3 "$payload/account.py" "$clients" "$access" "$events" | tee "$results/account" || fail "the account"

  say "what must not have happened"
  expect_leaks 0
  read_journals
  remove
}

# The lines of a step of the quick start, as they are typed: commands, and settings for the file of that host.
step() {
  awk -v from="**$1." -v to="**$(($1 + 1))." \
    'index($0, from) == 1 { inside = 1 } index($0, to) == 1 { inside = 0 } inside && /^    [^ ]/ { print substr($0, 5) }' \
    "$payload/README.md"
}

quick_start() {
  install online tcpcopy
  install assistant tcpcopy-intercept
  for unit in tcpcopy intercept intercept-rules; do
    if on online systemctl is-enabled --quiet "$unit" 2>/dev/null || on assistant systemctl is-enabled --quiet "$unit" 2>/dev/null; then
      fail "installing has enabled $unit"
    fi
  done
  type_step 2 target ""
  type_step 3 assistant intercept
  # "Put a copy of the key in the same place, for root only."
  cp --preserve=mode /run/hosts/{assistant,online}/root/etc/tcpcopy/keys/2026-11
  type_step 4 online tcpcopy
}

type_step() {
  local line changed=0 file=/run/hosts/$2/root/etc/tcpcopy/$3.toml
  while read -r line; do
    case $line in
      *" = "*)
        grep -q "^#${line%% *} = " "$file" || fail "the quick start sets what is not in the file: $line"
        sed -i "s|^#${line%% *} = .*|$line|" "$file"
        changed=$((changed + 1))
        ;;
      *)
        say "$2# $line"
        on "$2" bash -c "$line" >>"$results/$2-quick-start" 2>&1 || fail "$2: $line: $(tail -n 3 "$results/$2-quick-start")"
        ;;
    esac
  done < <(step "$1")
  ((changed <= 2)) || fail "$2: $changed lines changed"
}

# Responses of the target that reach a client: the assistant and the online host would pass them on.
watch_for_leaks() {
  on client nft -f - <<'END'
table ip leaks {
  counter responses {}
  chain input { type filter hook prerouting priority -400; ip saddr 10.91.2.2 tcp sport 80 counter name responses; }
}
END
}

leaks() {
  on client nft list counter ip leaks responses | sed -n 's/.*packets \([0-9]*\).*/\1/p'
}

expect_leaks() {
  local count
  count=$(leaks)
  say "responses that reached a client: $count"
  if [[ $1 == 0 ]]; then
    [[ $count == 0 ]] || fail "$count responses reached a client"
  else
    [[ $count != 0 ]] || fail "the detector of leaks detects nothing"
  fi
}

# Whether something happens in this run: the file "events" holds an expression for the names of what does.
happens() {
  [[ $1 =~ $(<"$payload/events") ]]
}

# Something that happens under load: `event NAME MISSING COMMAND…`. MISSING says what may be missing: all, none, or, where
# production itself is away for a while, down.
event() {
  local name=$1 allowed=$2 begin before
  shift 2
  happens "$name" || return 0
  before=$(leaks)
  begin=$(now)
  "$@" >>"$results/events-output" 2>&1 || fail "$name: $*"
  steady
  echo "${name// /_} $begin $(now) $allowed" >>"$events"
  say "$name: back; leaked: $(($(leaks) - before))"
  on assistant nft list chain ip intercept blackhole 2>&1 | grep -q ' drop' || fail "$name: the assistant is open"
}

restart_journals() {
  on online systemctl restart systemd-journald
  on assistant systemctl restart systemd-journald
}

fill_disk() {
  on online sh -c 'cat /dev/zero >/var/full 2>/dev/null; df /var | tail -n 1; ! echo more >/var/more'
  steady
  on online rm -f /var/full /var/more
}

interface_down() {
  on online ip link set eth0 down
  within 10 test_lines $(($(wc -l <"$clients") + 40))
  on online ip link set eth0 up
}

# Until the watchdog sees to it.
freeze() {
  local pid
  pid=$(on "$1" systemctl show --property MainPID --value "$2")
  on "$1" kill -STOP "$pid"
  within 60 another_process "$1" "$2" "$pid" || fail "the watchdog of $2 does nothing"
}

another_process() {
  local pid
  pid=$(on "$1" systemctl show --property MainPID --value "$2")
  [[ $pid != 0 && $pid != "$3" ]]
}

upgrade() {
  local pid
  pid=$(on "$1" systemctl show --property MainPID --value "${2#tcpcopy-}")
  rm "/run/hosts/$1/root/root/packages"/*
  cp "$payload"/2/*.deb "/run/hosts/$1/root/root/packages/"
  install "$1" "$2"
  another_process "$1" "${2#tcpcopy-}" "$pid" || fail "the upgrade has not started $2 again"
  [[ $(on "$1" dpkg-query --show --showformat='${Version}' "$2") == *-2 ]] || fail "$2 is not the new one"
}

reboot_assistant() {
  # It flushes the ruleset when it stops, while packets still come.
  on assistant systemctl enable --now nftables
  reboot assistant
  ! on target ip route get 10.90.0.10 | grep redirected || fail "the target was told a way past the assistant"
  local rules network
  rules=$(on assistant systemctl show --property ActiveEnterTimestampMonotonic --value intercept-rules)
  network=$(on assistant systemctl show --property ExecMainStartTimestampMonotonic --value systemd-networkd)
  ((rules > 0 && rules < network)) || fail "the rules came after the network: $rules, $network"
}

# "Make it permanent where the host's network is configured."
reboot_target() {
  printf '[Route]\nDestination=10.90.0.0/16\nGateway=10.91.2.3\n' >>/run/hosts/target/root/etc/systemd/network/eth0.network
  reboot target
}

# Off and on, with nothing left in the kernel: a network namespace is one machine's network.
reboot() {
  kill -s RTMIN+4 "$(<"/run/hosts/$1/leader")"
  within 30 is_gone "$1"
  ip netns delete "$1"
  within 5 port_is_gone "$1"
  make_network "$1" servers
  boot "$1"
  within 60 is_up "$1" || fail "$1 does not come up"
}

is_gone() {
  ! systemctl is-active --quiet "host-$1"
}

port_is_gone() {
  ! ip -n switch link show "port-$1"
}

look_at_units() {
  local host unit
  for unit in online/tcpcopy assistant/intercept assistant/intercept-rules; do
    host=${unit%/*} unit=${unit#*/}
    on "$host" systemctl status --no-pager --lines 3 "$unit" | tee -a "$results/status" | head -n 12 || true
    on "$host" systemctl is-active --quiet "$unit" || fail "$unit is not active"
    on "$host" systemd-analyze security --no-pager "$unit" 2>/dev/null | tee -a "$results/security" | tail -n 1
  done
  for unit in online/tcpcopy assistant/intercept; do
    host=${unit%/*} unit=${unit#*/}
    needs_what_it_has "$unit" on "$host" || fail "$unit has capabilities that it does not need"
  done
  on online nft list table ip tcpcopy >"$results/rules-online"
  on assistant nft list table ip intercept >"$results/rules-assistant"
  grep -q ' queue ' "$results/rules-online" || fail "tcpcopy does not use the native queue"
  grep -q ' queue ' "$results/rules-assistant" || fail "intercept does not use the native queue"
}

reload() {
  on online systemctl reload tcpcopy
  on assistant systemctl reload intercept
  within 10 entries online tcpcopy CONFIG_RELOADED || fail "tcpcopy has not read its configuration again"
  within 10 entries assistant intercept CONFIG_RELOADED || fail "intercept has not read its configuration again"
}

reload_wrong() {
  local host unit
  for unit in online/tcpcopy assistant/intercept; do
    host=${unit%/*} unit=${unit#*/}
    echo 'workerz = 1' >"/run/hosts/$host/root/etc/tcpcopy/$unit.toml.d/wrong.toml"
    on "$host" systemctl reload "$unit"
    within 10 entries "$host" "$unit" CONFIG_REJECTED REASON || fail "$unit does not say that its configuration is wrong"
    rm "/run/hosts/$host/root/etc/tcpcopy/$unit.toml.d/wrong.toml"
    on "$host" systemctl reload "$unit"
  done
}

# Another tcpcopy on the same host, to another port of the target, alone.
second_instance() {
  local second=/run/hosts/target/root/var/log/nginx/second.log
  cat >/run/hosts/online/root/etc/tcpcopy/second.toml <<'END'
map = ["80-10.91.2.2:8080"]
embedded = true
queue = 36620
sink = "tcpcopy1"
table = "tcpcopy1"
END
  # The kernel gives these ports to others.
  echo 'ports = "40000-41000"' >>/run/hosts/online/root/etc/tcpcopy/second.toml
  ! on online systemctl start tcpcopy@second || fail "it starts with ports that are not free"
  entries online tcpcopy@second FAILED EXIT_CODE=78 || fail "the journal does not say why it does not start"
  sed -i '/^ports/d' /run/hosts/online/root/etc/tcpcopy/second.toml
  on online systemctl start tcpcopy@second || fail "a second instance does not start"
  within 30 test -s "$second" || fail "a second instance replays nothing"
  on online systemctl stop tcpcopy@second
  ! on online nft list table ip tcpcopy1 || fail "the rules of a second instance stay"
  on online systemctl is-active --quiet tcpcopy || fail "a second instance takes the first one with it"
  rm /run/hosts/online/root/etc/tcpcopy/second.toml
}

# Whether a unit's journal has entries about an event, with these fields: `entries HOST UNIT EVENT FIELD…`.
entries() {
  local host=$1 unit=$2 event=$3 id
  shift 3
  id=$(sed -n "s/^ *$event = \"\([0-9a-f]*\)\";$/\1/p" "$payload/message_id.rs")
  on "$host" journalctl --unit "$unit" --output json "MESSAGE_ID=${id:?}" | python3 "$payload/journal.py" "$unit $event" "$@"
}

# What an operator reads, by the event's identifier and by fields.
read_journals() {
  expect_entries "" online tcpcopy READY RULES=native TARGET QUEUE SINK WORKERS
  expect_entries "" online tcpcopy STATS CAPTURED SESSIONS
  expect_entries "" assistant intercept READY RULES=native LISTEN QUEUE WORKERS
  expect_entries "kill -9, intercept" online tcpcopy INTERCEPT_LOST INTERCEPT REASON
  expect_entries "kill -9, intercept" online tcpcopy INTERCEPT_BACK INTERCEPT
  expect_entries "ruleset flushed, assistant" assistant intercept RULES_BACK WHAT
  expect_entries "upgrade, tcpcopy" online tcpcopy STOPPED
  expect_entries "a wrong file, both" online tcpcopy CONFIG_REJECTED REASON
}

expect_entries() {
  local name=$1
  shift
  [[ -n $name ]] && ! happens "$name" || entries "$@" || fail "the journal: $*"
}

# Taken away. The assistant stays closed until the printed commands are run, and then the detector of leaks is seen to work.
remove() {
  on online apt-get purge --quiet --yes tcpcopy >"$results/online-purge" 2>&1 || fail "purge: $(tail -n 3 "$results/online-purge")"
  [[ ! -e /run/hosts/online/root/etc/tcpcopy ]] || fail "purge leaves $(ls -R /run/hosts/online/root/etc/tcpcopy)"
  [[ -z $(on online nft list tables | grep tcpcopy) ]] || fail "rules are left on the online host"
  on assistant apt-get remove --quiet --yes tcpcopy-intercept >"$results/assistant-remove" 2>&1 ||
    fail "remove: $(tail -n 3 "$results/assistant-remove")"
  connect_to_target
  expect_leaks 0
  # Each layer alone holds.
  on assistant nft flush ruleset
  connect_to_target
  expect_leaks 0
  sed -n 's/\r$//; s/^  //p' "$results/assistant-remove" | grep -E '^(nft|while|ip) ' >"$results/commands-that-open"
  on assistant bash <"$results/commands-that-open" 2>>"$results/events-output" || true
  [[ -z $(on assistant nft list tables | grep intercept) ]] || fail "rules are left on the assistant"
  ! on assistant ip link | grep -q intercept- || fail "the device is left on the assistant"
  connect_to_target
  expect_leaks some
}

connect_to_target() {
  on client timeout 3 python3 -c 'import socket; socket.create_connection(("10.91.2.2", 80))' || true
}
