//! What nextest's tests say when they fail, and the rows that their errors name.

use crate::lab::{Lab, Server};

/// Runs SQL by psql and fails with what it says.
const SQL: &str = r#"
    fn sql(text: &str) {
        let url = std::env::var("DATABASE_URL").unwrap();
        let output = std::process::Command::new("psql").args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", text, &url]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    fn pause(name: &str, is_there: bool) {
        let file = format!("{}/{name}", std::env::var("SEEN").unwrap());
        if is_there { std::fs::write(&file, "").unwrap(); }
        while !std::path::Path::new(&file).exists() { std::thread::sleep(std::time::Duration::from_millis(5)); }
    }
"#;

#[test]
fn the_message_of_a_failed_test_is_in_the_ledger_and_its_key_is_looked_up() {
    let database = Server::shared().database("SUPERUSER");
    database.sql("CREATE TABLE customers (id bigserial PRIMARY KEY, email text UNIQUE)");
    let lab = Lab::on(&database);
    let tests = format!(
        "{SQL}
        #[test] fn first() {{ sql(\"INSERT INTO customers (email) VALUES ('alice@example.com')\"); pause(\"made\", true); pause(\"tried\", false); }}
        #[test] fn second() {{ pause(\"made\", false);
            let tried = std::panic::catch_unwind(|| sql(\"INSERT INTO customers (email) VALUES ('alice@example.com')\"));
            pause(\"tried\", true); if let Err(why) = tried {{ std::panic::resume_unwind(why) }} }}
        #[test] fn third() {{ eprint!(\"no end of line\"); }}"
    );
    lab.cargo("shop", &tests);
    let outcome = lab.wrap("--isolation shared", "cargo nextest run -j 3 --no-fail-fast").run().assert_code(100);
    assert!(outcome.err().contains("duplicate key value violates"), "nextest shows it as well\n{}", outcome.all());
    let message = lab.value("SELECT message FROM tests WHERE outcome = 'failed'");
    assert!(message.contains("panicked at") && message.contains("Key (email)=(alice@example.com)"), "{message}");
    let met = lab.ledger("SELECT pattern, kind, test_a, test_b, failed_test FROM collisions");
    assert_eq!(
        met,
        [["duplicate-key", "public.customers", "shop$tests::first", "shop$tests::second", "shop$tests::second"]],
        "{}",
        outcome.all()
    );
    lab.isolane("why second").run().assert_code(0).assert_shows("inserted by shop$tests::first");
    database.assert_nothing_left(&lab);
}
