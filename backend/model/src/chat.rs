//! The checkpoint's own chat template, rendered with minijinja. Never a string in our code: published prompts for
//! these models contain mistakes that only the template file decides.

use crate::Error;
use minijinja::{Environment, context};
use std::path::Path;

/// A chat template and the special tokens it may name.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: String,
    bos_token: String,
    eos_token: String,
}

impl ChatTemplate {
    /// Finds the template in `chat_template.jinja`, `chat_template.json` or `tokenizer_config.json`, in this order.
    pub fn load(dir: &Path) -> Result<Self, Error> {
        let settings = read_json(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
        let own = |key: &str| settings[key].as_str().or_else(|| settings[key]["content"].as_str()).map(str::to_string);
        let file = dir.join("chat_template.jinja");
        let source = if file.exists() {
            std::fs::read_to_string(&file).map_err(|source| Error::io(&file, source))?
        } else if let Some(json) = read_json(&dir.join("chat_template.json"))? {
            json["chat_template"].as_str().unwrap_or_default().to_string()
        } else {
            own("chat_template").unwrap_or_default()
        };
        if source.is_empty() {
            return Err(Error::Template(format!(
                "{} has no chat_template.jinja, chat_template.json or tokenizer_config.json with a chat_template",
                dir.display()
            )));
        }
        Ok(Self {
            source,
            bos_token: own("bos_token").unwrap_or_default(),
            eos_token: own("eos_token").unwrap_or_default(),
        })
    }

    /// The prompt of one user turn, with the picture before the words if there is one.
    pub fn render(&self, text: &str, with_image: bool) -> Result<String, Error> {
        let mut content = Vec::new();
        if with_image {
            content.push(context! { type => "image" });
        }
        content.push(context! { type => "text", text => text });
        let messages = [context! { role => "user", content => content }];
        let mut environment = Environment::new();
        // `transformers` renders with both on.
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, message))
        });
        let render = || {
            environment.render_str(
                &self.source,
                context! {
                    messages => messages,
                    add_generation_prompt => true,
                    bos_token => self.bos_token,
                    eos_token => self.eos_token,
                },
            )
        };
        render().map_err(|error| Error::Template(error.to_string()))
    }

    pub fn bos_token(&self) -> &str {
        &self.bos_token
    }
}

/// A JSON file, or `None` if there is none.
fn read_json(path: &Path) -> Result<Option<serde_json::Value>, Error> {
    if !path.exists() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(path).map_err(|source| Error::io(path, source))?;
    serde_json::from_str(&text).map(Some).map_err(|error| Error::bad_file(path, error))
}
