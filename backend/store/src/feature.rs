use crate::{SourceEntry, Store, StoreError, blob};
use api::{FeatureQuery, FeatureSort};
use sqlx::{QueryBuilder, Row, Sqlite, sqlite::SqliteRow};

/// Features on a page when the query does not say.
const PER_PAGE: u32 = 48;
const MOST_PER_PAGE: u32 = 200;

/// What [`summary_from_row`] reads.
const COLUMNS: &str = "f.latent, f.label, f.category, f.score_wire, f.max_act, f.frac_nonzero, f.dead";

impl Store {
    /// A page of features with thumbnails: two queries and a count, whatever the page's size.
    ///
    /// # Errors
    /// [`StoreError::Query`] when `ids` is not a list of numbers or `minScore` is not a number.
    pub async fn list_features(
        &self,
        source: &SourceEntry,
        query: &FeatureQuery,
    ) -> Result<api::FeatureList, StoreError> {
        let filter = Filter::from_query(query)?;
        let mut count = QueryBuilder::new("SELECT count(*) FROM feature f WHERE ");
        filter.push(&mut count, source);
        let total: i64 = count.build_query_scalar().fetch_one(&self.pool).await?;

        let per_page = filter.per_page(query.per_page);
        let mut list = QueryBuilder::new(format!("SELECT {COLUMNS} FROM feature f WHERE "));
        filter.push(&mut list, source);
        list.push(order_by(query.sort));
        list.push(" LIMIT ").push_bind(per_page);
        list.push(" OFFSET ").push_bind(i64::from(query.page) * i64::from(per_page));
        let rows = list.build().fetch_all(&self.pool).await?;
        let mut features = rows.iter().map(|row| summary_from_row(row, source)).collect::<Result<Vec<_>, _>>()?;
        self.add_thumbnails(source, &mut features).await?;
        Ok(api::FeatureList { features, total: u32::try_from(total).unwrap_or(u32::MAX), page: query.page, per_page })
    }

    /// One feature, whole.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn find_feature(&self, source: &SourceEntry, index: u32) -> Result<Option<api::Feature>, StoreError> {
        let wire: Option<String> = sqlx::query_scalar("SELECT wire FROM feature WHERE source = ? AND latent = ?")
            .bind(source.key)
            .bind(index)
            .fetch_optional(&self.pool)
            .await?;
        wire.map(|wire| serde_json::from_str(&wire).map_err(StoreError::row("feature"))).transpose()
    }

    /// Features near another, by decoder row and by the patches where they fire; `None` when there is no such feature.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn find_neighbours(
        &self,
        source: &SourceEntry,
        index: u32,
    ) -> Result<Option<api::Neighbours>, StoreError> {
        let row =
            sqlx::query("SELECT wire, firing_indices, firing_values FROM feature WHERE source = ? AND latent = ?")
                .bind(source.key)
                .bind(index)
                .fetch_optional(&self.pool)
                .await?;
        let Some(row) = row else { return Ok(None) };
        let feature: api::Feature = serde_json::from_str(row.try_get("wire")?).map_err(StoreError::row("feature"))?;
        let firing = (blob::u32s(row.try_get("firing_indices")?)?, blob::f32s(row.try_get("firing_values")?)?);
        let decoder = (feature.topk_cos_sim_indices, feature.topk_cos_sim_values);

        let mut features = self.summaries(source, &[decoder.0.as_slice(), &firing.0].concat()).await?;
        self.add_thumbnails(source, &mut features).await?;
        let neighbours = |(indices, values): (Vec<u32>, Vec<f32>)| {
            let pairs = indices.into_iter().zip(values);
            pairs
                .filter_map(|(index, value)| {
                    let at = features.binary_search_by_key(&index, |feature| feature.index).ok()?;
                    Some(api::Neighbour { feature: features[at].clone(), value })
                })
                .collect()
        };
        Ok(Some(api::Neighbours { by_decoder: neighbours(decoder), by_firing: neighbours(firing) }))
    }

    /// A living feature with a label, or, where nothing is labelled, any living feature.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn random_feature(&self, source: &SourceEntry) -> Result<Option<api::FeatureSummary>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM feature f WHERE f.source = ? AND f.dead = 0
             ORDER BY f.label IS NULL, random() LIMIT 1"
        );
        let row = sqlx::query(&sql).bind(source.key).fetch_optional(&self.pool).await?;
        let Some(row) = row else { return Ok(None) };
        let mut features = [summary_from_row(&row, source)?];
        self.add_thumbnails(source, &mut features).await?;
        let [feature] = features;
        Ok(Some(feature))
    }

    /// Summaries of these features by rising index, without thumbnails, in one query.
    pub(crate) async fn summaries(
        &self,
        source: &SourceEntry,
        indices: &[u32],
    ) -> Result<Vec<api::FeatureSummary>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM feature f
             WHERE f.source = ? AND f.latent IN (SELECT value FROM json_each(?)) ORDER BY f.latent"
        );
        let rows = sqlx::query(&sql)
            .bind(source.key)
            .bind(serde_json::to_string(indices).map_err(StoreError::row("list"))?)
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(|row| summary_from_row(row, source)).collect()
    }

    async fn add_thumbnails(
        &self,
        source: &SourceEntry,
        features: &mut [api::FeatureSummary],
    ) -> Result<(), StoreError> {
        let indices: Vec<u32> = features.iter().map(|feature| feature.index).collect();
        let mut thumbnails = self.thumbnails(source, &indices).await?;
        for feature in features {
            feature.thumbnail = thumbnails.remove(&feature.index);
        }
        Ok(())
    }
}

