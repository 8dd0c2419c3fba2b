//! What a person set on the analyze page, as an address.

use crate::{
    api::SourceKey,
    links::{query_string, source_path},
    ranking::RankBy,
};
use api::{
    Tier,
    gpu::{Compute, Fault},
};
use leptos_router::params::ParamsMap;

/// The state of the page; `Default` is an empty bench.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AnalyzeAddress {
    /// A picture of the demo set.
    pub picture: Option<String>,
    /// Goes through the chat template after the picture; empty: the picture alone.
    pub prompt: String,
    pub rank: RankBy,
    /// Chosen patches of the base picture; empty: all.
    pub patches: Vec<u32>,
    /// A chosen position of the prompt.
    pub token: Option<u32>,
    /// The feature that stays lit.
    pub feature: Option<u32>,
    /// Where the features are computed.
    pub compute: Compute,
    /// How the weights are stored; without one, the best that suits.
    pub tier: Option<Tier>,
    /// What breaks on purpose, time after time.
    pub faults: Vec<Fault>,
    /// Draw on a canvas even where the GPU is software; see [`super::run::Run::draws`].
    pub canvas: bool,
}

impl AnalyzeAddress {
    pub fn from_params(params: &ParamsMap) -> Self {
        let get = |name: &str| params.get(name).unwrap_or_default();
        let mut patches: Vec<u32> = get("patches").split(',').filter_map(|patch| patch.parse().ok()).collect();
        patches.sort_unstable();
        patches.dedup();
        Self {
            picture: params.get("picture").filter(|id| !id.is_empty()),
            prompt: get("prompt"),
            rank: RankBy::from_name(&get("rank")).unwrap_or_default(),
            patches,
            token: get("token").parse().ok(),
            feature: get("feature").parse().ok(),
            // `cpu=1` is what older links say.
            compute: if get("cpu") == "1" {
                Compute::Cpu
            } else {
                Compute::from_name(&get("compute")).unwrap_or_default()
            },
            tier: Tier::from_name(&get("tier")),
            faults: get("fault").split(',').filter_map(Fault::from_name).collect(),
            canvas: get("canvas") == "1",
        }
    }

    pub fn path(&self, key: &SourceKey) -> String {
        let number = |value: Option<u32>| value.map_or_else(String::new, |value| value.to_string());
        let patches: Vec<String> = self.patches.iter().map(u32::to_string).collect();
        let rank = if self.rank == RankBy::default() { "" } else { self.rank.as_str() };
        let query = query_string([
            ("picture", self.picture.clone().unwrap_or_default()),
            ("prompt", self.prompt.clone()),
            ("rank", rank.to_owned()),
            ("patches", patches.join(",")),
            ("token", number(self.token)),
            ("feature", number(self.feature)),
            ("compute", if self.compute == Compute::Auto { "" } else { self.compute.as_str() }.to_owned()),
            ("tier", self.tier.map_or_else(String::new, |tier| tier.to_string())),
            ("canvas", if self.canvas { "1" } else { "" }.to_owned()),
        ]);
        format!("{}/analyze{query}", source_path(key))
    }

    /// Chooses or lets go of a patch.
    pub fn toggle_patch(&mut self, patch: u32) {
        match self.patches.binary_search(&patch) {
            Ok(at) => _ = self.patches.remove(at),
            Err(at) => self.patches.insert(at, patch),
        }
        self.token = None;
    }

    /// The same settings and kept feature for another picture: the places chosen on the old one are let go.
    pub fn for_picture(&self, picture: Option<String>) -> Self {
        Self { picture, patches: Vec::new(), token: None, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(path: &str) -> ParamsMap {
        let (_, query) = path.split_once('?').unwrap_or_default();
        query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.replace('+', " ")))
            .collect()
    }

    #[test]
    fn the_bench_survives_its_address() {
        let address = AnalyzeAddress {
            picture: Some("dog-park".into()),
            prompt: "what is it".into(),
            rank: RankBy::Mean,
            patches: vec![3, 17],
            token: None,
            feature: Some(293),
            compute: Compute::Cpu,
            tier: Some(Tier::Int8),
            faults: Vec::new(),
            canvas: true,
        };
        let path = address.path(&SourceKey::new("pocket", "3-res-3k"));
        assert_eq!(
            path,
            "/pocket/3-res-3k/analyze?picture=dog-park&prompt=what+is+it&rank=mean&patches=3,17&feature=293&compute=cpu&tier=int8&canvas=1"
        );
        assert_eq!(AnalyzeAddress::from_params(&params(&path)), address);
        assert_eq!(AnalyzeAddress::from_params(&params("?cpu=1")).compute, Compute::Cpu);
        assert_eq!(AnalyzeAddress::from_params(&ParamsMap::new()), AnalyzeAddress::default());
    }

    #[test]
    fn patches_toggle_in_order_and_go_with_the_picture() {
        let mut address = AnalyzeAddress { token: Some(70), feature: Some(293), ..AnalyzeAddress::default() };
        for patch in [9, 2, 9, 5] {
            address.toggle_patch(patch);
        }
        assert_eq!((address.patches.clone(), address.token), (vec![2, 5], None));
        let next = address.for_picture(Some("cat".into()));
        assert!(next.patches.is_empty());
        assert_eq!(next.feature, Some(293), "the kept feature is looked for on the next picture");
    }
}
