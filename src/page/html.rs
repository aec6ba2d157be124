//! One page that needs nothing else: no network, no server, no other file.

use std::io::{self, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::{Digest, Sha256};

use super::{Story, TONE, data};

const FRAME: &str = include_str!("web/page.html");
const STYLE: [&str; 3] = [TONE, include_str!("web/page.css"), include_str!("web/tables.css")];
/// They are one script, in this order.
const SCRIPT: [&str; 7] = [
    include_str!("web/data.js"),
    include_str!("web/filter.js"),
    include_str!("web/timeline.js"),
    include_str!("web/pointer.js"),
    include_str!("web/detail.js"),
    include_str!("web/tables.js"),
    include_str!("web/main.js"),
];

/// Writes the page.
pub(super) fn write(story: &Story<'_>, out: &mut impl Write) -> anyhow::Result<()> {
    let (style, script) = (STYLE.concat(), SCRIPT.concat());
    // Whatever a test is called or says: a browser executes these two texts and no other.
    let policy = format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; img-src data:; base-uri 'none'; form-action 'none'",
        hash(&script),
        hash(&style)
    );
    let mut rest = FRAME;
    while let Some((before, name, after)) = placeholder(rest) {
        out.write_all(before.as_bytes())?;
        match name {
            "policy" => out.write_all(policy.as_bytes())?,
            "style" => out.write_all(style.as_bytes())?,
            "script" => out.write_all(script.as_bytes())?,
            "version" => out.write_all(env!("CARGO_PKG_VERSION").as_bytes())?,
            "data" => data::write(story, &mut Inert(&mut *out))?,
            _ => {}
        }
        rest = after;
    }
    Ok(out.write_all(rest.as_bytes())?)
}

/// What stands before the next `{{name}}`, the name, and what stands behind it.
fn placeholder(text: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = text.split_once("{{")?;
    let (name, after) = rest.split_once("}}")?;
    Some((before, name, after))
}

/// A source in a Content-Security-Policy: the text whose hash this is.
fn hash(text: &str) -> String {
    format!("sha256-{}", BASE64.encode(Sha256::digest(text)))
}

/// JSON on its way into an element of a page, which no `</script>` within it can end. In
/// JSON a `<` stands in texts only, and may be written by its number there.
struct Inert<W>(W);

impl<W: Write> Write for Inert<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for (at, part) in bytes.split(|byte| *byte == b'<').enumerate() {
            if at > 0 {
                self.0.write_all(b"\\u003c")?;
            }
            self.0.write_all(part)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_ends_the_element_that_it_is_in() {
        let text = "a<</script><!--é";
        let mut out = Vec::new();
        serde_json::to_writer(Inert(&mut out), text).expect("written");
        assert!(!out.contains(&b'<'));
        assert_eq!(serde_json::from_slice::<String>(&out).expect("JSON"), text);
    }

    #[test]
    fn the_frame_has_a_place_for_everything_and_the_parts_stay_in_theirs() {
        let mut names = Vec::new();
        let mut rest = FRAME;
        while let Some((_, name, after)) = placeholder(rest) {
            names.push(name);
            rest = after;
        }
        assert_eq!(names, ["policy", "style", "version", "data", "script"]);
        assert!(!STYLE.concat().contains("</") && !SCRIPT.concat().contains("</script"));
    }
}
