-- What users and scripts rely on. Times are ISO-8601 in UTC, ids text.

CREATE VIEW runs AS
    SELECT run_id, tag, command, runner, host, cwd, started_at, ended_at, exit_code, state FROM run;

CREATE VIEW workers AS
    SELECT run_id, worker_id, lane, pid, w.started_at, w.ended_at, outcome
    FROM worker w JOIN run USING (run) WHERE NOT controller;

CREATE VIEW tests AS
    SELECT run_id, worker_id, test_id, attempt,
           strftime('%Y-%m-%dT%H:%M:%fZ', began / 1000 / 1000.0, 'unixepoch') AS started_at,
           strftime('%Y-%m-%dT%H:%M:%fZ', ended / 1000 / 1000.0, 'unixepoch') AS ended_at,
           outcome, message
    FROM test t JOIN run USING (run) WHERE scope IS NULL;

CREATE VIEW resources AS
    SELECT run_id, worker_id, provider, kind, name, r.state, created_at, removed_at, error
    FROM resource r JOIN run USING (run);

CREATE VIEW touches AS
    SELECT run_id, w.worker_id, e.test_id, k.name AS kind, key, op,
           strftime('%Y-%m-%dT%H:%M:%fZ', at / 1000 / 1000.0, 'unixepoch') AS at
    FROM touch t JOIN run USING (run) JOIN kind k USING (kind)
         LEFT JOIN worker w USING (worker) LEFT JOIN test e ON e.run = t.run AND e.number = t.test;

-- Things that were registered, and rows that workers inserted. A row in a lane shares the
-- lane's fate.
CREATE VIEW records AS
    SELECT run_id, worker_id, test_id, kind, key, created_at, source, r.state
    FROM record r JOIN run USING (run)
    UNION ALL
    SELECT run_id, w.worker_id, e.test_id, k.name, key,
           strftime('%Y-%m-%dT%H:%M:%fZ', at / 1000 / 1000.0, 'unixepoch'),
           iif(by_prefix, 'prefix', 'trigger'),
           coalesce(t.state, (
               SELECT iif(r.state IN ('planned', 'created'), 'live', r.state) FROM resource r
                WHERE r.run = t.run AND r.place = CAST(t.lane AS TEXT) AND r.kind IN ('database', 'schema')
                  AND r.created_at <= strftime('%Y-%m-%dT%H:%M:%fZ', (at + 1000) / 1000 / 1000.0, 'unixepoch')
                ORDER BY resource DESC LIMIT 1), 'live')
    FROM touch t JOIN run USING (run) JOIN kind k USING (kind)
         JOIN worker w USING (worker) LEFT JOIN test e ON e.run = t.run AND e.number = t.test
    WHERE op = 'insert';

CREATE VIEW collisions AS
    SELECT run_id, k.name AS kind, key, pattern,
           wa.worker_id AS worker_a, a.test_id AS test_a, op_a,
           strftime('%Y-%m-%dT%H:%M:%fZ', at_a / 1000 / 1000.0, 'unixepoch') AS at_a,
           wb.worker_id AS worker_b, b.test_id AS test_b, op_b,
           strftime('%Y-%m-%dT%H:%M:%fZ', at_b / 1000 / 1000.0, 'unixepoch') AS at_b,
           round(overlap_us / 1000.0, 1) AS overlap_ms, f.test_id AS failed_test
    FROM collision c JOIN run USING (run) JOIN kind k USING (kind)
         LEFT JOIN worker wa ON wa.worker = worker_a LEFT JOIN worker wb ON wb.worker = worker_b
         LEFT JOIN test a ON a.run = c.run AND a.number = test_a
         LEFT JOIN test b ON b.run = c.run AND b.number = test_b
         LEFT JOIN test f ON f.run = c.run AND f.number = failed_test;

-- Rows that a test or a fixture left behind, by table; and transactions and the like, by kind.
CREATE VIEW leaks AS
    SELECT run_id, w.worker_id, test_id, kind, n
    FROM (SELECT run, worker, test, kind AS number, count(*) AS n FROM touch
           WHERE op = 'insert' AND state IS NOT 'gone' AND worker IS NOT NULL AND test IS NOT NULL
           GROUP BY run, worker, test, kind) t
         JOIN run USING (run) JOIN worker w USING (worker) JOIN (SELECT kind AS number, name AS kind FROM kind) USING (number)
         JOIN test e ON e.run = t.run AND e.number = t.test
    UNION ALL
    SELECT run_id, w.worker_id, test_id, kind, count(*)
    FROM leftover l JOIN run USING (run) LEFT JOIN worker w USING (worker) LEFT JOIN test e ON e.run = l.run AND e.number = l.test
    WHERE kind <> 'lane made again'
    GROUP BY l.run, l.worker, l.test, kind;

-- A lease of several items has a row for each.
CREATE VIEW leases AS
    SELECT lease_id, run_id, worker_id, test_id, json_extract(i.value, '$[1]') AS pool, json_extract(i.value, '$[2]') AS item,
           state, strftime('%Y-%m-%dT%H:%M:%fZ', acquired / 1000 / 1000.0, 'unixepoch') AS acquired_at,
           strftime('%Y-%m-%dT%H:%M:%fZ', expires / 1000 / 1000.0, 'unixepoch') AS expires_at,
           strftime('%Y-%m-%dT%H:%M:%fZ', ended / 1000 / 1000.0, 'unixepoch') AS ended_at, fence
    FROM lease, json_each(items) i;
