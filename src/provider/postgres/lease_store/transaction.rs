//! One transaction of the store: what it asks, and what it writes at its end, in one message.

use std::collections::HashSet;
use std::time::Duration;

use postgres::{Client, SimpleQueryMessage};

use super::super::claim::{HELD, NUMBER};
use super::super::connection::text;
use super::owner::Name;
use super::pace::{Clock, Look, Pace};
use super::sql::{plain, texts};
use super::{CHANNEL, rows};
use crate::clock::Timestamp;
use crate::lease::grant::Lease;
use crate::lease::item::Item;
use crate::lease::queue::Waiter;
use crate::lease::store::{Head, Rows, StoreError, Transaction};

/// Begins one: it waits for those of others, and no other begins before it ends.
pub const BEGIN: &str = "BEGIN; SELECT version, fence, ticket, used, item, now, ahead,
    (extract(epoch FROM clock_timestamp()) * 1000000)::bigint FROM isolane_leases.lease_head FOR UPDATE";
/// After a restart of the server, processes have so long to come back, in microseconds.
const GRACE: i64 = 10_000_000;

impl From<postgres::Error> for StoreError {
    fn from(error: postgres::Error) -> Self {
        Self(format!("the PostgreSQL server that keeps the leases says: {}", text(&error)))
    }
}

/// What the server answered to [`BEGIN`], and the time of this machine before and after.
pub struct Begun {
    /// The answer.
    pub answer: Vec<SimpleQueryMessage>,
    /// The time since this machine started.
    pub between: (Duration, Duration),
}

/// A transaction that has begun.
pub struct LeaseTransaction<'a> {
    client: &'a mut Client,
    owner: &'a Name,
    head: Head,
    now: i64,
    /// What the server's clock says, and how far the store's time is ahead of it: as it was found,
    /// and as it is.
    wall: i64,
    ahead: (i64, i64),
    /// What is still to be sent.
    writes: String,
    has_written: bool,
    /// Who is there, as far as that was asked.
    present: Option<Present>,
}

struct Present {
    locks: HashSet<i64>,
    server_since: i64,
}

impl<'a> LeaseTransaction<'a> {
    /// The one that began with this answer to [`BEGIN`].
    pub fn new(client: &'a mut Client, owner: &'a Name, begun: &Begun, pace: &mut Pace) -> Result<Self, StoreError> {
        let row: Option<[i64; 8]> = numbers(&begun.answer).next().and_then(|row| row.try_into().ok());
        let Some([version, fence, ticket, used, item, latest, found, wall]) = row else {
            return Err(StoreError("the table isolane_leases.lease_head has lost its row".to_owned()));
        };
        let head = Head {
            version: unsigned(version),
            fence: unsigned(fence),
            ticket: unsigned(ticket),
            used: unsigned(used),
            item,
        };
        let (now, ahead) = pace.time(Clock { latest, ahead: found }, Look { wall, between: begun.between });
        Ok(Self {
            client,
            owner,
            head,
            now,
            wall,
            ahead: (found, ahead),
            writes: String::new(),
            has_written: false,
            present: None,
        })
    }

    /// The last message, which keeps all that was written.
    pub fn last(self) -> (&'a mut Client, String) {
        let last = if self.has_written {
            format!("{}NOTIFY {CHANNEL}, {}; COMMIT", self.writes, super::sql::text(&self.owner.to_string()))
        } else if self.ahead.0 != self.ahead.1 {
            format!(
                "UPDATE isolane_leases.lease_head SET now = greatest(now, {}), ahead = {}; COMMIT",
                self.now, self.ahead.1
            )
        } else {
            // There is nothing to make sure of on the disk.
            "ROLLBACK".to_owned()
        };
        (self.client, last)
    }

    fn ask(&mut self, question: &str) -> Result<Rows, StoreError> {
        let mut found = Rows::default();
        for message in self.say(question)? {
            if let SimpleQueryMessage::Row(row) = message
                && let (Some(kind), Some(json)) = (row.get(0), row.get(1))
            {
                rows::add(&mut found, kind, json)?;
            }
        }
        Ok(found)
    }

