//! Arrays and texts within SQL text: a prepared statement that is executed by a message of text
//! can stand beside others in it, and all of them are one journey to the server.

use postgres_protocol::escape::escape_literal;

/// A text; PostgreSQL keeps no NUL in one, so what means it stands there.
pub fn text(value: &str) -> String {
    escape_literal(&without_nul(value))
}

fn without_nul(value: &str) -> String {
    value.replace('\0', "\u{2400}")
}

/// An array of texts, some of which may be null.
pub fn texts<'a>(values: impl Iterator<Item = Option<&'a str>>) -> String {
    let mut array = String::from("{");
    for value in values {
        if array.len() > 1 {
            array.push(',');
        }
        match value {
            None => array.push_str("NULL"),
            Some(value) => {
                array.push('"');
                for c in value.chars() {
                    match c {
                        '"' | '\\' => array.extend(['\\', c]),
                        '\0' => array.push('\u{2400}'),
                        c => array.push(c),
                    }
                }
                array.push('"');
            }
        }
    }
    array.push('}');
    escape_literal(&array)
}

/// An array of values whose own words need no quotes: numbers, truths.
pub fn plain<T: ToString>(values: impl Iterator<Item = Option<T>>) -> String {
    let words: Vec<String> =
        values.map(|value| value.map_or_else(|| "NULL".to_owned(), |value| value.to_string())).collect();
    format!("'{{{}}}'", words.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leaves_its_array() {
        let odd = ["plain", "", "NULL", "a,b", r#"q"uo\te"#, "it's", "{1}", "nul\0"];
        let array = texts(odd.into_iter().map(Some).chain([None]));
        let expected = r#" E'{"plain","","NULL","a,b","q\\"uo\\\\te","it''s","{1}","nul␀",NULL}'"#;
        assert_eq!(array, expected);
        assert_eq!(plain([Some(1), None, Some(-3)].into_iter()), "'{1,NULL,-3}'");
        assert_eq!(plain(std::iter::empty::<Option<bool>>()), "'{}'");
        assert_eq!(text("it's"), "'it''s'");
    }
}
