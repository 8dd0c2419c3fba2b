//! Token ids back to text, as `tokenizer.decode(ids, skip_special_tokens=True)` of `transformers`.

use crate::Error;
use crate::chat::read_json;
use crate::lmm::Lmm;
use burn::tensor::backend::Backend;
use std::path::Path;

/// What `clean_up_tokenization_spaces` replaces, in this order.
const CLEANED: [(&str, &str); 10] = [
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
];

/// Whether `tokenizer_config.json` in `dir` asks for spaces to be cleaned up; `transformers` does not unless told.
pub(crate) fn cleans_up_spaces(dir: &Path) -> Result<bool, Error> {
    let settings = read_json(&dir.join("tokenizer_config.json"))?;
    Ok(settings["clean_up_tokenization_spaces"].as_bool().unwrap_or_default())
}

fn clean_up_spaces(text: String) -> String {
    CLEANED.iter().fold(text, |text, (from, to)| text.replace(from, to))
}

impl<B: Backend> Lmm<B> {
    /// The text of these tokens, special ones left out. Bytes that make no whole character are `U+FFFD`.
    ///
    /// # Errors
    /// A tokenizer that cannot decode.
    pub fn decode(&self, ids: &[u32]) -> Result<String, Error> {
        let text = self.decode_as_it_stands(ids)?;
        Ok(if self.clean_up_spaces { clean_up_spaces(text) } else { text })
    }

    /// Without the clean-up of spaces, which may change what has been told already.
    fn decode_as_it_stands(&self, ids: &[u32]) -> Result<String, Error> {
        self.tokenizer.decode(ids, true).map_err(|error| Error::Tokenizer(error.to_string()))
    }

    /// What the tokens add to the first `told` bytes of their text, and how many bytes are told then. Nothing while the
    /// text ends inside a character, unless it ends for good (`last`).
    pub(crate) fn new_text(&self, ids: &[u32], told: usize, last: bool) -> Result<(String, usize), Error> {
        let text = self.decode_as_it_stands(ids)?;
        if text.ends_with('\u{fffd}') && !last {
            return Ok((String::new(), told));
        }
        Ok((tail(&text, told).to_string(), text.len()))
    }
}

/// From byte `start` on, or from the next character: bytes that came later may have made others of the earlier ones.
fn tail(text: &str, start: usize) -> &str {
    (start..text.len()).find_map(|start| text.get(start..)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spaces_are_cleaned_up_as_by_transformers() {
        // PreTrainedTokenizerBase.clean_up_tokenization of the same texts.
        for (text, expected) in [
            ("Hello , world ! Is it ? Yes .", "Hello, world! Is it? Yes."),
            (
                "I 'm sure it 's what they 've said ; we 're not , do n't",
                "I'm sure it's what they've said ; we're not, don't",
            ),
            ("rock ' n ' roll", "rock'n'roll"),
            ("a .b", "a.b"),
        ] {
            assert_eq!(clean_up_spaces(text.to_string()), expected);
        }
    }

    #[test]
    fn a_tail_begins_with_a_whole_character() {
        assert_eq!(tail("a\u{fffd}b", 1), "\u{fffd}b");
        assert_eq!(tail("a\u{fffd}b", 2), "b");
        assert_eq!(tail("ab", 2), "");
        assert_eq!(tail("ab", 5), "");
    }
}
