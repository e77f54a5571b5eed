//! Text that has to fit: one line of a table, a log or a CSV file.

/// The text on one line, with single spaces.
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The beginning of the text, on one line.
pub fn cut(text: &str, most: usize) -> String {
    let flat = one_line(text);
    if flat.chars().count() > most {
        flat.chars().take(most).chain("...".chars()).collect()
    } else {
        flat
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_ends_become_spaces_and_long_text_is_cut() {
        assert_eq!(one_line(" a\n  b "), "a b");
        assert_eq!(cut("a\nb", 3), "a b");
        assert_eq!(cut("abcd", 3), "abc...");
    }
}
