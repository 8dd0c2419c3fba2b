//! All living features on a plane, near those whose decoder rows point the same way: UMAP (McInnes et al. 2018).
//!
//! The graph is that of `umap-rs`, made of exact neighbours. Its layout draws from the thread's random numbers and lets
//! threads race, so that no map would come out twice; the one here goes through the edges in a fixed order, with random
//! numbers of its own: the same decoder gives the same map.

use super::{
    IndexError, Pool,
    counts::mix,
    neighbours::{Near, Wanted, decoder_neighbours},
};
use model::SaeFile;
use ndarray::Array2;
use store::files::FeatureRow;
use umap_rs::{GraphParams, Umap, UmapConfig};

/// Neighbours of a point; with itself, UMAP's usual 15.
pub(super) const NEIGHBOURS: usize = 14;
/// Fewer points are no map.
const FEWEST: usize = 4;
/// Of all maps that are made of an index.
const SEED: u64 = 0;

/// Rounds of the layout, and up to how many points there are more of them: UMAP's defaults.
const EPOCHS: usize = 200;
const EPOCHS_OF_FEW: usize = 500;
const FEW: usize = 10_000;
/// Points that each end of an edge is pushed away from when the edge is pulled.
const PUSHES: f64 = 5.0;
/// Steps towards the layout that begins: more bring nothing.
const SMOOTHINGS: usize = 100;
/// Half the width of that layout, and what keeps points apart that fell on one place.
const WIDTH: f64 = 10.0;
const JITTER: f64 = 0.01;
/// Nothing is divided by less: a wave of that length is none.
const TINY: f64 = 1e-12;
/// Longest step of a coordinate.
const LONGEST: f32 = 4.0;

/// Gives the living features of a source a place on its map, and no other one; tells how many are on it: none, if there
/// are hardly any. The same SAE and features give the same map.
///
/// # Errors
/// When the SAE has no such feature, or a decoder row is not finite.
pub fn map_features(
    sae: &SaeFile,
    rows: &mut [FeatureRow],
    threads: Option<usize>,
    say: &dyn Fn(&str),
) -> Result<usize, IndexError> {
    let mut living: Vec<u32> = rows.iter().map(|row| &row.feature).filter(|f| !f.dead).map(|f| f.index).collect();
    living.sort_unstable();
    living.dedup();
    if let Some(beyond) = living.iter().find(|index| **index as usize >= sae.latents()) {
        let reason = format!("there is no latent {beyond}: this SAE has {}", sae.latents());
        return Err(IndexError::other(sae.path(), reason));
    }
    let pool = Pool::new(threads)?;
    let wanted = [Wanted { n: NEIGHBOURS, among: None }];
    let nearest = decoder_neighbours(sae, &living, &wanted, &pool, &|done| {
        say(&format!("decoder neighbours of {done} of {} features", living.len()));
    })?;
    let places = places(&living, nearest.into_iter().flatten(), &pool, say);
    for feature in rows.iter_mut().map(|row| &mut row.feature) {
        let place = living.binary_search(&feature.index).ok().and_then(|at| places.get(at)).filter(|_| !feature.dead);
        (feature.umap_x, feature.umap_y) = place.map(|[x, y]| (*x, *y)).unzip();
    }
    Ok(places.len())
}

/// Places of features, which rise, in their order; `nearest` has the neighbours of each among them. None at all when
/// there are too few.
pub(super) fn places(
    features: &[u32],
    nearest: impl Iterator<Item = Near>,
    pool: &Pool,
    say: &dyn Fn(&str),
) -> Vec<[f32; 2]> {
    let numbered = |near: Near| -> Near {
        let number = |(feature, cosine): (u32, f32)| Some((features.binary_search(&feature).ok()? as u32, cosine));
        near.into_iter().filter_map(number).collect()
    };
    let nearest: Vec<Near> = nearest.map(numbered).collect();
    if nearest.len() < FEWEST {
        return Vec::new();
    }
    say(&format!("drawing the map of {} features", nearest.len()));
    let graph = pool.run(|| Graph::of(&nearest));
    let mut places = graph.begin(SEED);
    graph.layout(SEED, &mut places);
    places
}

/// How close points are to each other: UMAP's fuzzy simplicial set.
struct Graph {
    /// Where the neighbours of each point begin; after them, how many there are.
    starts: Vec<usize>,
    neighbours: Vec<u32>,
    /// Above 0, at most 1; the same in both directions.
    weights: Vec<f32>,
    /// Of the curve `1 / (1 + a d^2b)` that says how close points at a distance d are on the map.
    a: f32,
    b: f32,
}

