//! Short names for imports. wasm-bindgen's end in 16 hexadecimal digits, which no compression makes shorter, and stand
//! in the wasm and in the JavaScript once each.

use super::module::Module;
use std::{
    collections::{BTreeMap, HashSet},
    ops::Range,
};

/// New names of imports.
pub struct ShortNames<'a> {
    /// The module whose imports are renamed.
    module: String,
    /// Old name to new name, and the old one's place in the script.
    names: BTreeMap<&'a str, (String, Range<usize>)>,
}

impl<'a> ShortNames<'a> {
    /// Names for the imports from `module`, as far as `script` has each of them exactly once, as an object's key.
    pub fn choose(wasm: &Module<'a>, module: &str, script: &str) -> Self {
        let imports = wasm.imports.iter().filter(|(from, _)| *from == module).map(|(_, name)| *name);
        let mut places: BTreeMap<&str, Vec<Range<usize>>> = imports.map(|name| (name, Vec::new())).collect();
        for word in words(script) {
            if let Some(places) = places.get_mut(&script[word.clone()]) {
                places.push(word);
            }
        }
        let mut taken: HashSet<&str> = HashSet::new();
        let mut renamed = Vec::new();
        for (name, places) in &places {
            match places.as_slice() {
                [place] if script[place.end..].starts_with(':') => renamed.push((*name, place.clone())),
                _ => {
                    taken.insert(name);
                }
            }
        }
        let mut short = (0..).map(letters).filter(|name| !taken.contains(name.as_str()));
        let names = renamed.into_iter().zip(&mut short).map(|((old, place), new)| (old, (new, place))).collect();
        Self { module: module.into(), names }
    }

    /// The name that an import has from now on.
    pub fn of<'n>(&'n self, module: &str, name: &'n str) -> &'n str {
        match self.names.get(name) {
            Some((new, _)) if module == self.module => new,
            _ => name,
        }
    }

    /// The script with the new names.
    pub fn rename(&self, script: &str) -> String {
        let mut edits: Vec<(&Range<usize>, &str)> = self.names.values().map(|(new, place)| (place, &**new)).collect();
        edits.sort_by_key(|(place, _)| place.start);
        let mut renamed = String::with_capacity(script.len());
        let mut copied = 0;
        for (place, new) in edits {
            renamed.push_str(&script[copied..place.start]);
            renamed.push_str(new);
            copied = place.end;
        }
        renamed.push_str(&script[copied..]);
        renamed
    }
}

/// Places of identifiers, keywords and numbers, in code, strings and comments alike.
fn words(script: &str) -> impl Iterator<Item = Range<usize>> {
    let belongs = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$' || !c.is_ascii();
    let mut end = 0;
    std::iter::from_fn(move || {
        let start = end + script[end..].find(belongs)?;
        end = start + script[start..].find(|c| !belongs(c)).unwrap_or(script.len() - start);
        Some(start..end)
    })
}

/// `a` … `z`, `aa` … `zz`, `aaa` …
fn letters(mut number: u32) -> String {
    let mut letters = Vec::new();
    loop {
        letters.push(char::from(b'a' + (number % 26) as u8));
        match (number / 26).checked_sub(1) {
            Some(more) => number = more,
            None => return letters.iter().rev().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module<'a>(imports: &[(&'a str, &'a str)]) -> Module<'a> {
        Module {
            wasm: &[],
            parameters: Vec::new(),
            imports: imports.to_vec(),
            imported_functions: imports.len() as u32,
            functions: Vec::new(),
        }
    }

    #[test]
    fn only_keys_that_stand_alone_are_renamed() {
        let module = module(&[
            ("./p.js", "__wbg_then_3a"),
            ("./p.js", "__wbg_new_bb"),
            ("./p.js", "a"),
            ("./p.js", "twice"),
            ("./p.js", "quoted"),
            ("./p.js", "missing"),
            ("./other.js", "elsewhere"),
        ]);
        let script = "x = { __wbg_then_3a: function(a) { a.__wbg_new_bb_2(twice) }, twice: 1, 'quoted': 2, \
                      elsewhere: 3,\n __wbg_new_bb: é };";
        let names = ShortNames::choose(&module, "./p.js", script);
        assert_eq!(
            names.rename(script),
            "x = { c: function(a) { a.__wbg_new_bb_2(twice) }, twice: 1, 'quoted': 2, elsewhere: 3,\n b: é };"
        );
        assert_eq!(names.of("./p.js", "__wbg_then_3a"), "c");
        assert_eq!(names.of("./p.js", "__wbg_new_bb"), "b");
        assert_eq!(names.of("./other.js", "__wbg_new_bb"), "__wbg_new_bb");
        for kept in ["a", "twice", "quoted", "missing"] {
            assert_eq!(names.of("./p.js", kept), kept);
        }
    }

    #[test]
    fn letters_never_repeat() {
        let names: Vec<String> = (0..1000).map(letters).collect();
        assert_eq!((&*names[0], &*names[25], &*names[26], &*names[701], &*names[702]), ("a", "z", "aa", "zz", "aaa"));
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
    }
}
