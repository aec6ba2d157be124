//! Beside pytest-postgresql, which makes a template for each worker and a copy of it for each
//! test.

use crate::figure::{Figure, Pairs, rounds, seconds};
use crate::ground::{Ground, SCHEMA, kept, project};
use crate::installed;
use crate::lab::{Database, Lab, Program};

const PACKAGES: [&str; 4] = ["pytest==9.*", "pytest-xdist==3.8.*", "psycopg[binary]==3.*", "pytest-postgresql==10.*"];

/// 500 tests that write, on lanes and on copies.
pub fn suite(database: &Database<'_>) -> Lab {
    let lab = project(database, "").python_in(&installed::python("pytest-postgresql", &PACKAGES));
    for folder in ["lanes", "copies"] {
        lab.file(&format!("{folder}/shop.py"), include_str!("suites/shop.py"));
    }
    lab.file("lanes/test_lanes.py", include_str!("suites/test_lanes.py"));
    lab.file("copies/test_copies.py", include_str!("suites/test_copies.py"));
    lab.file("copies/schema.sql", SCHEMA);
    lab
}

/// Its tests in lanes.
pub fn in_lanes(lab: &Lab) -> Program {
    kept(lab, "--fresh test", &["pytest", "-q", "-p", "no:cacheprovider", "-n", "2", "lanes"])
}

fn in_copies(lab: &Lab, database: &Database<'_>) -> Program {
    let pytest = lab.program("pytest").arg_all(["-q", "-p", "no:cacheprovider", "-n", "2", "copies"]);
    pytest
        .arg_all(["--postgresql-host", "127.0.0.1", "--postgresql-port"])
        .arg(database.server.port().to_string())
        .arg_all(["--postgresql-user", &database.login, "--postgresql-password", &database.password])
}

pub fn beside_pytest_postgresql(ground: &Ground) -> Vec<Figure> {
    let database = ground.database();
    let lab = suite(&database);
    let (mut first, mut later) = (Pairs::default(), Pairs::default());
    for _ in 0..rounds(3) {
        let theirs = seconds(in_copies(&lab, &database));
        seconds(lab.isolane("template remove --all"));
        first.push(theirs, seconds(in_lanes(&lab)));
        later.push(theirs, seconds(in_lanes(&lab)));
    }
    vec![
        Figure::new("500 pytest tests, -n 2: pytest-postgresql / isolane", later.times_faster(), "at least 30"),
        Figure::new("the same, where isolane's template is made as well", first.times_faster(), "-"),
    ]
}
