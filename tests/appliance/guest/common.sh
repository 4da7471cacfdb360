# shellcheck shell=bash
# Sourced by hosts.sh and alone.sh, in the machine and in the container: how they report and wait, and whether the replay
# keeps up. `clients` is the log of load.py, `access` that of the target.
failures=0

now() {
  cut -d ' ' -f 1 /proc/uptime
}

say() {
  printf '[%7.2f] %s\n' "$(now)" "$*"
}

fail() {
  say "FAILED: $*"
  failures=$((failures + 1))
}

# Waits for a command to succeed: `within SECONDS COMMAND…`.
within() {
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    if ((SECONDS >= end)); then
      return 1
    fi
    sleep 0.1
  done
}

# Whether each thread of a unit's process has the capabilities it needs, and no more: CAP_NET_ADMIN, or none where
# strangers are read. What goes before a command that is for the unit's host follows the unit's name.
needs_what_it_has() {
  # shellcheck disable=SC2016  # The other shell's.
  "${@:2}" sh -c 'grep -h -e ^Name: -e ^CapPrm: "/proc/$(systemctl show --property MainPID --value "$1")/task/"*/status' \
    sh "$1" | awk '
      $1 == "Name:" { name = $2; threads++ }
      $1 == "CapPrm:" && $2 != (name ~ /^(acceptor|bridge)$/ ? "0000000000000000" : "0000000000001000") {
        print name " may do " $2
        wrong = 1
      }
      END { exit wrong || threads < 2 }'
}

# Whether the last ten requests, which all clients had a part in, have reached the target.
caught_up() {
  local last number
  last=$(tail -n 1 "$clients" | cut -d ' ' -f 1)
  ((last > 10)) || return 1
  for number in $(seq $((last - 9)) "$last"); do
    within 3 grep -q " /$number " "$access" || return 1
  done
}

# Waits until 20 more requests were sent, and all of them have arrived.
steady() {
  local until
  until=$(($(wc -l <"$clients") + 20))
  within 20 test_lines "$until" || fail "the clients do not go on"
  within 60 caught_up || fail "the replay does not catch up"
}

test_lines() {
  (($(wc -l <"$clients") >= $1))
}
