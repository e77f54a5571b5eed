//! What two of our own nodes can do beyond LiteFS 0.5.
//!
//! Each side of a stream names its features in the header `Litefs-Features`; a node uses what both have. LiteFS 0.5
//! sends no such header and sees nothing but its own protocol.

/// The replica sends `Ack` frames in the request body, after its position map.
pub const ACK: &str = "ack";

/// All features of this version.
pub const ALL: &str = ACK;

/// Whether a header's list contains `feature`.
pub fn has(list: Option<&str>, feature: &str) -> bool {
    list.is_some_and(|list| list.split(',').any(|word| word.trim() == feature))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_separated_by_commas() {
        assert!(has(Some("x, ack"), ACK));
        assert!(!has(Some("acks"), ACK));
        assert!(!has(None, ACK));
        assert!(has(Some(ALL), ACK));
    }
}
