//! The page of `isolane serve` in a real browser: read without a script, asked by forms, live,
//! on a telephone, by keyboard and in the dark; and what it refuses.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::lab::program::Running;
use crate::lab::{Browser, Lab, wait_until};

const POOLS: &str = r#"
[pool.acct]
items = [{id=1,tier="gold"},{id=2,tier="silver"},{id=3,tier="silver"}]
ttl = "1h"
[pool.customer]
generator = "cat"
maximum = 4
[pool.customer.inputs]
months = { type = "number", default = 6, about = "Months of invoices" }
tier = { values = ["gold", "silver"] }
vip = { type = "boolean" }
[pool."odd <b>&\" name"]
items = ["</script><img src=x onerror=alert(1)>"]
"#;

/// A service with a token for each role.
struct Shop {
    lab: Lab,
    base: String,
    tokens: BTreeMap<&'static str, String>,
    _running: Running,
}

impl Shop {
    fn open() -> Self {
        let lab = Lab::new();
        lab.file("isolane.toml", POOLS);
        let mut tokens = BTreeMap::new();
        for (name, role) in [("anna", "admin"), ("bert", "lease"), ("carl", "read")] {
            let made = lab.isolane(&format!("serve --new-token {name} --role {role}")).run().assert_code(0).out();
            tokens.insert(name, made.trim().to_owned());
        }
        let running = lab.program("sh").arg_all(["-c", "exec isolane serve --listen 127.0.0.1:0 2> said"]).start();
        let said = || std::fs::read_to_string(lab.path("said")).unwrap_or_default();
        let address = || said().split_once("http://").and_then(|(_, rest)| Some(rest.split_once('\n')?.0.to_owned()));
        wait_until("it is served", || address().is_some());
        let address = address().expect("an address");
        let base = format!("http://{}", address.split_whitespace().next().expect("a word"));
        Self { lab, base, tokens, _running: running }
    }

    /// Asks the API with the token of anna, who may do everything.
    #[track_caller]
    fn api(&self, path: &str, more: &[&str]) -> Value {
        let bearer = format!("Authorization: Bearer {}", self.tokens["anna"]);
        let url = format!("{}{path}", self.base);
        let curl = self.lab.program("curl").arg_all(["-sS", "-H", &bearer, &url]).arg_all(more);
        serde_json::from_str(&curl.run().assert_code(0).out()).unwrap_or_default()
    }

    /// A browser in which somebody has logged in by typing the token.
    #[track_caller]
    fn browser(&self, who: &str) -> Browser {
        let mut browser = Browser::start(&self.lab);
        browser.resize(1280, 900);
        self.log_in(&mut browser, who);
        browser
    }

    #[track_caller]
    fn log_in(&self, browser: &mut Browser, who: &str) {
        browser.visit(&self.base);
        assert_eq!(browser.eval("document.activeElement.id"), "token", "the only field has the focus");
        browser.type_text(&self.tokens[who]);
        browser.press("Enter");
        browser.wait_for("document.querySelector('#pools') && document.readyState === 'complete'");
    }

    /// curl with cookies, as a program would try it. The status and the body come back.
    #[track_caller]
    fn curl(&self, path: &str, more: &[&str]) -> (u16, String) {
        let url = format!("{}{path}", self.base);
        let jar = ["-b", "jar", "-c", "jar"];
        let curl = self.lab.program("curl").arg_all(["-sS", "-w", "\n%{http_code}", &url]).arg_all(jar).arg_all(more);
        let out = curl.run().assert_code(0).out();
        let (body, status) = out.rsplit_once('\n').expect("a status");
        (status.parse().expect("a number"), body.to_owned())
    }

    /// Logs curl in, and gives the proof that its forms carry.
    #[track_caller]
    fn curl_in(&self, who: &str) -> String {
        let form = proof_in(&self.curl("/login", &[]).1);
        let (proof, token) = (format!("proof={form}"), format!("token={}", self.tokens[who]));
        let (status, _) = self.curl("/login", &["--data-urlencode", &proof, "--data-urlencode", &token]);
        assert_eq!(status, 303);
        let (status, page) = self.curl("/", &[]);
        assert_eq!(status, 200, "{page}");
        proof_in(&page)
    }

