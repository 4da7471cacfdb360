//! The settings of `intercept`: what is read, and what is refused.

use std::time::Duration;

use super::tests::{Setting, intercept_error};
use super::*;
use crate::wire::Prefix;

#[test]
fn intercept_is_configured() {
    let options = "--target 10.0.0.9:80,[fd00::9]:80 --target 10.0.0.9:81 --insecure --unclaimed accept";
    let Ok(Action::Run(settings)) = (Setting { options, ..Setting::default() }).intercept() else {
        panic!("{options}");
    };
    assert_eq!(settings.targets.len(), 3);
    assert_eq!((settings.bind, settings.port, settings.queue), (None, 36524, 36540));
    assert_eq!(settings.unclaimed, intercept::Unclaimed::Accept);
    assert_eq!(settings.memory_limit, 256 << 20);
    let message = intercept_error("--target 10.0.0.9:80 --insecure --memory-limit 15MiB");
    assert!(message.contains("15MiB is too little to serve tcpcopys with; give at least 16MiB"), "{message}");
    assert_eq!(settings.receive_hold, Duration::from_millis(200));

    let options = "--target 10.0.0.9:80 -b 127.0.0.1";
    let Ok(Action::Run(settings)) = (Setting { options, ..Setting::default() }).intercept() else {
        panic!("{options}");
    };
    assert_eq!(settings.bind, Some("127.0.0.1".parse().expect("address")));

    let options = "--target 10.0.0.9:80 --insecure --on-target --clients 10.99.0.x,fd00::/64";
    let Ok(Action::Run(settings)) = (Setting { options, ..Setting::default() }).intercept() else {
        panic!("{options}");
    };
    assert!(settings.on_target);
    assert_eq!(settings.clients.len(), 2);
    let refused = intercept_error("--target 10.0.0.9:80,[fd00::9]:80 --insecure --clients 10.99.0.0/24");
    assert!(refused.contains("--clients: none is of the family of the target [fd00::9]:80"), "{refused}");

    let options = "--target 10.0.0.9:80 --insecure --capture-source packet";
    let Ok(Action::Run(settings)) = (Setting { options, ..Setting::default() }).intercept() else {
        panic!("{options}");
    };
    assert_eq!(settings.source, CaptureSource::Packet);

    // At boot nothing about keys keeps the rules out.
    let environment = [("INTERCEPT_TARGET", "10.0.0.9:80")];
    let load = Setting { options: "rules load", environment: &environment, ..Setting::default() }.intercept();
    assert!(matches!(&load, Ok(Action::LoadRules(settings)) if settings.targets.len() == 1), "{load:?}");
    let show = Setting { options: "rules show", environment: &environment, ..Setting::default() }.intercept();
    assert!(matches!(&show, Ok(Action::ShowRules(settings)) if settings.targets.len() == 1), "{show:?}");
}

/// Of a configuration that is wrong, only the table is looked at; of one that cannot be read, nothing with `--table`.
#[test]
fn rules_are_removed_from_the_table_of_the_configuration() {
    let removed = |options, file, environment| match (Setting { options, environment, file }).intercept() {
        Ok(Action::RemoveRules(table)) => Ok(table),
        Ok(other) => panic!("{options}: {other:?}"),
        Err(error) => Err(error.to_string()),
    };
    let variable = [("INTERCEPT_TABLE", "second")];
    for (options, file, environment, table) in [
        ("rules remove", None, &[][..], "intercept"),
        ("rules remove", Some("table = 'first'\ntarget = []\n"), &[], "first"),
        ("rules remove", Some("table = 'first'\n"), &variable, "second"),
        ("rules remove", Some("target = []\n"), &[], "intercept"),
        ("rules remove", Some("port = 36600\n"), &[], "intercept-36600"),
        ("rules remove --table third", Some("table = 'first'\n"), &variable, "third"),
        ("rules remove --table third", Some("table = [[[\n"), &[], "third"),
    ] {
        assert_eq!(removed(options, file, environment), Ok(table.to_owned()), "{options} {file:?}");
    }
    for (options, file) in [
        ("rules remove", Some("table = [[[\n")),
        ("rules remove", Some("no-such-key = 1\n")),
        ("rules remove", Some("table = 'two words'\n")),
        ("rules remove --config /nowhere/at/all.toml", None),
    ] {
        let message = removed(options, file, &[]).expect_err(options);
        assert!(message.contains("rules remove --table intercept"), "{message}");
    }
    let message = removed("rules remove --table a;b", None, &[]).expect_err("no name");
    assert!(message.contains("the name of a table"), "{message}");
}

#[test]
fn what_passes_is_named_with_care() {
    let options = "--target 10.0.0.9:80 --insecure --table second";
    let file = Some("pass = ['udp dport 53', 'from 10.0.0.9 to 10.9.0.0/16']\n");
    let Ok(Action::Run(settings)) = (Setting { options, file, ..Setting::default() }).intercept() else {
        panic!("{options}");
    };
    let passes: Vec<_> = settings.pass.iter().map(ToString::to_string).collect();
    assert_eq!(passes, ["udp dport 53", "to 10.9.0.0/16 from 10.0.0.9"]);
    assert_eq!(settings.table, "second");
    for (options, table) in
        [("", "intercept"), ("-p 36600", "intercept-36600"), ("-p 36600 --table intercept", "intercept")]
    {
        let options = format!("--target 10.0.0.9:80 --insecure {options}");
        let Ok(Action::Run(settings)) = (Setting { options: &options, ..Setting::default() }).intercept()
        else {
            panic!("{options}");
        };
        assert_eq!(settings.table, table, "{options}");
    }
    for (entry, fragments) in [
        ("udp port 53", ["pass", "\"port\" is neither a protocol", "udp dport 53"]),
        ("from 10.0.0.8 udp", ["pass", "\"from 10.0.0.8\" is no target's", "from 10.0.0.9 udp dport 53"]),
        ("dport 53", ["pass", "needs a protocol with ports", "udp dport 53"]),
    ] {
        let file = format!("pass = ['{entry}']\n");
        let error = Setting { options, file: Some(&file), ..Setting::default() }.intercept();
        let message = error.expect_err(entry).to_string();
        for fragment in fragments {
            assert!(message.contains(fragment), "{entry}: {message}");
        }
    }
}

#[test]
fn hosts_of_c_tcpcopys_are_named_one_by_one() {
    let options = "--target 10.0.0.9:80 --insecure --legacy 10.91.1.1,10.91.2.0/24";
    let Action::Run(settings) = (Setting { options, ..Setting::default() }).intercept().expect("valid")
    else {
        panic!("not to be run")
    };
    assert_eq!(
        settings.legacy.iter().map(Prefix::to_string).collect::<Vec<_>>(),
        ["10.91.1.1/32", "10.91.2.0/24"]
    );
    for (list, why) in [("0.0.0.0/0", "name a prefix of hosts"), ("fd00::1", "is IPv6")] {
        let refused = intercept_error(&format!("--target 10.0.0.9:80 --insecure --legacy {list}"));
        assert!(refused.contains("--legacy: ") && refused.contains(why), "{refused}");
    }
    let refused = intercept_error("--target 10.0.0.9:80 --legacy 10.91.1.1");
    assert!(refused.contains("there is no key"), "it is open to others: {refused}");
}
