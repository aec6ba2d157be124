//! What an item must be like: conditions on its attributes. Nothing of them ever becomes SQL.

use std::cmp::Ordering;
use std::fmt;

use serde_json::{Map, Value};

/// The attributes of an item.
pub type Attributes = Map<String, Value>;

/// Conditions that must all hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Predicate {
    conditions: Vec<Condition>,
}

/// One condition on one attribute.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    /// Which attribute.
    pub attribute: String,
    /// What must be true of it.
    pub test: Test,
}

/// What must be true of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Test {
    /// It is one of these.
    In(Vec<Value>),
    /// It is there, and none of these.
    NotIn(Vec<Value>),
    /// It is a number or a text that compares so.
    Compare(Comparison, Value),
    /// It is there, or it is not.
    Exists(bool),
}

/// How two values compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// `<`
    Less,
    /// `<=`
    AtMost,
    /// `>`
    Greater,
    /// `>=`
    AtLeast,
}

impl Comparison {
    const ALL: [(Self, &'static str, &'static str); 4] =
        [(Self::AtMost, "<=", "le"), (Self::AtLeast, ">=", "ge"), (Self::Less, "<", "lt"), (Self::Greater, ">", "gt")];

    fn sign(self) -> &'static str {
        Self::ALL.iter().find(|(known, ..)| *known == self).map_or("", |(_, sign, _)| sign)
    }

    fn holds(self, order: Ordering) -> bool {
        match self {
            Self::Less => order.is_lt(),
            Self::AtMost => order.is_le(),
            Self::Greater => order.is_gt(),
            Self::AtLeast => order.is_ge(),
        }
    }
}

impl Condition {
    /// Whether it holds.
    pub fn holds(&self, attributes: &Attributes) -> bool {
        // What is null says nothing.
        let found = attributes.get(&self.attribute).filter(|value| !value.is_null());
        match (&self.test, found) {
            (Test::Exists(wanted), found) => found.is_some() == *wanted,
            (_, None) => false,
            (Test::In(values), Some(found)) => values.iter().any(|value| is_same(value, found)),
            (Test::NotIn(values), Some(found)) => !values.iter().any(|value| is_same(value, found)),
            (Test::Compare(comparison, value), Some(found)) => {
                order(found, value).is_some_and(|order| comparison.holds(order))
            }
        }
    }

    /// The one value that it allows, where it allows only one.
    pub fn only(&self) -> Option<&Value> {
        match &self.test {
            Test::In(values) if values.len() == 1 => values.first(),
            _ => None,
        }
    }
}

impl Predicate {
    /// These conditions.
    pub fn new(conditions: Vec<Condition>) -> Self {
        Self { conditions }
    }

    /// Its conditions.
    pub fn conditions(&self) -> &[Condition] {
        &self.conditions
    }

    /// Whether all hold.
    pub fn holds(&self, attributes: &Attributes) -> bool {
        self.conditions.iter().all(|condition| condition.holds(attributes))
    }

    /// Reads `{"tier": "gold", "age": {"ge": 18}, "region": {"in": ["eu", "us"]}, "mail": {"exists": true}}`.
    pub fn from_json(value: &Value) -> Result<Self, String> {
        let table = value.as_object().ok_or("`where` is an object: {\"tier\": \"gold\"}")?;
        let mut conditions = Vec::new();
        for (attribute, value) in table {
            let mut add = |test| conditions.push(Condition { attribute: attribute.clone(), test });
            match value {
                Value::Object(tests) => {
                    for (word, value) in tests.iter().filter(|(word, _)| *word != "and") {
                        add(test_of(attribute, word, value)?);
                    }
                    let more = tests.get("and").map(|more| {
                        let lists = more.as_array().map(|more| more.iter().map(Value::as_object).collect());
                        lists.flatten().ok_or_else(|| format!("`where.{attribute}.and` takes a list of conditions"))
                    });
                    let more: Vec<&Map<String, Value>> = more.transpose()?.unwrap_or_default();
                    for (word, value) in more.into_iter().flatten() {
                        add(test_of(attribute, word, value)?);
                    }
                }
                Value::Array(values) => add(Test::In(values.clone())),
                value => add(Test::In(vec![value.clone()])),
            }
        }
        Ok(Self { conditions })
    }

