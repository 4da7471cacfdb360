#!/usr/bin/env bash
# Builds the packages tcpcopy (online host) and tcpcopy-intercept (assistant), as .deb and as .rpm.
#
#   packaging/build.sh [OUTDIR]        default: target/packages
#
# The same source gives the same bytes, in whatever directory. The packages fit the distribution they are built on:
# its libraries and its systemd. From the environment:
#   PACKAGE_REVISION   what stands after the version; default 1
#   SYSTEMD_VERSION    the oldest systemd they shall run on; default this machine's
#   SOURCE_DATE_EPOCH  the date in everything; default the last commit's, else CHANGELOG.md's
#   FORMATS            default "deb rpm"
#   BUILD_DIRECTORY    where cargo builds; default target/package-build
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=$(realpath -m "${1:-$root/target/packages}")
build=$(realpath -m "${BUILD_DIRECTORY:-$root/target/package-build}")
cd "$root"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
revision=${PACKAGE_REVISION:-1}
systemd=${SYSTEMD_VERSION:-$(systemctl --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p')}
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)}
export SOURCE_DATE_EPOCH=$epoch TZ=UTC LC_ALL=C.UTF-8
maintainer="tcpcopy developers <tcpcopy@noreply.invalid>"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
umask 022

main() {
  binaries
  mkdir -p "$out"
  package tcpcopy tcpcopy
  package tcpcopy-intercept intercept
  (cd "$out" && ls -l -- *"$version-$revision"*)
}

# One package in all formats: from one tree, which holds what is to be installed.
package() {
  local name=$1 program=$2 tree=$work/$1 format
  describe "$program"
  stage "$name" "$program" "$tree"
  for format in ${FORMATS:-deb rpm}; do
    "$format" "$name" "$program" "$tree"
  done
}

# Paths of this machine end in no binary, and what they are made of is locked.
binaries() {
  local cargo_home=${CARGO_HOME:-$HOME/.cargo} toolchain
  toolchain=$(rustc --print sysroot)
  # Beside the flags of .cargo/config.toml, which RUSTFLAGS would be in place of.
  local flags="'--remap-path-prefix=$root=.', '--remap-path-prefix=$cargo_home=cargo', '--remap-path-prefix=$toolchain=rust'"
  cargo build --config "build.rustflags = [$flags]" --quiet --release --locked --target-dir "$build" \
    --package tcpcopy --package tcpcopy-completions
  "$build/release/completions" "$work/completions"
}

# What differs between the two packages and no file says.
describe() {
  case $1 in
    tcpcopy)
      summary="replay of live TCP sessions on a test server"
      description="tcpcopy runs on a production server. It receives duplicates of the packets
that clients send, which netfilter makes, keeps one replayed session for each
client connection, and sends each session's requests to a test server.
Production is not in the path. The test server's responses go to another host,
which runs tcpcopy-intercept."
      other=intercept
      services="tcpcopy.service 'tcpcopy@*.service'"
      units=$services
      enabled="tcpcopy.service"
      removed=/dev/null
      installed=/dev/null
      ;;
    intercept)
      summary="black hole for responses to replayed TCP sessions"
      description="intercept runs on a host to which a test server routes its responses to
replayed clients. It tells tcpcopy, on the production server, of each response
and drops it, so that none ever reaches a real client. Its rules are closed
from boot on, whether it runs or not."
      other=tcpcopy
      services="intercept.service 'intercept@*.service'"
      units="intercept.service 'intercept@*.service' intercept.socket intercept-port.service intercept-rules.service 'intercept-rules@*.service'"
      enabled="intercept.service intercept.socket intercept-rules.service"
      removed=packaging/removed.sh
      installed=packaging/installed.sh
      ;;
  esac
}

