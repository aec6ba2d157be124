//! Who may do what: bearer tokens with roles. A token is random, shown once, and kept as its
//! hash; it is compared with all that are known in a time that tells nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use crate::api::leases::Party;
use crate::api::problem::Problem;
use crate::clock::Timestamp;
use crate::ledger::token::{Role, Token};
use crate::secret::Secret;

/// What every token begins with, so that whoever finds one knows what it is.
const MARK: &str = "isolane_";
/// For how long what was read of the tokens counts.
const FRESH: Duration = Duration::from_millis(500);

/// Reads the tokens that there are.
pub type Read = dyn Fn() -> Result<Vec<Token>, String> + Send + Sync;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The token's name.
    pub name: Arc<str>,
    /// What it allows.
    pub role: Role,
}

/// A new token.
pub fn invent() -> Result<Secret, String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| format!("the system has no random numbers: {error}"))?;
    Ok(Secret::new(format!("{MARK}{}", URL_SAFE_NO_PAD.encode(bytes))))
}

/// What is kept of a token. It is random itself, so that one round is enough.
pub fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// Knows the tokens.
pub struct Access {
    read: Box<Read>,
    known: Mutex<Known>,
    /// How many requests a second one token may make.
    rate: u32,
    buckets: Mutex<HashMap<Arc<str>, Bucket>>,
}

#[derive(Default)]
struct Known {
    tokens: Vec<Token>,
    at: Option<Instant>,
}

/// What is left of a second's requests.
struct Bucket {
    left: f64,
    at: Instant,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("rate", &self.rate).finish_non_exhaustive()
    }
}

impl Access {
    /// Access for the tokens that `read` reads, each of which may make `rate` requests a second.
    pub fn new(read: Box<Read>, rate: u32) -> Self {
        Self { read, known: Mutex::default(), rate, buckets: Mutex::default() }
    }

    /// Whose token this is.
    pub fn caller(&self, token: &str) -> Result<Caller, Problem> {
        let hash = hash(token);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.at.is_none_or(|at| at.elapsed() > FRESH) {
            known.tokens = self.tokens()?;
            known.at = Some(Instant::now());
        }
        if find(&known.tokens, &hash).is_none() {
            // It may have been made just now.
            known.tokens = self.tokens()?;
        }
        let Some(found) = find(&known.tokens, &hash) else {
            return Err(unauthorized("this token is not known here; `isolane serve --new-token NAME` makes one"));
        };
        if found.expires.is_some_and(|at| at <= Timestamp::now()) {
            return Err(unauthorized("this token has expired; `isolane serve --new-token NAME` makes another"));
        }
        Ok(Caller { name: found.name.as_str().into(), role: found.role })
    }

    /// Lets a request in, with who makes it in its extensions; or says why not.
    pub fn admit(&self, request: &mut Request) -> Result<(), Box<Response>> {
        let Some(caller) = self.who(request)? else { return Ok(()) };
        if caller.role < Role::Admin {
            request.extensions_mut().insert(Party(Arc::clone(&caller.name)));
        }
        request.extensions_mut().insert(caller);
        Ok(())
    }

    /// Who makes a request, where that matters; or why it is refused.
    fn who(&self, request: &Request) -> Result<Option<Caller>, Box<Response>> {
        let Some(needed) = needed(request.method(), request.uri().path()) else { return Ok(None) };
        let missing = "a token is needed: Authorization: Bearer TOKEN, for isolane in ISOLANE_TOKEN";
        let token = bearer(request).ok_or_else(|| Box::new(refuse(unauthorized(missing), None)))?;
        let caller = self.caller(token).map_err(|problem| Box::new(refuse(problem, Some("invalid_token"))))?;
        self.count(&caller.name).map_err(|wait| {
            let detail = format!("the token {} makes more than {} requests a second", caller.name, self.rate);
            let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "too-many-requests", detail);
            let mut response = problem.into_response();
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1));
            Box::new(response)
        })?;
        if caller.role < needed {
            let detail = format!("the token {} has the role {}, and this takes {needed}", caller.name, caller.role);
            let problem = Problem::new(StatusCode::FORBIDDEN, "forbidden", detail);
            return Err(Box::new(refuse(problem, Some("insufficient_scope"))));
        }
        Ok(Some(caller))
    }

    fn tokens(&self) -> Result<Vec<Token>, Problem> {
        (self.read)().map_err(|why| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "store", why))
    }

    /// Counts a request; how long to wait where there were too many.
    fn count(&self, name: &Arc<str>) -> Result<(), Duration> {
        let rate = f64::from(self.rate);
        let now = Instant::now();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = buckets.entry(Arc::clone(name)).or_insert(Bucket { left: rate, at: now });
        bucket.left = (bucket.left + rate * (now - bucket.at).as_secs_f64()).min(rate);
        bucket.at = now;
        if bucket.left < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - bucket.left) / rate));
        }
        bucket.left -= 1.0;
        Ok(())
    }
}

