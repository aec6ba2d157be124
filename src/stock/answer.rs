//! What a generator prints: one object, a list of them, or one on each line.

use serde_json::{Map, Value};

use super::step::cut;
use crate::lease::item::attributes_of;
use crate::lease::predicate::Attributes;

/// How much of an answer that makes no sense is shown.
const SHOWN: usize = 80;

/// The items that an answer names, each with the input that it was made with.
pub fn items(answer: &[u8], input: &Map<String, Value>) -> Result<Vec<Attributes>, String> {
    let text = String::from_utf8_lossy(answer);
    let text = text.trim();
    if text.is_empty() {
        return Err("it printed nothing; a generator prints the item as a JSON object".to_owned());
    }
    let garbage = |why: String| format!("it printed no JSON object ({why}): {}", cut(text, SHOWN));
    let values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let values: Vec<Value> = values.collect::<Result<_, _>>().map_err(|error| garbage(error.to_string()))?;
    let values = values.into_iter().flat_map(|value| match value {
        Value::Array(values) => values,
        value => vec![value],
    });
    let mut items: Vec<Attributes> = Vec::new();
    for value in values {
        // A number or text alone may be anything, a line of a log for one.
        if !value.is_object() {
            return Err(garbage("an item is one".to_owned()));
        }
        let mut item = attributes_of(value).map_err(garbage)?;
        for (name, value) in input {
            item.entry(name).or_insert_with(|| value.clone());
        }
        items.push(item);
    }
    if items.is_empty() { Err("it printed an empty list".to_owned()) } else { Ok(items) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn items_come_alone_in_a_list_or_by_lines_and_have_their_input() {
        let Value::Object(input) = json!({"tier": "gold"}) else { panic!("an object") };
        let read = |text: &str| items(text.as_bytes(), &input).map(|items| json!(items).to_string());
        assert_eq!(read(r#"{"id":1}"#), Ok(r#"[{"id":1,"tier":"gold"}]"#.to_owned()));
        assert_eq!(read(r#"[{"id":1},{"id":2,"tier":"x"}]"#), read("{\"id\":1}\n{\"id\":2,\"tier\":\"x\"}\n"));
        for (text, why) in [
            ("", "it printed nothing"),
            ("[]", "an empty list"),
            ("done\n", "it printed no JSON object (expected value"),
            ("7", "(an item is one): 7"),
            ("{}", "without attributes"),
            ("{\"id\":1} and more", "no JSON object"),
        ] {
            assert!(read(text).expect_err(text).contains(why), "{text}: {:?}", read(text));
        }
    }
}
