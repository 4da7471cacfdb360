//! Both programs' configuration from the outside: layers, messages, rules.

use std::io::Write;
use std::time::Duration;

use super::*;
use crate::config::common::processors;
use crate::config::key::Kind;
use crate::config::units::{Size, Span};
use crate::config::value::FromText;
use crate::session::{GateMode, Latency, MidStream};
use crate::wire::{Mapping, Prefix};

/// A command line, an environment and perhaps a file.
#[derive(Default)]
pub(super) struct Setting<'a> {
    pub(super) options: &'a str,
    pub(super) environment: &'a [(&'a str, &'a str)],
    pub(super) file: Option<&'a str>,
}

impl Setting<'_> {
    fn surroundings<'p>(&self, path: &'p Path) -> Surroundings<'p> {
        if let Some(text) = self.file {
            std::fs::File::create(path)
                .and_then(|mut file| file.write_all(text.as_bytes()))
                .expect("temporary file");
        }
        let own = |(name, text): &(&str, &str)| ((*name).to_owned(), (*text).to_owned());
        Surroundings { environment: self.environment.iter().map(own).collect(), default_file: path }
    }

    fn arguments(&self, program: &str) -> Vec<OsString> {
        std::iter::once(program).chain(self.options.split_whitespace()).map(OsString::from).collect()
    }

    fn tcpcopy(&self) -> Result<Action<tcpcopy::Settings>, ConfigError> {
        self.load(&tcpcopy::PROGRAM, tcpcopy::Settings::settle)
    }

    pub(super) fn intercept(&self) -> Result<Action<intercept::Settings>, ConfigError> {
        self.load(&intercept::PROGRAM, intercept::Settings::settle)
    }

    fn load<R: DeserializeOwned, S>(
        &self,
        program: &'static Program,
        settle: impl FnOnce(&Layers, R) -> Result<S, ConfigError>,
    ) -> Result<Action<S>, ConfigError> {
        let path = temporary();
        let action = load(program, self.arguments(program.name), self.surroundings(&path), settle);
        let _ = std::fs::remove_file(&path);
        action
    }
}

