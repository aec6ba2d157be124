//! The shape of a lane's database: everything in it that is not a row of a table of the user's.
//! Sequences go back; for the rest it is enough to notice that it changed.
//!
//! A catalog has changed when it has more or fewer rows, or a row that a later transaction wrote:
//! two numbers, whatever is in it. Much that changes a catalog changes nothing (TRUNCATE gives a
//! table a new file, a temporary table comes and goes), so only what is looked at more closely
//! then, and differs, counts. Where the login may make event triggers (a superuser), even the first
//! look is taken only after a command that defines something.

use postgres::Client;
use postgres_protocol::escape::escape_literal;

use crate::name::Identifier;

/// Catalogs that say nothing of the shape: statistics, what depends on what, large objects (which
/// are looked at themselves).
const LEFT_OUT: &str = "'pg_statistic', 'pg_statistic_ext_data', 'pg_depend', 'pg_init_privs', 'pg_largeobject', 'pg_largeobject_metadata'";
/// Columns that change by themselves or with the file of a table.
const VOLATILE: &str = "'relfilenode', 'relpages', 'reltuples', 'relallvisible', 'relallfrozen', 'relfrozenxid', 'relminmxid', 'relhasindex', 'relhasrules', 'relhastriggers', 'relhassubclass'";
/// The column of a catalog that names the table of which it speaks.
const OF_TABLE: &str = "'attrelid', 'indrelid', 'adrelid', 'conrelid', 'tgrelid', 'ev_class', 'seqrelid', 'inhrelid', 'partrelid', 'polrelid', 'stxrelid', 'prrelid'";
/// What the user made has a number from this one on (`FirstNormalObjectId`).
const OWN: u32 = 16_384;

/// What is looked at first, because its name says most of what a test did.
const TELLING: &str = "'pg_extension', 'pg_namespace', 'pg_class', 'pg_proc', 'pg_type', 'pg_trigger'";

/// Every catalog of a database: its name, what of it is the user's, SQL for what counts of a row, and
/// for how a user calls what the row is about.
const CATALOGS: &str = "
SELECT c.relname::text AS name,
       CASE WHEN c.relname = 'pg_description' THEN '''comment on '' || pg_catalog.pg_describe_object(c.classoid, c.objoid, c.objsubid)'
            WHEN c.relname = 'pg_enum' THEN '''values of type '' || c.enumtypid::regtype'
            ELSE coalesce((SELECT format('%L || c.%I::regclass', CASE c.relname WHEN 'pg_attribute' THEN 'columns of ' WHEN 'pg_attrdef' THEN 'defaults of '
                                  WHEN 'pg_index' THEN 'indexes of ' WHEN 'pg_trigger' THEN 'triggers of ' WHEN 'pg_rewrite' THEN 'definition of ' WHEN 'pg_policy' THEN 'policies of '
                                  WHEN 'pg_constraint' THEN 'constraints of ' ELSE '' END, attname)
                             FROM pg_attribute WHERE attrelid = c.oid AND attname IN ({of_table}) ORDER BY attnum LIMIT 1),
                          (SELECT format('pg_catalog.pg_describe_object(%L::regclass, c.oid, 0)', c.relname) FROM pg_attribute WHERE attrelid = c.oid AND attname = 'oid'),
                          quote_literal(c.relname)) END AS called,
       coalesce(CASE c.relname WHEN 'pg_namespace' THEN 'a schema' WHEN 'pg_class' THEN 'a table, a view, an index or a sequence' WHEN 'pg_proc' THEN 'a function'
            WHEN 'pg_type' THEN 'a type' WHEN 'pg_extension' THEN 'an extension' WHEN 'pg_trigger' THEN 'a trigger' WHEN 'pg_policy' THEN 'a policy'
            WHEN 'pg_constraint' THEN 'a constraint' WHEN 'pg_attrdef' THEN 'a default' WHEN 'pg_attribute' THEN 'a column' WHEN 'pg_enum' THEN 'a value of a type'
            WHEN 'pg_description' THEN 'a comment' END, 'a row of ' || c.relname) AS one,
       CASE WHEN c.relname = 'pg_namespace' THEN 'true' ELSE format('%I::oid >= {own}', (SELECT attname FROM pg_attribute WHERE attrelid = c.oid AND attnum = 1)) END AS own,
       coalesce((SELECT format('NOT EXISTS (SELECT FROM pg_catalog.pg_class t WHERE t.oid = c.%I AND t.relpersistence = ''t'')', attname)
                   FROM pg_attribute WHERE attrelid = c.oid AND attname IN ({of_table}) ORDER BY attnum LIMIT 1), 'true')
       || coalesce((SELECT format(' AND c.%I NOT IN (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname ~ ''^pg_(toast_)?temp_'')', attname)
                   FROM pg_attribute WHERE attrelid = c.oid AND attname ~ '^[a-z]+namespace$' AND atttypid = 'oid'::regtype ORDER BY attnum LIMIT 1), '')
       || CASE c.relname WHEN 'pg_class' THEN ' AND c.relpersistence <> ''t''' WHEN 'pg_namespace' THEN ' AND c.nspname !~ ''^pg_(toast_)?temp_''' ELSE '' END AS lasting,
       (SELECT string_agg(format('c.%I', attname), ', ' ORDER BY attnum) FROM pg_attribute
         WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped AND attname NOT IN ({volatile})) AS columns
  FROM pg_class c
 WHERE c.relnamespace = 'pg_catalog'::regnamespace AND c.relkind = 'r' AND NOT c.relisshared AND c.relname NOT IN ({left_out})
   AND has_table_privilege(c.oid, 'SELECT')
 ORDER BY coalesce(array_position(ARRAY[{telling}], c.relname::text), 99), c.oid";

