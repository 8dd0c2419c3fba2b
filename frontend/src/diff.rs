//! Which tokens of one text are not in another, by longest common subsequence.

/// For every token of `text`, whether it differs from `reference`: it lies outside the longest common subsequence.
/// While `text` still streams, a reference that is longer costs nothing.
pub fn differing<A: PartialEq<B>, B>(text: &[A], reference: &[B]) -> Vec<bool> {
    let columns = reference.len() + 1;
    // common[i][j]: length of the longest common subsequence of text[i..] and reference[j..].
    let mut common = vec![0_u16; (text.len() + 1) * columns];
    for i in (0..text.len()).rev() {
        for j in (0..reference.len()).rev() {
            common[i * columns + j] = if text[i] == reference[j] {
                common[(i + 1) * columns + j + 1] + 1
            } else {
                common[(i + 1) * columns + j].max(common[i * columns + j + 1])
            };
        }
    }
    let mut differs = vec![true; text.len()];
    let (mut i, mut j) = (0, 0);
    while i < text.len() && j < reference.len() {
        if text[i] == reference[j] {
            differs[i] = false;
            i += 1;
            j += 1;
        } else if common[(i + 1) * columns + j] >= common[i * columns + j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    differs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<&str> {
        text.split_whitespace().collect()
    }

    #[test]
    fn only_the_changed_words_differ() {
        let reference = words("a happy dog sits in the park");
        let text = words("a sad dog sits near the old park");
        let differs = differing(&text, &reference);
        let changed: Vec<_> = text.iter().zip(&differs).filter(|(_, d)| **d).map(|(w, _)| *w).collect();
        assert_eq!(changed, ["sad", "near", "old"]);
    }

    #[test]
    fn equal_texts_and_prefixes_have_no_difference() {
        let reference = words("one two three");
        assert_eq!(differing(&reference, &reference), [false; 3]);
        assert_eq!(differing(&reference[..2], &reference), [false; 2]);
        assert_eq!(differing(&reference, &[] as &[&str]), [true; 3]);
        assert!(differing(&[] as &[&str], &reference).is_empty());
    }
}
