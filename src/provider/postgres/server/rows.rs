//! What a server knows of rows that were written, and who stands in the way of knowing it.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::ensure;
use postgres::Client;

use super::Server;
use crate::failure::KeyTrouble;
use crate::mark::Mark;
use crate::name::{Place, Tag};
use crate::provider::postgres::capture::harvest::{Log, harvest};
use crate::provider::postgres::capture::{self, lookup, rows};
use crate::provider::postgres::connection::{self, readable};
use crate::provider::postgres::identifier;
use crate::provider::{Census, NamedRow, Resource, ResourceKind, Rows, Sink};

impl Server {
    /// Hands over what was written down of rows: in a lane's own database, or in the schema
    /// that the run has for it.
    pub fn harvest(&self, resource: &Resource, margin: Duration, sink: &mut Sink<'_>) -> anyhow::Result<()> {
        let log = |schema, lane| Log { schema, tag: &self.tag, lane };
        match (resource.kind, resource.place) {
            (ResourceKind::Database, Place::Lane(lane)) => {
                // A lane that is gone, or was never whole, has nothing to tell.
                let Ok(mut client) = self.visit(&resource.name) else { return Ok(()) };
                harvest(&mut client, log(&identifier(capture::LANE_LOG)?, Some(lane)), margin, sink)
            }
            (ResourceKind::Schema, Place::Run) => {
                let schema = identifier(&resource.name)?;
                let mut client = connection::own_session(&self.config)?;
                harvest(&mut client, log(&schema, None), margin, sink)
            }
            _ => Ok(()),
        }
    }

    /// The rows that an error is about, in a database that is one lane's.
    pub fn rows_named(&self, database: &str, trouble: &KeyTrouble) -> anyhow::Result<Vec<NamedRow>> {
        let found = lookup::find(&mut self.visit(database)?, &identifier(capture::LANE_LOG)?, None, trouble);
        found.map_err(|error| readable(error.into()))
    }

    /// Removes the rows that the log knows the run to have made in the user's own tables.
    pub fn remove_rows(&self, resource: &Resource) -> anyhow::Result<Rows> {
        self.remove_rows_of(resource, &self.tag)
    }

    fn remove_rows_of(&self, resource: &Resource, tag: &Tag) -> anyhow::Result<Rows> {
        if !resource.knows_rows() {
            return Ok(Rows::default());
        }
        let mut client = connection::own_session(&self.config)?;
        rows::remove(&mut client, &identifier(&resource.name)?, tag)
    }

    /// Removes the rows that this log knows, if its run is dead and it still carries this mark.
    pub fn remove_rows_proven(&self, log: &Resource, mark: &Mark) -> anyhow::Result<Rows> {
        let carries = "SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = $1";
        let found = self.own.with(|client| client.query_opt(carries, &[&log.name])).map_err(readable)?;
        let Some(found) = found else { return Ok(Rows::default()) };
        ensure!(found.get::<_, Option<String>>(0) == Some(mark.to_string()), "it carries another mark now");
        let tag = mark.run.tag();
        ensure!(self.living(&BTreeSet::from([tag.clone()]))?.is_empty(), "its run lives");
        self.remove_rows_of(log, &tag)
    }

    /// Takes the triggers off the user's tables; the log stays.
    pub fn let_go(&self, resource: &Resource) -> anyhow::Result<()> {
        if (resource.kind, resource.place) != (ResourceKind::Schema, Place::Run) {
            return Ok(());
        }
        let schema = identifier(&resource.name)?;
        self.own.with(|client| capture::quiet(client, &schema)).map_err(readable)?;
        let stopped = self.own.with(|client| capture::stop(client, &schema)).map_err(readable);
        self.tell_who(stopped, |client| capture::watched_by(client, &schema), true)
    }

    /// Adds to an error who stands in the way, if somebody has a lock on one of these tables.
    pub fn tell_who(
        &self,
        done: anyhow::Result<()>,
        tables: impl Fn(&mut Client) -> Result<Vec<u32>, postgres::Error>,
        any: bool,
    ) -> anyhow::Result<()> {
        let Err(error) = done else { return Ok(()) };
        let find = |client: &mut Client| {
            let tables = tables(client)?;
            capture::in_the_way(client, &tables, any)
        };
        match self.own.with(find) {
            Ok(Some(who)) => Err(error.context(format!("{who} and does not end its transaction"))),
            _ => Err(error),
        }
    }
}