/// How a reason begins that is the server's breakdown.
pub const BROKEN: &str = "the server broke down";

/// Views that hold rows, which no trigger watches.
const MATERIALIZED: &str =
    "SELECT format('%I.%I', n.nspname, c.relname) AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'm' AND c.relispopulated ORDER BY c.oid";
const SEQUENCES: &str = "SELECT c.oid, format('%I.%I', n.nspname, c.relname) AS name, pg_sequence_last_value(c.oid) IS NOT NULL AS is_called
     FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'S' AND c.relpersistence <> 't' ORDER BY c.oid";

/// SQL of event triggers that tell of commands that define something; {schema} has the log. What
/// only concerns temporary things is nobody's business. That they themselves are left alone is
/// looked at each time.
const TOLD: &str = "
CREATE UNLOGGED TABLE {schema}.defined (tag text);
CREATE FUNCTION {schema}.defined() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $isolane$ BEGIN
    IF TG_EVENT = 'sql_drop' THEN
        IF NOT EXISTS (SELECT FROM pg_event_trigger_dropped_objects() WHERE NOT is_temporary) THEN RETURN; END IF;
    ELSIF TG_TAG LIKE 'DROP %' OR (EXISTS (SELECT FROM pg_event_trigger_ddl_commands())
            AND NOT EXISTS (SELECT FROM pg_event_trigger_ddl_commands() WHERE schema_name IS DISTINCT FROM 'pg_temp')) THEN
        RETURN;
    END IF;
    INSERT INTO {schema}.defined VALUES (TG_TAG);
END $isolane$;
CREATE EVENT TRIGGER isolane_defined ON ddl_command_end EXECUTE FUNCTION {schema}.defined();
CREATE EVENT TRIGGER isolane_dropped ON sql_drop EXECUTE FUNCTION {schema}.defined();
ALTER EVENT TRIGGER isolane_defined ENABLE ALWAYS; ALTER EVENT TRIGGER isolane_dropped ENABLE ALWAYS;\n";

/// One thing whose changes are noticed.
struct Watched {
    name: String,
    /// SQL after FROM: the rows that tell cheaply whether anything changed.
    rows: String,
    /// SQL for all that counts: an array of numbers.
    content: String,
    /// SQL that says what is new or changed against such an array; nothing where it is gone.
    told: String,
    /// How it is called that is gone.
    one: String,
}

impl Watched {
    fn catalog(row: &postgres::Row) -> Self {
        let text = |column: &str| row.get::<_, String>(column);
        let (name, called, one) = (text("name"), text("called"), text("one"));
        let rows = format!("pg_catalog.{name} AS c WHERE {}", text("own"));
        let lasting = format!("{rows} AND {}", text("lasting"));
        let row = format!("hashtextextended(ROW({})::text, 0)", text("columns"));
        // A table says more than what was made for it.
        let order = if name == "pg_class" { "ORDER BY c.relkind NOT IN ('r', 'p'), c.oid" } else { "" };
        let content = format!(
            "SELECT coalesce(array_agg(x.h ORDER BY x.h), '{{}}') FROM (SELECT {row} AS h FROM {lasting}) AS x"
        );
        let told = format!(
            "SELECT {called} FROM {lasting} AND {row} IN (SELECT {row} FROM {lasting} EXCEPT SELECT unnest($1)) {order} LIMIT 1"
        );
        Self { name, rows, content, told, one }
    }

