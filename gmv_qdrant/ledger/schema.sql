-- The ledger keeps evidence, not sums: who matched whom, at what distance, and how good the image was.
-- There are no indexes: whole batches are joined by hash, which is faster at any size, and one process writes.
-- `gmv-qdrant check` proves that keys are unique. All times are UTC. The comments here become those of the tables.

-- Small facts about this ledger, as JSON or text.
CREATE TABLE meta (
    key   VARCHAR PRIMARY KEY,                 -- schema_version, settings, fingerprint, training_version, published_at, ...
    value VARCHAR NOT NULL                     -- text, or JSON
);

-- One row for each distinct image content of the training set; who brought it, and what it is, say its sources.
CREATE TABLE training (
    training_key      INTEGER NOT NULL,        -- from 1; the row of its vectors in the matrix files; never used again
    point_id          VARCHAR NOT NULL,        -- of its point in Qdrant: UUIDv5 of the content hash, or an adopted collection's id
    content_hash      VARCHAR,                 -- SHA-256 of the file's bytes, hex; NULL in adopted collections
    width             INTEGER,                 -- pixels
    height            INTEGER,                 -- pixels
    version_added     INTEGER NOT NULL,        -- version of the training set that it came in with
    version_withdrawn INTEGER,                 -- version that it left with; NULL while it is in the training set
    withdrawn_at      TIMESTAMP,               -- a withdrawn row is a tombstone: hash, date and reason stay
    withdrawn_why     VARCHAR                  -- what was asked for
);

-- What each source says of its image now: a row for each owner that it names, or one row where it names none.
CREATE TABLE sources (
    training_key INTEGER NOT NULL,             -- the image
    uri          VARCHAR NOT NULL,             -- file, or place in a table, archive or data set
    owner        VARCHAR,                      -- NULL: nobody is named
    label        VARCHAR,                      -- class, as the metadata gives it
    licence      VARCHAR,                      -- as the metadata gives it
    attributes   JSON,                         -- every other column of the metadata
    file_size    BIGINT,                       -- bytes; with file_time: lets ingest skip a file that it has seen
    file_time    BIGINT                        -- modification time in nanoseconds
);

-- What sources have said, and when: rows are added, and closed when a source says something else or leaves.
CREATE TABLE source_history (
    training_key INTEGER NOT NULL,             -- the image
    uri          VARCHAR NOT NULL,             -- the source
    owner        VARCHAR,                      -- NULL: nobody was named
    label        VARCHAR,                      -- class
    licence      VARCHAR,                      -- licence
    attributes   JSON,                         -- every other column of the metadata
    since        TIMESTAMP NOT NULL,           -- from when it was so
    run_id       VARCHAR NOT NULL,             -- the run that was told so
    until        TIMESTAMP,                    -- up to when; NULL: it is so now
    until_run_id VARCHAR                       -- the run that was told otherwise
);

-- One row for each generated image of a batch.
CREATE TABLE generated (
    generated_key  INTEGER NOT NULL,           -- from 1; the row of its vectors in the matrix files
    point_id       VARCHAR NOT NULL,           -- UUIDv5 of the content hash
    content_hash   VARCHAR NOT NULL,           -- SHA-256 of the file's bytes, hex
    uri            VARCHAR NOT NULL,           -- file, or place in a table, archive or data set
    batch          VARCHAR NOT NULL,           -- the name it was valued under; uri and batch name a row
    control        BOOLEAN NOT NULL DEFAULT false, -- known to resemble no training image: says how near strangers come, earns no credit
    label          VARCHAR,                    -- class, as the metadata gives it
    quality        DOUBLE,                     -- in [0, 1]; NULL without a quality metric
    recall_radius  DOUBLE,                     -- recall distance of the K-th candidate; infinite when fewer exist
    version_valued INTEGER NOT NULL,           -- the training set that its matches are exact for; 0: value it again
    attributes     JSON                        -- every other column of the metadata
);

-- The evidence: the K candidates of each generated image, in order of rank.
CREATE TABLE matches (
    generated_key   INTEGER NOT NULL,          -- the generated image
    training_key    INTEGER NOT NULL,          -- the training image
    rank            SMALLINT NOT NULL,         -- 1 is the nearest; ties are broken by point_id
    distance        DOUBLE NOT NULL,           -- in the re-rank space
    view            TINYINT NOT NULL DEFAULT 0, -- the view of the generated image that matched: 0 as it is, 1 flipped
    recall_distance FLOAT                      -- in the recall space; NULL in imported evidence
);

-- The next nearest by recall, which earn nothing: they take the places of candidates that are withdrawn.
CREATE TABLE spare_candidates (
    generated_key   INTEGER NOT NULL,          -- the generated image
    training_key    INTEGER NOT NULL,          -- the training image
    recall_distance FLOAT NOT NULL,            -- in the recall space
    distance        DOUBLE NOT NULL,           -- in the re-rank space
    view            TINYINT NOT NULL           -- the view of the generated image that matched
);

