//! What people see of the queue, and what came out of it.

use super::{Assignment, JobFilter, Queue, control::push_filter, millis, on_pool, row};
use crate::StoreError;
use api::{Category, EndpointStatus, Explanation, Job, JobKind, JobState, KindStatus, Score};
use std::collections::BTreeMap;

const PER_PAGE: u32 = 48;
const MOST_PER_PAGE: u32 = 200;
/// Over so long a time the rate is measured, in milliseconds.
const RATE_WINDOW: i64 = 600_000;
const MINUTE: f64 = 60_000.0;

/// A page of jobs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Found {
    pub jobs: Vec<Job>,
    pub total: u32,
    pub per_page: u32,
    /// The database's time, in milliseconds since 1970.
    pub now: i64,
}

/// An endpoint with sums over its jobs.
#[derive(Debug, sqlx::FromRow)]
struct EndpointRow {
    name: String,
    paused: i64,
    max_running: i64,
    per_minute: i64,
    queued: i64,
    delayed: i64,
    running: i64,
    done: i64,
    dead: i64,
    cancelled: i64,
    input_tokens: i64,
    output_tokens: i64,
    recent: i64,
    first_recent: Option<i64>,
    now: i64,
}

/// A kind with sums over its jobs.
#[derive(Debug, sqlx::FromRow)]
struct KindRow {
    kind: String,
    queued: i64,
    running: i64,
    done: i64,
    dead: i64,
    cancelled: i64,
}

#[derive(Debug, sqlx::FromRow)]
struct ExplanationRow {
    job: i64,
    feature: i64,
    type_name: String,
    author: String,
    description: String,
    category: String,
    scores: String,
    prompt_hash: String,
    created_at: i64,
}

