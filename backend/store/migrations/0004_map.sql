-- Places on the map of all living features; a feature that is not on it has none.
ALTER TABLE feature ADD COLUMN umap_x REAL;
ALTER TABLE feature ADD COLUMN umap_y REAL;
-- What the map shows of them, without reading the rest of a feature's row.
CREATE INDEX feature_by_map ON feature (source, latent, label, category, score, umap_x, umap_y)
    WHERE umap_x IS NOT NULL AND umap_y IS NOT NULL;
