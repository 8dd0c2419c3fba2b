//! From text to [`Tree`] (RFC 8259).
//!
//! A number with a fraction or an exponent is its first nineteen digits times a power of ten, each rounded once: exact up
//! to fifteen digits and 10^±22, which is what a float that was written in its shortest form as `f32` has, and else off by
//! a few units in the last place of an `f64`.

use super::{Error, Tree};

/// Lists and objects within each other.
const DEPTH: u32 = 128;

/// All powers of ten that an `f64` holds exactly.
const TENS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20,
    1e21, 1e22,
];

/// The value that `text` is.
///
/// # Errors
/// The text is not JSON; the error says what was expected at which byte.
pub fn tree(text: &str) -> Result<Tree, Error> {
    let mut parser = Parser { text, at: 0 };
    let tree = parser.value(DEPTH)?;
    parser.space();
    if parser.at < text.len() { Err(parser.expected("the end")) } else { Ok(tree) }
}

struct Parser<'a> {
    text: &'a str,
    /// Byte that comes next; always at the beginning of a character.
    at: usize,
}

impl Parser<'_> {
    #[cold]
    fn expected(&self, what: &str) -> Error {
        let (line, column) = self.text.as_bytes()[..self.at]
            .iter()
            .fold((1, 1), |(line, column), byte| if *byte == b'\n' { (line + 1, 1) } else { (line, column + 1) });
        Error(format!("expected {what} at line {line} column {column}"))
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Goes on if `byte` comes next.
    fn eat(&mut self, byte: u8) -> bool {
        let is_next = self.peek() == Some(byte);
        self.at += usize::from(is_next);
        is_next
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn value(&mut self, depth: u32) -> Result<Tree, Error> {
        self.space();
        match self.peek() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.list(depth),
            Some(b'"') => self.text().map(Tree::Text),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => {
                for (word, tree) in [("null", Tree::Null), ("true", Tree::Bool(true)), ("false", Tree::Bool(false))] {
                    if self.text[self.at..].starts_with(word) {
                        self.at += word.len();
                        return Ok(tree);
                    }
                }
                Err(self.expected("a value"))
            }
        }
    }

    fn deeper(&self, depth: u32) -> Result<u32, Error> {
        depth.checked_sub(1).ok_or_else(|| self.expected("less depth"))
    }

    fn list(&mut self, depth: u32) -> Result<Tree, Error> {
        let depth = self.deeper(depth)?;
        self.at += 1;
        let mut list = Vec::new();
        self.space();
        if self.eat(b']') {
            return Ok(Tree::List(list));
        }
        loop {
            list.push(self.value(depth)?);
            self.space();
            if self.eat(b']') {
                return Ok(Tree::List(list));
            }
            if !self.eat(b',') {
                return Err(self.expected("`,` or `]`"));
            }
        }
    }

    fn object(&mut self, depth: u32) -> Result<Tree, Error> {
        let depth = self.deeper(depth)?;
        self.at += 1;
        let mut members = Vec::new();
        self.space();
        if self.eat(b'}') {
            return Ok(Tree::Object(members));
        }
        loop {
            self.space();
            if self.peek() != Some(b'"') {
                return Err(self.expected("a name"));
            }
            let name = self.text()?;
            self.space();
            if !self.eat(b':') {
                return Err(self.expected("`:`"));
            }
            members.push((name, self.value(depth)?));
            self.space();
            if self.eat(b'}') {
                return Ok(Tree::Object(members));
            }
            if !self.eat(b',') {
                return Err(self.expected("`,` or `}`"));
            }
        }
    }

    fn text(&mut self) -> Result<String, Error> {
        self.at += 1;
        let mut out = String::new();
        loop {
            let begin = self.at;
            while self.peek().is_some_and(|byte| byte >= b' ' && byte != b'"' && byte != b'\\') {
                self.at += 1;
            }
            out.push_str(&self.text[begin..self.at]);
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(out);
                }
                Some(b'\\') => {
                    self.at += 1;
                    out.push(self.escape()?);
                }
                _ => return Err(self.expected("the end of a text")),
            }
        }
    }

    /// What comes after a backslash.
    fn escape(&mut self) -> Result<char, Error> {
        let character = match self.peek() {
            Some(byte @ (b'"' | b'\\' | b'/')) => char::from(byte),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                self.at += 1;
                return self.unicode();
            }
            _ => return Err(self.expected("an escape")),
        };
        self.at += 1;
        Ok(character)
    }

    /// `XXXX`, or `XXXX\uXXXX` for a character outside the first plane.
    fn unicode(&mut self) -> Result<char, Error> {
        let mut code = self.hex()?;
        if (0xD800..0xDC00).contains(&code) && self.eat(b'\\') && self.eat(b'u') {
            let low = self.hex()?;
            if !(0xDC00..0xE000).contains(&low) {
                return Err(self.expected("the second half of a character"));
            }
            code = 0x1_0000 + ((code - 0xD800) << 10) + (low - 0xDC00);
        }
        char::from_u32(code).ok_or_else(|| self.expected("the second half of a character"))
    }

    fn hex(&mut self) -> Result<u32, Error> {
        let mut code = 0;
        for _ in 0..4 {
            let digit = self.peek().and_then(|byte| char::from(byte).to_digit(16));
            code = code * 16 + digit.ok_or_else(|| self.expected("four hexadecimal digits"))?;
            self.at += 1;
        }
        Ok(code)
    }

    fn number(&mut self) -> Result<Tree, Error> {
        let negative = self.eat(b'-');
        let leads_with_zero = self.peek() == Some(b'0');
        let mut digits = Digits::default();
        let whole = self.digits(&mut digits)?;
        if leads_with_zero && whole > 1 {
            return Err(self.expected("a number without leading zeros"));
        }
        let mut exponent = 0;
        let mut is_whole = true;
        if self.eat(b'.') {
            is_whole = false;
            exponent = -self.digits(&mut digits)?;
        }
        if self.eat(b'e') || self.eat(b'E') {
            is_whole = false;
            let falls = self.eat(b'-');
            if !falls {
                self.eat(b'+');
            }
            let mut power = Digits::default();
            self.digits(&mut power)?;
            let size = i32::try_from(power.value).unwrap_or(9_999).min(9_999);
            exponent += if falls { -size } else { size };
        }
        if is_whole && digits.dropped == 0 {
            if !negative {
                return Ok(Tree::Unsigned(digits.value));
            }
            // `-0` is a float, as for `serde_json`.
            if let Some(value) = 0_i64.checked_sub_unsigned(digits.value).filter(|value| *value != 0) {
                return Ok(Tree::Signed(value));
            }
        }
        let value = scale(digits.value as f64, exponent + digits.dropped);
        if value.is_infinite() {
            return Err(self.expected("a smaller number"));
        }
        Ok(Tree::Float(if negative { -value } else { value }))
    }

    /// At least one digit; returns how many.
    fn digits(&mut self, into: &mut Digits) -> Result<i32, Error> {
        let begin = self.at;
        while let Some(digit @ b'0'..=b'9') = self.peek() {
            into.push(digit - b'0');
            self.at += 1;
        }
        if self.at == begin {
            return Err(self.expected("a digit"));
        }
        Ok(i32::try_from(self.at - begin).unwrap_or(i32::MAX / 2))
    }
}

