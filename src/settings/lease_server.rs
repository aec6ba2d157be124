//! Where leases are asked for that are not in this ledger.

use url::Url;

use crate::secret::Secret;

/// A service of leases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseServer {
    /// Its address, without a slash at the end.
    pub url: String,
    /// What proves who asks.
    pub token: Option<Secret>,
}

impl LeaseServer {
    /// Reads `https://HOST:PORT`.
    pub fn parse(text: &str, token: Option<&String>) -> Result<Self, String> {
        let url: Url = text.parse().map_err(|error| format!("it is no address: {error}"))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err("it takes an address such as https://leases.example:7070".to_owned());
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("the token stands in ISOLANE_TOKEN and not in the address".to_owned());
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err("it takes nothing behind the path".to_owned());
        }
        let token = token.map(|token| token.trim()).filter(|token| !token.is_empty());
        Ok(Self { url: url.as_str().trim_end_matches('/').to_owned(), token: token.map(Secret::new) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_of_the_web_and_has_no_secret() {
        let url = |text: &str| LeaseServer::parse(text, None).map(|server| server.url);
        assert_eq!(url("http://127.0.0.1:7070/"), Ok("http://127.0.0.1:7070".to_owned()));
        assert_eq!(url("https://host/leases/"), Ok("https://host/leases".to_owned()));
        for (text, part) in [
            ("leases.example", "no address"),
            ("ftp://host", "it takes an address"),
            ("https://a:topsecret@host", "ISOLANE_TOKEN"),
            ("https://host?x=1", "nothing behind"),
        ] {
            let why = url(text).expect_err(text);
            assert!(why.contains(part) && !why.contains("topsecret"), "{why}");
        }
    }
}