    fn held(&self) -> Vec<Value> {
        self.api("/v1/leases", &[]).as_array().cloned().unwrap_or_default()
    }
}

#[track_caller]
fn proof_in(page: &str) -> String {
    let (_, rest) = page.split_once("name=\"proof\" value=\"").unwrap_or_else(|| panic!("no form in {page}"));
    rest.split('"').next().expect("a value").to_owned()
}

#[track_caller]
fn text(browser: &mut Browser, selector: &str) -> String {
    let value = browser.eval(&format!("document.querySelector({selector:?}).innerText"));
    value.as_str().unwrap_or_else(|| panic!("{selector} has no text")).to_owned()
}

/// Sends the form that a selector finds a button of, and waits for the page behind it.
#[track_caller]
fn submit(browser: &mut Browser, button: &str) {
    browser.eval("window.isBefore = true");
    browser.click(button);
    browser.wait_for("!window.isBefore && document.readyState === 'complete' && document.querySelector('main')");
}

#[test]
fn all_is_read_and_asked_for_without_a_script() {
    let shop = Shop::open();
    let script = "isolane lease acquire acct --where tier=gold > got; while [ ! -e stop ]; do sleep 0.1; done";
    let run = shop.lab.sh("--quiet", script).start();
    wait_until("the run holds something", || {
        std::fs::read_to_string(shop.lab.path("got")).is_ok_and(|text| text.contains("gold"))
    });
    let mut browser = Browser::start(&shop.lab);
    browser.call("Emulation.setScriptExecutionDisabled", &json!({"value": true}));
    shop.log_in(&mut browser, "bert");
    let tag = shop.lab.tag();
    let card = text(&mut browser, "#pool-acct");
    for part in ["acct", "exclusive", "1 h", "given items", "2 of 3 free", "1 held", "Exhaustion", "Waiting"] {
        assert!(card.contains(part), "no {part} in\n{card}");
    }
    let holders = text(&mut browser, "#holders");
    for part in [&*tag, "w0", "acct", "UTC"] {
        assert!(holders.contains(part), "no {part} in\n{holders}");
    }
    let runs = text(&mut browser, "#runs");
    assert!(runs.contains(&tag) && runs.contains("w0") && runs.contains("Holds"), "{runs}");
    // The form of a generator's inputs, each of which may be left to it.
    let customer = browser.eval(
        "[...document.querySelectorAll('form[action=\"/request\"]')].map((form) => new FormData(form))
            .find((data) => data.get('pool') === 'customer').get('in.vip')",
    );
    assert_eq!(customer, "");
    let options = "[...document.querySelectorAll('[name=\"in.vip\"] option')].map((it) => it.text).join()";
    assert_eq!(browser.eval(options), "leave to the generator,yes,no");
    assert_eq!(browser.eval("document.querySelector('[name=\"in.months\"]').type"), "number");
    assert_eq!(browser.eval("document.querySelectorAll('[name=\"in.tier\"]').length"), 2);

    browser.eval("document.querySelector('details.fold').open = true");
    browser.eval("document.querySelector('.card [name=\"in.tier\"]').value = '\"silver\"'");
    submit(&mut browser, ".card button.main");
    let notice = text(&mut browser, ".notice");
    assert!(notice.contains("of acct: yours for 1 h"), "{notice}");
    let yours = text(&mut browser, "#yours");
    assert!(yours.contains("silver") && yours.contains("Release"), "{yours}");
    let mine: Vec<_> = shop.held().into_iter().filter(|it| it["run_id"].is_null()).collect();
    assert_eq!((mine.len(), mine[0]["pool"].as_str()), (1, Some("acct")));
    submit(&mut browser, "#yours form[action='/release'] button");
    assert_eq!(text(&mut browser, ".notice"), "Released.");
    assert_eq!(shop.held().len(), 1, "the run's own");
    // What cannot be had is said, and by whom it is held.
    browser.eval("document.querySelector('details.fold').open = true");
    browser.eval("document.querySelector('.card [name=\"in.tier\"]').value = '\"gold\"'");
    submit(&mut browser, ".card button.main");
    let refused = text(&mut browser, ".notice.refused");
    assert!(refused.contains("w0"), "{refused}");
    shop.lab.file("stop", "");
    run.finish().assert_code(0);
}

