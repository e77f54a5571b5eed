//! Names of LTX files: `<min>-<max>.ltx`, which sort by transaction.

use crate::txid::{Txid, parse_hex};

pub fn file_name(min: Txid, max: Txid) -> String {
    format!("{min}-{max}.ltx")
}

/// The transactions a file name stands for; `None` for anything that [`file_name`] does not make.
pub fn parse_file_name(name: &str) -> Option<(Txid, Txid)> {
    let (min, max) = name.strip_suffix(".ltx")?.split_once('-')?;
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return None;
    }
    Some((Txid(parse_hex(min.as_bytes())?), Txid(parse_hex(max.as_bytes())?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_only_lower_case_is_taken() {
        let name = file_name(Txid(13), Txid(0xff));
        assert_eq!(name, "000000000000000d-00000000000000ff.ltx");
        assert_eq!(parse_file_name(&name), Some((Txid(13), Txid(0xff))));
        for wrong in [
            "000000000000000D-00000000000000ff.ltx",
            "000000000000000d-00000000000000ff.ltx.tmp",
            "d-ff.ltx",
            "000000000000000d_00000000000000ff.ltx",
            ".ltx",
            "",
        ] {
            assert_eq!(parse_file_name(wrong), None, "{wrong}");
        }
    }
}
