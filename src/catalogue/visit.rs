//! Who asks for a page or sends a form, and whether it is theirs.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;

use super::Hall;
use super::session::{Seat, is_same};
use crate::secret::Secret;

/// Somebody with a token, and what that is good for. Everybody who has one may look.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Visitor {
    /// What they are called: whose name stands at what they hold.
    pub name: String,
    /// They may request and release.
    pub may_lease: bool,
    /// They may do everything.
    pub may_admin: bool,
}

/// A visitor who has logged in.
#[derive(Debug)]
pub(super) struct Guest {
    pub visitor: Visitor,
    pub seat: Seat,
}

impl Guest {
    async fn find(hall: &Hall, headers: &HeaderMap) -> Result<Option<Self>, String> {
        let known = cookie(headers, &hall.cookie_name("isolane", headers)).and_then(|it| hall.sessions.find(it));
        let Some(seat) = known else { return Ok(None) };
        // A token that is taken back is worth nothing here either.
        let visitor = hall.who_has(&seat.token).await?;
        if visitor.is_none() {
            hall.sessions.end(&seat.key);
        }
        Ok(visitor.map(|visitor| Self { visitor, seat }))
    }
}

impl FromRequestParts<Arc<Hall>> for Guest {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, hall: &Arc<Hall>) -> Result<Self, Response> {
        let found = Self::find(hall, &parts.headers).await;
        let found = found.map_err(|why| hall.sheets.refusal(StatusCode::SERVICE_UNAVAILABLE, &why))?;
        found.ok_or_else(|| {
            // Back to where they wanted to look; a form is lost.
            let path = parts.uri.path();
            let next = if parts.method == Method::GET && path.starts_with("/pools/") { path } else { "/" };
            Redirect::to(&format!("/login?next={}", utf8_percent_encode(next, NON_ALPHANUMERIC))).into_response()
        })
    }
}

/// A form that one of our pages has sent.
#[derive(Debug)]
pub(super) struct Form {
    pub guest: Guest,
    pub fields: Fields,
}

impl FromRequest<Arc<Hall>> for Form {
    type Rejection = Response;

    async fn from_request(request: Request, hall: &Arc<Hall>) -> Result<Self, Response> {
        let (mut parts, body) = request.into_parts();
        let guest = Guest::from_request_parts(&mut parts, hall).await?;
        let is_own = hall.is_own(&parts.headers);
        let fields = Fields::read(Request::from_parts(parts, body)).await?;
        if !is_own || !fields.get("proof").is_some_and(|proof| is_same(proof, &guest.seat.proof)) {
            return Err(hall.sheets.refusal(StatusCode::FORBIDDEN, FOREIGN));
        }
        Ok(Self { guest, fields })
    }
}

/// What is said about a form that may be somebody else's.
pub(super) const FOREIGN: &str = "This form was not sent from this page, or it is too old. Nothing was done.";

/// The fields of a form.
#[derive(Debug)]
pub(super) struct Fields(Vec<(String, String)>);

impl Fields {
    /// Reads them from a request.
    pub async fn read(request: Request) -> Result<Self, Response> {
        let body = Bytes::from_request(request, &()).await.map_err(IntoResponse::into_response)?;
        Ok(Self(url::form_urlencoded::parse(&body).into_owned().collect()))
    }

    /// What stands in a field, without space around it; nothing where it is empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        let value = self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.trim());
        value.filter(|value| !value.is_empty())
    }

    /// Where the form stood, if that is a page of ours.
    pub fn back(&self) -> &str {
        self.get("back").filter(|path| is_page(path)).unwrap_or("/")
    }
}

/// Whether this is the path of a page. It may be anything that somebody wrote into a link.
pub(super) fn is_page(path: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/%-_.~".contains(c);
    path == "/" || path.strip_prefix("/pools/").is_some_and(|rest| !rest.contains('/') && rest.chars().all(is_plain))
}

impl Hall {
    /// Who has a token now; an error where that cannot be told.
    pub async fn who_has(&self, token: &Secret) -> Result<Option<Visitor>, String> {
        (self.catalogue.doorkeeper)(token.reveal().to_owned()).await
    }

    /// Whether a request comes from a page of this server: a browser says where from.
    pub fn is_own(&self, headers: &HeaderMap) -> bool {
        let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
        if text("sec-fetch-site").is_some_and(|site| site != "same-origin") {
            return false;
        }
        let Some(origin) = text("origin") else { return true };
        let (scheme, authority) = origin.split_once("://").unwrap_or_default();
        // A proxy may have taken the TLS away, and nothing adds it.
        let is_scheme = scheme == "https" || (scheme == "http" && !self.catalogue.is_secure);
        is_scheme && text("host").is_some_and(|host| host.eq_ignore_ascii_case(authority))
    }

    /// What a cookie of ours is called. Servers on several ports of one host share its cookies.
    pub fn cookie_name(&self, name: &str, headers: &HeaderMap) -> String {
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let port = host.rsplit_once(':').map_or("", |(_, port)| port);
        let port: String = port.chars().filter(char::is_ascii_digit).collect();
        let prefix = if self.catalogue.is_secure { "__Host-" } else { "" };
        format!("{prefix}{name}{port}")
    }

    /// A cookie as it is set; without an age it is gone.
    pub fn cookie(&self, name: &str, value: &str, age: u64) -> String {
        let secure = if self.catalogue.is_secure { "; Secure" } else { "" };
        format!("{name}={value}; Path=/; Max-Age={age}; HttpOnly; SameSite=Strict{secure}")
    }
}

/// The value of a cookie.
pub(super) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = all.flat_map(|text| text.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(known, _)| *known == name).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_back_leads_to_our_own_pages_only() {
        for path in ["/", "/pools/acct", "/pools/a%20b%2Fc"] {
            assert!(is_page(path), "{path}");
        }
        for path in ["", "//evil.example", "/\\evil.example", "https://evil.example", "/pools/a/b", "/pools/\r\nX: y"] {
            assert!(!is_page(path), "{path}");
        }
    }

    #[test]
    fn a_cookie_is_found_among_others() {
        let mut headers = HeaderMap::new();
        headers.append(header::COOKIE, "a=1; isolane=abc".parse().expect("a header"));
        headers.append(header::COOKIE, "b=2".parse().expect("a header"));
        assert_eq!(cookie(&headers, "isolane"), Some("abc"));
        assert_eq!(cookie(&headers, "b"), Some("2"));
        assert_eq!(cookie(&headers, "isolan"), None);
    }
}
