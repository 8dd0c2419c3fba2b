-- Scores that `lmm-scope score` computed, of labels that the build made as well as of explanations by jobs. The same
-- table as in migrations, in the words of Postgres.
CREATE TABLE score (
    model_id     TEXT NOT NULL,
    source_id    TEXT NOT NULL,
    -- A feature of a rebuilt SAE is another feature.
    sae_revision TEXT NOT NULL,
    feature      BIGINT NOT NULL,
    -- Id of the explanation on the wire, and what it said: when it says something else, the score is of no use.
    explanation  TEXT NOT NULL,
    description  TEXT NOT NULL,
    -- What kind of score, and who computed it, for people.
    type_name    TEXT NOT NULL,
    author       TEXT NOT NULL,
    value        DOUBLE PRECISION NOT NULL,
    baseline     DOUBLE PRECISION NOT NULL,
    -- 95 % interval of the value, over so many samples.
    low          DOUBLE PRECISION NOT NULL,
    high         DOUBLE PRECISION NOT NULL,
    samples      BIGINT NOT NULL,
    -- What was drawn with, as two's complement.
    seed         BIGINT NOT NULL,
    -- Name and size of the picture set.
    image_set    TEXT NOT NULL,
    -- Milliseconds since 1970, by the database's clock.
    created_at   BIGINT NOT NULL,
    PRIMARY KEY (model_id, source_id, sae_revision, feature, explanation, type_name, author)
);
