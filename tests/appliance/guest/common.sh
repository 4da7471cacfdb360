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
