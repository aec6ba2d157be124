//! The page of a run in a real browser: drawn, filtered, clicked, by mouse and by keyboard,
//! on a telephone and in the dark.

use std::time::Instant;

use rusqlite::{Connection, params};
use serde_json::json;

use crate::lab::{Browser, Lab};

const WORKERS: i64 = 8;
/// How long each test of a crowd takes, in microseconds, and how long its worker waits then.
const TEST: i64 = 30_000;
const PAUSE: i64 = 2_000;

/// A lab whose ledger tells of a run with many tests and collisions, and its page.
fn crowd(tests: i64, collisions: i64) -> Lab {
    let lab = Lab::new();
    lab.wrap("", "true").run().assert_code(0);
    let mut ledger = Connection::open(lab.ledger_path()).expect("a ledger");
    fill(&mut ledger, tests, collisions).expect("rows");
    drop(ledger);
    lab.isolane("report crowd -o crowd.html").run().assert_code(0);
    lab
}

fn fill(ledger: &mut Connection, tests: i64, collisions: i64) -> rusqlite::Result<()> {
    let base = 1_772_366_400_000_000;
    let tx = ledger.transaction()?;
    tx.execute_batch(
        "INSERT INTO run VALUES (77, 'crowd', 'c10dc10dc10d', 'pytest -n 8', 'pytest', 'host', '/shop', '',
             '2026-03-01T12:00:00.000Z', '2026-03-01T12:10:00.000Z', 1, 'failed');
         INSERT INTO kind VALUES (1, 'public.customers'), (2, 'public.orders');",
    )?;
    for worker in 0..WORKERS {
        tx.execute(
            "INSERT INTO worker (worker, run, worker_id, lane, started_at, outcome)
             VALUES (?1 + 100, 77, 'gw' || ?1, ?1, '2026-03-01T12:00:00.000Z', 'ok')",
            [worker],
        )?;
    }
    for test in 0..tests {
        let began = base + test / WORKERS * (TEST + PAUSE);
        let outcome = if test % 50 == 0 { "failed" } else { "passed" };
        let message = (test % 50 == 0).then_some("duplicate key\nDETAIL: it exists");
        tx.execute(
            "INSERT INTO test (run, number, worker_id, test_id, attempt, began, ended, outcome, message)
             VALUES (77, ?, ?, ?, 1, ?, ?, ?, ?)",
            params![
                test,
                format!("gw{}", test % WORKERS),
                format!("tests/test_shop.py::TestCart::test_buy[{test}]"),
                began,
                began + TEST,
                outcome,
                message
            ],
        )?;
    }
    for collision in 0..collisions {
        let a = collision * (tests - 2 * WORKERS) / collisions.max(1) / WORKERS * WORKERS;
        let (b, overlap) = if collision % 2 == 0 { (a + 1, TEST) } else { (a + WORKERS + 1, 0) };
        let at = |test: i64| base + test / WORKERS * (TEST + PAUSE) + TEST / 2;
        tx.execute(
            "INSERT INTO collision (run, kind, key, pattern, worker_a, test_a, op_a, at_a, worker_b, test_b, op_b, at_b,
                                    overlap_us, failed_test)
             VALUES (77, ?, ?, 'clobber', 100, ?, 'insert', ?, 101, ?, 'update', ?, ?, ?)",
            params![
                collision % 2 + 1,
                format!("{{\"id\":{collision}}}"),
                a,
                at(a),
                b,
                at(b),
                overlap,
                (a % 50 == 0).then_some(a)
            ],
        )?;
    }
    tx.commit()
}

#[track_caller]
fn visit(browser: &mut Browser, lab: &Lab, file: &str) {
    browser.visit(&format!("file://{}", lab.path(file).display()));
    browser.wait_for("document.querySelector('#tabs [aria-selected=true]')");
}

#[track_caller]
fn number(browser: &mut Browser, expression: &str) -> i64 {
    let value = browser.eval(&format!("Math.round({expression})"));
    value.as_i64().unwrap_or_else(|| panic!("{expression} is {value}"))
}

#[track_caller]
fn text(browser: &mut Browser, selector: &str) -> String {
    let value = browser.eval(&format!("document.querySelector({selector:?}).innerText"));
    value.as_str().unwrap_or_else(|| panic!("{selector} has no text")).to_owned()
}

