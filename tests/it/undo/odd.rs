//! Tables of every odd kind, and what tests do with them.

/// Made beside the 60 ordinary ones, with some rows each.
pub const TABLES: &str = r#"
CREATE SCHEMA odd;
CREATE TABLE odd.keyless (a int, b text, j json);
INSERT INTO odd.keyless SELECT g % 3, 'x', '{"b": 1,   "a": 2}' FROM generate_series(1, 30) g;
CREATE TABLE odd.generated (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED);
INSERT INTO odd.generated (n) SELECT g FROM generate_series(1, 20) g;
CREATE TABLE odd.dropped (gone int, id uuid PRIMARY KEY, lost text, note text, t timestamptz, i interval, f float8, n numeric, by bytea, js json, arr text[], r int4range);
INSERT INTO odd.dropped SELECT g, md5(g::text)::uuid, 'x', E'quote '' " \\ , ( )\n' || g, now() - g * interval '1 day 3 hours', g * interval '1 mon 2 days 00:00:01.5',
    g / 3.0, g / 7.0, decode(md5(g::text), 'hex'), ('{"z":1,  "a":' || g || '}')::json, ARRAY['a', NULL, 'b"c', ''], int4range(g, g + 5) FROM generate_series(1, 20) g;
INSERT INTO odd.dropped (id, note, f, t) VALUES ('00000000-0000-0000-0000-000000000000', NULL, 'NaN', 'infinity'), ('00000000-0000-0000-0000-000000000001', '', '-Infinity', '0044-03-15 BC');
ALTER TABLE odd.dropped DROP COLUMN gone, DROP COLUMN lost;
CREATE TABLE odd.parted (id int, region text, note text, PRIMARY KEY (region, id)) PARTITION BY LIST (region);
CREATE TABLE odd.parted_a PARTITION OF odd.parted FOR VALUES IN ('a');
CREATE TABLE odd.parted_b PARTITION OF odd.parted FOR VALUES IN ('b') PARTITION BY RANGE (id);
CREATE TABLE odd.parted_b1 PARTITION OF odd.parted_b FOR VALUES FROM (0) TO (100);
CREATE TABLE odd.parted_b2 PARTITION OF odd.parted_b DEFAULT;
INSERT INTO odd.parted SELECT g, CASE g % 2 WHEN 0 THEN 'a' ELSE 'b' END, 'n' FROM generate_series(1, 150) g;
CREATE TABLE odd.tree (id int PRIMARY KEY, parent int REFERENCES odd.tree ON DELETE CASCADE ON UPDATE CASCADE DEFERRABLE INITIALLY DEFERRED);
INSERT INTO odd.tree SELECT g, nullif(g / 2, 0) FROM generate_series(1, 31) g;
CREATE TABLE odd.mood (state public.state PRIMARY KEY, n int UNIQUE);
INSERT INTO odd.mood VALUES ('new', 1), ('done', 2);
CREATE TABLE odd.unique_null (a int, b int, UNIQUE (a, b));
INSERT INTO odd.unique_null VALUES (1, NULL), (1, NULL), (NULL, NULL), (1, 1);
CREATE TABLE odd.unique_not_null (code text NOT NULL UNIQUE, v int);
INSERT INTO odd.unique_not_null SELECT 'c' || g, g FROM generate_series(1, 10) g;
CREATE TABLE odd.slots (id serial PRIMARY KEY, during int4range, EXCLUDE USING gist (during WITH &&));
INSERT INTO odd.slots (during) SELECT int4range(g * 10, g * 10 + 5) FROM generate_series(1, 10) g;
CREATE TABLE odd.stamped (at timestamptz PRIMARY KEY, f float8);
INSERT INTO odd.stamped SELECT '2024-01-01 00:00:00.123456+00'::timestamptz + g * interval '1 hour', g FROM generate_series(1, 10) g;
CREATE UNLOGGED TABLE odd.unlogged (id int PRIMARY KEY, v text);
INSERT INTO odd.unlogged SELECT g, 'u' FROM generate_series(1, 10) g;
CREATE TABLE odd.audit (id bigserial PRIMARY KEY, what text, at timestamptz DEFAULT now());
CREATE FUNCTION odd.audited() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO odd.audit (what) VALUES (TG_OP || ' ' || TG_TABLE_NAME); RETURN NULL; END $$;
CREATE TRIGGER audited AFTER INSERT OR UPDATE OR DELETE ON odd.unique_not_null FOR EACH ROW EXECUTE FUNCTION odd.audited();
CREATE TRIGGER audited AFTER INSERT OR DELETE ON odd.tree FOR EACH ROW EXECUTE FUNCTION odd.audited();
CREATE TABLE odd.ruled (id int PRIMARY KEY, v int);
INSERT INTO odd.ruled VALUES (1, 1), (2, 2);
CREATE RULE also AS ON UPDATE TO odd.ruled DO ALSO INSERT INTO odd.audit (what) VALUES ('rule');
CREATE MATERIALIZED VIEW odd.counted AS SELECT state, n FROM odd.mood;
CREATE UNIQUE INDEX ON odd.counted (state);
CREATE TABLE odd."Quoted ""name""" ("Id x" int PRIMARY KEY, "select" text);
INSERT INTO odd."Quoted ""name""" VALUES (1, 'a'), (2, 'b');
SELECT lo_from_bytea(4711, 'pristine');
"#;