impl Queue {
    /// A page of jobs, newest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn list_jobs(&self, filter: &JobFilter, page: u32, per_page: u32) -> Result<Found, StoreError> {
        let per_page = if per_page == 0 { PER_PAGE } else { per_page.min(MOST_PER_PAGE) };
        let (rows, total, now): (Vec<row::JobRow>, i64, i64) = on_pool!(self, |pool, dialect, Db| {
            let mut count =
                sqlx::QueryBuilder::<Db>::new(format!("SELECT count(*), {} FROM job WHERE 1 = 1", dialect.now));
            push_filter!(count, filter);
            let (total, now): (i64, i64) = count.build_query_as().fetch_one(pool).await?;
            let mut list = sqlx::QueryBuilder::<Db>::new(format!("SELECT {} FROM job WHERE 1 = 1", row::COLUMNS));
            push_filter!(list, filter);
            list.push(" ORDER BY id DESC LIMIT ").push_bind(i64::from(per_page));
            list.push(" OFFSET ").push_bind(i64::from(page) * i64::from(per_page));
            let rows: Vec<row::JobRow> = list.build_query_as().fetch_all(pool).await?;
            (rows, total, now)
        });
        let jobs = rows.into_iter().map(row::JobRow::into_job).collect::<Result<_, _>>()?;
        Ok(Found { jobs, total: u32::try_from(total).unwrap_or(u32::MAX), per_page, now })
    }

    /// One job.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn find_job(&self, id: i64) -> Result<Option<Job>, StoreError> {
        let filter = JobFilter { id: Some(id), ..JobFilter::default() };
        Ok(self.list_jobs(&filter, 0, 1).await?.jobs.pop())
    }

    /// How every endpoint is doing, by name.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn list_endpoints(&self) -> Result<Vec<EndpointStatus>, StoreError> {
        let rows: Vec<EndpointRow> = on_pool!(self, |pool, dialect, Db| {
            let now = dialect.now;
            let recent = format!("j.state = 'done' AND j.ended_at > {now} - {RATE_WINDOW}");
            let columns = [
                in_states(),
                sum("delayed", &format!("CASE WHEN j.state = 'queued' AND j.run_at > {now} THEN 1 ELSE 0 END")),
                sum("input_tokens", "j.input_tokens"),
                sum("output_tokens", "j.output_tokens"),
                sum("recent", &format!("CASE WHEN {recent} THEN 1 ELSE 0 END")),
                format!("min(CASE WHEN {recent} THEN j.ended_at END) AS first_recent"),
                format!("{now} AS now"),
            ];
            sqlx::query_as(&format!(
                "SELECT e.name, e.paused, e.max_running, e.per_minute, {}
                 FROM job_endpoint e LEFT JOIN job j ON j.endpoint = e.name
                 GROUP BY e.name, e.paused, e.max_running, e.per_minute ORDER BY e.name",
                columns.join(", ")
            ))
            .fetch_all(pool)
            .await?
        });
        Ok(rows.into_iter().map(EndpointRow::into_status).collect())
    }

    /// How far every kind of job is, in the order of the steps; kinds that nobody asked for are left out.
    ///
    /// # Errors
    /// When the database fails, or names a kind that does not exist.
    pub async fn list_kinds(&self) -> Result<Vec<KindStatus>, StoreError> {
        let sql = format!("SELECT j.kind, {} FROM job j GROUP BY j.kind", in_states());
        let rows: Vec<KindRow> = on_pool!(self, |pool, _dialect, Db| sqlx::query_as(&sql).fetch_all(pool).await?);
        let mut kinds = rows.into_iter().map(KindRow::into_status).collect::<Result<Vec<_>, _>>()?;
        kinds.sort_by_key(|status| status.kind);
        Ok(kinds)
    }

    /// Explanations of these features of an SAE, by feature, oldest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn list_explanations(
        &self,
        source: &api::Source,
        features: &[u32],
    ) -> Result<BTreeMap<u32, Vec<Explanation>>, StoreError> {
        let mut explanations: BTreeMap<u32, Vec<Explanation>> = BTreeMap::new();
        if features.is_empty() {
            return Ok(explanations);
        }
        let rows: Vec<ExplanationRow> = on_pool!(self, |pool, _dialect, Db| {
            let mut query = sqlx::QueryBuilder::<Db>::new(
                "SELECT job, feature, type_name, author, coalesce(label, description) AS description, category, scores,
                        prompt_hash, created_at FROM explanation WHERE model_id = ",
            );
            query.push_bind(source.model_id.as_str()).push(" AND source_id = ").push_bind(source.source_id.as_str());
            query.push(" AND sae_revision = ").push_bind(source.provenance.sae_revision.as_str());
            query.push(" AND feature IN (");
            let mut list = query.separated(", ");
            for feature in features {
                list.push_bind(i64::from(*feature));
            }
            query.push(") ORDER BY feature, job");
            query.build_query_as().fetch_all(pool).await?
        });
        for row in rows {
            let feature = u32::try_from(row.feature).unwrap_or(u32::MAX);
            explanations.entry(feature).or_default().push(row.into_explanation()?);
        }
        Ok(explanations)
    }

    /// What the jobs of `assignment` say about a feature so far.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn find_explanation(
        &self,
        assignment: &Assignment,
        feature: u32,
    ) -> Result<Option<Explanation>, StoreError> {
        let found: Option<ExplanationRow> = on_pool!(self, |pool, _dialect, Db| {
            sqlx::query_as(
                "SELECT job, feature, type_name, author, coalesce(label, description) AS description, category, scores,
                        prompt_hash, created_at FROM explanation WHERE model_id = $1 AND source_id = $2
                 AND sae_revision = $3 AND feature = $4 AND interpreter = $5 AND prompt_hash = $6",
            )
            .bind(assignment.model_id.as_str())
            .bind(assignment.source_id.as_str())
            .bind(assignment.sae_revision.as_str())
            .bind(i64::from(feature))
            .bind(assignment.interpreter.as_str())
            .bind(assignment.prompt_hash.as_str())
            .fetch_optional(pool)
            .await?
        });
        found.map(ExplanationRow::into_explanation).transpose()
    }

    /// Explanations in all.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn count_explanations(&self) -> Result<u64, StoreError> {
        let count: i64 = on_pool!(self, |pool, _dialect, Db| {
            sqlx::query_scalar("SELECT count(*) FROM explanation").fetch_one(pool).await?
        });
        Ok(row::count(count))
    }
}

