//! Answers that are safetensors files.

use crate::{
    engine::{EngineError, half_float},
    error::AppError,
};
use api::EXTRACT_KINDS_HEADER;
use axum::{
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use model::lens::Lens;
use safetensors::{Dtype, tensor::TensorView};
use std::{collections::HashMap, time::Duration};

/// One tensor of an answer.
pub(super) struct Written {
    name: &'static str,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Written {
    pub(super) fn ids(name: &'static str, shape: Vec<usize>, ids: &[u32]) -> Self {
        let bytes = ids.iter().flat_map(|id| (*id as i32).to_le_bytes()).collect();
        Self { name, dtype: Dtype::I32, shape, bytes }
    }

    pub(super) fn floats(name: &'static str, shape: Vec<usize>, values: &[f32]) -> Self {
        Self { name, dtype: Dtype::F32, shape, bytes: values.iter().flat_map(|value| value.to_le_bytes()).collect() }
    }

    pub(super) fn halves(name: &'static str, shape: Vec<usize>, values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|value| half_float(*value).to_le_bytes()).collect();
        Self { name, dtype: Dtype::F16, shape, bytes }
    }

    pub(super) fn lens([ids, scores]: [&'static str; 2], lens: &Lens) -> [Self; 2] {
        let shape = vec![lens.ids.len() / lens.n.max(1), lens.n];
        [Self::ids(ids, shape.clone(), &lens.ids), Self::floats(scores, shape, &lens.scores)]
    }
}

/// The file's bytes.
pub(super) fn safetensors_from_written(
    tensors: &[Written],
    metadata: Option<HashMap<String, String>>,
) -> Result<Vec<u8>, EngineError> {
    let views = tensors.iter().map(|tensor| {
        let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes)?;
        Ok::<_, EngineError>((tensor.name, view))
    });
    let views = views.collect::<Result<Vec<_>, _>>()?;
    Ok(safetensors::serialize(views, metadata)?)
}

/// Which device computed, and for how long, goes into a header.
pub(super) fn octet_response(body: Vec<u8>, device: &str, took: Duration) -> Result<Response, AppError> {
    let engine = format!("{device};ms={}", took.as_millis());
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(EXTRACT_KINDS_HEADER, HeaderValue::try_from(engine).map_err(AppError::internal)?);
    Ok(response)
}
