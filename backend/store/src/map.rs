use crate::{SourceEntry, Store, StoreError};
use sqlx::Row;

/// A feature's place on the map of its source.
#[derive(Debug, Clone, PartialEq)]
pub struct MapPoint {
    pub index: u32,
    /// In no unit.
    pub x: f32,
    pub y: f32,
    /// Of the build, as in lists.
    pub label: Option<String>,
    pub category: api::Category,
    /// Of the label, where it ranks.
    pub score: Option<f32>,
}

impl Store {
    /// All features of a source that have a place, by rising index; none if its files have no map.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn list_map(&self, source: &SourceEntry) -> Result<Vec<MapPoint>, StoreError> {
        let rows = sqlx::query(
            "SELECT latent, label, category, score, umap_x, umap_y FROM feature
             WHERE source = ? AND umap_x IS NOT NULL AND umap_y IS NOT NULL ORDER BY latent",
        )
        .bind(source.key)
        .fetch_all(&self.pool)
        .await?;
        let mut points = Vec::with_capacity(rows.len());
        for row in rows {
            let point = MapPoint {
                index: row.try_get("latent")?,
                x: row.try_get("umap_x")?,
                y: row.try_get("umap_y")?,
                label: row.try_get("label")?,
                category: api::Category::from_name(row.try_get("category")?).unwrap_or_default(),
                score: row.try_get("score")?,
            };
            // Other programs' files may hold anything.
            if point.x.is_finite() && point.y.is_finite() {
                points.push(point);
            }
        }
        Ok(points)
    }
}
