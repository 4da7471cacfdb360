//! Whether this host has the addresses and routes that the settings suppose.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::Path;

use super::{Check, Finding};
use crate::config::CaptureSource;
use crate::config::{intercept, tcpcopy};
use crate::sys::route::source_toward;
use crate::wire::Mapping;

/// What is asked of a host; tests answer for one that does not exist.
pub(super) struct Host {
    /// The address this host would send from to reach that one: its own if the other is local.
    source_toward: fn(IpAddr) -> io::Result<IpAddr>,
    /// Whether this host forwards packets, of IPv4 if true and else of IPv6.
    forwards: fn(bool) -> bool,
    /// Whether it tells neighbours of shorter ways for IPv4 packets that it forwards.
    redirects: fn() -> bool,
    /// Ports that it may give to whoever connects somewhere, if any are among these.
    gives_out: fn(&RangeInclusive<u16>) -> Option<RangeInclusive<u16>>,
}

impl Host {
    /// The host this process runs on.
    pub(super) fn this() -> Self {
        Self { source_toward, forwards, redirects, gives_out }
    }

    /// Whether packets to `address` are delivered on this host, by an address or a local route.
    pub(super) fn is_local(&self, address: IpAddr) -> bool {
        address.is_loopback() || (self.source_toward)(address).is_ok_and(|source| source == address)
    }
}

fn forwards(ipv4: bool) -> bool {
    let path = if ipv4 { "/proc/sys/net/ipv4/ip_forward" } else { "/proc/sys/net/ipv6/conf/all/forwarding" };
    std::fs::read_to_string(path).is_ok_and(|text| text.trim() != "0")
}

/// An interface does if it says so, or if `all` does (`IN_DEV_TX_REDIRECTS`).
fn redirects() -> bool {
    let says = |path: &Path| std::fs::read_to_string(path).is_ok_and(|text| text.trim() != "0");
    let interfaces = std::fs::read_dir("/proc/sys/net/ipv4/conf").into_iter().flatten().flatten();
    interfaces
        .filter(|interface| interface.file_name() != "lo" && interface.file_name() != "default")
        .any(|interface| says(&interface.path().join("send_redirects")))
}

fn gives_out(ports: &RangeInclusive<u16>) -> Option<RangeInclusive<u16>> {
    let read = |name| std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default();
    unreserved(ports, &read("ip_local_port_range"), &read("ip_local_reserved_ports"))
}

/// The first and the last of `ports` that the kernel chooses from: those of its range that are not reserved. The
/// formats are those of `ip-sysctl.rst`; they hold for IPv6 too.
fn unreserved(ports: &RangeInclusive<u16>, range: &str, reserved: &str) -> Option<RangeInclusive<u16>> {
    let mut bounds = range.split_whitespace().filter_map(|bound| bound.parse::<u16>().ok());
    let (first, last) = (bounds.next()?, bounds.next()?);
    let reserved: Vec<RangeInclusive<u16>> = reserved
        .split(',')
        .filter_map(|part| {
            let (from, to) = part.trim().split_once('-').unwrap_or((part.trim(), part.trim()));
            Some(from.parse().ok()?..=to.parse().ok()?)
        })
        .collect();
    let may = |port: &u16| !reserved.iter().any(|range| range.contains(port));
    let mut both = (first.max(*ports.start())..=last.min(*ports.end())).filter(may);
    let lowest = both.next()?;
    Some(lowest..=both.next_back().unwrap_or(lowest))
}

/// What is wrong on the online host.
pub(super) fn online(host: &Host, settings: &tcpcopy::Settings) -> Vec<Finding> {
    let mut findings = Vec::new();
    for mapping in &settings.mappings {
        findings.extend(match mapping.online {
            Some(address) => online_address(host, address),
            None => any_address(host, settings.source, mapping),
        });
        findings.extend(target(host, mapping.target.ip(), settings.embedded.is_some()));
    }
    findings.extend(match &settings.embedded {
        Some(ports) => own(host, settings, ports),
        None => pools(host, settings),
    });
    findings.dedup();
    findings
}

