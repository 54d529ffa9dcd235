-- What was answered to a request that its client may say again (Idempotency-Key), by whose it is and
-- the key that it chose; `mark` tells whether it is the same request. One that is being done has the
-- status 0, and a beat that goes on as long as somebody does it.
CREATE TABLE repeats (
    owner TEXT NOT NULL,
    key TEXT NOT NULL,
    mark TEXT NOT NULL,
    token TEXT NOT NULL,
    beat BIGINT NOT NULL,
    at DOUBLE PRECISION NOT NULL,
    status BIGINT NOT NULL,
    head TEXT NOT NULL,
    size BIGINT NOT NULL,
    body BYTEA,
    PRIMARY KEY (owner, key)
);
CREATE INDEX repeats_at ON repeats (at, owner, key, size);
