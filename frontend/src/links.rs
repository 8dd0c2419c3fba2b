//! Addresses: paths of pages and endpoints, query strings and back. Everything a person set lives here.

use crate::{
    api::SourceKey,
    format::{number, shortest},
};
use api::{ActivationKind, Category, FeatureQuery, FeatureSort, JobKind, JobQuery, JobState};
use leptos_router::params::ParamsMap;
use std::fmt::Write as _;

/// Features on one page of the grid.
pub const PER_PAGE: u32 = 48;

/// Percent-encodes everything outside RFC 3986's unreserved set, and leaves `,` `:` readable.
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b',' | b':' => {
                out.push(char::from(byte));
            }
            b' ' => out.push('+'),
            // Writing into a String cannot fail.
            _ => _ = write!(out, "%{byte:02X}"),
        }
    }
    out
}

/// `?a=1&b=2` of the pairs that have a value, or nothing.
pub fn query_string<'a>(pairs: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let pairs: Vec<String> = pairs
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("{name}={}", encode(&value)))
        .collect();
    if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
}

pub fn source_path(key: &SourceKey) -> String {
    format!("/{}/{}", encode(&key.model), encode(&key.source))
}

pub fn feature_path(key: &SourceKey, index: u32) -> String {
    format!("{}/{index}", source_path(key))
}

/// The analyze page with a picture, if one is named, and a feature that stays lit on it.
pub fn analyze_path(key: &SourceKey, picture: &str, feature: Option<u32>) -> String {
    let feature = feature.map_or_else(String::new, |feature| feature.to_string());
    format!("{}/analyze{}", source_path(key), query_string([("picture", picture.to_owned()), ("feature", feature)]))
}

pub fn steer_path(key: &SourceKey, features: &str) -> String {
    format!("{}/steer{}", source_path(key), query_string([("features", features.to_owned())]))
}

/// An endpoint of one source: `/api/v1/{model}/{source}{rest}`.
pub fn api_path(key: &SourceKey, rest: &str) -> String {
    format!("/api/v1{}{rest}", source_path(key))
}

/// The query string of a feature list; the same names on the page and on the wire.
pub fn feature_query_string(query: &FeatureQuery) -> String {
    query_string(feature_query_pairs(query))
}

