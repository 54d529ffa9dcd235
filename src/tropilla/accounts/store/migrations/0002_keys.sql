-- The keys that were given. What is kept of one is its digest under a secret; `seal` names that.
-- Who is revoked stays, so that what was used has a name, and a gateway that had keys wants one.
CREATE TABLE keys (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    digest TEXT NOT NULL,
    seal TEXT NOT NULL,
    tail TEXT NOT NULL,
    former TEXT,
    former_until DOUBLE PRECISION,
    terms TEXT NOT NULL,
    created DOUBLE PRECISION NOT NULL,
    rotated DOUBLE PRECISION,
    revoked DOUBLE PRECISION
);
CREATE UNIQUE INDEX keys_name ON keys (name) WHERE revoked IS NULL;

-- How often something has changed: whoever has read it asks for this number alone.
CREATE TABLE changes (
    what TEXT PRIMARY KEY,
    number BIGINT NOT NULL
);
