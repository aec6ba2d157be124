//! What forms do. Each says what came of it on the page that it leads back to.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Redirect, Response};

use super::Hall;
use super::session::Notice;
use super::sight::span;
use super::visit::Form;
use super::wish::Wish;
use crate::lease::item::{attributes_of, value_of_text};
use crate::lease::store::StoreError;

/// What is said, of a thing done or of why it was not.
type Said = Result<String, String>;

const MAY_NOT: &str = "Your token does not allow that.";

fn back(hall: &Hall, form: &Form, said: Said) -> Response {
    let (is_good, text) = match said {
        Ok(text) => (true, text),
        Err(text) => (false, text),
    };
    hall.sessions.say(&form.guest.seat.key, Notice { is_good, text });
    Redirect::to(form.fields.back()).into_response()
}

fn away(error: &StoreError) -> String {
    format!("Pools and leases cannot be written: {error}")
}

/// `POST /request`
pub(super) async fn request(State(hall): State<Arc<Hall>>, form: Form) -> Response {
    let said = requested(&hall, &form).await;
    back(&hall, &form, said)
}

async fn requested(hall: &Hall, form: &Form) -> Said {
    if !form.guest.visitor.may_lease {
        return Err(MAY_NOT.to_owned());
    }
    let desk = &hall.catalogue.desk;
    let pool = form.fields.get("pool").unwrap_or_default().to_owned();
    let its = pool.clone();
    let wish =
        desk.ask(move |session| Wish::of(session.board, &its).ok_or_else(|| session.board.no_pool(&its).to_string()));
    let ask = wish.await.map_err(|error| away(&error))??.read(&form.fields, &pool, &form.guest.visitor.name)?;
    let mut stopping = hall.catalogue.stopping.clone();
    let reply = tokio::select! {
        reply = desk.acquire(ask) => reply,
        _ = stopping.wait_for(|is| *is) => return Err("The service stops.".to_owned()),
    };
    let lease = reply.map_err(|error| away(&error))?.map_err(|refusal| refusal.to_string())?.lease;
    let names: Vec<&str> = lease.items.iter().map(|held| &*held.name).collect();
    Ok(format!("{} of {pool}: yours for {}.", names.join(", "), span(Duration::from_micros(lease.ttl))))
}

/// `POST /renew`
pub(super) async fn renew(State(hall): State<Arc<Hall>>, form: Form) -> Response {
    let said = own(&hall, &form, |board, id| {
        let lease = board.renew(id, None, None).map_err(|refusal| refusal.to_string())?;
        Ok(format!("Yours for another {}.", span(Duration::from_micros(lease.ttl))))
    });
    let said = said.await;
    back(&hall, &form, said)
}

/// `POST /release`
pub(super) async fn release(State(hall): State<Arc<Hall>>, form: Form) -> Response {
    let said = own(&hall, &form, |board, id| {
        board.release(id, None).map_err(|refusal| refusal.to_string())?;
        Ok("Released.".to_owned())
    });
    let said = said.await;
    back(&hall, &form, said)
}

/// Does something with a lease of one's own. To take somebody else's is another thing.
async fn own(
    hall: &Hall,
    form: &Form,
    what: impl FnOnce(&mut crate::lease::board::Board, &str) -> Said + Send + 'static,
) -> Said {
    let (visitor, id) = (form.guest.visitor.clone(), form.fields.get("lease").unwrap_or_default().to_owned());
    if !visitor.may_lease {
        return Err(MAY_NOT.to_owned());
    }
    let done = hall.catalogue.desk.ask(move |session| {
        session.recall(&id);
        if session.board.lease(&id).is_some_and(|lease| lease.holder.client.as_ref() != Some(&visitor.name)) {
            return Err("This is not yours. Who may revoke it is an admin.".to_owned());
        }
        what(session.board, &id)
    });
    done.await.map_err(|error| away(&error))?
}

/// `POST /revoke`
pub(super) async fn revoke(State(hall): State<Arc<Hall>>, form: Form) -> Response {
    let id = form.fields.get("lease").unwrap_or_default().to_owned();
    let said = admin(&hall, &form, move |session| {
        session.recall(&id);
        let holder = session.board.lease(&id).map(|lease| lease.holder.to_string());
        session.board.revoke(&id).map_err(|refusal| refusal.to_string())?;
        Ok(holder.map_or_else(|| "It had ended already.".to_owned(), |holder| format!("Revoked; {holder} had it.")))
    });
    let said = said.await;
    back(&hall, &form, said)
}

/// `POST /retire`
pub(super) async fn retire(State(hall): State<Arc<Hall>>, form: Form) -> Response {
    let text = |name: &str| form.fields.get(name).unwrap_or_default().to_owned();
    let (pool, item) = (text("pool"), text("item"));
    let said = admin(&hall, &form, move |session| {
        let is_held = session.board.items_of(&pool).any(|it| *it.name == *item && it.held > 0);
        session.board.retire(&pool, std::slice::from_ref(&item)).map_err(|refusal| refusal.to_string())?;
        let when = if is_held { " when it is released" } else { "" };
        Ok(format!("{item} of {pool} is retired{when}."))
    });
    let said = said.await;
    back(&hall, &form, said)
}

/// `POST /add`
pub(super) async fn add(State(hall): State<Arc<Hall>>, form: Form) -> Response {
    let said = added(&hall, &form).await;
    back(&hall, &form, said)
}

async fn added(hall: &Hall, form: &Form) -> Said {
    let pool = form.fields.get("pool").unwrap_or_default().to_owned();
    if pool.is_empty() || pool.len() > 200 || pool.chars().any(char::is_control) {
        return Err("A pool's name has 1 to 200 characters, and no control characters.".to_owned());
    }
    let lines = form.fields.get("items").unwrap_or_default().lines().map(str::trim).filter(|line| !line.is_empty());
    let items: Vec<_> = lines.map(|line| attributes_of(value_of_text(line)?)).collect::<Result<_, _>>()?;
    if items.is_empty() {
        return Err("No item was given.".to_owned());
    }
    let done = admin(hall, form, move |session| {
        let definition = session.board.definition(&pool);
        if definition.is_some_and(|its| its.table.is_some() || its.generator.is_some()) {
            return Err(format!("The items of {pool} come from somewhere else."));
        }
        let given = items.len();
        let new = session.board.add(&pool, items, None);
        let known = if new == given { String::new() } else { format!(", {} known before", given - new) };
        Ok(format!("{pool}: {new} added{known}."))
    });
    done.await
}

async fn admin(
    hall: &Hall,
    form: &Form,
    what: impl FnOnce(&mut crate::desk::Session<'_>) -> Said + Send + 'static,
) -> Said {
    if !form.guest.visitor.may_admin {
        return Err(MAY_NOT.to_owned());
    }
    hall.catalogue.desk.ask(what).await.map_err(|error| away(&error))?
}