#[test]
fn it_shows_twenty_thousand_tests_and_answers_at_once() {
    let lab = crowd(20_000, 2_000);
    let mut browser = Browser::start(&lab);
    browser.resize(1280, 900);
    let began = Instant::now();
    visit(&mut browser, &lab, "crowd.html");
    let loaded = began.elapsed();
    let drawn = number(
        &mut browser,
        "(() => { const t = performance.now(); drawTimeline(); return performance.now() - t; })()",
    );
    eprintln!("20,000 tests: loaded in {loaded:?}, drawn in {drawn} ms");
    let interactive = number(&mut browser, "performance.getEntriesByType('navigation')[0].domInteractive");
    eprintln!("interactive after {interactive} ms");

    let picture = browser.screenshot();
    let (colours, _) = browser.colours(&picture);
    assert!(colours > 50, "{colours} colours: it is blank");
    assert!(text(&mut browser, "#counts").contains("20,000"));
    assert!(text(&mut browser, "#verdict").contains("2,000 times"));

    // A table is cut, and goes on when asked.
    assert_eq!(number(&mut browser, "document.querySelectorAll('#panel-collisions tbody tr').length"), 500);
    browser.click("#panel-collisions .more");
    assert_eq!(number(&mut browser, "document.querySelectorAll('#panel-collisions tbody tr').length"), 1000);

    // By words and by table, and the filter comes before the cut.
    browser.click("#text");
    browser.type_text("TestCart 19992");
    browser.wait_for("document.querySelector('#matches').value.startsWith('1 of 20,000')");
    browser.eval("document.querySelector('#clear').click()");
    browser.wait_for("document.querySelectorAll('#panel-collisions tbody tr').length === 500");
    browser.eval("kind.value = 'public.orders'; kind.dispatchEvent(new Event('input', {bubbles: true}))");
    browser.wait_for("document.querySelector('#tab-collisions').textContent === 'Collisions 1,000'");
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn a_collision_opens_by_mouse_in_the_table_and_in_the_timeline() {
    let lab = crowd(160, 4);
    let mut browser = Browser::start(&lab);
    browser.resize(1280, 900);
    visit(&mut browser, &lab, "crowd.html");
    browser.click("#panel-collisions tbody tr");
    browser.wait_for("document.querySelector('dialog[open]')");
    let detail = text(&mut browser, "dialog");
    for part in [
        "clobber",
        "public.customers",
        "{\"id\":0}",
        "gw0",
        "gw1",
        "test_buy[0]",
        "test_buy[1]",
        "insert",
        "update",
        "30.0 ms",
        "duplicate key",
        "isolane who public.customers id=0",
        "12:00:00.015 UTC",
    ] {
        assert!(detail.contains(part), "no {part} in\n{detail}");
    }
    browser.screenshot();
    // From there to one of its tests, and back.
    browser.click("#detail-body .two button");
    assert_eq!(text(&mut browser, "#detail-head"), "Test");
    browser.screenshot();
    browser.click("#back");
    assert_eq!(text(&mut browser, "#detail-head"), "Collision: clobber");
    browser.click("#close");
    browser.wait_for("!document.querySelector('dialog[open]')");

    // Its line in the timeline, half way between both lanes, and a test's bar.
    let middle = "(() => { scrollTo(0, 0); const box = plot.getBoundingClientRect();
        const {upper, lower} = ends(collisions[0]);
        return [box.left + (upper[0] + lower[0]) / 2, box.top + (upper[1] + lower[1]) / 2]; })()";
    let place = browser.eval(middle);
    browser.click_at(place[0].as_f64().expect("x"), place[1].as_f64().expect("y"));
    browser.wait_for("document.querySelector('dialog[open]')");
    assert_eq!(text(&mut browser, "#detail-head"), "Collision: clobber");
    browser.press("Escape");
    browser.wait_for("!document.querySelector('dialog[open]')");
    let bar = "(() => { const box = plot.getBoundingClientRect(); const test = rows[2].tests[7];
        return [box.left + toX((test.began + test.ended) / 2), box.top + barTop(2) + 4]; })()";
    let place = browser.eval(bar);
    browser.click_at(place[0].as_f64().expect("x"), place[1].as_f64().expect("y"));
    browser.wait_for("document.querySelector('dialog[open]')");
    assert!(text(&mut browser, "dialog").contains("test_buy[58]"));
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn everything_can_be_done_by_keyboard() {
    let lab = crowd(160, 4);
    let mut browser = Browser::start(&lab);
    browser.resize(1280, 900);
    visit(&mut browser, &lab, "crowd.html");
    browser.press("Tab");
    assert_eq!(browser.eval("document.activeElement.className"), "skip");
    assert!(number(&mut browser, "document.activeElement.getBoundingClientRect().top") >= 0, "it is seen");
    browser.press("Enter");
    for _ in 0..20 {
        browser.press("Tab");
        if browser.eval("document.activeElement.tagName") == "TR" {
            break;
        }
    }
    assert_eq!(browser.eval("document.activeElement.tagName"), "TR");
    assert_eq!(browser.eval("getComputedStyle(document.activeElement).outlineStyle"), "solid", "a ring");
    browser.press("ArrowDown");
    browser.press("Enter");
    browser.wait_for("document.querySelector('dialog[open]')");
    assert!(text(&mut browser, "dialog").contains("clobber"));
    browser.press("Escape");
    browser.wait_for("!document.querySelector('dialog[open]')");
    assert_eq!(browser.eval("document.activeElement.rowIndex"), 2, "the focus is where it was");

    browser.eval("plot.focus()");
    for key in ["ArrowRight", "ArrowRight", "ArrowDown", "+"] {
        browser.press(key);
    }
    let status = text(&mut browser, "#plot-status");
    assert!(status.contains("gw1") && status.contains("test_buy[9]"), "{status}");
    browser.screenshot();
    browser.press("Enter");
    browser.wait_for("document.querySelector('dialog[open]')");
    assert!(text(&mut browser, "dialog").contains("test_buy[9]"));
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn it_fits_a_telephone_and_the_dark() {
    let lab = crowd(160, 4);
    let mut browser = Browser::start(&lab);
    browser.resize(360, 720);
    browser.prefer("dark");
    visit(&mut browser, &lab, "crowd.html");
    for tab in ["collisions", "tests", "leaks", "records", "left"] {
        browser.eval(&format!("document.querySelector('#tab-{tab}').click()"));
        let width = number(&mut browser, "document.documentElement.scrollWidth");
        assert!(width <= 360, "{tab}: {width}");
    }
    let picture = browser.screenshot();
    let (_, corner) = browser.colours(&picture);
    let brightness: u64 = corner.as_array().expect("three").iter().filter_map(serde_json::Value::as_u64).sum();
    assert!(brightness < 3 * 60, "{corner}");
    browser.eval("choose(TABLES[0])");
    browser.click("#panel-collisions tbody tr");
    browser.wait_for("document.querySelector('dialog[open]')");
    assert!(number(&mut browser, "document.querySelector('dialog').scrollWidth") <= 360);
    browser.screenshot();
    browser.press("Escape");
    browser.prefer("light");
    let picture = browser.screenshot();
    let (_, corner) = browser.colours(&picture);
    assert!(corner[0].as_u64() > Some(200), "{corner}");
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn on_paper_is_what_went_wrong_in_the_colours_of_paper() {
    let lab = crowd(160, 4);
    let mut browser = Browser::start(&lab);
    browser.resize(900, 900);
    browser.prefer("dark");
    visit(&mut browser, &lab, "crowd.html");
    browser.eval("choose(TABLES[2]); dispatchEvent(new Event('beforeprint'))");
    let dark = json!([{"name": "prefers-color-scheme", "value": "dark"}]);
    browser.call("Emulation.setEmulatedMedia", &json!({"media": "print", "features": dark}));
    assert_eq!(browser.eval("getComputedStyle(document.querySelector('#filter')).display"), "none");
    assert_eq!(browser.eval("getComputedStyle(document.querySelector('#panel-collisions')).display"), "block");
    assert!(text(&mut browser, "#panels").contains("test_buy[0]"));
    let picture = browser.screenshot();
    let (colours, corner) = browser.colours(&picture);
    assert!(colours > 50 && corner[0].as_u64() > Some(200), "{colours} {corner}");
}

#[test]
fn hostile_texts_stay_texts() {
    let lab = Lab::new();
    lab.file(
        "test_hostile.py",
        "import pytest\n\
         @pytest.mark.parametrize('value', [1], ids=['</script><b>\"&\\'<img src=x onerror=alert(1)>\\u202e'])\n\
         def test_hostile(value): assert False, '</script><script>document.title = \"taken\"</script>'\n",
    );
    lab.wrap("--report run.html", "pytest -q -p no:cacheprovider -n 2").run().assert_code(1);
    let mut browser = Browser::start(&lab);
    visit(&mut browser, &lab, "run.html");
    assert_eq!(number(&mut browser, "document.querySelectorAll('script').length"), 2);
    browser.click("#panel-tests tbody tr");
    browser.wait_for("document.querySelector('dialog[open]')");
    let detail = text(&mut browser, "dialog");
    assert!(detail.contains("</script><b>\"&'<img src=x onerror=alert(1)>"), "{detail}");
    assert!(detail.contains("</script><script>document.title"), "{detail}");
    assert_eq!(number(&mut browser, "document.querySelectorAll('dialog b, dialog img, dialog script').length"), 0);
    assert!(browser.eval("document.title").as_str().is_some_and(|title| title.starts_with("failed ")));
    // It loads nothing, and what was slipped in would not run.
    assert_eq!(browser.complaints(), Vec::<String>::new());
    browser.eval(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'document.title = \"taken\"'}))",
    );
    assert!(browser.eval("document.title").as_str().is_some_and(|title| title.starts_with("failed ")));
    assert!(browser.complaints().iter().any(|line| line.contains("Content Security Policy")), "it is refused");
    assert!(text(&mut browser, "#verdict").contains("No collisions"));
}
