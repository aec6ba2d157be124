//! The form by which somebody asks for items of a pool: its fields come from what the pool's
//! generator takes, or else from what its items are like.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::visit::Fields;
use crate::lease::ask::Ask;
use crate::lease::board::Board;
use crate::lease::definition::{Definition, Generator};
use crate::lease::predicate::{Condition, Predicate, Test, index_of, plain};

/// How many items are looked at for what they are like.
const LOOKED_AT: usize = 2_000;
/// How many values a list has at most.
const MOST_VALUES: usize = 24;
/// How many attributes a form has fields for; there is a line for the rest.
const MOST_FIELDS: usize = 16;
/// What a field of the form is called.
const FIELD: &str = "in.";

/// How a value is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// One of a list.
    Choice,
    Boolean,
    Number,
    Text,
}

/// One field.
#[derive(Clone, Debug)]
struct Field {
    name: String,
    kind: Kind,
    values: Vec<Value>,
    default: Option<Value>,
    about: Option<String>,
}

/// The form of a pool.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    fields: Vec<Field>,
    is_generated: bool,
    ttl: u64,
}

impl Wish {
    /// The form of a pool; nothing where there is no such pool.
    pub fn of(board: &Board, pool: &str) -> Option<Self> {
        let definition = board.definition(pool)?;
        let fields = definition.generator.as_ref().map_or_else(|| of_items(board, pool), of_generator);
        Some(Self { fields, is_generated: definition.generator.is_some(), ttl: usual(definition) })
    }

    /// What its template shows.
    pub fn shown(&self) -> Value {
        let none = |field: &Field| match (&field.default, self.is_generated) {
            (Some(default), true) => format!("leave to the generator ({})", plain(default)),
            (None, true) => "leave to the generator".to_owned(),
            (_, false) => "any".to_owned(),
        };
        let field = |field: &Field| {
            let word = |value: &Value| match value {
                Value::Bool(true) => "yes".to_owned(),
                Value::Bool(false) => "no".to_owned(),
                other => plain(other),
            };
            let options: Vec<_> =
                field.values.iter().map(|value| json!({"value": value.to_string(), "label": word(value)})).collect();
            json!({
                "name": field.name, "field": format!("{FIELD}{}", field.name), "about": field.about, "none": none(field),
                "is_list": !options.is_empty(), "is_number": field.kind == Kind::Number, "options": options,
            })
        };
        json!({"fields": self.fields.iter().map(field).collect::<Value>(), "ttl": format!("{}s", self.ttl).replace("3600s", "1h").replace("900s", "15m"),
            "wait": if self.is_generated { "60s" } else { "0s" }})
    }

    /// Reads what somebody filled in.
    pub fn read(&self, fields: &Fields, pool: &str, client: &str) -> Result<Ask, String> {
        let mut conditions = Vec::new();
        for field in &self.fields {
            if let Some(text) = fields.get(&format!("{FIELD}{}", field.name)) {
                let values = field.read(text)?;
                conditions.push(Condition { attribute: field.name.clone(), test: Test::In(values) });
            }
        }
        for word in fields.get("where").unwrap_or_default().split_whitespace() {
            conditions.push(word.parse().map_err(|why: String| format!("{word}: {why}"))?);
        }
        let mut ask = Map::new();
        ask.insert("pool".to_owned(), pool.into());
        ask.insert("where".to_owned(), Predicate::new(conditions).to_json());
        ask.insert("client".to_owned(), client.into());
        for name in ["ttl", "wait", "key"] {
            if let Some(text) = fields.get(name) {
                ask.insert(name.to_owned(), text.into());
            }
        }
        if let Some(count) = fields.get("count") {
            let count: u32 = count.parse().map_err(|_| format!("{count} is no number of items"))?;
            ask.insert("count".to_owned(), count.into());
        }
        Ask::from_json(Value::Object(ask).to_string().as_bytes())
    }
}

impl Field {
    /// The values that a text may stand for.
    fn read(&self, text: &str) -> Result<Vec<Value>, String> {
        match self.kind {
            Kind::Choice | Kind::Boolean => {
                let value: Value =
                    serde_json::from_str(text).map_err(|_| format!("{} has no value {text}", self.name))?;
                let is_known = self.values.iter().any(|known| index_of(known) == index_of(&value));
                if is_known { Ok(vec![value]) } else { Err(format!("{} has no value {text}", self.name)) }
            }
            Kind::Number => {
                let number: serde_json::Number =
                    text.parse().map_err(|_| format!("{} takes a number, and not {text}", self.name))?;
                Ok(vec![number.into()])
            }
            Kind::Text => Ok(vec![text.into()]),
        }
    }
}

/// How long somebody who works by hand has an item unless they say otherwise, in seconds: longer
/// than a test.
fn usual(definition: &Definition) -> u64 {
    definition.ttl().max(900)
}