    fn view(name: String) -> Self {
        // It may have very many rows.
        let content = format!(
            "SELECT ARRAY[hashtextextended(coalesce(sum(hashtextextended(c::text, 0)), 0)::text, 0)] FROM {name} AS c"
        );
        let told = format!("SELECT {}", escape_literal(&format!("materialized view {name}")));
        Self { rows: format!("{name} AS c"), name, content, told, one: String::new() }
    }
}

/// SQL that makes the functions `keep`, `changed` and `rewind`.
pub fn install(client: &mut Client, schema: &Identifier) -> Result<String, postgres::Error> {
    let catalogs = CATALOGS
        .replace("{own}", &OWN.to_string())
        .replace("{of_table}", OF_TABLE)
        .replace("{volatile}", VOLATILE)
        .replace("{left_out}", LEFT_OUT)
        .replace("{telling}", TELLING);
    let mut watched: Vec<_> = client.query(&catalogs, &[])?.iter().map(Watched::catalog).collect();
    watched.extend(client.query(MATERIALIZED, &[])?.iter().map(|row| Watched::view(row.get("name"))));
    let sequences = client.query(SEQUENCES, &[])?;
    let is_told: bool = client.query_one("SELECT rolsuper FROM pg_roles WHERE rolname = current_user", &[])?.get(0);
    let told = if is_told { TOLD.replace("{schema}", &schema.to_string()) } else { String::new() };
    Ok(changed(schema, &watched, is_told) + &rewind(schema, &sequences) + &told)
}

/// SQL of the function that tells what has changed, if anything has.
fn changed(schema: &Identifier, watched: &[Watched], is_told: bool) -> String {
    let (unless_told, forget) = if is_told {
        (
            format!(
                "IF EXISTS (SELECT FROM {schema}.defined) OR (SELECT count(*) <> s.n OR min(age(e.xmin)) < age(s.since)
                         FROM pg_event_trigger AS e, {schema}.shape AS s WHERE s.name = 'pg_event_trigger' GROUP BY s.n, s.since) IS NOT FALSE THEN"
            ),
            format!("DELETE FROM {schema}.defined; END IF;"),
        )
    } else {
        Default::default()
    };
    let look: Vec<_> = watched
        .iter()
        .map(|it| {
            format!(
                "SELECT {}::text AS name, count(*) AS n, min(age(c.xmin)) AS a FROM {}",
                escape_literal(&it.name),
                it.rows
            )
        })
        .collect();
    let look = look.join("\n UNION ALL ");
    let known: Vec<_> = watched
        .iter()
        .zip(1..)
        .map(|(it, rank)| {
            let texts = [&it.name, &it.content, &it.told, &it.one].map(|text| escape_literal(text)).join(", ");
            format!("({rank}, {texts})")
        })
        .collect();
    format!(
        "CREATE TABLE {schema}.shape (rank int NOT NULL, name text PRIMARY KEY, content_sql text NOT NULL, told_sql text NOT NULL, one text NOT NULL, n bigint, since xid, content bigint[]);
         INSERT INTO {schema}.shape (rank, name, content_sql, told_sql, one) VALUES {known};
         CREATE TABLE {schema}.large (oid oid PRIMARY KEY, content text NOT NULL);
         CREATE FUNCTION {schema}.changed(settings text) RETURNS text LANGUAGE plpgsql AS $isolane$
         #variable_conflict use_column
         DECLARE its record; now_ bigint[]; found_ text; BEGIN
             IF NOT EXISTS (SELECT FROM {schema}.unbroken) THEN RETURN '{BROKEN}, and what it knew of rows is gone'; END IF;
             IF ({now}) <> settings THEN RETURN 'changed: the settings of the database'; END IF;
             {unless_told}
             FOR its IN SELECT s.name, s.content, s.content_sql, s.told_sql, s.one, f.n FROM ({look}) AS f JOIN {schema}.shape AS s ON s.name = f.name
                 WHERE s.n <> f.n OR f.a < age(s.since) ORDER BY s.rank LOOP
                 EXECUTE its.content_sql INTO now_;
                 IF now_ <> its.content THEN
                     EXECUTE its.told_sql INTO found_ USING its.content;
                     IF found_ IS NOT NULL THEN RETURN 'new or changed: ' || found_; END IF;
                     SELECT 'table ' || own_kind INTO found_ FROM {schema}.watched AS w
                      WHERE its.name = 'pg_class' AND NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = w.oid) ORDER BY rel LIMIT 1;
                     RETURN 'gone: ' || coalesce(found_, its.one);
                 END IF;
                 UPDATE {schema}.shape SET n = its.n, since = pg_current_xact_id()::xid WHERE name = its.name;
             END LOOP;
             {forget}
             IF EXISTS (SELECT FROM pg_largeobject_metadata) OR EXISTS (SELECT FROM {schema}.large) THEN
                 PERFORM lo_unlink(m.oid) FROM pg_largeobject_metadata AS m WHERE NOT EXISTS (SELECT FROM {schema}.large AS l WHERE l.oid = m.oid);
                 IF EXISTS (SELECT FROM {schema}.large AS l WHERE NOT EXISTS (SELECT FROM pg_largeobject_metadata AS m WHERE m.oid = l.oid AND md5(lo_get(m.oid)) = l.content)) THEN
                     RETURN 'changed or gone: a large object';
                 END IF;
             END IF;
             RETURN NULL;
         END $isolane$;
         CREATE FUNCTION {schema}.keep() RETURNS void LANGUAGE plpgsql AS $isolane$
         #variable_conflict use_column
         DECLARE its record; now_ bigint[]; BEGIN
             INSERT INTO {schema}.large SELECT oid, md5(lo_get(oid)) FROM pg_largeobject_metadata;
             FOR its IN SELECT f.name, f.n, s.content_sql FROM ({look}) AS f JOIN {schema}.shape AS s ON s.name = f.name LOOP
                 EXECUTE its.content_sql INTO now_;
                 UPDATE {schema}.shape SET n = its.n, content = now_, since = pg_current_xact_id()::xid WHERE name = its.name;
             END LOOP;
         END $isolane$;\n",
        known = known.join(",\n"),
        now = settings_of("current_database()"),
    )
}

