//! What the user's own triggers write because rows are removed, such as into a table that keeps
//! account of changes: that is the run's doing as well, and goes.

use postgres::Client;

use super::Target;
use super::find::typed;
use crate::name::{Identifier, Tag};
use crate::provider::postgres::capture::TEXTS;
use crate::provider::postgres::capture::table::Key;

/// Lets the triggers write down what this session makes from now on, where the user has any
/// triggers.
pub fn listen(client: &mut Client, home: &Identifier, tag: &Tag) -> Result<(), postgres::Error> {
    client.batch_execute(&format!(
        "CREATE UNLOGGED TABLE IF NOT EXISTS {home}.aftermath (rel int NOT NULL, keys text[] NOT NULL);
         SET isolane.removes = '{tag}'"
    ))?;
    let watched = format!(
        "SELECT w.rel, w.columns, w.types, w.form::text AS form FROM {home}.watched w
          WHERE to_regprocedure(format('%s.i%s()', $1::text, w.rel)) IS NOT NULL
            AND EXISTS (SELECT FROM {home}.watched o JOIN pg_trigger t ON t.tgrelid = o.oid
                         WHERE NOT t.tgisinternal AND t.tgname NOT LIKE 'isolane\\_%')"
    );
    let mut sql = String::new();
    for row in client.query(&watched, &[&home.to_string()])? {
        let rel: i32 = row.get("rel");
        let key = Key::recall(row.get("columns"), row.get("types"), row.get("form"));
        sql.push_str(&format!(
            "CREATE OR REPLACE FUNCTION {home}.i{rel}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER {TEXTS} AS $isolane$
             #variable_conflict use_column
             BEGIN
                 IF pg_catalog.current_setting('isolane.removes', true) OPERATOR(pg_catalog.=) '{tag}' THEN
                     INSERT INTO {home}.aftermath VALUES ({rel}, ARRAY({}));
                 END IF;
                 RETURN NULL;
             END $isolane$;",
            key.of_each("isolane_new", "")
        ));
    }
    client.batch_execute(&format!("SET check_function_bodies = off; {sql}"))
}

/// Whether there is anything to be removed.
pub fn is_there(client: &mut Client, home: &Identifier) -> Result<bool, postgres::Error> {
    let sql = format!("SELECT EXISTS (SELECT FROM {home}.aftermath WHERE cardinality(keys) > 0)");
    Ok(client.query_one(&sql, &[])?.get(0))
}

/// Puts it among the rows of a table that are to be removed.
pub fn add(client: &mut Client, home: &Identifier, target: &mut Target) -> Result<(), postgres::Error> {
    let mut transaction = client.transaction()?;
    let sql = format!(
        "WITH made AS (DELETE FROM {home}.aftermath WHERE rel IN ({rels}) RETURNING keys),
              alike AS (SELECT k, count(*) AS copies FROM made, unnest(keys) AS k WHERE k IS NOT NULL GROUP BY k)
         INSERT INTO {ours} SELECT {last} + row_number() OVER (), k, copies, false, {typed} FROM alike",
        rels = target.rels(home),
        ours = target.ours,
        last = target.last,
        typed = typed(&target.key)
    );
    target.last += i64::try_from(transaction.execute(&sql, &[])?).unwrap_or(0);
    transaction.commit()
}
