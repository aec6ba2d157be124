//! One run: what all that serves it shares, and what a worker of it finds in its
//! environment.

use std::collections::HashSet;
use std::path::PathBuf;

use crate::address::Address;
use crate::inventory::Inventory;
use crate::ledger::{RunKey, Writer};
use crate::name::{Place, RunId, Tag};
use crate::provider::{Access, Provider, Site};
use crate::secret::{Secret, Vault};
use crate::settings::{Fresh, Isolation, Settings};

/// The folder of the socket within the run's own, which nobody else can enter.
pub const API_FOLDER: &str = "api";

/// A run that has been announced.
#[derive(Debug)]
pub struct Run {
    /// Its id.
    pub id: RunId,
    /// Its tag.
    pub tag: Tag,
    /// Its number in the ledger.
    pub key: RunKey,
    /// The ledger.
    pub writer: Writer,
    /// What was asked for.
    pub settings: Settings,
    /// Where things are made.
    pub providers: Vec<Box<dyn Provider>>,
    /// What was made.
    pub inventory: Inventory,
    /// The run's own directory.
    pub root: PathBuf,
    /// Passwords that must not be written anywhere.
    pub vault: Vault,
}

/// Variables, in the order of setting them: of two with one name the later counts.
pub type Environment = Vec<(String, String)>;

impl Run {
    /// The socket of the run's API.
    pub fn socket(&self) -> PathBuf {
        self.root.join(API_FOLDER).join("api.sock")
    }

    /// Where things are undone.
    pub fn sites(&self) -> Vec<&dyn Site> {
        self.providers.iter().map(|provider| &**provider as &dyn Site).collect()
    }

    /// Whether rows are watched anywhere.
    pub fn is_watched(&self) -> bool {
        !self.settings.track.is_off() && self.providers.iter().any(|provider| provider.watches_rows())
    }

    /// Whether lanes become as their template again for each test.
    pub fn is_fresh_for_tests(&self) -> bool {
        self.settings.fresh == Fresh::Test
    }

    /// Variables of everything that belongs to the run, in a lane or not.
    pub fn common_environment(&self) -> Environment {
        vec![
            ("ISOLANE_RUN_ID".to_owned(), self.id.to_string()),
            ("ISOLANE_SOCKET".to_owned(), self.socket().display().to_string()),
        ]
    }

    /// Variables of a command that is in no lane, such as a build: the user's own
    /// database, under the names that workers know it by.
    pub fn base_environment(&self) -> Environment {
        let mut environment = self.common_environment();
        for variable in &self.settings.url_variables {
            // Given by a flag or the file, it is in no variable yet.
            if variable.own.is_none() && !self.settings.embedded {
                let texts: Vec<_> = variable.addresses.iter().map(own_text).collect();
                environment.push((variable.name.clone(), texts.join(",")));
            }
        }
        environment
    }

    /// Variables of `worker` in `place`.
    pub fn worker_environment(&self, place: Place, worker: &str, port_base: u16) -> Environment {
        let mut environment = self.common_environment();
        let mut set = |name: &str, value: String| environment.push((name.to_owned(), value));
        let lane = place.lane().map_or_else(|| "template".to_owned(), |lane| lane.to_string());
        let prefix = place.prefix(&self.tag);
        set("WORKER_ID", worker.to_owned());
        set("ISOLANE_LANE", lane.clone());
        set("ISOLANE_PREFIX", prefix.clone());
        set("ISOLANE_PORT_BASE", port_base.to_string());
        if self.is_watched() {
            set("ISOLANE_WATCHED", "1".to_owned());
        }
        if self.is_fresh_for_tests() {
            set("ISOLANE_FRESH", "test".to_owned());
        }
        let mut names = Vec::new();
        let mut schema = None;
        let mut given = HashSet::new();
        // Of two servers the first is meant by PGHOST, {host} and ISOLANE_SCHEMA, and nothing
        // of the second goes with it: its PGOPTIONS would name a schema that is not there.
        for Access { variables, names: more, schema: its } in
            self.providers.iter().map(|provider| provider.access(place))
        {
            if variables.iter().all(|(name, _)| !given.contains(name)) {
                given.extend(variables.iter().map(|(name, _)| name.clone()));
                for (name, value) in &variables {
                    if name == "PGPASSWORD" {
                        self.vault.keep(&Secret::new(value.clone()));
                    }
                    set(name, value.clone());
                }
            }
            names.extend(more);
            schema = schema.or(Some(its).filter(|its| !its.is_empty()));
        }
        let schema = schema.unwrap_or_else(|| place.schema(&self.tag));
        set("ISOLANE_SCHEMA", schema.clone());
        let mut database_url = None;
        if self.settings.isolation != Isolation::None {
            for variable in &self.settings.url_variables {
                let texts: Vec<_> = variable.addresses.iter().map(|address| self.lane_text(address, place)).collect();
                let text = texts.join(",");
                database_url.get_or_insert_with(|| text.clone());
                set(&variable.name, text);
            }
            let watched: Vec<_> = self.settings.url_variables.iter().map(|variable| variable.name.as_str()).collect();
            set("ISOLANE_URL_VARIABLES", watched.join(","));
            if self.settings.embedded && self.settings.isolation != Isolation::Server {
                // Nobody chose this address: a suite that brings its own is told, not overruled.
                set("ISOLANE_EMBEDDED", "1".to_owned());
            }
        }
        let value = |name: &str| match name {
            "database_url" => database_url.clone(),
            "schema" => Some(schema.clone()),
            "prefix" => Some(prefix.clone()),
            "lane" => Some(lane.clone()),
            "worker" => Some(worker.to_owned()),
            "run_id" => Some(self.id.to_string()),
            "tag" => Some(self.tag.to_string()),
            name => names.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone()),
        };
        let templated: Vec<_> = self
            .settings
            .env
            .iter()
            .map(|(name, template)| (name.clone(), template.render(value, port_base)))
            .collect();
        environment.extend(templated);
        environment
    }

    fn lane_text(&self, address: &Address, place: Place) -> String {
        self.providers.iter().find_map(|provider| provider.address(address, place)).unwrap_or_else(|| own_text(address))
    }
}

/// An address as the user wrote it.
fn own_text(address: &Address) -> String {
    match address {
        Address::Postgres(postgres) => postgres.with(&crate::address::LaneTarget::default()),
        Address::Sqlite(sqlite) => sqlite.with_path(sqlite.path()),
        Address::InMemory(text) => text.clone(),
    }
}
