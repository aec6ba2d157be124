//! Hearing what other processes change.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use postgres::Config;
use postgres::fallible_iterator::FallibleIterator;

use super::super::claim;
use super::CHANNEL;

/// How long to wait before the server is tried again, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// What a process says that stops listening, so that its own ears end.
pub fn goodbye(name: &str) -> String {
    format!("bye {name}")
}

/// Calls `changed` when anybody but `name` has changed something, or may have, until that says
/// no or the store is closed. When the server was away, `look` is called before.
pub fn hear(config: &Config, name: &str, is_over: &AtomicBool, look: &dyn Fn() -> bool, changed: &dyn Fn() -> bool) {
    let (mut pause, longest) = PAUSES;
    let mut is_again = false;
    while !is_over.load(Ordering::Acquire) {
        let Ok(mut client) = claim::session(config) else {
            std::thread::sleep(pause);
            pause = (pause * 2).min(longest);
            continue;
        };
        if client.batch_execute(&format!("LISTEN {CHANNEL}")).is_err() {
            continue;
        }
        pause = PAUSES.0;
        if is_again && !look() {
            return;
        }
        is_again = true;
        // What was changed before this heard anything.
        if !changed() {
            return;
        }
        let mut heard = client.notifications();
        let mut heard = heard.blocking_iter();
        while let Ok(Some(notification)) = heard.next() {
            let said = notification.payload();
            if is_over.load(Ordering::Acquire) && said == goodbye(name) {
                return;
            }
            if said != name && !said.starts_with("bye ") && !changed() {
                return;
            }
        }
    }
}
