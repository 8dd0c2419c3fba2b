use crate::{Store, StoreError};
use sqlx::Row;

/// A source in the database: its wire type, and the key that other queries want.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceEntry {
    pub(crate) key: i64,
    pub source: api::Source,
}

impl Store {
    /// All sources, by model and layer.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn list_sources(&self) -> Result<Vec<api::Source>, StoreError> {
        let wires: Vec<String> = sqlx::query_scalar("SELECT wire FROM source").fetch_all(&self.pool).await?;
        let mut sources = wires.iter().map(|wire| source_from_wire(wire)).collect::<Result<Vec<_>, _>>()?;
        sources.sort_by(|a, b| (&a.model_id, a.layer, &a.source_id).cmp(&(&b.model_id, b.layer, &b.source_id)));
        Ok(sources)
    }

    /// One source, or `None` when there is none of that name.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn find_source(&self, model: &str, source: &str) -> Result<Option<SourceEntry>, StoreError> {
        let row = sqlx::query("SELECT key, wire FROM source WHERE model_id = ? AND source_id = ?")
            .bind(model)
            .bind(source)
            .fetch_optional(&self.pool)
            .await?;
        row.map(|row| {
            let source = source_from_wire(row.try_get("wire")?)?;
            Ok(SourceEntry { key: row.try_get("key")?, source })
        })
        .transpose()
    }
}

fn source_from_wire(wire: &str) -> Result<api::Source, StoreError> {
    serde_json::from_str(wire).map_err(StoreError::row("source"))
}
