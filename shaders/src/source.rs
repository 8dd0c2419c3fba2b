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
    #[should_panic(expected = "no line `const SIDE: … // host:`")]
    fn a_line_without_the_mark_is_not_replaced() {
        let _ = with_constant(SOURCE, "SIDE", "8");
    }
}
