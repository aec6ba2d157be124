//! JUnit XML, as CI servers read it: a test case for each attempt of each test.

use std::borrow::Cow;
use std::io::{self, Write};

use quick_xml::Writer;
use quick_xml::events::{BytesDecl, BytesText, Event};
use serde_json::Value;

use super::Story;
use crate::ledger::reading::Question;

/// A test case, as [`Question::CASES`] has it.
struct Case<'a> {
    worker: &'a str,
    test: &'a str,
    attempt: Option<i64>,
    seconds: f64,
    outcome: Option<&'a str>,
    message: &'a str,
    lane: Option<i64>,
}

impl<'a> Case<'a> {
    fn read(row: &'a [Value]) -> Option<Self> {
        let [worker, test, attempt, seconds, outcome, message, lane] = row else { return None };
        Some(Self {
            worker: worker.as_str()?,
            test: test.as_str()?,
            attempt: attempt.as_i64(),
            seconds: seconds.as_f64().unwrap_or_default(),
            outcome: outcome.as_str(),
            message: message.as_str().unwrap_or_default(),
            lane: lane.as_i64(),
        })
    }
}

/// Writes it.
pub(super) fn write(story: &Story<'_>, out: &mut impl Write) -> anyhow::Result<()> {
    let suite = story.one(Question::SUITE)?;
    let text = |name: &str| allowed(story.run[name].as_str().unwrap_or_default());
    let runner = text("runner").into_owned();
    let count = |name: &str| suite[name].as_i64().unwrap_or_default().to_string();
    let mut xml = Writer::new_with_indent(out, b' ', 1);
    xml.write_event(Event::Decl(BytesDecl::new("1.0", Some("utf-8"), None)))?;
    let mut failed = None;
    xml.create_element("testsuites").write_inner_content(|xml| {
        let element = xml.create_element("testsuite").with_attributes([
            ("name", if runner.is_empty() { "isolane" } else { &runner }),
            ("tests", &count("tests")),
            ("failures", &count("failures")),
            ("errors", &count("errors")),
            ("skipped", &count("skipped")),
            ("time", &seconds(suite["time"].as_f64().unwrap_or_default())),
            ("timestamp", &text("started_at")),
            ("hostname", &text("host")),
        ]);
        let inner = |xml: &mut Writer<_>| {
            // What the ledger cannot say is no error of writing, and comes back as it was.
            failed = story
                .each(Question::CASES, u32::MAX, |_, row| {
                    Case::read(&row).map_or(Ok(()), |case| Ok(write_case(xml, &case, &runner)?))
                })
                .err();
            Ok(())
        };
        element.write_inner_content(inner).map(drop)
    })?;
    xml.get_mut().write_all(b"\n")?;
    failed.map_or(Ok(()), Err)
}

fn write_case<W: Write>(xml: &mut Writer<W>, case: &Case<'_>, runner: &str) -> io::Result<()> {
    let test = allowed(case.test);
    let (class, name) = if runner == "pytest" { pytest_names(&test) } else { other_names(&test, runner) };
    let element = xml.create_element("testcase").with_attributes([
        ("classname", &*class),
        ("name", name),
        ("time", &seconds(case.seconds)),
    ]);
    element
        .write_inner_content(|xml| {
            xml.create_element("properties").write_inner_content(|xml| {
                let numbers = [("lane", case.lane), ("attempt", case.attempt)];
                let numbers = numbers.into_iter().filter_map(|(name, number)| Some((name, number?.to_string())));
                for (name, value) in std::iter::once(("worker_id", allowed(case.worker).into_owned())).chain(numbers) {
                    xml.create_element("property")
                        .with_attributes([("name", name), ("value", &value)])
                        .write_empty()?;
                }
                Ok(())
            })?;
            let element = match case.outcome {
                None | Some("passed" | "xpassed") => return Ok(()),
                Some("skipped" | "xfailed") => "skipped",
                Some("error" | "crashed") => "error",
                Some(_) => "failure",
            };
            let message = allowed(case.message);
            let line = message.lines().find(|line| !line.trim().is_empty()).or(case.outcome).unwrap_or_default();
            let element = xml.create_element(element).with_attribute(("message", line));
            let written = if message.contains('\n') && element_has_text(case.outcome) {
                element.write_text_content(BytesText::new(&message))
            } else {
                element.write_empty()
            };
            written.map(drop)
        })
        .map(drop)
}

/// Of what was skipped, one line is all there is to say.
fn element_has_text(outcome: Option<&str>) -> bool {
    !matches!(outcome, Some("skipped" | "xfailed"))
}

fn seconds(seconds: f64) -> String {
    format!("{:.6}", seconds.max(0.0))
}

/// `path/file.py::Class::test[a::b]` is `test[a::b]` of `path.file.Class`.
fn pytest_names(id: &str) -> (Cow<'_, str>, &str) {
    let Some(path_end) = id.find("::") else { return (Cow::Borrowed(""), id) };
    // What is within the brackets may have colons of its own.
    let plain_end = id[path_end..].find('[').map_or(id.len(), |at| path_end + at);
    let class_end = id[..plain_end].rfind("::").unwrap_or(path_end);
    let path = id[..path_end].strip_suffix(".py").unwrap_or(&id[..path_end]).replace('/', ".");
    let class = id[path_end..class_end].replace("::", ".");
    (Cow::Owned(path + &class), &id[class_end + 2..])
}

/// nextest's `binary$test` is `test` of `binary`.
fn other_names<'a>(id: &'a str, runner: &'a str) -> (Cow<'a, str>, &'a str) {
    let (class, name) = id.split_once('$').unwrap_or((runner, id));
    (Cow::Borrowed(class), name)
}

/// The text, with a sign in place of each character that XML 1.0 has no way to write (§2.2).
fn allowed(text: &str) -> Cow<'_, str> {
    let is_allowed = |c: char| matches!(c, '\t' | '\n' | '\r' | '\u{20}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..='\u{10ffff}');
    if text.chars().all(is_allowed) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().map(|c| if is_allowed(c) { c } else { char::REPLACEMENT_CHARACTER }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_pytest_are_classes_and_names() {
        for (id, class, name) in [
            ("test_a.py::test_one", "test_a", "test_one"),
            ("sub/dir/test_a.py::TestX::test_one[1-b]", "sub.dir.test_a.TestX", "test_one[1-b]"),
            ("test_a.py::TestX::TestY::test[a::b/c.py]", "test_a.TestX.TestY", "test[a::b/c.py]"),
            ("readme.md::readme.md", "readme.md", "readme.md"),
            ("test_a.py", "", "test_a.py"),
        ] {
            assert_eq!(pytest_names(id), (Cow::Borrowed(class), name), "{id}");
        }
    }

    #[test]
    fn ids_of_nextest_are_binaries_and_names() {
        assert_eq!(other_names("shop::it$cart::adds", "nextest"), (Cow::Borrowed("shop::it"), "cart::adds"));
        assert_eq!(other_names("unit", "cargo-test"), (Cow::Borrowed("cargo-test"), "unit"));
    }

    #[test]
    fn what_xml_cannot_say_is_replaced() {
        assert_eq!(allowed("a\u{0}\u{1b}[31m\u{ffff}\n😀"), "a\u{fffd}\u{fffd}[31m\u{fffd}\n😀");
    }
}
