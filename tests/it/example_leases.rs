//! `examples/leases`: tests that share what nobody can copy.

use std::path::Path;

use crate::lab::{Lab, no_rows};

#[test]
fn the_example_collides_without_leases_and_is_clean_with_them() {
    let lab = Lab::new().with("ISOLANE_EXAMPLE_TESTS", "400");
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/leases");
    for path in [
        "pyproject.toml",
        "isolane.toml",
        "warehouse/__init__.py",
        "warehouse/open.py",
        "tests/conftest.py",
        "tests/test_last_piece.py",
    ] {
        lab.file(path, &std::fs::read_to_string(example.join(path)).expect("a file of the example"));
    }
    lab.program("python").arg_all(["-m", "warehouse.open"]).run().assert_code(0);
    // pytest keeps its own temporary folders.
    let elsewhere = lab.home().join("home");
    let without = lab.program("pytest").arg_all(["-n", "8"]).env("TMPDIR", elsewhere).run().assert_code(1);
    assert!(without.out().contains(" failed, "), "{}", without.all());

    lab.wrap("", "pytest -n 8").run().assert_code(0).assert_says("400 tests: 400 passed");
    assert_eq!(lab.value("SELECT count(DISTINCT test_id) FROM leases WHERE state = 'released'"), "400");
    // No two tests had the same article at once.
    let overlaps = "SELECT a.test_id, b.test_id FROM leases a JOIN leases b
        ON b.item = a.item AND b.fence > a.fence AND b.acquired_at < a.ended_at";
    assert_eq!(lab.ledger(overlaps), no_rows());
    lab.assert_nothing_left();
}
