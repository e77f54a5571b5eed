//! The free list: pages of the database that hold nothing. Trunk pages name the next trunk and leaf pages; the content of a leaf means
//! nothing, and SQLite neither journals it before it takes the page into use nor writes it when the page is freed.

use crate::bytes::be_u32;
use crate::page::Pgno;

const FIRST_TRUNK: usize = 32;
const NEXT_TRUNK: usize = 0;
const LEAF_COUNT: usize = 4;
const LEAVES: usize = 8;

/// The first trunk page, as page 1 names it; `None` if no page is free, or if the bytes are shorter than a header.
pub fn first_trunk(page_1: &[u8]) -> Option<Pgno> {
    (page_1.len() >= crate::header::HEADER_SIZE)
        .then(|| be_u32(page_1, FIRST_TRUNK))
        .and_then(Pgno::new)
}

/// The trunk page after this one.
pub fn next_trunk(trunk: &[u8]) -> Option<Pgno> {
    (trunk.len() >= LEAVES)
        .then(|| be_u32(trunk, NEXT_TRUNK))
        .and_then(Pgno::new)
}

/// The leaf pages that a trunk page names, as far as it has room for them.
pub fn leaves(trunk: &[u8]) -> impl Iterator<Item = Pgno> + '_ {
    let room = trunk.len().saturating_sub(LEAVES) / 4;
    let count = match room {
        0 => 0,
        room => (be_u32(trunk, LEAF_COUNT) as usize).min(room),
    };
    (0..count).filter_map(|leaf| Pgno::new(be_u32(trunk, LEAVES + 4 * leaf)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::put_be_u32;

    fn trunk(next: u32, count: u32, leaves: &[u32]) -> Vec<u8> {
        let mut page = vec![0; 512];
        put_be_u32(&mut page, NEXT_TRUNK, next);
        put_be_u32(&mut page, LEAF_COUNT, count);
        for (at, leaf) in leaves.iter().enumerate() {
            put_be_u32(&mut page, LEAVES + 4 * at, *leaf);
        }
        page
    }

    #[test]
    fn a_trunk_names_its_leaves_and_the_next_trunk() {
        let page = trunk(9, 2, &[3, 7, 8]);
        assert_eq!(next_trunk(&page), Pgno::new(9));
        assert_eq!(leaves(&page).map(Pgno::get).collect::<Vec<_>>(), [3, 7]);
        assert_eq!(next_trunk(&trunk(0, 0, &[])), None);
        assert_eq!(leaves(&trunk(0, 0, &[5])).count(), 0);
    }

    #[test]
    fn damaged_trunks_name_no_more_than_they_have_room_for() {
        let page = trunk(0, u32::MAX, &[3]);
        assert_eq!(leaves(&page).count(), 1, "page 0 does not exist");
        for length in 0..16 {
            assert_eq!(leaves(&page[..length]).count(), usize::from(length >= 12));
            assert_eq!(next_trunk(&page[..length]), None);
            assert_eq!(first_trunk(&page[..length]), None);
        }
    }
}
