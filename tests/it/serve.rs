//! `isolane serve`, as those have it who are elsewhere: curl, isolane and runs.

use std::io::{Read, Write};
use std::net::TcpStream;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::lab::program::wait_until;
use crate::lab::{Lab, Server, Service, answer, no_rows};

const POOL: &str = "[pool.acct]\nitems = [{id=1},{id=2}]\n";
const ONE: &str = "[pool.acct]\nitems = [{id=1}]\nttl = \"2s\"\n";
const ASK: &str = r#"{"pool":"acct"}"#;
const WAIT: &str = r#"{"pool":"acct","wait":"50s"}"#;

#[test]
fn a_token_allows_what_its_role_says_and_is_not_kept() {
    let lab = Lab::new();
    let service = Service::start(&lab, "", POOL);
    let (read, lease) = (service.token("looker", "--role read"), service.token("ci", ""));
    let old = service.token("old", "--valid-for 1ms");
    let items = ["-d", r#"["x"]"#];
    let gone = ["-X", "DELETE"];
    for (token, statuses) in [
        (&read, [200, 403, 403, 403]),
        (&lease, [200, 201, 403, 403]),
        (&service.admin, [200, 201, 201, 204]),
        (&old, [401; 4]),
        (&"isolane_wrong".to_owned(), [401; 4]),
        (&String::new(), [401; 4]),
    ] {
        let asked = [
            service.ask(token, "/v1/pools", &[]),
            service.ask(token, "/v1/leases", &["-d", ASK]),
            service.ask(token, "/v1/pools/more/items", &items),
            service.ask(token, "/v1/pools/more", &gone),
        ];
        assert_eq!(asked.each_ref().map(|(status, ..)| *status), statuses, "{asked:?}");
        for (status, head, document) in asked.iter().filter(|(status, ..)| *status > 400) {
            let code = if *status == 401 { "unauthorized" } else { "forbidden" };
            assert!(document["code"] == code && head.contains("www-authenticate: bearer"), "{head}{document}");
        }
    }
    assert_eq!(service.ask("", "/healthz", &[]).2, json!({"status": "ok"}));
    assert_eq!(service.ledger("SELECT client FROM lease ORDER BY fence"), [["ci"], ["boss"]]);
    service.serve("--tokens").run().assert_code(0).assert_shows("looker  read");
    service.serve("--new-token ci").run().assert_code(1).assert_says("there is a token ci already");
    service.serve("--remove-token ci").run().assert_code(0);
    service.serve("--remove-token ci").run().assert_code(1).assert_says("there is no token ci");
    wait_until("it is refused", || service.ask(&lease, "/v1/pools", &[]).0 == 401);
    service.signal(Signal::SIGTERM);
    let (status, said) = service.finish();
    assert!(status.success(), "{status}");
    let ledger = std::fs::read(lab.path("service/.isolane/ledger.db")).expect("the ledger");
    for secret in [&read, &lease] {
        assert!(!ledger.windows(secret.len()).any(|part| part == secret.as_bytes()) && !said.contains(secret));
    }
}

#[test]
fn a_service_without_tokens_makes_one_and_shows_it_once() {
    let lab = Lab::new();
    let first = Service::start_without_token(&lab, "", POOL);
    assert_eq!(first.ask(&first.admin, "/v1/pools", &[]).0, 200);
    first.signal(Signal::SIGINT);
    assert_eq!(first.finish().0.code(), Some(0));
    lab.isolane("serve --listen 0.0.0.0:0").run().assert_code(2).assert_says("--tls-cert");
    lab.isolane("serve --listen nowhere").run().assert_code(2).assert_says("HOST:PORT");
    lab.isolane("serve --tls-cert none.pem --tls-key none.pem").run().assert_code(2).assert_says("none.pem");
}

#[test]
fn what_is_too_much_or_makes_no_sense_is_refused() {
    let lab = Lab::new();
    let service = Service::start(&lab, "--rate 20", POOL);
    let big = std::fs::File::create(lab.path("big")).expect("a file");
    big.set_len(100_000_000).expect("room");
    let url = format!("{}/v1/leases", service.url);
    let size = ["-sS", "-o", "problem", "-w", "%{http_code} %{size_upload}", "-H"];
    let authorization = format!("Authorization: Bearer {}", service.admin);
    for how in [
        &["--data-binary", "@big"][..],
        &["--data-binary", "@big", "-H", "Expect:"],
        &["-X", "POST", "-T", "big", "-H", "Transfer-Encoding: chunked"],
    ] {
        let sent =
            lab.program("curl").arg_all(size).arg(&authorization).arg_all(how).arg(&url).run().assert_code(0).out();
        let (status, bytes) = sent.split_once(' ').expect("two figures");
        assert!(status == "413" && bytes.parse::<u64>().expect("a number") < 50_000_000, "{how:?}: {sent}");
        let problem: Value = serde_json::from_str(&lab.read("problem")).expect("JSON");
        assert_eq!(problem["code"], "too-large", "{how:?}");
    }
    for (body, part) in
        [("{\"pool\":", "EOF"), ("[]", "no list"), ("{\"pool\":\"acct\",\"pol\":1}", "pol"), ("", "EOF")]
    {
        let (status, _, problem) = service.ask(&service.admin, "/v1/leases", &["-d", body]);
        assert!(status == 400 && problem["code"] == "malformed-request", "{body}: {problem}");
        assert!(problem["detail"].as_str().expect("a line").contains(part), "{body}: {problem}");
    }
    let (status, _, problem) = service.ask(&service.admin, "/v1/nothing", &[]);
    assert_eq!((status, &problem["code"]), (404, &json!("unknown-path")));
    let mut last = (0, String::new(), Value::Null);
    wait_until("it asks too often", || {
        let once = format!("{}/v1/pools", service.url);
        let many = vec![once.as_str(); 60];
        let asked = lab.program("curl").arg_all(["-sS", "-i", "-H", &authorization]).arg_all(many).run().out();
        let refused = asked.find("HTTP/1.1 429").map(|at| asked[at..].to_owned());
        last = refused.map_or((0, String::new(), Value::Null), |text| (429, text.to_lowercase(), Value::Null));
        last.0 == 429
    });
    assert!(last.1.contains("retry-after: 1") && last.1.contains("too-many-requests"), "{}", last.1);
    let other = service.token("other", "");
    assert_eq!(service.ask(&other, "/v1/pools", &[]).0, 200, "another token is not meant");
}

#[test]
fn who_is_slow_or_silent_is_in_nobodys_way() {
    let lab = Lab::new();
    let service = Service::start(&lab, "--connections 42", POOL);
    let address = service.url.strip_prefix("http://").expect("an address");
    let open = || TcpStream::connect(address).expect("a connection");
    let mut slow: Vec<_> = (0..40).map(|_| open()).collect();
    for (number, stream) in slow.iter_mut().enumerate() {
        let text: &[u8] = if number % 2 == 0 { b"" } else { b"POST /v1/leases HTTP/1.1\r\nHost: x\r\nContent-Le" };
        stream.write_all(text).expect("sent");
    }
    assert_eq!(service.ask(&service.admin, "/v1/leases", &["-d", ASK]).0, 201);
    let full = [open(), open()];
    wait_until("there is no place left", || {
        let (status, head, problem) = service.ask(&service.admin, "/v1/pools", &[]);
        status == 503 && problem["code"] == "busy" && head.contains("retry-after")
    });
    drop(full);
    wait_until("there is a place again", || service.ask(&service.admin, "/v1/pools", &[]).0 == 200);
    let mut first = slow.swap_remove(1);
    first.set_read_timeout(Some(crate::lab::program::PATIENCE)).expect("a setting");
    let mut rest = Vec::new();
    first.read_to_end(&mut rest).expect("the service closes what stays silent");
}

#[test]
fn over_tls_it_is_for_those_who_believe_the_certificate() {
    let lab = Lab::new();
    let openssl = |args: &str| {
        lab.program("openssl").arg_all(args.split(' ')).run().assert_code(0);
    };
    openssl("req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=authority");
    openssl("req -newkey rsa:2048 -nodes -keyout key.pem -out asked.pem -subj /CN=service");
    lab.file("names", "subjectAltName=IP:127.0.0.1\n");
    openssl("x509 -req -in asked.pem -CA ca.pem -CAkey ca.key -CAcreateserial -out cert.pem -days 2 -extfile names");
    let files = format!("--tls-cert {} --tls-key {}", lab.path("cert.pem").display(), lab.path("key.pem").display());
    let service = Service::start(&lab, &files, POOL);
    assert!(service.url.starts_with("https://"), "{}", service.url);
    assert_eq!(service.ask(&service.admin, "/v1/leases", &["--cacert", "ca.pem", "-d", ASK]).0, 201);
    let stranger = service.curl(&service.admin, "/v1/pools", &[]).run();
    assert!(!stranger.status.success(), "{}", stranger.all());
    let plain = service.url.replace("https", "http");
    assert!(!lab.program("curl").arg_all(["-sS", &plain]).run().status.success());
    let ca = lab.path("ca.pem");
    let acquire = "lease acquire acct --where id=2";
    service.elsewhere(&service.admin, acquire).env("SSL_CERT_FILE", &ca).run().assert_code(0).assert_shows("held");
    service.elsewhere(&service.admin, acquire).run().assert_code(69).assert_says("certificate");
    let swapped =
        format!("serve --tls-cert {} --tls-key {}", lab.path("key.pem").display(), lab.path("cert.pem").display());
    lab.isolane(&swapped).run().assert_code(2).assert_says("no certificate");
}

#[test]
fn who_waits_when_it_stops_is_told_and_the_rest_is_finished() {
    let lab = Lab::new();
    let service = Service::start(&lab, "", ONE);
    service.ask(&service.admin, "/v1/leases", &["-d", r#"{"pool":"acct","ttl":"1h"}"#]);
    let waiter = service.curl(&service.admin, "/v1/leases", &["-d", WAIT]).start();
    wait_until("it waits", || {
        service.ask(&service.admin, "/v1/waiters", &[]).2.as_array().is_some_and(|all| all.len() == 1)
    });
    service.signal(Signal::SIGTERM);
    let (status, head, problem) = answer(&waiter.finish());
    assert!(status == 503 && head.contains("retry-after: ") && problem["code"] == "stopping", "{head}{problem}");
    let url = service.url.clone();
    assert_eq!(service.finish().0.code(), Some(0));
    assert!(TcpStream::connect(url.strip_prefix("http://").expect("an address")).is_err(), "nobody listens");
}

#[test]
fn two_who_are_elsewhere_have_one_item_after_the_other() {
    let lab = Lab::new();
    let service = Service::start(&lab, "", ONE);
    let (a, b) = (service.token("a", ""), service.token("b", ""));
    let acquire =
        |token: &str, more: &str| service.elsewhere(token, &format!("lease acquire acct --format json {more}"));
    let lease: Value = serde_json::from_str(&acquire(&a, "--ttl 1h").run().assert_code(0).out()).expect("JSON");
    acquire(&b, "").run().assert_code(75).assert_says("1 by a/");
    let waiting = acquire(&b, "--wait 50s").start();
    wait_until("it waits", || service.ask(&b, "/v1/waiters", &[]).2.as_array().is_some_and(|all| all.len() == 1));
    let id = lease[0]["lease_id"].as_str().expect("an id");
    service.elsewhere(&a, &format!("lease release {id}")).run().assert_code(0);
    let next: Value = serde_json::from_str(&waiting.finish().assert_code(0).out()).expect("JSON");
    assert!(next[0]["fence"].as_u64() > lease[0]["fence"].as_u64());
    service.elsewhere(&a, "pool add acct x").run().assert_code(1).assert_says("this takes admin");
    service.elsewhere("wrong", "pool list").run().assert_code(1).assert_says("not known here");
    acquire(&a, "--where id=3").run().assert_code(65);
    let id = next[0]["lease_id"].as_str().expect("an id");
    service.elsewhere(&a, &format!("lease release {id}")).run().assert_code(1).assert_says("there is no lease");
    service.elsewhere(&a, &format!("lease renew {id}")).run().assert_code(1);
    service.elsewhere(&b, &format!("lease renew {id} --ttl 1h")).run().assert_code(0);
    service.elsewhere(&service.admin, &format!("lease release {id}")).run().assert_code(0);
    let url = service.url.clone();
    drop(service);
    let away = lab.isolane(&format!("lease acquire acct --leases {url}")).run().assert_code(69);
    assert_eq!(away.said().len(), 1, "{}", away.all());
    lab.sh(&format!("--leases {url}"), "true").run().assert_code(125).assert_says("are away");
    lab.isolane("pool list --leases ftp://x").run().assert_code(2).assert_says("https://");
}

#[test]
fn what_a_killed_service_granted_is_known_to_another_on_its_store_and_to_itself_afterwards() {
    let lab = Lab::new();
    let database = Server::shared().database("");
    let options = format!("--store {}", database.url());
    let mut first = Service::start(&lab, &options, ONE);
    let second = first.beside(&options, "second");
    let ask = ["-d", r#"{"pool":"acct","ttl":"1h","key":"k"}"#];
    let (status, _, lease) = first.ask(&first.admin, "/v1/leases", &ask);
    assert_eq!(status, 201, "{lease}");
    let mut waiting = first.curl(&first.admin, "/v1/leases", &["-d", WAIT]).start();
    let waiters = || second.ask(&second.admin, "/v1/waiters", &[]).2.as_array().map(Vec::len);
    wait_until("it waits", || waiters() == Some(1));
    assert!(!waiting.is_over());
    first.kill();
    assert!(!waiting.finish().status.success(), "nobody answers");
    let (status, _, again) = second.ask(&second.admin, "/v1/leases", &ask);
    assert_eq!((status, &again["id"], &again["fence"]), (201, &lease["id"], &lease["fence"]), "asked again: {again}");
    wait_until("the place in the line is gone with the service", || waiters() == Some(0));
    let path = format!("/v1/leases/{}", lease["id"].as_str().expect("an id"));
    assert_eq!(second.ask(&second.admin, &path, &["-X", "DELETE"]).0, 204);
    first.start_again();
    let (status, _, lost) = first.ask(&first.admin, &format!("{path}/renew"), &["-X", "POST"]);
    assert!(status == 410 && lost["detail"].as_str().expect("a line").contains("is released since"), "{lost}");
}

#[test]
fn a_run_leases_elsewhere_and_what_it_keeps_lives_as_long_as_it() {
    let lab = Lab::new();
    let service = Service::start(&lab, "", ONE);
    let ci = service.token("ci", "");
    let options = format!("--leases {}", service.url);
    lab.file("isolane.toml", "[pool.acct]\nitems = [7]\n[pool.licence]\nitems = [1]\n[pool.device]\nitems = [2]\n");
    let script = "isolane lease acquire acct > got && while [ ! -e enough ]; do sleep 0.05; done";
    let running = lab.sh(&options, script).env("ISOLANE_TOKEN", &ci).start();
    wait_until("it has its lease", || lab.path("got").exists() && lab.read("got").contains("held"));
    let expires = || service.ledger("SELECT expires_at FROM leases WHERE state = 'held'");
    let first = expires();
    wait_until("it was renewed beyond the time that it was granted for", || {
        let now = expires();
        assert_eq!(now.len(), 1, "it is held all the time");
        now[0][0].as_str() > first[0][0].as_str()
            && service.ledger("SELECT 1 FROM lease WHERE expires - acquired > 4000000") != no_rows()
    });
    lab.file("enough", "");
    let told = format!("isolane: leases are asked for at {}, which has no pool device, licence", service.url);
    running.finish().assert_code(0).assert_does_not_say(&ci).assert_says(&told);
    let rows = service.ledger("SELECT state, l.worker_id, client, run_id FROM lease l");
    assert_eq!(rows, [["lost".to_owned(), "w0".to_owned(), "ci".to_owned(), lab.value("SELECT run_id FROM runs")]]);
    assert_eq!(lab.ledger("SELECT * FROM leases"), no_rows(), "the run's own ledger has none");
    let files = [lab.ledger_path(), lab.path(".isolane/ledger.db-wal")];
    for file in files.iter().filter_map(|path| std::fs::read(path).ok()) {
        assert!(!file.windows(ci.len()).any(|part| part == ci.as_bytes()), "the token is not kept");
    }
}

#[test]
fn a_worker_of_a_run_that_is_killed_frees_its_lease_elsewhere() {
    let lab = Lab::new();
    let service = Service::start(&lab, "", "[pool.acct]\nitems = [{id=1}]\nttl = \"10m\"\n");
    let ci = service.token("ci", "");
    lab.file(
        "test_it.py",
        "import os, signal, pytest
@pytest.mark.parametrize('n', range(2))
def test_it(isolane, n):
    isolane.lease('acct', wait='50s')
    if not os.path.exists('died'):
        open('died', 'w').close()
        os.kill(os.getpid(), signal.SIGKILL)
",
    );
    let run = lab.pytest("-n 2").env("ISOLANE_LEASES", &service.url).env("ISOLANE_TOKEN", &ci);
    run.run().assert_code(1).assert_shows("1 failed, 1 passed");
    let rows = service.ledger("SELECT state, test_id IS NOT NULL, lane IS NOT NULL FROM lease ORDER BY fence");
    assert_eq!(rows, [["lost", "1", "1"], ["released", "1", "1"]]);
}

#[test]
fn a_killed_isolane_leaves_no_lease_elsewhere_and_a_lost_machine_none_for_long() {
    let lab = Lab::new();
    let service = Service::start(
        &lab,
        "",
        "[pool.acct]\nitems = [{id=1}]\nttl = \"10m\"\n[pool.short]\nitems = [1]\nttl = \"1s\"\n",
    );
    let ci = service.token("ci", "");
    let options = format!("--leases {}", service.url);
    let script = "isolane lease acquire acct > got; exec sleep 600";
    let running = lab.sh(&options, script).env("ISOLANE_TOKEN", &ci).start();
    wait_until("it has its lease", || lab.path("got").exists() && lab.read("got").contains("held"));
    running.signal(Signal::SIGKILL);
    wait_until("the watchdog has freed it", || {
        service.ledger("SELECT * FROM leases WHERE state = 'held'") == no_rows()
    });
    assert_eq!(service.ledger("SELECT state FROM leases"), [["lost"]]);
    drop(running);
    // Another's token does not end what this one took.
    let (status, _, lease) = service.ask(&ci, "/v1/leases", &["-d", r#"{"pool":"short","run":"r","worker":"w"}"#]);
    assert_eq!(status, 201, "{lease}");
    let ended = ["-d", r#"{"run":"r"}"#];
    assert_eq!(service.ask(&service.admin, "/v1/holders/ended", &ended).2, json!({"ended": 0}));
    assert_eq!(service.ask(&service.admin, "/v1/holders/alive", &ended).2, json!({"kept": 0, "again_in_ms": null}));
    assert_eq!(service.ask(&ci, "/v1/holders/alive", &ended).2, json!({"kept": 1, "again_in_ms": 333}));
    wait_until("nobody says that it lives, and time ends it", || {
        service.ledger("SELECT state FROM leases WHERE pool = 'short'") == [["expired"]]
    });
    assert_eq!(service.ask(&ci, "/v1/holders/ended", &ended).2, json!({"ended": 0}));
}

#[test]
fn it_tells_of_itself_in_figures_and_of_runs_in_rows() {
    let lab = Lab::new();
    let service = Service::start(&lab, "", ONE);
    let lease = service.ask(&service.admin, "/v1/leases", &["-d", r#"{"pool":"acct","ttl":"300ms"}"#]).2;
    service.ask(&service.admin, "/v1/leases", &["-d", ASK]);
    wait_until("it has expired", || service.ledger("SELECT state FROM leases") == [["expired"]]);
    assert!(lease["id"].is_string());
    let metrics = || service.curl(&service.admin, "/metrics", &[]).run().out();
    wait_until("it is counted", || metrics().contains("isolane_leases_ended_total{how=\"expired\"} 1"));
    let text = metrics();
    for line in [
        "isolane_pool_items{pool=\"acct\",state=\"free\"} 1",
        "isolane_leases_held 0",
        "isolane_waiters 0",
        "isolane_leases_granted_total 1",
        "isolane_leases_refused_total{code=\"exhausted\"} 1",
        "isolane_lease_wait_seconds_bucket{le=\"+Inf\"} 1",
        "isolane_lease_wait_seconds_count 1",
        "isolane_requests_total{method=\"POST\",status=\"201\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    let (status, head, document) = service.ask("", "/openapi.json", &[]);
    assert!(status == 200 && head.contains("application/json") && document["openapi"] == "3.1.0");
    // Every path that it describes for this door is there.
    for (path, operations) in document["paths"].as_object().expect("paths") {
        for (method, operation) in
            operations.as_object().expect("operations").iter().filter(|(name, _)| *name != "parameters")
        {
            if operation["tags"] == json!(["run"]) {
                continue;
            }
            let (_, _, answer) = service.ask(&service.admin, path, &["-X", &method.to_uppercase()]);
            assert_ne!(answer["code"], "unknown-path", "{method} {path}");
            let status = service.ask(&service.admin, path, &["-X", &method.to_uppercase()]).0;
            assert_ne!(status, 405, "{method} {path}");
        }
    }
    assert_eq!(service.ask(&service.admin, "/v1/runs", &[]).2, json!([]));
    assert_eq!(service.ask(&service.admin, "/v1/runs/x", &[]).2["code"], "run-unknown");
    assert_eq!(service.ask(&service.admin, "/v1/collisions", &[]).2, json!([]));
    let socket = "curl -sS --unix-socket $ISOLANE_SOCKET http://x/v1/runs http://x/openapi.json > told";
    let project = lab.path("service");
    lab.sh("", socket).within(&project).run().assert_code(0);
    let told = std::fs::read_to_string(project.join("told")).expect("told");
    assert!(told.contains("\"state\":\"running\"") && told.contains("3.1.0"), "{told}");
    let runs = service.ask(&service.admin, "/v1/runs", &[]).2;
    assert_eq!((runs.as_array().map(Vec::len), &runs[0]["state"]), (Some(1), &json!("passed")));
    let id = runs[0]["run_id"].as_str().expect("an id");
    let run = service.ask(&service.admin, &format!("/v1/runs/{id}"), &[]).2;
    assert_eq!((&run["workers"][0]["worker_id"], &run["counts"]["tests"]), (&json!("w0"), &json!(0)), "{run}");
}

#[test]
fn a_service_that_cannot_keep_anything_says_so() {
    let lab = Lab::new();
    let server = Server::own();
    let database = server.database("");
    let service = Service::start(&lab, &format!("--store {}", database.url()), ONE);
    let health = |service: &Service<'_>| service.ask("", "/healthz", &[]).0;
    assert_eq!(health(&service), 200);
    server.stop();
    wait_until("it says so", || health(&service) == 503);
    server.start_again();
    wait_until("it is well again", || health(&service) == 200);
    drop(service);

    let lab = Lab::new();
    let service = Service::start(&lab, "", ONE);
    assert_eq!(service.ask(&service.admin, "/v1/leases", &["-d", ASK]).0, 201);
    std::fs::remove_dir_all(lab.path("service/.isolane")).expect("it is there");
    wait_until("it says so", || health(&service) == 503);
    let (status, _, problem) = service.ask(&service.admin, "/v1/leases", &["-d", ASK]);
    let detail = problem["detail"].as_str().unwrap_or_default();
    assert!(status == 503 && detail.contains("was removed while it was in use; start again"), "{problem}");
}

#[test]
fn who_refuses_says_why_in_a_document() {
    let lab = Lab::new();
    let service = Service::start(&lab, "", ONE);
    for (path, args, status, code) in [
        ("/v1/leases", &["-X", "PUT", "-d", "{}"] as &[_], 405, "method-not-allowed"),
        ("/v1/leases/%ff", &[], 400, "malformed-request"),
        ("/v1/leases", &["-d", r#"["acct"]"#], 400, "malformed-request"),
        ("/v1/leases", &["-d", r#"{"want":["acct"]}"#], 400, "malformed-request"),
        ("/v1/pools/acct/fill", &["-d", "7"], 400, "malformed-request"),
    ] {
        let (found, head, problem) = service.ask(&service.admin, path, args);
        assert_eq!((found, problem["code"].as_str()), (status, Some(code)), "{path} {args:?}: {problem}");
        assert!(head.contains("application/problem+json"), "{head}");
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert!(!detail.is_empty() && !detail.contains("Raw") && !detail.contains("FillRequest"), "{problem}");
    }
}

#[test]
fn a_run_does_not_lease_beside_a_store() {
    let lab = Lab::new();
    let run = lab.sh("", "true").env("ISOLANE_STORE", "postgresql://ci:secret@localhost/leases").run();
    run.assert_code(2).assert_says("the variable ISOLANE_STORE names a store of leases").assert_does_not_say("secret");
}

#[test]
fn the_process_list_shows_no_password_of_its_store() {
    let lab = Lab::new();
    let database = Server::shared().database("");
    let service = Service::start(&lab, &format!("--store {}", database.url()), ONE);
    let line = std::fs::read(format!("/proc/{}/cmdline", service.pid())).expect("its arguments");
    let line = String::from_utf8_lossy(&line);
    assert!(line.contains(&format!("{}:*", database.login)) && !line.contains(&database.password), "{line}");
    service.signal(Signal::SIGTERM);
    let (_, said) = service.finish();
    let store = format!("127.0.0.1:{}/{}", Server::shared().port(), database.name);
    assert!(said.contains(&store) && said.contains("ledger.db") && !said.contains(&database.password), "{said}");
}

/// The address of a web server that says the same to everybody.
fn stranger(answer: &'static str) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut asked = [0; 4096];
            let _ = stream.read(&mut asked).and_then(|_| stream.write_all(answer.as_bytes()));
        }
    });
    format!("http://{address}")
}

#[test]
fn another_web_server_and_a_refused_token_are_told_from_a_service_that_is_away() {
    let lab = Lab::new();
    for answer in [
        "HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\nContent-Length: 4\r\nConnection: close\r\n\r\nnone",
        "HTTP/1.1 501 Unsupported\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        "HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 11\r\nConnection: close\r\n\r\n{\"code\":404}",
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>",
    ] {
        let url = stranger(answer);
        let what = format!("what answers at {url} is no `isolane serve`");
        for args in ["lease acquire acct", "lease list", "pool list"] {
            let outcome = lab.isolane(&format!("{args} --leases {url}")).run().assert_code(69).assert_says(&what);
            assert_eq!(outcome.err().lines().count(), 1, "{}", outcome.all());
        }
        lab.sh(&format!("--leases {url}"), "true").run().assert_code(125).assert_says(&what);
    }
    let service = Service::start(&lab, "", ONE);
    let old = service.token("old", "--valid-for 1ms");
    for (token, why) in [("wrong", "this token is not known here"), (&old, "token"), ("", "token")] {
        let run = lab.sh(&format!("--leases {}", service.url), "true").env("ISOLANE_TOKEN", token).run();
        let run = run.assert_code(125).assert_says("refuses").assert_says(why).assert_says(&service.url);
        assert!(!run.err().contains("away") && run.err().lines().count() == 1, "{}", run.all());
        service.elsewhere(token, "pool list").run().assert_code(1).assert_says(why);
    }
}
