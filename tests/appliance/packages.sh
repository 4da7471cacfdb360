#!/usr/bin/env bash
# Looks at the packages, and has them installed, upgraded, removed and purged in a pristine root.
#
#   tests/appliance/packages.sh PACKAGES
#
# PACKAGES/1 and PACKAGES/2 hold the packages of two revisions.
# shellcheck source=tests/appliance/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if [[ ${2:-} != inside ]]; then
  exec unshare --mount --net --propagation private "$0" "$1" inside
fi
must_be_private
packages=$1
tree=$store/tree
names=(tcpcopy tcpcopy-intercept)

# All that the packages could leave, but for what apt and systemd-sysusers keep.
listing() {
  (cd "$tree" && find etc usr var -xdev \( -path var/lib/dpkg -o -path var/log -o -path var/cache -o -path var/lib/apt \
    -o -path var/lib/systemd -o -path var/lib/rpm \) -prune -o -printf '%p %m\n' |
    grep -vE '^etc/(passwd|group|shadow|gshadow)-? |^etc/\.pwd\.lock |^etc ' | sort)
}

expect_same() {
  if ! diff "$store/before" <(listing); then
    echo "$1 leaves something behind" >&2
    exit 1
  fi
}

fresh() {
  mount -t tmpfs -o size=1g tree "$tree"
  tar -C "$tree" --numeric-owner --xattrs -xf "$store"/root-*.tar
  mkdir -p "$tree/etc/apt/sources.list.d"
  : >"$tree/etc/apt/sources.list"
  listing >"$store/before"
}

chrooted() {
  chroot "$tree" /usr/bin/env PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive "$@"
}

lint() {
  # As another user it would not be allowed to read this machine's own folders.
  lintian --allow-root --pedantic --display-info --fail-on error,warning,info,pedantic "$packages"/1/*.deb
  rpmlint --strict --config packaging/rpm/rpmlint.toml "$packages"/1/*.rpm
  for unit in tcpcopy 'tcpcopy@' intercept 'intercept@' intercept-rules 'intercept-rules@' intercept-port; do
    systemd-analyze security --offline=true --no-pager --threshold=15 "$(find "$tree" -name "$unit.service" -path '*lib/systemd/system/*')" |
      tail -n 1
  done
}

# The same tree twice: what time and order could change is nowhere in it.
reproduce() {
  PACKAGE_REVISION=1 packaging/build.sh "$store/again" >/dev/null
  local file
  for file in "$packages"/1/*; do
    cmp "$file" "$store/again/$(basename "$file")"
  done
  rm -r "$store/again"
}

debs() {
  local name
  fresh
  mkdir "$tree/root/1" "$tree/root/2"
  mount --bind "$packages/1" "$tree/root/1"
  mount --bind "$packages/2" "$tree/root/2"
  chrooted sh -c "apt-get install --quiet=2 --yes /root/1/*.deb" >/dev/null
  chrooted tcpcopy --check-config --map 80-10.91.2.2:80 --intercept ::1 >/dev/null
  chrooted intercept --check-config --target 10.91.2.2:80 --bind ::1 >/dev/null
  for unit in tcpcopy intercept intercept-rules intercept.socket; do
    [[ $(chrooted systemctl is-enabled "$unit") == disabled ]]
  done
  [[ $(stat -c '%a %U' "$tree/etc/tcpcopy/keys") == "700 root" ]]
  echo "percent = 7" >>"$tree/etc/tcpcopy/tcpcopy.toml"
  echo key >"$tree/etc/tcpcopy/keys/one"
  lint
  chrooted sh -c "apt-get install --quiet=2 --yes /root/2/*.deb" >/dev/null
  for name in "${names[@]}"; do
    [[ $(chrooted dpkg-query --show --showformat="\${Version}" "$name") == *-2 ]]
  done
  [[ $(tail -n 1 "$tree/etc/tcpcopy/tcpcopy.toml") == "percent = 7" ]]
  chrooted apt-get remove --quiet=2 --yes "${names[@]}" >/dev/null
  [[ ! -e $tree/usr/sbin/tcpcopy && -e $tree/etc/tcpcopy/keys/one ]]
  chrooted apt-get purge --quiet=2 --yes "${names[@]}" >/dev/null
  umount "$tree/root/1" "$tree/root/2"
  rmdir "$tree/root/1" "$tree/root/2"
  expect_same "purging the .deb packages"
  umount "$tree"
}

# A package that has what this root's libraries have, by the names that RPM systems give it, and nothing in it.
stand_in() {
  local spec=$store/stand-in.spec library
  printf '%s\n' 'Name: stand-in' 'Version: 1' 'Release: 1' 'Summary: Stand-in' 'License: none' 'Provides: systemd' \
    'Provides: /bin/sh' 'Provides: rtld(GNU_HASH)' >"$spec"
  for library in "$tree"/lib/*/{libc.so.6,libgcc_s.so.1,libmnl.so.0,libnftnl.so.11,ld-linux-*.so.2}; do
    realpath "$library"
  done | /usr/lib/rpm/elfdeps --provides | sort --unique | sed 's/^/Provides: /' >>"$spec"
  printf '%s\n' '%description' 'Stand-in.' '%files' >>"$spec"
  rpmbuild --quiet -bb "$spec" --define "_topdir $store/stand-in" --define "_rpmdir $store" --define '_rpmfilename stand-in.rpm'
  rpm --root "$tree" --install "$store/stand-in.rpm"
}

rpms() {
  fresh
  # Directories that RPM systems have.
  mkdir -p "$tree"/usr/share/{licenses,fish/vendor_completions.d,zsh/site-functions}
  listing >"$store/before"
  if rpm --root "$tree" --install --test "$packages"/1/*.rpm 2>/dev/null; then
    echo "the .rpm packages depend on nothing" >&2
    exit 1
  fi
  stand_in
  rpm --root "$tree" --install "$packages"/1/*.rpm
  rpm --root "$tree" --verify "${names[@]}"
  echo "percent = 7" >>"$tree/etc/tcpcopy/tcpcopy.toml"
  rpm --root "$tree" --upgrade "$packages"/2/*.rpm
  [[ $(tail -n 1 "$tree/etc/tcpcopy/tcpcopy.toml") == "percent = 7" ]]
  rpm --root "$tree" --erase "${names[@]}" stand-in
  rm -f "$tree/etc/tcpcopy/tcpcopy.toml.rpmsave"
  rmdir --ignore-fail-on-non-empty "$tree/etc/tcpcopy" 2>/dev/null || true
  expect_same "erasing the .rpm packages"
  umount "$tree"
}

mkdir -p "$tree"
say "packages: .deb in a pristine root"
debs
say "packages: .rpm in a pristine root"
rpms
say "packages: built again, the same bytes"
reproduce
