-- The responses that are kept, each with the items that were its own input: both are JSON. It is
-- `used` in seconds since 1970; `size` is of what is kept, in bytes.
CREATE TABLE responses (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    previous TEXT,
    used DOUBLE PRECISION NOT NULL,
    size BIGINT NOT NULL,
    items TEXT NOT NULL,
    response TEXT NOT NULL
);
CREATE INDEX responses_used ON responses (used, id, size);
