-- Pools, their items, who holds them and who waits, as src/ledger/lease.sql has them. The one row
-- of lease_head is locked by every transaction that works here, so that one follows another. Times
-- are microseconds since 1970, by the server's clock as it was before anybody set it.

CREATE SCHEMA IF NOT EXISTS isolane_leases;
COMMENT ON SCHEMA isolane_leases IS 'Pools and leases of test data that several machines share; isolane keeps them here';

CREATE TABLE IF NOT EXISTS isolane_leases.lease_head (
    head integer PRIMARY KEY CHECK (head = 0),
    -- What these tables look like: an older isolane leaves those of a newer one alone.
    layout integer NOT NULL,
    version bigint NOT NULL,
    fence bigint NOT NULL,
    ticket bigint NOT NULL,
    used bigint NOT NULL,
    item bigint NOT NULL,
    now bigint NOT NULL,
    -- How far that is ahead of the server's clock.
    ahead bigint NOT NULL
) WITH (fillfactor = 10);
INSERT INTO isolane_leases.lease_head VALUES (0, 2, 0, 0, 0, 0, 0, 0, 0) ON CONFLICT DO NOTHING;

CREATE TABLE IF NOT EXISTS isolane_leases.pool (
    name text PRIMARY KEY,
    definition json NOT NULL,
    removed boolean NOT NULL,
    version bigint NOT NULL
);

CREATE TABLE IF NOT EXISTS isolane_leases.item (
    item bigint PRIMARY KEY,
    pool text NOT NULL,
    name text NOT NULL,
    attributes json NOT NULL,
    state text NOT NULL CHECK (state IN ('free', 'dirty', 'resetting', 'quarantined', 'retiring', 'retired')),
    held integer NOT NULL,
    fence bigint NOT NULL,
    used bigint NOT NULL,
    failures integer NOT NULL,
    soiled boolean NOT NULL,
    leaving boolean NOT NULL,
    configured boolean NOT NULL,
    origin text,
    note text,
    version bigint NOT NULL
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX IF NOT EXISTS item_changed ON isolane_leases.item (version);

CREATE TABLE IF NOT EXISTS isolane_leases.lease (
    lease_id text PRIMARY KEY,
    -- [[item, pool, name], …]
    items json NOT NULL,
    run_id text,
    worker_id text,
    test_id text,
    lane integer,
    client text,
    key text,
    substance text,
    fence bigint NOT NULL,
    state text NOT NULL CHECK (state IN ('held', 'released', 'expired', 'lost', 'revoked')),
    acquired bigint NOT NULL,
    expires bigint NOT NULL,
    ended bigint,
    ttl bigint NOT NULL,
    kept boolean NOT NULL,
    version bigint NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX IF NOT EXISTS lease_changed ON isolane_leases.lease (version);
CREATE INDEX IF NOT EXISTS lease_held ON isolane_leases.lease (run_id) WHERE state = 'held';

CREATE TABLE IF NOT EXISTS isolane_leases.waiter (
    ticket bigint PRIMARY KEY,
    ask json NOT NULL,
    since bigint NOT NULL,
    until bigint NOT NULL,
    state text NOT NULL CHECK (state IN ('waiting', 'granted', 'gone')),
    lease_id text,
    owner text NOT NULL,
    version bigint NOT NULL
);
CREATE INDEX IF NOT EXISTS waiter_changed ON isolane_leases.waiter (version);
CREATE INDEX IF NOT EXISTS waiter_waiting ON isolane_leases.waiter (ticket) WHERE state = 'waiting';

CREATE OR REPLACE VIEW isolane_leases.leases AS
    SELECT lease_id, run_id, worker_id, test_id, i.value ->> 1 AS pool, i.value ->> 2 AS item, state,
           to_char(timestamp '1970-01-01' + acquired * interval '1 microsecond', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS acquired_at,
           to_char(timestamp '1970-01-01' + expires * interval '1 microsecond', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS expires_at,
           to_char(timestamp '1970-01-01' + ended * interval '1 microsecond', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS ended_at,
           fence
    FROM isolane_leases.lease CROSS JOIN LATERAL json_array_elements(items) AS i (value);
