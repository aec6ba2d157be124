//! Tables whose rows are watched, and how a row of each is known.

use std::collections::HashSet;

use postgres::{Client, Row};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::name::Identifier;
use crate::settings::Track;

/// The most rows of one statement that are written down: an array has an end.
const MOST_ROWS: usize = 5_000_000;

/// A table.
#[derive(Clone, Debug)]
pub struct Table {
    /// Its number in the catalog.
    pub oid: u32,
    /// Its name, for SQL.
    pub sql: String,
    /// Its name in the ledger. A partition's rows are those of the whole.
    pub kind: String,
    /// Its own name, where rows are not meant.
    pub own_kind: String,
    /// How its rows are known.
    pub key: Key,
    /// The numbers of its key's columns, which stay when they are renamed.
    pub attnums: Vec<i16>,
    /// Whether the login may put triggers on it.
    pub may_watch: bool,
    /// Whether the ledger is told of its rows.
    pub is_told: bool,
}

/// The columns of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Their names; none where there is no key, and a row is known by all that it holds.
    pub columns: Vec<String>,
    /// Their types, for SQL.
    pub types: Vec<String>,
    /// How it is written down.
    pub form: Form,
    /// Whether it is written down in the same way by every session, whatever that is set to.
    pub is_plain: bool,
}

/// How a key is written down on the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The digits of one whole number.
    Integer,
    /// One text.
    Text,
    /// An array in JSON.
    Array,
    /// The whole row as an object in JSON.
    Row,
}

impl Form {
    /// Its letter in the table of tables.
    pub fn letter(self) -> &'static str {
        match self {
            Self::Integer => "i",
            Self::Text => "t",
            Self::Array => "a",
            Self::Row => "r",
        }
    }

    fn parse(letter: &str) -> Self {
        match letter {
            "i" => Self::Integer,
            "t" => Self::Text,
            "a" => Self::Array,
            _ => Self::Row,
        }
    }
}

/// Ordinary and partitioned tables that are the user's own. A table without a primary key is
/// known by a unique index over columns that are never null, if it has one.
const TABLES: &str = "
SELECT c.oid, n.nspname::text AS schema, c.relname::text AS name,
       rn.nspname::text AS root_schema, rc.relname::text AS root_name,
       k.columns, k.attnums, k.types, k.names AS type_names, coalesce(k.plain, false) AS is_plain,
       has_table_privilege(c.oid, 'TRIGGER') AS may_watch
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_class rc ON rc.oid = CASE WHEN c.relispartition THEN pg_partition_root(c.oid) ELSE c.oid END
  JOIN pg_namespace rn ON rn.oid = rc.relnamespace
  LEFT JOIN LATERAL (
       SELECT array_agg(a.attname::text ORDER BY u.n) AS columns, array_agg(a.attnum ORDER BY u.n) AS attnums,
              array_agg(CASE WHEN t.typtype = 'b' AND t.typnamespace <> 'pg_catalog'::regnamespace THEN 'text' ELSE format_type(a.atttypid, -1) END ORDER BY u.n) AS types,
              array_agg(CASE WHEN t.typnamespace = 'pg_catalog'::regnamespace THEN t.typname::text ELSE '' END ORDER BY u.n) AS names,
              bool_and(t.typtype = 'e' OR t.oid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype, 'text'::regtype, 'varchar'::regtype, 'bpchar'::regtype,
                       'uuid'::regtype, 'name'::regtype, 'numeric'::regtype, 'bool'::regtype, 'date'::regtype, 'timestamp'::regtype)) AS plain
         FROM pg_index i, unnest(i.indkey::smallint[]) WITH ORDINALITY AS u (attnum, n)
         JOIN pg_attribute a ON a.attrelid = rc.oid AND a.attnum = u.attnum
         JOIN pg_type t ON t.oid = a.atttypid
        WHERE i.indrelid = rc.oid AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
          AND u.n <= i.indnkeyatts
        GROUP BY i.indexrelid, i.indisprimary HAVING bool_and(a.attnotnull)
        ORDER BY i.indisprimary DESC, i.indexrelid LIMIT 1) k ON true
 WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
   AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'isolane_leases')
   AND coalesce(obj_description(n.oid, 'pg_namespace'), '') NOT LIKE 'isolane run %'
   AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
 ORDER BY c.oid";
const NO_EXTENSIONS: &str = "AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')";

/// The user's tables in the database of `client`, as far as they are to be watched.
pub fn watched(client: &mut Client, track: &Track) -> Result<Vec<Table>, postgres::Error> {
    let rows = client.query(TABLES, &[])?;
    Ok(rows.iter().map(table).filter(|table| track.wants(&table.kind)).collect())
}

/// All tables in the database of `client`, those of extensions as well; the ledger is told of those
/// that are to be watched.
pub fn all(client: &mut Client, track: &Track) -> Result<Vec<Table>, postgres::Error> {
    let told: HashSet<u32> =
        if track.is_off() { HashSet::new() } else { watched(client, track)?.iter().map(|table| table.oid).collect() };
    let rows = client.query(&TABLES.replace(NO_EXTENSIONS, ""), &[])?;
    Ok(rows.iter().map(table).map(|table| Table { is_told: told.contains(&table.oid), ..table }).collect())
}

