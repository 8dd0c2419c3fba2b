//! How a picture gets onto the bench: samples, file, drop, paste. And the prompt beside it.

use super::{State, run::OwnPicture};
use api::Picture;
use leptos::{ev, html, prelude::*};
use web_sys::{DataTransfer, File};

/// Puts the visitor's own picture on the bench.
fn take(state: State, file: File) {
    let Some(own) = OwnPicture::new(file) else { return };
    if let Some(old) = state.own.get_untracked() {
        old.release();
    }
    state.own.set(Some(own));
    state.retry();
    let address = state.address.get_untracked().for_picture(None);
    state.go.run(address);
}

fn first_file(transfer: Option<DataTransfer>) -> Option<File> {
    transfer?.files()?.get(0)
}

/// Samples, and the place for an own picture.
#[component]
pub fn Intake(state: State, samples: Vec<Picture>, empty: Signal<bool>) -> impl IntoView {
    let strip = samples.into_iter().map(|sample| view! { <Sample state sample /> }).collect_view();
    view! {
        <div class="intake" class:intake-empty=move || empty.get()>
            <div class="samples" role="group" aria-label="Sample pictures">
                {strip}
            </div>
            <DropZone state />
        </div>
    }
}

#[component]
fn Sample(state: State, sample: Picture) -> impl IntoView {
    let id = StoredValue::new(sample.id.clone());
    let href = move || state.address.get().for_picture(Some(id.get_value())).path(&state.key.get());
    let is_current = move || state.own.get().is_none() && state.address.get().picture == Some(id.get_value());
    let choose = move |event: web_sys::MouseEvent| {
        // With a modifier key the link opens elsewhere, as links do.
        if event.ctrl_key() || event.meta_key() || event.shift_key() {
            return;
        }
        event.prevent_default();
        if let Some(own) = state.own.get_untracked() {
            own.release();
            state.own.set(None);
        }
        let old = state.address.get_untracked();
        let address = old.for_picture(Some(id.get_value()));
        // The address alone would not start what was cancelled or has failed.
        if address.picture == old.picture && state.run.with_untracked(Option::is_none) {
            state.retry();
        }
        state.go.run(address);
    };
    view! {
        <a
            href=href
            data-testid="analyze-sample"
            data-picture=sample.id
            aria-current=move || is_current().then_some("true")
            title=sample.credit
            on:click=choose
        >
            <img src=sample.url alt=sample.caption width=sample.width height=sample.height loading="lazy" />
        </a>
    }
}

/// A file field that also takes drops, and pastes from anywhere on the page.
#[component]
fn DropZone(state: State) -> impl IntoView {
    let field = NodeRef::<html::Input>::new();
    let over = RwSignal::new(false);
    Effect::new(move |_| {
        let handle = window_event_listener(ev::paste, move |event: web_sys::ClipboardEvent| {
            if let Some(file) = first_file(event.clipboard_data()) {
                take(state, file);
            }
        });
        on_cleanup(move || handle.remove());
    });
    let chosen = move |_| {
        let Some(input) = field.get_untracked() else { return };
        let file = input.files().and_then(|files| files.get(0));
        // A field that keeps its file says nothing when the same one is chosen again.
        input.set_value("");
        if let Some(file) = file {
            take(state, file);
        }
    };
    let dropped = move |event: web_sys::DragEvent| {
        event.prevent_default();
        over.set(false);
        if let Some(file) = first_file(event.data_transfer()) {
            take(state, file);
        }
    };
    let name = move || state.own.get().map_or_else(|| "Your own picture".to_owned(), |own| own.name);
    view! {
        <label
            class="drop needs-script"
            class:drop-over=move || over.get()
            on:dragover=move |event| {
                event.prevent_default();
                over.set(true);
            }
            on:dragleave=move |_| over.set(false)
            on:drop=dropped
        >
            <input
                class="visually-hidden"
                r#type="file"
                accept="image/*"
                data-testid="upload-input"
                node_ref=field
                on:change=chosen
            />
            <strong>{name}</strong>
            <span>"drop it here, paste it, or choose a file"</span>
            <span class="faint privacy">
                "It goes to the server for its hidden states, is not stored, and is forgotten when the answer is sent."
            </span>
        </label>
        <p class="no-script notice">"Finding features needs scripts: the last step runs in your browser."</p>
    }
}

/// A question that goes with the picture.
#[component]
pub fn PromptField(state: State) -> impl IntoView {
    let commit = move |text: String| {
        let prompt = text.trim().to_owned();
        if prompt != state.address.get_untracked().prompt {
            state.update(|address| {
                address.prompt = prompt;
                address.token = None;
            });
        }
    };
    view! {
        <label class="field needs-script">
            <span>"A question with it "<em>"optional"</em></span>
            <input
                r#type="text"
                data-testid="analyze-prompt"
                placeholder="What is in the picture?"
                autocomplete="off"
                prop:value=move || state.address.get().prompt
                on:change=move |event| commit(event_target_value(&event))
            />
        </label>
    }
}
