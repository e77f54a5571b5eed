//! Environment expansion of the configuration text, before it is read as YAML.
//!
//! `$NAME` and `${NAME}` become the value or nothing; `${A == 'x'}`, `${A != "x"}` and `${A == B}` become `true` or `false`.
//! The whole text is expanded, comments included, and there is no way to write a literal `$NAME`: that is LiteFS's rule.

/// Expands `text`, looking names up with `lookup`.
pub(super) fn expand(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        out.push_str(&rest[..dollar]);
        rest = &rest[dollar + 1..];
        rest = expand_one(rest, lookup, &mut out);
    }
    out.push_str(rest);
    out
}

/// Expands what follows a `$` and gives back the text after it.
fn expand_one<'a>(rest: &'a str, lookup: &dyn Fn(&str) -> Option<String>, out: &mut String) -> &'a str {
    match rest.as_bytes().first() {
        Some(b'{') => match rest.find('}') {
            Some(end) => {
                out.push_str(&braces(rest[1..end].trim(), lookup));
                &rest[end + 1..]
            }
            // An unclosed brace swallows `${` only, so that the rest still meets the YAML reader.
            None => &rest[1..],
        },
        // The shell's special parameters: there are none here, so they are empty.
        Some(b'*' | b'#' | b'$' | b'@' | b'!' | b'?' | b'-' | b'0'..=b'9') => &rest[1..],
        Some(_) => {
            let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            if end == 0 {
                out.push('$');
            } else {
                out.push_str(&lookup(&rest[..end]).unwrap_or_default());
            }
            &rest[end..]
        }
        None => {
            out.push('$');
            rest
        }
    }
}

/// The inside of `${…}`: a comparison, or a name.
fn braces(inside: &str, lookup: &dyn Fn(&str) -> Option<String>) -> String {
    match comparison(inside, lookup) {
        Some(result) => result.to_string(),
        None => lookup(inside).unwrap_or_default(),
    }
}

fn comparison(inside: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Option<bool> {
    let name_end = inside.find(|c| !is_word(c))?;
    let (left, rest) = inside.split_at(name_end);
    let rest = rest.trim_start();
    let equal = match rest.get(..2)? {
        "==" => true,
        "!=" => false,
        _ => return None,
    };
    if left.is_empty() {
        return None;
    }
    let right = operand(rest[2..].trim_start(), lookup)?;
    Some((lookup(left).unwrap_or_default() == right) == equal)
}

/// The right side: quoted text stands for itself, a word for another variable.
fn operand(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    for quote in ['\'', '"'] {
        if let Some(inner) = text.strip_prefix(quote) {
            return inner.strip_suffix(quote).map(str::to_string);
        }
    }
    (!text.is_empty() && text.chars().all(is_word)).then(|| lookup(text).unwrap_or_default())
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> String {
        expand(text, &|name| match name {
            "A" => Some("x".to_string()),
            "B" => Some("x".to_string()),
            "C" => Some("it's \"c\"".to_string()),
            "HOSTNAME" => Some("node-1".to_string()),
            _ => None,
        })
    }

    #[test]
    fn names_become_values_or_nothing() {
        assert_eq!(expanded("h: $HOSTNAME."), "h: node-1.");
        assert_eq!(expanded("h: ${HOSTNAME}x"), "h: node-1x");
        assert_eq!(expanded("h: ${ HOSTNAME }"), "h: node-1");
        assert_eq!(expanded("h: $UNSET ${UNSET}!"), "h:  !");
        assert_eq!(expanded("# ${A}"), "# x");
    }

    #[test]
    fn comparisons_become_booleans() {
        assert_eq!(expanded("${A == 'x'}"), "true");
        assert_eq!(expanded("${A==\"y\"}"), "false");
        assert_eq!(expanded("${A != 'x'}"), "false");
        assert_eq!(expanded("${ A == B }"), "true");
        assert_eq!(expanded("${A != UNSET}"), "true");
        assert_eq!(expanded("${UNSET == ''}"), "true");
        assert_eq!(expanded("${C == 'it's \"c\"'}"), "true");
    }

    #[test]
    fn special_parameters_are_empty_and_lone_dollars_stay() {
        assert_eq!(expanded("a$$b$1c$*d"), "abcd");
        assert_eq!(expanded("costs $ 5"), "costs $ 5");
        assert_eq!(expanded("end$"), "end$");
        assert_eq!(expanded("${}|${A"), "|A");
    }
}
