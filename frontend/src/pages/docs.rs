//! `/docs`: the API, readable.

use api::ErrorCode;
use leptos::prelude::*;
use leptos_meta::Title;

/// Method, path under `/api/v1`, what it does, an example query or body.
const ENDPOINTS: [(&str, &str, &str, &str); 17] = [
    ("GET", "/sources", "All sources: one autoencoder at one hook point of one model.", ""),
    ("GET", "/{model}/{source}", "One source, with its numbers and where they come from.", ""),
    (
        "GET",
        "/{model}/{source}/features",
        "Features: search labels (q), a list (ids), category, minScore, dead, sort = score | index | density | max, page, perPage.",
        "?q=dog&sort=score&perPage=10",
    ),
    (
        "GET",
        "/{model}/{source}/features/{index}",
        "One feature, whole: explanations with scores and baselines, statistics, output tokens.",
        "",
    ),
    (
        "GET",
        "/{model}/{source}/features/{index}/activations",
        "Where it fires: kind = mean | max | quantile | random | heldout, limit. Patch values are sparse and row-major.",
        "?kind=quantile&limit=12",
    ),
    (
        "GET",
        "/{model}/{source}/features/{index}/neighbours",
        "Nearest by decoder cosine, and features that fire together.",
        "",
    ),
    ("GET", "/{model}/{source}/random", "A living feature with a label.", ""),
    (
        "GET",
        "/{model}/{source}/pictures",
        "Pictures of the demo set: kind = sample | scene | photo, page, perPage.",
        "?kind=sample",
    ),
    ("GET", "/{model}/{source}/pictures/{id}/activations", "Every patch's top features on one sample picture.", ""),
    (
        "POST",
        "/{model}/{source}/extract",
        "A picture (multipart: image file, or picture id) and an optional prompt in, hidden states out: safetensors with hidden f16 [tokens, d_model] and input_ids i32 [tokens]. dtype = f16 | f32; lens = n adds the n nearest words of every position; hook = another hook point, such as layers.2 or vision.0.",
        "-F image=@cat.jpg -F prompt='What is it?' -o hidden.safetensors",
    ),
    (
        "POST",
        "/{model}/{source}/steer",
        "Original, reconstructed and steered text, streamed as server-sent events. steer_method = CLAMP | SIMPLE_ADDITIVE | ORTHOGONAL_DECOMP | ABLATE; positions = all | prefill | image | text | generated.",
        "-H 'content-type: application/json' -d '{\"features\":[{\"index\":17,\"strength\":12}],\"prompt\":\"Tell me a story about Alice and Bob.\"}'",
    ),
    (
        "POST",
        "/{model}/{source}/attribute",
        "Which features made the model say answer rather than baseline: one forward and one backward pass for all of them. verify = n really removes the first n; map = a feature's share at every position.",
        "-H 'content-type: application/json' -d '{\"prompt\":\"What is this?\",\"answer\":\"cat\",\"baseline\":\"dog\"}'",
    ),
    (
        "GET",
        "/engine",
        "The engine behind extract, steer and attribute, which also answer without /{model}/{source}.",
        "",
    ),
    (
        "GET",
        "/jobs",
        "The queue of interpretation, as the page /queue shows it: how far every step is, and jobs, newest first. state = queued | running | done | dead | cancelled, kind = explain | refine | categorise | score, page, perPage; /jobs/{number} is one of them.",
        "?state=dead",
    ),
    (
        "POST",
        "/{model}/{source}/features/{index}/explain",
        "Asks for an explanation, before any bulk run. Asking again gives the same job.",
        "-X POST",
    ),
    (
        "GET",
        "/{model}/{source}/weights/{file}",
        "The autoencoder itself: manifest.json and the shards it names, sae.safetensors, cfg.json; with Range and ETag.",
        "",
    ),
    ("GET", "/openapi.json", "This list for machines.", ""),
];