impl Graph {
    /// Of at least [`FEWEST`] points; of each, others by rising distance.
    fn of(nearest: &[Near]) -> Self {
        let points = nearest.len();
        let others = nearest.iter().map(Vec::len).min().unwrap_or_default().min(points - 2);
        // The first neighbour of a point is itself.
        let mut numbers = Array2::<u32>::zeros((points, others + 1));
        let mut distances = Array2::<f32>::zeros((points, others + 1));
        for (point, near) in nearest.iter().enumerate() {
            numbers[[point, 0]] = point as u32;
            for (place, (other, cosine)) in near.iter().take(others).enumerate() {
                numbers[[point, place + 1]] = *other;
                distances[[point, place + 1]] = (1.0 - *cosine).max(0.0);
            }
        }
        let graph = GraphParams { n_neighbors: others + 1, ..GraphParams::default() };
        let umap = Umap::new(UmapConfig { graph, ..UmapConfig::default() });
        // Of the points themselves it only looks at their number.
        let manifold = umap.learn_manifold(Array2::zeros((points, 0)).view(), numbers.view(), distances.view());
        let (a, b) = manifold.curve_params();
        let mut made = Self { starts: vec![0], neighbours: Vec::new(), weights: Vec::new(), a, b };
        for row in manifold.graph().outer_iterator() {
            for (other, weight) in row.iter() {
                made.neighbours.push(other as u32);
                made.weights.push(*weight);
            }
            made.starts.push(made.neighbours.len());
        }
        made
    }

    fn points(&self) -> usize {
        self.starts.len() - 1
    }

    /// Numbers and weights of a point's neighbours.
    fn around(&self, point: usize) -> impl Iterator<Item = (usize, f32)> + '_ {
        let edges = self.starts[point]..self.starts[point + 1];
        let neighbours = self.neighbours[edges.clone()].iter().map(|other| *other as usize);
        neighbours.zip(self.weights[edges].iter().copied())
    }

    /// Where the layout begins: near the graph's slowest waves, as the spectral layout that UMAP begins with, by steps
    /// of a lazy random walk on two random coordinates, which are kept apart.
    fn begin(&self, seed: u64) -> Vec<[f32; 2]> {
        let mut random = Random::new(seed);
        let degrees: Vec<f64> =
            (0..self.points()).map(|point| self.around(point).map(|(_, weight)| f64::from(weight)).sum()).collect();
        let mut x: Vec<f64> = degrees.iter().map(|_| random.around_zero()).collect();
        let mut y: Vec<f64> = degrees.iter().map(|_| random.around_zero()).collect();
        let same = vec![1.0; degrees.len()];
        for step in 0..=SMOOTHINGS {
            if step > 0 {
                (x, y) = (self.walk(&degrees, &x), self.walk(&degrees, &y));
            }
            // What is the same everywhere would win over all waves.
            without(&mut x, &same, &degrees);
            without(&mut y, &same, &degrees);
            without(&mut y, &x, &degrees);
            for wave in [&mut x, &mut y] {
                let length = product(wave, wave, &degrees).sqrt();
                wave.iter_mut().for_each(|value| *value /= length.max(TINY));
            }
        }
        let scale = |wave: &[f64]| {
            let widest = wave.iter().fold(0.0, |widest: f64, value| widest.max(value.abs()));
            WIDTH / widest.max(TINY)
        };
        let (of_x, of_y) = (scale(&x), scale(&y));
        let mut place = |value: f64, scale: f64| (value * scale + JITTER * random.around_zero()) as f32;
        x.iter().zip(&y).map(|(x, y)| [place(*x, of_x), place(*y, of_y)]).collect()
    }

    /// Half of a point's own value, and half of its neighbours' mean.
    fn walk(&self, degrees: &[f64], values: &[f64]) -> Vec<f64> {
        let step = |(point, degree): (usize, &f64)| {
            let sum: f64 = self.around(point).map(|(other, weight)| f64::from(weight) * values[other]).sum();
            let mean = if *degree > 0.0 { sum / degree } else { values[point] };
            (values[point] + mean) / 2.0
        };
        degrees.iter().enumerate().map(step).collect()
    }

    /// Pulls the ends of edges together, the heavier the oftener, and pushes points apart that are drawn at random.
    fn layout(&self, seed: u64, places: &mut [[f32; 2]]) {
        let epochs = if self.points() > FEW { EPOCHS } else { EPOCHS_OF_FEW };
        let heaviest = self.weights.iter().copied().fold(0.0, f32::max);
        let mut edges = Vec::new();
        for point in 0..self.points() {
            // Lighter ones would never be pulled.
            let heavy = self.around(point).filter(|(_, weight)| *weight * epochs as f32 >= heaviest);
            edges.extend(heavy.map(|(other, weight)| {
                let every = f64::from(heaviest) / f64::from(weight);
                Edge { ends: [point as u32, other as u32], every, pull: every, push: every / PUSHES }
            }));
        }
        let mut random = Random::new(!seed);
        for epoch in 0..epochs {
            let rate = 1.0 - epoch as f32 / epochs as f32;
            for edge in edges.iter_mut().filter(|edge| edge.pull <= epoch as f64) {
                let [point, other] = edge.ends.map(|end| end as usize);
                let step = self.step(places[point], places[other], rate, |square, power| {
                    -2.0 * self.a * self.b * power / square / (self.a * power + 1.0)
                });
                shift(&mut places[point], step);
                shift(&mut places[other], step.map(|part| -part));
                edge.pull += edge.every;
                let pushes = ((epoch as f64 - edge.push) / (edge.every / PUSHES)).max(0.0).floor();
                edge.push += pushes * edge.every / PUSHES;
                for _ in 0..pushes as usize {
                    let other = random.below(places.len());
                    if other == point {
                        continue;
                    }
                    let step = self.step(places[point], places[other], rate, |square, power| {
                        2.0 * self.b / ((0.001 + square) * (self.a * power + 1.0))
                    });
                    shift(&mut places[point], step);
                }
            }
        }
    }

    /// How far one point moves: along the line from the other, by what `strength` says about the squared distance and
    /// its b-th power.
    fn step(&self, one: [f32; 2], other: [f32; 2], rate: f32, strength: impl Fn(f32, f32) -> f32) -> [f32; 2] {
        let line = [one[0] - other[0], one[1] - other[1]];
        let square = line[0] * line[0] + line[1] * line[1];
        if square <= 0.0 {
            return [0.0; 2];
        }
        let strength = strength(square, square.powf(self.b));
        line.map(|part| (strength * part).clamp(-LONGEST, LONGEST) * rate)
    }
}

