use crate::{SourceEntry, Store, StoreError, blob};
use sqlx::{Row, sqlite::SqliteRow};

/// A picture's bytes, and the SHA-256 that names this version of them.
#[derive(Debug, Clone, PartialEq)]
pub struct PictureBytes {
    pub webp: Vec<u8>,
    pub etag: String,
}

impl Store {
    /// A page of a source's pictures in the order of the file; an empty `kind` means all.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn list_pictures(
        &self,
        source: &SourceEntry,
        kind: &str,
        page: u32,
        per_page: u32,
    ) -> Result<api::PictureList, StoreError> {
        let per_page = if per_page == 0 { 48 } else { per_page.min(200) };
        let total: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM source_picture s JOIN picture p ON p.key = s.picture
             WHERE s.source = ?1 AND (?2 = '' OR p.kind = ?2)",
        )
        .bind(source.key)
        .bind(kind)
        .fetch_one(&self.pool)
        .await?;
        let wires: Vec<String> = sqlx::query_scalar(
            "SELECT p.wire FROM source_picture s JOIN picture p ON p.key = s.picture
             WHERE s.source = ?1 AND (?2 = '' OR p.kind = ?2) ORDER BY s.position LIMIT ?3 OFFSET ?4",
        )
        .bind(source.key)
        .bind(kind)
        .bind(per_page)
        .bind(i64::from(page) * i64::from(per_page))
        .fetch_all(&self.pool)
        .await?;
        let pictures = wires.iter().map(|wire| picture_from_wire(wire)).collect::<Result<_, _>>()?;
        Ok(api::PictureList { pictures, total: u32::try_from(total).unwrap_or(u32::MAX) })
    }

    /// One picture of a source.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn find_picture(&self, source: &SourceEntry, id: &str) -> Result<Option<api::Picture>, StoreError> {
        let wire: Option<String> = sqlx::query_scalar(
            "SELECT p.wire FROM picture p JOIN source_picture s ON s.picture = p.key WHERE s.source = ? AND p.id = ?",
        )
        .bind(source.key)
        .bind(id)
        .fetch_optional(&self.pool)
        .await?;
        wire.map(|wire| picture_from_wire(&wire)).transpose()
    }

    /// The bytes of a picture.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn picture_webp(&self, id: &str) -> Result<Option<PictureBytes>, StoreError> {
        let row =
            sqlx::query("SELECT b.webp, p.etag FROM picture p JOIN picture_webp b ON b.picture = p.key WHERE p.id = ?")
                .bind(id)
                .fetch_optional(&self.pool)
                .await?;
        row.map(|row| Ok(PictureBytes { webp: row.try_get("webp")?, etag: row.try_get("etag")? })).transpose()
    }

    /// The SHA-256 of a picture, without reading the picture.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn picture_etag(&self, id: &str) -> Result<Option<String>, StoreError> {
        Ok(sqlx::query_scalar("SELECT etag FROM picture WHERE id = ?").bind(id).fetch_optional(&self.pool).await?)
    }

    /// Every patch's top features on a sample picture; `None` when it is not one of the samples.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn find_picture_activations(
        &self,
        source: &SourceEntry,
        id: &str,
    ) -> Result<Option<api::PictureActivations>, StoreError> {
        let row = sqlx::query(
            "SELECT p.wire, s.k, s.grid_rows, s.grid_columns, s.top_indices, s.top_acts
             FROM sample s JOIN picture p ON p.key = s.picture WHERE s.source = ? AND p.id = ?",
        )
        .bind(source.key)
        .bind(id)
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let mut activations = sample_from_row(&row)?;
        let mut occurring = activations.top_indices.clone();
        occurring.sort_unstable();
        occurring.dedup();
        activations.features = self.summaries(source, &occurring).await?;
        Ok(Some(activations))
    }
}

pub(crate) fn picture_from_wire(wire: &str) -> Result<api::Picture, StoreError> {
    serde_json::from_str(wire).map_err(StoreError::row("picture"))
}

fn sample_from_row(row: &SqliteRow) -> Result<api::PictureActivations, StoreError> {
    Ok(api::PictureActivations {
        picture: picture_from_wire(row.try_get("wire")?)?,
        grid: [row.try_get("grid_rows")?, row.try_get("grid_columns")?],
        k: row.try_get("k")?,
        top_indices: blob::u32s(row.try_get("top_indices")?)?,
        top_acts: blob::f32s(row.try_get("top_acts")?)?,
        features: Vec::new(),
    })
}