#[test]
fn what_others_do_appears_and_what_is_filled_in_stays() {
    let shop = Shop::open();
    let mut browser = shop.browser("anna");
    browser.wait_for("document.querySelector('#live').dataset.state === 'live'");
    browser.eval("document.querySelector('details.fold').open = true");
    browser.click("#pool-acct-ttl");
    browser.type_text("5");
    let before = browser.eval("document.activeElement.value");
    let taken =
        shop.api("/v1/leases", &["-d", r#"{"pool":"acct","where":{"tier":"gold"},"ttl":"5m","client":"else"}"#]);
    let id = taken["id"].as_str().expect("a lease").to_owned();
    browser.wait_for("document.querySelector('#pool-acct').innerText.includes('2 of 3 free')");
    browser.wait_for("document.querySelector('#holders').innerText.includes('anna/else')");
    assert_eq!(browser.eval("document.activeElement.id"), "pool-acct-ttl");
    assert_eq!(browser.eval("document.activeElement.value"), before);
    assert_eq!(browser.eval("document.querySelector('details.fold').open"), true);
    // Local times, with what they are in UTC.
    assert!(!text(&mut browser, "#holders").contains("UTC"));
    assert!(browser.eval("document.querySelector('#holders time').title").as_str().is_some_and(|it| it.ends_with('Z')));
    // Somebody waits for it.
    let waits =
        shop.lab.program("curl").arg_all(["-sS", "-H", &format!("Authorization: Bearer {}", shop.tokens["bert"])]);
    let ask = r#"{"pool":"acct","where":{"tier":"gold"},"wait":"5m","worker":"gw7","test":"t.py::waits"}"#;
    let waits = waits.arg_all([&format!("{}/v1/leases", shop.base), "-d", ask]).start();
    browser.wait_for("document.querySelector('#queue').innerText.includes('t.py::waits')");
    assert!(text(&mut browser, "#queue").contains("tier=gold"));
    browser.screenshot();
    // An admin takes it away: asked twice, in two steps.
    browser.eval("document.querySelector('#holders .sure').open = true");
    submit(&mut browser, "#holders .sure button");
    let notice = text(&mut browser, ".notice");
    assert!(notice.starts_with("Revoked") && notice.contains("anna/else"), "{notice}");
    let granted = waits.finish().assert_code(0).out();
    assert!(granted.contains("\"fence\"") && !granted.contains(&id), "{granted}");
    // A new pool is a new card, without anybody asking for it.
    browser.wait_for("document.querySelector('#live').dataset.state === 'live'");
    shop.api("/v1/pools/fresh/items", &["-d", r#"["one"]"#]);
    browser.wait_for("document.querySelector('#pool-fresh')?.innerText.includes('1 of 1 free')");
    // Names are text, whatever is in them.
    assert_eq!(browser.eval("document.querySelectorAll('#pools img, #pools h3 b').length"), 0);
    browser.visit(&format!("{}/pools/odd%20%3Cb%3E%26%22%20name", shop.base));
    assert!(text(&mut browser, "#items").contains("</script><img src=x onerror=alert(1)>"));
    browser.eval("document.querySelector('#items .sure').open = true");
    submit(&mut browser, "#items .sure button");
    assert!(text(&mut browser, ".notice").ends_with("is retired."));
    assert!(text(&mut browser, "#items").contains("No item"));
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn a_form_that_is_not_its_own_does_nothing() {
    let shop = Shop::open();
    let headers = shop.lab.program("curl").arg_all(["-sSI", "-X", "GET", &format!("{}/login", shop.base)]);
    let headers = headers.run().assert_code(0).out().to_lowercase();
    for part in [
        "default-src 'none'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "x-content-type-options: nosniff",
        "referrer-policy: same-origin",
        "cache-control: no-store",
        "httponly; samesite=strict",
    ] {
        assert!(headers.contains(part), "no {part} in\n{headers}");
    }
    // Without a session there is nothing to see, and a wrong token gives none.
    assert_eq!(shop.curl("/", &[]).0, 303);
    assert_eq!(shop.curl("/live", &[]).0, 401);
    assert_eq!(shop.curl("/request", &["-d", "pool=acct"]).0, 303);
    let form = format!("proof={}", proof_in(&shop.curl("/login", &[]).1));
    let (status, page) = shop.curl("/login", &["-d", &form, "-d", "token=isolane_wrong"]);
    assert!(status == 401 && page.contains("There is no such token"), "{page}");
    assert_eq!(shop.curl("/", &[]).0, 303);
    let right = format!("token={}", shop.tokens["anna"]);
    assert_eq!(shop.curl("/login", &["-d", "proof=x", "-d", &right]).0, 403, "a login that another page sent");
    let evil = "Origin: https://evil.example";
    assert_eq!(shop.curl("/login", &["-d", &form, "-d", &right, "-H", evil]).0, 403);

    let proof = format!("proof={}", shop.curl_in("anna"));
    let ask = ["-d", "pool=acct", "-d", "count=1", "-d", "ttl=5m"];
    let with = |more: &[&str]| shop.curl("/request", &[&ask[..], more].concat());
    for forged in [
        &[][..],
        &["-d", "proof=0000"],
        &["-d", &form],
        &["-d", &proof, "-H", evil],
        &["-d", &proof, "-H", "Origin: null"],
        &["-d", &proof, "-H", "Sec-Fetch-Site: cross-site"],
    ] {
        let (status, page) = with(forged);
        assert!(status == 403 && page.contains("Nothing was done"), "{forged:?}: {status}");
    }
    assert_eq!(shop.held(), Vec::<Value>::new());
    assert_eq!(with(&["-d", &proof, "-H", &format!("Origin: {}", shop.base)]).0, 303);
    assert_eq!(shop.held().len(), 1);
    let id = format!("lease={}", shop.held()[0]["lease_id"].as_str().expect("an id"));

    // The way back leads to no other server.
    let (_, answer) = shop.curl("/release", &["-i", "-d", &proof, "-d", &id, "-d", "back=//evil.example/"]);
    assert!(answer.to_lowercase().contains("location: /\r\n"), "{answer}");
    // What a role may not do, a form of its own cannot either.
    shop.api("/v1/leases", &["-d", r#"{"pool":"acct","ttl":"5m","client":"x"}"#]);
    let id = format!("lease={}", shop.held()[0]["lease_id"].as_str().expect("an id"));
    for who in ["carl", "bert"] {
        std::fs::remove_file(shop.lab.path("jar")).expect("cookies");
        let proof = format!("proof={}", shop.curl_in(who));
        for path in ["/revoke", "/release", "/renew", "/retire", "/add"] {
            let more = ["-d", &proof, "-d", &id, "-d", "pool=acct", "-d", "item=1", "-d", "items=9"];
            assert_eq!(shop.curl(path, &more).0, 303);
            let page = shop.curl("/", &[]).1;
            assert!(page.contains("does not allow that") || page.contains("This is not yours"), "{who} {path}: {page}");
        }
        assert_eq!(shop.held().len(), 1);
        assert_eq!(shop.api("/v1/pools/acct/items", &[]).as_array().map(Vec::len), Some(3));
        // Who has logged out, and whose token is taken back, is out.
        if who == "carl" {
            assert_eq!(shop.curl("/logout", &["-d", &proof]).0, 303);
        } else {
            shop.lab.isolane("serve --remove-token bert").run().assert_code(0);
            wait_until("the token is forgotten", || shop.curl("/", &[]).0 == 303);
        }
        assert_eq!(shop.curl("/", &[]).0, 303);
    }
}

#[test]
fn it_is_for_telephones_keyboards_and_the_dark() {
    let shop = Shop::open();
    let long =
        "tests/test_a_very_long_name_of_a_module.py::TestWithoutAnySpaces::test_that_goes_on_and_on[parametrised]";
    let ask = json!({"pool": "acct", "ttl": "5m", "worker": "gw0", "test": long}).to_string();
    shop.api("/v1/leases", &["-d", &ask]);
    let mut browser = shop.browser("anna");
    browser.screenshot();
    for scheme in ["light", "dark"] {
        browser.prefer(scheme);
        let picture = browser.screenshot();
        let (colours, corner) = browser.colours(&picture);
        let is_dark = corner.as_array().expect("a colour").iter().all(|it| it.as_u64().is_some_and(|it| it < 64));
        assert!(colours > 20 && is_dark == (scheme == "dark"), "{scheme}: {corner}");
    }
    browser.prefer("light");
    browser.resize(360, 800);
    for path in ["/", "/pools/acct", "/pools/customer"] {
        browser.visit(&format!("{}{path}", shop.base));
        browser.eval("for (const it of document.querySelectorAll('details')) it.open = true");
        assert_eq!(browser.eval("document.documentElement.scrollWidth"), 360, "{path}");
        let wide = "[...document.querySelectorAll('body *')].filter((it) => it.checkVisibility()
            && it.getBoundingClientRect().right > 361).map((it) => it.outerHTML.slice(0, 90))";
        assert_eq!(browser.eval(wide), json!([]), "{path}");
        browser.screenshot();
    }
    // Every field has a name that is told, and every id is there once.
    browser.visit(&shop.base);
    let unnamed = "[...document.querySelectorAll('input:not([type=hidden]), select, textarea, button')].filter((it) =>
        !it.hidden && !it.labels?.length && !it.ariaLabel && !it.textContent.trim()).map((it) => it.outerHTML)";
    assert_eq!(browser.eval(unnamed), json!([]));
    let twice =
        "[...document.querySelectorAll('[id]')].map((it) => it.id).filter((id, at, all) => all.indexOf(id) !== at)";
    assert_eq!(browser.eval(twice), json!([]));
    for landmark in ["header", "nav[aria-label]", "main", "footer", "h1"] {
        assert_eq!(browser.eval(&format!("document.querySelectorAll('{landmark}').length")), 1, "{landmark}");
    }

    browser.resize(1280, 900);
    browser.visit(&shop.base);
    browser.press("Tab");
    assert_eq!(browser.eval("document.activeElement.className"), "skip");
    browser.press("Enter");
    let mut seen = Vec::new();
    for _ in 0..40 {
        browser.press("Tab");
        let ring = browser.eval("getComputedStyle(document.activeElement).outlineStyle");
        let what = browser
            .eval("(document.activeElement.name || document.activeElement.innerText).replace(/\\s+/g, ' ').trim()");
        assert_eq!(ring, "solid", "{what} has the focus, and nobody sees it");
        seen.push(what.as_str().unwrap_or_default().to_owned());
        match seen.last().map(String::as_str) {
            Some("Request from acct by hand") => browser.press("Enter"),
            Some("Request") => break,
            _ => {}
        }
    }
    for part in ["in.tier", "count", "ttl", "wait", "Request"] {
        assert!(seen.iter().any(|it| it == part), "{part} is not reached: {seen:?}");
    }
    browser.eval("window.isBefore = true");
    browser.press("Enter");
    browser.wait_for("!window.isBefore && document.querySelector('.notice.done')");
    assert_eq!(shop.held().len(), 2);
    assert_eq!(browser.complaints(), Vec::<String>::new());
}
