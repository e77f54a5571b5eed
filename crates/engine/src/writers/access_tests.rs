//! The whole table: every state, every input.

use super::Barrier::{Fenced, HeldOff, Lent, Open};
use super::*;

const STATES: [Access; 13] = [
    Access::Writing,
    Access::Draining(Open),
    Access::Draining(Fenced),
    Access::Draining(Lent),
    Access::Draining(HeldOff),
    Access::Following(Open),
    Access::Following(Fenced),
    Access::Following(Lent),
    Access::Following(HeldOff),
    Access::Failed(Open),
    Access::Failed(Fenced),
    Access::Failed(Lent),
    Access::Failed(HeldOff),
];

/// W: writing; D, F, X: draining, following, failed, behind o: nothing, f: the fence, l: the fence lent, h: a seal.
/// Then +: the fence is kept, -: released, >: lent, ~: forgotten; w, f, r: noted that clients write, are fenced, are refused;
/// !: the settler looks.
fn code((access, effects): (Access, Effects)) -> String {
    let barrier = match access.barrier() {
        Open => "o",
        Fenced => "f",
        Lent => "l",
        HeldOff => "h",
    };
    let state = match access {
        Access::Writing => "W".to_owned(),
        Access::Draining(_) => format!("D{barrier}"),
        Access::Following(_) => format!("F{barrier}"),
        Access::Failed(_) => format!("X{barrier}"),
    };
    let guard = match effects.guard {
        Guard::Stay => "",
        Guard::Keep => "+",
        Guard::Release => "-",
        Guard::Lend => ">",
        Guard::Leave => "~",
    };
    let note = match effects.note {
        None => "",
        Some(Clients::Write) => "w",
        Some(Clients::Fenced) => "f",
        Some(Clients::Refused) => "r",
    };
    let watch = if effects.watch { "!" } else { "" };
    format!("{state}{guard}{note}{watch}")
}

/// What follows from an input, in the order of the states.
#[rustfmt::skip]
const TABLE: [(Input, &str); 20] = [
    (Input::Opened { primary: true, wrote: true },   "W    Do   Df   Dl   Dh   Ww   Ff   Fl   Fh   Xo   Xf   Xl   Xh"),
    (Input::Opened { primary: true, wrote: false },  "W    Do   Df   Dl   Dh   Ww   Ff   Fl   Fh   Xo   Xf   Xl   Xh"),
    (Input::Opened { primary: false, wrote: true },  "W    Do   Df   Dl   Dh   Do   Ff   Fl   Fh   Xo   Xf   Xl   Xh"),
    (Input::Opened { primary: false, wrote: false }, "W    Do   Df   Dl   Dh   Fo   Ff   Fl   Fh   Xo   Xf   Xl   Xh"),
    (Input::Promoting,                               "Ww   Dow  Dfw  Dlw  Dhw  Fow  Ffw  Flw  Fhw  Xo   Xf   Xl   Xh"),
    (Input::Promoted,                                "W-w! W-w! W-w! W-w! W-w! W-w! W-w! W-w! W-w! Xo!  Xf!  Xl!  Xh!"),
    (Input::Demoted,                                 "Do   Do   Df   Dl   Dh   Fo   Ff   Fl   Fh   Xo   Xf   Xl   Xh"),
    (Input::Ended { sealed: true },                  "W    Fof  Fff  Flf  Fhf  Fof  Fff  Flf  Fhf  Xo   Xf   Xl   Xh"),
    (Input::Ended { sealed: false },                 "W    For  Fff  Flf  Fhf  For  Fff  Flf  Fhf  Xo   Xf   Xl   Xh"),
    (Input::DiskFailed,                              "Xo!  Xo!  Xf!  Xl!  Xh!  Xo!  Xf!  Xl!  Xh!  Xo   Xf   Xl   Xh"),
    (Input::Unconnected,                             "W    Do   Df   Dl   Do   Fo   Ff   Fl   Fo   Xo   Xf   Xl   Xo"),
    (Input::Taken,                                   "W-   Df+! Df+! Df+! Df+! Ff+! Ff+! Ff+! Ff+! Xf+! Xf+! Xf+! Xf+!"),
    (Input::HeldOut,                                 "W    Dh!  Df   Dl   Dh!  Fh!  Ff   Fl   Fh!  Xh!  Xf   Xl   Xh!"),
    (Input::Looked,                                  "W    Do   Df   Dl   Dh   For  Ff   Fl   Fh   Xo   Xf   Xl   Xh"),
    (Input::Alone,                                   "W    Do   Do-  Do   Do   Fo   Fo-  Fo   Fo   Xo   Xo-  Xo   Xo"),
    (Input::IndexInvalid,                            "W    Do   Dh-  Dl   Dh   Fo   Fh-  Fl   Fh   Xo   Xh-  Xl   Xh"),
    (Input::Borrowed,                                "W    Do   Dl>  Dl   Dh   Fo   Fl>  Fl   Fh   Xo   Xl>  Xl   Xh"),
    (Input::Acquired,                                "W    Do   Df   Dl   Dl!  Fo   Ff   Fl   Fl!  Xo   Xf   Xl   Xl!"),
    (Input::GivenBack,                               "W-   Do-  Df+  Df+  Dh-  Fo-  Ff+  Ff+  Fh-  Xo-  Xf+  Xf+  Xh-"),
    (Input::FilesReplaced,                           "W~   Do~  Do~  Do~  Do~  Fo~  Fo~  Fo~  Fo~  Xo~  Xo~  Xo~  Xo~"),
];