/// Names and values of a feature list's state; empty where not set.
pub fn feature_query_pairs(query: &FeatureQuery) -> [(&'static str, String); 8] {
    let sort = if query.sort == FeatureSort::default() { "" } else { query.sort.as_str() };
    [
        ("q", query.q.clone()),
        ("ids", query.ids.clone()),
        ("category", query.category.map_or(String::new(), |category| category.as_str().into())),
        ("sort", sort.into()),
        ("minScore", query.min_score.map_or(String::new(), shortest)),
        ("dead", query.dead.map_or(String::new(), |dead| dead.to_string())),
        ("page", if query.page == 0 { String::new() } else { query.page.to_string() }),
        ("perPage", if query.per_page == 0 { String::new() } else { query.per_page.to_string() }),
    ]
}

/// Reads a feature list's state from a page's address; what cannot be understood counts as not set.
pub fn feature_query_from_params(params: &ParamsMap) -> FeatureQuery {
    let get = |name: &str| params.get(name).unwrap_or_default();
    FeatureQuery {
        q: get("q").trim().to_owned(),
        ids: get("ids"),
        category: Category::from_name(&get("category")),
        sort: FeatureSort::from_name(&get("sort")).unwrap_or_default(),
        min_score: number(&get("minScore")).map(|score| score as f32).filter(|score| *score > 0.0),
        dead: get("dead").parse().ok(),
        page: get("page").parse().unwrap_or(0),
        per_page: get("perPage").parse().unwrap_or(0),
    }
}

/// The page of the queue, with a state of its list.
pub fn queue_path(query: &JobQuery) -> String {
    "/queue".to_owned() + &job_query_string(query)
}

/// The query string of a list of jobs; the same names on the page and on the wire.
pub fn job_query_string(query: &JobQuery) -> String {
    let number = |number: u32| if number == 0 { String::new() } else { number.to_string() };
    query_string([
        ("state", query.state.map_or("", JobState::as_str).to_owned()),
        ("kind", query.kind.map_or("", JobKind::as_str).to_owned()),
        ("page", number(query.page)),
        ("perPage", number(query.per_page)),
    ])
}

/// Reads the state of a list of jobs from a page's address; what cannot be understood counts as not set.
pub fn job_query_from_params(params: &ParamsMap) -> JobQuery {
    let get = |name: &str| params.get(name).unwrap_or_default();
    JobQuery {
        state: JobState::from_name(&get("state")),
        kind: JobKind::from_name(&get("kind")),
        page: get("page").parse().unwrap_or(0),
        per_page: get("perPage").parse().unwrap_or(0),
    }
}

/// The examples a feature page shows.
pub fn kind_from_params(params: &ParamsMap) -> ActivationKind {
    params.get("kind").and_then(|name| ActivationKind::from_name(&name)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose
    use super::*;

    fn params(pairs: &[(&'static str, &str)]) -> ParamsMap {
        pairs.iter().map(|(name, value)| (*name, (*value).to_owned())).collect()
    }

    #[test]
    fn encoding_keeps_the_unreserved_and_escapes_the_rest() {
        assert_eq!(encode("a b&c=d/é"), "a+b%26c%3Dd%2F%C3%A9");
        assert_eq!(encode("12:3.5,40:-1"), "12:3.5,40:-1");
    }

    #[test]
    fn analyze_takes_a_feature_along() {
        let key = SourceKey::new("pocket", "3-res-3k");
        assert_eq!(analyze_path(&key, "", None), "/pocket/3-res-3k/analyze");
        assert_eq!(analyze_path(&key, "cat", Some(17)), "/pocket/3-res-3k/analyze?picture=cat&feature=17");
    }

    #[test]
    fn a_feature_list_survives_its_address() {
        let query = FeatureQuery {
            q: "dog".into(),
            ids: String::new(),
            category: Some(Category::Object),
            sort: FeatureSort::Max,
            min_score: Some(0.3),
            dead: Some(false),
            page: 2,
            per_page: 24,
        };
        let text = feature_query_string(&query);
        assert_eq!(text, "?q=dog&category=object&sort=max&minScore=0.3&dead=false&page=2&perPage=24");
        let pairs: Vec<(String, String)> = text
            .trim_start_matches('?')
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let map: ParamsMap = pairs.into_iter().collect();
        assert_eq!(feature_query_from_params(&map), query);
    }

    #[test]
    fn a_list_of_jobs_survives_its_address() {
        let query = JobQuery { state: Some(JobState::Dead), kind: Some(JobKind::Refine), page: 3, per_page: 10 };
        assert_eq!(queue_path(&query), "/queue?state=dead&kind=refine&page=3&perPage=10");
        let pairs = [("state", "dead"), ("kind", "refine"), ("page", "3"), ("perPage", "10")];
        assert_eq!(job_query_from_params(&params(&pairs)), query);
        // As a form without scripts sends what was not chosen.
        let nothing = params(&[("state", ""), ("kind", "paint"), ("page", "-1")]);
        assert_eq!(job_query_from_params(&nothing), JobQuery::default());
        assert_eq!(queue_path(&JobQuery::default()), "/queue");
    }

    #[test]
    fn nonsense_in_an_address_counts_as_not_set() {
        let query = feature_query_from_params(&params(&[("sort", "best"), ("page", "-1"), ("minScore", "x")]));
        assert_eq!(query, FeatureQuery::default());
        assert_eq!(feature_query_string(&query), "");
        assert_eq!(kind_from_params(&params(&[("kind", "quantile")])), ActivationKind::Quantile);
        assert_eq!(kind_from_params(&params(&[("kind", "?")])), ActivationKind::Mean);
    }
}
