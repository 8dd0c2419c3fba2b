-- What became of the answers of a steered model: the kinds of effect of a steering score, all four or none. The same
-- columns as in migrations.
ALTER TABLE score ADD COLUMN effect_none BIGINT;
ALTER TABLE score ADD COLUMN effect_mentions BIGINT;
ALTER TABLE score ADD COLUMN effect_reasons BIGINT;
ALTER TABLE score ADD COLUMN effect_unrelated BIGINT;