    /// What [`Predicate::from_json`] reads.
    pub fn to_json(&self) -> Value {
        let mut table = Map::new();
        for Condition { attribute, test } in &self.conditions {
            let tests = table.entry(attribute).or_insert_with(|| Value::Object(Map::new()));
            let Value::Object(tests) = tests else { continue };
            let (word, value): (&str, Value) = match test {
                Test::In(values) => ("in", values.clone().into()),
                Test::NotIn(values) => ("not-in", values.clone().into()),
                Test::Exists(wanted) => ("exists", (*wanted).into()),
                Test::Compare(comparison, value) => {
                    let name = Comparison::ALL.iter().find(|(known, ..)| known == comparison).map_or("", |it| it.2);
                    (name, value.clone())
                }
            };
            if !tests.contains_key(word) {
                tests.insert(word.to_owned(), value);
            } else if let Value::Array(more) = tests.entry("and").or_insert_with(|| Value::Array(Vec::new())) {
                // A second condition of the same kind must hold as well.
                more.push(Value::Object(std::iter::once((word.to_owned(), value)).collect()));
            }
        }
        Value::Object(table)
    }
}

fn test_of(attribute: &str, word: &str, value: &Value) -> Result<Test, String> {
    let list = || value.as_array().cloned().ok_or_else(|| format!("`where.{attribute}.{word}` takes a list"));
    if let Some((comparison, ..)) = Comparison::ALL.iter().find(|(_, sign, name)| *sign == word || *name == word) {
        return Ok(Test::Compare(*comparison, value.clone()));
    }
    match word {
        "eq" | "=" => Ok(Test::In(vec![value.clone()])),
        "ne" | "!=" => Ok(Test::NotIn(vec![value.clone()])),
        "in" => list().map(Test::In),
        "not-in" => list().map(Test::NotIn),
        "exists" => {
            let wanted = value.as_bool().ok_or_else(|| format!("`where.{attribute}.exists` takes true or false"))?;
            Ok(Test::Exists(wanted))
        }
        _ => Err(format!(
            "`where.{attribute}.{word}` is unknown; there are eq, ne, in, not-in, lt, le, gt, ge and exists"
        )),
    }
}

impl std::str::FromStr for Condition {
    type Err = String;

    /// Reads `tier=gold`, `tier=gold,silver`, `tier!=gold`, `age>=18`, `email?` (it is there) or
    /// `!email` (it is not), as the command line has it.
    fn from_str(text: &str) -> Result<Self, String> {
        let usage = || "it takes tier=gold, tier=gold,silver, tier!=gold, age>=18, email? or !email".to_owned();
        let named = |attribute: &str, test| {
            let attribute = attribute.trim();
            if attribute.is_empty() { Err(usage()) } else { Ok(Self { attribute: attribute.to_owned(), test }) }
        };
        let Some(at) = text.find(['=', '<', '>']) else {
            return match (text.strip_prefix('!'), text.strip_suffix('?')) {
                (Some(attribute), _) => named(attribute, Test::Exists(false)),
                (None, Some(attribute)) => named(attribute, Test::Exists(true)),
                (None, None) => Err(usage()),
            };
        };
        let (attribute, rest) = text.split_at(at);
        let values = |text: &str| text.split(',').flat_map(readings).collect::<Vec<_>>();
        if let Some(attribute) = attribute.strip_suffix('!') {
            let rest = rest.strip_prefix('=').ok_or_else(usage)?;
            return named(attribute, Test::NotIn(values(rest)));
        }
        if let Some(rest) = rest.strip_prefix('=') {
            return named(attribute, Test::In(values(rest)));
        }
        for (comparison, sign, _) in Comparison::ALL {
            if let Some(rest) = rest.strip_prefix(sign) {
                // A number compares as one.
                let value = readings(rest).pop().ok_or_else(usage)?;
                return named(attribute, Test::Compare(comparison, value));
            }
        }
        Err(usage())
    }
}

