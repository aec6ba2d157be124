//! Pages: a frame that stays, and parts of it that change.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, UndefinedBehavior};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::Hall;
use super::sight;
use super::visit::{Guest, Visitor};
use super::wish::Wish;
use crate::clock::Timestamp;
use crate::lease::store::StoreError;
use crate::page::TONE;

/// Where the style is.
pub(super) const STYLE_PATH: &str = "/catalogue.css";
/// Where the script is.
pub(super) const SCRIPT_PATH: &str = "/catalogue.js";
/// How old a glance at the overview may be.
const GLANCE: Duration = Duration::from_millis(200);
const STYLE: &str = include_str!("web/catalogue.css");
const SCRIPT: &str = include_str!("web/catalogue.js");

/// Their address changes when they do, so that a browser may keep them.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    let digest = Sha256::new().chain_update(TONE).chain_update(STYLE).chain_update(SCRIPT).finalize();
    digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
});

const TEMPLATES: [(&str, &str); 12] = [
    ("macros.html", include_str!("web/macros.html")),
    ("frame.html", include_str!("web/frame.html")),
    ("overview.html", include_str!("web/overview.html")),
    ("pool.html", include_str!("web/pool.html")),
    ("login.html", include_str!("web/login.html")),
    ("refusal.html", include_str!("web/refusal.html")),
    ("request.html", include_str!("web/request.html")),
    ("card.html", include_str!("web/card.html")),
    ("yours.html", include_str!("web/yours.html")),
    ("held.html", include_str!("web/held.html")),
    ("items.html", include_str!("web/items.html")),
    ("work.html", include_str!("web/work.html")),
];

/// The templates.
#[derive(Debug)]
pub(super) struct Sheets(Environment<'static>);

/// A part of a page that changes: its id and what is in it.
pub(super) type Part = (String, String);

impl Sheets {
    /// Reads them.
    pub fn new() -> Self {
        let mut environment = Environment::new();
        // All of them are HTML, whatever they are called.
        environment.set_auto_escape_callback(|_| AutoEscape::Html);
        environment.set_undefined_behavior(UndefinedBehavior::SemiStrict);
        environment.add_filter("utc", |text: &str| utc(text));
        environment.add_filter("path", |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string());
        for (name, text) in TEMPLATES {
            // They are part of the program, and a test reads them all. One that cannot be read is
            // missing where it is used.
            let _ = environment.add_template(name, text);
        }
        environment.add_global("version", env!("CARGO_PKG_VERSION"));
        environment.add_global("style", format!("{STYLE_PATH}?{}", *VERSION));
        environment.add_global("script", format!("{SCRIPT_PATH}?{}", *VERSION));
        Self(environment)
    }

    fn render(&self, name: &str, context: &Value) -> Result<String, minijinja::Error> {
        self.0.get_template(name)?.render(Serde(context))
    }

    fn page(&self, status: StatusCode, name: &str, context: &Value) -> Response {
        match self.render(name, context) {
            Ok(text) => (status, Html(text)).into_response(),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        }
    }

    /// The form to log in.
    pub fn login(&self, proof: &str, next: &str, said: Option<&str>) -> Response {
        self.page(StatusCode::OK, "login.html", &json!({"proof": proof, "next": next, "said": said}))
    }

    /// A page that says why not.
    pub fn refusal(&self, status: StatusCode, why: &str) -> Response {
        self.page(status, "refusal.html", &json!({"why": why, "title": status.canonical_reason()}))
    }
}

/// A page that somebody looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Page {
    /// All pools.
    Overview,
    /// One, and which of its items.
    Pool(String, String),
}

impl Page {
    /// The page at a path of ours.
    pub fn at(path: &str, find: &str) -> Option<Self> {
        if path == "/" {
            return Some(Self::Overview);
        }
        let name = percent_decode_str(path.strip_prefix("/pools/")?).decode_utf8().ok()?;
        Some(Self::Pool(name.into_owned(), find.to_owned()))
    }
}

/// What a page shows, and who looks at it.
pub(super) struct Look<'a> {
    pub visitor: &'a Visitor,
    pub proof: &'a str,
    /// The path of the page, to which its forms lead back.
    pub back: &'a str,
    pub sight: &'a Value,
}

