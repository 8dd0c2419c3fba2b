-- Places on the map of all living features; a feature that is not on it has none.
ALTER TABLE feature ADD COLUMN umap_x REAL;
ALTER TABLE feature ADD COLUMN umap_y REAL;
