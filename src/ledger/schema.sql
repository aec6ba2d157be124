-- The ledger. Tables are isolane's own business; the views below are what users
-- and scripts rely on. Times are ISO-8601 in UTC, ids text.
CREATE TABLE run (
    run INTEGER PRIMARY KEY,
    run_id TEXT NOT NULL UNIQUE,
    tag TEXT NOT NULL,
    command TEXT NOT NULL,
    runner TEXT NOT NULL,
    host TEXT NOT NULL,
    cwd TEXT NOT NULL,
    -- The file whose lock says that the run lives; a copy of the ledger names it as well.
    lock TEXT NOT NULL,
    started_at TEXT NOT NULL,
    ended_at TEXT,
    exit_code INTEGER,
    state TEXT NOT NULL CHECK (state IN ('running', 'passed', 'failed', 'crashed', 'swept'))
);

CREATE INDEX run_running ON run (run) WHERE state = 'running';

CREATE TABLE worker (
    worker INTEGER PRIMARY KEY,
    run INTEGER NOT NULL REFERENCES run,
    worker_id TEXT NOT NULL,
    lane INTEGER NOT NULL,
    pid INTEGER,
    started_at TEXT NOT NULL,
    ended_at TEXT,
    outcome TEXT NOT NULL CHECK (outcome IN ('running', 'ok', 'crashed', 'killed')),
    -- pytest's controller holds a lane and is no worker once it has workers.
    controller INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX worker_of_run ON worker (run);

CREATE TABLE test (
    run INTEGER NOT NULL REFERENCES run,
    number INTEGER NOT NULL,
    worker_id TEXT NOT NULL,
    test_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    started_at TEXT NOT NULL,
    ended_at TEXT,
    outcome TEXT,
    message TEXT,
    PRIMARY KEY (run, number)
) WITHOUT ROWID;

CREATE TABLE resource (
    resource INTEGER PRIMARY KEY,
    run INTEGER NOT NULL REFERENCES run,
    worker_id TEXT,
    provider TEXT NOT NULL,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    -- A lane's number, 'template' or 'run'.
    place TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('planned', 'created', 'removed', 'kept', 'stuck')),
    created_at TEXT,
    removed_at TEXT,
    error TEXT
);
CREATE INDEX resource_of_run ON resource (run);
CREATE INDEX resource_owed ON resource (run) WHERE state IN ('planned', 'created', 'stuck');

CREATE TABLE record (
    record INTEGER PRIMARY KEY,
    run INTEGER NOT NULL REFERENCES run,
    worker_id TEXT NOT NULL,
    test_id TEXT,
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    created_at TEXT NOT NULL,
    source TEXT NOT NULL CHECK (source IN ('trigger', 'api', 'prefix')),
    state TEXT NOT NULL CHECK (state IN ('live', 'removed', 'gone', 'kept', 'stuck'))
);
CREATE INDEX record_of_run ON record (run);
CREATE INDEX record_by_key ON record (kind, key);

CREATE VIEW runs AS
    SELECT run_id, tag, command, runner, host, cwd, started_at, ended_at, exit_code, state FROM run;

CREATE VIEW workers AS
    SELECT run_id, worker_id, lane, pid, w.started_at, w.ended_at, outcome
    FROM worker w JOIN run USING (run) WHERE NOT controller;

CREATE VIEW tests AS
    SELECT run_id, worker_id, test_id, attempt, t.started_at, t.ended_at, outcome, message
    FROM test t JOIN run USING (run);

CREATE VIEW resources AS
    SELECT run_id, worker_id, provider, kind, name, r.state, created_at, removed_at, error
    FROM resource r JOIN run USING (run);

CREATE VIEW records AS
    SELECT run_id, worker_id, test_id, kind, key, created_at, source, r.state
    FROM record r JOIN run USING (run);