fn of_generator(generator: &Generator) -> Vec<Field> {
    let field = |input: &crate::lease::definition::Input| {
        let (kind, values) = match input.kind.as_str() {
            _ if !input.values.is_empty() => (Kind::Choice, input.values.clone()),
            "boolean" => (Kind::Boolean, vec![true.into(), false.into()]),
            "number" => (Kind::Number, Vec::new()),
            _ => (Kind::Text, Vec::new()),
        };
        let (default, about) = (input.default.clone(), input.about.clone());
        Field { name: input.name.clone(), kind, values, default, about }
    };
    generator.inputs.iter().map(field).collect()
}

/// What is known of an attribute.
#[derive(Default)]
struct Attribute {
    values: BTreeMap<String, Value>,
    is_many: bool,
    is_other: bool,
    has_text: bool,
}

fn of_items(board: &Board, pool: &str) -> Vec<Field> {
    let mut names: Vec<String> = Vec::new();
    let mut known: BTreeMap<String, Attribute> = BTreeMap::new();
    for item in board.items_of(pool).take(LOOKED_AT) {
        for (name, value) in &*item.attributes {
            if !known.contains_key(name) {
                names.push(name.clone());
            }
            let attribute = known.entry(name.clone()).or_default();
            attribute.is_other |= value.is_array() || value.is_object();
            attribute.has_text |= value.is_string();
            if !value.is_null() && !attribute.is_many {
                attribute.values.insert(index_of(value), value.clone());
                attribute.is_many = attribute.values.len() > MOST_VALUES;
            }
        }
    }
    let field = |name: String| {
        let attribute = known.remove(&name)?;
        if attribute.is_other || attribute.values.is_empty() {
            return None;
        }
        let mut values: Vec<Value> = attribute.values.into_values().collect();
        values.sort_by(|a, b| a.as_f64().partial_cmp(&b.as_f64()).unwrap_or(std::cmp::Ordering::Equal));
        let (kind, values) = match attribute.is_many {
            _ if values.iter().all(Value::is_boolean) => (Kind::Boolean, vec![true.into(), false.into()]),
            false => (Kind::Choice, values),
            true if attribute.has_text => (Kind::Text, Vec::new()),
            true => (Kind::Number, Vec::new()),
        };
        Some(Field { name, kind, values, default: None, about: None })
    };
    names.into_iter().filter_map(field).take(MOST_FIELDS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board() -> Board {
        let mut board = Board::new("", None);
        let items = (0..40).map(|id| {
            let item = json!({"id": id, "name": format!("n{id}"), "tier": if id % 2 == 0 { "gold" } else { "silver" },
                "vip": id % 3 == 0, "tags": ["a"]});
            item.as_object().cloned().unwrap_or_default()
        });
        board.add("acct", items.collect(), None);
        board
    }

    #[test]
    fn fields_come_from_what_items_are_like() {
        let shown = Wish::of(&board(), "acct").expect("a pool").shown();
        let fields: Vec<_> = shown["fields"].as_array().expect("fields").iter().collect();
        let names: Vec<_> = fields.iter().map(|it| it["name"].as_str().unwrap_or_default()).collect();
        assert_eq!(names, ["id", "name", "tier", "vip"]);
        assert_eq!((&fields[0]["is_number"], &fields[0]["is_list"]), (&json!(true), &json!(false)));
        assert_eq!(fields[1]["is_number"], false);
        assert_eq!(fields[2]["options"][0], json!({"value": "\"gold\"", "label": "gold"}));
        assert_eq!(fields[3]["options"], json!([{"value": "true", "label": "yes"}, {"value": "false", "label": "no"}]));
        assert!(Wish::of(&board(), "acc").is_none());
    }

    #[test]
    fn fields_of_a_generator_may_be_left_to_it() {
        let generator: Generator = serde_json::from_value(json!({"run": "make", "inputs": [
            {"name": "months", "kind": "number", "default": 6, "about": "Of invoices"},
            {"name": "tier", "kind": "text", "values": ["gold", "silver"]}, {"name": "vip", "kind": "boolean"},
            {"name": "mail", "kind": "text"}]}))
        .expect("a generator");
        let mut board = board();
        board.define("made", &Definition { generator: Some(generator), ..Definition::default() });
        let shown = Wish::of(&board, "made").expect("a pool").shown();
        assert_eq!(shown["fields"][0]["none"], "leave to the generator (6)");
        assert_eq!(shown["fields"][1]["options"].as_array().map(Vec::len), Some(2));
        assert_eq!(shown["fields"][2]["options"].as_array().map(Vec::len), Some(2));
        assert_eq!(shown["fields"][3]["is_list"], false);
    }
}