impl Hall {
    /// What a page shows; nothing where there is no such page any more.
    pub async fn sight(&self, page: &Page) -> Result<Option<Value>, StoreError> {
        let desk = &self.catalogue.desk;
        let mut sight = match page.clone() {
            Page::Overview => desk.ask(|session| Some(sight::overview(session.board))).await?,
            Page::Pool(name, find) => desk.ask(move |session| sight::pool(session.board, &name, &find)).await?,
        };
        if let (Some(sight), Page::Overview) = (&mut sight, page) {
            let runs = self.runs.lock().await.shown(self.catalogue.ledger.clone(), &sight["holding"]).await;
            sight["runs"] = runs;
        }
        Ok(sight)
    }

    /// The same for those who only look on, who may be many: a moment ago is good enough for them.
    pub async fn glance(&self, page: &Page) -> Result<Option<Arc<Value>>, StoreError> {
        if *page != Page::Overview {
            return Ok(self.sight(page).await?.map(Arc::new));
        }
        let mut seen = self.seen.lock().await;
        if let Some((at, sight)) = &*seen
            && at.elapsed() < GLANCE
        {
            return Ok(Some(Arc::clone(sight)));
        }
        let sight = self.sight(page).await?.map(Arc::new);
        *seen = sight.clone().map(|sight| (Instant::now(), sight));
        Ok(sight)
    }

    /// The parts of a page that change, as they are now.
    pub fn parts(&self, page: &Page, look: &Look<'_>) -> Result<Vec<Part>, minijinja::Error> {
        let sheet = |id: &str, name: &str, more: Value| {
            let mut context = context(look);
            context.extend(more.as_object().cloned().unwrap_or_default());
            Ok::<_, minijinja::Error>((id.to_owned(), self.sheets.render(name, &Value::Object(context))?))
        };
        let sight = look.sight;
        let mut parts = vec![sheet("yours", "yours.html", json!({"leases": sight["by_hand"]}))?];
        match page {
            Page::Overview => {
                for pool in sight["pools"].as_array().into_iter().flatten() {
                    let id = pool["part"].as_str().unwrap_or_default();
                    parts.push(sheet(id, "card.html", json!({"pool": pool}))?);
                }
                parts.push(sheet("holders", "held.html", json!({"held": sight["holders"], "queue": Value::Null}))?);
                parts.push(sheet("queue", "held.html", json!({"queue": sight["queue"], "held": Value::Null}))?);
                parts.push(sheet("runs", "work.html", json!({"runs": sight["runs"]}))?);
            }
            Page::Pool(..) => {
                parts.push(sheet("pool", "card.html", json!({"pool": sight["pool"]}))?);
                parts.push(sheet("queue", "held.html", json!({"queue": sight["queue"], "held": Value::Null}))?);
                parts.push(sheet("items", "items.html", json!({"pool": sight["pool"], "items": sight["items"]}))?);
            }
        }
        Ok(parts)
    }

    /// The forms by which items of pools are requested, by the pools' names.
    async fn wishes(&self, page: &Page) -> Result<Value, StoreError> {
        let name = match page {
            Page::Overview => None,
            Page::Pool(name, _) => Some(name.clone()),
        };
        self.catalogue
            .desk
            .ask(move |session| {
                let board = &session.board;
                let names: Vec<String> = board.pools().map(|pool| pool.name.clone()).collect();
                let wanted = names.into_iter().filter(|known| name.as_ref().is_none_or(|name| name == known));
                // Whoever presses a button twice has asked once.
                let wish = |name: String| {
                    let mut shown = Wish::of(board, &name)?.shown();
                    shown["key"] = format!("by hand {}", Uuid::new_v4()).into();
                    Some((name, shown))
                };
                wanted.filter_map(wish).collect()
            })
            .await
    }