/// Pools of addresses that no host may have.
fn pools(host: &Host, settings: &tcpcopy::Settings) -> Vec<Finding> {
    let peers =
        settings.mappings.iter().map(|mapping| mapping.target).chain(settings.intercepts.iter().copied());
    let own: Vec<_> = peers.filter_map(|peer| (host.source_toward)(peer.ip()).ok()).collect();
    let contains = |pool: &crate::wire::Prefix| {
        let address = own.iter().find(|address| pool.contains(**address))?;
        Some(Finding::error(
            Check::Pool,
            format!("the pool {pool} contains {address}, this host's own address"),
            "name a prefix that no host has: its addresses are routed to the assistant",
        ))
    };
    settings.pools.iter().filter_map(contains).collect()
}

/// This host's own addresses and ports that are replayed from.
///
/// A server that listens on one of the ports is no matter: only what a target sends there is taken. A client is one,
/// whose connection to the target would be.
fn own(host: &Host, settings: &tcpcopy::Settings, ports: &RangeInclusive<u16>) -> Vec<Finding> {
    let foreign = settings.pools.iter().map(crate::wire::Prefix::address);
    let foreign = foreign.filter(|address| !host.is_local(*address)).map(|address| {
        Finding::error(
            Check::Pool,
            format!("{address} in -c is not an address of this host, which --embedded replays from"),
            "correct -c, or leave it out for the address that the routing table chooses; `ip address` lists this host's",
        )
    });
    let taken = (host.gives_out)(ports).map(|given| {
        let (first, last) = (ports.start(), ports.end());
        Finding::error(
            Check::Ports,
            format!(
                "this host gives out ports {}-{} of the range {first}-{last} to its own connections",
                given.start(),
                given.end()
            ),
            format!(
                "reserve the range: sysctl -w net.ipv4.ip_local_reserved_ports={first}-{last} (adding what is reserved \
                 already), or set --ports outside net.ipv4.ip_local_port_range"
            ),
        )
    });
    foreign.chain(taken).collect()
}

fn online_address(host: &Host, address: IpAddr) -> Option<Finding> {
    if host.is_local(address) {
        return None;
    }
    if (host.forwards)(address.is_ipv4()) {
        return Some(Finding::warning(
            Check::OnlineAddress,
            format!("{address} in -x is not an address of this host"),
            "right if its packets are forwarded here, else correct -x; `ip address` lists this host's",
        ));
    }
    Some(Finding::error(
        Check::OnlineAddress,
        format!("{address} in -x is not an address of this host, and it forwards nothing"),
        "correct -x, or leave the address out for any local one; `ip address` lists this host's",
    ))
}

/// Packet sockets do not know which addresses are local.
fn any_address(host: &Host, source: CaptureSource, mapping: &Mapping) -> Option<Finding> {
    let forwarded = source == CaptureSource::Packet && (host.forwards)(mapping.target.is_ipv4());
    forwarded.then(|| {
        Finding::warning(
            Check::OnlineAddress,
            format!("'{mapping}' captures what this host forwards to port {}, too", mapping.port),
            "name the address in -x, or set capture.source = \"nfqueue\", which captures what is for this host only",
        )
    })
}

fn target(host: &Host, address: IpAddr, embedded: bool) -> Option<Finding> {
    // Embedded, the responses of software on this host are met like others.
    if host.is_local(address) && embedded {
        return None;
    }
    if host.is_local(address) {
        return Some(Finding::error(
            Check::Target,
            format!("the target {address} is this host itself"),
            "name the test server; its responses must not be delivered here",
        ));
    }
    // Being down is no reason not to start: sessions wait for the target, as for the network at boot.
    let error = (host.source_toward)(address).err()?;
    Some(Finding::warning(
        Check::Target,
        format!("no route to the target {address}: {error}"),
        "nothing can be replayed there until there is one; `ip route get` shows what the kernel thinks",
    ))
}

/// What is wrong on the assistant host.
pub(super) fn assistant(host: &Host, settings: &intercept::Settings) -> Vec<Finding> {
    let mut findings = Vec::new();
    let bind = settings.bind.filter(|address| !address.is_unspecified());
    if let Some(address) = bind.filter(|address| !host.is_local(*address)) {
        findings.push(Finding::error(
            Check::ListenAddress,
            format!("{address} in -b is not an address of this host"),
            "correct -b, or leave it out to listen on all; `ip address` lists this host's",
        ));
    }
    for target in &settings.targets {
        let address = target.ip();
        findings.extend(match (settings.on_target, host.is_local(address)) {
            (true, true) | (false, false) => None,
            (true, false) => Some(Finding::error(
                Check::Target,
                format!("the target {address} is not this host, which on-target = true says"),
                "name an address of this host, or turn on-target off and route the replayed clients here",
            )),
            (false, true) => Some(Finding::error(
                Check::Target,
                format!("the target {address} is this host itself, whose own packets the rules do not see"),
                "set --on-target (on-target = true), or run intercept on another host, to which the target routes \
                 the replayed clients",
            )),
        });
    }
    findings.extend(redirected(host, settings));
    findings.dedup();
    findings
}

