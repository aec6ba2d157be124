-- What tests left that is no row, and what they changed so that their lane had to be made again.
CREATE TABLE leftover (
    run INTEGER NOT NULL,
    -- The test that was the last in its lane: a number of `test`.
    test INTEGER,
    worker INTEGER,
    kind TEXT NOT NULL,
    detail TEXT NOT NULL
);
CREATE INDEX leftover_of_run ON leftover (run);
