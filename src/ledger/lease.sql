-- Pools, their items, who holds them and who waits. Every row says in which version of the
-- store it was changed last, so that a process reads only what others changed. Times are
-- microseconds since 1970, by the store's own clock.

CREATE TABLE lease_head (
    head INTEGER PRIMARY KEY CHECK (head = 0),
    version INTEGER NOT NULL,
    fence INTEGER NOT NULL,
    ticket INTEGER NOT NULL,
    used INTEGER NOT NULL,
    item INTEGER NOT NULL,
    -- The clock: this boot of the machine, and how much later 1970 began than it.
    boot TEXT NOT NULL DEFAULT '',
    epoch INTEGER NOT NULL DEFAULT 0,
    now INTEGER NOT NULL DEFAULT 0
);
INSERT INTO lease_head VALUES (0, 0, 0, 0, 0, 0, '', 0, 0);

CREATE TABLE pool (
    name TEXT PRIMARY KEY,
    definition TEXT NOT NULL,
    removed INTEGER NOT NULL,
    version INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE item (
    item INTEGER PRIMARY KEY,
    pool TEXT NOT NULL,
    name TEXT NOT NULL,
    attributes TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('free', 'dirty', 'resetting', 'quarantined', 'retiring', 'retired')),
    held INTEGER NOT NULL,
    fence INTEGER NOT NULL,
    used INTEGER NOT NULL,
    failures INTEGER NOT NULL,
    soiled INTEGER NOT NULL,
    leaving INTEGER NOT NULL,
    configured INTEGER NOT NULL,
    origin TEXT,
    note TEXT,
    version INTEGER NOT NULL
);
CREATE INDEX item_changed ON item (version);

CREATE TABLE lease (
    lease_id TEXT PRIMARY KEY,
    -- [[item, pool, name], …]
    items TEXT NOT NULL,
    run_id TEXT,
    worker_id TEXT,
    test_id TEXT,
    lane INTEGER,
    client TEXT,
    key TEXT,
    substance TEXT,
    fence INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('held', 'released', 'expired', 'lost', 'revoked')),
    acquired INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    ended INTEGER,
    ttl INTEGER NOT NULL,
    kept INTEGER NOT NULL,
    version INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX lease_changed ON lease (version);
CREATE INDEX lease_held ON lease (run_id) WHERE state = 'held';

CREATE TABLE waiter (
    ticket INTEGER PRIMARY KEY,
    ask TEXT NOT NULL,
    since INTEGER NOT NULL,
    until INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'granted', 'gone')),
    lease_id TEXT,
    owner TEXT NOT NULL,
    version INTEGER NOT NULL
);
CREATE INDEX waiter_changed ON waiter (version);

-- Who may ask `isolane serve` for what. Of a token only its hash is kept.
CREATE TABLE token (
    name TEXT PRIMARY KEY,
    role TEXT NOT NULL CHECK (role IN ('read', 'lease', 'admin')),
    -- SHA-256 of the token.
    hash BLOB NOT NULL,
    made INTEGER NOT NULL,
    expires INTEGER
) WITHOUT ROWID;
