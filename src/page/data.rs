//! What the page shows of a run, once and in few bytes: rows are arrays, words that come
//! again and again stand in a list and are named by their place in it, and times are
//! microseconds since the run began. `web/data.js` reads it.

use std::collections::HashMap;
use std::io::Write;

use serde_json::Value;

use super::Story;
use crate::clock::Timestamp;
use crate::ledger::reading::Question;

/// Tests and long-lived fixtures on a page; a browser has to draw them all.
const MOST_SPANS: u32 = 100_000;
/// Rows of every other kind; the page says how many there are.
const MOST_ROWS: u32 = 5_000;

/// Bytes of messages on a page; those that come later are cut to their beginning.
const MOST_MESSAGES: usize = 8 << 20;
/// How much is left of such a message.
const BEGINNING: usize = 200;

/// How a column is written.
#[derive(Clone, Copy)]
enum As {
    /// As it is.
    Itself,
    /// By its place in the list of words.
    Word,
    /// As microseconds since the beginning: it is microseconds since 1970.
    Micros,
    /// The same, of a text of the views.
    Text,
    /// The message of a test.
    Message,
    /// Not at all.
    Nothing,
}

const PARTS: [(&str, Question, u32, &[As]); 6] = {
    use As::{Itself, Message, Micros, Nothing, Text, Word};
    [
        ("workers", Question::WORKERS, MOST_ROWS, &[Nothing, Word, Itself, Itself, Text, Text, Word]),
        ("tests", Question::SPANS, MOST_SPANS, &[Itself, Word, Itself, Itself, Word, Micros, Micros, Word, Message]),
        (
            "collisions",
            Question::MEETINGS,
            MOST_ROWS,
            &[Word, Itself, Word, Word, Itself, Word, Micros, Word, Itself, Word, Micros, Itself, Itself],
        ),
        ("leaks", Question::LEAKS, MOST_ROWS, &[Nothing, Word, Itself, Word, Itself]),
        ("records", Question::RECORDS, MOST_ROWS, &[Nothing, Word, Itself, Word, Itself, Text, Word, Word]),
        ("left", Question::LEFT, MOST_ROWS, &[Nothing, Word, Itself, Word, Itself, Word, Text, Nothing, Itself]),
    ]
};

/// Words that have a place in the list.
#[derive(Default)]
struct Words {
    places: HashMap<String, usize>,
    list: Vec<String>,
}

impl Words {
    fn place(&mut self, word: &str) -> usize {
        if let Some(place) = self.places.get(word) {
            return *place;
        }
        self.list.push(word.to_owned());
        self.places.insert(word.to_owned(), self.list.len() - 1);
        self.list.len() - 1
    }
}

/// Writes it as JSON.
pub(super) fn write(story: &Story<'_>, out: &mut impl Write) -> anyhow::Result<()> {
    let base = micros(&story.run["started_at"]).unwrap_or_default();
    let (counts, now) = (story.one(Question::COUNTS)?, Timestamp::now().micros());
    write!(out, "{{\"run\":{},\"counts\":{counts},\"base\":{base},\"now\":{}", story.run, now - base)?;
    let mut words = Words::default();
    let mut messages = 0;
    for (name, question, most, columns) in PARTS {
        write!(out, ",\n\"{name}\":[")?;
        let mut between = "\n";
        story.each(question, most, |_, values| {
            let mut row: Vec<Value> = values
                .into_iter()
                .zip(columns)
                .filter_map(|(value, column)| match column {
                    _ if value.is_null() && !matches!(column, As::Nothing) => Some(Value::Null),
                    As::Itself => Some(value),
                    As::Word => value.as_str().map(|word| words.place(word).into()),
                    As::Micros => value.as_i64().map(|at| (at - base).into()),
                    As::Text => Some(micros(&value).map(|at| at - base).into()),
                    As::Message => value.as_str().map(|message| {
                        let room = if messages < MOST_MESSAGES { usize::MAX } else { BEGINNING };
                        let cut: String = message.chars().take(room).collect();
                        messages += cut.len();
                        cut.into()
                    }),
                    As::Nothing => None,
                })
                .collect();
            while row.last().is_some_and(Value::is_null) {
                row.pop();
            }
            out.write_all(between.as_bytes())?;
            between = ",\n";
            Ok(serde_json::to_writer(&mut *out, &row)?)
        })?;
        out.write_all(b"]")?;
    }
    out.write_all(b",\n\"words\":")?;
    serde_json::to_writer(&mut *out, &words.list)?;
    Ok(out.write_all(b"}")?)
}

/// A time of the views in microseconds since 1970.
fn micros(text: &Value) -> Option<i64> {
    Timestamp::parse(text.as_str()?).map(Timestamp::micros)
}
