//! Identity of a cluster: `LFSC` and sixteen upper-case hexadecimal digits.

/// A new id.
pub(crate) fn generate() -> String {
    format!("LFSC{:016X}", rand::random::<u64>())
}

/// Checks what LiteFS checks: length and prefix; and that the rest can be a header and a line of a file.
pub(crate) fn is_valid(id: &str) -> bool {
    id.len() == 20 && id.starts_with("LFSC") && id.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_ids_are_valid_and_differ() {
        assert!(is_valid(&generate()));
        assert_ne!(generate(), generate());
        for id in [
            "",
            "LFSC",
            "XXXX0123456789ABCDEF",
            "LFSC0123456789ABCDE\n",
            "LFSC0123456789ABCDEF0",
        ] {
            assert!(!is_valid(id), "{id:?}");
        }
    }
}
