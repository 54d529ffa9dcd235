-- One row for each request that an upstream was, or should have been, asked to serve. What it
-- costs is in billionths.
CREATE TABLE requests (
    id TEXT PRIMARY KEY,
    at DOUBLE PRECISION NOT NULL,
    key TEXT NOT NULL,
    model TEXT NOT NULL,
    upstream TEXT NOT NULL,
    dialect TEXT NOT NULL,
    path TEXT NOT NULL,
    session TEXT NOT NULL,
    stream BIGINT NOT NULL,
    status BIGINT NOT NULL,
    problem TEXT NOT NULL,
    finish TEXT NOT NULL,
    cancelled BIGINT NOT NULL,
    failed_over BIGINT NOT NULL,
    attempts BIGINT NOT NULL,
    prompt BIGINT NOT NULL,
    cached BIGINT,
    written BIGINT NOT NULL,
    reasoning BIGINT,
    estimated BIGINT NOT NULL,
    cost BIGINT NOT NULL,
    queue_ms DOUBLE PRECISION NOT NULL,
    first_ms DOUBLE PRECISION,
    total_ms DOUBLE PRECISION NOT NULL
);
CREATE INDEX requests_at ON requests (at);
CREATE INDEX requests_key ON requests (key, at);

-- The sums of these rows by the hour: seconds since 1970 at which the hour begins.
CREATE TABLE hours (
    hour BIGINT NOT NULL,
    key TEXT NOT NULL,
    model TEXT NOT NULL,
    upstream TEXT NOT NULL,
    dialect TEXT NOT NULL,
    requests BIGINT NOT NULL,
    errors BIGINT NOT NULL,
    cancelled BIGINT NOT NULL,
    limited BIGINT NOT NULL,
    prompt BIGINT NOT NULL,
    cached BIGINT NOT NULL,
    written BIGINT NOT NULL,
    reasoning BIGINT NOT NULL,
    cost BIGINT NOT NULL,
    queue_ms DOUBLE PRECISION NOT NULL,
    firsts BIGINT NOT NULL,
    first_ms DOUBLE PRECISION NOT NULL,
    total_ms DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (hour, key, model, upstream, dialect)
);
