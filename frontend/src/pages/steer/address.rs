//! What a person set on the steer page, as an address.

use crate::by_index::ByIndex;
use crate::{
    api::SourceKey,
    format::{number, shortest},
    links::{query_string, source_path},
};
use api::{FeatureSummary, Positions, SteerFeature, SteerMethod, SteerRequest};
use leptos_router::params::ParamsMap;

/// New tokens unless set.
pub const TOKENS: u32 = 48;

/// The names of methods in an address.
pub const METHODS: [(SteerMethod, &str, &str); 4] = [
    (SteerMethod::Clamp, "clamp", "set the feature to this value everywhere, then decode (the paper's way)"),
    (SteerMethod::SimpleAdditive, "add", "add the feature's direction to the hidden states"),
    (
        SteerMethod::Orthogonal,
        "orthogonal",
        "set the hidden states' component along the feature's direction to this value",
    ),
    (SteerMethod::Ablate, "ablate", "set the feature to zero"),
];

/// A chosen feature; `strength` is in units of the feature's own maximum.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Chosen {
    pub index: u32,
    pub strength: f32,
}

/// The state of the page.
#[derive(Debug, Clone, PartialEq)]
pub struct SteerAddress {
    pub features: Vec<Chosen>,
    pub method: SteerMethod,
    pub positions: Positions,
    pub prompt: String,
    pub picture: Option<String>,
    pub tokens: u32,
    pub temperature: f32,
    pub seed: u64,
    /// Start as soon as the page is open.
    pub run: bool,
}

impl Default for SteerAddress {
    fn default() -> Self {
        Self {
            features: Vec::new(),
            method: SteerMethod::default(),
            positions: Positions::default(),
            prompt: String::new(),
            picture: None,
            tokens: TOKENS,
            temperature: 0.0,
            seed: 0,
            run: false,
        }
    }
}

/// `17:3,293:-1.5` → features with their strengths; a bare number means full strength.
fn features_from(text: &str) -> Vec<Chosen> {
    let chosen = |part: &str| {
        let (index, strength) = part.split_once(':').unwrap_or((part, "1"));
        let strength = number(strength)? as f32;
        Some(Chosen { index: index.trim().parse().ok()?, strength })
    };
    let mut found: Vec<Chosen> = Vec::new();
    for chosen in text.split(',').filter_map(chosen) {
        if found.iter().all(|known| known.index != chosen.index) {
            found.push(chosen);
        }
    }
    found
}

impl SteerAddress {
    pub fn from_params(params: &ParamsMap) -> Self {
        let get = |name: &str| params.get(name).unwrap_or_default();
        let method = METHODS.iter().find(|(_, name, _)| *name == get("method")).map(|(method, ..)| *method);
        Self {
            features: features_from(&get("features")),
            method: method.unwrap_or_default(),
            positions: Positions::from_name(&get("positions")).unwrap_or_default(),
            prompt: get("prompt"),
            picture: params.get("picture").filter(|id| !id.is_empty()),
            tokens: get("tokens").parse().ok().filter(|tokens| (1..=256).contains(tokens)).unwrap_or(TOKENS),
            temperature: number(&get("temperature")).filter(|heat| (0.0..=2.0).contains(heat)).unwrap_or(0.0) as f32,
            seed: get("seed").parse().unwrap_or(0),
            run: get("run") == "1",
        }
    }

    pub fn path(&self, key: &SourceKey) -> String {
        let usual = Self::default();
        let unless_usual = |is_usual: bool, text: String| if is_usual { String::new() } else { text };
        let features: Vec<String> =
            self.features.iter().map(|chosen| format!("{}:{}", chosen.index, shortest(chosen.strength))).collect();
        let query = query_string([
            ("features", features.join(",")),
            ("method", unless_usual(self.method == usual.method, method_name(self.method).into())),
            ("positions", unless_usual(self.positions == usual.positions, self.positions.as_str().into())),
            ("prompt", self.prompt.clone()),
            ("picture", self.picture.clone().unwrap_or_default()),
            ("tokens", unless_usual(self.tokens == usual.tokens, self.tokens.to_string())),
            ("temperature", unless_usual(self.temperature == usual.temperature, shortest(self.temperature))),
            ("seed", unless_usual(self.seed == usual.seed, self.seed.to_string())),
            ("run", unless_usual(!self.run, "1".into())),
        ]);
        format!("{}/steer{query}", source_path(key))
    }