# The tree that both formats hold.
stage() {
  local name=$1 program=$2 tree=$3 doc=$3/usr/share/doc/$1 unit
  install -D -m 755 "$build/release/$program" "$tree/usr/sbin/$program"
  strip --strip-unneeded --remove-section=.comment "$tree/usr/sbin/$program"
  install -D -m 644 "packaging/$program.toml" "$tree/etc/tcpcopy/$program.toml"
  install -d -m 755 "$tree/etc/tcpcopy/$program.toml.d"
  install -d -m 700 "$tree/etc/tcpcopy/keys"
  install -D -m 644 systemd/tcpcopy.sysusers "$tree/usr/lib/sysusers.d/$name.conf"
  for unit in "systemd/$program"*.service.in; do
    unit "$unit" "$tree/usr/lib/systemd/system/$(basename "$unit" .in)"
  done
  for unit in systemd/"$program"*.socket; do
    [[ ! -e $unit ]] || install -D -m 644 "$unit" "$tree/usr/lib/systemd/system/$(basename "$unit")"
  done
  instances "$program" "$tree/usr/lib/systemd/system"
  preset "$tree/usr/lib/systemd/system-preset/50-$name.preset" "$tree/usr/lib/systemd/system"
  manual "$program" "$tree/usr/share/man"
  install -D -m 644 "$work/completions/$program.bash" "$tree/usr/share/bash-completion/completions/$program"
  install -D -m 644 "$work/completions/_$program" "$tree/usr/share/zsh/vendor-completions/_$program"
  install -D -m 644 "$work/completions/$program.fish" "$tree/usr/share/fish/vendor_completions.d/$program.fish"
  install -D -m 644 README.md "$doc/README.md"
  install -D -m 644 CHANGELOG.md "$doc/changelog"
  install -D -m 644 packaging/copyright "$doc/copyright"
  install -d "$doc/nftables"
  templates "$program" "$doc/nftables"
}

# A unit: what is common to all put in, and what this systemd does not know replaced or left out. It would not start a
# unit of a type that it does not know.
unit() {
  local older=()
  if ((systemd < 253)); then
    # shellcheck disable=SC2016  # $MAINPID is systemd's.
    older+=(-e 's|^Type=notify-reload$|Type=notify\nExecReload=/bin/kill -HUP $MAINPID|')
  fi
  if ((systemd < 254)); then
    older+=(-e '/^RestartSteps=/d' -e '/^RestartMaxDelaySec=/d')
  fi
  install -D -m 644 /dev/null "$2"
  sed -e '/^@service@$/{r systemd/service.conf' -e 'd}' -e '/^@sandbox@$/{r systemd/sandbox.conf' -e 'd}' "$1" |
    sed "${older[@]}" -e '' >"$2"
}

# PROGRAM@NAME: another one, with a configuration of that name. intercept's has a file system, rules at boot, and a port
# of its own, for which there is no socket unit.
instances() {
  local unit
  for unit in "$1" "$1-rules"; do
    [[ -e $2/$unit.service ]] || continue
    sed -e 's|^Description=.*|& (%i)|' -e 's|^ExecStart=.*|& --config /etc/tcpcopy/%i.toml|' \
      -e 's|^ExecReload=/usr/sbin/.*|& --config /etc/tcpcopy/%i.toml|' -e 's|intercept-rules\.service|intercept-rules@%i.service|g' \
      -e 's|^RuntimeDirectory=intercept$|RuntimeDirectory=intercept-%i|' -e 's|^RootDirectory=%t/intercept$|RootDirectory=%t/intercept-%i|' \
      -e '/^# The port of the tunnel, held/d' -e '/^Sockets=/d' -e 's| intercept\.socket$||' \
      "$2/$unit.service" >"$2/$unit@.service"
  done
}

# An image's first boot enables what no preset speaks of, on some distributions.
preset() {
  install -D -m 644 /dev/null "$1"
  (cd "$2" && printf 'disable %s\n' -- *.service *.socket | grep -v -- '--$') >"$1"
}

