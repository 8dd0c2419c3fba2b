//! An SAE out of its manifest: tier, place, shards.

use std::cell::{Cell, RefCell};
use std::future::ready;
use std::pin::Pin;

use api::gpu::{Compute, LoadedSae};
use api::{SaeManifest, ShardFile, Tier, TierShards};
use shaders::{Cancel, Gpu, SaeShape, TopK, known_answer};

use crate::Error;
use crate::decoder::Decoder;
use crate::engine::{Engine, weight_type};
use crate::facts::floats_of_halves;
use crate::fetch::Fetch;
use crate::load::{Sink, Taking};
use crate::place::{self, Place};
use crate::safetensors::{Tensor, expect};
use crate::worker::Host;

/// Half floats up to this size are loaded without asking; above it int8, at half of the bytes, is.
const LARGEST_F16: u64 = 512 << 20;
/// Relative room below a threshold: rounding of f32 sums.
const THRESHOLD_ROOM: f32 = 1e-5;

/// An SAE that encodes.
pub struct LoadedEngine {
    /// Where it computes, or what became of the device.
    engine: Result<Engine, shaders::Error>,
    /// Whether the device decodes rightly, once that was asked.
    decodes: Cell<Option<bool>>,
    /// Latents of the whole SAE, and how many a token keeps.
    latents: u32,
    d_model: u32,
    k: u32,
    /// Of a slice: the latent that each row is, rising.
    rows: Option<Vec<u32>>,
    /// Where the decoder is, if the server has it.
    decoder: Option<Decoder>,
}

impl LoadedEngine {
    pub fn is_slice(&self) -> bool {
        self.rows.is_some()
    }

    /// # Errors
    /// Why the device is gone.
    pub fn engine(&self) -> Result<&Engine, Error> {
        self.engine.as_ref().map_err(|error| Error::Shaders(error.clone()))
    }

    /// The device, if that is where it computes.
    pub fn gpu(&self) -> Option<&Gpu> {
        self.engine.as_ref().ok().and_then(Engine::gpu)
    }

    /// The device, if it also decodes rightly; that is asked once.
    ///
    /// # Errors
    /// What is wrong with the device itself.
    pub async fn decoding_gpu(&self) -> Result<Option<&Gpu>, Error> {
        let Some(gpu) = self.gpu() else { return Ok(None) };
        let decodes = match self.decodes.get() {
            Some(known) => known,
            None => match known_answer::check_decoder(gpu).await {
                Ok(()) => true,
                Err(shaders::Error::WrongAnswer(_)) => false,
                Err(error) => return Err(error.into()),
            },
        };
        self.decodes.set(Some(decodes));
        Ok(decodes.then_some(gpu))
    }

    /// Gives up a device that is of no use any more, and remembers why.
    pub fn let_go(&mut self, error: shaders::Error) {
        self.engine = Err(error);
    }

    /// # Errors
    /// [`Error::NoDecoder`].
    pub fn decoder(&self) -> Result<&Decoder, Error> {
        self.decoder.as_ref().ok_or(Error::NoDecoder)
    }

    pub fn d_model(&self) -> u32 {
        self.d_model
    }

    pub fn latents(&self) -> u32 {
        self.latents
    }

    /// The k strongest latents of each token of `halves` (f16 `[tokens, d_model]`); of a slice, those of its latents that reach
    /// the token's threshold, the whole SAE's k-th largest activation.
    ///
    /// # Errors
    /// [`Error::Shaders`].
    pub async fn encode<H: Host>(
        &self,
        host: &H,
        halves: &[u8],
        tokens: u32,
        thresholds: &[f32],
        cancel: &Cancel,
    ) -> Result<TopK, Error> {
        let engine = self.engine()?;
        let mut top = TopK::empty(engine.shape().k);
        let row_bytes = 2 * self.d_model as usize;
        // Never all of them as f32: a large picture has thousands of tokens.
        for batch in halves.chunks(engine.batch_tokens() * row_bytes) {
            // The GPU is waited for anyway.
            if top.tokens > 0 && engine.gpu().is_none() {
                host.breathe().await;
            }
            let hidden: Vec<f32> = floats_of_halves(batch).collect();
            // At most the batch.
            let part = engine.encode(&hidden, (batch.len() / row_bytes) as u32, cancel).await;
            let part = part.map_err(|error| error.in_rows_from(top.tokens))?;
            top.tokens += part.tokens;
            top.top_indices.extend(part.top_indices);
            top.top_acts.extend(part.top_acts);
        }
        let Some(rows) = &self.rows else { return Ok(top) };
        let (width, k) = (top.k as usize, self.k as usize);
        let mut sliced = TopK { tokens, ..TopK::empty(self.k) };
        for (token, threshold) in (0..tokens as usize).zip(thresholds) {
            let range = token * width..(token + 1) * width;
            let pairs = top.top_indices[range.clone()].iter().zip(&top.top_acts[range]);
            // The server adds up in another order: without some room the k-th latent itself would drop out.
            let least = threshold * (1.0 - THRESHOLD_ROOM);
            let kept = pairs.filter(|(_, act)| **act > 0.0 && **act >= least);
            let (indices, acts): (Vec<u32>, Vec<f32>) = kept.map(|(row, act)| (rows[*row as usize], *act)).unzip();
            let missing = k - indices.len();
            let padding: Vec<u32> = (0..).filter(|latent| !indices.contains(latent)).take(missing).collect();
            sliced.top_indices.extend(indices.into_iter().chain(padding));
            sliced.top_acts.extend(acts.into_iter().chain(std::iter::repeat_n(0.0, missing)));
        }
        Ok(sliced)
    }
}

