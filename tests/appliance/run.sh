#!/usr/bin/env bash
# The appliance test: what is packaged, installed and booted works. As root.
#
#   tests/appliance/run.sh [packages] [container] [vm]      default: all
#
#   packages   both formats are sound and reproducible, install, upgrade and go away without a trace, in a pristine
#              Debian root; the units are closed enough
#   container  one host with a systemd of its own on this kernel: tcpcopy alone, and intercept on the target
#   vm         four Debian hosts in a virtual machine with Debian's own kernel, set up as the README's quick start
#              says; then whatever can happen to them happens, under load
#
# Ends with 75 if it cannot be made here, for want of Debian's packages for example.
#
# Images are kept in target/appliance as long as what they are made of is the same; so is the fact that the test in the
# machine has passed (--again runs it all the same). EVENTS='reboot|upgrade' runs some events only, and
# KERNEL=trixie all of it with the kernel of another release of Debian.
# shellcheck source=tests/appliance/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parts=() again=
for argument in "$@"; do
  case $argument in
    packages | container | vm) parts+=("$argument") ;;
    --again) again=yes ;;
    *)
      echo "usage: tests/appliance/run.sh [--again] [packages] [container] [vm]" >&2
      exit 64
      ;;
  esac
done
if [[ ${#parts[@]} -eq 0 ]]; then
  parts=(packages container vm)
fi

codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
if [[ $codename != bookworm ]]; then
  # They fit the distribution they are built on.
  skip "packages for Debian 12 have to be built on Debian 12, not on ${codename:-another system}"
fi

# What runs in the machine: the programs, the units and the scripts of the packages, without their documents; the quick
# start, and the test itself.
what_runs() {
  local package
  for package in "$packages"/*/*.deb; do
    dpkg-deb --fsys-tarfile "$package" | tar --extract --to-stdout --exclude='./usr/share/*'
    dpkg-deb --ctrl-tarfile "$package" | tar --extract --to-stdout ./postinst ./prerm ./postrm
  done
  sed -n '/^## Quick start on four hosts/,/^## /p' README.md
  cat "$appliance"/*.sh "$appliance"/guest/* "$store/image"
}

say "packages of two revisions"
# The same contents are the same bytes at every commit.
export SOURCE_DATE_EPOCH=1700000000
packages=$store/packages
rm -rf "$packages"
for revision in 1 2; do
  PACKAGE_REVISION=$revision packaging/build.sh "$packages/$revision" >/dev/null
done
"$appliance/image.sh" root
for part in "${parts[@]}"; do
  case $part in
    packages) "$appliance/packages.sh" "$packages" ;;
    container) "$appliance/container.sh" "$packages" ;;
    vm)
      "$appliance/image.sh" disk
      passed=$store/passed-$(what_runs | sha256sum | cut -c 1-16)
      if [[ -n ${EVENTS:-} ]]; then
        "$appliance/boot.sh" "$packages"
      elif [[ -e $passed && -z $again ]]; then
        say "vm: passed before with the same contents"
      else
        rm -f "$store"/passed-*
        "$appliance/boot.sh" "$packages"
        touch "$passed"
      fi
      ;;
  esac
done