/// A column with the sum of `what` over jobs `j`.
fn sum(name: &str, what: &str) -> String {
    format!("CAST(coalesce(sum({what}), 0) AS BIGINT) AS {name}")
}

/// A column for every state: how many jobs `j` are in it.
fn in_states() -> String {
    let count = |state: JobState| {
        let name = state.as_str();
        sum(name, &format!("CASE WHEN j.state = '{name}' THEN 1 ELSE 0 END"))
    };
    JobState::ALL.map(count).join(", ")
}

impl KindRow {
    fn into_status(self) -> Result<KindStatus, StoreError> {
        let damaged = || StoreError::Row { what: "job", reason: format!("kind `{}`", self.kind) };
        Ok(KindStatus {
            kind: JobKind::from_name(&self.kind).ok_or_else(damaged)?,
            queued: row::count(self.queued),
            running: row::count(self.running),
            done: row::count(self.done),
            dead: row::count(self.dead),
            cancelled: row::count(self.cancelled),
        })
    }
}

impl EndpointRow {
    fn into_status(self) -> EndpointStatus {
        let spent = self.first_recent.map_or(0, |first| self.now - first);
        // One job alone has no rate.
        let rate = (self.recent > 1).then(|| self.recent as f64 / (spent.max(1) as f64 / MINUTE));
        let left = (self.queued + self.running) as f64;
        EndpointStatus {
            name: self.name,
            paused: self.paused != 0,
            max_running: u32::try_from(self.max_running).unwrap_or_default(),
            per_minute: u32::try_from(self.per_minute).unwrap_or_default(),
            queued: row::count(self.queued),
            delayed: row::count(self.delayed),
            running: row::count(self.running),
            done: row::count(self.done),
            dead: row::count(self.dead),
            cancelled: row::count(self.cancelled),
            input_tokens: row::count(self.input_tokens),
            output_tokens: row::count(self.output_tokens),
            rate,
            seconds_left: rate.map(|rate| left / rate * 60.0),
        }
    }
}

impl ExplanationRow {
    fn into_explanation(self) -> Result<Explanation, StoreError> {
        let scores: Vec<Score> = serde_json::from_str(&self.scores).map_err(StoreError::row("score"))?;
        Ok(Explanation {
            id: format!("job-{}", self.job),
            description: self.description,
            type_name: self.type_name,
            explanation_model_name: self.author,
            category: Category::from_name(&self.category).unwrap_or_default(),
            scores,
            created_at: date(self.created_at),
            prompt_hash: self.prompt_hash,
        })
    }
}

/// `YYYY-MM-DD`, in UTC, by this machine's clock.
pub fn today() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    date(millis(since))
}

/// `YYYY-MM-DD` of milliseconds since 1970, in UTC (days to civil, Howard Hinnant's algorithm).
pub(super) fn date(millis: i64) -> String {
    let days = millis.div_euclid(86_400_000) + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01");
        assert_eq!(date(951_782_399_999), "2000-02-28");
        assert_eq!(date(951_782_400_000), "2000-02-29");
        assert_eq!(date(1_735_689_599_999), "2024-12-31");
    }

    #[test]
    fn time_left_follows_from_what_was_done() {
        let row = EndpointRow {
            name: "local".into(),
            paused: 0,
            max_running: 4,
            per_minute: 0,
            queued: 90,
            delayed: 0,
            running: 10,
            done: 50,
            dead: 0,
            cancelled: 0,
            input_tokens: 0,
            output_tokens: 0,
            recent: 50,
            first_recent: Some(1_000),
            now: 61_000,
        };
        let status = row.into_status();
        assert_eq!((status.rate, status.seconds_left), (Some(50.0), Some(120.0)));
    }
}
