//! Passwords: kept out of everything that is stored, printed or listed.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC};

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

/// `command` without the passwords of addresses in it, and without the values of what is
/// called a password there: `PGPASSWORD=…`, `password=…` in a connection string or query.
pub fn mask_command(command: &str) -> String {
    let text = mask_addresses(command);
    let mut masked = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(at) = rest.find('=') {
        let (name, value) = rest.split_at(at + 1);
        masked.push_str(name);
        let name = name[..at].to_ascii_lowercase();
        rest = value;
        if ["password", "passwd", "pwd", "secret", "token"].iter().any(|word| name.ends_with(word)) {
            let quote = value.chars().next().filter(|c| "'\"".contains(*c));
            let ends = |c: char| quote.map_or(c.is_whitespace() || "&'\"".contains(c), |quote| c == quote);
            let skip = usize::from(quote.is_some());
            let end = value[skip..].find(ends).map_or(value.len(), |end| end + skip);
            masked.push_str(&value[..skip]);
            masked.push_str("***");
            rest = &value[end..];
        }
    }
    masked.push_str(rest);
    masked
}

/// The passwords of a run, those of its lanes among them; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Vault(Arc<RwLock<Vec<Secret>>>);

impl Vault {
    /// Keeps these.
    pub fn new(secrets: impl IntoIterator<Item = Secret>) -> Self {
        let vault = Self::default();
        secrets.into_iter().for_each(|secret| vault.keep(&secret));
        vault
    }

    /// Keeps one more, as it is and as it stands in an address.
    pub fn keep(&self, secret: &Secret) {
        // What is that short would only garble words.
        if secret.0.len() < 4 {
            return;
        }
        let encoded = Secret(percent_encoding::utf8_percent_encode(&secret.0, NOT_UNRESERVED).to_string());
        let mut secrets = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for secret in [secret.clone(), encoded] {
            if !secrets.contains(&secret) {
                secrets.push(secret);
            }
        }
    }

    /// `text` without the passwords of addresses in it and without any that is kept, where
    /// one stands as a word of its own.
    pub fn mask(&self, text: &str) -> String {
        let secrets = self.0.read().unwrap_or_else(PoisonError::into_inner);
        secrets.iter().fold(mask_addresses(text), |text, secret| mask_word(&text, secret.reveal()))
    }
}

/// What is encoded in an address: all but the unreserved characters of RFC 3986 §2.3.
const NOT_UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

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
        let vault = Vault::new([Secret::new("hunter2!"), Secret::new("a")]);
        assert_eq!(vault.mask("bad password 'hunter2!', not xhunter2!"), "bad password '***', not xhunter2!");
        assert_eq!(vault.mask("as in hunter2%21 a"), "as in *** a");
    }

    #[test]
    fn what_a_command_calls_a_password_is_masked() {
        let command = "env PGPASSWORD=foo x=1 'host=h password=bar' \"http://h/?a=b&password=c&d=e\" Pwd='a b' end";
        let masked = "env PGPASSWORD=*** x=1 'host=h password=***' \"http://h/?a=b&password=***&d=e\" Pwd='***' end";
        assert_eq!(mask_command(command), masked);
    }

    #[test]
    fn a_secret_does_not_print() {
        assert_eq!(format!("{:?}", Secret::new("pw")), "***");
    }
}
