//! Artefact files into the database: one transaction, keyed by the files' SHA-256.

use crate::{
    Store, StoreError,
    begin::begin,
    blob,
    files::{self, ExampleRow, FeatureRow, FileError, PictureRow, SampleRow, TextRow, names, table},
};
use sha2::{Digest, Sha256};
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};
use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};
use tokio::sync::mpsc;

/// Raised when the import writes something else from the same files, so that they are read again.
const FORMAT: &str = "lmm-scope import 2";
/// Rows per `INSERT`: 13 values each stay far below SQLite's 32,766.
const ROWS_PER_INSERT: usize = 512;

/// What [`Store::import_artifacts`] did.
#[derive(Debug, Clone, PartialEq)]
pub enum Import {
    /// The files are those of the last import.
    Unchanged(api::Source),
    Done {
        source: api::Source,
        features: usize,
        pictures: usize,
        examples: usize,
    },
}

impl Import {
    pub fn source(&self) -> &api::Source {
        match self {
            Self::Unchanged(source) | Self::Done { source, .. } => source,
        }
    }
}

impl Store {
    /// Reads the artefact files in `folder`, unless they are those of the last import of the same source.
    ///
    /// # Errors
    /// When a file is missing or damaged, or the files do not fit together; the database is then unchanged.
    pub async fn import_artifacts(&self, folder: &Path) -> Result<Import, StoreError> {
        let owned = folder.to_owned();
        let (source, digest) = tokio::task::spawn_blocking(move || {
            Ok::<_, StoreError>((files::read_source(&owned.join(names::SOURCE))?, digest_of(&owned)?))
        })
        .await??;

        let mut transaction = begin(&self.pool, "BEGIN IMMEDIATE").await?;
        let known: Option<(i64, String)> =
            sqlx::query_as("SELECT key, digest FROM source WHERE model_id = ? AND source_id = ?")
                .bind(&source.model_id)
                .bind(&source.source_id)
                .fetch_optional(&mut *transaction)
                .await?;
        if known.as_ref().is_some_and(|(_, known)| *known == digest) {
            transaction.rollback().await?;
            return Ok(Import::Unchanged(source));
        }
        tracing::info!(folder = %folder.display(), model = source.model_id, source = source.source_id, "importing");
        if let Some((key, _)) = known {
            remove_source(&mut transaction, key).await?;
        }
        let key = insert_source(&mut transaction, &source, &digest).await?;
        let mut importer = Importer { connection: &mut transaction, folder, key, source: &source };
        let features = importer.features().await?;
        let pictures = importer.pictures().await?;
        let examples = importer.examples(&pictures).await?;
        importer.texts().await?;
        importer.samples(&pictures).await?;
        sqlx::query("DELETE FROM picture WHERE key NOT IN (SELECT picture FROM source_picture)")
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(Import::Done { source, features, pictures: pictures.len(), examples })
    }
}

