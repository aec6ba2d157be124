//! Which writes are seen on PostgreSQL, and that nobody notices.

use crate::lab::{Lab, Server};

/// Tables of every kind.
const TABLES: &str = r#"
CREATE TABLE one (id int PRIMARY KEY, v text);
CREATE TABLE other (id int PRIMARY KEY);
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE cascaded (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE);
CREATE TABLE emptied (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE SET NULL);
CREATE TABLE parts (id int, place text, PRIMARY KEY (id, place)) PARTITION BY LIST (place);
CREATE TABLE parts_a PARTITION OF parts FOR VALUES IN ('a');
CREATE TABLE parts_b (place text NOT NULL, id int NOT NULL);
ALTER TABLE parts ATTACH PARTITION parts_b FOR VALUES IN ('b');
CREATE TABLE keyless (n int, t text, k text, at timestamptz, old_ real);
CREATE TABLE by_index (email text NOT NULL, v int);
CREATE UNIQUE INDEX ON by_index (email);
CREATE TYPE colour AS ENUM ('red', 'green');
CREATE TABLE typed (a uuid, b date, c numeric, d colour, e text, f char(4), g timestamptz, PRIMARY KEY (a, b, c, d, e, f, g));
CREATE TABLE made (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v int, twice int GENERATED ALWAYS AS (v * 2) STORED);
CREATE TABLE named (old_ int, new_ int, now_ int, isolane_it int, PRIMARY KEY (old_, new_, now_, isolane_it));
CREATE SCHEMA "My Shop";
CREATE TABLE "My Shop"."Odd ""Table'" ("Id %" int, "b c'" text, PRIMARY KEY ("Id %", "b c'"));
CREATE TABLE swapped (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE renamed (id int PRIMARY KEY, v int);
CREATE TABLE dropped (id int PRIMARY KEY, v int);
CREATE TABLE base (id int PRIMARY KEY);
CREATE TABLE heir () INHERITS (base);
INSERT INTO base VALUES (1);
INSERT INTO heir VALUES (1), (7);
"#;

/// Statements, and the touches that they are.
const WRITES: &[(&str, &[&str])] = &[
    ("INSERT INTO one VALUES (1, 'a')", &[r#"insert public.one {"id":1}"#]),
    ("UPDATE one SET v = 'b'", &[r#"update public.one {"id":1}"#]),
    ("UPDATE one SET v = 'c' WHERE id = 99; DELETE FROM one WHERE id = 99", &[]),
    (
        "INSERT INTO one VALUES (1, 'x'), (2, 'y') ON CONFLICT (id) DO UPDATE SET v = 'z'",
        &[r#"insert public.one {"id":2}"#, r#"update public.one {"id":1}"#],
    ),
    ("INSERT INTO one VALUES (1, 'x') ON CONFLICT DO NOTHING", &[]),
    (
        "WITH gone AS (DELETE FROM one WHERE id = 2 RETURNING id) INSERT INTO other SELECT id FROM gone",
        &[r#"delete public.one {"id":2}"#, r#"insert public.other {"id":2}"#],
    ),
    (
        "INSERT INTO parent VALUES (1); INSERT INTO cascaded VALUES (1, 1); INSERT INTO emptied VALUES (1, 1)",
        &[
            r#"insert public.cascaded {"id":1}"#,
            r#"insert public.emptied {"id":1}"#,
            r#"insert public.parent {"id":1}"#,
        ],
    ),
    (
        "DELETE FROM parent",
        &[
            r#"delete public.cascaded {"id":1}"#,
            r#"delete public.parent {"id":1}"#,
            r#"update public.emptied {"id":1}"#,
        ],
    ),
    (
        "INSERT INTO parts VALUES (1, 'a'); INSERT INTO parts_b VALUES ('b', 2); UPDATE parts SET place = 'b' WHERE id = 1",
        &[
            r#"insert public.parts {"id":1,"place":"b"}"#,
            r#"insert public.parts {"id":2,"place":"b"}"#,
            r#"update public.parts {"id":1,"place":"b"}"#,
        ],
    ),
    (
        "SET timezone = 'Asia/Tokyo'; SET extra_float_digits = -3; INSERT INTO keyless VALUES (1, 'b', 'c', '2020-01-01 00:00+00', 0.1), (1, 'b', 'c', '2020-01-01 00:00+00', 0.1); RESET timezone",
        &[
            r#"insert public.keyless {"k": "c", "n": 1, "t": "b", "at": "2020-01-01T00:00:00+00:00", "old_": 0.1}"#,
            r#"insert public.keyless {"k": "c", "n": 1, "t": "b", "at": "2020-01-01T00:00:00+00:00", "old_": 0.1}"#,
        ],
    ),
    ("INSERT INTO by_index VALUES ('a@b', 1)", &[r#"insert public.by_index {"email":"a@b"}"#]),
    (
        "INSERT INTO typed VALUES ('00000000-0000-0000-0000-000000000001', '2020-02-29', 1.50, 'green', 'it''s \"so\"', 'ab', '2020-01-01 12:00+02')",
        &[
            r#"insert public.typed {"a":"00000000-0000-0000-0000-000000000001","b":"2020-02-29","c":1.50,"d":"green","e":"it's \"so\"","f":"ab  ","g":"2020-01-01T10:00:00+00:00"}"#,
        ],
    ),
    ("INSERT INTO made (v) VALUES (3)", &[r#"insert public.made {"id":1}"#]),
    (
        "INSERT INTO named VALUES (1, 2, 3, 4); UPDATE named SET new_ = 5",
        &[
            r#"insert public.named {"old_":1,"new_":5,"now_":3,"isolane_it":4}"#,
            r#"update public.named {"old_":1,"new_":5,"now_":3,"isolane_it":4}"#,
        ],
    ),
    (
        r#"INSERT INTO "My Shop"."Odd ""Table'" VALUES (1, '%'), (2, E'\\ '' "')"#,
        &[
            r#"insert My Shop.Odd "Table' {"Id %":1,"b c'":"%"}"#,
            r#"insert My Shop.Odd "Table' {"Id %":2,"b c'":"\\ ' \""}"#,
        ],
    ),
    (
        "INSERT INTO swapped VALUES (1), (2); UPDATE swapped SET id = 3 - id",
        &[
            r#"insert public.swapped {"id":1}"#,
            r#"insert public.swapped {"id":2}"#,
            r#"update public.swapped {"id":1}"#,
            r#"update public.swapped {"id":2}"#,
        ],
    ),
    (
        "BEGIN; INSERT INTO one VALUES (50, ''); ROLLBACK; BEGIN; SAVEPOINT s; INSERT INTO one VALUES (51, ''); ROLLBACK TO s; INSERT INTO one VALUES (52, ''); COMMIT",
        &[r#"insert public.one {"id":52}"#],
    ),
    (
        "SET session_replication_role = replica; INSERT INTO one VALUES (60, ''); DELETE FROM one WHERE id = 60; RESET session_replication_role",
        &[],
    ),
    (
        "COPY one FROM STDIN;\n70\tx\n71\ty\n\\.\n",
        &[r#"insert public.one {"id":70}"#, r#"insert public.one {"id":71}"#],
    ),
    (
        "INSERT INTO heir VALUES (2); UPDATE base SET id = id WHERE id = 2",
        &["insert public.heir", r#"update public.base {"id":2}"#],
    ),
    (
        "INSERT INTO renamed VALUES (1, 1); ALTER TABLE renamed RENAME COLUMN id TO number; INSERT INTO renamed VALUES (2, 2); UPDATE renamed SET v = 3; DELETE FROM renamed WHERE number = 2; ALTER TABLE renamed RENAME TO called",
        &[r#"insert public.renamed {"id":1}"#],
    ),
    (
        "INSERT INTO dropped VALUES (1, 1); ALTER TABLE dropped DROP COLUMN id; INSERT INTO dropped VALUES (2); UPDATE dropped SET v = 4; DELETE FROM dropped; DROP TABLE dropped",
        &[r#"insert public.dropped {"id":1}"#],
    ),
    ("INSERT INTO other VALUES (80); TRUNCATE other", &[r#"insert public.other {"id":80}"#, "truncate public.other"]),
];
const MERGE: (&str, &[&str]) = (
    "INSERT INTO other VALUES (90); MERGE INTO other USING (VALUES (90), (91)) AS s (id) ON other.id = s.id WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN INSERT VALUES (s.id)",
    &[r#"delete public.other {"id":90}"#, r#"insert public.other {"id":90}"#, r#"insert public.other {"id":91}"#],
);

#[test]
fn every_way_to_write_is_seen_on_every_version() {
    for version in [None, Some(13), Some(17)] {
        let server = version.map_or_else(Server::own, Server::of_version);
        let major: u32 = server.texts("postgres", "SHOW server_version_num")[0][..2].parse().expect("a number");
        server.sql("postgres", "CREATE DATABASE shop");
        server.sql("shop", TABLES);
        let lab = Lab::new().with("DATABASE_URL", server.admin_url("shop"));
        let mut writes: Vec<_> = WRITES.to_vec();
        if major >= 15 {
            writes.push(MERGE);
        }
        server.sql("shop", "CREATE TABLE place (n int PRIMARY KEY)");
        let script: String = writes
            .iter()
            .enumerate()
            .map(|(n, (sql, _))| {
                format!(
                    "{}\nINSERT INTO place VALUES ({n});\n",
                    if sql.ends_with('\n') { (*sql).to_owned() } else { format!("{sql};") }
                )
            })
            .collect();
        lab.file("work.sql", &script);
        let before = server.texts("shop", "SELECT id || tableoid::regclass::text FROM base ORDER BY 1");
        let run = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-f", "work.sql"];
        lab.run("--isolation shared", run).run().assert_code(0);
        let touches =
            lab.ledger("SELECT op, k.name, coalesce(key, '') FROM touch JOIN kind k USING (kind) ORDER BY at, op, key");
        let mut seen: Vec<Vec<String>> = vec![Vec::new()];
        for row in &touches {
            if row[1] == "public.place" {
                seen.last_mut().expect("one").sort();
                seen.push(Vec::new());
            } else {
                let text = format!("{} {} {}", row[0], row[1], row[2]);
                seen.last_mut().expect("one").push(text.trim_end().to_owned());
            }
        }
        for (n, (sql, expected)) in writes.iter().enumerate() {
            // A child of a table that is inherited from has no key of its own.
            let expected: Vec<_> = expected.iter().map(|text| (*text).to_owned()).collect();
            let found: Vec<_> = seen[n]
                .iter()
                .map(|text| if text.contains(".heir") { "insert public.heir".to_owned() } else { text.clone() })
                .collect();
            assert_eq!(found, expected, "PostgreSQL {major}: {sql}");
        }
        let tables = "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname IN ('public', 'My Shop') ORDER BY 1";
        for table in server.texts("shop", tables) {
            let left = server.texts(
                "shop",
                &format!(
                    "SELECT t::text FROM ONLY {table} AS t WHERE '{}' NOT IN ('public.base', 'public.heir')",
                    table.replace('\'', "''")
                ),
            );
            // Nobody saw its second row's key.
            assert!(left.is_empty(), "PostgreSQL {major}: {table}: {left:?}");
        }
        assert_eq!(server.texts("shop", "SELECT id || tableoid::regclass::text FROM base ORDER BY 1"), before);
        lab.assert_nothing_left();
        assert!(server.marked(&lab.tag(), "shop").is_empty());
    }
}

/// A session's statements; whatever it shows must be the same.
const SESSION: &str = r"
INSERT INTO t (v) VALUES (1), (2) RETURNING id, v, w, xmax = '0'::xid;
SELECT lastval(), currval('t_id_seq');
UPDATE t SET v = v + 10 WHERE v < 5 RETURNING *;
INSERT INTO t (v) VALUES (11) ON CONFLICT (v) DO UPDATE SET w = 'again' RETURNING id, w;
INSERT INTO t (v) VALUES (11) ON CONFLICT DO NOTHING;
INSERT INTO t (v) VALUES (11);
INSERT INTO t (v) VALUES (-1);
INSERT INTO child VALUES (1, 999);
DELETE FROM t WHERE v = 11 RETURNING w;
DO $$ DECLARE n int; BEGIN
    UPDATE t SET w = 'y' WHERE v = 12; GET DIAGNOSTICS n = ROW_COUNT; RAISE NOTICE '% %', n, FOUND;
    UPDATE t SET w = 'y' WHERE v = 0; GET DIAGNOSTICS n = ROW_COUNT; RAISE NOTICE '% %', n, FOUND;
    DELETE FROM t WHERE v = 0; RAISE NOTICE '%', FOUND;
    INSERT INTO t (v) SELECT 7 WHERE false; GET DIAGNOSTICS n = ROW_COUNT; RAISE NOTICE '% %', n, FOUND;
    BEGIN INSERT INTO t (v) VALUES (12); EXCEPTION WHEN unique_violation THEN
        RAISE NOTICE '% %', SQLSTATE, SQLERRM; END;
END $$;
SELECT add(30), add(31);
SELECT * FROM heard ORDER BY 1;
SET ROLE clerk;
INSERT INTO t (v) VALUES (40);
SELECT * FROM t;
UPDATE t SET w = 'z';
DELETE FROM t;
TRUNCATE t;
SELECT add(41);
SELECT current_user;
SELECT has_schema_privilege('public', 'CREATE'), count(*) FROM pg_namespace WHERE nspname LIKE 'isolane%' AND has_schema_privilege(oid, 'USAGE') GROUP BY 1;
RESET ROLE;
BEGIN ISOLATION LEVEL SERIALIZABLE; INSERT INTO t (v) VALUES (50); SELECT count(*) FROM t; COMMIT;
BEGIN; INSERT INTO t (v) VALUES (60); PREPARE TRANSACTION 'later'; COMMIT PREPARED 'later';
BEGIN READ ONLY; INSERT INTO t (v) VALUES (70); ROLLBACK;
BEGIN; DECLARE c CURSOR FOR SELECT v FROM t WHERE v = 50 FOR UPDATE; FETCH c; UPDATE t SET w = 'here' WHERE CURRENT OF c; COMMIT;
PREPARE p (int) AS INSERT INTO t (v) VALUES ($1) RETURNING v; EXECUTE p(80); EXECUTE p(81); DEALLOCATE p;
SET search_path = ''; INSERT INTO public.t (v) VALUES (90) RETURNING v; RESET search_path;
SET standard_conforming_strings = off; INSERT INTO t (v) VALUES (91) RETURNING v; RESET standard_conforming_strings;
SET TimeZone = 'Asia/Tokyo'; INSERT INTO log VALUES (now()); SHOW TimeZone; RESET TimeZone;
COPY t (v) FROM STDIN;
100
101
\.
COPY (SELECT v FROM t ORDER BY v) TO STDOUT;
ALTER TABLE t ADD COLUMN more int DEFAULT 5;
UPDATE t SET more = 6 WHERE v = 100 RETURNING more;
ALTER TABLE t ALTER COLUMN v TYPE bigint;
INSERT INTO t (v) VALUES (102) RETURNING v;
DELETE FROM t;
";
const SESSION_TABLES: &str = "
CREATE TABLE t (id serial PRIMARY KEY, v int UNIQUE CHECK (v > 0), w text DEFAULT 'x');
CREATE TABLE child (id int PRIMARY KEY, t int REFERENCES t);
CREATE TABLE heard (n int, depth int);
CREATE TABLE log (at timestamptz);
CREATE FUNCTION hear() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF NEW.v IN (30, 31) THEN INSERT INTO heard VALUES (NEW.v, pg_trigger_depth()); END IF; RETURN NULL; END $$;
CREATE TRIGGER hear AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION hear();
CREATE FUNCTION add(n int) RETURNS int LANGUAGE sql SECURITY DEFINER AS $$ INSERT INTO public.t (v) VALUES (n) RETURNING id $$;
GRANT INSERT ON t TO clerk; GRANT USAGE ON SEQUENCE t_id_seq TO clerk;
";

#[test]
fn a_session_shows_the_same_with_triggers_and_without() {
    let server = Server::own();
    server.sql("postgres", "CREATE ROLE clerk");
    for rights in ["CREATEROLE", ""] {
        let show = |options: Option<&str>| {
            let database = server.database(rights);
            server.sql("postgres", &format!("GRANT clerk TO {}", database.login));
            database.sql(SESSION_TABLES);
            let before = database.dump();
            let lab = Lab::on(&database);
            lab.file("session.sql", &format!("\\set VERBOSITY verbose\n{SESSION}"));
            let psql = ["psql", "-Xa", "-f", "session.sql"];
            let outcome = if let Some(options) = options {
                lab.run(options, psql).run()
            } else {
                lab.program("psql").arg_all(&psql[1..]).arg(database.url()).run()
            };
            let mut outcome = outcome.assert_code(0);
            outcome.stderr = outcome
                .err()
                .lines()
                .filter(|line| !line.starts_with("isolane: "))
                .map(|line| format!("{line}\n"))
                .collect::<String>()
                .into_bytes();
            if options.is_some() {
                assert!(lab.value("SELECT count(*) FROM touches").parse::<u32>().expect("a number") > 20);
                database.assert_nothing_left(&lab);
            }
            let _ = before;
            (outcome.out().replace(&database.login, "LOGIN"), outcome.err().replace(&database.login, "LOGIN"))
        };
        let plain = show(None);
        assert!(plain.1.contains("permission denied for table t"), "{}", plain.1);
        let watched = show(Some("--isolation shared"));
        assert_eq!(watched.0, plain.0);
        assert_eq!(watched.1, plain.1);
    }
}

#[test]
fn long_statements_come_in_parts_and_whole() {
    let database = Server::shared().database("CREATEROLE");
    database.sql(
        "CREATE TABLE many (id int PRIMARY KEY, v int); INSERT INTO many SELECT n FROM generate_series(-1000, -1) n",
    );
    let lab = Lab::on(&database);
    let sql = "INSERT INTO many SELECT n FROM generate_series(1, 20000) n; UPDATE many SET v = 1 WHERE id > 0; \
               UPDATE many SET id = id + 100000 WHERE id > 0; DELETE FROM many WHERE id > 110000";
    lab.run("--isolation shared", ["psql", "-Xqc", sql]).run().assert_code(0);
    let counts = "SELECT op || ' ' || count(*) || ' ' || count(DISTINCT key) || ' ' || count(DISTINCT at) FROM touches GROUP BY op ORDER BY 1";
    assert_eq!(lab.column(counts), ["delete 10000 10000 1", "insert 20000 20000 1", "update 40000 20000 2"]);
    let states = "SELECT state || ' ' || count(*) FROM records GROUP BY state ORDER BY 1";
    assert_eq!(lab.column(states), ["gone 10000", "removed 10000"]);
    let left: i64 = database.client().query_one("SELECT count(*) FROM many", &[]).expect("rows").get(0);
    assert_eq!(left, 1000);
    database.assert_nothing_left(&lab);
}
