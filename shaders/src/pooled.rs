//! Pooling a [`TopK`] over tokens: what is asked, in which fixed-point unit, and what is answered.

use crate::{Error, TopK};

/// One feature over the selected tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pooled {
    pub feature: u32,
    /// Over all selected tokens, 0 where the feature is not listed. Within half a unit, see
    /// [`crate::cpu::feature_pool`].
    pub mean: f32,
    pub max: f32,
}

/// What the strongest features are strongest by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolBy {
    Mean,
    Max,
}

/// Sum (in units) and maximum of one feature that occurred.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Total {
    pub feature: u32,
    pub sum: u32,
    pub max: f32,
}

/// The selected rows of a [`TopK`], checked, and the unit of their sums.
pub(crate) struct Selection {
    tokens: u32,
    /// `[tokens, k]`
    pub indices: Vec<u32>,
    /// `[tokens, k]`
    pub acts: Vec<f32>,
    /// Twice the units in 1, a power of two.
    pub double_scale: f32,
}

impl Selection {
    pub fn new(top: &TopK, tokens: &[u32], latents: u32) -> Result<Self, Error> {
        top.check()?;
        let (mut indices, mut acts) = (Vec::new(), Vec::new());
        for &token in tokens {
            if token >= top.tokens {
                let expected = format!("less than {}, the number of tokens", top.tokens);
                return Err(Error::Size { what: "token", given: token.into(), expected });
            }
            let (row_indices, row_acts) = top.row(token);
            indices.extend(row_indices);
            acts.extend(row_acts);
        }
        if let Some(&latent) = indices.iter().find(|latent: &&u32| **latent >= latents) {
            let expected = format!("less than {latents}, the number of latents");
            return Err(Error::Size { what: "latent", given: latent.into(), expected });
        }
        let largest = acts.iter().copied().fold(0.0, f32::max);
        let double_scale = double_scale(tokens.len() as f64 * f64::from(largest));
        // Fits: a token takes memory.
        Ok(Self { tokens: tokens.len() as u32, indices, acts, double_scale })
    }

    /// An activation in units, the half rounded up: exactly what the shader does, in the same steps.
    pub fn units(&self, act: f32) -> u32 {
        ((act * self.double_scale) as u32).div_ceil(2)
    }

    /// The `n` strongest features by falling `by`, ties to the lower feature.
    pub fn strongest(&self, totals: impl Iterator<Item = Total>, by: PoolBy, n: usize) -> Vec<Pooled> {
        let units = 0.5 * f64::from(self.double_scale) * f64::from(self.tokens);
        let pooled = |total: Total| Pooled {
            feature: total.feature,
            mean: (f64::from(total.sum) / units) as f32,
            max: total.max,
        };
        let mut pooled: Vec<Pooled> = totals.map(pooled).collect();
        let strength = |pooled: &Pooled| match by {
            PoolBy::Mean => pooled.mean,
            PoolBy::Max => pooled.max,
        };
        pooled.sort_unstable_by(|a, b| strength(b).total_cmp(&strength(a)).then(a.feature.cmp(&b.feature)));
        pooled.truncate(n);
        pooled
    }
}

/// Twice the largest power of two that keeps a sum of at most `bound` below 2^31 units, so that with the halves that
/// are rounded up it stays below 2^32.
fn double_scale(bound: f64) -> f32 {
    // floor(log2(bound)) is the exponent of its bits; -1023 for 0.
    let exponent = 30 - ((bound.to_bits() >> 52) as i32 - 1023);
    // An f32, and so small that activations which a device takes for 0 (below 2^-126) are 0 units everywhere.
    let double = exponent.clamp(-126, 120) + 1;
    f32::from_bits(((double + 127) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use super::double_scale;

    #[test]
    fn sums_fit_and_use_the_room() {
        for bound in [1e-3, 0.75, 1.0, 2.0, 7.5, 1e5, 1e12] {
            let scale = 0.5 * f64::from(double_scale(bound));
            assert!((0.5..1.0).contains(&(bound * scale / f64::from(1u32 << 31))), "{bound}: {scale}");
            assert_eq!(scale.log2().fract(), 0.0, "{bound}: {scale} is a power of two");
        }
        assert!(double_scale(0.0).is_finite());
    }
}
