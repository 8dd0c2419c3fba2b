use crate::{SourceEntry, Store, StoreError, blob, picture::picture_from_wire};
use sqlx::{Row, sqlite::SqliteRow};
use std::collections::HashMap;

/// Examples at most in one answer.
const MOST_EXAMPLES: u32 = 200;
/// Texts in one answer.
const TEXTS: u32 = 24;

/// What [`activation_from_row`] reads, of `example e JOIN picture p`.
const COLUMNS: &str =
    "e.latent, e.indices, e.acts, e.max_value, e.max_index, e.mean_value, e.bin_min, e.bin_max, p.wire";

impl Store {
    /// A feature's examples of one kind, strongest first, with its top texts; `None` when there is no such feature.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn list_activations(
        &self,
        source: &SourceEntry,
        index: u32,
        kind: api::ActivationKind,
        limit: u32,
    ) -> Result<Option<api::Activations>, StoreError> {
        if !self.has_feature(source, index).await? {
            return Ok(None);
        }
        let total: i64 =
            sqlx::query_scalar("SELECT count(*) FROM example WHERE source = ? AND latent = ? AND kind = ?")
                .bind(source.key)
                .bind(index)
                .bind(kind.as_str())
                .fetch_one(&self.pool)
                .await?;
        let sql = format!(
            "SELECT {COLUMNS} FROM example e JOIN picture p ON p.key = e.picture
             WHERE e.source = ? AND e.latent = ? AND e.kind = ? ORDER BY e.rank LIMIT ?"
        );
        let rows = sqlx::query(&sql)
            .bind(source.key)
            .bind(index)
            .bind(kind.as_str())
            .bind(limit.min(MOST_EXAMPLES))
            .fetch_all(&self.pool)
            .await?;
        Ok(Some(api::Activations {
            kind,
            activations: rows.iter().map(|row| activation_from_row(row, source)).collect::<Result<_, _>>()?,
            texts: self.list_texts(source, index).await?,
            total: u32::try_from(total).unwrap_or(u32::MAX),
        }))
    }

    async fn has_feature(&self, source: &SourceEntry, index: u32) -> Result<bool, StoreError> {
        Ok(sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM feature WHERE source = ? AND latent = ?)")
            .bind(source.key)
            .bind(index)
            .fetch_one(&self.pool)
            .await?)
    }

    async fn list_texts(&self, source: &SourceEntry, index: u32) -> Result<Vec<api::TextActivation>, StoreError> {
        let rows =
            sqlx::query("SELECT tokens, acts FROM text_example WHERE source = ? AND latent = ? ORDER BY rank LIMIT ?")
                .bind(source.key)
                .bind(index)
                .bind(TEXTS)
                .fetch_all(&self.pool)
                .await?;
        rows.iter().map(text_from_row).collect()
    }

    /// The first example by mean of each of these features, in one query.
    pub(crate) async fn thumbnails(
        &self,
        source: &SourceEntry,
        indices: &[u32],
    ) -> Result<HashMap<u32, api::Activation>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM example e JOIN picture p ON p.key = e.picture
             WHERE e.source = ?1 AND e.latent IN (SELECT value FROM json_each(?2)) AND e.kind = ?3
               AND e.rank = (SELECT min(m.rank) FROM example m
                             WHERE m.source = e.source AND m.latent = e.latent AND m.kind = e.kind)"
        );
        let rows = sqlx::query(&sql)
            .bind(source.key)
            .bind(serde_json::to_string(indices).map_err(StoreError::row("list"))?)
            .bind(api::ActivationKind::Mean.as_str())
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(|row| Ok((row.try_get("latent")?, activation_from_row(row, source)?))).collect()
    }
}

fn activation_from_row(row: &SqliteRow, source: &SourceEntry) -> Result<api::Activation, StoreError> {
    let picture = picture_from_wire(row.try_get("wire")?)?;
    Ok(api::Activation {
        image: api::ActivationImage { picture, grid: source.source.grid },
        feature_acts_indices: blob::u16s_widened(row.try_get("indices")?)?,
        feature_acts_values: blob::f32s(row.try_get("acts")?)?,
        max_value: row.try_get("max_value")?,
        max_value_token_index: row.try_get("max_index")?,
        mean_value: row.try_get("mean_value")?,
        bin_min: row.try_get("bin_min")?,
        bin_max: row.try_get("bin_max")?,
    })
}

fn text_from_row(row: &SqliteRow) -> Result<api::TextActivation, StoreError> {
    let tokens = serde_json::from_str(row.try_get("tokens")?).map_err(StoreError::row("text"))?;
    let values = blob::f32s(row.try_get("acts")?)?;
    let (index, max) = values
        .iter()
        .copied()
        .enumerate()
        .fold((0, 0.0), |best, (index, value)| if value > best.1 { (index, value) } else { best });
    Ok(api::TextActivation {
        tokens,
        values,
        max_value: max,
        max_value_token_index: u32::try_from(index).unwrap_or(u32::MAX),
    })
}
