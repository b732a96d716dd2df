-- The ledger keeps evidence, not sums: who matched whom, at what distance, and how good the image was.
-- There are no indexes: whole batches are joined by hash, which is faster at any size, and one process writes.
-- `gmv-qdrant check` proves that keys are unique.
CREATE TABLE meta (key VARCHAR PRIMARY KEY, value VARCHAR NOT NULL);

CREATE TABLE training (
    training_key    INTEGER NOT NULL,
    point_id        VARCHAR NOT NULL,   -- UUIDv5 of the content hash, or a foreign collection's id
    content_hash    VARCHAR,                   -- SHA-256 of the bytes, hex; NULL in adopted collections
    label           VARCHAR,                   -- of the first source
    width           INTEGER,
    height          INTEGER,
    version_added     INTEGER NOT NULL,
    version_withdrawn INTEGER,                   -- NULL while the image is in the training set
    withdrawn_at    TIMESTAMP,               -- a withdrawn row is a tombstone: hash, date and reason stay
    withdrawn_why   VARCHAR,
    attributes      JSON                       -- of the first source
);

CREATE TABLE sources (
    training_key INTEGER NOT NULL,
    uri          VARCHAR NOT NULL,
    owner        VARCHAR,
    label        VARCHAR,
    licence      VARCHAR,
    attributes   JSON,
    file_size    BIGINT,                       -- with file_time: lets ingest skip a file it has seen
    file_time    BIGINT                        -- nanoseconds
);

CREATE TABLE generated (
    generated_key INTEGER NOT NULL,
    point_id      VARCHAR NOT NULL,            -- UUIDv5 of the content hash
    content_hash  VARCHAR NOT NULL,
    uri           VARCHAR NOT NULL,
    batch         VARCHAR NOT NULL,
    control       BOOLEAN NOT NULL DEFAULT false, -- known to resemble no training image: says how near strangers come, earns no credit
    label         VARCHAR,
    quality       DOUBLE,                      -- in [0,1]; NULL without a quality metric
    recall_radius DOUBLE,                      -- recall distance of the K-th candidate; infinite when fewer exist
    version_valued  INTEGER NOT NULL,            -- the training set that its matches are exact for; 0: value it again
    attributes    JSON
);

CREATE TABLE matches (                         -- the evidence: K rows for each generated image, in order of rank
    generated_key INTEGER NOT NULL,
    training_key  INTEGER NOT NULL,
    rank          SMALLINT NOT NULL,           -- 1 is the nearest; ties are broken by point_id
    distance      DOUBLE NOT NULL,             -- in the re-rank space
    view          TINYINT NOT NULL DEFAULT 0,  -- the view of the generated image that matched: 0 as it is, 1 flipped
    recall_distance FLOAT                      -- in the recall space; NULL in imported and older evidence
);

CREATE TABLE spare_candidates (                         -- the next nearest by recall: they take the places of candidates that leave
    generated_key INTEGER NOT NULL,
    training_key  INTEGER NOT NULL,
    recall_distance FLOAT NOT NULL,
    distance      DOUBLE NOT NULL,
    view          TINYINT NOT NULL
);

CREATE TABLE neighbours (                      -- the nearest other training images of those that `copies --training` looked at
    training_key  INTEGER NOT NULL,
    neighbour_key INTEGER NOT NULL,
    rank          SMALLINT NOT NULL,           -- 1 is the nearest
    distance      DOUBLE NOT NULL              -- in the re-rank space
);

CREATE TABLE runs (
    run_id      VARCHAR PRIMARY KEY,
    verb        VARCHAR NOT NULL,
    started_at  TIMESTAMP NOT NULL,
    finished_at TIMESTAMP,
    training_version       INTEGER NOT NULL,
    settings    JSON,
    versions    JSON,
    counts      JSON,
    timings     JSON,
    status      VARCHAR NOT NULL               -- running, done, failed
);

CREATE TABLE quarantine (
    uri    VARCHAR NOT NULL,
    reason VARCHAR NOT NULL,
    kind   VARCHAR NOT NULL,                   -- one word, to count them by
    run_id VARCHAR NOT NULL,
    "at"   TIMESTAMP NOT NULL              -- quoted: a reserved word
);

CREATE TABLE calibrations (                    -- value functions fitted on probes with known parents; never changed
    name            VARCHAR NOT NULL,
    version         INTEGER NOT NULL,          -- from 1; "default@2" is the second fit under this name
    temperature     DOUBLE NOT NULL,
    null_distance   DOUBLE,                    -- distance at which "nobody" weighs as much as an image
    relative        BOOLEAN NOT NULL,          -- both in units of the image's 30th distance
    fitted_at       TIMESTAMP NOT NULL,
    settings        JSON,
    figures         JSON,
    PRIMARY KEY (name, version)
);

CREATE TABLE payouts (                         -- what was paid by which evidence; rows are added, never changed
    payout_id        VARCHAR PRIMARY KEY,      -- the period; with ".2" for a second payout of one period
    period           VARCHAR NOT NULL,
    first_day        DATE NOT NULL,
    last_day         DATE NOT NULL,
    recorded_at      TIMESTAMP NOT NULL,
    field            VARCHAR NOT NULL,         -- what was paid: owner, label, licence or an attribute
    batches          VARCHAR[] NOT NULL,       -- of the generated images that it was paid by
    generated_images INTEGER NOT NULL,
    currency         VARCHAR NOT NULL,         -- ISO 4217; XXX: none was named
    decimals         TINYINT NOT NULL,         -- of its minor unit; all amounts are whole minor units
    budget           BIGINT NOT NULL,
    minimum          BIGINT NOT NULL,          -- less than this is carried forward
    value_function   JSON NOT NULL,
    training_version INTEGER NOT NULL,
    evidence         JSON NOT NULL,            -- SHA-256 of the contents of each table of evidence
    exclusions       JSON NOT NULL,            -- names that were paid nothing, with the reason
    hold             BOOLEAN NOT NULL,         -- amounts in question were kept back
    release          BOOLEAN NOT NULL,         -- amounts kept back before were given back
    holds            JSON NOT NULL,            -- what is kept back, by claim and name
    notes            JSON NOT NULL,            -- what was warned of
    previous         VARCHAR,                  -- fingerprint of the payout before, whose balances this one brings forward
    fingerprint      VARCHAR NOT NULL,         -- SHA-256 of the payout's document; statements print it
    versions         JSON NOT NULL,            -- of this tool and of what it computed with
    manifest         VARCHAR NOT NULL          -- SHA-256 of the manifest of the evidence that is kept
);

CREATE TABLE payout_lines (
    payout_id VARCHAR NOT NULL,
    place     INTEGER NOT NULL,                -- from 1, the largest credit first
    kind      VARCHAR NOT NULL,                -- named; unnamed: of images that name nobody; nobody: of no image at all
    name      VARCHAR,
    units     HUGEINT NOT NULL,                -- credit, in 2^-60 of one generated image
    amount    BIGINT NOT NULL,                 -- this payout's share of the budget
    low       BIGINT,                          -- 95 % interval of the amount
    high      BIGINT,
    brought   BIGINT NOT NULL,                 -- balance brought forward
    released  BIGINT NOT NULL,                 -- of amounts held before, settled since
    held      BIGINT NOT NULL,                 -- of this amount, kept back while it is in question
    paid      BIGINT NOT NULL,                 -- to be paid out now
    balance   BIGINT NOT NULL                  -- carried forward
);