fn digest_of(folder: &Path) -> Result<String, FileError> {
    let mut hash = Sha256::new_with_prefix(FORMAT);
    let mut buffer = vec![0; 1 << 20];
    for name in names::IMPORTED {
        let path = folder.join(name);
        let error = |error: io::Error| FileError::io(&path, error);
        let mut file = File::open(&path).map_err(error)?;
        hash.update(file.metadata().map_err(error)?.len().to_le_bytes());
        loop {
            match file.read(&mut buffer).map_err(error)? {
                0 => break,
                read => hash.update(&buffer[..read]),
            }
        }
    }
    Ok(hex(&hash.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn remove_source(connection: &mut SqliteConnection, key: i64) -> Result<(), StoreError> {
    for sql in [
        "DELETE FROM feature_label WHERE rowid IN (SELECT key FROM feature WHERE source = ?)",
        "DELETE FROM source WHERE key = ?",
    ] {
        sqlx::query(sql).bind(key).execute(&mut *connection).await?;
    }
    Ok(())
}

async fn insert_source(
    connection: &mut SqliteConnection,
    source: &api::Source,
    digest: &str,
) -> Result<i64, StoreError> {
    let inserted = sqlx::query("INSERT INTO source (model_id, source_id, wire, digest) VALUES (?, ?, ?, ?)")
        .bind(&source.model_id)
        .bind(&source.source_id)
        .bind(serde_json::to_string(source).map_err(StoreError::row("source"))?)
        .bind(digest)
        .execute(connection)
        .await?;
    Ok(inserted.last_insert_rowid())
}

/// Reads a file on a thread for blocking work, a batch ahead of the database.
fn batches<T: table::Table + Send + 'static>(path: PathBuf) -> mpsc::Receiver<Result<Vec<T>, FileError>> {
    let (sender, receiver) = mpsc::channel(2);
    tokio::task::spawn_blocking(move || match table::Rows::open(&path) {
        // A closed channel means that the import has failed; there is nobody left to tell.
        Ok(rows) => drop(rows.map(|batch| sender.blocking_send(batch)).find(Result::is_err)),
        Err(error) => drop(sender.blocking_send(Err(error))),
    });
    receiver
}

struct Importer<'a> {
    connection: &'a mut SqliteConnection,
    folder: &'a Path,
    key: i64,
    source: &'a api::Source,
}

impl Importer<'_> {
    fn broken(&self, name: &str, reason: String) -> StoreError {
        StoreError::Artefact { path: self.folder.join(name), reason }
    }

    fn check_latent(&self, name: &str, index: u32) -> Result<(), StoreError> {
        if index < self.source.latents {
            return Ok(());
        }
        Err(self.broken(name, format!("feature {index} of an SAE with {} latents", self.source.latents)))
    }

    fn picture_key(&self, name: &str, pictures: &HashMap<String, i64>, id: &str) -> Result<i64, StoreError> {
        let key = pictures.get(id).copied();
        key.ok_or_else(|| self.broken(name, format!("picture {id} is not in {}", names::PICTURES)))
    }

    async fn insert<T>(
        &mut self,
        name: &'static str,
        sql: &str,
        rows: Vec<T>,
        push: impl FnMut(sqlx::query_builder::Separated<'_, '_, Sqlite, &'static str>, T),
    ) -> Result<(), StoreError> {
        if rows.is_empty() {
            return Ok(());
        }
        let mut insert = QueryBuilder::new(sql);
        insert.push_values(rows, push);
        match insert.build().execute(&mut *self.connection).await {
            Ok(_) => Ok(()),
            Err(sqlx::Error::Database(error)) if error.is_unique_violation() => {
                Err(self.broken(name, format!("two rows have the same key ({error})")))
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn features(&mut self) -> Result<usize, StoreError> {
        let mut count = 0;
        let mut batches = batches::<FeatureRow>(self.folder.join(names::FEATURES));
        while let Some(batch) = batches.recv().await {
            for row in batch? {
                self.check_latent(names::FEATURES, row.feature.index)?;
                self.feature(&row).await?;
                count += 1;
            }
        }
        Ok(count)
    }

    async fn feature(&mut self, row: &FeatureRow) -> Result<(), StoreError> {
        let feature = &row.feature;
        let named = [feature.model_id.as_str(), feature.layer.as_str()];
        let expected = [self.source.model_id.as_str(), self.source.source_id.as_str()];
        if named != expected {
            let reason =
                format!("feature {} is of {}, expected {}", feature.index, named.join("/"), expected.join("/"));
            return Err(self.broken(names::FEATURES, reason));
        }
        let explanation = feature.label();
        let label = explanation.map(|explanation| explanation.description.as_str());
        let scores = explanation.map_or(&[][..], |explanation| &explanation.scores);
        // One that ranks, if there is any: a CLIP score of 24 would hide every IoU.
        let order = |a: &&api::Score, b: &&api::Score| a.ranks().cmp(&b.ranks()).then(a.value.total_cmp(&b.value));
        let best = scores.iter().filter(|score| score.value.is_finite()).max_by(order);
        let (indices, values): (Vec<u32>, Vec<f32>) = row.firing.iter().copied().unzip();
        let wire = serde_json::to_string(feature).map_err(StoreError::row("feature"))?;
        // JSON has no NaN: such a feature would be written and never be read again.
        if serde_json::from_str::<api::Feature>(&wire).is_err() {
            let reason = format!("feature {} holds a number that is not finite", feature.index);
            return Err(self.broken(names::FEATURES, reason));
        }
        let inserted = sqlx::query(
            "INSERT INTO feature (source, latent, label, category, score, score_wire, max_act, frac_nonzero, dead,
                                  firing_indices, firing_values, umap_x, umap_y, wire)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(self.key)
        .bind(feature.index)
        .bind(label)
        .bind(explanation.map_or(api::Category::Unknown, |explanation| explanation.category).as_str())
        .bind(best.filter(|score| score.ranks()).map(|score| score.value))
        .bind(best.map(serde_json::to_string).transpose().map_err(StoreError::row("score"))?)
        .bind(feature.max_act_approx)
        .bind(feature.frac_nonzero)
        .bind(feature.dead)
        .bind(blob::from_u32s(&indices))
        .bind(blob::from_f32s(&values))
        .bind(feature.umap_x)
        .bind(feature.umap_y)
        .bind(wire)
        .execute(&mut *self.connection)
        .await;
        let inserted = match inserted {
            Err(sqlx::Error::Database(error)) if error.is_unique_violation() => {
                return Err(self.broken(names::FEATURES, format!("feature {} occurs twice", feature.index)));
            }
            other => other?,
        };
        if let Some(label) = label {
            sqlx::query("INSERT INTO feature_label (rowid, label) VALUES (?, ?)")
                .bind(inserted.last_insert_rowid())
                .bind(label)
                .execute(&mut *self.connection)
                .await?;
        }
        Ok(())
    }

    /// Picture ids and their keys.
    async fn pictures(&mut self) -> Result<HashMap<String, i64>, StoreError> {
        let mut keys = HashMap::new();
        let mut batches = batches::<PictureRow>(self.folder.join(names::PICTURES));
        while let Some(batch) = batches.recv().await {
            for row in batch? {
                let key = self.picture(&row, keys.len()).await?;
                if keys.insert(row.picture.id.clone(), key).is_some() {
                    return Err(self.broken(names::PICTURES, format!("picture {} occurs twice", row.picture.id)));
                }
            }
        }
        Ok(keys)
    }

    async fn picture(&mut self, row: &PictureRow, position: usize) -> Result<i64, StoreError> {
        let picture = &row.picture;
        let plain = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
        if picture.id.is_empty() || picture.id.starts_with('.') || !picture.id.chars().all(plain) {
            let reason = format!("{:?} cannot be part of an address; use letters, digits, . _ -", picture.id);
            return Err(self.broken(names::PICTURES, reason));
        }
        let etag = hex(&Sha256::digest(&row.webp));
        let other: Option<String> = sqlx::query_scalar(
            "SELECT etag FROM picture WHERE id = ? AND key IN (SELECT picture FROM source_picture WHERE source <> ?)",
        )
        .bind(&picture.id)
        .bind(self.key)
        .fetch_optional(&mut *self.connection)
        .await?;
        if other.is_some_and(|other| other != etag) {
            let reason = format!(
                "another source in this database has a different picture with the id {}; \
                 give these files a database of their own with --database sqlite://…",
                picture.id
            );
            return Err(self.broken(names::PICTURES, reason));
        }
        let key: i64 = sqlx::query_scalar(
            "INSERT INTO picture (id, kind, wire, etag) VALUES (?, ?, ?, ?)
             ON CONFLICT (id) DO UPDATE SET kind = excluded.kind, wire = excluded.wire, etag = excluded.etag
             RETURNING key",
        )
        .bind(&picture.id)
        .bind(&picture.kind)
        .bind(serde_json::to_string(picture).map_err(StoreError::row("picture"))?)
        .bind(etag)
        .fetch_one(&mut *self.connection)
        .await?;
        sqlx::query("INSERT OR REPLACE INTO picture_webp (picture, webp) VALUES (?, ?)")
            .bind(key)
            .bind(&row.webp)
            .execute(&mut *self.connection)
            .await?;
        sqlx::query("INSERT OR IGNORE INTO source_picture (source, picture, position) VALUES (?, ?, ?)")
            .bind(self.key)
            .bind(key)
            .bind(i64::try_from(position).unwrap_or(i64::MAX))
            .execute(&mut *self.connection)
            .await?;
        Ok(key)
    }

    async fn examples(&mut self, pictures: &HashMap<String, i64>) -> Result<usize, StoreError> {
        let mut count = 0;
        let patches = self.source.grid[0] * self.source.grid[1];
        let mut batches = batches::<ExampleRow>(self.folder.join(names::EXAMPLES));
        while let Some(batch) = batches.recv().await {
            let batch = batch?;
            count += batch.len();
            for rows in batch.chunks(ROWS_PER_INSERT) {
                let mut keyed = Vec::with_capacity(rows.len());
                for row in rows {
                    self.check_latent(names::EXAMPLES, row.feature)?;
                    if let Some(patch) = row.indices.iter().find(|patch| u32::from(**patch) >= patches) {
                        let reason = format!("feature {}: patch {patch} of a grid with {patches}", row.feature);
                        return Err(self.broken(names::EXAMPLES, reason));
                    }
                    keyed.push((self.picture_key(names::EXAMPLES, pictures, &row.picture)?, row));
                }
                self.insert_examples(keyed).await?;
            }
        }
        Ok(count)
    }

    async fn insert_examples(&mut self, rows: Vec<(i64, &ExampleRow)>) -> Result<(), StoreError> {
        let source = self.key;
        let sql = "INSERT INTO example (source, latent, kind, rank, picture, indices, acts, max_value, max_index,
                                        mean_value, bin_min, bin_max) ";
        self.insert(names::EXAMPLES, sql, rows, |mut values, (picture, row)| {
            values.push_bind(source);
            values.push_bind(row.feature);
            values.push_bind(row.kind.as_str());
            values.push_bind(row.rank);
            values.push_bind(picture);
            values.push_bind(blob::from_u16s(&row.indices));
            values.push_bind(blob::from_activations(&row.values));
            values.push_bind(row.max_value);
            values.push_bind(row.max_index);
            values.push_bind(row.mean_value);
            values.push_bind(row.bin_min);
            values.push_bind(row.bin_max);
        })
        .await
    }

    async fn texts(&mut self) -> Result<(), StoreError> {
        let source = self.key;
        let mut batches = batches::<TextRow>(self.folder.join(names::TEXTS));
        while let Some(batch) = batches.recv().await {
            for rows in batch?.chunks(ROWS_PER_INSERT) {
                let mut keyed = Vec::with_capacity(rows.len());
                for row in rows {
                    self.check_latent(names::TEXTS, row.feature)?;
                    keyed.push((serde_json::to_string(&row.tokens).map_err(StoreError::row("text"))?, row));
                }
                let sql = "INSERT INTO text_example (source, latent, rank, tokens, acts) ";
                self.insert(names::TEXTS, sql, keyed, |mut values, (tokens, row)| {
                    values.push_bind(source);
                    values.push_bind(row.feature);
                    values.push_bind(row.rank);
                    values.push_bind(tokens);
                    values.push_bind(blob::from_activations(&row.values));
                })
                .await?;
            }
        }
        Ok(())
    }

    async fn samples(&mut self, pictures: &HashMap<String, i64>) -> Result<(), StoreError> {
        let source = self.key;
        let mut batches = batches::<SampleRow>(self.folder.join(names::SAMPLES));
        while let Some(batch) = batches.recv().await {
            let mut keyed = Vec::new();
            for row in batch? {
                row.top_indices.iter().try_for_each(|&index| self.check_latent(names::SAMPLES, index))?;
                keyed.push((self.picture_key(names::SAMPLES, pictures, &row.picture)?, row));
            }
            let sql = "INSERT INTO sample (source, picture, k, grid_rows, grid_columns, top_indices, top_acts) ";
            self.insert(names::SAMPLES, sql, keyed, |mut values, (picture, row)| {
                values.push_bind(source);
                values.push_bind(picture);
                values.push_bind(row.k);
                values.push_bind(row.grid[0]);
                values.push_bind(row.grid[1]);
                values.push_bind(blob::from_u32s(&row.top_indices));
                values.push_bind(blob::from_activations(&row.top_acts));
            })
            .await?;
        }
        Ok(())
    }
}
