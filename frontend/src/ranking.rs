//! Sparse activations of a sequence, ranked into features: the picture's, a patch's, a token's.

/// The top-k activations of every position, as the encoder gives them: each row by falling activation.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TopActs {
    pub k: usize,
    /// `[tokens, k]`, row-major.
    pub indices: Vec<u32>,
    /// `[tokens, k]`; zero where fewer than k latents are positive.
    pub acts: Vec<f32>,
}

/// How a feature's activations over the chosen positions become one number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RankBy {
    /// Mean over the positions, zeros included (the paper's order).
    Mean,
    /// The strongest position.
    #[default]
    Max,
}

impl RankBy {
    pub const ALL: [Self; 2] = [Self::Max, Self::Mean];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Max => "max",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|by| by.as_str() == name)
    }
}

/// One feature of a ranking.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ranked {
    pub feature: u32,
    /// The number it is ranked by.
    pub value: f32,
}

impl TopActs {
    pub fn tokens(&self) -> usize {
        self.indices.len().checked_div(self.k).unwrap_or(0)
    }

    /// Features and activations of one position, strongest first.
    pub fn row(&self, token: usize) -> impl Iterator<Item = (u32, f32)> + '_ {
        let (start, end) = (token * self.k, (token + 1) * self.k);
        let indices = self.indices.get(start..end).unwrap_or_default();
        let acts = self.acts.get(start..end).unwrap_or_default();
        indices.iter().copied().zip(acts.iter().copied()).filter(|(_, act)| *act > 0.0)
    }

    /// One feature's activation at every position of `positions`.
    pub fn values(&self, feature: u32, positions: impl IntoIterator<Item = u32>) -> Vec<f32> {
        let at = |token| self.row(token).find(|(index, _)| *index == feature).map_or(0.0, |(_, act)| act);
        positions.into_iter().map(|token| at(token as usize)).collect()
    }

    /// The features of the chosen positions, strongest first, ties by lower index.
    pub fn rank(&self, positions: &[u32], by: RankBy, limit: usize) -> Vec<Ranked> {
        let mut found: Vec<(u32, f32)> = positions.iter().flat_map(|token| self.row(*token as usize)).collect();
        // Stable: sums stay in the order of the positions.
        found.sort_by_key(|(feature, _)| *feature);
        let value = |acts: &[(u32, f32)]| match by {
            RankBy::Mean => acts.iter().map(|(_, act)| act).sum::<f32>() / positions.len() as f32,
            RankBy::Max => acts.iter().fold(0.0, |max: f32, (_, act)| max.max(*act)),
        };
        let of_one = found.chunk_by(|a, b| a.0 == b.0);
        let mut ranked: Vec<Ranked> = of_one.map(|acts| Ranked { feature: acts[0].0, value: value(acts) }).collect();
        ranked.sort_by(|a, b| b.value.total_cmp(&a.value));
        ranked.truncate(limit);
        ranked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three positions, k = 2: feature 7 is strong once, feature 3 is everywhere.
    fn acts() -> TopActs {
        TopActs { k: 2, indices: vec![7, 3, 3, 9, 3, 5], acts: vec![5.0, 2.0, 2.5, 0.5, 2.0, 0.0] }
    }

    fn features(ranked: &[Ranked]) -> Vec<u32> {
        ranked.iter().map(|ranked| ranked.feature).collect()
    }

    #[test]
    fn mean_prefers_the_widespread_and_max_the_strong() {
        let by_max = acts().rank(&[0, 1, 2], RankBy::Max, 10);
        assert_eq!(features(&by_max), [7, 3, 9]);
        assert_eq!(by_max[0].value, 5.0);
        let by_mean = acts().rank(&[0, 1, 2], RankBy::Mean, 2);
        assert_eq!(features(&by_mean), [3, 7]);
        assert!((by_mean[0].value - 6.5 / 3.0).abs() < 1e-6);
    }

    #[test]
    fn only_the_chosen_positions_count_and_ties_go_to_the_lower_index() {
        assert_eq!(features(&acts().rank(&[1], RankBy::Max, 10)), [3, 9]);
        let tie = TopActs { k: 2, indices: vec![8, 4], acts: vec![1.0, 1.0] };
        assert_eq!(features(&tie.rank(&[0], RankBy::Max, 10)), [4, 8]);
        assert!(acts().rank(&[99], RankBy::Mean, 10).is_empty());
        assert!(TopActs::default().rank(&[0], RankBy::Max, 10).is_empty());
    }

    #[test]
    fn values_are_zero_where_the_feature_is_not_among_the_top() {
        assert_eq!(acts().values(3, 0..3), [2.0, 2.5, 2.0]);
        assert_eq!(acts().values(7, [0, 2]), [5.0, 0.0]);
        assert_eq!(acts().values(5, 0..3), [0.0; 3]);
        assert_eq!(acts().tokens(), 3);
    }
}
