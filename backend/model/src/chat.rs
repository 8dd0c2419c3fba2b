//! The checkpoint's own chat template, rendered with minijinja. Never a string in our code: published prompts for
//! these models contain mistakes that only the template file decides.
//!
//! Templates are written for jinja2 as `transformers` sets it up; the module `python` holds what minijinja lacks for that.

use crate::Error;
use minijinja::{Value, context};
use serde::Serialize;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A chat template and the special tokens it may name.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    /// Absent: a base model, which takes raw prompts only.
    source: Option<String>,
    dir: PathBuf,
    /// By the names that templates use: `bos_token`, `image_token`, ….
    special_tokens: BTreeMap<String, Value>,
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`, as far as the template knows them.
    pub role: String,
    pub content: Vec<Part>,
}

/// A piece of a turn, in Hugging Face's form: `{"type": "image"}` or `{"type": "text", "text": …}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Part {
    Image,
    Text { text: String },
}

impl From<&str> for Part {
    fn from(text: &str) -> Self {
        Self::Text { text: text.to_string() }
    }
}

impl ChatTemplate {
    /// Finds the template in `chat_template.jinja`, `chat_template.json`, `processor_config.json` or
    /// `tokenizer_config.json`, in this order. A folder without one loads; rendering says what is missing.
    pub fn load(dir: &Path) -> Result<Self, Error> {
        let settings = read_json(&dir.join("tokenizer_config.json"))?;
        let special_tokens = special_tokens(&settings, &read_json(&dir.join("special_tokens_map.json"))?);
        let source = find_source(dir, &settings)?.map(|source| python::template_source(&source));
        Ok(Self { source, dir: dir.to_path_buf(), special_tokens })
    }

    /// The prompt of one user turn, with the picture before the words if there is one.
    pub fn render(&self, text: &str, with_image: bool) -> Result<String, Error> {
        let content = with_image.then_some(Part::Image).into_iter().chain([Part::from(text)]).collect();
        self.render_messages(&[Message { role: "user".into(), content }])
    }

    /// The prompt of a conversation, up to where the model's answer begins.
    ///
    /// # Errors
    /// What the template itself raises (an unknown role, turns in a wrong order) in the template's own words, or
    /// where it fails.
    pub fn render_messages(&self, messages: &[Message]) -> Result<String, Error> {
        self.render_conversation(messages, true)
    }

    /// A conversation in any form that the template reads, as `apply_chat_template` of `transformers` renders it.
    /// `add_generation_prompt`: up to where the model's next answer begins.
    pub fn render_conversation(
        &self,
        messages: &(impl Serialize + ?Sized),
        add_generation_prompt: bool,
    ) -> Result<String, Error> {
        let special_tokens: Value =
            self.special_tokens.iter().map(|(name, token)| (name.as_str(), token.clone())).collect();
        let context = context! {
            messages => Value::from_serialize(messages),
            tools => (),
            documents => (),
            add_generation_prompt => add_generation_prompt,
            ..special_tokens
        };
        let source = self.source.as_ref().ok_or_else(|| {
            Error::Template(format!(
                "{} has no chat_template.jinja, chat_template.json or tokenizer_config.json with a chat_template",
                self.dir.display()
            ))
        })?;
        let rendered = python::environment().render_str(source, context);
        rendered.map_err(|error| match python::raised(&error) {
            Some(message) => Error::TemplateRefused(message),
            None => Error::Template(python::reason(&error)),
        })
    }

    /// Empty if the tokenizer has none.
    pub fn bos_token(&self) -> &str {
        self.special_tokens.get("bos_token").and_then(Value::as_str).unwrap_or_default()
    }
}

/// A JSON file, or `null` if there is none.
pub(crate) fn read_json(path: &Path) -> Result<Json, Error> {
    if !path.exists() {
        return Ok(Json::Null);
    }
    let text = std::fs::read_to_string(path).map_err(|source| Error::io(path, source))?;
    serde_json::from_str(&text).map_err(|error| Error::bad_file(path, error))
}

/// The text of the first template that a checkpoint folder names.
fn find_source(dir: &Path, settings: &Json) -> Result<Option<String>, Error> {
    let file = dir.join("chat_template.jinja");
    if file.exists() {
        return std::fs::read_to_string(&file).map(Some).map_err(|source| Error::io(&file, source));
    }
    for name in ["chat_template.json", "processor_config.json"] {
        if let Some(source) = default_template(&read_json(&dir.join(name))?) {
            return Ok(Some(source));
        }
    }
    Ok(default_template(settings))
}

