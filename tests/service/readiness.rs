//! What tcpcopy does and says while the host of an intercept is open.

use super::*;

const MANUAL: &str = "rules = 'manual'\n";

#[test]
fn tcpcopy_waits_until_the_rules_of_the_operator_are_in_force() {
    site("readiness::tcpcopy_waits_until_the_rules_of_the_operator_are_in_force", |journal, manager| {
        configure("intercept", &format!("{INTERCEPT_CONFIG}{MANUAL}"));
        let intercept = Service::start(INTERCEPT, &["--config", "/run/intercept.toml"], &[]);
        journal.wait_for(message_id::READY);
        let tcpcopy = tcpcopy();
        let open = journal.wait_for(message_id::INTERCEPT_OPEN);
        assert_has(&open, &[("INTERCEPT", "127.0.0.1:36524"), ("PRIORITY", "3")]);
        let said = open.value("MESSAGE").unwrap_or_default();
        for part in ["127.0.0.1:36524", "table ip intercept is gone", "rules = \"manual\": load the rules"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        manager.wait_for("STATUS=waiting for intercept 127.0.0.1:36524");

        // The operator loads the rules.
        configure("auto", INTERCEPT_CONFIG);
        sh(&format!("{INTERCEPT} rules load --config /run/auto.toml"));
        journal.wait_for(message_id::INTERCEPT_CLOSED);
        assert_has(&journal.wait_for(message_id::READY), &[("SYSLOG_IDENTIFIER", "tcpcopy")]);
        manager.wait_for("STATUS=0 sessions, 0 requests/s, 1 of 1 intercepts up");

        // And somebody takes them away.
        sh("nft delete table ip intercept");
        let open = journal.wait_for(message_id::INTERCEPT_OPEN);
        assert!(open.value("REASON").is_some_and(|reason| reason.contains("is gone")), "{open:?}");
        sh(&format!("{INTERCEPT} rules load --config /run/auto.toml"));
        journal.wait_for(message_id::INTERCEPT_CLOSED);
        assert_eq!((tcpcopy.stop(), intercept.stop()), (Some(0), Some(0)));
    });
}
