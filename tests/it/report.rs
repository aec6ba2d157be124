//! `isolane report` and `isolane run --report`: a run in a file.

use quick_xml::events::Event;
use serde_json::Value;

use crate::lab::Lab;

/// Ids and messages as nasty as tests may have them.
const HOSTILE: &str = r#"
import pytest
@pytest.mark.parametrize('value', [1], ids=['</script><b>"&\'\u202eevil\u202c'])
def test_hostile(value): pass
class TestIn:
    def test_fails(self): assert False, '</script><script>alert(1)</script> ]]> \x01\x1b[31m\nsecond line'
    @pytest.mark.skip(reason='not now')
    def test_skipped(self): pass
def test_in_error(no_such_fixture): pass
"#;

/// A lab after a run of tests with nasty names.
fn hostile() -> Lab {
    let lab = Lab::new();
    lab.file("sub/test_hostile.py", HOSTILE);
    lab.wrap("--report out/run.html --report run.json --report junit.xml", "pytest -q -p no:cacheprovider -n 2")
        .run()
        .assert_code(1)
        .assert_says("report out/run.html")
        .assert_says("report junit.xml");
    lab
}

fn json(lab: &Lab, file: &str) -> Value {
    serde_json::from_str(&lab.read(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

#[test]
fn json_has_all_of_a_run_under_the_names_of_the_views() {
    let lab = hostile();
    let report = json(&lab, "run.json");
    assert_eq!((&report["run"]["state"], &report["run"]["exit_code"]), (&"failed".into(), &1.into()));
    assert!(report["run"]["ended_at"].is_string(), "it is written when the run has ended");
    for (part, view) in [
        ("workers", "workers"),
        ("tests", "tests"),
        ("collisions", "collisions"),
        ("leaks", "leaks"),
        ("records", "records"),
        ("resources", "resources"),
    ] {
        let rows = report[part].as_array().unwrap_or_else(|| panic!("no {part}"));
        assert_eq!(rows.len().to_string(), lab.value(&format!("SELECT count(*) FROM {view}")), "{part}");
        let columns = lab.column(&format!("SELECT name FROM pragma_table_info('{view}') ORDER BY cid"));
        for row in rows {
            let names: Vec<_> = row.as_object().expect("an object").keys().collect();
            assert_eq!(names.len(), columns.len());
            assert!(columns.iter().all(|column| names.contains(&column)), "{names:?}");
        }
    }
    let ids: Vec<_> =
        report["tests"].as_array().expect("tests").iter().filter_map(|test| test["test_id"].as_str()).collect();
    assert!(ids.iter().any(|id| id.contains("</script><b>\"&'")), "{ids:?}");
    lab.assert_nothing_left();
}

/// The elements of an XML document, each with its attributes, as a reader sees them.
fn elements(text: &str) -> Vec<(String, Vec<(String, String)>)> {
    let mut reader = quick_xml::Reader::from_str(text);
    let mut found = Vec::new();
    loop {
        match reader.read_event().unwrap_or_else(|error| panic!("{error} in\n{text}")) {
            Event::Start(element) | Event::Empty(element) => {
                let attributes = element.attributes().map(|attribute| {
                    let attribute = attribute.expect("an attribute");
                    let value = attribute.normalized_value(quick_xml::XmlVersion::Implicit1_0).expect("a value");
                    (attribute.key.as_ref().to_owned(), value.into_owned())
                });
                let attributes = attributes.collect();
                found.push((element.name().as_ref().to_owned(), attributes));
            }
            Event::Eof => return found,
            _ => {}
        }
    }
}

fn attribute<'a>(attributes: &'a [(String, String)], name: &str) -> &'a str {
    attributes.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
}

#[test]
fn junit_has_a_case_for_each_test_and_says_where_it_ran() {
    let lab = hostile();
    let text = lab.read("junit.xml");
    let all = elements(&text);
    let of = |name: &str| -> Vec<_> { all.iter().filter(|(its, _)| its == name).map(|(_, a)| a.clone()).collect() };
    let suite = &of("testsuite")[0];
    for (name, value) in [("name", "pytest"), ("tests", "4"), ("failures", "1"), ("errors", "1"), ("skipped", "1")] {
        assert_eq!(attribute(suite, name), value, "{name} in\n{text}");
    }
    assert!(attribute(suite, "time").parse::<f64>().is_ok_and(|time| time > 0.0), "{text}");
    assert!(!attribute(suite, "hostname").is_empty() && attribute(suite, "timestamp").starts_with("20"), "{text}");
    let cases: Vec<_> = of("testcase")
        .iter()
        .map(|case| (attribute(case, "classname").to_owned(), attribute(case, "name").to_owned()))
        .collect();
    for (class, name) in [
        ("sub.test_hostile.TestIn", "test_fails"),
        ("sub.test_hostile.TestIn", "test_skipped"),
        ("sub.test_hostile", "test_in_error"),
    ] {
        assert!(cases.contains(&(class.to_owned(), name.to_owned())), "{cases:?}");
    }
    assert!(cases.iter().any(|(_, name)| name.contains("</script><b>\"&'")), "{cases:?}");
    let places: Vec<_> =
        of("property").iter().map(|p| (attribute(p, "name").to_owned(), attribute(p, "value").to_owned())).collect();
    for test in lab.ledger("SELECT t.worker_id, lane FROM tests t JOIN workers w USING (worker_id)") {
        assert!(places.contains(&("worker_id".to_owned(), test[0].clone())), "{places:?}");
        assert!(places.contains(&("lane".to_owned(), test[1].clone())), "{places:?}");
    }
    assert!(attribute(&of("failure")[0], "message").contains("</script><script>alert(1)"), "{text}");
    assert_eq!(of("skipped").len(), 1, "{text}");
    assert_eq!(of("error").len(), 1);
    assert!(!text.contains(['\u{1}', '\u{1b}']), "{text}");
}

#[test]
fn a_page_needs_nothing_else_and_no_text_leaves_its_place() {
    let lab = hostile();
    let page = lab.read("out/run.html");
    assert!(page.contains("default-src 'none'") && !page.contains("unsafe-inline"), "a strict policy");
    for outside in ["src=", "href=\"http", "@import", "url(", "fetch(", "XMLHttpRequest"] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert_eq!(page.matches("</script>").count(), 2, "the data and the script, and no other");
    assert!(!page.contains("<b>\""));
    let data = page.split_once("id=\"data\">").and_then(|(_, rest)| rest.split_once("</script>")).expect("the data").0;
    let data: Value = serde_json::from_str(data).expect("JSON");
    assert_eq!(data["tests"].as_array().map(Vec::len), Some(4));
    assert_eq!(data["run"]["run_id"].as_str(), Some(lab.value("SELECT run_id FROM runs").as_str()));
}

#[test]
fn the_run_is_the_latest_or_the_one_that_is_named() {
    let lab = Lab::new();
    lab.wrap("", "true").run().assert_code(0);
    lab.wrap("", "false").run().assert_code(1);
    let runs = lab.ledger("SELECT run_id, tag FROM runs ORDER BY started_at");
    let written = |which: &str| {
        lab.isolane("report -o r.json").arg_all(which.split_whitespace()).run().assert_code(0);
        json(&lab, "r.json")["run"]["run_id"].as_str().expect("an id").to_owned()
    };
    assert_eq!(written(""), runs[1][0]);
    for run in &runs {
        assert_eq!(written(&run[0]), run[0]);
        assert_eq!(written(&run[0].to_uppercase()), run[0]);
        assert_eq!(written(&run[1]), run[0]);
        assert_eq!(written(&run[0][..run[0].len() - 2]), run[0]);
    }
    lab.isolane("report -o a.html -o b.xml -o deep/er/c.json").run().assert_code(0);
    assert!(["a.html", "b.xml", "deep/er/c.json"].iter().all(|file| lab.path(file).exists()));
}

#[test]
fn a_run_that_goes_on_can_be_looked_at() {
    let lab = Lab::new();
    lab.sh("", "isolane report -o now.json -o now.html -o now.xml").run().assert_code(0);
    let report = json(&lab, "now.json");
    assert_eq!((&report["run"]["state"], &report["run"]["ended_at"]), (&"running".into(), &Value::Null));
    assert!(lab.read("now.html").contains("\"running\""));
    assert_eq!(elements(&lab.read("now.xml")).len(), 2);
}

/// One line on stderr with these words, and this code.
#[track_caller]
fn refused(lab: &Lab, args: &str, code: i32, words: &[&str]) {
    let outcome = lab.isolane(args).run().assert_code(code);
    assert_eq!(outcome.err().lines().count(), 1, "{}", outcome.all());
    assert!(words.iter().all(|word| outcome.err().contains(word)), "{words:?}\n{}", outcome.all());
    assert_eq!(outcome.out(), "");
}

#[test]
fn what_cannot_be_written_is_refused_in_one_line() {
    let lab = Lab::new();
    refused(&lab, "report -o x.html", 2, &["no ledger"]);
    lab.wrap("", "true").run().assert_code(0);
    lab.wrap("", "true").run().assert_code(0);
    refused(&lab, "report", 2, &["-o FILE.html"]);
    refused(&lab, "report -o x.pdf", 2, &["x.pdf", ".html", ".json", ".xml"]);
    refused(&lab, "report -o x", 2, &[".html"]);
    refused(&lab, "report no-such-run -o x.html", 2, &["no-such-run", "isolane runs"]);
    let shared = lab.value("SELECT substr(min(run_id), 1, 3) FROM runs");
    refused(&lab, &format!("report {shared} -o x.html"), 2, &["more than one", &shared]);
    assert!(!lab.path("x.html").exists() && !lab.path("x.pdf").exists());
    lab.file("plain", "");
    refused(&lab, "report -o plain/x.html", 125, &["plain/x.html"]);
    refused(&lab, "report -o /proc/x.json", 125, &["/proc/x.json"]);
}

#[test]
fn a_report_with_a_wrong_ending_stops_a_run_before_it_starts() {
    let lab = Lab::new();
    let outcome = lab.wrap("--report x.html --report x.doc", "touch started").run().assert_code(2);
    assert!(outcome.err().lines().count() == 1 && outcome.err().contains("x.doc"), "{}", outcome.all());
    lab.file("isolane.toml", "report = [\"x.pages\"]\n");
    let outcome = lab.wrap("", "touch started").run().assert_code(2);
    assert!(outcome.err().contains("x.pages"), "{}", outcome.all());
    assert!(!lab.path("started").exists() && !lab.path(".isolane").exists() && !lab.path("x.html").exists());
}

#[test]
fn a_report_that_cannot_be_written_at_the_end_does_not_change_the_exit_code() {
    let lab = Lab::new();
    lab.file("plain", "");
    for (command, code) in [("true", 0), ("false", 1)] {
        let outcome = lab.wrap("--quiet --report plain/x.html --report good.json", command).run().assert_code(code);
        assert_eq!(outcome.err().lines().count(), 1, "{}", outcome.all());
        outcome.assert_says("cannot write the report").assert_says("plain/x.html");
        assert_eq!(json(&lab, "good.json")["run"]["exit_code"], code, "the others are written");
    }
    let outcome = lab.sh("--report x.html", "rm -r .isolane").run().assert_code(0);
    outcome.assert_says("cannot write the report");
    lab.assert_nothing_left();
}

#[test]
fn the_file_names_reports_beside_itself_and_flags_win() {
    let lab = Lab::new();
    lab.file("isolane.toml", "report = [\"out/run.html\", \"junit.xml\"]\n").file("deep/x", "");
    lab.wrap("", "true").within(&lab.path("deep")).run().assert_code(0);
    assert!(lab.path("out/run.html").exists() && lab.path("junit.xml").exists());
    std::fs::remove_file(lab.path("junit.xml")).expect("our own file");
    lab.wrap("--report here.json", "true").within(&lab.path("deep")).run().assert_code(0);
    assert!(lab.path("deep/here.json").exists() && !lab.path("junit.xml").exists());
}
