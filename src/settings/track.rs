//! Which tables are watched: patterns such as `public.*` and, to leave some out, `!public.audit_*`.

use wildmatch::WildMatch;

/// The patterns, in the order of writing.
#[derive(Clone, Debug)]
pub struct Track {
    patterns: Vec<(bool, WildMatch)>,
    /// Whether somebody asked for it in so many words.
    pub is_explicit: bool,
}

impl Default for Track {
    /// All tables.
    fn default() -> Self {
        Self { patterns: vec![(true, WildMatch::new("*"))], is_explicit: false }
    }
}

impl Track {
    /// Reads patterns. A name without a schema is meant in every schema.
    pub fn parse(patterns: &[String]) -> Result<Self, String> {
        let mut read = Vec::new();
        for pattern in patterns {
            let (wanted, name) = pattern.strip_prefix('!').map_or((true, pattern.as_str()), |name| (false, name));
            if name.trim().is_empty() {
                return Err(format!("{pattern:?} names no table; write public.orders, public.* or !public.audit_*"));
            }
            let whole = if name.contains('.') || name == "*" { name.to_owned() } else { format!("*.{name}") };
            read.push((wanted, WildMatch::new(&whole)));
        }
        if read.iter().all(|(wanted, _)| !wanted) && !read.is_empty() {
            // Only exceptions: from all.
            read.insert(0, (true, WildMatch::new("*")));
        }
        Ok(Self { patterns: read, is_explicit: true })
    }

    /// Watches nothing.
    pub fn nothing() -> Self {
        Self { patterns: Vec::new(), is_explicit: true }
    }

    /// Whether no table is watched.
    pub fn is_off(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether the table `public.orders` is watched: the last pattern that fits decides.
    pub fn wants(&self, table: &str) -> bool {
        self.patterns.iter().rev().find(|(_, pattern)| pattern.matches(table)).is_some_and(|(wanted, _)| *wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_pattern_that_fits_decides() {
        let track = |patterns: &[&str]| {
            Track::parse(&patterns.iter().map(|&pattern| pattern.to_owned()).collect::<Vec<_>>()).expect("patterns")
        };
        assert!(Track::default().wants("public.orders"));
        let some = track(&["public.*", "!audit_*", "audit_kept"]);
        assert!(some.wants("public.orders") && !some.wants("shop.orders"));
        assert!(!some.wants("public.audit_log") && some.wants("public.audit_kept"));
        assert!(track(&["!public.big"]).wants("public.orders"));
        assert!(!track(&["!public.big"]).wants("public.big"));
        assert!(!Track::nothing().wants("public.orders"));
        assert!(Track::parse(&["!".to_owned()]).is_err());
    }
}