/// What a page asks for.
pub struct Wanted<'a> {
    pub id: u32,
    pub base_url: &'a str,
    pub manifest: &'a SaeManifest,
    pub tier: Option<Tier>,
    pub compute: Compute,
    pub cancel: &'a Cancel,
}

impl Wanted<'_> {
    /// Loads it, on the CPU if the GPU fails on the way and was not insisted on.
    ///
    /// # Errors
    /// As of the files, the GPU and the CPU.
    pub async fn load<H: Host>(&self, host: &H) -> Result<(LoadedEngine, LoadedSae), Error> {
        let tier = self.pick_tier()?;
        let mut failed = None;
        for compute in [self.compute, Compute::Cpu] {
            match self.load_tier(host, tier, compute).await {
                Err(error) if error.is_lost() && self.compute == Compute::Auto => failed = Some(error),
                Ok((engine, sae)) => {
                    let reason = failed.map_or(sae.reason, |error| format!("the GPU failed: {error}"));
                    return Ok((engine, LoadedSae { reason, ..sae }));
                }
                Err(error) => return Err(error),
            }
        }
        Err(failed.unwrap_or(Error::NotLoaded))
    }

    /// The tier that was asked for, or the best that is not too large.
    fn pick_tier(&self) -> Result<&TierShards, Error> {
        let tiers = &self.manifest.tiers;
        let found = match self.tier {
            Some(tier) => self.manifest.tier(tier),
            None => tiers
                .iter()
                .find(|tier| match tier.tier {
                    Tier::F16 => tier.bytes() <= LARGEST_F16,
                    Tier::Int8 | Tier::Int4 => true,
                    Tier::Slice => false,
                })
                // A slice is for whom asks for it: it wants thresholds.
                .or_else(|| tiers.iter().find(|tier| tier.tier != Tier::Slice)),
        };
        found.ok_or_else(|| Error::NoTier {
            tier: self.tier.map_or("any", Tier::as_str).to_owned(),
            has: tiers.iter().map(|tier| tier.tier.as_str()).collect::<Vec<_>>().join(", "),
        })
    }

    async fn load_tier<H: Host>(
        &self,
        host: &H,
        tier: &TierShards,
        compute: Compute,
    ) -> Result<(LoadedEngine, LoadedSae), Error> {
        let SaeManifest { d_model, latents, k, .. } = *self.manifest;
        let weight_type = weight_type(tier.tier);
        let shape = SaeShape::new(d_model, tier.rows, k.min(tier.rows))?;
        let place = place::choose(host, shape, weight_type, compute, self.cancel).await?;
        let files: Vec<&ShardFile> = std::iter::once(&self.manifest.biases).chain(&tier.shards).collect();
        let total = files.iter().map(|file| file.bytes).sum();
        let fetch = Fetch::new(host, self.id, self.base_url, self.cancel, total);
        let not_kept = fetch.room(&files).await.err();
        let target = Target { place: RefCell::new(place), tier, d_model, latents, biases: RefCell::default() };
        stream(&fetch, &files, not_kept.is_none(), &target).await?;
        let origin = fetch.origin();
        let Target { place, biases, .. } = target;
        let (mut place, biases) = (place.into_inner(), biases.into_inner());
        let rows = (tier.tier == Tier::Slice).then_some(biases.rows);
        let b_enc: Vec<f32> = match &rows {
            Some(rows) => rows.iter().filter_map(|row| biases.b_enc.get(*row as usize).copied()).collect(),
            None => biases.b_enc,
        };
        place.engine.finish(&b_enc, &biases.b_dec).await?;
        place::tune(host, &mut place, weight_type, self.cancel).await?;
        let Place { engine, adapter, software, reason } = place;
        let decoder = (tier.tier != Tier::Slice && !tier.decoder.is_empty()).then(|| Decoder {
            base_url: self.base_url.to_owned(),
            tier: tier.tier,
            d_model,
            files: tier.decoder.clone(),
            b_dec: biases.b_dec,
        });
        let sae = LoadedSae {
            path: engine.path(),
            adapter,
            reason,
            tier: tier.tier,
            agreement: tier.agreement.clone(),
            latents,
            d_model,
            k,
            origin,
            not_kept,
            decoder: decoder.as_ref().map(Decoder::bytes),
            software,
        };
        Ok((LoadedEngine { engine: Ok(engine), decodes: Cell::default(), latents, d_model, k, rows, decoder }, sae))
    }
}