/// A path that no other test uses.
fn temporary() -> PathBuf {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("tcpcopy-config-{}-{}.toml", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    std::env::temp_dir().join(name)
}

fn tcpcopy_settings(options: &str) -> tcpcopy::Settings {
    match (Setting { options, ..Setting::default() }).tcpcopy() {
        Ok(Action::Run(settings)) => settings,
        other => panic!("{options}: {other:?}"),
    }
}

fn tcpcopy_error(options: &str) -> String {
    let error = Setting { options, ..Setting::default() }.tcpcopy().expect_err(options);
    assert!(error.is_usage(), "{options}: {error}");
    error.to_string()
}

pub(super) fn intercept_error(options: &str) -> String {
    let error = Setting { options, ..Setting::default() }.intercept().expect_err(options);
    assert!(error.is_usage(), "{options}: {error}");
    error.to_string()
}

#[test]
fn the_c_users_command_line_is_understood() {
    let settings = tcpcopy_settings("-x 80-10.0.0.9:8080 -s 10.0.0.8 -c 10.99.0.x -n 3 -r 50 --insecure");

    assert_eq!(settings.mappings, [Mapping::from_text("80-10.0.0.9:8080").expect("mapping")]);
    assert_eq!(settings.intercepts, ["10.0.0.8:36524".parse().expect("address")]);
    assert_eq!(settings.pools, ["10.99.0.0/24".parse().expect("prefix")]);
    assert_eq!((settings.copies, settings.percent), (3, 50));
    assert!(settings.insecure);
}

#[test]
fn defaults_are_the_documented_ones() {
    let settings = tcpcopy_settings("-x 80-10.0.0.9:80 -s 127.0.0.1");

    assert_eq!((settings.copies, settings.percent, settings.insecure), (1, 100, false));
    assert_eq!((settings.pure_acks, settings.handshake_acks), (false, true));
    assert_eq!((settings.queue, settings.mark, settings.mtu), (36520, 0x7463_7079, 1500));
    assert_eq!(
        (settings.gate, settings.latency, settings.mid_stream),
        (GateMode::Response, Latency::Client, MidStream::Join)
    );
    assert_eq!((settings.sink.as_str(), settings.table.as_str()), ("tcpcopy0", "tcpcopy"));
    assert_eq!(settings.response_timeout, Duration::from_secs(30));
    assert_eq!(settings.memory_limit, 512 << 20);
    assert!(settings.workers >= 1 && u64::from(settings.workers) <= processors());
    assert_eq!(settings.log, LogSettings { program: "tcpcopy", level: LogLevel::Info });
    assert_eq!(settings.warnings, Vec::<String>::new());
}

#[test]
fn mappings_of_every_form_are_read() {
    let settings = tcpcopy_settings(
        "-x 80-10.91.2.2:80,10.0.0.1:81-10.91.2.2:8080 -x 80-[fd00::2]:80 --map [::1]:82-[fd00::2]:80 -s 127.0.0.1,[::1],[::1]:9",
    );

    let written: Vec<_> = settings.mappings.iter().map(ToString::to_string).collect();
    assert_eq!(
        written,
        ["80-10.91.2.2:80", "10.0.0.1:81-10.91.2.2:8080", "80-[fd00::2]:80", "[::1]:82-[fd00::2]:80"]
    );
    let intercepts: Vec<_> = settings.intercepts.iter().map(ToString::to_string).collect();
    assert_eq!(intercepts, ["127.0.0.1:36524", "[::1]:36524", "[::1]:9"]);
}

#[test]
fn what_cannot_be_is_refused_in_one_line() {
    for (options, fragment) in [
        ("-s 127.0.0.1", "nothing to replay"),
        ("-x 80-10.0.0.9:80", "say where intercept runs"),
        ("-s 127.0.0.1 -x 8080", "\"8080\" names no target"),
        ("-s 127.0.0.1 -x 80-8080", "has no target address"),
        ("-s 127.0.0.1 -x 80-10.0.0.9", "has no target port"),
        ("-s 127.0.0.1 -x 80-web:80", "expected ONLINE-TARGET"),
        ("-s 127.0.0.1 -x 0-10.0.0.9:80", "port 0"),
        ("-s 127.0.0.1 -x 80-10.0.0.9:0", "port 0"),
        ("-s 127.0.0.1 -x 80-0.0.0.0:80", "not the address of one host"),
        ("-s 127.0.0.1 -x 80-224.0.0.1:80", "not the address of one host"),
        ("-s 127.0.0.1 -x 10.0.0.1:80-[fd00::2]:80", "mixes IPv4 and IPv6"),
        ("-s 127.0.0.1 -x 80-10.0.0.9:80@00:11:22:33:44:55", "MAC address"),
        ("-s 127.0.0.1 -x 80-10.0.0.9:80,80-10.0.0.7:80", "capture the same connections"),
        ("-s 127.0.0.1 -x 80-10.0.0.9:80,10.0.0.1:80-10.0.0.7:80", "capture the same connections"),
        ("-s 127.0.0.1 -x 10.0.0.9:80-10.0.0.9:80", "replayed on itself"),
        ("-s 127.0.0.1 -x 10.0.0.1:80-10.0.0.9:80,10.0.0.9:80-10.0.0.7:80", "replayed on itself"),
        ("-x 80-10.0.0.9:80 -s 10.0.0.8", "add --insecure"),
        ("-x 80-10.0.0.9:80 -s 10.0.0.8 --legacy", "a C one has no key: add --insecure"),
        ("-x 80-10.0.0.9:80 --embedded --legacy", "--legacy: there is no intercept with --embedded"),
        ("-x 80-[fd00::9]:80 -s 127.0.0.1 --legacy", "[fd00::9]:80 is IPv6, which the C intercept does not"),
        ("-x 80-10.0.0.9:80 -s [::1]:36524 --legacy", "[::1]:36524 is IPv6"),
        ("-x 80-10.0.0.9:80 -s 127.0.0.1,127.0.0.1", "named twice"),
        ("-x 80-10.0.0.9:80 -s assistant", "names are not resolved"),
        ("-x 80-10.0.0.9:80 -s 127.0.0.1 --embedded", "there is none with --embedded"),
        ("-x 20000-10.0.0.9:80 --embedded", "10000-29999 holds 20000, which '20000-10.0.0.9:80' captures"),
        ("-x 80-10.0.0.9:80 --embedded -c 10.0.0.0/24", "no single address"),
        ("-x 80-10.0.0.9:80 --embedded --queue 65535 --workers 1", "beyond 65535"),
    ] {
        let message = tcpcopy_error(options);
        assert!(message.contains(fragment), "{options}: {message}");
        assert!(
            !message.contains('\n') && message.ends_with("; try 'tcpcopy --help'"),
            "{options}: {message}"
        );
    }
}

#[test]
fn a_value_that_cannot_be_is_refused() {
    let base = "-s 127.0.0.1 -x 80-10.0.0.9:80";
    for (options, fragment) in [
        ("-n 0", "-n/--copies: expected a whole number from 1 to 1023, found 0"),
        ("-n 5000", "from 1 to 1023, found 5000"),
        ("-n many", "found \"many\""),
        ("-r 101", "-r/--percent: expected a whole number from 1 to 100"),
        ("--workers 0", "from 1 to 256 or \"auto\", found 0"),
        ("-c 10.0.0.x", "contains 10.0.0.9"),
        ("-c fd00::/64", "no target in -x is"),
        ("-c 10.99.0.0/24,10.99.0.7", "share addresses"),
        ("-c 224.0.0.x", "no addresses that a client could have"),
        ("-c 10.99.0.5/24", "did you mean '10.99.0.0/24'"),
        ("--mtu 100", "from 576 to 65535"),
        ("--queue 65535 --workers 2", "beyond 65535"),
        ("--sink lo", "cannot be the sink"),
        ("--sink a/b", "name of an interface"),
        ("--table 2nd", "name of a table"),
        ("--table a/b", "name of a table"),
        ("--response-timeout 10", "a duration with a unit"),
        ("--response-timeout 0s", "no time at all"),
        ("--memory-limit 512", "a size with a unit"),
        ("--memory-limit 1MiB", "at least 16MiB"),
        ("--gate maybe", "expected \"response\" or \"none\", found \"maybe\""),
        ("--insecure=perhaps", "--insecure: expected"),
        ("--mark 0", "--mark: expected"),
        ("--ports 80-90", "at least 256 ports from 1024 on"),
        ("--ports 20000", "found \"20000\""),
        ("--ports 29999-20000", "found \"29999-20000\""),
        ("--log loud", "\"debug\" or \"trace\", found \"loud\""),
    ] {
        let message = tcpcopy_error(&format!("{base} {options}"));
        assert!(message.contains(fragment), "{options}: {message}");
    }
}

#[test]
fn without_an_intercept_this_host_replays_from_its_own_addresses() {
    let settings = tcpcopy_settings("-x 80-10.0.0.9:80 --embedded");
    assert!(settings.intercepts.is_empty() && settings.pools.is_empty());
    assert_eq!(settings.embedded, Some(10_000..=29_999));
    let settings = tcpcopy_settings("-x 80-10.0.0.9:80 --embedded --ports 20000-20999 -c 10.0.0.1,10.0.0.9");
    assert_eq!((settings.embedded, settings.pools.len()), (Some(20_000..=20_999), 2));
    assert_eq!(tcpcopy_settings("-x 80-10.0.0.9:80 -s 127.0.0.1").embedded, None);
}

#[test]
fn pools_must_cover_every_target_family() {
    let message = tcpcopy_error("-s 127.0.0.1 -x 80-10.0.0.9:80,80-[fd00::2]:80 -c 10.99.0.x");
    assert!(message.contains("none is IPv6 and the target [fd00::2]:80 is"), "{message}");

    let settings =
        tcpcopy_settings("-s 127.0.0.1 -x 80-10.0.0.9:80,80-[fd00::2]:80 -c 10.99.0.x,fd00:99::/64");
    assert_eq!(settings.pools.len(), 2);
}

#[test]
fn unknown_and_foreign_options_are_explained() {
    for (options, fragment) in [
        ("-d", "'-d' of the C tcpcopy does not exist here: it stays in the foreground"),
        ("-F tcp", "-x says what is captured"),
        ("-m512", "--memory-limit 512MiB"),
        ("--percnt 3", "unknown option '--percnt', did you mean '--percent'?"),
        ("--nothing-like-it", "unknown option '--nothing-like-it'"),
        ("extra", "there is no command 'extra'"),
        ("-n", "needs a value"),
    ] {
        let message = tcpcopy_error(options);
        assert!(message.contains(fragment), "{options}: {message}");
        assert!(!message.contains('\n'), "{options}: {message}");
    }
    for (options, fragment) in [
        ("-i eth0 -F tcp -d", "'-i' of the C intercept"),
        ("rules", "'rules remove'"),
        ("rules list", "list"),
        ("", "--target"),
        ("--target 10.0.0.9:80", "all addresses are reachable from other hosts"),
        ("--target 10.0.0.9:80 -b 10.0.0.8", "10.0.0.8 is reachable from other hosts"),
        ("--target 10.0.0.9:80 --target 10.0.0.9:80 --insecure", "named twice"),
        ("--target 10.0.0.9 --insecure", "expected ADDRESS:PORT"),
        ("--target 10.0.0.9:80 --insecure --unclaimed reject", "expected \"drop\" or \"accept\""),
        ("--target 10.0.0.9:80 --insecure -p 0", "from 1 to 65535"),
        ("--target 10.0.0.9:80 --insecure --capture-source pcap", "expected \"nfqueue\" or \"packet\""),
        (
            "--target 10.0.0.9:80 --insecure --capture-source packet --on-target",
            "--capture-source: packet sockets see what comes in",
        ),
        (
            "--target 10.0.0.9:80 --insecure --capture-source packet --unclaimed accept",
            "--capture-source: with \"packet\" all responses are dropped",
        ),
    ] {
        let message = intercept_error(options);
        assert!(message.contains(fragment), "{options}: {message}");
        assert!(!message.contains('\n'), "{options}: {message}");
    }
}

#[test]
fn each_layer_overrides_the_one_below() {
    let setting = Setting {
        options: "-x 80-10.0.0.9:80 -s 127.0.0.1 --percent 7",
        environment: &[
            ("TCPCOPY_PERCENT", "8"),
            ("TCPCOPY_COPIES", "4"),
            ("TCPCOPY_CAPTURE_PURE_ACKS", "true"),
            ("TCPCOPY_POOL", "10.98.0.x, 10.97.0.x"),
        ],
        file: Some(
            "percent = 9\ncopies = 9\nmtu = 9000\nmap = ['81-10.0.0.7:81']\n[capture]\npure-acks = false\n",
        ),
    };
    let Ok(Action::Run(settings)) = setting.tcpcopy() else { panic!("valid") };
    assert_eq!((settings.percent, settings.copies, settings.mtu, settings.pure_acks), (7, 4, 9000, true));
    assert_eq!(settings.mappings.len(), 1);
    assert_eq!(settings.mappings[0].port, 80);
    assert_eq!(settings.pools.len(), 2);
}

#[test]
fn a_wrong_file_is_named_with_its_key() {
    let valid = "map = ['80-10.0.0.9:80']\nintercept = ['127.0.0.1']\n";
    for (text, fragment) in [
        ("percnt = 3", "unknown key 'percnt'; did you mean 'percent'?"),
        ("pure-acks = true", "unknown key 'pure-acks'; did you mean 'capture.pure-acks'?"),
        ("memory_limit = '1GiB'", "unknown key 'memory_limit'; did you mean 'memory-limit'?"),
        ("zzz = 1", "unknown key 'zzz'; see tcpcopy(8)"),
        ("[capture]\npure-ack = true", "unknown key 'capture.pure-ack'; did you mean 'capture.pure-acks'?"),
        (
            "capture = 3",
            "capture: expected a table with the keys source, max-packets-per-second, pure-acks and handshake-acks, found 3",
        ),
        ("[capture]\npure-acks = 1", "capture.pure-acks: expected a boolean, found 1"),
        ("copies = '3'", "copies: expected a whole number from 1 to 1023, found \"3\""),
        ("copies = -3", "copies: expected a whole number from 1 to 1023, found -3"),
        ("copies = 2.5", "copies: expected a whole number from 1 to 1023, found 2.5"),
        ("pool = ['10.99.0.x', 7]", "pool: expected a prefix of addresses"),
        ("pool = 7", "pool: expected a prefix of addresses"),
        ("response-timeout = 10", "response-timeout: expected a duration with a unit"),
        ("copies = ", ": "),
    ] {
        let file = format!("{valid}{text}\n");
        let error = Setting { file: Some(&file), ..Setting::default() }.tcpcopy().expect_err(text);
        let message = error.to_string();
        assert!(!error.is_usage(), "{message}");
        let line = if text.contains('\n') { 4 } else { 3 };
        let place = format!(".toml: line {line}: ");
        assert!(message.contains(fragment) && message.contains(&place), "{text}: {message}");
        assert!(!message.contains('\n'), "{text}: {message}");
    }
}

#[test]
fn drop_ins_override_the_file_in_lexical_order() {
    let main = temporary();
    let directory = PathBuf::from(format!("{}.d", main.display()));
    std::fs::create_dir(&directory).expect("temporary directory");
    let write = |name: &str, text: &str| std::fs::write(directory.join(name), text).expect("temporary file");
    std::fs::write(&main, "map = ['80-10.0.0.9:80']\nintercept = ['127.0.0.1']\npercent = 1\n")
        .expect("file");
    write("20-more.toml", "percent = 3\n");
    write("10-some.toml", "percent = 2\ncopies = 2\nmap = ['81-10.0.0.9:81']\n");
    write("30-other.conf", "nonsense");
    write(".20-more.toml", "nonsense");
    let run = |options: &str| {
        let options = format!("--config {} {options}", main.display());
        let setting = Setting { options: &options, ..Setting::default() };
        setting.load(&tcpcopy::PROGRAM, tcpcopy::Settings::settle)
    };

    let Ok(Action::Run(settings)) = run("") else { panic!("valid") };
    assert_eq!((settings.percent, settings.copies), (3, 2));
    assert_eq!(settings.mappings, [Mapping::from_text("81-10.0.0.9:81").expect("mapping")]);
    let Ok(Action::Print(text)) = run("--print-config") else { panic!("printed") };
    for (setting, origin) in [("percent = 3", "20-more.toml"), ("copies = 2", "10-some.toml")] {
        let path = directory.join(origin);
        let line = text.lines().find(|line| line.starts_with(setting)).expect(setting);
        assert!(line.ends_with(path.to_str().expect("UTF-8")), "{line}");
    }

    write("40-wrong.toml", "mtu = 9000\n[capture]\npure-acsk = true\n");
    let error = run("").expect_err("unknown key").to_string();
    let place = directory.join("40-wrong.toml");
    assert_eq!(
        error,
        format!(
            "{}: line 3: unknown key 'capture.pure-acsk'; did you mean 'capture.pure-acks'?",
            place.display()
        )
    );
    std::fs::remove_dir_all(&directory).and_then(|()| std::fs::remove_file(&main)).expect("removed");
}

#[test]
fn a_missing_file_matters_only_when_it_was_named() {
    let error = Setting { options: "--config /nonexistent/tcpcopy.toml", ..Setting::default() }.tcpcopy();
    let message = error.expect_err("named").to_string();
    assert!(message.starts_with("/nonexistent/tcpcopy.toml: cannot read"), "{message}");

    tcpcopy_settings("-x 80-10.0.0.9:80 -s 127.0.0.1");
}

#[test]
fn the_environment_is_blamed_by_its_variable() {
    let setting = Setting { environment: &[("TCPCOPY_RESPONSE_TIMEOUT", "soon")], ..Setting::default() };
    let error = setting.tcpcopy().expect_err("no duration");
    assert!(error.to_string().starts_with("TCPCOPY_RESPONSE_TIMEOUT: expected a duration"), "{error}");
    assert!(!error.is_usage());

    let setting = Setting {
        options: "-x 80-10.0.0.9:80 -s 127.0.0.1",
        environment: &[("TCPCOPY_SERVICE_HOST", "10.0.0.1"), ("PATH", "/bin")],
        file: None,
    };
    let Ok(Action::Run(settings)) = setting.tcpcopy() else { panic!("valid") };
    assert_eq!(
        settings.warnings,
        ["environment variable TCPCOPY_SERVICE_HOST sets nothing that tcpcopy knows"]
    );
}

#[test]
fn printed_settings_are_a_valid_file_with_origins() {
    let setting = Setting {
        options: "-x 80-10.0.0.9:80 -s 127.0.0.1 --print-config",
        environment: &[("TCPCOPY_PERCENT", "8")],
        file: Some("mtu = 9000\n"),
    };
    let Ok(Action::Print(text)) = setting.tcpcopy() else { panic!("printed") };

    for (setting, origin) in [
        ("map = [\"80-10.0.0.9:80\"]", "command line"),
        ("percent = 8", "TCPCOPY_PERCENT"),
        ("mark = 0x74637079", "default"),
        ("capture.pure-acks = false", "default"),
        ("capture.handshake-acks = true", "default"),
        ("mtu = 9000", ".toml"),
    ] {
        assert!(
            text.lines().any(|line| line.starts_with(setting) && line.ends_with(origin)),
            "{setting}: {text}"
        );
    }
    let again = Setting { file: Some(&text), ..Setting::default() }.tcpcopy();
    assert!(matches!(again, Ok(Action::Run(_))), "{again:?}");
}

#[test]
fn the_printed_settings_may_lack_what_is_needed_to_run_but_not_be_wrong() {
    assert!(matches!(
        Setting { options: "--print-config", ..Setting::default() }.tcpcopy(),
        Ok(Action::Print(_))
    ));
    assert!(Setting { options: "--print-config -n 0", ..Setting::default() }.tcpcopy().is_err());
    let check =
        Setting { options: "--check-config -x 80-10.0.0.9:80 -s 127.0.0.1", ..Setting::default() }.tcpcopy();
    assert!(matches!(check, Ok(Action::Print(_))), "{check:?}");
}

#[test]
fn help_and_version_are_printed() {
    for option in ["--help", "-h", "--version", "-V", "-v"] {
        for action in [
            Setting { options: option, ..Setting::default() }.tcpcopy().map(|action| format!("{action:?}")),
            Setting { options: option, ..Setting::default() }.intercept().map(|action| format!("{action:?}")),
        ] {
            assert!(action.expect(option).starts_with("Print("), "{option}");
        }
    }
}

#[test]
fn the_tables_of_keys_are_sound() {
    for program in [&tcpcopy::PROGRAM, &intercept::PROGRAM] {
        command(program).debug_assert();
        let layers = Layers::read(program, &Inputs::default()).expect("defaults are TOML");
        assert_eq!(layers.print().lines().count(), program.keys.len());
        for key in program.keys {
            let flag = key.default == "true" || key.default == "false";
            assert_eq!(flag, key.kind == Kind::Flag, "{}", key.name);
        }
        for (letter, _) in program.c_options {
            assert!(!program.keys.iter().any(|key| key.short == Some(*letter)), "-{letter} exists");
        }
    }
}

proptest::proptest! {
    #[test]
    fn no_text_makes_a_parser_panic(text in ".{0,40}", near in "[-0-9a-fx.:,/\\[\\]@ ]{0,40}") {
        for text in [text, near] {
            let _ = Mapping::from_text(&text);
            let _ = Prefix::from_text(&text);
            let _ = Span::from_text(&text);
            let _ = Size::from_text(&text);
        }
    }

    #[test]
    fn what_is_written_reads_back(address: u32, wide: u128, port in 1_u16.., length in 0_u8..=32, bytes: u64) {
        let prefixes = [Prefix::new(std::net::Ipv4Addr::from(address).into(), length), Prefix::new(std::net::Ipv6Addr::from(wide).into(), length * 4)];
        for prefix in prefixes.into_iter().flatten() {
            proptest::prop_assert_eq!(prefix.to_string().parse(), Ok(prefix));
            let last = prefix.nth(prefix.size() - 1).expect("the last host");
            proptest::prop_assert!(prefix.contains(last) && prefix.nth(prefix.size()).is_none());
        }
        for online in [None, Some(std::net::IpAddr::from([10, 0, 0, 1]))] {
            let mapping = Mapping { online, port, target: (std::net::Ipv4Addr::from(address | 0x0100_0000).octets().map(|octet| octet.min(223)), port).into() };
            proptest::prop_assert_eq!(Mapping::from_text(&mapping.to_string()), Ok(mapping));
        }
        proptest::prop_assert_eq!(Size::from_text(&Size(bytes).to_string()), Ok(Size(bytes)));
    }
}