/// `chat_template`: a text, or a list of `{name, template}` in which one is called `default`.
fn default_template(settings: &Json) -> Option<String> {
    let template = &settings["chat_template"];
    let named = || template.as_array()?.iter().find(|entry| entry["name"] == "default")?["template"].as_str();
    template.as_str().or_else(named).map(str::to_string)
}

/// The special tokens that `transformers` hands to a template. `legacy` is `special_tokens_map.json`, which counts
/// only beside a `tokenizer_config.json` of before the `added_tokens_decoder`. Absent and empty ones are left out.
fn special_tokens(settings: &Json, legacy: &Json) -> BTreeMap<String, Value> {
    const NAMES: [&str; 7] =
        ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
    let files = if settings["added_tokens_decoder"].is_null() { vec![legacy, settings] } else { vec![settings] };
    // A token is a text or the fields of an `AddedToken`.
    let text = |token: &Json| {
        let text = token.as_str().or_else(|| token["content"].as_str())?;
        (!text.is_empty()).then(|| text.to_string())
    };
    let mut tokens = BTreeMap::new();
    for name in NAMES {
        if let Some(token) = files.iter().find_map(|file| text(&file[name])) {
            tokens.insert(name.to_string(), Value::from(token));
        }
    }
    for (name, token) in settings["extra_special_tokens"].as_object().into_iter().flatten() {
        if let Some(token) = text(token) {
            tokens.insert(name.clone(), Value::from(token));
        }
    }
    let mut additional: Vec<String> = Vec::new();
    for file in files.iter().rev() {
        for token in file["additional_special_tokens"].as_array().into_iter().flatten().filter_map(text) {
            if !additional.contains(&token) {
                additional.push(token);
            }
        }
    }
    if !additional.is_empty() {
        tokens.insert("additional_special_tokens".into(), Value::from(additional));
    }
    tokens
}

/// What templates take for granted of Python and of jinja2 as `transformers` sets it up, where minijinja differs.
mod python {
    use minijinja::value::{Kwargs, Value, ValueKind};
    use minijinja::{Environment, Error, ErrorKind, Output, State, UndefinedBehavior, filters};

    /// The template with Python's line ends, and with `{% generation %}` blocks (which mark the model's words for
    /// training and print what they enclose) as `{% with %}` blocks, which have the same scope and spacing.
    pub fn template_source(source: &str) -> String {
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        let mut out = String::with_capacity(source.len());
        let mut rest = source.as_str();
        while let Some(start) = rest.find("{%") {
            let (before, tag) = rest.split_at(start + 2);
            out.push_str(before);
            rest = tag;
            let name = tag.strip_prefix(['-', '+']).unwrap_or(tag).trim_start();
            for (from, to) in [("generation", "with"), ("endgeneration", "endwith")] {
                let Some(after) = name.strip_prefix(from) else { continue };
                let end = after.trim_start();
                if end.strip_prefix(['-', '+']).unwrap_or(end).starts_with("%}") {
                    out.push_str(&tag[..tag.len() - name.len()]);
                    out.push_str(to);
                    rest = after;
                }
            }
        }
        out + rest
    }