/// The digits of a number as far as they fit.
#[derive(Default)]
struct Digits {
    value: u64,
    /// Digits that no longer fitted.
    dropped: i32,
}

impl Digits {
    fn push(&mut self, digit: u8) {
        let longer = self.value.checked_mul(10).and_then(|value| value.checked_add(u64::from(digit)));
        match longer.filter(|_| self.dropped == 0) {
            Some(value) => self.value = value,
            None => self.dropped = self.dropped.saturating_add(1),
        }
    }
}

/// `value` · 10^`exponent`.
fn scale(mut value: f64, exponent: i32) -> f64 {
    let mut left = exponent.unsigned_abs().min(700) as usize;
    while left > 0 && value != 0.0 {
        let step = left.min(TENS.len() - 1);
        value = if exponent < 0 { value / TENS[step] } else { value * TENS[step] };
        left -= step;
    }
    value
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose
    use super::*;
    use serde_json::Value;

    /// The same as a `serde_json` value.
    fn value(tree: Tree) -> Value {
        match tree {
            Tree::Null => Value::Null,
            Tree::Bool(value) => value.into(),
            Tree::Unsigned(value) => value.into(),
            Tree::Signed(value) => value.into(),
            Tree::Float(value) => value.into(),
            Tree::Text(value) => value.into(),
            Tree::List(list) => list.into_iter().map(value).collect(),
            Tree::Object(members) => members.into_iter().map(|(name, member)| (name, value(member))).collect(),
        }
    }

    #[test]
    fn it_reads_and_refuses_what_serde_json_reads_and_refuses() {
        let deep = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        let cases = [
            "null",
            "true",
            "false",
            " [ ] ",
            "{}",
            "{ \"a\" : [1, -2, {}], \"b\\n\": \"\" }",
            "0",
            "-0",
            "-1",
            "10",
            "18446744073709551615",
            "18446744073709551616",
            "-9223372036854775808",
            "-9223372036854775809",
            "1.5",
            "-0.25e2",
            "1e5",
            "1E+2",
            "1e-7",
            "1e-400",
            "1e400",
            "123456789012345678901234567890",
            "0.1",
            "1e22",
            "\"\\u00e9\\ud83d\\ude00\\/\\b\\f\\n\\r\\t\\\\\\\"é😀\"",
            "\"\\ud800\"",
            "\"\\ud800\\u0041\"",
            "\"\\udc00\"",
            "\"\\x\"",
            "\"\\u12g4\"",
            "\"\n\"",
            "\"",
            "[1,]",
            "[1 2]",
            "[",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{a:1}",
            "01",
            "-",
            "1.",
            ".5",
            "+1",
            "1e",
            "1e+",
            "--1",
            "nul",
            "truex",
            "1 1",
            "",
            "  ",
            "]",
            "\u{feff}1",
            &deep(127),
            &deep(200),
        ];
        for text in cases {
            match serde_json::from_str::<Value>(text) {
                Ok(wanted) => assert_eq!(tree(text).map(value), Ok(wanted), "{text}"),
                Err(_) => assert!(tree(text).is_err(), "{text} was read as {:?}", tree(text)),
            }
        }
    }

    #[test]
    fn floats_that_were_written_in_their_shortest_form_come_back() {
        let mut bits = 1_u32;
        for _ in 0..20_000 {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let single = f32::from_bits(bits);
            if !single.is_finite() {
                continue;
            }
            let text = serde_json::to_string(&single).unwrap();
            let read = match tree(&text).unwrap() {
                Tree::Float(value) => value as f32,
                other => panic!("{text} was read as {other:?}"),
            };
            assert_eq!(read, single, "{text}");
            let double = f64::from(single) * 1.000_000_1;
            let text = serde_json::to_string(&double).unwrap();
            let Tree::Float(read) = tree(&text).unwrap() else { panic!("{text} is no float") };
            assert!((read - double).abs() <= double.abs() * 1e-14, "{text} became {read}");
        }
    }

    #[test]
    fn an_error_says_where() {
        assert_eq!(tree("{\n  \"a\": x}").unwrap_err().to_string(), "expected a value at line 2 column 8");
    }
}