    async fn show(&self, page: &Page, path: &str, guest: &Guest) -> Response {
        let away = |error: StoreError| {
            let why = format!("Pools and leases cannot be read: {error}");
            self.sheets.refusal(StatusCode::SERVICE_UNAVAILABLE, &why)
        };
        let (sight, wishes) = match (self.sight(page).await, self.wishes(page).await) {
            (Ok(Some(sight)), Ok(wishes)) => (sight, wishes),
            (Ok(None), _) => return self.sheets.refusal(StatusCode::NOT_FOUND, "There is no such pool."),
            (Err(error), _) | (_, Err(error)) => return away(error),
        };
        let look = Look { visitor: &guest.visitor, proof: &guest.seat.proof, back: path, sight: &sight };
        let parts = match self.parts(page, &look) {
            Ok(parts) => parts,
            Err(error) => return (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        };
        let mut context = context(&look);
        let parts: Map<String, Value> = parts.into_iter().map(|(id, html)| (id, html.into())).collect();
        context.insert("parts".to_owned(), parts.into());
        context.insert("wishes".to_owned(), wishes);
        context.insert("notice".to_owned(), json!(self.sessions.said(&guest.seat.key)));
        context.insert("sight".to_owned(), sight.clone());
        let (name, find) = match page {
            Page::Overview => ("overview.html", ""),
            Page::Pool(_, find) => ("pool.html", find.as_str()),
        };
        context.insert("find".to_owned(), find.into());
        self.sheets.page(StatusCode::OK, name, &Value::Object(context))
    }
}

fn context(look: &Look<'_>) -> Map<String, Value> {
    let mut context = Map::new();
    context.insert("visitor".to_owned(), json!(look.visitor));
    context.insert("proof".to_owned(), look.proof.into());
    context.insert("back".to_owned(), look.back.into());
    context
}

/// `GET /`
pub(super) async fn overview(State(hall): State<Arc<Hall>>, guest: Guest) -> Response {
    hall.show(&Page::Overview, "/", &guest).await
}

/// `GET /pools/{pool}`
pub(super) async fn pool(
    State(hall): State<Arc<Hall>>,
    Path(name): Path<String>,
    Query(query): Query<HashMap<String, String>>,
    guest: Guest,
) -> Response {
    let path = format!("/pools/{}", utf8_percent_encode(&name, NON_ALPHANUMERIC));
    let find = query.get("find").cloned().unwrap_or_default();
    hall.show(&Page::Pool(name, find), &path, &guest).await
}

/// `GET /catalogue.css`
pub(super) async fn style() -> Response {
    kept("text/css; charset=utf-8", format!("{TONE}{STYLE}"))
}

/// `GET /catalogue.js`
pub(super) async fn script() -> Response {
    kept("text/javascript; charset=utf-8", SCRIPT.to_owned())
}

fn kept(kind: &'static str, text: String) -> Response {
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "public, max-age=31536000, immutable")], text)
        .into_response()
}

/// A time as a page without a script shows it.
fn utc(text: &str) -> String {
    let time = Timestamp::parse(text).map(|time| time.to_string());
    let short = time.as_deref().and_then(|time| Some((time.get(..10)?, time.get(11..19)?)));
    short.map_or_else(|| text.to_owned(), |(day, clock)| format!("{day} {clock} UTC"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_can_be_read_and_escapes_what_is_put_into_it() {
        let sheets = Sheets::new();
        for (name, _) in TEMPLATES {
            sheets.0.get_template(name).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        }
        let context = json!({"why": "<script>alert(1)</script>", "title": "\"'&"});
        let text = sheets.render("refusal.html", &context).expect("rendered");
        assert!(text.contains("&lt;script&gt;alert(1)") && !text.contains("<script>alert"), "{text}");
    }

    #[test]
    fn no_template_has_what_the_policy_forbids() {
        for (name, text) in TEMPLATES {
            for word in ["style=", "<style", " onclick", " onload", "javascript:", "http://", "https://"] {
                assert!(!text.contains(word), "{name} has {word}");
            }
            assert!(
                !text.contains("|safe") || ["overview.html", "pool.html"].contains(&name),
                "{name} trusts somebody"
            );
        }
    }

    #[test]
    fn a_path_is_a_page() {
        assert_eq!(Page::at("/", ""), Some(Page::Overview));
        assert_eq!(Page::at("/pools/a%20b", "x"), Some(Page::Pool("a b".into(), "x".into())));
        assert_eq!(Page::at("/login", ""), None);
        assert_eq!(utc("2026-03-01T12:00:00.123Z"), "2026-03-01 12:00:00 UTC");
    }
}
