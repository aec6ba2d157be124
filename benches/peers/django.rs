//! Beside pytest-django alone, which makes a database for each worker and rolls back each test.

use crate::figure::{Figure, Pairs, rounds, seconds};
use crate::ground::Ground;
use crate::installed;
use crate::lab::{Lab, Program};

const PACKAGES: [&str; 5] =
    ["pytest==9.*", "pytest-xdist==3.8.*", "psycopg[binary]==3.*", "django==5.2.*", "pytest-django==4.*"];
const PYTEST: &str = "pytest -q -p no:cacheprovider -n 2";

pub fn beside_pytest_django(ground: &Ground) -> Vec<Figure> {
    let database = ground.database();
    let lab = Lab::on(&database).python_in(&installed::python("pytest-django", &PACKAGES));
    lab.file("pytest.ini", "[pytest]\nDJANGO_SETTINGS_MODULE = settings\npythonpath = .\n");
    lab.file("settings.py", include_str!("suites/django/settings.py"));
    lab.file("shop/__init__.py", "").file("shop/models.py", include_str!("suites/django/models.py"));
    lab.file("test_shop.py", include_str!("suites/django/test_shop.py"));
    seconds(
        words(&lab, "python -m django migrate --run-syncdb --verbosity 0").env("DJANGO_SETTINGS_MODULE", "settings"),
    );
    // Both find the same databases, which are there already.
    let reused = format!("{PYTEST} --reuse-db");
    seconds(words(&lab, &format!("{reused} --create-db")));
    let (mut beside_reused, mut beside_fresh) = (Pairs::default(), Pairs::default());
    for n in 0..rounds(9) {
        let bare = || seconds(words(&lab, &reused));
        let wrapped = || seconds(lab.wrap("--quiet", &reused));
        let (bare, ours) = if n % 2 == 0 {
            (bare(), wrapped())
        } else {
            let ours = wrapped();
            (bare(), ours)
        };
        beside_reused.push(bare, ours);
        if n % 3 == 0 {
            beside_fresh.push(seconds(words(&lab, PYTEST).env("TEST_NAME", "test_fresh")), ours);
        }
    }
    vec![
        Figure::new("500 Django tests, -n 2, --reuse-db: isolane / bare", beside_reused.cost(), "at most 1.05"),
        Figure::new("bare with new databases / isolane with --reuse-db", beside_fresh.times_faster(), "-"),
    ]
}

fn words(lab: &Lab, command: &str) -> Program {
    let mut words = command.split(' ');
    lab.program(words.next().expect("a program")).arg_all(words)
}