/// The token with this hash. All are looked at, whichever it is.
fn find<'a>(tokens: &'a [Token], hash: &[u8; 32]) -> Option<&'a Token> {
    let mut place = u64::MAX;
    for (at, token) in (0..).zip(tokens) {
        let is_it: Choice = token.hash.ct_eq(hash);
        place.conditional_assign(&at, is_it);
    }
    tokens.get(usize::try_from(place).ok()?)
}

fn unauthorized(detail: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
}

/// What a request needs; nothing, where anybody may make it.
fn needed(method: &Method, path: &str) -> Option<Role> {
    let parts: Vec<_> = path.split('/').skip(1).collect();
    match (method.as_str(), &parts[..]) {
        (_, ["healthz" | "openapi.json"]) => None,
        ("GET" | "HEAD", _) => Some(Role::Read),
        ("POST", ["v1", "leases"] | ["v1", "leases", _, "renew"] | ["v1", "holders", _])
        | ("DELETE", ["v1", "leases", _]) => Some(Role::Lease),
        _ => Some(Role::Admin),
    }
}

/// The token that a request carries.
fn bearer(request: &Request) -> Option<&str> {
    let value = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn refuse(problem: Problem, error: Option<&str>) -> Response {
    let is_away = problem.status == StatusCode::SERVICE_UNAVAILABLE;
    let mut response = problem.into_response();
    if is_away {
        return response;
    }
    let challenge = error.map_or_else(
        || "Bearer realm=\"isolane\"".to_owned(),
        |error| format!("Bearer realm=\"isolane\", error=\"{error}\""),
    );
    if let Ok(challenge) = HeaderValue::from_str(&challenge) {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(rate: u32) -> Access {
        let token = |name: &str, secret: &str, role, expires| Token {
            name: name.to_owned(),
            role,
            hash: hash(secret),
            made: Timestamp(0),
            expires,
        };
        let tokens = vec![
            token("a", "one", Role::Read, None),
            token("b", "two", Role::Admin, None),
            token("c", "three", Role::Admin, Some(Timestamp(1))),
        ];
        Access::new(Box::new(move || Ok(tokens.clone())), rate)
    }

    #[test]
    fn a_token_is_whose_it_is_and_nobody_elses() {
        let access = access(10);
        assert_eq!(
            access.caller("two").map(|caller| (caller.name.to_string(), caller.role)).ok(),
            Some(("b".to_owned(), Role::Admin))
        );
        assert_eq!(access.caller("one").map(|caller| caller.role).ok(), Some(Role::Read));
        for wrong in ["three", "four", "", "on", "onee"] {
            let problem = access.caller(wrong).expect_err(wrong);
            assert_eq!((problem.status, problem.code), (StatusCode::UNAUTHORIZED, "unauthorized"));
        }
        let (one, other) = (invent().expect("random"), invent().expect("random"));
        assert!(one != other && one.reveal().len() == MARK.len() + 43);
    }

    #[test]
    fn who_asks_too_often_waits_and_others_do_not() {
        let access = access(3);
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        assert!((0..3).all(|_| access.count(&a).is_ok()));
        let wait = access.count(&a).expect_err("too many");
        assert!(wait <= Duration::from_millis(334), "{wait:?}");
        access.count(&b).expect("another's");
    }

    #[test]
    fn each_path_takes_its_role() {
        for (method, path, role) in [
            ("GET", "/healthz", None),
            ("GET", "/openapi.json", None),
            ("GET", "/v1/leases", Some(Role::Read)),
            ("GET", "/metrics", Some(Role::Read)),
            ("POST", "/v1/leases", Some(Role::Lease)),
            ("POST", "/v1/leases/x/renew", Some(Role::Lease)),
            ("DELETE", "/v1/leases/x", Some(Role::Lease)),
            ("POST", "/v1/holders/ended", Some(Role::Lease)),
            ("POST", "/v1/leases/x/revoke", Some(Role::Admin)),
            ("DELETE", "/v1/leases", Some(Role::Admin)),
            ("DELETE", "/v1/leases/", Some(Role::Lease)),
            ("POST", "/v1/pools/p/items", Some(Role::Admin)),
            ("DELETE", "/v1/pools/p", Some(Role::Admin)),
            ("PUT", "/anything", Some(Role::Admin)),
        ] {
            assert_eq!(needed(&method.parse().expect("a method"), path), role, "{method} {path}");
        }
    }
}
