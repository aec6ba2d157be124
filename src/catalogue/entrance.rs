//! Logging in with a token, and out again.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{AppendHeaders, IntoResponse, Redirect, Response};

use super::Hall;
use super::session::{LASTS, is_same, random};
use super::visit::{FOREIGN, Fields, Form, cookie, is_page};
use crate::secret::Secret;

/// How long a form to log in is good for, in seconds.
const FORM_LASTS: u64 = 3600;
const UNKNOWN: &str = "There is no such token, or it is not valid any more.";

/// `GET /login`
pub(super) async fn ask(
    State(hall): State<Arc<Hall>>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    let next = query.get("next").map(String::as_str).filter(|path| is_page(path)).unwrap_or("/");
    form(&hall, &headers, StatusCode::OK, next, None)
}

/// The form, with a proof that whoever sends it has got it from here: nobody is logged in as
/// somebody else without knowing.
fn form(hall: &Hall, headers: &HeaderMap, status: StatusCode, next: &str, said: Option<&str>) -> Response {
    let name = hall.cookie_name("isolane-login", headers);
    let known = cookie(headers, &name).filter(|known| known.len() == 64);
    let proof = known.map_or_else(random, str::to_owned);
    let page = hall.sheets.login(&proof, next, said);
    (status, [(header::SET_COOKIE, hall.cookie(&name, &proof, FORM_LASTS))], page).into_response()
}

/// `POST /login`
pub(super) async fn enter(State(hall): State<Arc<Hall>>, request: Request) -> Response {
    let headers = request.headers().clone();
    let fields = match Fields::read(request).await {
        Ok(fields) => fields,
        Err(refused) => return refused,
    };
    let name = hall.cookie_name("isolane-login", &headers);
    let (proof, expected) = (fields.get("proof").unwrap_or_default(), cookie(&headers, &name).unwrap_or_default());
    if !hall.is_own(&headers) || expected.is_empty() || !is_same(proof, expected) {
        return hall.sheets.refusal(StatusCode::FORBIDDEN, FOREIGN);
    }
    let token = Secret::new(fields.get("token").unwrap_or_default());
    match hall.who_has(&token).await {
        Ok(Some(_)) => {}
        Ok(None) => return form(&hall, &headers, StatusCode::UNAUTHORIZED, fields.back(), Some(UNKNOWN)),
        Err(why) => return form(&hall, &headers, StatusCode::SERVICE_UNAVAILABLE, fields.back(), Some(&why)),
    }
    let session_name = hall.cookie_name("isolane", &headers);
    if let Some(before) = cookie(&headers, &session_name).and_then(|cookie| hall.sessions.find(cookie)) {
        hall.sessions.end(&before.key);
    }
    let session = hall.sessions.begin(token);
    let cookies = AppendHeaders([
        (header::SET_COOKIE, hall.cookie(&session_name, &session, LASTS.as_secs())),
        (header::SET_COOKIE, hall.cookie(&name, "", 0)),
    ]);
    (cookies, Redirect::to(fields.back())).into_response()
}

/// `POST /logout`
pub(super) async fn leave(State(hall): State<Arc<Hall>>, headers: HeaderMap, form: Form) -> Response {
    hall.sessions.end(&form.guest.seat.key);
    let name = hall.cookie_name("isolane", &headers);
    ([(header::SET_COOKIE, hall.cookie(&name, "", 0))], Redirect::to("/login")).into_response()
}