/// What tests do with them; some of it fails, as it does in tests.
pub const WORK: [&str; 60] = [
    "INSERT INTO odd.keyless VALUES (1, 'x', '{\"b\": 1,   \"a\": 2}')",
    "INSERT INTO odd.keyless SELECT g % 3, 'x', '{\"b\": 1,   \"a\": 2}' FROM generate_series(1, 5) g",
    "DELETE FROM odd.keyless WHERE ctid IN (SELECT ctid FROM odd.keyless WHERE a = 1 LIMIT 2)",
    "UPDATE odd.keyless SET b = 'y' WHERE a = 2",
    "UPDATE odd.keyless SET a = a + 1",
    "TRUNCATE odd.keyless",
    "INSERT INTO odd.generated (n) VALUES (100), (101)",
    "UPDATE odd.generated SET n = n + 1 WHERE id < 5",
    "DELETE FROM odd.generated WHERE id % 3 = 0",
    "INSERT INTO odd.generated (id, n) OVERRIDING SYSTEM VALUE VALUES (500, 1)",
    "TRUNCATE odd.generated RESTART IDENTITY",
    "UPDATE odd.dropped SET note = note || '!', f = f * 1.1, i = i * 2",
    "DELETE FROM odd.dropped WHERE note LIKE '%1%'",
    "DELETE FROM odd.dropped; INSERT INTO odd.dropped (id, note) VALUES ('00000000-0000-0000-0000-000000000000', 'other')",
    "UPDATE odd.dropped SET id = md5(id::text)::uuid, js = '{}'",
    "SET datestyle = 'SQL, DMY'; SET intervalstyle = 'iso_8601'; SET timezone = 'Asia/Tokyo'; SET extra_float_digits = 0; SET bytea_output = 'escape'; UPDATE odd.dropped SET note = 'styled'",
    "TRUNCATE odd.dropped",
    "INSERT INTO odd.parted SELECT g, 'b', 'new' FROM generate_series(1000, 1010) g",
    "UPDATE odd.parted SET region = CASE region WHEN 'a' THEN 'b' ELSE 'a' END WHERE id % 5 = 0",
    "UPDATE odd.parted_b1 SET note = 'leaf' WHERE id < 20",
    "DELETE FROM odd.parted_a WHERE id < 40",
    "INSERT INTO odd.parted_a VALUES (9999, 'a', 'direct')",
    "DELETE FROM odd.parted_b WHERE id > 90",
    "TRUNCATE odd.parted_b",
    "TRUNCATE odd.parted",
    "DELETE FROM odd.tree WHERE id = 2",
    "UPDATE odd.tree SET id = id + 1000 WHERE id = 3",
    "UPDATE odd.tree SET parent = 999 WHERE id = 4",
    "INSERT INTO odd.tree VALUES (77, 78), (78, 1)",
    "TRUNCATE odd.tree",
    "INSERT INTO odd.mood VALUES ('active', 3)",
    "UPDATE odd.mood SET n = 3 - n",
    "UPDATE odd.mood SET state = 'failed' WHERE state = 'done'",
    "DELETE FROM odd.mood",
    "INSERT INTO odd.unique_null VALUES (1, NULL), (2, 2)",
    "DELETE FROM odd.unique_null WHERE b IS NULL",
    "INSERT INTO odd.unique_not_null VALUES ('c3', 33) ON CONFLICT (code) DO UPDATE SET v = EXCLUDED.v",
    "INSERT INTO odd.unique_not_null VALUES ('c4', 33), ('n1', 1) ON CONFLICT DO NOTHING",
    "DELETE FROM odd.unique_not_null WHERE v > 7",
    "UPDATE odd.unique_not_null SET code = 'c' || (v + 100)",
    "UPDATE odd.slots SET during = int4range(lower(during) + 1, upper(during) + 1)",
    "DELETE FROM odd.slots WHERE id = 1; INSERT INTO odd.slots (during) VALUES (int4range(12, 14))",
    "UPDATE odd.stamped SET at = at + interval '1 microsecond', f = 0.1 + 0.2",
    "DELETE FROM odd.stamped WHERE f > 5",
    "UPDATE odd.unlogged SET v = 'w'; UPDATE odd.unlogged SET id = id + 5 WHERE id > 7; INSERT INTO odd.unlogged VALUES (8, 'again')",
    "UPDATE odd.ruled SET v = v + 1",
    "UPDATE odd.\"Quoted \"\"name\"\"\" SET \"select\" = 'c'; DELETE FROM odd.\"Quoted \"\"name\"\"\" WHERE \"Id x\" = 2",
    "WITH gone AS (DELETE FROM odd.unlogged WHERE id < 4 RETURNING *), moved AS (INSERT INTO odd.ruled SELECT id + 100, id FROM gone RETURNING id) UPDATE odd.mood SET n = n + 50",
    "SELECT lo_create(0)",
    "SELECT lo_from_bytea(0, 'made')",
    "CREATE TEMP TABLE temporary AS SELECT * FROM odd.mood; INSERT INTO temporary VALUES ('paused', 9)",
    "ANALYZE odd.parted",
    "SELECT nextval('odd.slots_id_seq'), setval('odd.audit_id_seq', 900, false)",
    "SELECT setval('odd.slots_id_seq', last_value, false) FROM odd.slots_id_seq",
    "SELECT nextval('odd.audit_id_seq')",
    "SET session_replication_role = replica; INSERT INTO odd.tree VALUES (500, 12345); DELETE FROM public.tenants WHERE id = 3; RESET session_replication_role",
    "BEGIN; SET CONSTRAINTS ALL DEFERRED; DELETE FROM odd.tree WHERE id = 1; INSERT INTO odd.tree VALUES (1, NULL); COMMIT",
    "DO $$ BEGIN BEGIN DELETE FROM odd.mood; RAISE 'no'; EXCEPTION WHEN OTHERS THEN NULL; END; UPDATE odd.mood SET n = n + 10; END $$",
    "CREATE TABLE odd.rolled_back (id int); ROLLBACK",
    "BEGIN; CREATE TABLE odd.rolled_back (id int); INSERT INTO odd.rolled_back VALUES (1); ROLLBACK",
];

