//! Making items by a generator, out of items of other pools where it needs some.

use std::time::Duration;

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::step::{End, Step};
use super::{Stock, answer};
use crate::lease::ask::{Ask, LONGEST, Want};
use crate::lease::board::{Board, Demand, Failure, Made};
use crate::lease::definition::Generator;
use crate::lease::grant::Lease;
use crate::lease::origin::Origin;
use crate::lease::predicate::{Attributes, Predicate};
use crate::lease::refusal::Refusal;
use crate::lease::store::StoreError;

/// How long what a generator needs is leased beyond the time that it may take.
const MARGIN: Duration = Duration::from_secs(60);
/// The most that are made on one request.
pub const MOST: u32 = 1000;

/// Retires what was made by another generator than this.
pub fn retire_outdated(board: &mut Board, pool: &str, print: &str) {
    board.retire_outdated(pool, |origin| Origin::parse(origin).is_some_and(|origin| origin.from == print));
}

impl Stock {
    /// Makes items of a pool now. The names of those that were made come back.
    pub async fn fill(
        &self,
        pool: &str,
        count: u32,
        input: &Map<String, Value>,
    ) -> Result<Result<Vec<String>, Refusal>, StoreError> {
        if !(1..=MOST).contains(&count) {
            return Ok(Err(Refusal::Malformed(format!("`count` takes a number from 1 to {MOST}"))));
        }
        let (name, given) = (pool.to_owned(), input.clone());
        let demand = self.0.desk.ask(move |session| demand_of(session.board, &name, &given)).await?;
        let (demand, room) = match demand {
            Ok(found) => found,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let not_made = |why: String| Refusal::NotMade { pool: pool.to_owned(), why };
        if room < count {
            return Ok(Err(not_made(format!("it may make {room} more, and {count} are wanted (maximum)"))));
        }
        let handle = match self.start() {
            Ok(handle) => handle,
            Err(error) => return Ok(Err(not_made(format!("it cannot be started: {error}")))),
        };
        {
            let mut state = self.state();
            state.makings += count as usize;
            *state.making.entry(super::key_of(&demand)).or_default() += count;
        }
        let tasks: Vec<_> = (0..count)
            .map(|_| {
                let (stock, demand) = (self.clone(), demand.clone());
                // Who asked may go, and what was begun is brought to its end all the same.
                handle.spawn(async move {
                    let made = stock.make(&demand).await;
                    stock.is_made(&demand);
                    made
                })
            })
            .collect();
        let (mut made, mut failed) = (Vec::new(), None);
        for task in tasks {
            match task.await {
                Ok(Ok(names)) => made.extend(names),
                Ok(Err(failure)) => failed = failed.or(Some(failure)),
                Err(_) => failed = failed.or(Some(Failure::Failed("it broke off".to_owned()))),
            }
        }
        Ok(match failed {
            None => Ok(made),
            Some(failure) if made.is_empty() => Err(failure.refusal(pool)),
            Some(why) => Err(not_made(format!("{why}; made before and in the pool: {}", made.join(", ")))),
        })
    }

    /// Makes what is demanded.
    pub(super) async fn make(&self, demand: &Demand) -> Result<Vec<String>, Failure> {
        let Some(generator) = &demand.definition.generator else {
            return Err(Failure::Failed("it has no generator".to_owned()));
        };
        let needs = match self.needs(demand, generator).await {
            Ok(needs) => needs,
            Err(failure) => return self.gave_up(demand, failure).await,
        };
        let made = self.generate(demand, generator, needs.as_ref()).await;
        let made = match made {
            Ok(Some(items)) => self.enter(demand, items, needs.as_ref()).await,
            // It was called off.
            Ok(None) => Ok(Made::default()),
            Err(why) => Err(why),
        };
        let (added, trouble) = match made {
            Ok(made) => (made.added, made.trouble),
            Err(why) => (Vec::new(), Some(why)),
        };
        if let Some(lease) = needs.filter(|_| added.is_empty()) {
            // What cannot be given back now is lost with this process, or in time.
            let _ = self.0.desk.ask(move |session| session.board.release(&lease.id, None)).await;
        }
        if added.is_empty() {
            return self.gave_up(demand, trouble.map(Failure::Failed)).await;
        }
        let (pool, failed) = (demand.pool.clone(), trouble.map(Failure::Failed));
        let _ = self.0.desk.ask(move |session| session.board.generated(&pool, failed)).await;
        Ok(added)
    }

    /// Nothing was made: the pool is noted so, and who waited for it is told.
    async fn gave_up(&self, demand: &Demand, failure: Option<Failure>) -> Result<Vec<String>, Failure> {
        let why = failure.clone().unwrap_or_else(|| Failure::Failed("it was called off".to_owned()));
        // Who asked for it is told by the answer.
        let is_asked = demand.ticket.is_some() || !demand.wait.is_zero();
        if let Some(Failure::Failed(why)) = failure.as_ref().filter(|_| !is_asked) {
            self.note(format!("the generator of pool {} made none: {why}", demand.pool));
        }
        let (pool, ticket, told) = (demand.pool.clone(), demand.ticket, why.clone());
        let noted = self.0.desk.ask(move |session| {
            if failure.is_some() {
                session.board.generated(&pool, failure);
            }
            if let Some(ticket) = ticket {
                session.board.give_up(ticket, Some(told));
            }
        });
        // A store that is away says so to whoever asks next.
        let _ = noted.await;
        Err(why)
    }

    /// Leases what a generator needs, all or nothing. Nothing went wrong where it was called off.
    async fn needs(&self, demand: &Demand, generator: &Generator) -> Result<Option<Lease>, Option<Failure>> {
        if generator.needs.is_empty() {
            return Ok(None);
        }
        let mut wants = Vec::new();
        for need in &generator.needs {
            let predicate = Predicate::from_json(&Value::Object(need.conditions.clone()));
            let predicate = predicate.map_err(|why| Some(Failure::Failed(why)))?;
            wants.push(Want { pool: need.pool.clone(), count: need.count, predicate });
        }
        let limit = Duration::from_secs(generator.timeout);
        let pools: Vec<String> = generator.needs.iter().map(|need| need.pool.clone()).collect();
        let asked = self.0.desk.ask(move |session| {
            let making: Duration = pools.iter().map(|pool| session.board.time_of(pool, 0)).sum();
            (session.board.owner().to_owned(), making)
        });
        let away = |error: StoreError| Some(Failure::Failed(error.to_string()));
        let (owner, making) = asked.await.map_err(away)?;
        let ask = Ask {
            wants,
            ttl: Some(limit + MARGIN),
            // Who does not wait for items does not wait for what they are made of.
            wait: if demand.wait.is_zero() { Duration::ZERO } else { (demand.wait + making).min(LONGEST) },
            key: Some(Board::key_of_making(&owner, Uuid::now_v7())),
            holder: Board::maker(&demand.pool),
        };
        let reply = tokio::select! {
            reply = self.0.desk.acquire(ask) => reply.map_err(away)?,
            () = self.halted() => return Err(None),
        };
        match reply {
            Ok(granted) => Ok(Some(granted.lease)),
            // What they need in turn may be what is lacking.
            Err(refusal) if refusal.is_passing() => Err(Some(Failure::Lacks(refusal))),
            Err(refusal) => Err(Some(Failure::Failed(format!("it needs others: {refusal}")))),
        }
    }

    /// Runs a generator; nothing, where it was called off.
    async fn generate(
        &self,
        demand: &Demand,
        generator: &Generator,
        needs: Option<&Lease>,
    ) -> Result<Option<Vec<Attributes>>, String> {
        let handed = self.handed(needs).await.map_err(|error| error.to_string())?;
        let document = json!({
            "pool": demand.pool, "input": demand.input, "needs": handed, "run_id": self.0.run,
        });
        let step = Step {
            line: generator.run.clone(),
            folder: demand.definition.folder.clone(),
            environment: self.environment().chain([("ISOLANE_POOL".to_owned(), demand.pool.clone())]).collect(),
            input: document.to_string(),
            limit: Duration::from_secs(generator.timeout),
            mark: format!("{}:{}", self.0.desk.owner(), Uuid::now_v7()),
            is_asked: true,
        };
        let end = tokio::select! {
            turn = self.0.turns.acquire() => {
                let end = step.run(self.halted()).await;
                drop(turn);
                end
            }
            () = self.halted() => End::CalledOff,
        };
        match end {
            End::Well(printed) => {
                answer::items(&printed, &demand.input).map(Some).map_err(|why| self.0.vault.mask(&why))
            }
            End::Badly(why) => Err(self.failed(&generator.run, &why)),
            End::CalledOff => Ok(None),
        }
    }

    /// What a generator gets of other pools: the attributes of each item, by pool.
    async fn handed(&self, needs: Option<&Lease>) -> Result<Map<String, Value>, StoreError> {
        let mut handed = Map::new();
        let Some(lease) = needs else { return Ok(handed) };
        let keys: Vec<_> = lease.items.iter().map(|held| (held.pool.to_string(), held.item)).collect();
        let found = self.0.desk.ask(move |session| {
            let attributes = |(pool, key): (String, _)| (pool, json!(session.board.attributes(key).as_deref()));
            keys.into_iter().map(attributes).collect::<Vec<_>>()
        });
        for (pool, attributes) in found.await? {
            if let Value::Array(its) = handed.entry(pool).or_insert_with(|| json!([])) {
                its.push(attributes);
            }
        }
        Ok(handed)
    }

    /// Puts what was made into its pool. What does not come there is retired.
    async fn enter(&self, demand: &Demand, items: Vec<Attributes>, needs: Option<&Lease>) -> Result<Made, String> {
        let (its, lease, all) = (demand.clone(), needs.map(|lease| lease.id.clone()), items.clone());
        let made = self.0.desk.ask(move |session| session.board.made(&its, all, lease.as_deref())).await;
        let (surplus, result) = match made {
            Ok(mut made) => (std::mem::take(&mut made.surplus), Ok(made)),
            Err(error) => (items, Err(format!("what it made could not be kept: {error}"))),
        };
        let Some(line) = &demand.definition.retire else { return result };
        for attributes in surplus {
            let mut step = Step::of_item(line, &demand.pool, &attributes);
            step.folder.clone_from(&demand.definition.folder);
            step.limit = demand.definition.timeout();
            step.mark = Uuid::now_v7().to_string();
            step.environment.extend(self.environment());
            if let End::Badly(why) = step.run(std::future::pending()).await {
                let item = Value::Object(attributes);
                let why = self.failed(line, &why);
                self.note(format!(
                    "pool {}: {item} was made, is in no pool and could not be retired: {why}",
                    demand.pool
                ));
            }
        }
        result
    }
}

/// What somebody wants to have made, and how many more of it there may be.
fn demand_of(board: &Board, pool: &str, given: &Map<String, Value>) -> Result<(Demand, u32), Refusal> {
    let definition = board.definition(pool).filter(|it| !it.is_leaving).ok_or_else(|| board.no_pool(pool))?;
    let none = || Refusal::Malformed(format!("pool {pool} has no generator: `isolane pool add {pool} …` adds items"));
    let generator = definition.generator.as_ref().ok_or_else(none)?;
    let unmakeable = |why| Refusal::Unmakeable { pool: pool.to_owned(), why };
    let input = generator.input(given).map_err(unmakeable)?;
    let wait = Duration::from_secs(generator.timeout);
    let has = u32::try_from(board.items_of(pool).count()).unwrap_or(u32::MAX);
    let room = generator.maximum.map_or(u32::MAX, |most| most.saturating_sub(has));
    Ok((Demand { pool: pool.to_owned(), definition: definition.clone(), input, ticket: None, wait }, room))
}
