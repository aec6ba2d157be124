//! Who asks the API: over the socket of a run, over the network, or in this process.

use std::cell::Cell;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use anyhow::Context;
use serde_json::Value;

use crate::api::{leases, pools};
use crate::desk::Desk;
use crate::error::{ExitCode, Stop, one_line, visible};
use crate::lease::refusal;
use crate::lease::store::Store;
use crate::ledger::lease::LedgerStore;
use crate::ledger::{self, Writer};
use crate::provider::open_store;
use crate::remote::Remote;
use crate::secret::Vault;
use crate::settings::{Settings, StoreAddress};
use crate::stock::{self, Stock};

/// Where requests go.
#[derive(Debug)]
pub enum Client {
    /// To a run, over its socket.
    Run(PathBuf),
    /// To the ledger itself, or to another store.
    Ledger(Box<Here>),
    /// To a service, over the network.
    Service(Box<There>),
}

/// A service, and what is needed to ask it from here.
#[derive(Debug)]
pub struct There {
    remote: Remote,
    runtime: tokio::runtime::Runtime,
}

/// The API in this process.
#[derive(Debug)]
pub struct Here {
    router: axum::Router,
    /// What the requests work on.
    pub desk: Desk,
    /// Runs the commands of pools, once something is changed.
    stock: Stock,
    is_tended: Cell<bool>,
    runtime: tokio::runtime::Runtime,
    /// What writes the ledger, where it is that.
    writer: Option<(Writer, JoinHandle<Option<rusqlite::Error>>)>,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its document; null where it has none.
    pub body: Value,
}

impl Answer {
    /// The document of a success; a refusal is an end with its code and its words.
    pub fn ok(self) -> anyhow::Result<Value> {
        if self.status < 300 {
            return Ok(self.body);
        }
        let text = self.body["detail"].as_str().map_or_else(|| format!("status {}", self.status), str::to_owned);
        let code = self.body["code"].as_str().unwrap_or_default();
        let code = if self.status == 503 { ExitCode::Unavailable } else { refusal::exit_code_of(code) };
        Err(Stop::with(code, text))
    }
}

impl Client {
    /// The store that a flag names, or else the run that this process is in, or else the service, the
    /// store or the ledger of these settings, with the pools of the configuration.
    pub fn new(settings: &Settings) -> anyhow::Result<Self> {
        Self::through(settings, |_| Ok(()))
    }

    /// The same for who only looks: a ledger that is not there is not made.
    pub fn to_look(settings: &Settings) -> anyhow::Result<Self> {
        Self::through(settings, |ledger| ledger::require(ledger).map_err(|error| Stop::usage(one_line(&error))))
    }

    fn through(settings: &Settings, check_ledger: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<Self> {
        let store = settings.store.as_ref();
        let socket = settings.variables.get("ISOLANE_SOCKET").filter(|path| !path.is_empty());
        if let Some(socket) = socket
            && store.is_none_or(|store| store.place != StoreAddress::FLAG)
        {
            return Ok(Self::Run(PathBuf::from(socket)));
        }
        if let Some(server) = &settings.leases {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let remote = Remote::new(server.clone()).map_err(|away| Stop::with(ExitCode::Unavailable, away))?;
            return Ok(Self::Service(Box::new(There { remote, runtime })));
        }
        if let Some(StoreAddress { url, place }) = store {
            return Self::here(open_store(url, place, &settings.variables, &settings.cwd)?, None, settings);
        }
        let path = &settings.ledger;
        check_ledger(path)?;
        let cannot = |error: &anyhow::Error| {
            Stop::usage(format!("cannot use the ledger {}: {}", path.display(), one_line(error)))
        };
        let (writer, thread) = Writer::start(ledger::open(path).map_err(|error| cannot(&error))?);
        Self::here(Box::new(LedgerStore::new(writer.clone(), path)), Some((writer, thread)), settings)
    }

    fn here(
        store: Box<dyn Store>,
        writer: Option<(Writer, JoinHandle<Option<rusqlite::Error>>)>,
        settings: &Settings,
    ) -> anyhow::Result<Self> {
        let desk = Desk::new(store, None);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let clock = desk.clone();
        runtime.spawn(async move { clock.keep_time().await });
        runtime.block_on(crate::pools::configure(&desk, settings))?;
        let counter = leases::Counter::open(desk.clone());
        let stock = Stock::new(&desk, None, Vault::new(settings.secrets()), false);
        let router =
            leases::routes(counter.clone()).merge(pools::routes(counter)).merge(pools::fill_routes(stock.clone()));
        let is_tended = Cell::new(false);
        Ok(Self::Ledger(Box::new(Here { router, desk, stock, is_tended, runtime, writer })))
    }

    /// Asks, and waits for the answer.
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Answer> {
        match self {
            Self::Run(socket) => over_socket(socket, method, path, body),
            Self::Ledger(here) => here.call(method, path, body),
            Self::Service(there) => there.call(method, path, body),
        }
    }
}

impl Here {
    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Answer> {
        if method != "GET" && !self.is_tended.replace(true) {
            let stock = self.stock.clone();
            self.runtime.spawn(async move { stock.tend().await });
        }
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = axum::http::Request::builder().method(method).uri(path).body(axum::body::Body::from(body))?;
        self.runtime.block_on(async {
            let Ok(response) = tower::ServiceExt::oneshot(self.router.clone(), request).await;
            let status = response.status().as_u16();
            let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await?;
            Ok(Answer { status, body: serde_json::from_slice(&bytes).unwrap_or_default() })
        })
    }
}

impl There {
    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Answer> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let asking = self.remote.ask(method.parse()?, path, body.into());
        let reply = self.runtime.block_on(asking).map_err(|away| Stop::with(ExitCode::Unavailable, away))?;
        Ok(Answer { status: reply.status, body: reply.json() })
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        if self.is_tended.get() {
            for line in self.stock.settle(stock::PATIENCE) {
                let _ = writeln!(std::io::stderr().lock(), "isolane: {}", visible(&line));
            }
        }
        // What was answered is written; this only leaves the file as a whole.
        if let Some((writer, thread)) = self.writer.take() {
            writer.close();
            let _ = thread.join();
        }
    }
}

fn over_socket(socket: &Path, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Answer> {
    let away = |error: std::io::Error| Stop::with(ExitCode::Unavailable, format!("the run does not answer: {error}"));
    let mut stream = UnixStream::connect(socket).map_err(away)?;
    let body = body.map(Value::to_string).unwrap_or_default();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: isolane\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).map_err(away)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(away)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the run's answer breaks off")?;
    let status =
        head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("the run's answer has no status")?;
    Ok(Answer { status, body: serde_json::from_str(body).unwrap_or_default() })
}
