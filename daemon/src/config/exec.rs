//! The `exec` key: one command as text, or a list of `{cmd, if-candidate}`.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// The commands of `exec`, in order; the last one is supervised.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Exec {
    pub commands: Vec<Command>,
}

/// One command of `exec`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Command {
    pub cmd: String,
    /// Skipped on a node that is not a candidate.
    #[serde(default)]
    pub if_candidate: bool,
}

impl<'de> Deserialize<'de> for Exec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ExecVisitor)
    }
}

struct ExecVisitor;

impl<'de> Visitor<'de> for ExecVisitor {
    type Value = Exec;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a command, or a list of `{cmd, if-candidate}`")
    }

    fn visit_str<E: Error>(self, cmd: &str) -> Result<Exec, E> {
        Ok(Exec {
            commands: vec![Command {
                cmd: cmd.to_string(),
                if_candidate: false,
            }],
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Exec, A::Error> {
        let mut commands = Vec::new();
        while let Some(Item(command)) = list.next_element()? {
            commands.push(command);
        }
        Ok(Exec { commands })
    }
}

/// An item of the list. Plain text is refused with the form that works, as the list of texts is the mistake people make.
struct Item(Command);

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ItemVisitor)
    }
}

struct ItemVisitor;

impl<'de> Visitor<'de> for ItemVisitor {
    type Value = Item;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an item of the form `- cmd: \"…\"`")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Item, A::Error> {
        Command::deserialize(MapAccessDeserializer::new(map)).map(Item)
    }
}
