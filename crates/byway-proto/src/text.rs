//! Text that has to fit.

/// The longest beginning of `text` that has at most `max` bytes and ends between two characters.
pub fn prefix(text: &str, max: usize) -> &str {
    let end = (0..=max.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    end.and_then(|end| text.get(..end)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_character_is_cut_in_two() {
        assert_eq!(prefix("añb", 4), "añb");
        assert_eq!(prefix("añb", 3), "añ");
        assert_eq!(prefix("añb", 2), "a");
        assert_eq!(prefix("ñ", 1), "");
    }
}
