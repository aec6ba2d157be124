//! The page of `isolane serve`: the catalogue of pools, who holds and awaits what, and the runs
//! that go on. It is read without a script and asked by forms; a small script of its own swaps
//! what has changed.
//!
//! * `GET /` is the catalogue, `GET /pools/{pool}` one pool with its items.
//! * `GET /live?page=…` tells what changes on such a page (server-sent events).
//! * `GET|POST /login` takes a token and gives a cookie for it, `POST /logout` ends that.
//! * `POST /request`, `/renew`, `/release`, `/revoke`, `/add`, `/retire` are what forms do.

mod deed;
mod entrance;
mod live;
mod session;
mod sheet;
mod sight;
mod visit;
mod wish;
mod work;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::future::BoxFuture;
use tokio::sync::{Mutex, watch};

use crate::desk::Desk;
use session::Sessions;
use sheet::Sheets;
pub use visit::Visitor;
use work::Runs;

/// The longest form, in bytes.
const LONGEST_FORM: usize = 256 << 10;

/// Nothing but what this server sends is executed, shown or asked, and nobody shows it in a frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
     form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Says who has a token, as long as it is valid; an error where that cannot be told now.
pub type Doorkeeper = dyn Fn(String) -> BoxFuture<'static, Result<Option<Visitor>, String>> + Send + Sync;

/// What the page is made of.
#[derive(Clone)]
pub struct Catalogue {
    /// Pools and leases.
    pub desk: Desk,
    /// The ledger's file, from which runs are read.
    pub ledger: PathBuf,
    /// Who may come in.
    pub doorkeeper: Arc<Doorkeeper>,
    /// Whether it is served over TLS.
    pub is_secure: bool,
    /// Says when the service stops.
    pub stopping: watch::Receiver<bool>,
}

impl std::fmt::Debug for Catalogue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Catalogue").field("desk", &self.desk).field("ledger", &self.ledger).finish_non_exhaustive()
    }
}

/// What the overview showed, and when.
type Seen = (Instant, Arc<serde_json::Value>);

/// What all requests share.
struct Hall {
    catalogue: Catalogue,
    sessions: Sessions,
    sheets: Sheets,
    runs: Mutex<Runs>,
    seen: Mutex<Option<Seen>>,
}

/// The paths of the page.
pub fn routes(catalogue: Catalogue) -> Router {
    let hall = Hall {
        catalogue,
        sessions: Sessions::default(),
        sheets: Sheets::new(),
        runs: Mutex::default(),
        seen: Mutex::default(),
    };
    Router::new()
        .route("/", get(sheet::overview))
        .route("/pools/{pool}", get(sheet::pool))
        .route("/live", get(live::live))
        .route("/login", get(entrance::ask).post(entrance::enter))
        .route("/logout", post(entrance::leave))
        .route("/request", post(deed::request))
        .route("/renew", post(deed::renew))
        .route("/release", post(deed::release))
        .route("/revoke", post(deed::revoke))
        .route("/add", post(deed::add))
        .route("/retire", post(deed::retire))
        .route(sheet::STYLE_PATH, get(sheet::style))
        .route(sheet::SCRIPT_PATH, get(sheet::script))
        .layer(DefaultBodyLimit::max(LONGEST_FORM))
        .layer(axum::middleware::map_response(strict))
        .with_state(Arc::new(hall))
}

/// Adds what tells a browser to be careful.
async fn strict(mut response: Response) -> Response {
    let strict = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        // Not `no-referrer`: a form would say that it comes from nowhere.
        (header::REFERRER_POLICY, "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in strict {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response.headers_mut().entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response.into_response()
}
