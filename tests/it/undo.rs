//! Equal means equal: after any workload a lane's database is, row for row, what its template is.
//! Random statements over 60 tables and over every odd kind of table that we know of; then the
//! renewal, and a comparison of everything.

mod odd;
mod world;
mod work;

use proptest::test_runner::{Config, TestCaseError, TestRunner};

use work::Step;
use world::World;

/// How many workloads, unless `PROPTEST_CASES` says otherwise.
const CASES: u32 = 500;

#[test]
fn after_any_workload_a_lane_is_as_its_template() {
    let world = World::new();
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(CASES);
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let tables = world.tables();
    let outcome = runner.run(&work::workload(), |steps| {
        let mut session = world.session();
        for step in &steps {
            work::take(step, &tables, &mut session);
        }
        if steps.len() % 4 != 0 {
            // Some close their session, some leave it open, with whatever it is in.
            drop(session);
        }
        world.renew().map_err(TestCaseError::fail)?;
        let difference = world.difference();
        if difference.is_empty() { Ok(()) } else { Err(TestCaseError::fail(difference.join("\n"))) }
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
    let again = world.made_again();
    assert!(again * 3 < u64::from(cases), "{again} of {cases} lanes were made again: that undoes nothing");
    let undone = u64::from(cases) - again;
    assert!(undone > 0, "nothing was undone");
    // A statement that always fails would test nothing.
    let (done, refused) = work::counts();
    assert!(done > refused, "{done} statements done, {refused} refused");
    for kind in Step::KINDS {
        assert!(cases < CASES || work::succeeded(kind), "no {kind} ever succeeded");
    }
    world.close();
}