/// Streams all files, three at once.
async fn stream<H: Host>(
    fetch: &Fetch<'_, H>,
    files: &[&ShardFile],
    keep: bool,
    target: &Target<'_>,
) -> Result<(), Error> {
    let passed = |from_storage: i64, from_network: i64| fetch.passed(from_storage, from_network);
    let way = fetch.way(keep, &passed);
    fetch.report();
    // Each lane takes the next file when it has finished one.
    let next = Cell::new(0);
    // Boxed: three lanes inlined into one another are 8 KB.
    let lane = || -> Pin<Box<dyn Future<Output = Result<(), Error>> + '_>> {
        Box::pin(async {
            while let Some(file) = files.get(next.replace(next.get() + 1)) {
                way.load(file, &mut ShardSink { target, file }).await?;
            }
            Ok(())
        })
    };
    futures::try_join!(lane(), lane(), lane())?;
    fetch.report();
    Ok(())
}

/// Where the files go.
struct Target<'a> {
    place: RefCell<Place>,
    tier: &'a TierShards,
    d_model: u32,
    latents: u32,
    biases: RefCell<Biases>,
}

/// What is small enough to be kept here until all is there.
#[derive(Default)]
struct Biases {
    b_enc: Vec<f32>,
    b_dec: Vec<f32>,
    /// Latents of a slice's rows.
    rows: Vec<u32>,
}

/// One file on its way.
struct ShardSink<'a> {
    target: &'a Target<'a>,
    file: &'a ShardFile,
}

impl Sink for ShardSink<'_> {
    fn check(&mut self, tensors: &[Tensor]) -> Result<(), Error> {
        let Target { tier, d_model, latents, .. } = *self.target;
        if self.file.rows == 0 {
            let mut biases = self.target.biases.borrow_mut();
            (biases.b_enc, biases.b_dec) = (vec![0.0; latents as usize], vec![0.0; d_model as usize]);
            expect(tensors, "b_enc", "F32", &[latents.into()])?;
            return expect(tensors, "b_dec", "F32", &[d_model.into()]).map(drop);
        }
        if tier.tier == Tier::Slice {
            self.target.biases.borrow_mut().rows.resize(tier.rows as usize, 0);
        }
        expect_rows(tensors, tier.tier, self.file.rows, d_model)
    }

    fn begin_again(&mut self) -> bool {
        true
    }

    fn take<'a>(&'a mut self, tensor: &'a Tensor, offset: u64, piece: &'a [u8]) -> Taking<'a> {
        Box::pin(ready(self.put(tensor, offset, piece)))
    }
}

impl ShardSink<'_> {
    /// Puts a piece where it belongs.
    fn put(&self, tensor: &Tensor, offset: u64, piece: &[u8]) -> Result<(), Error> {
        let Target { tier, d_model, latents, .. } = *self.target;
        let first = u64::from(self.file.first_row);
        let mut biases = self.target.biases.borrow_mut();
        match tensor.name.as_str() {
            "weight" => {
                let offset = first * tier.tier.row_bytes(d_model) + offset;
                self.target.place.borrow_mut().engine.write_rows(offset, piece)
            }
            "scale" => {
                let offset = first * tier.tier.side_bytes(d_model) + offset;
                self.target.place.borrow_mut().engine.write_scales(offset, piece)
            }
            "b_enc" => {
                copy_floats(&mut biases.b_enc, offset, piece);
                Ok(())
            }
            "b_dec" => {
                copy_floats(&mut biases.b_dec, offset, piece);
                Ok(())
            }
            "latents" => {
                let rows = biases.rows.iter_mut().skip((first + offset / 4) as usize);
                for (row, bytes) in rows.zip(piece.as_chunks::<4>().0) {
                    *row = u32::from_le_bytes(*bytes);
                    if *row >= latents {
                        return Err(Error::NoFeature { feature: *row, latents });
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// The tensors of a shard of `rows` rows, as [`api::shards`] has them.
///
/// # Errors
/// [`Error::Safetensors`] if one is missing or not as expected.
pub fn expect_rows(tensors: &[Tensor], tier: Tier, rows: u32, d_model: u32) -> Result<(), Error> {
    let (rows, width) = (u64::from(rows), u64::from(tier.width(d_model)));
    match tier {
        Tier::F16 => expect(tensors, "weight", "F16", &[rows, width])?,
        Tier::Int8 => {
            expect(tensors, "scale", "F32", &[rows])?;
            expect(tensors, "weight", "I8", &[rows, width])?
        }
        Tier::Int4 => {
            expect(tensors, "scale", "F16", &[rows, width / u64::from(api::shards::INT4_GROUP)])?;
            expect(tensors, "weight", "U8", &[rows, width / 2])?
        }
        Tier::Slice => {
            expect(tensors, "latents", "I32", &[rows])?;
            expect(tensors, "weight", "F16", &[rows, width])?
        }
    };
    Ok(())
}

fn copy_floats(to: &mut [f32], offset: u64, piece: &[u8]) {
    let to = to.iter_mut().skip((offset / 4) as usize);
    to.zip(piece.as_chunks::<4>().0).for_each(|(to, bytes)| *to = f32::from_le_bytes(*bytes));
}
