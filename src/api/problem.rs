//! Problem documents (RFC 9457), with a stable `code`.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value};

use crate::lease::store::StoreError;

/// A problem.
#[derive(Debug)]
pub struct Problem {
    /// Its status.
    pub status: StatusCode,
    /// Its stable word.
    pub code: &'static str,
    /// What it is, and what to do, on one line.
    pub detail: String,
    /// What a program may want to know besides.
    pub details: Map<String, Value>,
}

impl Problem {
    /// A problem of which no more is to be said.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), details: Map::new() }
    }

    /// The request makes no sense.
    pub fn malformed(detail: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed-request", detail.to_string())
    }

    /// A refusal by who never looked at what was meant: the status says all.
    pub fn of(status: StatusCode) -> Self {
        let (code, detail) = match status {
            StatusCode::METHOD_NOT_ALLOWED => {
                ("method-not-allowed", "this path does not take this method; /openapi.json has those that it takes")
            }
            StatusCode::BAD_REQUEST => {
                ("malformed-request", "the path or its query is not in valid UTF-8, or no query")
            }
            _ => ("refused", "the request cannot be answered"),
        };
        Self::new(status, code, detail)
    }

    /// The request did not come to an end that is allowed.
    pub fn too_large(error: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", format!("the request's body is too large: {error}"))
    }
}

/// An answer of the API: who refuses says why in a document, also where that was not ours.
pub fn document(response: Response) -> Response {
    let status = response.status();
    if !status.is_client_error() || response.extensions().get::<Code>().is_some() {
        return response;
    }
    let mut document = Problem::of(status).into_response();
    if let Some(allowed) = response.headers().get(header::ALLOW) {
        document.headers_mut().insert(header::ALLOW, allowed.clone());
    }
    document
}

/// The code of a problem, for those who see the answer and not its body.
#[derive(Clone, Copy, Debug)]
pub struct Code(pub &'static str);

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "store", format!("pools and leases cannot be written: {error}"))
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let title = self.status.canonical_reason().unwrap_or_default();
        let mut document = Map::new();
        document.insert("type".to_owned(), "about:blank".into());
        document.insert("title".to_owned(), title.into());
        document.insert("status".to_owned(), self.status.as_u16().into());
        document.insert("code".to_owned(), self.code.into());
        document.insert("detail".to_owned(), self.detail.into());
        document.extend(self.details);
        let body = Value::Object(document).to_string();
        let code = axum::Extension(Code(self.code));
        let mut response =
            (self.status, [(header::CONTENT_TYPE, "application/problem+json")], code, body).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