/// What a word of the command line may stand for: itself, and a number or truth value that is
/// spelled so.
fn readings(word: &str) -> Vec<Value> {
    let text = Value::String(word.to_owned());
    match serde_json::from_str::<Value>(word) {
        Ok(value @ (Value::Number(_) | Value::Bool(_))) => vec![text, value],
        _ => vec![text],
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |values: &[Value]| {
            let mut words: Vec<_> = values.iter().map(plain).collect();
            words.dedup();
            words.join(",")
        };
        match &self.test {
            Test::In(values) => write!(f, "{}={}", self.attribute, list(values)),
            Test::NotIn(values) => write!(f, "{}!={}", self.attribute, list(values)),
            Test::Compare(comparison, value) => write!(f, "{}{}{}", self.attribute, comparison.sign(), plain(value)),
            Test::Exists(true) => write!(f, "{}?", self.attribute),
            Test::Exists(false) => write!(f, "!{}", self.attribute),
        }
    }
}

impl fmt::Display for Predicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let conditions: Vec<_> = self.conditions.iter().map(Condition::to_string).collect();
        f.write_str(&conditions.join(" "))
    }
}

/// A value as a person reads it.
pub fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A value as an index has it: values that are the same have the same.
pub fn index_of(value: &Value) -> String {
    match value {
        // 1 and 1.0 are one number.
        Value::Number(number) => match number.as_f64() {
            Some(real) if real.fract() == 0.0 && real.abs() < 9e15 => format!("{real:.0}"),
            _ => number.to_string(),
        },
        other => other.to_string(),
    }
}

fn is_same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(_), Value::Number(_)) => index_of(a) == index_of(b),
        _ => a == b,
    }
}

fn order(a: &Value, b: &Value) -> Option<Ordering> {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64()?.partial_cmp(&b.as_f64()?),
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn attributes(value: Value) -> Attributes {
        let Value::Object(table) = value else { panic!("an object") };
        table
    }

    #[test]
    fn conditions_of_the_command_line_hold_for_what_they_say() {
        let item = attributes(json!({"tier": "gold", "age": 30, "id": 7, "mail": "a@b", "gone": null}));
        for (text, holds) in [
            ("tier=gold", true),
            ("tier=silver", false),
            ("tier=silver,gold", true),
            ("tier!=gold", false),
            ("tier!=silver", true),
            ("age>=30", true),
            ("age>30", false),
            ("age<31", true),
            ("age<=9", false),
            ("id=7", true),
            ("mail?", true),
            ("!mail", false),
            ("!gone", true),
            ("gone!=x", false),
            ("other=x", false),
            ("tier>fish", true),
        ] {
            let condition: Condition = text.parse().expect(text);
            assert_eq!(condition.holds(&item), holds, "{text}");
        }
        for text in ["", "tier", "=gold", "!", "?"] {
            assert!(text.parse::<Condition>().is_err(), "{text}");
        }
    }

    #[test]
    fn conditions_in_json_come_back_as_they_were() {
        let text =
            json!({"tier": "gold", "age": {"ge": 18, "<": 60}, "region": ["eu", "us"], "mail": {"exists": false}});
        let predicate = Predicate::from_json(&text).expect("conditions");
        assert!(predicate.holds(&attributes(json!({"tier": "gold", "age": 18.0, "region": "us"}))));
        assert!(!predicate.holds(&attributes(json!({"tier": "gold", "age": 60, "region": "us"}))));
        assert_eq!(Predicate::from_json(&predicate.to_json()), Ok(predicate));
        let two = ["tier!=gold", "tier!=silver", "age>=18", "age>=21", "age<60"];
        let two = Predicate::new(two.iter().map(|text| text.parse().expect(text)).collect());
        let read = Predicate::from_json(&two.to_json()).expect("conditions");
        assert_eq!(read.to_json(), two.to_json());
        for (tier, age, holds) in [("gold", 30, false), ("silver", 30, false), ("iron", 19, false), ("iron", 21, true)]
        {
            assert_eq!(read.holds(&attributes(json!({"tier": tier, "age": age}))), holds, "{tier} {age}");
        }
        for (bad, part) in [
            (json!({"a": {"and": 3}}), "takes a list"),
            (json!([1]), "an object"),
            (json!({"a": {"near": 3}}), "`where.a.near` is unknown"),
            (json!({"a": {"in": 3}}), "takes a list"),
            (json!({"a": {"exists": "yes"}}), "true or false"),
        ] {
            assert!(Predicate::from_json(&bad).expect_err("bad").contains(part));
        }
    }
}