/// Whether the target may be told of a way past this host. IPv6 has no setting for it.
fn redirected(host: &Host, settings: &intercept::Settings) -> Option<Finding> {
    let concerns = !settings.on_target && settings.targets.iter().any(SocketAddr::is_ipv4);
    if !concerns || !(host.forwards)(true) || !(host.redirects)() {
        return None;
    }
    Some(Finding::warning(
        Check::Redirects,
        "this host forwards and sends ICMP redirects: those about other packets of the target would lead its responses \
         past intercept",
        "set net.ipv4.conf.all.send_redirects=0 and the same for each interface and `default` with sysctl, or \
         net.ipv4.ip_forward=0",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Action;
    use crate::doctor::Severity;

    /// A host with 10.0.0.1 and fd00::1 and routes to 10.0.0.0/8 and fd00::/16 only.
    fn fake(address: IpAddr) -> io::Result<IpAddr> {
        match address {
            IpAddr::V4(v4) if v4.octets()[0] == 10 => Ok(IpAddr::from([10, 0, 0, 1])),
            IpAddr::V6(v6) if v6.segments()[0] == 0xfd00 => Ok("fd00::1".parse().expect("address")),
            IpAddr::V4(_) | IpAddr::V6(_) => Err(io::ErrorKind::NetworkUnreachable.into()),
        }
    }

    const STATIC: Host =
        Host { source_toward: fake, forwards: |_| false, redirects: || true, gives_out: |_| None };
    const ROUTER: Host = Host { forwards: |_| true, ..STATIC };
    const QUIET_ROUTER: Host = Host { redirects: || false, ..ROUTER };
    const GENEROUS: Host = Host { gives_out: |ports| Some(ports.clone()), ..STATIC };

    fn online_findings(host: &Host, options: &str) -> Vec<(Check, Severity)> {
        let arguments = format!("tcpcopy --config /dev/null --insecure {options}");
        let action = tcpcopy::Settings::load(arguments.split(' ').map(Into::into));
        let Ok(Action::Run(settings)) = action else { panic!("{options}: {action:?}") };
        online(host, &settings).into_iter().map(|finding| (finding.check, finding.severity)).collect()
    }

    fn assistant_findings(options: &str) -> Vec<(Check, Severity)> {
        assistant_findings_on(&STATIC, options)
    }

    fn assistant_findings_on(host: &Host, options: &str) -> Vec<(Check, Severity)> {
        let arguments = format!("intercept --config /dev/null --insecure {options}");
        let action = intercept::Settings::load(arguments.split(' ').map(Into::into));
        let Ok(Action::Run(settings)) = action else { panic!("{options}: {action:?}") };
        assistant(host, &settings).into_iter().map(|finding| (finding.check, finding.severity)).collect()
    }

    #[test]
    fn a_sound_deployment_has_no_findings() {
        assert_eq!(online_findings(&STATIC, "-x 80-10.0.0.9:80,[fd00::1]:80-[fd00::9]:80 -s 10.0.0.8"), []);
        assert_eq!(online_findings(&STATIC, "-x 10.0.0.1:80-10.0.0.9:80 -s 10.0.0.8 -c 10.99.0.x"), []);
        assert_eq!(assistant_findings("--target 10.0.0.9:80 -b 10.0.0.1"), []);
        assert_eq!(assistant_findings("--target 10.0.0.9:80 -b 127.0.0.1"), []);
    }

    #[test]
    fn an_online_address_elsewhere_is_right_on_a_router_only() {
        let options = "-x 10.0.0.2:80-10.0.0.9:80 -s 10.0.0.8";
        assert_eq!(online_findings(&STATIC, options), [(Check::OnlineAddress, Severity::Error)]);
        assert_eq!(online_findings(&ROUTER, options), [(Check::OnlineAddress, Severity::Warning)]);
    }

    #[test]
    fn packet_sockets_on_a_router_want_an_address() {
        let warned = [(Check::OnlineAddress, Severity::Warning)];
        let options = "-x 80-10.0.0.9:80 -s 10.0.0.8 --capture-source";
        assert_eq!(online_findings(&ROUTER, &format!("{options} packet")), warned);
        assert_eq!(online_findings(&ROUTER, &format!("{options} nfqueue")), []);
        assert_eq!(online_findings(&STATIC, &format!("{options} packet")), []);
        let named = "-x 10.0.0.1:80-10.0.0.9:80 -s 10.0.0.8 --capture-source packet";
        assert_eq!(online_findings(&ROUTER, named), []);
    }

    #[test]
    fn the_way_to_the_target_is_looked_at() {
        let options = |target: &str| format!("-x 81-{target}:80 -s 10.0.0.8");
        assert_eq!(online_findings(&STATIC, &options("192.0.2.1")), [(Check::Target, Severity::Warning)]);
        assert_eq!(online_findings(&STATIC, &options("10.0.0.1")), [(Check::Target, Severity::Error)]);
        assert_eq!(online_findings(&STATIC, &options("127.0.0.1")), [(Check::Target, Severity::Error)]);
    }

    #[test]
    fn the_pool_must_not_hold_this_host() {
        let options = "-x 80-10.1.0.9:80 -s 10.1.0.8 -c 10.0.0.x";
        assert_eq!(online_findings(&STATIC, options), [(Check::Pool, Severity::Error)]);
    }

    #[test]
    fn embedded_needs_own_addresses_and_ports_of_its_own() {
        let options = "-x 80-10.0.0.9:80 --embedded";
        assert_eq!(online_findings(&STATIC, options), []);
        assert_eq!(online_findings(&STATIC, "-x 80-10.0.0.1:8080 --embedded"), [], "on this host");
        assert_eq!(online_findings(&STATIC, &format!("{options} -c 10.0.0.1")), []);
        let foreign = online_findings(&STATIC, &format!("{options} -c 10.0.0.2"));
        assert_eq!(foreign, [(Check::Pool, Severity::Error)]);
        assert_eq!(online_findings(&GENEROUS, options), [(Check::Ports, Severity::Error)]);
    }

    #[test]
    fn ports_that_the_kernel_gives_out_are_found() {
        let given = |range, reserved| unreserved(&(20_000..=29_999), range, reserved);
        assert_eq!(given("32768\t60999\n", "\n"), None);
        assert_eq!(given("1024\t65535\n", ""), Some(20_000..=29_999));
        assert_eq!(given("1024\t65535\n", "8080,20000-29999\n"), None);
        assert_eq!(given("1024\t65535\n", "20000-24999,25001-29999"), Some(25_000..=25_000));
        assert_eq!(given("29000\t65535\n", "29500-30000"), Some(29_000..=29_499));
        assert_eq!(given("", ""), None, "nobody says");
    }

    #[test]
    fn the_assistant_is_another_host_with_the_address_it_listens_on() {
        assert_eq!(
            assistant_findings("--target 10.0.0.9:80 -b 10.0.0.7"),
            [(Check::ListenAddress, Severity::Error)]
        );
        assert_eq!(assistant_findings("--target 10.0.0.1:80"), [(Check::Target, Severity::Error)]);
    }

    #[test]
    fn a_router_that_redirects_is_warned_of() {
        let found = |host, options| assistant_findings_on(host, options);
        let redirects = [(Check::Redirects, Severity::Warning)];
        assert_eq!(found(&ROUTER, "--target 10.0.0.9:80"), redirects);
        assert_eq!(found(&QUIET_ROUTER, "--target 10.0.0.9:80"), []);
        assert_eq!(found(&ROUTER, "--target [fd00::9]:80"), []);
        assert_eq!(found(&ROUTER, "--target 10.0.0.1:80 --on-target"), []);
    }

    #[test]
    fn on_the_target_the_target_is_this_host() {
        assert_eq!(assistant_findings("--target 10.0.0.1:80 --on-target"), []);
        assert_eq!(
            assistant_findings("--target 10.0.0.9:80 --on-target"),
            [(Check::Target, Severity::Error)]
        );
    }

    #[test]
    fn this_host_has_its_loopback_addresses_and_not_a_documentation_one() {
        assert!(Host::this().is_local(IpAddr::from([127, 0, 0, 1])));
        assert!(Host::this().is_local(IpAddr::from([127, 9, 9, 9])));
        assert!(!Host::this().is_local(IpAddr::from([192, 0, 2, 77])));
    }
}
