//! Numbers for people, three significant digits, thousands separated, unit always; and numbers that people wrote.

/// A finite number out of an address or a field.
pub fn number(text: &str) -> Option<f64> {
    let text = text.trim();
    // In the browser the browser reads it: Rust's reader brings a table of ten kilobytes.
    #[cfg(target_arch = "wasm32")]
    let value = (!text.is_empty()).then(|| wasm_bindgen::JsValue::from_str(text).unchecked_into_f64());
    #[cfg(not(target_arch = "wasm32"))]
    let value = text.parse().ok();
    value.filter(|value: &f64| value.is_finite())
}

/// Three significant digits: `12.3`, `0.0421`, `1,230`.
pub fn sig3(value: f32) -> String {
    let value = f64::from(value);
    if !value.is_finite() {
        return "–".into();
    }
    if value == 0.0 {
        return "0".into();
    }
    let magnitude = value.abs().log10().floor() as i32;
    if magnitude < -4 {
        return format!("{value:.2e}");
    }
    let decimals = usize::try_from(2 - magnitude).unwrap_or(0);
    if magnitude < 3 {
        return format!("{value:.decimals$}");
    }
    let sign = if value < 0.0 { "-" } else { "" };
    format!("{sign}{}", count(value.abs().round() as u64))
}

/// A share of one as a percentage with three significant digits: `0.421%`.
pub fn percent(share: f32) -> String {
    let percent = share * 100.0;
    if percent >= 99.95 { "100%".into() } else { format!("{}%", sig3(percent)) }
}

/// Thousands separated: `3,072`.
pub fn count(value: impl Into<u64>) -> String {
    let digits = value.into().to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes in the unit people read: `2.41 MB`.
pub fn bytes(value: u64) -> String {
    match value {
        0..1_000 => format!("{value} B"),
        1_000..1_000_000 => format!("{} kB", sig3(value as f32 / 1e3)),
        1_000_000..1_000_000_000 => format!("{} MB", sig3(value as f32 / 1e6)),
        _ => format!("{} GB", sig3(value as f32 / 1e9)),
    }
}

/// A feature's name where there is no label.
pub fn name_or_index(label: Option<&str>, index: u32) -> String {
    label.filter(|label| !label.is_empty()).map_or_else(|| format!("feature {index}"), str::to_owned)
}

/// A token as people can see it: white space made visible.
pub fn visible_token(token: &str) -> String {
    let token = token.replace(['\u{120}', '\u{2581}'], " ").replace('\u{10a}', "\n");
    let token = token.replace('\n', "↵");
    match token.as_str() {
        "" => "∅".into(),
        only if only.trim().is_empty() => "␣".repeat(only.chars().count()),
        _ => token,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_significant_digits_over_the_whole_range() {
        let cases = [
            (0.0, "0"),
            (1.0, "1.00"),
            (12.345, "12.3"),
            (123.45, "123"),
            (1234.5, "1,235"),
            (0.012_345, "0.0123"),
            (-0.5, "-0.500"),
            (-1234.5, "-1,235"),
            (0.000_012_3, "1.23e-5"),
            (f32::NAN, "–"),
        ];
        for (value, text) in cases {
            assert_eq!(sig3(value), text);
        }
    }

    #[test]
    fn counts_and_bytes_are_grouped() {
        assert_eq!(count(3_072_u32), "3,072");
        assert_eq!(count(999_u32), "999");
        assert_eq!(count(1_234_567_u64), "1,234,567");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(2_410_000), "2.41 MB");
    }

    #[test]
    fn percentages_do_not_round_to_more_than_everything() {
        assert_eq!(percent(0.004_21), "0.421%");
        assert_eq!(percent(0.9999), "100%");
        assert_eq!(percent(0.0), "0%");
    }

    #[test]
    fn white_space_tokens_can_be_seen() {
        assert_eq!(visible_token("Ġdog"), " dog");
        assert_eq!(visible_token("  "), "␣␣");
        assert_eq!(visible_token("\n"), "↵");
        assert_eq!(visible_token(""), "∅");
    }
}