    /// Asks, behind all that is to be written.
    fn say(&mut self, question: &str) -> Result<Vec<SimpleQueryMessage>, StoreError> {
        let message = std::mem::take(&mut self.writes) + question;
        Ok(self.client.simple_query(&message)?)
    }

    fn present(&mut self) -> Result<&Present, StoreError> {
        if self.present.is_none() {
            let said = self.say(&format!(
                "SELECT (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint;
                 SELECT {NUMBER} {HELD} AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            ))?;
            let mut answers = numbers(&said);
            let server_since = answers.next().map_or(0, |row| row[0]);
            let locks = answers.map(|row| row[0]).collect();
            self.present = Some(Present { locks, server_since });
        }
        self.present.as_ref().ok_or_else(|| StoreError("nobody is known".to_owned()))
    }
}

/// What changes of items as they are used, a column each.
fn standing(its: &[Item]) -> [String; 7] {
    [
        texts(its.iter().map(|it| Some(it.state.as_str()))),
        plain(its.iter().map(|it| Some(it.held))),
        plain(its.iter().map(|it| Some(number(it.fence)))),
        plain(its.iter().map(|it| Some(number(it.used)))),
        plain(its.iter().map(|it| Some(it.failures))),
        plain(its.iter().map(|it| Some(it.is_soiled))),
        plain(its.iter().map(|it| Some(it.is_leaving))),
    ]
}

/// The rows of an answer in numbers.
fn numbers(messages: &[SimpleQueryMessage]) -> impl Iterator<Item = Vec<i64>> {
    messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|at| row.get(at).and_then(|text| text.parse().ok()).unwrap_or(0)).collect())
        }
        _ => None,
    })
}

impl Transaction for LeaseTransaction<'_> {
    fn head(&mut self) -> Result<Head, StoreError> {
        Ok(self.head)
    }

    fn now(&mut self) -> Result<Timestamp, StoreError> {
        Ok(Timestamp(unsigned(self.now)))
    }

    fn rows(&mut self, since: Option<u64>) -> Result<Rows, StoreError> {
        self.ask(&rows::question(since, &self.owner.to_string()))
    }

    fn lease(&mut self, id: &str) -> Result<Option<Lease>, StoreError> {
        Ok(self.ask(&rows::question_for(id))?.leases.pop())
    }

    fn write(&mut self, head: Head, rows: &Rows) -> Result<(), StoreError> {
        self.has_written = true;
        self.head = head;
        let version = head.version;
        self.execute(
            "head",
            &[version, head.fence, head.ticket, head.used].map(|n| number(n).to_string()),
            &[head.item, self.now, self.ahead.1].map(|n| n.to_string()),
        );
        let of_version = [number(version).to_string()];
        if !rows.pools.is_empty() {
            let definitions: Vec<String> =
                rows.pools.iter().map(|it| json(&it.definition)).collect::<Result<_, _>>()?;
            let its = &rows.pools;
            self.execute(
                "pools",
                &of_version,
                &[
                    texts(its.iter().map(|it| Some(&*it.name))),
                    texts(definitions.iter().map(|it| Some(&**it))),
                    plain(its.iter().map(|it| Some(it.is_removed))),
                ],
            );
        }
        if !rows.new_items.is_empty() {
            self.write_new_items(&of_version, &rows.new_items)?;
        }
        if !rows.items.is_empty() {
            self.write_items(&of_version, &rows.items);
        }
        if !rows.leases.is_empty() {
            self.write_leases(&of_version, &rows.leases)?;
        }
        if !rows.waiters.is_empty() {
            self.write_waiters(&of_version, &rows.waiters);
        }
        Ok(())
    }

    fn is_there(&mut self, owner: &str) -> bool {
        let Some(Name { key, since, .. }) = Name::parse(owner) else { return false };
        // What cannot be told does not make anybody dead.
        let wall = self.wall;
        let Ok(present) = self.present() else { return true };
        let may_come_back = present.server_since > since && wall < present.server_since + GRACE;
        present.locks.contains(&key) || may_come_back
    }
}