manual() {
  local page
  for page in "man/$1".*; do
    install -D -m 644 "$page" "$2/man${page##*.}/$(basename "$page")"
  done
  # The page about both hosts is in both packages; a file can be in one only.
  install -D -m 644 /dev/null "$2/man7/$1-deployment.7"
  sed -e "s/tcpcopy-deployment/$1-deployment/" -e "s/TCPCOPY-DEPLOYMENT/${1^^}-DEPLOYMENT/" \
    man/tcpcopy-deployment.7 >"$2/man7/$1-deployment.7"
  gzip -9n "$2"/man*/*
}

templates() {
  local template
  for template in nftables/*.nft; do
    install -m 644 "$template" "$2/"
  done
}

deb() {
  local name=$1 program=$2 tree=$work/deb-$1 script
  cp -a "$3" "$tree"
  local doc=$tree/usr/share/doc/$name
  gzip -9n "$doc/changelog"
  printf '%s (%s-%s) unstable; urgency=medium\n\n  * The changes are in changelog.gz.\n\n -- %s  %s\n' \
    "$name" "$version" "$revision" "$maintainer" "$(date -R -d "@$epoch")" | gzip -9n >"$doc/changelog.Debian.gz"
  install -D -m 644 "packaging/deb/$name.lintian-overrides" "$tree/usr/share/lintian/overrides/$name"
  mkdir "$tree/DEBIAN"
  for script in postinst prerm postrm; do
    fill "packaging/deb/$script.in" "$name" "$program" >"$tree/DEBIAN/$script"
    chmod 755 "$tree/DEBIAN/$script"
  done
  echo "/etc/tcpcopy/$program.toml" >"$tree/DEBIAN/conffiles"
  (cd "$tree" && find usr -type f -print0 | sort -z | xargs -0 md5sum >DEBIAN/md5sums)
  control "$name" "$tree/usr/sbin/$program" "$(du -k -s --apparent-size "$3" | cut -f 1)" >"$tree/DEBIAN/control"
  date_all "$tree"
  dpkg-deb --root-owner-group -Zxz --build "$tree" "$out" >/dev/null
}

control() {
  local libraries
  mkdir -p "$work/shlibdeps/debian"
  : >"$work/shlibdeps/debian/control"
  libraries=$(cd "$work/shlibdeps" && dpkg-shlibdeps -O "$2" | sed -n 's/^shlibs:Depends=//p')
  cat <<END
Package: $1
Version: $version-$revision
Architecture: $(dpkg --print-architecture)
Maintainer: $maintainer
Installed-Size: $3
Depends: $libraries, systemd
Recommends: nftables
Section: net
Priority: optional
Description: $summary
 ${description//$'\n'/$'\n' }
END
}

rpm() {
  local name=$1 program=$2 tree=$work/rpm-$1
  cp -a "$3" "$tree"
  mkdir -p "$tree/usr/share/zsh/site-functions"
  mv "$tree/usr/share/zsh/vendor-completions"/* "$tree/usr/share/zsh/site-functions/"
  rmdir "$tree/usr/share/zsh/vendor-completions"
  install -D -m 644 LICENSE "$tree/usr/share/licenses/$name/LICENSE"
  rm "$tree/usr/share/doc/$name/copyright"
  date_all "$tree"
  fill packaging/rpm/package.spec.in "$name" "$program" >"$work/$name.spec"
  printf '\n%%changelog\n* %s %s - %s-%s\n- The changes are in /usr/share/doc/%s/changelog.\n' \
    "$(date -d "@$epoch" '+%a %b %d %Y')" "$maintainer" "$version" "$revision" "$name" >>"$work/$name.spec"
  rpmbuild --quiet -bb "$work/$name.spec" \
    --define "_topdir $work/rpmbuild" --define "_rpmdir $out" --define "_rpmfilename %{name}-%{version}-%{release}.%{arch}.rpm" \
    --define "tree $tree"
}

# A template with this package's names and texts.
fill() {
  local text
  text=$(<"$1")
  text=${text//@package@/"$2"}
  text=${text//@program@/"$3"}
  text=${text//@other@/"$other"}
  text=${text//@version@/"$version"}
  text=${text//@revision@/"$revision"}
  text=${text//@summary@/"${summary^}"}
  text=${text//@description@/"$description"}
  text=${text//@services@/"$services"}
  text=${text//@units@/"$units"}
  text=${text//@enabled@/"$enabled"}
  text=${text//$'\n'@removed@/$'\n'"$(grep -v '^#' "$removed" || true)"}
  text=${text//$'\n'@installed@/$'\n'"$(grep -v '^#' "$installed" || true)"}
  echo "$text"
}

date_all() {
  find "$1" -exec touch -h -d "@$epoch" {} +
}

main
