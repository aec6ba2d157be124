-- Who did what when: tests, and the rows that they touched.

-- Tests, and fixtures that live longer than one: those have a scope ('session', 'module', …)
-- and no attempt. Times are microseconds since 1970.
CREATE TABLE test (
    run INTEGER NOT NULL REFERENCES run,
    number INTEGER NOT NULL,
    worker_id TEXT NOT NULL,
    test_id TEXT NOT NULL,
    attempt INTEGER,
    scope TEXT,
    began INTEGER NOT NULL,
    ended INTEGER,
    -- A fixture is at work until `ready` and from `leaving` on; between, it only lives.
    ready INTEGER,
    leaving INTEGER,
    outcome TEXT,
    message TEXT,
    PRIMARY KEY (run, number)
) WITHOUT ROWID;
CREATE INDEX test_by_time ON test (run, worker_id, began) WHERE scope IS NULL;
CREATE INDEX fixture_of_worker ON test (run, worker_id) WHERE scope IS NOT NULL;

-- Kinds of rows, as touches know them: `public.orders`.
CREATE TABLE kind (
    kind INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
);

-- Every insert, update and delete of a row that was seen.
CREATE TABLE touch (
    touch INTEGER PRIMARY KEY,
    run INTEGER NOT NULL,
    -- By whom: a row of `worker`, or in words, where it was nobody of this run.
    worker INTEGER,
    stranger TEXT,
    -- In which test or fixture: a number of `test`.
    test INTEGER,
    -- In whose own database or schema the row is: a lane's number, nothing where all share it,
    -- -1 where no lane has any business.
    lane INTEGER,
    kind INTEGER NOT NULL REFERENCES kind,
    -- The primary key as JSON; nothing where all rows went (TRUNCATE).
    key TEXT,
    -- How often another row has got this key by an update since: rows that had it before may have
    -- lived at the same time.
    past INTEGER NOT NULL DEFAULT 0,
    op TEXT NOT NULL CHECK (op IN ('insert', 'update', 'delete', 'truncate')),
    -- Microseconds since 1970 by this machine's clock, and how far that may be off.
    at INTEGER NOT NULL,
    uncertainty INTEGER NOT NULL,
    -- The statement: the number of its first touch, behind which the others follow.
    statement INTEGER NOT NULL,
    -- The server's process of the session.
    pid INTEGER NOT NULL,
    -- Found by the lane's prefix in the row, and not by the session.
    by_prefix INTEGER NOT NULL DEFAULT 0,
    -- Of an insert: what became of the row; nothing as long as it goes with its lane, or lives.
    state TEXT CHECK (state IN ('removed', 'gone', 'kept', 'stuck')),
    -- Why it is stuck, or what else is to be said of it.
    note TEXT
);
CREATE INDEX touch_by_key ON touch (run, kind, key, worker);
CREATE INDEX touch_by_test ON touch (run, test);

-- What the error of a failed test names: a row, or with a deadlock the session that went on.
CREATE TABLE named (
    run INTEGER NOT NULL,
    test INTEGER NOT NULL,
    kind INTEGER REFERENCES kind,
    key TEXT,
    pid INTEGER,
    pattern TEXT NOT NULL CHECK (pattern IN ('duplicate-key', 'foreign-key', 'deadlock')),
    at INTEGER NOT NULL
);
CREATE INDEX named_by_test ON named (run, test);

-- Pairs that met over a row: `a` had it, `b` came. Tests are numbers of `test`.
CREATE TABLE collision (
    collision INTEGER PRIMARY KEY,
    run INTEGER NOT NULL,
    kind INTEGER NOT NULL REFERENCES kind,
    key TEXT,
    pattern TEXT NOT NULL CHECK (pattern IN ('clobber', 'pollution', 'hot-row', 'duplicate-key', 'foreign-key', 'broad', 'escape', 'deadlock')),
    worker_a INTEGER,
    test_a INTEGER,
    op_a TEXT,
    at_a INTEGER,
    worker_b INTEGER,
    test_b INTEGER,
    op_b TEXT,
    at_b INTEGER,
    -- The statement that `b` came with.
    statement_b INTEGER,
    overlap_us INTEGER NOT NULL,
    failed_test INTEGER
);
CREATE INDEX collision_of_run ON collision (run);
