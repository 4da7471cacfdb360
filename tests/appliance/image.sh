#!/usr/bin/env bash
# Makes the Debian root that packages are installed in (root), and of it the virtual machine's disk (disk).
#
#   tests/appliance/image.sh root|disk
#
# Ends with 75 if what it takes cannot be fetched.
# Both are made anew when this script or the kernel has changed. Debian's servers are the ones that this machine uses. From
# the environment: KERNEL, the release that the kernel is of; default bookworm, as the root.
# shellcheck source=tests/appliance/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

suite=bookworm
included=(
  systemd systemd-sysv systemd-container dbus udev kmod libnss-myhostname nftables iproute2 procps iputils-ping
  util-linux python3 nginx-light
)

kernel_of=${KERNEL:-$suite}

make_root() {
  if [[ -e $tar ]]; then
    return
  fi
  say "root: Debian $suite, pristine"
  rm -rf "$store"/root-*.tar
  local sources=() list
  for list in /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources; do
    [[ ! -s $list ]] || sources+=("$list")
  done
  # shellcheck disable=SC2016  # $1 is the hook's.
  mmdebstrap --quiet --mode=root --variant=minbase --include="$(IFS=,; echo "${included[*]}")" \
    --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Languages "none"' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook='chroot "$1" passwd --quiet --delete root' \
    --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/etc/apt/sources.list* "$1"/etc/resolv.conf' \
    --customize-hook='echo pristine >"$1/etc/hostname"; : >"$1/etc/machine-id"; : >"$1/etc/fstab"' \
    --customize-hook='rm -f "$1/etc/systemd/system/multi-user.target.wants/nginx.service"' \
    "$suite" "$store/part.tar" "${sources[@]}" || skip "Debian's packages cannot be fetched"
  mv "$store/part.tar" "$tar"
}

# apt-get or apt-cache, with the lists of the kernel's release.
apt() {
  local program=$1 state=$store/apt-$kernel_of
  shift
  if [[ $kernel_of == "$suite" ]]; then
    "$program" "$@"
    return
  fi
  mkdir -p "$state"/{lists,archives}/partial
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $kernel_of main" \
    >"$state/sources.list"
  "$program" -o "Dir::Etc::SourceList=$state/sources.list" -o Dir::Etc::SourceParts=- -o "Dir::State::Lists=$state/lists" \
    -o "Dir::Cache=$state" "$@"
}

newest_kernel() {
  apt apt-cache depends linux-image-amd64 2>/dev/null | awk '/Depends: linux-image-/ { print $2; exit }' || true
}

# Debian's kernel, unpacked; its version is the answer.
unpack_kernel() {
  local package
  package=$(newest_kernel)
  if [[ -z $package ]]; then
    apt apt-get update -qq || skip "Debian's lists of packages cannot be fetched"
    package=$(newest_kernel)
  fi
  if [[ -z $package ]]; then
    skip "there is no package linux-image-amd64"
  fi
  if [[ ! -d $store/kernel/$package ]]; then
    say "kernel: $package" >&2
    rm -rf "$store/kernel"
    mkdir -p "$store/kernel"
    (cd "$store/kernel" && apt apt-get download -qq "$package" >/dev/null) || skip "the kernel cannot be fetched"
    dpkg-deb -x "$store/kernel/$package"_*.deb "$store/kernel/$package.part"
    rm "$store/kernel/$package"_*.deb
    # Later releases have their modules below usr.
    [[ -e $store/kernel/$package.part/lib ]] || ln -s usr/lib "$store/kernel/$package.part/lib"
    depmod -b "$store/kernel/$package.part" "${package#linux-image-}"
    mv "$store/kernel/$package.part" "$store/kernel/$package"
  fi
  echo "${package#linux-image-}"
}

make_disk() {
  local version kernel work
  version=$(unpack_kernel)
  kernel=$store/kernel/linux-image-$version
  if [[ $(cat "$store/image" 2>/dev/null) == "$made $version" && -e $store/disk.ext4 ]]; then
    return
  fi
  say "disk: with Linux $version"
  rm -f "$store/image"
  cp "$kernel/boot/vmlinuz-$version" "$store/vmlinuz"
  work=$(mktemp -d "$store/image.XXXXXX")
  initial_disk "$kernel" "$version" "$work/initrd"
  mkdir "$work/root"
  tar -C "$work/root" --numeric-owner --xattrs -xf "$tar"
  mkdir -p "$work/root/usr/lib/modules"
  cp -a "$kernel/lib/modules/$version" "$work/root/usr/lib/modules/"
  # No hardware of these kinds is in the machine.
  (cd "$work/root/usr/lib/modules/$version/kernel" && rm -rf sound drivers/{gpu,media,infiniband,staging,iio,input,hid,usb,scsi,ata,mtd,video} drivers/net/{wireless,ethernet,can,wwan,usb})
  depmod -b "$work/root" "$version"
  machine "$work/root"
  truncate -s 2G "$store/disk.ext4"
  mke2fs -q -F -t ext4 -O ^has_journal -E lazy_itable_init=1 -d "$work/root" "$store/disk.ext4"
  rm -rf "$work"
  echo "$made $version" >"$store/image"
}

# What finds the disk and goes on there.
initial_disk() {
  local kernel=$1 version=$2 tree=$3 module file
  mkdir -p "$tree"/{bin,dev,proc,sys,disk,modules}
  cp /bin/busybox "$tree/bin/"
  ln -s busybox "$tree/bin/sh"
  for module in virtio_pci virtio_blk ext4 crc32c_generic; do
    modprobe -d "$kernel" -S "$version" --show-depends --ignore-install "$module" 2>/dev/null || true
  done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r file; do
    cp "$file" "$tree/modules/"
    basename "$file" >>"$tree/modules/order"
  done
  cp "$appliance/guest/init" "$tree/init"
  (cd "$tree" && find . | cpio --quiet --create --format=newc --owner=0:0) >"$store/initrd"
}

# What makes of a Debian root this machine: it runs what is on the second disk, and no timers.
machine() {
  local unit
  install -m 755 "$appliance/guest/payload" "$1/usr/local/sbin/payload"
  install -m 644 "$appliance/guest/payload.service" "$1/etc/systemd/system/"
  ln -s ../payload.service "$1/etc/systemd/system/multi-user.target.wants/payload.service"
  ln -sf /lib/systemd/system/multi-user.target "$1/etc/systemd/system/default.target"
  echo '/dev/vda / ext4 rw,relatime 0 0' >"$1/etc/fstab"
  for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer \
    systemd-timesyncd.service; do
    ln -sf /dev/null "$1/etc/systemd/system/$unit"
  done
}

# What they are made of names them.
made=$({ declare -f make_root && echo "$suite ${included[*]}"; } | sha256sum | cut -c 1-16)
tar=$store/root-$made.tar
made=$made-$({ declare -f && cat "$appliance"/guest/{init,payload,payload.service}; } | sha256sum | cut -c 1-16)
case ${1:-} in
  root) make_root ;;
  disk)
    make_root
    make_disk
    ;;
  *)
    echo "usage: tests/appliance/image.sh root|disk" >&2
    exit 64
    ;;
esac