/// The tables of one schema that is a lane, under the names that they have in `shown_as`.
pub fn of_lane(
    client: &mut Client,
    schema: &str,
    shown_as: &str,
    track: &Track,
) -> Result<Vec<Table>, postgres::Error> {
    let sql = TABLES.replace(
        "AND coalesce(obj_description(n.oid, 'pg_namespace'), '') NOT LIKE 'isolane run %'",
        "AND n.nspname = $1",
    );
    let rows = client.query(&sql, &[&schema])?;
    let shown = |kind: &str| format!("{shown_as}{}", kind.strip_prefix(schema).unwrap_or(kind));
    let tables = rows.iter().map(table).map(|table| Table {
        kind: shown(&table.kind),
        own_kind: shown(&table.own_kind),
        ..table
    });
    Ok(tables.filter(|table| track.wants(&table.kind)).collect())
}

fn table(row: &Row) -> Table {
    let (schema, name): (String, String) = (row.get("schema"), row.get("name"));
    let (root_schema, root_name): (String, String) = (row.get("root_schema"), row.get("root_name"));
    let columns: Vec<String> = row.get::<_, Option<_>>("columns").unwrap_or_default();
    let names: Vec<String> = row.get::<_, Option<_>>("type_names").unwrap_or_default();
    let form = match names.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => Form::Row,
        ["int2" | "int4" | "int8"] => Form::Integer,
        ["text" | "varchar" | "uuid" | "name"] => Form::Text,
        _ => Form::Array,
    };
    Table {
        oid: row.get("oid"),
        sql: format!("{}.{}", quoted(&schema), quoted(&name)),
        kind: format!("{root_schema}.{root_name}"),
        own_kind: format!("{schema}.{name}"),
        key: Key {
            columns,
            types: row.get::<_, Option<_>>("types").unwrap_or_default(),
            form,
            is_plain: row.get("is_plain"),
        },
        attnums: row.get::<_, Option<_>>("attnums").unwrap_or_default(),
        may_watch: row.get("may_watch"),
        is_told: true,
    }
}

/// A name from the catalog, for SQL.
pub fn quoted(name: &str) -> String {
    Identifier::new(name).map_or_else(String::new, |name| name.to_string())
}

impl Key {
    /// What the server has written down, with its form by its [`Form::letter`].
    pub fn recall(columns: Vec<String>, types: Vec<String>, letter: &str) -> Self {
        Self { columns, types, form: Form::parse(letter), is_plain: false }
    }

    /// SQL for the keys of `rows`, as `k`, each row being `isolane_row` to what else is selected: a
    /// name that no column has, because a column's would go before it. Should a test have renamed
    /// or dropped a column, its name falls through to a null beside: a statement of the user's
    /// must not fail because of isolane.
    pub fn of_each(&self, rows: &str, else_: &str) -> String {
        let columns: Vec<_> = self.columns.iter().map(|name| quoted(name)).collect();
        let key = match self.form {
            Form::Integer | Form::Text => format!("{}::pg_catalog.text", columns[0]),
            Form::Array => format!("pg_catalog.jsonb_build_array({})::pg_catalog.text", columns.join(", ")),
            Form::Row => {
                return format!(
                    "SELECT pg_catalog.to_jsonb(isolane_row)::pg_catalog.text AS k{else_} FROM {rows} AS isolane_row LIMIT {MOST_ROWS}"
                );
            }
        };
        let missing =
            columns.iter().map(|name| format!("NULL::pg_catalog.text AS {name}")).collect::<Vec<_>>().join(", ");
        // The server makes one plain scan of it.
        format!(
            "SELECT isolane_key.k{else_} FROM {rows} AS isolane_row, (SELECT {missing}) AS isolane_missing,
                    LATERAL (SELECT {key} AS k FROM (SELECT isolane_row.*) AS isolane_it) AS isolane_key LIMIT {MOST_ROWS}"
        )
    }

    /// The key as the ledger has it: an object in JSON.
    pub fn json(&self, text: &str) -> String {
        let name = |at: usize| Value::from(self.columns.get(at).map_or("", String::as_str));
        match self.form {
            Form::Integer => format!("{{{}:{text}}}", name(0)),
            Form::Text => format!("{{{}:{}}}", name(0), Value::from(text)),
            Form::Array => {
                // Numbers stay as the server wrote them: a float has fewer digits.
                let values: Vec<&RawValue> = serde_json::from_str(text).unwrap_or_default();
                let pairs: Vec<_> =
                    values.iter().enumerate().map(|(at, value)| format!("{}:{value}", name(at))).collect();
                format!("{{{}}}", pairs.join(","))
            }
            Form::Row => text.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_objects_in_json() {
        let key = |columns: &[&str], form| Key {
            columns: columns.iter().map(|&name| name.to_owned()).collect(),
            types: Vec::new(),
            form,
            is_plain: true,
        };
        assert_eq!(key(&["id"], Form::Integer).json("17"), r#"{"id":17}"#);
        assert_eq!(key(&["e \"mail"], Form::Text).json("a\"b"), r#"{"e \"mail":"a\"b"}"#);
        assert_eq!(key(&["a", "b"], Form::Array).json(r#"[1, "x"]"#), r#"{"a":1,"b":"x"}"#);
    }
}
