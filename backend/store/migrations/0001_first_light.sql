-- One SAE at one hook point of one model. `wire` columns hold the JSON that the API sends.
CREATE TABLE source (
    key         INTEGER PRIMARY KEY,
    model_id    TEXT NOT NULL,
    source_id   TEXT NOT NULL,
    wire        TEXT NOT NULL,
    -- SHA-256 over the artefact files it was imported from.
    digest      TEXT NOT NULL,
    imported_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP,
    UNIQUE (model_id, source_id)
) STRICT;

-- A latent of a source. What lists sort and filter by has its own column.
CREATE TABLE feature (
    key            INTEGER PRIMARY KEY,
    source         INTEGER NOT NULL REFERENCES source (key) ON DELETE CASCADE,
    latent         INTEGER NOT NULL,
    label          TEXT,
    category       TEXT NOT NULL,
    score          REAL,
    score_wire     TEXT,
    max_act        REAL NOT NULL,
    frac_nonzero   REAL NOT NULL,
    dead           INTEGER NOT NULL,
    -- Features that fire on the same patches: u32 and f32, little endian.
    firing_indices BLOB NOT NULL,
    firing_values  BLOB NOT NULL,
    wire           TEXT NOT NULL,
    UNIQUE (source, latent)
) STRICT;
CREATE INDEX feature_by_score ON feature (source, score DESC, latent);
CREATE INDEX feature_by_density ON feature (source, frac_nonzero DESC, latent);
CREATE INDEX feature_by_max ON feature (source, max_act DESC, latent);

-- Search in labels; rowid is feature.key.
CREATE VIRTUAL TABLE feature_label USING fts5 (label, tokenize = 'unicode61 remove_diacritics 2', prefix = '1 2 3');

-- Pictures are shared by all sources and kept once; the bytes lie apart so that lists never read them.
CREATE TABLE picture (
    key  INTEGER PRIMARY KEY,
    id   TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    wire TEXT NOT NULL,
    -- SHA-256 of the WebP.
    etag TEXT NOT NULL
) STRICT;
CREATE TABLE picture_webp (
    picture INTEGER PRIMARY KEY REFERENCES picture (key) ON DELETE CASCADE,
    webp    BLOB NOT NULL
) STRICT;
CREATE TABLE source_picture (
    source   INTEGER NOT NULL REFERENCES source (key) ON DELETE CASCADE,
    picture  INTEGER NOT NULL REFERENCES picture (key) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    PRIMARY KEY (source, picture)
) STRICT, WITHOUT ROWID;
CREATE INDEX source_picture_by_picture ON source_picture (picture);

-- Where a feature fired. Blobs are little endian: u16 patches, f32 activations.
CREATE TABLE example (
    source     INTEGER NOT NULL REFERENCES source (key) ON DELETE CASCADE,
    latent     INTEGER NOT NULL,
    kind       TEXT NOT NULL,
    rank       INTEGER NOT NULL,
    picture    INTEGER NOT NULL REFERENCES picture (key),
    indices    BLOB NOT NULL,
    acts       BLOB NOT NULL,
    max_value  REAL NOT NULL,
    max_index  INTEGER NOT NULL,
    mean_value REAL NOT NULL,
    bin_min    REAL NOT NULL,
    bin_max    REAL NOT NULL,
    PRIMARY KEY (source, latent, kind, rank)
) STRICT, WITHOUT ROWID;
CREATE INDEX example_by_picture ON example (picture);

CREATE TABLE text_example (
    source INTEGER NOT NULL REFERENCES source (key) ON DELETE CASCADE,
    latent INTEGER NOT NULL,
    rank   INTEGER NOT NULL,
    -- JSON list of strings.
    tokens TEXT NOT NULL,
    acts   BLOB NOT NULL,
    PRIMARY KEY (source, latent, rank)
) STRICT, WITHOUT ROWID;

-- Every patch's top features on a sample picture: u32 and f32, little endian, [patches, k].
CREATE TABLE sample (
    source       INTEGER NOT NULL REFERENCES source (key) ON DELETE CASCADE,
    picture      INTEGER NOT NULL REFERENCES picture (key),
    k            INTEGER NOT NULL,
    grid_rows    INTEGER NOT NULL,
    grid_columns INTEGER NOT NULL,
    top_indices  BLOB NOT NULL,
    top_acts     BLOB NOT NULL,
    PRIMARY KEY (source, picture)
) STRICT, WITHOUT ROWID;
CREATE INDEX sample_by_picture ON sample (picture);
