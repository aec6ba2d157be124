//! Names: of runs, lanes and workers, and of everything that is made for them.
//!
//! They are types and not strings, so that a name is checked once, where it is
//! born; [`Identifier`] is the only thing that goes into SQL text.

use std::fmt;

use uuid::Uuid;

/// The id of one run: a UUID, version 7 (RFC 9562 §5.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RunId(Uuid);

impl RunId {
    /// A new id for a run that starts `unix_ms` milliseconds after 1970.
    pub fn new(unix_ms: u64) -> Self {
        // All bits after the time are random: the tag is cut from the end, and
        // two runs started in one millisecond must differ in it.
        let random = Uuid::new_v4().into_bytes();
        let mut tail = [0; 10];
        tail[..6].copy_from_slice(&random[..6]);
        tail[6..].copy_from_slice(&random[12..]);
        Self(uuid::Builder::from_unix_timestamp_millis(unix_ms, &tail).into_uuid())
    }

    /// Reads an id, in any spelling of a UUID.
    pub fn parse(text: &str) -> Option<Self> {
        Uuid::parse_str(text).ok().map(Self)
    }

    /// The run's tag.
    pub fn tag(&self) -> Tag {
        let text = self.0.simple().to_string();
        Tag(text[20..].to_owned())
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// The last group of a run's UUID: twelve hex digits, all random.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(String);

impl Tag {
    /// Reads a tag.
    pub fn parse(text: &str) -> Option<Self> {
        let is_tag =
            text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        is_tag.then(|| Self(text.to_owned()))
    }

    /// The twelve digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// isolane's numbered place that a worker occupies, counted from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane(pub u32);

impl Lane {
    /// The lane's prefix in the run with this tag: letters and digits only. No
    /// lane's prefix is a prefix of another's, because the closing `x` ends the
    /// number.
    pub fn prefix(self, tag: &Tag) -> String {
        format!("i{tag}w{}x", self.0)
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whose a resource is. Places are undone in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// A lane.
    Lane(Lane),
    /// A copy that no worker gets: the next run begins with it.
    Spare,
    /// The template of the run, in which `--setup` works.
    Template,
    /// The run itself.
    Run,
}

impl Place {
    /// The name of this place's database, schema or role: `isolane_<tag>_w3`,
    /// `isolane_<tag>_template`.
    pub fn schema(self, tag: &Tag) -> String {
        match self {
            Self::Lane(lane) => format!("isolane_{tag}_w{lane}"),
            Self::Spare => format!("isolane_{tag}_spare"),
            Self::Template => format!("isolane_{tag}_template"),
            Self::Run => format!("isolane_{tag}"),
        }
    }

    /// The prefix that a worker in this place gives its records.
    pub fn prefix(self, tag: &Tag) -> String {
        match self {
            Self::Lane(lane) => lane.prefix(tag),
            Self::Spare => format!("i{tag}sx"),
            Self::Template => format!("i{tag}tx"),
            Self::Run => format!("i{tag}rx"),
        }
    }

    /// What the ledger calls it: a lane's number, `template` or `run`.
    pub fn word(self) -> String {
        match self {
            Self::Lane(lane) => lane.to_string(),
            Self::Spare => "spare".to_owned(),
            Self::Template => "template".to_owned(),
            Self::Run => "run".to_owned(),
        }
    }

    /// The place that has this word.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "spare" => Some(Self::Spare),
            "template" => Some(Self::Template),
            "run" => Some(Self::Run),
            number => number.parse().ok().map(|number| Self::Lane(Lane(number))),
        }
    }

    /// The lane, where it is one.
    pub fn lane(self) -> Option<Lane> {
        match self {
            Self::Lane(lane) => Some(lane),
            Self::Spare | Self::Template | Self::Run => None,
        }
    }
}

/// A name as it goes into SQL text: in double quotes, with quotes inside doubled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identifier(String);

impl Identifier {
    /// The longest name PostgreSQL keeps whole, in bytes (`NAMEDATALEN - 1`).
    pub const MAX_BYTES: usize = 63;

    /// Takes a name; `None` where it is empty, too long to be kept whole, or has a
    /// NUL byte, which SQL text cannot carry.
    pub fn new(name: impl Into<String>) -> Option<Self> {
        let name = name.into();
        let usable = !name.is_empty() && name.len() <= Self::MAX_BYTES && !name.contains('\0');
        usable.then_some(Self(name))
    }
}

impl fmt::Display for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.replace('"', "\"\""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_id_is_version_seven_and_its_tag_the_last_group() {
        let id = RunId::new(1_790_000_000_000);
        let text = id.to_string();
        assert_eq!(&text[14..15], "7");
        assert!(text.ends_with(&format!("-{}", id.tag())));
        assert_eq!(RunId::parse(&text), Some(id));
    }

    #[test]
    fn runs_of_one_millisecond_have_different_tags() {
        let tags: std::collections::HashSet<_> = (0..1000).map(|_| RunId::new(1).tag()).collect();
        assert_eq!(tags.len(), 1000);
    }

    #[test]
    fn no_prefix_is_a_prefix_of_another() {
        let tag = RunId::new(1).tag();
        let prefixes: Vec<_> = (0..120).map(|n| Lane(n).prefix(&tag)).collect();
        for a in &prefixes {
            for b in &prefixes {
                assert!(a == b || !b.starts_with(a.as_str()), "{a} {b}");
            }
        }
    }

    #[test]
    fn an_identifier_cannot_leave_its_quotes() {
        let name = Identifier::new(r#"a"; drop table x; --"#).expect("usable");
        assert_eq!(name.to_string(), r#""a""; drop table x; --""#);
        assert_eq!(Identifier::new("x".repeat(64)), None);
        assert_eq!(Identifier::new(""), None);
    }
}