#[test]
fn the_table_holds_for_every_state_and_input() {
    for (input, row) in TABLE {
        let expected: Vec<&str> = row.split_whitespace().collect();
        let found: Vec<String> = STATES.iter().map(|state| code(state.next(input))).collect();
        assert_eq!(found, expected, "{input:?}");
    }
}

/// A database that failed is never writable again in this process, and a demoted one only after a promotion.
#[test]
fn nothing_but_a_promotion_lets_clients_write() {
    for (input, _) in TABLE {
        for state in STATES {
            let (next, _) = state.next(input);
            let opened = matches!(input, Input::Opened { primary: true, .. });
            if next == Access::Writing && state != Access::Writing {
                assert!(input == Input::Promoted || opened, "{state:?} {input:?}");
            }
            if let Access::Failed(_) = state {
                assert!(matches!(next, Access::Failed(_)), "{state:?} {input:?}");
            }
        }
    }
}

/// These come without the mutex of the database, which notes are made under.
#[test]
fn what_happens_to_the_locks_notes_nothing() {
    for (input, _) in TABLE {
        let noting = match input {
            Input::Opened { .. }
            | Input::Promoting
            | Input::Promoted
            | Input::Ended { .. }
            | Input::Looked => true,
            Input::Demoted
            | Input::DiskFailed
            | Input::Unconnected
            | Input::Taken
            | Input::HeldOut
            | Input::Alone
            | Input::IndexInvalid
            | Input::Borrowed
            | Input::Acquired
            | Input::GivenBack
            | Input::FilesReplaced => false,
        };
        for state in STATES {
            let note = state.next(input).1.note;
            assert!(noting || note.is_none(), "{state:?} {input:?}");
        }
    }
}

/// A fence appears where its locks were taken or come back, and goes where it is released, lent or forgotten.
#[test]
fn the_barrier_tells_who_has_the_fence() {
    for (input, _) in TABLE {
        for state in STATES {
            let (next, effects) = state.next(input);
            let (before, after) = (state.barrier() == Fenced, next.barrier() == Fenced);
            let expected = match effects.guard {
                Guard::Keep => after,
                Guard::Stay => before == after,
                Guard::Release | Guard::Lend | Guard::Leave => !after,
            };
            assert!(expected, "{state:?} {input:?} {next:?} {effects:?}");
        }
    }
}
