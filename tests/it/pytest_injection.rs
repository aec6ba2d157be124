//! How the plugin gets into pytest, whatever stands around it: other plugins, other
//! starters, other settings. Nothing of the user's is replaced.

use crate::lab::{Lab, Outcome, Server};

/// Two tests on two workers; what each finds is noted as the module is imported and as
/// the test runs.
const SUITE: &str = "
import os, pytest, witness
worker = os.environ.get('PYTEST_XDIST_WORKER', 'alone')
witness.note('import-' + worker)
@pytest.mark.parametrize('n', range(4))
def test_meets(n):
    witness.meet(int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', 1)))
    witness.note('test-' + worker)
";

/// Both workers had a database of their own from the beginning to the end.
#[track_caller]
fn assert_two_lanes(lab: &Lab, outcome: &Outcome) {
    let seen = lab.seen();
    let tests = seen.only("test-gw");
    assert_eq!(tests.names(), ["test-gw0", "test-gw1"], "{}", outcome.all());
    assert_eq!(tests.all("WORKER_ID"), ["gw0", "gw1"], "{}", outcome.all());
    assert_eq!(tests.distinct("DATABASE_URL").len(), 2, "{}", outcome.all());
    for (name, env) in tests.iter() {
        assert!(env["DATABASE_URL"].contains(&env["ISOLANE_SCHEMA"]), "{name}: {env:#?}");
        assert_eq!(seen.get(&name.replace("test-", "import-"), "DATABASE_URL"), env["DATABASE_URL"]);
    }
    lab.assert_nothing_left();
}

#[test]
fn a_plugin_that_is_loaded_before_all_others_sees_the_workers_own_database() {
    let lab = Lab::new();
    lab.file("pytest.ini", "[pytest]\naddopts = -p early\npythonpath = .\n").file("test_suite.py", SUITE);
    lab.file("early.py", "import os, witness\nwitness.note('early-' + os.environ.get('PYTEST_XDIST_WORKER', 'x'))\n");
    let outcome = lab.pytest("-n 2").env("PYTHONPATH", lab.dir()).run().assert_code(0);
    let seen = lab.seen();
    for worker in ["gw0", "gw1"] {
        let early = seen.get(&format!("early-{worker}"), "DATABASE_URL");
        assert_eq!(early, seen.get(&format!("test-{worker}"), "DATABASE_URL"));
    }
    assert_two_lanes(&lab, &outcome);
}

#[test]
fn a_database_that_pytest_env_writes_over_is_put_back() {
    let lab = Lab::new().python("plugins").with("DATABASE_URL", "sqlite:///shop.db");
    lab.file("pytest.ini", "[pytest]\nenv =\n    DATABASE_URL=sqlite:////nowhere/shared.db\n    OTHER=kept\n");
    lab.file("test_suite.py", SUITE);
    let outcome = lab.pytest("-n 2").run().assert_code(0);
    assert_two_lanes(&lab, &outcome);
    assert_eq!(lab.seen().only("test-").distinct("OTHER"), ["kept"]);
    lab.pytest("-p no:xdist").run().assert_code(0);
    let seen = lab.seen();
    assert!(seen.get("test-alone", "DATABASE_URL").contains(seen.get("test-alone", "ISOLANE_SCHEMA")));
}

#[test]
fn a_database_that_dotenv_writes_over_is_put_back() {
    let lab = Lab::new().python("dotenv").with("DATABASE_URL", "sqlite:///shop.db");
    lab.file("pytest.ini", "[pytest]\nenv_override_existing_values = 1\nenv_files =\n    .env\n");
    lab.file(".env", "DATABASE_URL=sqlite:////nowhere/shared.db\nOTHER=kept\n").file("test_suite.py", SUITE);
    let outcome = lab.pytest("-n 2").run().assert_code(0);
    assert_two_lanes(&lab, &outcome);
    assert_eq!(lab.seen().only("test-").distinct("OTHER"), ["kept"]);
}

const AT_IMPORT: &str = "import os\nURL = os.environ['DATABASE_URL']\n";
const IN_LANE: &str = "
import os, conftest
def test_lane(): assert os.environ['ISOLANE_SCHEMA'] in conftest.URL
";

#[test]
fn what_a_conftest_reads_when_it_is_imported_is_the_lanes_already() {
    let lab = Lab::new().python("plugins").with("DATABASE_URL", "sqlite:///shop.db");
    lab.file("pytest.ini", "[pytest]\nenv =\n    DATABASE_URL=sqlite:////nowhere/shared.db\n");
    for place in ["tests/", ""] {
        lab.file(&format!("{place}conftest.py"), AT_IMPORT).file(&format!("{place}test_lane.py"), IN_LANE);
        for args in ["-n 2", "-p no:xdist"] {
            lab.pytest(&format!("{args} {place}test_lane.py")).run().assert_code(0).assert_says("put the lane's back");
        }
        std::fs::remove_file(lab.path(&format!("{place}conftest.py"))).expect("ours");
    }
}

#[test]
fn a_conftest_that_replaces_its_database_and_reads_it_is_told_so() {
    let lab = Lab::new().with("DATABASE_URL", "sqlite:///shop.db");
    let replaces = "import os\nos.environ['DATABASE_URL'] = 'sqlite:////nowhere/shared.db'\n";
    lab.file("tests/conftest.py", &(replaces.to_owned() + AT_IMPORT)).file("tests/test_lane.py", IN_LANE);
    for args in ["-n 2", "-p no:xdist"] {
        let outcome = lab.pytest(&format!("{args} tests/test_lane.py")).run().assert_code(1);
        outcome.assert_says("is not in its lane").assert_does_not_say("put the lane's back");
    }
}

#[test]
fn a_suite_that_writes_over_its_database_itself_is_told_so() {
    let lab = Lab::new();
    lab.file("conftest.py", "import os\nos.environ['DATABASE_URL'] = 'sqlite:////nowhere/shared.db'\n");
    lab.file("test_one.py", "def test_one(): pass\n");
    lab.pytest("-n 2").run().assert_code(0).assert_says("DATABASE_URL");
    let chosen = lab.pytest("-n 2").env("DATABASE_URL", "sqlite:///shop.db").run();
    chosen.assert_code(0).assert_says("DATABASE_URL");
}

#[test]
fn plugins_need_not_be_loaded_by_themselves() {
    let lab = Lab::new();
    lab.file("test_suite.py", SUITE);
    let off = lab.pytest("-p xdist -n 2").env("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1").run().assert_code(0);
    assert_two_lanes(&lab, &off);
    let off = lab.pytest("--disable-plugin-autoload -p xdist.plugin -n 2").run().assert_code(0);
    assert_two_lanes(&lab, &off);
}

#[test]
fn a_python_that_ignores_its_environment_is_noticed() {
    let lab = Lab::new();
    lab.file("test_one.py", "def test_one(): pass\n");
    for flags in ["-I", "-E"] {
        let command = format!("python {flags} -m pytest -q");
        lab.wrap("", &command).run().assert_code(0).assert_shows("1 passed").assert_says("did not report");
    }
    let command = "python -I -m pytest -q -n 2 -p no:cacheprovider";
    lab.wrap("", command).run().assert_code(0).assert_shows("1 passed").assert_says("did not report");
    lab.wrap("", "python -m pytest -q").run().assert_code(0).assert_does_not_say("did not report");
    lab.assert_nothing_left();
}

#[test]
fn a_plugin_that_the_user_refuses_is_noticed() {
    let lab = Lab::new();
    lab.file("test_one.py", "def test_one(): pass\n");
    lab.pytest("-p no:isolane_pytest").run().assert_code(0).assert_says("did not report");
}

#[test]
fn pytest_behind_other_starters_is_recognised() {
    let lab = Lab::new();
    lab.file("test_suite.py", SUITE);
    let path = lab.program("python").arg("-c").arg("import sys; print(sys.prefix)").run().out();
    let path = path.trim();
    let starters = [
        "python -m pytest".to_owned(),
        "python -W ignore -m pytest".to_owned(),
        format!("{path}/bin/pytest"),
        format!("{path}/bin/py.test"),
        "env NAME=value pytest".to_owned(),
        "uv run --no-project --active --offline pytest".to_owned(),
        "uv run --no-project --active --offline -- python -m pytest".to_owned(),
        "sh -c exec\u{a0}pytest\u{a0}-q\u{a0}-n\u{a0}2".to_owned(),
    ];
    for starter in starters {
        let words: Vec<String> = starter.split(' ').map(|word| word.replace('\u{a0}', " ")).collect();
        let outcome = lab.run("", &words).arg_all(["-q", "-n", "2"]).env("VIRTUAL_ENV", path).run().assert_code(0);
        if words[0] != "sh" {
            assert_eq!(lab.column("SELECT runner FROM runs ORDER BY started_at DESC LIMIT 1"), ["pytest"], "{starter}");
            assert_two_lanes(&lab, &outcome);
        }
    }
    let script = lab.sh("--runner pytest", "exec pytest -q -n 2").run().assert_code(0);
    assert_two_lanes(&lab, &script);
}

#[test]
fn tox_lets_the_plugin_through() {
    let lab = Lab::new();
    lab.file("test_suite.py", SUITE);
    let pytest = lab.program("python").arg("-c").arg("import sys; print(sys.prefix)").run().out();
    lab.file(
        "tox.ini",
        &format!(
            "[tox]\nskipsdist = true\n[testenv]\nskip_install = true\nallowlist_externals = *\n\
             pass_env = SEEN\ncommands = {}/bin/pytest -q -n 2 {{posargs}}\n",
            pytest.trim()
        ),
    );
    let outcome = lab.wrap("", "tox -q -e py -- -p no:cacheprovider").run().assert_code(0);
    assert_two_lanes(&lab, &outcome);
    assert_eq!(lab.value("SELECT count(*) FROM tests WHERE outcome = 'passed'"), "4");
}

#[test]
fn a_pytest_inside_a_test_is_left_alone() {
    let lab = Lab::new();
    lab.file(
        "inner/test_inner.py",
        "
import os, pytest
import sys
sys.path.insert(0, '..')
import witness
@pytest.mark.parametrize('n', range(4))
def test_inner(n): witness.note('inner-' + os.environ.get('PYTEST_XDIST_WORKER', 'x') + sys.argv[-1])
",
    );
    lab.file(
        "test_outer.py",
        "
import os, subprocess, sys, witness
pytest_plugins = ['pytester']
def run(*args):
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', *args, '.']
    subprocess.run(command, cwd='inner', check=True)
def test_alone():
    witness.note('outer')
    run('-p', 'no:xdist')
def test_with_workers(): run('-n', '2')
def test_in_process(pytester):
    pytester.makepyfile('def test_one(): pass')
    pytester.runpytest_inprocess().assert_outcomes(passed=1)
",
    );
    for args in ["-n 2 test_outer.py", "-p no:xdist test_outer.py"] {
        lab.pytest(args).run().assert_code(0);
    }
    let ids = lab.column("SELECT DISTINCT test_id FROM tests ORDER BY 1");
    let expected = ["test_alone", "test_in_process", "test_with_workers"].map(|name| format!("test_outer.py::{name}"));
    assert_eq!(ids, expected, "tests of the inner runs are not tests of this run");
    assert!(lab.seen().only("inner-").distinct("DATABASE_URL").iter().all(|url| url.contains("isolane_")));
    lab.assert_nothing_left();
}

#[test]
fn no_folder_gets_onto_the_python_path_that_was_not_there() {
    let lab = Lab::new();
    lab.file("shadow.py", "").file("library/useful.py", "");
    lab.file(
        "tests/test_path.py",
        "
import importlib.util, os, sys
def test_shadow(): assert importlib.util.find_spec('shadow') is None, sys.path
def test_useful(): assert (importlib.util.find_spec('useful') is not None) == ('LIBRARY' in os.environ), sys.path
def test_nothing_empty(): assert '' not in os.environ.get('PYTHONPATH', 'x').split(os.pathsep)
",
    );
    for args in ["-n 2 --import-mode importlib", "-p no:xdist --import-mode importlib"] {
        lab.pytest(args).run().assert_code(0);
        let library = lab.path("library");
        lab.pytest(args).env("PYTHONPATH", &library).env("LIBRARY", "").run().assert_code(0);
    }
}

#[test]
fn plugins_and_options_that_the_user_set_stay() {
    let lab = Lab::new();
    lab.file("mine/mine.py", "import os\ndef pytest_configure(config): os.environ['MINE'] = config.option.keyword\n");
    lab.file(
        "test_kept.py",
        "
import os
def test_wanted():
    assert os.environ['MINE'] == 'test_wanted'
    assert os.environ['PYTEST_PLUGINS'] == 'mine'
    assert os.environ['PYTEST_ADDOPTS'] == \"-k 'test_wanted'\"
def test_unwanted(): assert False
",
    );
    for args in ["-n 2", "-p no:xdist"] {
        let pytest = lab.pytest(args).env("PYTHONPATH", lab.path("mine")).env("PYTEST_PLUGINS", "mine");
        let outcome = pytest.env("PYTEST_ADDOPTS", "-k 'test_wanted'").run().assert_code(0);
        assert!(outcome.out().contains("1 passed"), "{}", outcome.all());
    }
}

#[test]
fn databases_that_django_makes_for_itself_are_made_beside_the_lane() {
    let database = Server::shared().database("CREATEDB");
    let lab = Lab::on(&database).python("django");
    lab.file("pytest.ini", "[pytest]\nDJANGO_SETTINGS_MODULE = settings\npythonpath = .\n");
    lab.file(
        "settings.py",
        "
import os
from urllib.parse import urlsplit
url = urlsplit(os.environ['DATABASE_URL'])
DATABASES = {'default': {'ENGINE': 'django.db.backends.postgresql', 'NAME': url.path[1:], 'USER': url.username,
    'PASSWORD': url.password, 'HOST': url.hostname, 'PORT': url.port}}
INSTALLED_APPS = ['django.contrib.contenttypes', 'django.contrib.auth']
USE_TZ = True
",
    );
    lab.file(
        "test_users.py",
        "
import pytest
from django.contrib.auth.models import User
from django.db import connection
@pytest.mark.django_db
@pytest.mark.parametrize('n', range(4))
def test_user(n):
    User.objects.create(username='alice')
    assert connection.settings_dict['NAME'].startswith('test_isolane_'), connection.settings_dict
",
    );
    lab.pytest("-n 2").run().assert_code(0);
    database.assert_nothing_left(&lab);
}
