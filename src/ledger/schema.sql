-- The ledger's tables are isolane's own business: runs, workers, and what they made. See
-- story.sql for tests and touches, views.sql for what users rely on. Times are ISO-8601 in UTC, ids text.
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
