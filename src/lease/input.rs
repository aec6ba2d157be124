//! What a generator is given: inputs that were declared, from what somebody asks for.

use serde_json::{Map, Number, Value};

use super::definition::{Generator, Input};
use super::predicate::{Condition, Predicate, Test, index_of, plain};

impl Generator {
    /// The whole input where these values are given and the others have their defaults.
    pub fn input(&self, given: &Map<String, Value>) -> Result<Map<String, Value>, String> {
        if let Some(name) = given.keys().find(|name| self.inputs.iter().all(|input| input.name != **name)) {
            return Err(self.no_input(name));
        }
        let mut whole = Map::new();
        for input in &self.inputs {
            let value = match given.get(&input.name) {
                Some(value) => input.fit(value).ok_or_else(|| input.misfit(&plain(value)))?,
                None => input.default.clone().ok_or_else(|| input.missing())?,
            };
            whole.insert(input.name.clone(), value);
        }
        Ok(whole)
    }

    /// The input that makes an item which is like that; why there is none otherwise.
    pub fn input_for(&self, predicate: &Predicate) -> Result<Map<String, Value>, String> {
        let is_declared = |condition: &&Condition| self.inputs.iter().any(|input| input.name == condition.attribute);
        // What is only to be there or not to be so may come out right.
        let is_order = |condition: &&Condition| matches!(condition.test, Test::In(_) | Test::Compare(..));
        let stray = predicate.conditions().iter().find(|condition| !is_declared(condition) && is_order(condition));
        if let Some(condition) = stray {
            return Err(self.no_input(&condition.attribute));
        }
        let mut whole = Map::new();
        for input in &self.inputs {
            let its: Vec<_> = predicate.conditions().iter().filter(|it| it.attribute == input.name).collect();
            let asked = its.iter().filter_map(|condition| match &condition.test {
                Test::In(values) => Some(values.iter().filter_map(|value| input.fit(value)).collect::<Vec<_>>()),
                _ => None,
            });
            let usual = || input.default.iter().chain(&input.values).cloned().collect();
            let candidates: Vec<Value> = asked.reduce(|all, more| [all, more].concat()).unwrap_or_else(usual);
            if its.is_empty() && candidates.is_empty() {
                return Err(input.missing());
            }
            let is_right = |value: &&Value| {
                let alone = std::iter::once((input.name.clone(), (*value).clone())).collect();
                its.iter().all(|condition| condition.holds(&alone))
            };
            let words = || its.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            let value = candidates.iter().find(is_right).ok_or_else(|| input.misfit(&words()))?;
            whole.insert(input.name.clone(), value.clone());
        }
        Ok(whole)
    }

    fn no_input(&self, name: &str) -> String {
        let likeness = |input: &&Input| strsim::jaro_winkler(&input.name, name);
        let nearest = self.inputs.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
        match nearest {
            Some(nearest) if likeness(&nearest) > 0.7 => {
                format!("it takes no input {name}; did you mean {}?", nearest.name)
            }
            Some(_) => {
                let names: Vec<_> = self.inputs.iter().map(|input| input.name.as_str()).collect();
                format!("it takes no input {name}; it takes {}", names.join(", "))
            }
            None => format!("it takes no input {name}; it takes none"),
        }
    }
}

impl Input {
    /// A value as this input takes it; `None` where it does not.
    pub fn fit(&self, value: &Value) -> Option<Value> {
        let value = match (self.kind.as_str(), value) {
            ("number", Value::Number(number)) => whole(number),
            // As a shell and a form have it.
            ("number", Value::String(text)) => whole(&text.parse().ok()?),
            ("boolean", Value::String(text)) => text.parse::<bool>().ok()?.into(),
            ("boolean", Value::Bool(_)) | ("text", Value::String(_)) => value.clone(),
            _ => return None,
        };
        let is_one = |known: &Value| index_of(known) == index_of(&value);
        (self.values.is_empty() || self.values.iter().any(is_one)).then_some(value)
    }

    /// What is wrong with such a value.
    pub fn misfit(&self, what: &str) -> String {
        let takes = match self.kind.as_str() {
            _ if !self.values.is_empty() => self.values.iter().map(plain).collect::<Vec<_>>().join(", "),
            "number" => "a number".to_owned(),
            "boolean" => "true or false".to_owned(),
            _ => "a text".to_owned(),
        };
        format!("its input {} cannot be {what}; it takes {takes}", self.name)
    }

    fn missing(&self) -> String {
        format!("its input {} has no default: say which is wanted", self.name)
    }
}

/// A number in the one form that it has here: 6 for 6.0 as well.
fn whole(number: &Number) -> Value {
    serde_json::from_str::<Number>(&index_of(&Value::Number(number.clone()))).unwrap_or_else(|_| number.clone()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn generator() -> Generator {
        let input = |name: &str, kind: &str, values: Value, default: Option<Value>| Input {
            name: name.to_owned(),
            kind: kind.to_owned(),
            values: values.as_array().cloned().unwrap_or_default(),
            default,
            about: None,
        };
        let inputs = vec![
            input("months", "number", json!([]), Some(json!(6))),
            input("tier", "text", json!(["silver", "gold"]), Some(json!("silver"))),
        ];
        Generator { inputs, ..Generator::default() }
    }

    fn made(conditions: &Value) -> Result<String, String> {
        let predicate = Predicate::from_json(conditions).expect("conditions");
        generator().input_for(&predicate).map(|input| Value::Object(input).to_string())
    }

    #[test]
    fn what_is_asked_for_becomes_the_input() {
        assert_eq!(made(&json!({})), Ok(r#"{"months":6,"tier":"silver"}"#.to_owned()));
        assert_eq!(made(&json!({"months": ["12", 12]})), Ok(r#"{"months":12,"tier":"silver"}"#.to_owned()));
        assert_eq!(made(&json!({"months": 3.0, "mail": {"exists": true}})), made(&json!({"months": 3})));
        assert_eq!(made(&json!({"tier": {"ne": "silver"}})), Ok(r#"{"months":6,"tier":"gold"}"#.to_owned()));
        for (conditions, why) in [
            (json!({"moths": 3}), "it takes no input moths; did you mean months?"),
            (json!({"zzz": 3}), "it takes no input zzz; it takes months, tier"),
            (json!({"tier": "lead"}), "its input tier cannot be tier=lead; it takes silver, gold"),
            (json!({"months": {"ge": 7}}), "its input months cannot be months>=7; it takes a number"),
            (json!({"months": "many"}), "its input months cannot be months=many; it takes a number"),
        ] {
            assert_eq!(made(&conditions), Err(why.to_owned()));
        }
    }

    #[test]
    fn given_inputs_are_those_that_were_declared() {
        let input = |given: Value| {
            let Value::Object(given) = given else { panic!("an object") };
            generator().input(&given).map(|input| Value::Object(input).to_string())
        };
        assert_eq!(input(json!({"months": "2"})), Ok(r#"{"months":2,"tier":"silver"}"#.to_owned()));
        assert_eq!(input(json!({"tier": 1})), Err("its input tier cannot be 1; it takes silver, gold".to_owned()));
        assert_eq!(input(json!({"teir": "gold"})), Err("it takes no input teir; did you mean tier?".to_owned()));
    }
}
