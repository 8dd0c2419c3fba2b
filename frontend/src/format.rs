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
        // Rounding may carry: 9.996e-5 is 1.00e-4.
        let mantissa = value * tens(-magnitude);
        let (mantissa, magnitude) =
            if mantissa.abs() >= 9.995 { (mantissa / 10.0, magnitude + 1) } else { (mantissa, magnitude) };
        return format!("{}e{magnitude}", fixed(mantissa, 2));
    }
    let decimals = usize::try_from(2 - magnitude).unwrap_or(0);
    if magnitude < 3 {
        return fixed(value, decimals);
    }
    let sign = if value < 0.0 { "-" } else { "" };
    format!("{sign}{}", count(value.abs().round() as u64))
}

/// A number with so many decimals, as `{:.decimals$}`, except that a half (and what is as good as one) is rounded away
/// from zero; not for more than fifteen digits. Rust's own way of writing floats is exact to hundreds of digits, and has code to match.
pub fn fixed(value: impl Into<f64>, decimals: usize) -> String {
    let value: f64 = value.into();
    if !value.is_finite() {
        return "–".into();
    }
    let units = (value.abs() * tens(decimals as i32)).round() as u64;
    let sign = if value < 0.0 && units > 0 { "-" } else { "" };
    if decimals == 0 {
        return format!("{sign}{units}");
    }
    let digits = format!("{units:0width$}", width = decimals + 1);
    let (whole, rest) = digits.split_at(digits.len() - decimals);
    format!("{sign}{whole}.{rest}")
}

/// The shortest text that is read as the same number.
pub fn shortest(value: impl Into<Number>) -> String {
    let Number(text) = value.into();
    text.strip_suffix(".0").map(str::to_owned).unwrap_or(text)
}

/// A float as JSON has it.
pub struct Number(String);

impl From<f32> for Number {
    fn from(value: f32) -> Self {
        Self(serde_json::to_string(&value).unwrap_or_default())
    }
}

impl From<f64> for Number {
    fn from(value: f64) -> Self {
        Self(serde_json::to_string(&value).unwrap_or_default())
    }
}

/// Ten to a power; the same in both worlds, unlike `powi`.
fn tens(power: i32) -> f64 {
    let size = (0..power.abs()).fold(1.0, |size, _| size * 10.0);
    if power < 0 { 1.0 / size } else { size }
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

/// A span of milliseconds as people say it: `12 s`, `4 min`, `3 h 05 min`, `2 d 3 h`.
pub fn duration(millis: i64) -> String {
    let seconds = millis.max(0).saturating_add(500) / 1_000;
    match (seconds / 86_400, seconds / 3_600, seconds / 60) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {:02} min", minutes % 60),
        (days, hours, _) => format!("{days} d {} h", hours % 24),
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
    fn decimals_are_as_near_as_there_are() {
        for step in -2_000_i32..2_000 {
            let value = f64::from(step) * 0.013_717_31;
            for decimals in 0..6 {
                let text = fixed(value, decimals);
                let half = 0.5 / tens(decimals as i32) + 1e-12;
                assert!((text.parse::<f64>().unwrap_or(f64::NAN) - value).abs() <= half, "{value} became {text}");
                assert_eq!(text.split_once('.').map_or(0, |(_, rest)| rest.len()), decimals);
            }
        }
        assert_eq!(fixed(-0.004, 2), "0.00");
        assert_eq!(fixed(-2.5, 0), "-3");
        assert_eq!(fixed(f32::INFINITY, 2), "–");
        assert_eq!(sig3(0.000_099_96), "1.00e-4");
    }

    #[test]
    fn the_shortest_text_is_read_as_the_same_number() {
        for value in [0.0, 3.0, -1.5, 0.1, 1.0 / 3.0, 1e-9, 16_777_216.0] {
            assert_eq!(number(&shortest(value)).map(|read| read as f32), Some(value as f32), "{}", shortest(value));
        }
        assert_eq!((shortest(3_f32), shortest(-1.5_f32), shortest(0.1_f32)), ("3".into(), "-1.5".into(), "0.1".into()));
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
    fn spans_of_time_have_two_units_at_most() {
        let spans = [-5, 11_600, 240_000, 11_100_000, 183_600_000].map(duration);
        assert_eq!(spans, ["0 s", "12 s", "4 min", "3 h 05 min", "2 d 3 h"]);
    }

    #[test]
    fn white_space_tokens_can_be_seen() {
        assert_eq!(visible_token("Ġdog"), " dog");
        assert_eq!(visible_token("  "), "␣␣");
        assert_eq!(visible_token("\n"), "↵");
        assert_eq!(visible_token(""), "∅");
    }
}
