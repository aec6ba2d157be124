//! Passwords: kept out of everything that is stored, printed or listed.

use std::fmt;

/// A password. It prints as `***`; only [`Secret::reveal`] shows it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(String);

impl Secret {
    /// Keeps `text` secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The password itself, for the one place that hands it to a server or worker.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// `text` with the password of every address in it (`scheme://user:password@host`)
/// replaced by `***`.
pub fn mask_addresses(text: &str) -> String {
    let mut masked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        masked.push_str(before);
        let end = after.find(|c: char| c.is_whitespace() || "/\"'<>".contains(c)).unwrap_or(after.len());
        let (authority, tail) = after.split_at(end);
        match authority.rfind('@').and_then(|at| authority[..at].find(':').map(|colon| (colon, at))) {
            Some((colon, at)) => {
                masked.push_str(&authority[..=colon]);
                masked.push_str("***");
                masked.push_str(&authority[at..]);
            }
            None => masked.push_str(authority),
        }
        rest = tail;
    }
    masked.push_str(rest);
    masked
}

/// `text` without the passwords of addresses in it and without any of `secrets`, where
/// one stands as a word of its own.
pub fn mask(text: &str, secrets: &[Secret]) -> String {
    let mut masked = mask_addresses(text);
    for secret in secrets.iter().filter(|secret| secret.0.len() >= 4) {
        masked = mask_word(&masked, secret.reveal());
    }
    masked
}

fn mask_word(text: &str, word: &str) -> String {
    let mut masked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(word) {
        let (before, after) = (&rest[..at], &rest[at + word.len()..]);
        let joined = before.ends_with(char::is_alphanumeric) || after.starts_with(char::is_alphanumeric);
        masked.push_str(before);
        masked.push_str(if joined { word } else { "***" });
        rest = after;
    }
    masked.push_str(rest);
    masked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_of_addresses_are_masked_wherever_they_stand() {
        let text = "x --db=postgres://ann:s3:c@ret@h:5/d?a=b 'mysql://bob:pw@h' sqlite:///a:b@c http://h/p";
        let masked = "x --db=postgres://ann:***@h:5/d?a=b 'mysql://bob:***@h' sqlite:///a:b@c http://h/p";
        assert_eq!(mask_addresses(text), masked);
    }

    #[test]
    fn a_known_password_is_masked_alone_too_but_not_a_syllable() {
        let secrets = [Secret::new("hunter2!"), Secret::new("a")];
        assert_eq!(mask("bad password 'hunter2!', not xhunter2!", &secrets), "bad password '***', not xhunter2!");
    }

    #[test]
    fn a_secret_does_not_print() {
        assert_eq!(format!("{:?}", Secret::new("pw")), "***");
    }
}
