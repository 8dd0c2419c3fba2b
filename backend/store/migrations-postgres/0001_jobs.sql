-- Jobs of interpretation and what they found. The same tables as in migrations, in the words of Postgres.
-- Times are milliseconds since 1970, by the database's clock.

-- A place that answers: this program itself (`local`), or the server of a larger model.
CREATE TABLE job_endpoint (
    name        TEXT NOT NULL PRIMARY KEY,
    paused      BIGINT NOT NULL DEFAULT 0,
    -- Jobs that may run at once, over all workers.
    max_running BIGINT NOT NULL,
    -- Jobs that may start in a minute; 0: as many as there are.
    per_minute  BIGINT NOT NULL DEFAULT 0,
    -- When the next job may start under that limit.
    next_start  BIGINT NOT NULL DEFAULT 0
);

CREATE TABLE job (
    id            BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model_id      TEXT NOT NULL,
    source_id     TEXT NOT NULL,
    -- A feature of a rebuilt SAE is another feature.
    sae_revision  TEXT NOT NULL,
    feature       BIGINT NOT NULL,
    kind          TEXT NOT NULL,
    interpreter   TEXT NOT NULL,
    prompt_hash   TEXT NOT NULL,
    endpoint      TEXT NOT NULL REFERENCES job_endpoint (name),
    priority      BIGINT NOT NULL,
    -- queued, running, done, dead, cancelled
    state         TEXT NOT NULL,
    -- Tries that ended with an error, and tries whose worker vanished.
    tries         BIGINT NOT NULL DEFAULT 0,
    lost          BIGINT NOT NULL DEFAULT 0,
    -- Not before this time.
    run_at        BIGINT NOT NULL,
    -- The running worker's token, and until when it is believed to live.
    lease         TEXT,
    lease_until   BIGINT,
    -- Why the last try failed, or why there is no explanation.
    reason        TEXT,
    input_tokens  BIGINT NOT NULL DEFAULT 0,
    output_tokens BIGINT NOT NULL DEFAULT 0,
    created_at    BIGINT NOT NULL,
    started_at    BIGINT,
    ended_at      BIGINT,
    UNIQUE (model_id, source_id, sae_revision, feature, kind, interpreter, prompt_hash)
);
CREATE INDEX job_by_turn ON job (endpoint, state, interpreter, priority DESC, id);
CREATE INDEX job_by_lease ON job (state, lease_until);

-- What a chain of jobs says about a feature. `job` is the one that explained.
CREATE TABLE explanation (
    job           BIGINT NOT NULL PRIMARY KEY REFERENCES job (id),
    model_id      TEXT NOT NULL,
    source_id     TEXT NOT NULL,
    sae_revision  TEXT NOT NULL,
    feature       BIGINT NOT NULL,
    interpreter   TEXT NOT NULL,
    prompt_hash   TEXT NOT NULL,
    -- Method and author, for people.
    type_name     TEXT NOT NULL,
    author        TEXT NOT NULL,
    -- As explained, and as refined to a short label.
    description   TEXT NOT NULL,
    label         TEXT,
    category      TEXT NOT NULL,
    -- JSON list, as on the wire.
    scores        TEXT NOT NULL,
    created_at    BIGINT NOT NULL,
    UNIQUE (model_id, source_id, sae_revision, feature, interpreter, prompt_hash)
);