/// SQL for the settings of a database, in words that can be compared.
pub fn settings_of(database: &str) -> String {
    format!(
        "SELECT coalesce(string_agg(coalesce(setrole::regrole::text, '') || ' ' || setconfig::text, ';' ORDER BY setrole), '')
           FROM pg_db_role_setting WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = {database})"
    )
}

/// SQL of the function that sets sequences back.
///
/// To read many in one statement costs several times as much as to ask a function for the last
/// value of each. That knows none of a sequence that was not used since it was set, so what was
/// unused from the beginning is read: what it was set to may have changed.
fn rewind(schema: &Identifier, sequences: &[postgres::Row]) -> String {
    let read = |row: &postgres::Row| {
        let (oid, name): (u32, String) = (row.get("oid"), row.get("name"));
        format!("SELECT {oid}::oid AS oid, last_value, is_called FROM {name}")
    };
    let (used, unused): (Vec<_>, Vec<_>) = sequences.iter().partition(|row| row.get::<_, bool>("is_called"));
    let [used, unused] = [used, unused].map(|rows| rows.into_iter().map(read).collect::<Vec<_>>());
    if used.is_empty() && unused.is_empty() {
        return format!(
            "CREATE FUNCTION {schema}.rewind() RETURNS void LANGUAGE plpgsql AS $isolane$ BEGIN END $isolane$;\n"
        );
    }
    let all = [&used[..], &unused[..]].concat().join("\n UNION ALL ");
    let mut body = String::new();
    if !used.is_empty() {
        body.push_str(&format!(
            "PERFORM setval(s.oid::regclass, s.last_value, s.is_called) FROM {schema}.sequence AS s
               WHERE s.is_called AND pg_sequence_last_value(s.oid) IS DISTINCT FROM s.last_value;"
        ));
    }
    if !unused.is_empty() {
        let now = unused.join("\n UNION ALL ");
        body.push_str(&format!(
            "PERFORM setval(s.oid::regclass, s.last_value, s.is_called) FROM ({now}) AS f JOIN {schema}.sequence AS s ON s.oid = f.oid
               WHERE f.last_value <> s.last_value OR f.is_called <> s.is_called;"
        ));
    }
    format!(
        "CREATE TABLE {schema}.sequence AS {all};
         CREATE FUNCTION {schema}.rewind() RETURNS void LANGUAGE plpgsql AS $isolane$ BEGIN {body} END $isolane$;\n"
    )
}

/// SQL, the last of the making, in a transaction of its own: from now on changes count.
pub fn begin(schema: &Identifier) -> String {
    format!("SELECT {schema}.keep()")
}
