//! What two of our own nodes can do beyond LiteFS 0.5.
//!
//! Each side of a stream names its features in the header `Litefs-Features`; a node uses what both have. LiteFS 0.5
//! sends no such header and sees nothing but its own protocol.

/// The replica sends `Ack` frames in the request body, after its position map.
pub const ACK: &str = "ack";

/// The replica may be given the lease: it is a candidate, and its disk has not failed.
pub const CANDIDATE: &str = "candidate";

/// The replica takes `Owners` frames.
pub const OWNERS: &str = "owners";

/// What a primary of this version can do.
pub const ALL: &str = ACK;

/// What a replica of this version can do.
pub fn of_replica(candidate: bool) -> String {
    match candidate {
        true => format!("{ACK},{OWNERS},{CANDIDATE}"),
        false => format!("{ACK},{OWNERS}"),
    }
}

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
        assert!(has(Some(&of_replica(true)), ACK) && has(Some(&of_replica(true)), CANDIDATE));
        assert!(has(Some(&of_replica(false)), OWNERS) && has(Some(&of_replica(true)), OWNERS));
        assert!(has(Some(&of_replica(false)), ACK) && !has(Some(&of_replica(false)), CANDIDATE));
    }
}