/// A checked [`FeatureQuery`].
struct Filter {
    /// FTS5 expression that cannot fail to parse; `None` when nothing is searched.
    words: Option<String>,
    /// The search as an index, when it is one.
    number: Option<u32>,
    ids: Option<Vec<u32>>,
    category: Option<&'static str>,
    min_score: Option<f32>,
    dead: Option<bool>,
}

impl Filter {
    fn from_query(query: &FeatureQuery) -> Result<Self, StoreError> {
        if query.min_score.is_some_and(|score| !score.is_finite()) {
            return Err(StoreError::Query { field: "minScore", reason: "is not a number".into() });
        }
        let search = query.q.trim();
        Ok(Self {
            words: (!search.is_empty()).then(|| prefix_expression(search)),
            number: search.trim_start_matches('#').parse().ok(),
            ids: parse_ids(&query.ids)?,
            category: query.category.map(api::Category::as_str),
            min_score: query.min_score,
            dead: query.dead,
        })
    }

    /// A list of ids is one page unless the query says otherwise.
    fn per_page(&self, asked: u32) -> u32 {
        match (asked, &self.ids) {
            (0, Some(_)) => MOST_PER_PAGE,
            (0, None) => PER_PAGE,
            (asked, _) => asked.min(MOST_PER_PAGE),
        }
    }

    fn push(&self, sql: &mut QueryBuilder<'_, Sqlite>, source: &SourceEntry) {
        sql.push("f.source = ").push_bind(source.key);
        if let Some(words) = &self.words {
            sql.push(" AND (f.key IN (SELECT rowid FROM feature_label WHERE feature_label MATCH ");
            sql.push_bind(words.clone()).push(")");
            if let Some(number) = self.number {
                sql.push(" OR f.latent = ").push_bind(number);
            }
            sql.push(")");
        }
        if let Some(ids) = &self.ids {
            let json = ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
            sql.push(" AND f.latent IN (SELECT value FROM json_each(").push_bind(format!("[{json}]")).push("))");
        }
        if let Some(category) = self.category {
            sql.push(" AND f.category = ").push_bind(category);
        }
        if let Some(score) = self.min_score {
            sql.push(" AND f.score >= ").push_bind(score);
        }
        if let Some(dead) = self.dead {
            sql.push(" AND f.dead = ").push_bind(dead);
        }
    }
}

/// Every word as a quoted prefix, all of them wanted. Quotes and operators never reach FTS5, so that whatever a
/// visitor types is a search; without any word it is the expression that matches nothing.
fn prefix_expression(search: &str) -> String {
    let words: Vec<String> = search
        .split(|letter: char| !letter.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(|word| format!("\"{word}\"*"))
        .collect();
    if words.is_empty() { "\"\"".to_owned() } else { words.join(" ") }
}

fn parse_ids(ids: &str) -> Result<Option<Vec<u32>>, StoreError> {
    if ids.trim().is_empty() {
        return Ok(None);
    }
    let numbers = ids.split(',').map(|id| id.trim().parse()).collect::<Result<Vec<u32>, _>>();
    let numbers = numbers
        .map_err(|_| StoreError::Query { field: "ids", reason: "is not a list of numbers such as 17,293".into() })?;
    if numbers.len() > MOST_PER_PAGE as usize {
        let reason = format!("has {} numbers; at most {MOST_PER_PAGE} fit in one request", numbers.len());
        return Err(StoreError::Query { field: "ids", reason });
    }
    Ok(Some(numbers))
}

fn order_by(sort: FeatureSort) -> &'static str {
    match sort {
        FeatureSort::Score => " ORDER BY f.score DESC NULLS LAST, f.latent",
        FeatureSort::Index => " ORDER BY f.latent",
        FeatureSort::Density => " ORDER BY f.frac_nonzero DESC, f.latent",
        FeatureSort::Max => " ORDER BY f.max_act DESC, f.latent",
    }
}

fn summary_from_row(row: &SqliteRow, source: &SourceEntry) -> Result<api::FeatureSummary, StoreError> {
    let score: Option<&str> = row.try_get("score_wire")?;
    Ok(api::FeatureSummary {
        model_id: source.source.model_id.clone(),
        layer: source.source.source_id.clone(),
        index: row.try_get("latent")?,
        label: row.try_get("label")?,
        category: api::Category::from_name(row.try_get("category")?).unwrap_or_default(),
        score: score.map(serde_json::from_str).transpose().map_err(StoreError::row("score"))?,
        max_act_approx: row.try_get("max_act")?,
        frac_nonzero: row.try_get("frac_nonzero")?,
        dead: row.try_get("dead")?,
        thumbnail: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anything_typed_is_a_search() {
        assert_eq!(prefix_expression("red cat"), "\"red\"* \"cat\"*");
        assert_eq!(prefix_expression("NEAR(\"a\" AND b*) -c"), "\"NEAR\"* \"a\"* \"AND\"* \"b\"* \"c\"*");
        assert_eq!(prefix_expression("\"'; --"), "\"\"");
    }

    #[test]
    fn ids_are_numbers_or_refused() {
        assert_eq!(parse_ids("17, 293").ok(), Some(Some(vec![17, 293])));
        assert_eq!(parse_ids(" ").ok(), Some(None));
        assert!(parse_ids("17,").is_err());
        assert!(parse_ids("-1").is_err());
        assert!(parse_ids(&"1,".repeat(300)).is_err());
    }
}
