-- What became of the answers of a steered model: the kinds of effect of a steering score, all four or none. The same
-- columns as in migrations-postgres.
ALTER TABLE score ADD COLUMN effect_none INTEGER;
ALTER TABLE score ADD COLUMN effect_mentions INTEGER;
ALTER TABLE score ADD COLUMN effect_reasons INTEGER;
ALTER TABLE score ADD COLUMN effect_unrelated INTEGER;
