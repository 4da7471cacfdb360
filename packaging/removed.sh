# shellcheck shell=sh
# What the packages say when they are removed: the host stays closed, and how to open it without our programs.
# Part of the scripts of both formats.
say_how_to_open() {
    tables=$({ ip rule; ip -6 rule; } 2>/dev/null | grep -oE '19526[4-9][0-9]{4}|19527[01][0-9]{4}' | sort -u)
    chains=$(nft list chains 2>/dev/null | awk '$1 == "table" { t = $2 " " $3 } $1 == "chain" && $2 == "blackhole" { print t }')
    if [ -z "$tables$chains" ]; then
        return
    fi
    echo "intercept is removed, and this host stays closed until it is rebooted: what the targets send is dropped here."
    echo "To open it now: first delete, on each target, the route for replayed clients that leads here. Then run here:"
    echo "$chains" | sed -n 's/^..*/  nft delete table &/p'
    for table in $tables; do
        echo "  while ip rule del table $table 2>/dev/null; do :; done"
        echo "  while ip -6 rule del table $table 2>/dev/null; do :; done"
    done
    ip -o link 2>/dev/null | sed -n 's/^[0-9]*: \(intercept-[0-9a-f]*\)[:@].*/  ip link del \1/p'
}
say_how_to_open
