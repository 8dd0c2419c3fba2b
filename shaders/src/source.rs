//! Sizes have one home, the WGSL: the host reads them from there, and replaces the lines marked `// host:`.

/// The literal of `const NAME: u32 = …;`.
///
/// # Panics
/// If the shader has no such line: a mistake in this crate that every test finds.
pub(crate) fn constant(source: &str, name: &str) -> u32 {
    let start = format!("const {name}: u32 = ");
    source
        .lines()
        .find_map(|line| line.strip_prefix(&start)?.split(';').next()?.trim_end_matches('u').parse().ok())
        .unwrap_or_else(|| panic!("the shader has no line `{start}<number>;`"))
}

/// The shader with the value of `const NAME: …; // host:` replaced.
///
/// # Panics
/// If the shader has no such line.
pub(crate) fn with_constant(source: &str, name: &str, value: &str) -> String {
    let start = format!("const {name}:");
    let mut replaced = false;
    let lines: Vec<String> = source
        .lines()
        .map(|line| match line.split_once(" = ") {
            Some((declaration, rest)) if line.starts_with(&start) && rest.ends_with("// host:") => {
                replaced = true;
                format!("{declaration} = {value};")
            }
            _ => line.to_owned(),
        })
        .collect();
    assert!(replaced, "the shader has no line `{start} … // host:`");
    lines.join("\n")
}

/// The shader with its loops `for (var i = 0u; i < COUNT; i++) { // unroll` written out, so that arrays which they index
/// can lie in registers whatever a compiler makes of loops. COUNT is a number or a constant of the shader.
///
/// # Panics
/// If a loop has no end, or its count is none: a mistake in this crate that every test finds.
pub(crate) fn unrolled(source: &str) -> String {
    let lines: Vec<&str> = source.lines().collect();
    let mut text = String::new();
    unroll(source, &lines, &mut Vec::new(), &mut text);
    text
}

/// Appends `lines`; `numbers` are those of the loops around them.
fn unroll<'a>(source: &str, mut lines: &[&'a str], numbers: &mut Vec<(&'a str, u32)>, text: &mut String) {
    while let [line, rest @ ..] = lines {
        lines = rest;
        let indent = &line[..line.len() - line.trim_start().len()];
        let Some(head) = line[indent.len()..].strip_suffix(" // unroll") else {
            push_with_numbers(line, numbers, text);
            continue;
        };
        // for (var i = 0u; i < COUNT; i++) {
        let words: Vec<&str> = head.split([' ', ';']).filter(|word| !word.is_empty()).collect();
        let (name, count) = (words[2], words[7]);
        let count = count.trim_end_matches('u').parse().unwrap_or_else(|_| constant(source, count));
        let ends = |line: &&str| line.strip_prefix(indent) == Some("}");
        let Some(end) = rest.iter().position(ends) else { panic!("`{head}` has no end") };
        for number in 0..count {
            text.push_str("{\n");
            numbers.push((name, number));
            unroll(source, &rest[..end], numbers, text);
            numbers.pop();
            text.push_str("}\n");
        }
        lines = &rest[end + 1..];
    }
}

/// Appends a line with the names of loops replaced.
fn push_with_numbers(line: &str, numbers: &[(&str, u32)], text: &mut String) {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '_' || letter == '.';
    let mut rest = line;
    while !rest.is_empty() {
        let end = rest.find(|letter| !is_part(letter)).unwrap_or(rest.len());
        let (word, other) = rest.split_at(end);
        match numbers.iter().find(|(name, _)| *name == word) {
            Some((_, number)) => text.push_str(&format!("{number}u")),
            None => text.push_str(word),
        }
        let end = other.find(is_part).unwrap_or(other.len());
        text.push_str(&other[..end]);
        rest = &other[end..];
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "const SIDE: u32 = 16;\nconst WIDE: bool = true; // host:\n";

    #[test]
    fn constants_are_read_and_replaced() {
        assert_eq!(constant(SOURCE, "SIDE"), 16);
        assert_eq!(with_constant(SOURCE, "WIDE", "false"), "const SIDE: u32 = 16;\nconst WIDE: bool = false;");
    }

    #[test]
    fn loops_are_written_out() {
        let loops = "const N: u32 = 2;\n  for (var i = 0u; i < N; i++) { // unroll\n    for (var j = 0u; j < 2u; j++) { // unroll\n\
                     a[i] = b.i + ij * j;\n    }\n    c(i);\n  }\nend();\n";
        let inner = |i: u32| {
            let line = |j: u32| format!("{{\na[{i}u] = b.i + ij * {j}u;\n}}\n");
            format!("{{\n{}{}    c({i}u);\n}}\n", line(0), line(1))
        };
        assert_eq!(unrolled(loops), format!("const N: u32 = 2;\n{}{}end();\n", inner(0), inner(1)));
    }

    #[test]
    #[should_panic(expected = "no line `const SIDE: … // host:`")]
    fn a_line_without_the_mark_is_not_replaced() {
        let _ = with_constant(SOURCE, "SIDE", "8");
    }
}
