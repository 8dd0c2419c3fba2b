//! The data card: YAML for the Hub, then what people need to know.

use super::super::Report;

/// The `README.md` of a data set.
pub(super) fn of(source: &api::Source, report: &Report, has_credits: bool) -> String {
    let api::Source { model_id, source_id, layer, hook_point, latents, d_model, k, grid, .. } = source;
    let title = format!("Features of {source_id} in {model_id}");
    let licence =
        if has_credits { "license: other\nlicense_name: see-credits\nlicense_link: CREDITS.md\n" } else { "" };
    let rights = if has_credits {
        "Pictures have authors and licences of their own: see [CREDITS.md](CREDITS.md) and the column `credit`."
    } else {
        "This folder names no licence: ask whoever made it. The column `credit` says what is known of each picture."
    };
    let provenance = &source.provenance;
    let Report { features, explanations, examples, texts, pictures, samples, .. } = report;
    let (yaml_title, [rows, columns]) = (quoted(&title), grid);
    format!(
        "---
pretty_name: {yaml_title}
{licence}tags:
- sparse-autoencoder
- interpretability
- multimodal
{CONFIGS}---

# {title}

{description}

A sparse autoencoder with {latents} latents of {d_model} dimensions, TopK with k = {k}, on the output of block {layer}
(`{hook_point}`) of {model_id}. Pictures are seen as {rows}×{columns} patches.

| table | rows | a row is |
|---|---:|---|
| `features` | {features} | a latent, with {explanations} explanations in all |
| `examples` | {examples} | a feature on a picture |
| `texts` | {texts} | a feature on a text |
| `pictures` | {pictures} | a picture and what is known of it |
| `samples` | {samples} | a picture with the strongest features of every patch |

{FIELDS}
## Provenance

| | |
|---|---|
| model | {model} |
| SAE, first digits of its SHA-256 | {sae_revision} |
| dtype | {dtype} |
| SHA-256 of the prompt, first digits | {prompt_hash} |
| picture set | {image_set} |
| date | {date} |
| pictures, picture tokens | {set_pictures}, {tokens} |
| latents that fired | {alive} |
| fraction of variance unexplained | {fvu} |

An empty cell is not known. `source.json` has the same for programs.

## Limits

Examples are chosen (`kind` says how), so that means over them are not means over the set; those are in `features`.
Activations are rounded to half precision. An explanation is an opinion of its author, `explanationModelName`; each
score stands beside the same score on random pictures.

## Licence and credits

{rights}
",
        description = source.description,
        model = provenance.model,
        sae_revision = provenance.sae_revision,
        dtype = provenance.dtype,
        prompt_hash = provenance.prompt_hash,
        image_set = provenance.image_set,
        date = provenance.date,
        set_pictures = source.pictures,
        tokens = source.tokens,
        alive = source.alive,
        fvu = source.fvu.map(|fvu| fvu.to_string()).unwrap_or_default(),
    )
}

/// A string of JSON is one of YAML.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The tables, for `load_dataset(…, "examples")`; `webp` is decoded as a picture.
const CONFIGS: &str = "configs:
- config_name: features
  default: true
  data_files: data/features.parquet
- config_name: examples
  data_files: data/examples.parquet
- config_name: texts
  data_files: data/texts.parquet
- config_name: pictures
  data_files: data/pictures.parquet
- config_name: samples
  data_files: data/samples.parquet
dataset_info:
- config_name: pictures
  features:
  - name: id
    dtype: string
  - name: width
    dtype: uint32
  - name: height
    dtype: uint32
  - name: caption
    dtype: string
  - name: kind
    dtype: string
  - name: objects
    dtype: string
  - name: credit
    dtype: string
  - name: webp
    dtype: image
";

const FIELDS: &str = "## Fields

An *activation* is what the encoder gives after TopK, in the units of the hidden states. Patches are numbered row by row
from 0. Shares lie between 0 and 1.

`features`

| column | |
|---|---|
| `modelId`, `layer`, `index` | model, source and latent: together the feature's name |
| `maxActApprox`, `meanAct` | largest activation on the picture set; mean of those above zero |
| `frac_nonzero`, `fracPictures` | share of picture tokens, and of pictures, where it fires |
| `freq_hist_data_bar_heights`, `freq_hist_data_bar_values` | histogram of activations: counts, and edges |
| `pos_str`, `pos_values` | output tokens that the decoder row raises most, and by how many logits |
| `neg_str`, `neg_values` | those it lowers most |
| `topkCosSimIndices`, `topkCosSimValues` | nearest features by the cosine of their decoder rows |
| `umap_x`, `umap_y` | place on the map of all living features (UMAP of the decoder rows by cosine), if there is one |
| `firing_indices`, `firing_values` | features on the same patches, with the Jaccard overlap of the patches |
| `explanations` | JSON: `description`, its author and method, `category`, `scores` (`value` beside `baseline`) |
| `dead` | it never fired |
| `provenance` | JSON: where the row's numbers come from |

`examples`

| column | |
|---|---|
| `feature`, `picture` | the latent; the id in `pictures` |
| `kind`, `rank` | how it was chosen (mean, max, quantile, random, heldout), and its place there |
| `featureActsIndices`, `featureActsValues` | patches where it fires, and the activations there |
| `maxValue`, `maxValueTokenIndex`, `meanValue` | largest activation, its patch, mean over all patches with zeros |
| `binMin`, `binMax` | activations between which a quantile example's maximum lies |

`texts`

| column | |
|---|---|
| `feature`, `rank` | the latent; its place, strongest first |
| `tokens`, `values` | the text's tokens, and the activation at each |

`pictures`

| column | |
|---|---|
| `id`, `kind`, `caption` | name, sort and caption |
| `width`, `height` | pixels |
| `objects` | JSON: what is drawn where (`concept`, `color`, `style`, `rect` in pixels) |
| `credit` | author and licence |
| `webp` | the picture, a WebP file |

`samples`

| column | |
|---|---|
| `picture`, `k`, `gridRows`, `gridColumns` | the id in `pictures`, features per patch, and the grid |
| `topIndices`, `topActs` | `[patches, k]`: features of each patch by falling activation, and these |
";
