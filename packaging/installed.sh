# shellcheck shell=sh
# What the packages say when they are installed or upgraded. Part of the scripts of both formats.
cat <<'END'
intercept is closed by default: on an assistant, all that a target sends and that is not for this host itself is dropped,
whatever its protocol and port, from the start of intercept on. If this host also routes other traffic of a target, list
it in `pass`, or set unclaimed = "accept", in /etc/tcpcopy/intercept.toml; see intercept(8).
END