fn about_error(code: ErrorCode) -> (&'static str, &'static str) {
    match code {
        ErrorCode::NotFound => (
            "404",
            "There is no such model, source, feature or picture. Check the address; GET /sources lists what is here.",
        ),
        ErrorCode::BadRequest => {
            ("400", "The request cannot be understood. The detail names the field and what was expected.")
        }
        ErrorCode::NotAnImage => {
            ("422", "The uploaded file is not a picture that can be read. Send PNG, JPEG, WebP, GIF or BMP.")
        }
        ErrorCode::ImageTooLarge => (
            "413",
            "The picture has too many pixels once unpacked. Send a smaller one; the model sees few pixels anyway.",
        ),
        ErrorCode::UploadTooLarge => ("413", "The upload has too many bytes. The detail names the limit."),
        ErrorCode::PromptTooLong => ("400", "The prompt does not fit into the model's context. Shorten it."),
        ErrorCode::EngineBusy => {
            ("503", "Too many people ask at once. Wait for the seconds in Retry-After and try again.")
        }
        ErrorCode::Internal => ("500", "Something broke on the server. Report the request id."),
    }
}

const ERRORS: [ErrorCode; 8] = [
    ErrorCode::NotFound,
    ErrorCode::BadRequest,
    ErrorCode::NotAnImage,
    ErrorCode::ImageTooLarge,
    ErrorCode::UploadTooLarge,
    ErrorCode::PromptTooLong,
    ErrorCode::EngineBusy,
    ErrorCode::Internal,
];

/// The command that tries an endpoint on the demo source.
fn example(method: &str, path: &str, rest: &str) -> String {
    let path = path.replace("{model}", "pocket").replace("{source}", "3-res-3k").replace("{index}", "17");
    let path = path.replace("{id}", "sample-01").replace("{file}", "cfg.json");
    match method {
        "POST" => format!("curl -N $HOST/api/v1{path} {rest}"),
        _ if rest.is_empty() => format!("curl $HOST/api/v1{path}"),
        _ => format!("curl '$HOST/api/v1{path}{rest}'").replace("'$HOST", "\"$HOST").replace('\'', "\""),
    }
}

#[component]
pub fn DocsPage() -> impl IntoView {
    let endpoints = ENDPOINTS
        .into_iter()
        .map(|(method, path, about, rest)| {
            view! {
                <section class="endpoint">
                    <h3 class="mono">
                        <span class="method">{method}</span>
                        " "
                        {path}
                    </h3>
                    <p>{about}</p>
                    <pre tabindex="0">{example(method, path, rest)}</pre>
                </section>
            }
        })
        .collect_view();
    let errors = ERRORS
        .into_iter()
        .map(|code| {
            let (status, about) = about_error(code);
            view! {
                <div id=format!("error-{}", code.as_str())>
                    <dt>
                        <span class="mono">{code.as_str()}</span>
                        " "
                        <span class="mono faint">{status}</span>
                    </dt>
                    <dd>{about}</dd>
                </div>
            }
        })
        .collect_view();
    view! {
        <Title text="API" />
        <article class="prose docs">
            <h1>"API"</h1>
            <p>
                "Everything the pages show comes from here, under "<span class="mono">"/api/v1"</span>
                ", as JSON with the field names of the field. No key is needed. Machines read "
                <a href="/api/v1/openapi.json" rel="external">"openapi.json"</a>"."
            </p>
            <h2>"Endpoints"</h2>
            <p>"The examples ask the server at this address:"</p>
            <pre tabindex="0">"HOST=http://127.0.0.1:8080"</pre>
            {endpoints}
            <h2>"Errors"</h2>
            <p>
                "Errors are "<span class="mono">"application/problem+json"</span>
                " (RFC 9457) with a "<span class="mono">"code"</span>" that stays, a "
                <span class="mono">"detail"</span>" for people, and a "<span class="mono">"requestId"</span>"."
            </p>
            <dl class="errors">{errors}</dl>
        </article>
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_can_be_pasted() {
        assert_eq!(
            example("GET", "/{model}/{source}/features", "?q=dog"),
            "curl \"$HOST/api/v1/pocket/3-res-3k/features?q=dog\""
        );
        assert_eq!(example("GET", "/sources", ""), "curl $HOST/api/v1/sources");
        assert!(ENDPOINTS.iter().all(|(method, path, about, rest)| {
            !example(method, path, rest).contains('{') || *method == "POST" && !about.is_empty()
        }));
    }
}