    /// The request, with strengths turned from units of the maximum into activations.
    /// `Err` is the feature whose maximum is not known (yet).
    pub fn request(&self, summaries: &ByIndex<FeatureSummary>) -> Result<SteerRequest, u32> {
        let features = self
            .features
            .iter()
            .map(|chosen| {
                let max = summaries.get(chosen.index).ok_or(chosen.index)?.max_act_approx;
                Ok(SteerFeature { index: chosen.index, strength: chosen.strength * max })
            })
            .collect::<Result<_, u32>>()?;
        Ok(SteerRequest {
            features,
            steer_method: self.method,
            positions: self.positions,
            prompt: self.prompt.clone(),
            picture: self.picture.clone(),
            image: None,
            temperature: self.temperature,
            n_tokens: self.tokens,
            seed: self.seed,
            ..SteerRequest::default()
        })
    }
}

/// True if a strength below zero means something.
pub fn takes_negative(method: SteerMethod) -> bool {
    matches!(method, SteerMethod::SimpleAdditive | SteerMethod::Orthogonal)
}

pub fn method_name(method: SteerMethod) -> &'static str {
    METHODS.iter().find(|(this, ..)| *this == method).map_or("clamp", |(_, name, _)| name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose
    use super::*;

    fn params(path: &str) -> ParamsMap {
        let (_, query) = path.split_once('?').unwrap_or_default();
        query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.replace('+', " ")))
            .collect()
    }

    fn address() -> SteerAddress {
        SteerAddress {
            features: vec![Chosen { index: 17, strength: 3.0 }, Chosen { index: 293, strength: -1.5 }],
            method: SteerMethod::SimpleAdditive,
            positions: Positions::Image,
            prompt: "what do you feel".into(),
            picture: Some("dog-park".into()),
            tokens: 32,
            temperature: 0.5,
            seed: 7,
            run: true,
        }
    }

    #[test]
    fn everything_survives_the_address() {
        let path = address().path(&SourceKey::new("pocket", "3-res-3k"));
        assert!(path.starts_with("/pocket/3-res-3k/steer?features=17:3,293:-1.5&method=add&positions=image"), "{path}");
        assert_eq!(SteerAddress::from_params(&params(&path)), address());
        assert_eq!(SteerAddress::default().path(&SourceKey::new("a", "b")), "/a/b/steer");
    }

    #[test]
    fn features_are_read_kindly() {
        let read = |text| features_from(text).iter().map(|chosen| (chosen.index, chosen.strength)).collect::<Vec<_>>();
        assert_eq!(read("17, 17:9, 4:2.5,x,5:inf"), [(17, 1.0), (4, 2.5)]);
        assert_eq!(read(""), []);
    }

    #[test]
    fn strengths_become_activations_once_the_maximum_is_known() {
        assert_eq!(address().request(&ByIndex::new()).unwrap_err(), 17);
        let summary = |index, max_act_approx| (index, FeatureSummary { index, max_act_approx, ..Default::default() });
        let summaries = ByIndex::from_iter([summary(17, 4.0), summary(293, 2.0)]);
        let request = address().request(&summaries).unwrap();
        let strengths: Vec<f32> = request.features.iter().map(|feature| feature.strength).collect();
        assert_eq!(strengths, [12.0, -3.0]);
        assert_eq!((request.n_tokens, request.seed, request.positions), (32, 7, Positions::Image));
    }
}
