//! The SAE on the server, for visitors whose own machine cannot hold it: memory-mapped, on the CPU, one request at a
//! time. A few may wait; the next one is asked to come back later.

use crate::{engine::EngineError, error::AppError, hidden::hidden_from_safetensors};
use bytes::Bytes;
use model::{SaeFile, TopK};
use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::Semaphore;

/// Requests that are in memory at once, the running one included.
const PLACES: usize = 4;
/// Tokens of a request at most: more than any prompt has.
pub const MAX_TOKENS: usize = 8192;

/// Features of a request's hidden states.
#[derive(Debug)]
pub struct Encoded {
    pub top: TopK,
    /// Time in the SAE, without the wait.
    pub took: Duration,
}

/// A memory-mapped SAE and the queue before it.
#[derive(Debug)]
pub struct Encoder {
    sae: Arc<SaeFile>,
    places: Arc<Semaphore>,
    /// Encoding takes all cores: two at once would only slow each other down.
    turn: Arc<Semaphore>,
}

impl Encoder {
    /// Opens the folder of a hook point.
    ///
    /// # Errors
    /// When the SAE is missing or damaged.
    pub fn open(folder: &Path) -> Result<Self, model::Error> {
        let sae = Arc::new(SaeFile::open(folder)?);
        Ok(Self { sae, places: Arc::new(Semaphore::new(PLACES)), turn: Arc::new(Semaphore::new(1)) })
    }

    /// The strongest latents of `hidden` in a safetensors file. Dropping the future cancels the request while it waits.
    ///
    /// # Errors
    /// "Busy" when too many wait; what is wrong with the file.
    pub async fn encode(&self, file: Bytes) -> Result<Encoded, AppError> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| AppError::busy())?;
        let d_in = self.sae.d_in();
        let read = tokio::task::spawn_blocking(move || (read_hidden(&file, d_in), place));
        let (hidden, place) = read.await.map_err(AppError::internal)?;
        let hidden = hidden.map_err(|reason| AppError::bad_request(format!("The body: {reason}.")))?;
        let turn = Arc::clone(&self.turn).acquire_owned().await.map_err(AppError::internal)?;
        let sae = Arc::clone(&self.sae);
        let work = move || {
            let _until_done = (place, turn);
            let started = Instant::now();
            sae.encode(&hidden).map(|top| Encoded { top, took: started.elapsed() })
        };
        let encoded = tokio::task::spawn_blocking(work).await.map_err(AppError::internal)?;
        Ok(encoded.map_err(EngineError::Model)?)
    }
}

fn read_hidden(file: &[u8], d_in: usize) -> Result<Vec<f32>, String> {
    let hidden = hidden_from_safetensors(file, d_in)?;
    let tokens = hidden.len() / d_in;
    if tokens > MAX_TOKENS {
        return Err(format!("`hidden` has {tokens} tokens; at most {MAX_TOKENS} are encoded at once"));
    }
    Ok(hidden)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;
    use api::ErrorCode;

    #[tokio::test]
    async fn a_full_queue_asks_to_come_back() {
        let folder = tempfile::tempdir().unwrap();
        model::testing::tiny_checkpoint::<model::Cpu>(folder.path(), &Default::default()).unwrap();
        let encoder = Arc::new(Encoder::open(&folder.path().join("sae/model.layers.1")).unwrap());
        let hidden: Vec<u8> = [0.5f32; 64].iter().flat_map(|value| value.to_le_bytes()).collect();
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![2, 32], &hidden).unwrap();
        let file = Bytes::from(safetensors::serialize([("hidden", view)], None).unwrap());
        assert_eq!(encoder.encode(file.clone()).await.unwrap().top.tokens, 2);

        // Nobody's turn ends.
        let turn = Arc::clone(&encoder.turn).acquire_owned().await.unwrap();
        let waiting: Vec<_> = (0..PLACES)
            .map(|_| {
                let (encoder, file) = (Arc::clone(&encoder), file.clone());
                tokio::spawn(async move { encoder.encode(file).await.map(|encoded| encoded.top.tokens) })
            })
            .collect();
        while encoder.places.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let busy = encoder.encode(file.clone()).await.unwrap_err();
        assert_eq!(busy.problem("").code, ErrorCode::EngineBusy);
        drop(turn);
        for answer in waiting {
            assert_eq!(answer.await.unwrap().unwrap(), 2);
        }
        let wrong = encoder.encode(Bytes::from_static(b"no file")).await.unwrap_err();
        assert_eq!(wrong.problem("").code, ErrorCode::BadRequest);
        assert_eq!(encoder.places.available_permits(), PLACES, "a refused request gives its place back");
    }
}