-- The nearest other training images of those that `copies --training` looked at.
CREATE TABLE neighbours (
    training_key  INTEGER NOT NULL,            -- the training image
    neighbour_key INTEGER NOT NULL,            -- another training image
    rank          SMALLINT NOT NULL,           -- 1 is the nearest
    distance      DOUBLE NOT NULL              -- in the re-rank space
);

-- One row for each run of a command that writes.
CREATE TABLE runs (
    run_id           VARCHAR PRIMARY KEY,      -- random
    verb             VARCHAR NOT NULL,         -- the command
    started_at       TIMESTAMP NOT NULL,       -- UTC
    finished_at      TIMESTAMP,                -- UTC; NULL while it runs, and when it was killed
    training_version INTEGER NOT NULL,         -- version of the training set that it worked with, or made
    settings         JSON,                     -- settings that the evidence depends on, and what was asked for
    versions         JSON,                     -- of this tool and of what it computes with
    counts           JSON,                     -- what happened, by name
    timings          JSON,                     -- seconds by phase
    status           VARCHAR NOT NULL          -- running, done, failed, killed
);

-- Inputs that could not be used, until they are used or withdrawn.
CREATE TABLE quarantine (
    uri    VARCHAR NOT NULL,                   -- the input
    reason VARCHAR NOT NULL,                   -- what is wrong with it, in a sentence
    kind   VARCHAR NOT NULL,                   -- one word for reasons of this sort
    run_id VARCHAR NOT NULL,                   -- the run that met it
    "at"   TIMESTAMP NOT NULL                  -- when
);

-- Value functions fitted on probes with known parents; a version is never changed.
CREATE TABLE calibrations (
    name          VARCHAR NOT NULL,            -- as calibrate --name
    version       INTEGER NOT NULL,            -- from 1; "default@2" is the second fit under this name
    temperature   DOUBLE NOT NULL,             -- T in exp(-d/T)
    null_distance DOUBLE,                      -- distance at which "nobody" weighs as much as an image
    relative      BOOLEAN NOT NULL,            -- both in units of the image's 30th distance
    fitted_at     TIMESTAMP NOT NULL,          -- when
    settings      JSON,                        -- of the fit
    figures       JSON,                        -- of the fit
    PRIMARY KEY (name, version)
);

-- What was paid by which evidence; rows are added, never changed.
CREATE TABLE payouts (
    payout_id        VARCHAR PRIMARY KEY,      -- the period; with ".2" for a second payout of one period
    period           VARCHAR NOT NULL,         -- as payout --record
    first_day        DATE NOT NULL,            -- of the period
    last_day         DATE NOT NULL,            -- of the period
    recorded_at      TIMESTAMP NOT NULL,       -- when
    field            VARCHAR NOT NULL,         -- what was paid: owner, label, licence or an attribute
    batches          VARCHAR[] NOT NULL,       -- of the generated images that it was paid by
    generated_images INTEGER NOT NULL,         -- how many
    currency         VARCHAR NOT NULL,         -- ISO 4217; XXX: none was named
    decimals         TINYINT NOT NULL,         -- of its minor unit; all amounts are whole minor units
    budget           BIGINT NOT NULL,          -- what was shared
    minimum          BIGINT NOT NULL,          -- less than this is carried forward
    value_function   JSON NOT NULL,            -- rule, k, temperature and the rest
    training_version INTEGER NOT NULL,         -- version of the training set
    evidence         JSON NOT NULL,            -- SHA-256 of the contents of each table of evidence
    exclusions       JSON NOT NULL,            -- names that were paid nothing, with the reason
    hold             BOOLEAN NOT NULL,         -- amounts in question were kept back
    release          BOOLEAN NOT NULL,         -- amounts kept back before were given back
    claims           JSON NOT NULL,            -- what several names claim: images, names, and the amount in question
    holds            JSON NOT NULL,            -- what is kept back, by claim and name
    notes            JSON NOT NULL,            -- what was warned of
    previous         VARCHAR,                  -- fingerprint of the payout before, whose balances this one brings forward
    fingerprint      VARCHAR NOT NULL,         -- SHA-256 of the payout's document; statements print it
    versions         JSON NOT NULL,            -- of this tool and of what it computed with
    manifest         VARCHAR NOT NULL          -- SHA-256 of the manifest of the evidence that is kept
);

-- What each name got from a recorded payout.
CREATE TABLE payout_lines (
    payout_id VARCHAR NOT NULL,                -- the payout
    place     INTEGER NOT NULL,                -- from 1, the largest credit first
    kind      VARCHAR NOT NULL,                -- named; unnamed: of images that name nobody; nobody: of no image at all
    name      VARCHAR,                         -- NULL for both others
    units     HUGEINT NOT NULL,                -- credit, in 2^-60 of one generated image
    amount    BIGINT NOT NULL,                 -- this payout's share of the budget
    low       BIGINT,                          -- 95 % interval of the amount, its lower end
    high      BIGINT,                          -- its upper end
    brought   BIGINT NOT NULL,                 -- balance brought forward
    released  BIGINT NOT NULL,                 -- of amounts held before, settled since
    held      BIGINT NOT NULL,                 -- of this amount, kept back while it is in question
    paid      BIGINT NOT NULL,                 -- to be paid out now
    balance   BIGINT NOT NULL                  -- carried forward
);
