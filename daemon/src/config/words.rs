//! Values of `litefs.yml` that are one of a few words.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};

/// What COMMIT waits for (`data.durability`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// SQLite's own `synchronous` promise.
    Follow,
    /// The LTX record is durable, whatever `synchronous` says.
    Commit,
    /// Durable here and on replicas.
    Replicated,
}

/// Whether the kernel serves `-wal` and `-shm` itself (`fuse.passthrough`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passthrough {
    /// Where the kernel and the process's rights allow it.
    Auto,
    /// A mount without it fails.
    On,
    Off,
}

/// Permission bits that are taken away (`fuse.umask`), written in octal as everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Umask(pub u32);

/// Form of the log lines (`log.format`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

impl<'de> Deserialize<'de> for Durability {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Word {
            expected: "`follow` or `commit`",
            read: |word| match word {
                "follow" => Some(Durability::Follow),
                "commit" => Some(Durability::Commit),
                "replicated" => Some(Durability::Replicated),
                _ => None,
            },
        })
    }
}

impl<'de> Deserialize<'de> for Umask {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Octal;
        impl Visitor<'_> for Octal {
            type Value = Umask;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("permission bits in octal, such as \"022\"")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Umask, E> {
                match u32::from_str_radix(text, 8) {
                    Ok(bits) if bits <= 0o777 => Ok(Umask(bits)),
                    Ok(_) | Err(_) => Err(E::invalid_value(Unexpected::Str(text), &self)),
                }
            }

            /// YAML takes digits without quotes for a decimal number.
            fn visit_u64<E: Error>(self, digits: u64) -> Result<Umask, E> {
                self.visit_str(&digits.to_string())
            }
        }
        deserializer.deserialize_any(Octal)
    }
}

impl<'de> Deserialize<'de> for Passthrough {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Word {
            expected: "`auto`, `on` or `off`",
            // `on` and `off` are booleans in YAML 1.1, so people write `true` for them.
            read: |word| match word {
                "auto" => Some(Passthrough::Auto),
                "on" | "true" | "yes" => Some(Passthrough::On),
                "off" | "false" | "no" => Some(Passthrough::Off),
                _ => None,
            },
        })
    }
}

impl<'de> Deserialize<'de> for LogFormat {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Word {
            expected: "`text` or `json`",
            read: |word| match word {
                "text" | "" => Some(LogFormat::Text),
                "json" => Some(LogFormat::Json),
                _ => None,
            },
        })
    }
}

struct Word<T> {
    expected: &'static str,
    read: fn(&str) -> Option<T>,
}

impl<T> Visitor<'_> for Word<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: Error>(self, word: &str) -> Result<T, E> {
        (self.read)(word).ok_or_else(|| E::invalid_value(Unexpected::Str(word), &self))
    }

    fn visit_bool<E: Error>(self, word: bool) -> Result<T, E> {
        self.visit_str(if word { "true" } else { "false" })
    }
}
