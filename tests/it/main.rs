//! The real program in front of real runners, on real servers. `tests/run` installs what
//! this needs.

mod bad_input;
mod cleanup;
mod commands;
mod environment;
mod exit;
mod job;
mod lab;
mod ledger;
mod nextest;
mod nextest_errors;
mod nextest_injection;
mod page;
mod postgres;
mod postgres_odd;
mod postgres_schema;
mod postgres_versions;
mod pytest;
mod pytest_crash;
mod pytest_injection;
mod readme;
mod report;
mod shared;
mod shared_rows;
mod sqlite;
mod story;
mod sweep;
mod template;
mod terminal;
mod tidy;
mod touch_capture;
mod touch_names;
mod touch_trouble;
mod undo;
mod watchdog;
mod weather;
