//! All that the ledger says of a run, as one JSON object: rows with the columns' names of
//! the views that users know.

use std::io::Write;

use serde::Serializer;
use serde::ser::SerializeMap;

use super::Story;
use crate::ledger::reading::Question;

const PARTS: [(&str, Question); 6] = [
    ("workers", Question::WORKERS),
    ("tests", Question::TESTS),
    ("collisions", Question::COLLISIONS),
    ("leaks", Question::LEAKS),
    ("records", Question::RECORDS),
    ("resources", Question::RESOURCES),
];

/// Writes it, a row a line.
pub(super) fn write(story: &Story<'_>, out: &mut impl Write) -> anyhow::Result<()> {
    write!(out, "{{\"run\": {}", story.run)?;
    for (name, question) in PARTS {
        write!(out, ",\n\"{name}\": [")?;
        let mut between = "\n  ";
        story.each(question, u32::MAX, |names, values| {
            out.write_all(between.as_bytes())?;
            between = ",\n  ";
            let mut object = serde_json::Serializer::new(&mut *out);
            let mut object = object.serialize_map(Some(names.len()))?;
            for (name, value) in names.iter().zip(&values) {
                object.serialize_entry(name, value)?;
            }
            Ok(object.end()?)
        })?;
        out.write_all(b"]")?;
    }
    Ok(out.write_all(b"}\n")?)
}
