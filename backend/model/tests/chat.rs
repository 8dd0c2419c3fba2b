//! Chat templates against what `transformers` makes of them (`fixtures/make_chat.py`).
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose

use minijinja::Value;
use model::chat::{ChatTemplate, Message, Part};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
struct Case {
    template: String,
    name: String,
    add_generation_prompt: bool,
    /// Not `serde_json::Value`, which forgets the order of keys.
    messages: Value,
    rendered: Option<String>,
    /// What the template raised.
    raised: Option<String>,
    /// How Python failed otherwise.
    fails: Option<String>,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat")
}

/// A folder with a template and an empty tokenizer configuration.
fn template(source: &str) -> (tempfile::TempDir, ChatTemplate) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("chat_template.jinja"), source).unwrap();
    let chat = ChatTemplate::load(dir.path()).unwrap();
    (dir, chat)
}

#[test]
fn templates_render_as_transformers_renders_them() {
    let text = std::fs::read_to_string(fixtures().join("golden.json")).unwrap();
    let cases: Vec<Case> = serde_json::from_str(&text).unwrap();
    let mut seen = BTreeSet::new();
    let mut wrong = Vec::new();
    for case in &cases {
        // Python refuses to go through `None`; minijinja takes it for an empty list.
        if case.fails.is_some() && case.name == "nothing" {
            continue;
        }
        let chat = ChatTemplate::load(&fixtures().join(&case.template)).unwrap();
        let ours = chat.render_conversation(&case.messages, case.add_generation_prompt);
        let same = match (&ours, &case.rendered, &case.raised) {
            (Ok(ours), Some(theirs), _) => ours == theirs,
            (Err(error), None, Some(raised)) => {
                let one_line = raised.lines().map(str::trim).collect::<Vec<_>>().join(" ");
                error.to_string() == format!("the chat template failed: {one_line}")
            }
            (Err(_), None, None) => true,
            _ => false,
        };
        if !same {
            let theirs = case.rendered.as_ref().or(case.raised.as_ref()).or(case.fails.as_ref());
            wrong.push(format!(
                "{} of {} (prompt: {})\n  theirs {theirs:?}\n  ours   {ours:?}",
                case.template, case.name, case.add_generation_prompt
            ));
        }
        seen.insert(&case.template);
    }
    assert!(wrong.is_empty(), "{} of {} cases differ:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    assert!(seen.len() >= 10, "only {seen:?}");
}

#[test]
fn one_turn_has_the_picture_first() {
    let chat = ChatTemplate::load(&fixtures().join("llama3")).unwrap();
    let with = chat.render("What is this?", true).unwrap();
    assert!(with.starts_with("<|begin_of_text|>") && chat.bos_token() == "<|begin_of_text|>");
    assert!(with.contains("<|end_header_id|>\n\n<image>\nWhat is this?<|eot_id|>"), "{with}");
    assert!(with.ends_with("<|start_header_id|>assistant<|end_header_id|>\n\n"), "{with}");
    assert!(!chat.render("What is this?", false).unwrap().contains("<image>"));
}

#[test]
fn a_system_turn_reaches_the_template() {
    let chat = ChatTemplate::load(&fixtures().join("llama3")).unwrap();
    let turn = |role: &str, content: Vec<Part>| Message { role: role.into(), content };
    let conversation = [turn("system", vec!["Be terse.".into()]), turn("user", vec![Part::Image, "Why?".into()])];
    let rendered = chat.render_messages(&conversation).unwrap();
    assert!(rendered.contains("system<|end_header_id|>\n\nBe terse.<|eot_id|>"), "{rendered}");
}

#[test]
fn special_tokens_in_the_text_stay() {
    let (_dir, chat) = template("{{ messages[0].content[0].text }}");
    assert_eq!(chat.render("a<|eot_id|>b", false).unwrap(), "a<|eot_id|>b");
}

#[test]
fn today_is_known() {
    let (_dir, chat) = template("{{ strftime_now('%Y') }}|{{ strftime_now('%d %b %Y') | length }}");
    let rendered = chat.render("", false).unwrap();
    let (year, length) = rendered.split_once('|').unwrap();
    assert!(year.parse::<u32>().unwrap() >= 2024, "{rendered}");
    assert_eq!(length, "11");
}

#[test]
fn failures_say_where_in_one_line() {
    let (_dir, chat) = template("one\n{{ messages.absent.attribute }}");
    let error = chat.render("", false).unwrap_err().to_string();
    assert!(error.contains("line 2") && !error.contains('\n'), "{error}");
    let (_dir, chat) = template("one\n\n{% if %}");
    let error = chat.render("", false).unwrap_err().to_string();
    assert!(error.contains("line 3") && !error.contains('\n'), "{error}");
}

#[test]
fn a_folder_without_a_template_takes_raw_prompts_only() {
    let dir = tempfile::tempdir().unwrap();
    let error = ChatTemplate::load(dir.path()).unwrap().render("Hello", false).unwrap_err().to_string();
    assert!(error.contains("chat_template.jinja"), "{error}");
}
