//! The decoder's memory: keys and values of the tokens seen so far.

use burn::tensor::{Tensor, backend::Backend};

/// Keys and values of one block, `[rows, kv_heads, capacity, head_dim]`: the first positions are in use.
#[derive(Debug, Clone)]
struct KeysValues<B: Backend> {
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
}

/// Positions by which a full cache grows: appending a token then writes one token.
const CACHE_STEP: usize = 64;

/// Keys and values of the tokens seen so far, of one or several sequences (*rows*) of one length. Shorter rows are padded
/// on the left.
#[derive(Debug, Clone)]
pub struct KvCache<B: Backend> {
    blocks: Vec<Option<KeysValues<B>>>,
    positions: usize,
    pads: Vec<usize>,
}

impl<B: Backend> KvCache<B> {
    /// An empty cache of one row for `blocks` blocks.
    pub fn new(blocks: usize) -> Self {
        Self { blocks: vec![None; blocks], positions: 0, pads: vec![0] }
    }

    /// Positions held, padding included.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Padding on the left of each row.
    pub(crate) fn pads(&self) -> &[usize] {
        &self.pads
    }

    /// Sequences held.
    pub fn rows(&self) -> usize {
        self.pads.len()
    }

    /// Tokens of each row: where its next one stands.
    pub(crate) fn next_positions(&self) -> Vec<usize> {
        let same = self.pads.windows(2).all(|pair| pair[0] == pair[1]);
        let pads = if same { &self.pads[..1] } else { &self.pads[..] };
        pads.iter().map(|pad| self.positions - pad).collect()
    }

    /// Makes `rows` copies of a cache of one row.
    pub fn expand(&mut self, rows: usize) {
        if rows == 1 {
            return;
        }
        let repeat = |t: Tensor<B, 4>| t.repeat_dim(0, rows);
        self.blocks = std::mem::take(&mut self.blocks)
            .into_iter()
            .map(|block| block.map(|KeysValues { k, v }| KeysValues { k: repeat(k), v: repeat(v) }))
            .collect();
        self.pads = vec![self.pads[0]; rows];
    }

    /// Adds the rows of another cache; the shorter of the two is padded on the left. All blocks or, if memory runs out
    /// and this panics, none: until the end both caches are there.
    pub fn join(&mut self, other: Self) {
        let positions = self.positions.max(other.positions);
        let (mine, theirs) = (positions - self.positions, positions - other.positions);
        let held = [self.positions, other.positions];
        let pads = self.pads.iter().map(|pad| pad + mine).chain(other.pads.iter().map(|pad| pad + theirs)).collect();
        let joined = self.blocks.iter().zip(other.blocks).map(|pair| {
            let (Some(a), Some(b)) = pair else { return None };
            let padded = |t: Tensor<B, 4>, held: usize| left_padded(t.narrow(2, 0, held), positions);
            let both = |a, b| Tensor::cat(vec![padded(a, held[0]), padded(b, held[1])], 0);
            Some(KeysValues { k: both(a.k.clone(), b.k), v: both(a.v.clone(), b.v) })
        });
        self.blocks = joined.collect();
        (self.positions, self.pads) = (positions, pads);
    }

    /// Keeps these rows, in this order, and forgets padding that all of them have.
    pub fn keep(&mut self, rows: &[usize]) {
        let pads: Vec<usize> = rows.iter().map(|&row| self.pads[row]).collect();
        let spare = pads.iter().copied().min().unwrap_or_default();
        let positions = self.positions - spare;
        for KeysValues { k, v } in self.blocks.iter_mut().flatten() {
            let kept = |t: &Tensor<B, 4>| {
                let picked: Vec<Tensor<B, 4>> = rows.iter().map(|&row| t.clone().narrow(0, row, 1)).collect();
                Tensor::cat(picked, 0).narrow(2, spare, positions)
            };
            (*k, *v) = (kept(k), kept(v));
        }
        (self.positions, self.pads) = (positions, pads.iter().map(|pad| pad - spare).collect());
    }

    /// Appends the new positions of one block; everything it holds afterwards.
    pub(crate) fn append(&mut self, block: usize, k: Tensor<B, 4>, v: Tensor<B, 4>) -> (Tensor<B, 4>, Tensor<B, 4>) {
        let (held, new) = (self.positions, k.dims()[2]);
        let store = |buffer: Tensor<B, 4>, new_part: Tensor<B, 4>| {
            let [rows, heads, capacity, head_dim] = buffer.dims();
            let buffer = if held + new <= capacity {
                buffer
            } else {
                let more = [rows, heads, held + new + CACHE_STEP - capacity, head_dim];
                let room = Tensor::zeros(more, (&new_part.device(), new_part.dtype()));
                Tensor::cat(vec![buffer, room], 2)
            };
            buffer.slice_assign([0..rows, 0..heads, held..held + new, 0..head_dim], new_part)
        };
        let KeysValues { k, v } = match self.blocks[block].take() {
            Some(buffers) => KeysValues { k: store(buffers.k, k), v: store(buffers.v, v) },
            None => KeysValues { k, v },
        };
        let whole = (k.clone().narrow(2, 0, held + new), v.clone().narrow(2, 0, held + new));
        self.blocks[block] = Some(KeysValues { k, v });
        whole
    }

    /// Counts positions that every block has appended.
    pub(crate) fn advance(&mut self, positions: usize) {
        self.positions += positions;
    }
}

/// Zeros on the left of dimension 2, up to `positions`.
fn left_padded<B: Backend>(t: Tensor<B, 4>, positions: usize) -> Tensor<B, 4> {
    let [rows, heads, held, head_dim] = t.dims();
    if held == positions {
        return t;
    }
    let zeros = Tensor::zeros([rows, heads, positions - held, head_dim], (&t.device(), t.dtype()));
    Tensor::cat(vec![zeros, t], 2)
}
