//! Finding the row that an error names by a key that is not its primary one.

use postgres::{Client, Row};
use postgres_protocol::escape::escape_literal;

use super::table::{Form, Key};
use crate::failure::{KeyTrouble, Trouble};
use crate::name::Identifier;
use crate::provider::NamedRow;

/// How many rows of one key are of interest.
const MOST: i64 = 20;

/// The constraint, and the table in which the row is that matters: for a foreign key whose
/// other end is missing, the one referred to. Its columns come from the catalog, never from the
/// text of the error.
const CONSTRAINT: &str = "
SELECT w.rel, w.oid::regclass::text AS sql, w.kind, w.columns, w.types, w.form::text AS form, found.keys
  FROM (SELECT CASE WHEN c.contype = 'f' AND $3 THEN c.confrelid ELSE c.conrelid END AS oid,
               CASE WHEN c.contype = 'f' THEN
                   ARRAY(SELECT quote_ident(a.attname) FROM unnest(CASE WHEN $3 THEN c.confkey ELSE c.conkey END) WITH ORDINALITY AS k (n, at)
                           JOIN pg_attribute a ON a.attnum = k.n AND a.attrelid = CASE WHEN $3 THEN c.confrelid ELSE c.conrelid END ORDER BY at)
               ELSE ARRAY(SELECT pg_get_indexdef(c.conindid, n, false) FROM pg_index i, generate_series(1, i.indnkeyatts) AS n WHERE i.indexrelid = c.conindid ORDER BY n)
               END AS keys
          FROM pg_constraint c WHERE c.conname = $1 AND c.contype IN ('p', 'u', 'f')
        UNION ALL
        SELECT i.indrelid, ARRAY(SELECT pg_get_indexdef(i.indexrelid, n, false) FROM generate_series(1, i.indnkeyatts) AS n ORDER BY n)
          FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
         WHERE x.relname = $1 AND i.indisunique AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = i.indexrelid AND c.contype IN ('p', 'u'))
       ) AS found JOIN {home}.watched w ON w.oid = found.oid
 WHERE w.lane IS NOT DISTINCT FROM $2 OR w.lane = -1";

/// The rows that an error is about, as far as the server knows them still.
pub fn find(
    client: &mut Client,
    home: &Identifier,
    lane: Option<i32>,
    trouble: &KeyTrouble,
) -> Result<Vec<NamedRow>, postgres::Error> {
    let is_missing = trouble.trouble == Trouble::Missing;
    let sql = CONSTRAINT.replace("{home}", &home.to_string());
    let mut found = Vec::new();
    for table in client.query(&sql, &[&trouble.constraint, &lane, &is_missing])? {
        let kind: String = table.get("kind");
        let key = Key::recall(table.get("columns"), table.get("types"), table.get("form"));
        let texts = rows(client, home, &table, &key, &trouble.values)?;
        found.extend(texts.iter().map(|text| NamedRow { kind: kind.clone(), key: key.json(text) }));
    }
    Ok(found)
}

/// The keys of the rows whose columns have these values: of those that are there, else of those
/// that were changed or removed.
fn rows(
    client: &mut Client,
    home: &Identifier,
    table: &Row,
    key: &Key,
    values: &str,
) -> Result<Vec<String>, postgres::Error> {
    let columns: Vec<String> = table.get("keys");
    let (sql, rel): (String, i32) = (table.get("sql"), table.get("rel"));
    let joined = |each: &dyn Fn(&String) -> String| {
        let all: Vec<_> = columns.iter().map(each).collect();
        format!("concat_ws(', ', {})", all.join(", "))
    };
    let there =
        format!("(SELECT * FROM {sql} WHERE {} = $1 LIMIT {MOST})", joined(&|column| format!("({column})::text")));
    let texts = |rows: Vec<Row>| rows.iter().filter_map(|row| row.get(0)).collect::<Vec<String>>();
    let found = texts(client.query(&key.of_each(&there, ""), &[&values])?);
    if !found.is_empty() {
        return Ok(found);
    }
    let is_plain = columns.iter().all(|column| !column.contains('('));
    if !is_plain || key.form == Form::Row {
        return Ok(Vec::new());
    }
    // Where rows may have to be put back, they are kept as texts.
    let is_text = "SELECT to_regclass($1) IS NOT NULL";
    let is_text: bool = client.query_one(is_text, &[&format!("{home}.backlog")])?.get(0);
    let image = if is_text { format!("to_jsonb(row::{sql})") } else { "row".to_owned() };
    let name =
        |column: &String| format!("{image} ->> {}", escape_literal(&column.trim_matches('"').replace("\"\"", "\"")));
    let gone =
        format!("SELECT key FROM {home}.image WHERE rel = {rel} AND {} = $1 ORDER BY at DESC LIMIT 1", joined(&name));
    Ok(texts(client.query(&gone, &[&values])?))
}
