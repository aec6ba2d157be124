-- What one transaction writes: prepared once in each session, and executed with arrays, so that
-- the number of statements does not depend on the number of rows.

PREPARE isolane_head (bigint, bigint, bigint, bigint, bigint, bigint, bigint) AS
    UPDATE isolane_leases.lease_head
    SET version = $1, fence = $2, ticket = $3, used = $4, item = $5, now = greatest(now, $6),
        ahead = $7;

PREPARE isolane_pools (bigint, text[], text[], boolean[]) AS
    INSERT INTO isolane_leases.pool
    SELECT name, definition::json, removed, $1 FROM unnest($2, $3, $4) AS it (name, definition, removed)
    ON CONFLICT (name) DO UPDATE
    SET definition = excluded.definition, removed = excluded.removed, version = excluded.version;

PREPARE isolane_new_items (bigint, bigint[], text[], text[], text[], text[], bigint[], bigint[], bigint[], bigint[],
    boolean[], boolean[], boolean[], text[], text[]) AS
    INSERT INTO isolane_leases.item
    SELECT item, pool, name, attributes::json, state, held, fence, used, failures, soiled, leaving, configured, origin,
        note, $1
    FROM unnest($2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
        AS it (item, pool, name, attributes, state, held, fence, used, failures, soiled, leaving, configured, origin, note)
    ON CONFLICT (item) DO UPDATE
    SET pool = excluded.pool, name = excluded.name, attributes = excluded.attributes, state = excluded.state,
        held = excluded.held, fence = excluded.fence, used = excluded.used, failures = excluded.failures,
        soiled = excluded.soiled, leaving = excluded.leaving, configured = excluded.configured,
        origin = excluded.origin, note = excluded.note, version = excluded.version;

PREPARE isolane_items (bigint, bigint[], text[], bigint[], bigint[], bigint[], bigint[], boolean[], boolean[], text[]) AS
    UPDATE isolane_leases.item
    SET state = it.state, held = it.held, fence = it.fence, used = it.used, failures = it.failures,
        soiled = it.soiled, leaving = it.leaving, note = it.note, version = $1
    FROM unnest($2, $3, $4, $5, $6, $7, $8, $9, $10)
        AS it (item, state, held, fence, used, failures, soiled, leaving, note)
    WHERE isolane_leases.item.item = it.item;

PREPARE isolane_leases (bigint, text[], text[], text[], text[], text[], bigint[], text[], text[], text[], bigint[],
    text[], bigint[], bigint[], bigint[], bigint[], boolean[]) AS
    INSERT INTO isolane_leases.lease
    SELECT lease_id, items::json, run_id, worker_id, test_id, lane, client, key, substance, fence, state, acquired,
        expires, ended, ttl, kept, $1
    FROM unnest($2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
        AS it (lease_id, items, run_id, worker_id, test_id, lane, client, key, substance, fence, state, acquired,
            expires, ended, ttl, kept)
    ON CONFLICT (lease_id) DO UPDATE
    SET state = excluded.state, expires = excluded.expires, ended = excluded.ended, ttl = excluded.ttl,
        version = excluded.version;

PREPARE isolane_waiters (bigint, bigint[], text[], bigint[], bigint[], text[], text[], text[]) AS
    INSERT INTO isolane_leases.waiter
    SELECT ticket, ask::json, since, until, state, lease_id, owner, $1
    FROM unnest($2, $3, $4, $5, $6, $7, $8) AS it (ticket, ask, since, until, state, lease_id, owner)
    ON CONFLICT (ticket) DO UPDATE
    SET until = excluded.until, state = excluded.state, lease_id = excluded.lease_id, owner = excluded.owner,
        version = excluded.version;
