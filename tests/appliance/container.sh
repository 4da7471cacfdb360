#!/usr/bin/env bash
# Boots one host with its own systemd on this machine's kernel, has it run guest/alone.sh, and shows what that says.
#
#   tests/appliance/container.sh PACKAGES
#
# PACKAGES/1 and PACKAGES/2 hold the packages of two revisions. What the host leaves is in target/appliance/alone.
# shellcheck source=tests/appliance/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if [[ ${2:-} != inside ]]; then
  group=/sys/fs/cgroup/unified/tcpcopy-appliance
  [[ -d /sys/fs/cgroup/unified ]] || group=/sys/fs/cgroup/tcpcopy-appliance
  outcome=0
  timeout --kill-after 5 "${LIMIT:-300}" unshare --mount --propagation private "$0" "$1" inside || outcome=$?
  find "$group" -depth -type d -exec rmdir {} \; 2>/dev/null || true
  exit "$outcome"
fi
must_be_private
packages=$(realpath "$1") results=$store/alone
rm -rf "$results"
mkdir -p "$results" "$store/tree"

# A /run of its own, and one hierarchy of control groups, in which the host has a branch.
mount -t tmpfs -o mode=755 run /run
while umount --recursive /sys/fs/cgroup 2>/dev/null; do :; done
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /sys/fs/cgroup/tcpcopy-appliance
echo $$ >/sys/fs/cgroup/tcpcopy-appliance/cgroup.procs

tree=$store/tree
mount -t tmpfs -o size=1g tree "$tree"
tar -C "$tree" --numeric-owner --xattrs -xf "$store"/root-*.tar
mkdir -p "$tree"/{payload,results,var/log/journal,etc/systemd/system/multi-user.target.wants}
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer \
  console-getty.service; do
  ln -sf /dev/null "$tree/etc/systemd/system/$unit"
done
cp -r "$packages/1" "$packages/2" "$appliance"/guest/* src/daemon/message_id.rs "$tree/payload/"
cat >"$tree/etc/systemd/system/payload.service" <<'END'
[Unit]
Description=What this host was booted for
After=basic.target network.target dbus.service

[Service]
Type=oneshot
TimeoutStartSec=infinity
StandardOutput=append:/results/output
StandardError=inherit
ExecStart=/bin/bash -c 'status=0; bash /payload/alone.sh /payload /results || status=$?; \
  journalctl --boot --no-pager --output=short-monotonic >/results/journal; echo $status >/results/status; \
  systemctl --no-block poweroff'
END
ln -s ../payload.service "$tree/etc/systemd/system/multi-user.target.wants/"

say "container: boots"
: >"$results/output"
tail --follow "$results/output" --pid=$$ 2>/dev/null &
systemd-nspawn --quiet --directory "$tree" --register=no --keep-unit --boot --private-network --capability=all \
  --hostname alone --bind "$results:/results" --console=pipe systemd.unit=multi-user.target \
  </dev/null >"$results/console" 2>&1 || true
sleep 0.2
if [[ ! -e $results/status ]]; then
  tail -n 20 "$results/console" >&2
  echo "the container did not get to an end" >&2
  exit 70
fi
exit "$(<"$results/status")"
