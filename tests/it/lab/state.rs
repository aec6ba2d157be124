//! All that a database is, as text: what a test may find that is promised a pristine lane.

use std::fs;

use super::{Database, Lab};

/// `state.of(connection)` tells it; as a program, it tells it of the address that it is given. A
/// suite with [`SUITE`] looks before each test.
const STATE: &str = r#"
import os, sys
import psycopg

OWN = "NOT IN (SELECT oid FROM pg_namespace WHERE nspname ~ '^pg_' OR nspname IN ('information_schema', 'isolane_log'))"
SHAPE = f"""
SELECT 'column ' || attrelid::regclass || ' ' || concat_ws(' ', attname, format_type(atttypid, atttypmod), attnotnull, attidentity, attgenerated, attstorage, attacl,
       (SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = attrelid AND adnum = attnum))
  FROM pg_attribute JOIN pg_class c ON c.oid = attrelid WHERE relnamespace {OWN} AND attnum > 0 AND NOT attisdropped AND relkind <> 't'
UNION ALL SELECT 'relation ' || c.oid::regclass || ' ' || concat_ws(' ', relkind, relowner::regrole, relacl, relpersistence, relrowsecurity, reloptions, obj_description(c.oid, 'pg_class'))
  FROM pg_class c WHERE relnamespace {OWN} AND relkind <> 't'
UNION ALL SELECT 'index ' || pg_get_indexdef(indexrelid) FROM pg_index JOIN pg_class c ON c.oid = indrelid WHERE relnamespace {OWN} AND relkind <> 't'
UNION ALL SELECT 'constraint ' || conname || ' ' || concat_ws(' ', conrelid::regclass, pg_get_constraintdef(oid), convalidated) FROM pg_constraint WHERE connamespace {OWN}
UNION ALL SELECT 'trigger ' || tgrelid::regclass || ' ' || concat_ws(' ', CASE WHEN tgisinternal THEN tgfoid::regproc::text ELSE tgname::text END, tgenabled) FROM pg_trigger WHERE NOT starts_with(tgname::text, 'isolane_')
UNION ALL SELECT 'function ' || oid::regprocedure || ' ' || concat_ws(' ', prosrc, proacl, proconfig) FROM pg_proc WHERE pronamespace {OWN}
UNION ALL SELECT 'schema ' || nspname || ' ' || concat_ws(' ', nspowner::regrole, nspacl, obj_description(oid, 'pg_namespace')) FROM pg_namespace WHERE oid {OWN}
UNION ALL SELECT 'type ' || oid::regtype || ' ' || concat_ws(' ', typtype, typdefault) FROM pg_type WHERE typnamespace {OWN}
UNION ALL SELECT 'value ' || enumtypid::regtype || ' ' || concat_ws(' ', enumsortorder, enumlabel) FROM pg_enum
UNION ALL SELECT 'extension ' || extname || ' ' || extversion FROM pg_extension
UNION ALL SELECT 'view ' || c.oid::regclass || pg_get_viewdef(c.oid) || relispopulated FROM pg_class c WHERE relnamespace {OWN} AND relkind IN ('v', 'm')
UNION ALL SELECT 'sequence ' || seqrelid::regclass || ' ' || concat_ws(' ', seqstart, seqincrement, seqmax, seqmin, seqcycle) FROM pg_sequence JOIN pg_class c ON c.oid = seqrelid WHERE relnamespace {OWN}
UNION ALL SELECT 'policy ' || polrelid::regclass || ' ' || polname FROM pg_policy
UNION ALL SELECT 'setting ' || setrole::regrole || setconfig::text FROM pg_db_role_setting WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
UNION ALL SELECT 'large ' || oid || md5(lo_get(oid)) FROM pg_largeobject_metadata
"""
TABLES = f"SELECT oid::regclass::text, relkind::text FROM pg_class WHERE relkind IN ('r', 'm', 'S') AND relnamespace {OWN} AND relispopulated"


def of(db):
    lines = [line for (line,) in db.execute(SHAPE)]
    for table, kind in db.execute(TABLES).fetchall():
        what = "(last_value, is_called)" if kind == "S" else "t"
        lines += [f"row {table} {row}" for (row,) in db.execute(f"SELECT {what}::text FROM ONLY {table} AS t" if kind == "r" else f"SELECT {what}::text FROM {table} AS t")]
    return sorted(lines)


def now():
    with psycopg.connect(os.environ["DATABASE_URL"]) as db:
        return of(db)


def assert_pristine():
    with open("pristine.txt") as file:
        pristine = file.read().split("\0")
    found = now()
    new, gone = [line for line in found if line not in pristine], [line for line in pristine if line not in found]
    assert found == pristine, f"new: {new}; gone: {gone}"


if __name__ == "__main__":
    with psycopg.connect(sys.argv[1]) as db:
        print("\0".join(of(db)), end="")
"#;

/// A suite's `conftest.py`: before each test the lane is looked at.
const SUITE: &str = "
import pytest, state

@pytest.fixture(autouse=True)
def pristine():
    state.assert_pristine()
";

/// `pool.db()` is one connection for all tests of a process; `pool.opened` counts how often it had
/// to be opened.
const POOL: &str = r#"
import os, psycopg

connection, opened = None, 0

def db(**options):
    global connection, opened
    if connection is None or connection.closed:
        connection = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True, **options)
        opened += 1
    return connection
"#;

impl Lab {
    /// Makes the project a suite whose every test fails that does not find `database` as it is now.
    pub fn pristine_suite(&self, database: &Database) -> &Self {
        self.file("state.py", STATE).file("pool.py", POOL).file("conftest.py", SUITE);
        let told = self.program("python").arg("state.py").arg(database.url()).run().assert_code(0);
        fs::write(self.path("pristine.txt"), told.stdout).expect("a file");
        self
    }
}

impl Lab {
    /// Whether nothing of any run of this lab is left on the server.
    pub fn marked_nowhere(&self, database: &Database) -> bool {
        self.column("SELECT tag FROM runs").iter().all(|tag| database.server.marked(tag, &database.name).is_empty())
    }
}
