//! What the error of a failed test says of rows: PostgreSQL's own words, wherever a driver or
//! a library has put them.

use crate::collision::Pattern;

/// Which end of a key is in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// A row with this unique key is there already.
    Exists,
    /// The row that is referred to is not there.
    Missing,
    /// Rows refer to it still.
    Referenced,
}

/// A key that an error names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyTrouble {
    /// The constraint that was violated.
    pub constraint: String,
    /// The values of its columns, joined by `, `.
    pub values: String,
    /// What is wrong with it.
    pub trouble: Trouble,
}

impl KeyTrouble {
    /// How two tests met, where another had written that key.
    pub fn pattern(&self) -> Pattern {
        match self.trouble {
            Trouble::Exists => Pattern::DuplicateKey,
            Trouble::Missing | Trouble::Referenced => Pattern::ForeignKey,
        }
    }
}

/// What was found in a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Troubles {
    /// Keys.
    pub keys: Vec<KeyTrouble>,
    /// Sessions that went on when this one was ended to break a deadlock.
    pub survivors: Vec<i32>,
}

/// How the server ends the sentence about a key.
const ENDINGS: [(&str, Trouble); 3] = [
    (") already exists", Trouble::Exists),
    (") is not present in table", Trouble::Missing),
    (") is still referenced from table", Trouble::Referenced),
];

/// Reads a text.
pub fn read(text: &str) -> Troubles {
    // Rust's debug form of a text, and JSON.
    let text = text.replace("\\\"", "\"");
    let mut found = Troubles::default();
    let constraints = constraints(&text);
    for (at, _) in text.match_indices("Key (") {
        let sentence = &text[at..];
        let Some((columns, rest)) = sentence["Key (".len()..].split_once(")=(") else { continue };
        if columns.contains('\n') {
            continue;
        }
        let Some((end, trouble)) = ENDINGS
            .iter()
            .filter_map(|(ending, trouble)| Some((rest.find(ending)?, *trouble)))
            .min_by_key(|(at, _)| *at)
        else {
            continue;
        };
        // The constraint is named just before, or, in a list of fields, somewhere near.
        let before = constraints.iter().rfind(|(place, _)| *place < at);
        let Some((_, constraint)) = before.or(constraints.first()) else { continue };
        let trouble = KeyTrouble { constraint: constraint.clone(), values: rest[..end].to_owned(), trouble };
        if !found.keys.contains(&trouble) {
            found.keys.push(trouble);
        }
    }
    if text.contains("deadlock detected") {
        for (at, _) in text.match_indices("blocked by process ") {
            let digits: String =
                text[at + "blocked by process ".len()..].chars().take_while(char::is_ascii_digit).collect();
            found.survivors.extend(digits.parse::<i32>().ok());
        }
        // The first to wait is the one that was ended.
        let own = text
            .find("Process ")
            .map(|at| text[at + "Process ".len()..].chars().take_while(char::is_ascii_digit).collect::<String>());
        let own = own.and_then(|digits| digits.parse::<i32>().ok());
        found.survivors.retain(|pid| Some(*pid) != own);
        found.survivors.dedup();
    }
    found
}

/// Where a text names constraints.
fn constraints(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for mark in ["constraint \"", "constraint: Some(\""] {
        for (at, _) in text.match_indices(mark) {
            let rest = &text[at + mark.len()..];
            if let Some(end) = rest.find('"') {
                found.push((at, rest[..end].to_owned()));
            }
        }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> (String, String, Trouble) {
        let found = read(text).keys;
        assert_eq!(found.len(), 1, "{found:?}");
        (found[0].constraint.clone(), found[0].values.clone(), found[0].trouble)
    }

    #[test]
    fn keys_are_found_in_the_texts_of_drivers() {
        let psycopg = "(psycopg.errors.UniqueViolation) duplicate key value violates unique constraint \"customers_email_key\"\nDETAIL:  Key (email)=(a (b), c@x.org) already exists.";
        assert_eq!(one(psycopg), ("customers_email_key".into(), "a (b), c@x.org".into(), Trouble::Exists));
        let sqlx = "Database(PgDatabaseError { severity: Error, code: \"23505\", message: \"duplicate key value violates unique constraint \\\"u\\\"\", detail: Some(\"Key (a, b)=(1, x) already exists.\"), table: Some(\"t\"), constraint: Some(\"u\") })";
        assert_eq!(one(sqlx), ("u".into(), "1, x".into(), Trouble::Exists));
        let missing = "insert or update on table \"items\" violates foreign key constraint \"items_order_id_fkey\"\nDETAIL:  Key (order_id)=(5) is not present in table \"orders\".";
        assert_eq!(one(missing), ("items_order_id_fkey".into(), "5".into(), Trouble::Missing));
        let held = "update or delete on table \"orders\" violates foreign key constraint \"items_order_id_fkey\" on table \"items\"\nDETAIL:  Key (id)=(5) is still referenced from table \"items\".";
        assert_eq!(one(held), ("items_order_id_fkey".into(), "5".into(), Trouble::Referenced));
        assert_eq!(read("assert 3 == 4"), Troubles::default());
    }

    #[test]
    fn the_survivor_of_a_deadlock_is_the_other_one() {
        let text = "deadlock detected\nDETAIL:  Process 11 waits for ShareLock on transaction 5; blocked by process 22.\nProcess 22 waits for ShareLock on transaction 6; blocked by process 11.\nHINT:  See server log";
        assert_eq!(read(text).survivors, [22]);
    }
}