/// What changes the shape, or what cannot be undone otherwise.
pub const SHAPE: [&str; 22] = [
    "ALTER TABLE odd.mood ADD COLUMN more int DEFAULT 7",
    "ALTER TABLE public.users DROP COLUMN payload",
    "CREATE TABLE public.made (id serial PRIMARY KEY); INSERT INTO public.made DEFAULT VALUES",
    "DROP TABLE odd.audit CASCADE",
    "DROP SCHEMA odd CASCADE",
    "CREATE INDEX made ON odd.parted (note)",
    "DROP VIEW public.countries_active",
    "ALTER TYPE public.state ADD VALUE 'lost'",
    "CREATE FUNCTION public.made() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE OR REPLACE FUNCTION odd.audited() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$",
    "GRANT SELECT ON public.users TO PUBLIC",
    "COMMENT ON TABLE odd.mood IS 'moody'",
    "ALTER TABLE odd.tree DISABLE TRIGGER ALL",
    "ALTER TABLE odd.mood ALTER COLUMN n SET DEFAULT 5",
    "ALTER SEQUENCE odd.slots_id_seq INCREMENT 5",
    "REFRESH MATERIALIZED VIEW odd.counted",
    "UPDATE odd.mood SET n = n + 70; REFRESH MATERIALIZED VIEW CONCURRENTLY odd.counted",
    "SELECT lo_put(4711, 0, 'PRISTINE')",
    "SELECT lo_unlink(4711)",
    "ALTER TABLE odd.parted DETACH PARTITION odd.parted_a",
    "REVOKE ALL ON SCHEMA public FROM PUBLIC",
    "ALTER TABLE odd.unlogged RENAME COLUMN v TO w; UPDATE odd.unlogged SET w = 'renamed'",
];