/// An edge, and when it is due.
struct Edge {
    ends: [u32; 2],
    /// Epochs between two pulls.
    every: f64,
    /// Epoch of the next pull, and of the next push.
    pull: f64,
    push: f64,
}

fn shift(place: &mut [f32; 2], step: [f32; 2]) {
    place[0] += step[0];
    place[1] += step[1];
}

/// Removes from a wave what it has of another.
fn without(wave: &mut [f64], other: &[f64], degrees: &[f64]) {
    let share = product(wave, other, degrees) / product(other, other, degrees).max(TINY);
    wave.iter_mut().zip(other).for_each(|(value, other)| *value -= share * other);
}

/// Inner product of waves; points count as much as they have neighbours.
fn product(a: &[f64], b: &[f64], degrees: &[f64]) -> f64 {
    a.iter().zip(b).zip(degrees).map(|((a, b), degree)| a * b * degree).sum()
}

/// Numbers that look random, by their count (SplitMix64).
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix(self.0)
    }

    /// From -1 to 1.
    fn around_zero(&mut self) -> f64 {
        (self.draw() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.draw() % end as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// So many groups of so many points around a random direction each: the neighbours of all points.
    fn groups(groups: usize, each: usize) -> Vec<Near> {
        const D: usize = 16;
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let mut row = |spread: f32| -> [f32; D] { std::array::from_fn(|_| spread * random.random_range(-1.0..1.0f32)) };
        let centres: Vec<[f32; D]> = (0..groups).map(|_| row(1.0)).collect();
        let rows: Vec<[f32; D]> = (0..groups * each)
            .map(|point| {
                let (centre, noise) = (centres[point / each], row(0.4));
                std::array::from_fn(|at| centre[at] + noise[at])
            })
            .collect();
        let dot = |a: &[f32; D], b: &[f32; D]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let cosine = |a: usize, b: usize| {
            let norms = dot(&rows[a], &rows[a]) * dot(&rows[b], &rows[b]);
            dot(&rows[a], &rows[b]) / norms.sqrt()
        };
        let near = |point: usize| {
            let others = (0..rows.len()).filter(|other| *other != point);
            super::super::feature::strongest(others.map(|o| (o as u32, cosine(point, o))).collect(), NEIGHBOURS)
        };
        (0..rows.len()).map(near).collect()
    }

    fn place(nearest: &[Near], seed: u64) -> Vec<[f32; 2]> {
        let graph = Graph::of(nearest);
        let mut places = graph.begin(seed);
        graph.layout(seed, &mut places);
        places
    }

    fn distance(a: [f32; 2], b: [f32; 2]) -> f64 {
        f64::from(a[0] - b[0]).hypot(f64::from(a[1] - b[1]))
    }

    #[test]
    fn features_that_point_the_same_way_are_together() {
        const EACH: usize = 30;
        let nearest = groups(4, EACH);
        for seed in 0..3 {
            let places = place(&nearest, seed);
            let (mut within, mut between) = (Vec::new(), Vec::new());
            for (a, one) in places.iter().enumerate() {
                for (b, other) in places.iter().enumerate().take(a) {
                    let apart = distance(*one, *other);
                    if a / EACH == b / EACH { within.push(apart) } else { between.push(apart) }
                }
            }
            let mean = |distances: &[f64]| distances.iter().sum::<f64>() / distances.len() as f64;
            let (within, between) = (mean(&within), mean(&between));
            assert!(within > 0.0 && within * 5.0 < between, "{within} within groups, {between} between them");
        }
    }

    #[test]
    fn a_seed_gives_one_map() {
        let nearest = groups(3, 20);
        assert_eq!(place(&nearest, 3), place(&nearest, 3));
        assert_ne!(place(&nearest, 3), place(&nearest, 4));
        let one = |threads| places(&(0..60).collect::<Vec<_>>(), groups(3, 20).into_iter(), &threads, &|_| {});
        assert_eq!(one(Pool::new(Some(1)).unwrap()), one(Pool::new(Some(3)).unwrap()));
    }

    #[test]
    fn few_features_and_equal_ones_are_no_trouble() {
        let pool = Pool::new(Some(1)).unwrap();
        let all = |points: u32| -> Vec<Near> {
            (0..points)
                .map(|own| (0..points).filter(|other| *other != own).map(|other| (other, 1.0)).collect())
                .collect()
        };
        for points in [0, 3] {
            let features: Vec<u32> = (0..points).map(|number| number * 5).collect();
            let nearest =
                all(points).into_iter().map(|near| near.into_iter().map(|(o, c)| (o * 5, c)).collect::<Near>());
            assert!(places(&features, nearest, &pool, &|_| {}).is_empty());
        }
        for points in [4, 20] {
            let features: Vec<u32> = (0..points).collect();
            let places = places(&features, all(points).into_iter(), &pool, &|_| {});
            assert_eq!(places.len(), points as usize);
            assert!(places.iter().flatten().all(|value| value.is_finite()), "{places:?}");
        }
    }

    #[test]
    fn the_living_features_of_a_file_get_places() {
        let folder = tempfile::tempdir().unwrap();
        model::testing::tiny_checkpoint::<model::Cpu>(folder.path(), &Default::default()).unwrap();
        let sae = SaeFile::open(&folder.path().join("sae/model.layers.1")).unwrap();
        let row = |index: u32| {
            let feature =
                api::Feature { index, dead: index.is_multiple_of(3), umap_x: Some(9.0), ..api::Feature::default() };
            FeatureRow { feature, ..FeatureRow::default() }
        };
        // In any order.
        let mut rows: Vec<FeatureRow> = (0..64).rev().map(row).collect();
        assert_eq!(map_features(&sae, &mut rows, None, &|_| {}).unwrap(), 42);
        for row in &rows {
            let places = [row.feature.umap_x, row.feature.umap_y];
            assert!(places.iter().all(|place| place.is_some() != row.feature.dead), "{places:?}");
        }
        let mut again: Vec<FeatureRow> = (0..64).map(row).collect();
        map_features(&sae, &mut again, Some(1), &|_| {}).unwrap();
        rows.reverse();
        assert!(rows == again);
        let error = map_features(&sae, &mut [row(64)], None, &|_| {}).unwrap_err().to_string();
        assert!(error.contains("no latent 64"), "{error}");
    }
}
