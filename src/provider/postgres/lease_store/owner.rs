//! What a process is called among those that share a store, and how others know that it lives.

use std::fmt;

use crate::os;

/// Says of an advisory lock that it is such a process's: "il" before six bytes of chance.
const CLASS: i64 = 0x696c << 48;

/// The name of a process in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// The lock that it holds.
    pub key: i64,
    /// When it was named, in microseconds since 1970, by the server's clock.
    pub since: i64,
    /// For people who read it: the machine and the process there.
    place: String,
}

impl Name {
    /// A new one for this process.
    pub fn new(since: i64) -> Self {
        let chance = uuid::Uuid::new_v4().as_u128() & 0xffff_ffff_ffff;
        let key = CLASS | i64::try_from(chance).unwrap_or_default();
        Self { key, since, place: format!("{} {}", os::host(), std::process::id()) }
    }

    /// Reads what it prints.
    pub fn parse(text: &str) -> Option<Self> {
        let (place, rest) = text.rsplit_once(" lock ")?;
        let (key, since) = rest.split_once(" since ")?;
        Some(Self { key: key.parse().ok()?, since: since.parse().ok()?, place: place.to_owned() })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} lock {} since {}", self.place, self.key, self.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_was_and_no_two_are_alike() {
        let name = Name::new(17);
        assert_eq!(Name::parse(&name.to_string()), Some(name.clone()));
        assert_ne!(Name::new(17).key, name.key);
        assert_eq!(Name::parse("1234-567"), None);
    }
}
