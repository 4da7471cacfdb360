#!/usr/bin/env bash
# Boots the virtual machine, has it run guest/hosts.sh, and shows what that says.
#
#   tests/appliance/boot.sh PACKAGES
#
# PACKAGES/1 and PACKAGES/2 hold the packages of two revisions. What the machine leaves is in target/appliance/results.
# From the environment: EVENTS, a regular expression, for those only of what can happen whose names it matches.
# shellcheck source=tests/appliance/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

results=$store/results
rm -rf "$results"
mkdir -p "$results"
work=$(mktemp -d "$store/boot.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/payload"
cp -r "$1/1" "$1/2" "$appliance"/guest/* README.md src/daemon/message_id.rs "$work/payload/"
echo "${EVENTS:-.}" >"$work/payload/events"
tar -C "$work/payload" -cf "$work/payload.tar" .
truncate -s 64M "$work/results.tar"

say "vm: boots"
: >"$results/output"
tail --follow "$results/output" --pid=$$ 2>/dev/null &
# KVM if it is there and works; the limit is for a machine without it.
timeout --kill-after 5 "${LIMIT:-900}" qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot \
  -machine q35 -accel tcg,thread=multi -cpu max -smp "$(nproc)" -m 3072 -kernel "$store/vmlinuz" -initrd "$store/initrd" \
  -append "console=ttyS0 quiet panic=-1 systemd.show_status=0 mitigations=off nokaslr tsc=reliable random.trust_cpu=on" \
  -drive "if=none,id=root,file=$store/disk.ext4,format=raw,snapshot=on,cache=unsafe" -device virtio-blk-pci,drive=root \
  -drive "if=none,id=payload,file=$work/payload.tar,format=raw,readonly=on" \
  -device virtio-blk-pci,drive=payload,serial=payload \
  -drive "if=none,id=results,file=$work/results.tar,format=raw" -device virtio-blk-pci,drive=results,serial=results \
  -device virtio-rng-pci -device virtio-serial-pci -chardev "file,id=output,path=$results/output" \
  -device virtserialport,chardev=output,name=output -serial "file:$results/console" >"$results/qemu" 2>&1 || true
sleep 1
tar -C "$results" -xf "$work/results.tar" 2>/dev/null || true
if [[ ! -e $results/status ]]; then
  tail -n 20 "$results/console" "$results/qemu" >&2
  echo "the machine did not get to an end" >&2
  exit 70
fi
exit "$(<"$results/status")"
