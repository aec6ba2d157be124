//! Templates for variables of a worker: `SHOP_DB={database_url}`, `PORT={port:0}`.

use std::fmt::Write;

use crate::os::port;

/// The names a template may use, besides `{port:K}`.
pub const NAMES: [&str; 13] = [
    "database_url",
    "host",
    "port",
    "user",
    "password",
    "database",
    "schema",
    "prefix",
    "lane",
    "worker",
    "dir",
    "run_id",
    "tag",
];

/// A template, read and found usable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvTemplate(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Name(&'static str),
    Port(u16),
}

impl EnvTemplate {
    /// Reads a template; the error says what is wrong and fits behind "in the template".
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            plain.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if rest.starts_with(brace) {
                plain.push_str(brace);
                rest = &rest[1..];
                continue;
            }
            let Some((name, after)) = (brace == "{").then(|| rest.split_once('}')).flatten() else {
                return Err(format!("a lone `{brace}` (write `{brace}{brace}` for the character itself)"));
            };
            parts.push(Part::Text(std::mem::take(&mut plain)));
            parts.push(Self::placeholder(name)?);
            rest = after;
        }
        plain.push_str(rest);
        parts.push(Part::Text(plain));
        Ok(Self(parts))
    }

    fn placeholder(name: &str) -> Result<Part, String> {
        if let Some(known) = NAMES.iter().find(|known| **known == name) {
            return Ok(Part::Name(known));
        }
        if let Some(number) = name.strip_prefix("port:") {
            return match number.parse() {
                Ok(number) if number < port::BLOCK => Ok(Part::Port(number)),
                _ => Err(format!("`{{{name}}}`: a lane has the ports 0 to {}", port::BLOCK - 1)),
            };
        }
        Err(format!("`{{{name}}}` is unknown; there are {{{}}} and {{port:0}}", NAMES.join("}, {")))
    }

    /// The text for a worker. `value` knows the names; `None` is a name that has no value
    /// there, such as `{host}` where there is no server, and reads as nothing.
    pub fn render(&self, value: impl Fn(&str) -> Option<String>, port_base: u16) -> String {
        self.0.iter().fold(String::new(), |mut text, part| {
            match part {
                Part::Text(plain) => text.push_str(plain),
                Part::Name(name) => text.push_str(&value(name).unwrap_or_default()),
                Part::Port(number) => {
                    let _ = write!(text, "{}", port_base + number);
                }
            }
            text
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_filled_in() {
        let template = EnvTemplate::parse("{{x}} {lane}-{host}:{port:3}").expect("template");
        let value = |name: &str| (name == "lane").then(|| "4".to_owned());
        assert_eq!(template.render(value, 20_000), "{x} 4-:20003");
    }

    #[test]
    fn what_cannot_be_filled_in_is_refused() {
        for text in ["{lne}", "{", "x}", "{port:20}", "{port:x}", "{lane"] {
            assert!(EnvTemplate::parse(text).is_err(), "{text}");
        }
    }
}
