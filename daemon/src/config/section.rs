//! `section!`: one table that is the type, the defaults and the accepted keys of a part of `litefs.yml`.
//!
//! serde's own `default` attributes reject an explicit null, which Go's YAML reader takes for "not set". Reading every
//! key as an `Option` treats a missing key and a null alike, and keeps key, type and default on one line.

/// Defines a configuration struct whose fields carry their default value.
macro_rules! section {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $( $(#[$field_meta:meta])* pub $field:ident : $type:ty = $default:expr, )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq)]
        pub struct $name {
            $( $(#[$field_meta])* pub $field: $type, )*
        }

        impl Default for $name {
            fn default() -> Self {
                $name { $( $field: $default, )* }
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                #[derive(serde::Deserialize)]
                #[serde(rename_all = "kebab-case", deny_unknown_fields)]
                struct $name { $( #[serde(default)] $field: Option<$type>, )* }

                let given = <$name as serde::Deserialize>::deserialize(deserializer)?;
                let defaults = <super::types::$name as Default>::default();
                Ok(super::types::$name { $( $field: given.$field.unwrap_or(defaults.$field), )* })
            }
        }
    };
}

pub(super) use section;