impl LeaseTransaction<'_> {
    /// Adds a statement of `writes.sql` to what is to be sent.
    fn execute<const N: usize>(&mut self, name: &str, first: &[String], arrays: &[String; N]) {
        let values: Vec<&str> = first.iter().chain(arrays).map(String::as_str).collect();
        self.writes.push_str(&format!("EXECUTE isolane_{name} ({});\n", values.join(", ")));
    }

    fn write_new_items(&mut self, version: &[String], its: &[Item]) -> Result<(), StoreError> {
        let attributes: Vec<String> = its.iter().map(|it| json(&*it.attributes)).collect::<Result<_, _>>()?;
        let [state, held, fence, used, failures, is_soiled, is_leaving] = standing(its);
        self.execute(
            "new_items",
            version,
            &[
                plain(its.iter().map(|it| Some(it.key))),
                texts(its.iter().map(|it| Some(&*it.pool))),
                texts(its.iter().map(|it| Some(&*it.name))),
                texts(attributes.iter().map(|it| Some(&**it))),
                state,
                held,
                fence,
                used,
                failures,
                is_soiled,
                is_leaving,
                plain(its.iter().map(|it| Some(it.is_configured))),
                texts(its.iter().map(|it| it.origin.as_deref())),
                texts(its.iter().map(|it| it.note.as_deref())),
            ],
        );
        Ok(())
    }

    fn write_items(&mut self, version: &[String], its: &[Item]) {
        let [state, held, fence, used, failures, is_soiled, is_leaving] = standing(its);
        let (key, note) = (plain(its.iter().map(|it| Some(it.key))), texts(its.iter().map(|it| it.note.as_deref())));
        self.execute("items", version, &[key, state, held, fence, used, failures, is_soiled, is_leaving, note]);
    }

    fn write_leases(&mut self, version: &[String], its: &[Lease]) -> Result<(), StoreError> {
        let held = |it: &Lease| {
            let items: Vec<_> = it.items.iter().map(|held| (held.item, &*held.pool, &*held.name)).collect();
            json(&items)
        };
        let items: Vec<String> = its.iter().map(held).collect::<Result<_, _>>()?;
        let micros = |at: Timestamp| Some(at.micros());
        self.execute(
            "leases",
            version,
            &[
                texts(its.iter().map(|it| Some(&*it.id))),
                texts(items.iter().map(|it| Some(&**it))),
                texts(its.iter().map(|it| it.holder.run.as_deref())),
                texts(its.iter().map(|it| it.holder.worker.as_deref())),
                texts(its.iter().map(|it| it.holder.test.as_deref())),
                plain(its.iter().map(|it| it.holder.lane)),
                texts(its.iter().map(|it| it.holder.client.as_deref())),
                texts(its.iter().map(|it| it.key.as_ref().map(|(key, _)| &**key))),
                texts(its.iter().map(|it| it.key.as_ref().map(|(_, substance)| &**substance))),
                plain(its.iter().map(|it| Some(number(it.fence)))),
                texts(its.iter().map(|it| Some(it.state.as_str()))),
                plain(its.iter().map(|it| micros(it.acquired_at))),
                plain(its.iter().map(|it| micros(it.expires_at))),
                plain(its.iter().map(|it| it.ended_at.and_then(micros))),
                plain(its.iter().map(|it| Some(number(it.ttl)))),
                plain(its.iter().map(|it| Some(it.is_kept))),
            ],
        );
        Ok(())
    }

    fn write_waiters(&mut self, version: &[String], its: &[Waiter]) {
        let asks: Vec<String> = its.iter().map(|it| it.ask.to_json().to_string()).collect();
        self.execute(
            "waiters",
            version,
            &[
                plain(its.iter().map(|it| Some(number(it.ticket)))),
                texts(asks.iter().map(|it| Some(&**it))),
                plain(its.iter().map(|it| Some(it.since.micros()))),
                plain(its.iter().map(|it| Some(it.until.micros()))),
                texts(its.iter().map(|it| Some(it.state.as_str()))),
                texts(its.iter().map(|it| it.lease.as_deref())),
                texts(its.iter().map(|it| Some(&*it.owner))),
            ],
        );
    }
}

fn json(value: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError(error.to_string()))
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