    /// Everything but the template.
    pub fn environment() -> Environment<'static> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        // jinja2's own `Undefined`: prints nothing, is false and empty, but has no attributes.
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_formatter(print);
        environment.set_unknown_method_callback(method);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", tojson);
        environment.add_filter("string", string);
        environment.add_filter("length", length);
        environment.add_filter("count", length);
        environment.add_filter("first", first);
        environment.add_filter("last", last);
        environment.add_test("iterable", is_iterable);
        environment.add_test("sequence", is_sequence);
        environment.add_test("number", is_number);
        environment
    }

    /// Marks an error as the template's own.
    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Raised(String);

    /// What the template raised itself, in one line.
    pub fn raised(error: &Error) -> Option<String> {
        let mut causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
        causes.find_map(|cause| cause.downcast_ref::<Raised>()).map(|Raised(message)| one_line(message))
    }

    /// What failed in which line of the template, in one line.
    pub fn reason(error: &Error) -> String {
        let detail = error.detail().map(|detail| format!(": {detail}")).unwrap_or_default();
        let line = error.line().map(|line| format!(" (line {line} of the template)")).unwrap_or_default();
        one_line(&format!("{}{detail}{line}", error.kind()))
    }

    fn one_line(text: &str) -> String {
        text.lines().map(str::trim).collect::<Vec<_>>().join(" ")
    }

    fn raise_exception(message: String) -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
    }

    /// The local date and time, as C's `strftime` writes it.
    fn strftime_now(pattern: String) -> Result<String, Error> {
        jiff::fmt::strtime::format(&pattern, &jiff::Zoned::now())
            .map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now({pattern:?}): {error}")))
    }

    /// `{{ value }}`
    fn print(out: &mut Output<'_>, _: &State<'_, '_>, value: &Value) -> Result<(), Error> {
        match value.as_str() {
            Some(text) => out.write_str(text).map_err(Error::from),
            None => out.write_str(&str(value)).map_err(Error::from),
        }
    }

    fn string(value: &Value) -> String {
        str(value)
    }

    fn length(value: &Value) -> Result<usize, Error> {
        if value.is_undefined() { Ok(0) } else { filters::length(value) }
    }

    fn first(value: &Value) -> Result<Value, Error> {
        if value.is_undefined() { Ok(Value::UNDEFINED) } else { filters::first(value) }
    }

    fn last(value: Value) -> Result<Value, Error> {
        if value.is_undefined() { Ok(value) } else { filters::last(value) }
    }

    fn is_iterable(value: &Value) -> bool {
        !value.is_none() && value.try_iter().is_ok()
    }

    fn is_sequence(value: &Value) -> bool {
        matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Undefined)
    }

    fn is_number(value: &Value) -> bool {
        matches!(value.kind(), ValueKind::Number | ValueKind::Bool)
    }

    /// Methods of Python's `str`, `list` and `dict`.
    fn method(state: &State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
        let one_text = if let [only] = args { only.as_str() } else { None };
        if let (Some(text), Some(part)) = (value.as_str(), one_text) {
            // Positions count characters.
            let position = |byte: Option<usize>| byte.map_or(-1, |byte| text[..byte].chars().count() as i64);
            match name {
                "find" => return Ok(Value::from(position(text.find(part)))),
                "rfind" => return Ok(Value::from(position(text.rfind(part)))),
                "removeprefix" => return Ok(Value::from(text.strip_prefix(part).unwrap_or(text))),
                "removesuffix" => return Ok(Value::from(text.strip_suffix(part).unwrap_or(text))),
                _ => {}
            }
        }
        // `isdigit` and its like are false of an empty text.
        if value.as_str() == Some("") && args.is_empty() && name.starts_with("is") && name != "isascii" {
            return Ok(Value::from(false));
        }
        minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
    }

    /// `str(value)`
    fn str(value: &Value) -> String {
        match value.as_str() {
            Some(text) => text.to_string(),
            None if value.is_undefined() => String::new(),
            None => repr(value),
        }
    }

    /// `repr(value)`; a tuple is shown as a list.
    fn repr(value: &Value) -> String {
        let items = || value.try_iter().into_iter().flatten();
        match value.kind() {
            ValueKind::None => "None".into(),
            ValueKind::Bool => (if value.is_true() { "True" } else { "False" }).into(),
            ValueKind::Number => number(value),
            ValueKind::String => quoted(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                format!("[{}]", items().map(|item| repr(&item)).collect::<Vec<_>>().join(", "))
            }
            ValueKind::Map => {
                let entry = |key: Value| format!("{}: {}", repr(&key), repr(&value.get_item(&key).unwrap_or_default()));
                format!("{{{}}}", items().map(entry).collect::<Vec<_>>().join(", "))
            }
            _ => value.to_string(),
        }
    }

    fn quoted(text: &str) -> String {
        let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
        let mut out = String::from(quote);
        for c in text.chars() {
            match c {
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                c if c == '\\' || c == quote => out.extend(['\\', c]),
                c if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
                c => out.push(c),
            }
        }
        out.push(quote);
        out
    }

    /// Fractions with the fewest digits that mean the same number, with an exponent from 1e16 and below 1e-4.
    fn number(value: &Value) -> String {
        if value.is_integer() {
            return value.to_string();
        }
        let Ok(number) = f64::try_from(value.clone()) else { return value.to_string() };
        if number.is_nan() {
            return "nan".into();
        }
        let scientific = format!("{number:e}");
        let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
        match exponent.parse::<i32>() {
            Ok(exponent) if !(-4..16).contains(&exponent) => {
                let sign = if exponent < 0 { '-' } else { '+' };
                format!("{digits}e{sign}{:02}", exponent.abs())
            }
            _ if number.fract() == 0.0 => format!("{number:.1}"),
            _ => number.to_string(),
        }
    }

    /// `json.dumps(value, ensure_ascii=False)` and its options. jinja2's own filter escapes HTML; this one does not.
    fn tojson(
        value: &Value,
        ensure_ascii: Option<bool>,
        indent: Option<Value>,
        separators: Option<Vec<String>>,
        options: Kwargs,
    ) -> Result<String, Error> {
        let ascii = ensure_ascii.or(options.get("ensure_ascii")?).unwrap_or(false);
        let indent = indent.or(options.get("indent")?).map(|indent| match indent.as_str() {
            Some(text) => text.to_string(),
            None => " ".repeat(usize::try_from(indent).unwrap_or(0)),
        });
        let separators = separators.or(options.get("separators")?);
        let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
        options.assert_all_used()?;
        let (item, key) = match separators.as_deref() {
            Some([item, key]) => (item.clone(), key.clone()),
            Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "separators must be two texts")),
            None => (if indent.is_some() { "," } else { ", " }.into(), ": ".into()),
        };
        let mut json = JsonWriter { out: String::new(), ascii, indent, item, key, sort_keys };
        json.value(value, 0)?;
        Ok(json.out)
    }

    struct JsonWriter {
        out: String,
        ascii: bool,
        indent: Option<String>,
        /// Between items.
        item: String,
        /// Between a key and its value.
        key: String,
        sort_keys: bool,
    }

    impl JsonWriter {
        fn value(&mut self, value: &Value, level: usize) -> Result<(), Error> {
            match value.kind() {
                ValueKind::String => self.text(value.as_str().unwrap_or_default()),
                ValueKind::Seq | ValueKind::Iterable => {
                    let items = value.try_iter()?.map(|item| (None, item)).collect();
                    self.items(['[', ']'], items, level)?;
                }
                ValueKind::Map => {
                    let mut items = Vec::new();
                    for key in value.try_iter()? {
                        items.push((Some(key_text(&key)?), value.get_item(&key)?));
                    }
                    if self.sort_keys {
                        items.sort_by(|(a, _), (b, _)| a.cmp(b));
                    }
                    self.items(['{', '}'], items, level)?;
                }
                _ => self.out.push_str(&scalar(value)?),
            }
            Ok(())
        }

        fn items(
            &mut self,
            brackets: [char; 2],
            items: Vec<(Option<String>, Value)>,
            level: usize,
        ) -> Result<(), Error> {
            self.out.push(brackets[0]);
            for (position, (key, value)) in items.iter().enumerate() {
                if position > 0 {
                    self.out.push_str(&self.item);
                }
                self.new_line(level + 1);
                if let Some(key) = key {
                    self.text(key);
                    self.out.push_str(&self.key);
                }
                self.value(value, level + 1)?;
            }
            if !items.is_empty() {
                self.new_line(level);
            }
            self.out.push(brackets[1]);
            Ok(())
        }

        fn new_line(&mut self, level: usize) {
            if let Some(indent) = &self.indent {
                self.out.push('\n');
                self.out.push_str(&indent.repeat(level));
            }
        }

        fn text(&mut self, text: &str) {
            self.out.push('"');
            for c in text.chars() {
                match c {
                    '"' | '\\' => self.out.extend(['\\', c]),
                    '\n' => self.out.push_str("\\n"),
                    '\r' => self.out.push_str("\\r"),
                    '\t' => self.out.push_str("\\t"),
                    '\u{8}' => self.out.push_str("\\b"),
                    '\u{c}' => self.out.push_str("\\f"),
                    c if c < ' ' || (self.ascii && !(' '..='~').contains(&c)) => {
                        for unit in c.encode_utf16(&mut [0; 2]) {
                            self.out.push_str(&format!("\\u{unit:04x}"));
                        }
                    }
                    c => self.out.push(c),
                }
            }
            self.out.push('"');
        }
    }

    /// JSON's word for what is neither a text nor a list nor a map.
    fn scalar(value: &Value) -> Result<String, Error> {
        match value.kind() {
            ValueKind::None => Ok("null".into()),
            ValueKind::Bool => Ok((if value.is_true() { "true" } else { "false" }).into()),
            ValueKind::Number => Ok(match number(value).as_str() {
                "nan" => "NaN".into(),
                "inf" => "Infinity".into(),
                "-inf" => "-Infinity".into(),
                digits => digits.to_string(),
            }),
            kind => {
                let message = format!("tojson: a value of type {kind} has no JSON form");
                Err(Error::new(ErrorKind::BadSerialization, message))
            }
        }
    }

    fn key_text(key: &Value) -> Result<String, Error> {
        key.as_str().map_or_else(|| scalar(key), |text| Ok(text.to_string()))
    }
}
