//! Collisions that end with an error of the server's.

use isolane::collision::Pattern;

use crate::plan::Step;
use crate::world::{Table, World};

pub fn duplicate_key(w: &mut World) {
    let (a, b) = w.two();
    if !w.may_fail(b) {
        return;
    }
    let by_email = w.rng.bool();
    let row = (if by_email { Table::Users } else { w.plain() }, w.fresh());
    let who = w.insert(a, row);
    if w.rng.bool() {
        w.end(a);
    }
    let n = w.fresh();
    let again = if by_email {
        format!("INSERT INTO public.users VALUES ({n}, 'u{}@example.com', 0)", row.1)
    } else {
        row.0.insert(row.1)
    };
    let by = w.refused(b, again);
    w.expect(Pattern::DuplicateKey, row, (who, "insert"), (by, "insert"));
}

/// The key came into the row by an update.
pub fn duplicate_of_a_changed_row(w: &mut World) {
    let (a, b) = w.two();
    if !w.may_fail(b) {
        return;
    }
    let row = (Table::Users, w.fresh());
    w.insert(a, row);
    w.sql(a, format!("UPDATE public.users SET email = 'new-{0}@example.com' WHERE id = {0}", row.1));
    let who = w.who(a);
    w.touch(Some(&who), row.0, "update", 1);
    let n = w.fresh();
    let by = w.refused(b, format!("INSERT INTO public.users VALUES ({n}, 'new-{}@example.com', 0)", row.1));
    w.expect(Pattern::DuplicateKey, row, (who, "update"), (by, "insert"));
}

pub fn foreign_key(w: &mut World) {
    let (a, b) = w.two();
    if !w.may_fail(b) {
        return;
    }
    let (order, item) = ((Table::Orders, w.fresh()), (Table::Items, w.fresh()));
    if w.rng.bool() {
        // The order is gone that the item is for.
        w.insert(a, order);
        let who = w.delete(a, order);
        let by = w.refused(b, format!("INSERT INTO public.items VALUES ({}, {})", item.1, order.1));
        w.expect(Pattern::ForeignKey, order, (who, "delete"), (by, "update"));
    } else {
        // The order has got an item.
        w.insert(b, order);
        let who = w.who(a);
        w.sql(a, format!("INSERT INTO public.items VALUES ({}, {})", item.1, order.1));
        w.has_made(&who, item);
        let by = w.refused(b, order.0.delete(order.1));
        w.expect(Pattern::ForeignKey, item, (who, "insert"), (by, "update"));
    }
}

pub fn deadlock(w: &mut World) {
    let (a, b) = w.two();
    if !w.may_fail(b) || w.is_needed(b) {
        return;
    }
    let (Some(first), Some(second)) = (w.old(), w.old()) else { return };
    let who = w.who(a);
    let rows = [first, second].map(|row| row.0.update(row.1));
    w.steps.push(Step::Deadlock { survivor: a, victim: b, rows });
    for row in [first, second] {
        w.touch(Some(&who), row.0, "update", 1);
    }
    let test = w.within(b);
    let by = w.has_failed(test);
    w.expect(Pattern::Deadlock, second, (who, "update"), (by, "update"));
    // The error names no row, so what counts is when it came: the test ends over it.
    w.end(b);
}

/// The last thing that happens.
pub fn failure_at_last(w: &mut World) {
    let (a, b) = w.two();
    if !w.may_fail(b) {
        return;
    }
    let row = (Table::Users, w.fresh());
    let who = w.insert(a, row);
    w.end(a);
    let by = w.refused(b, row.0.insert(row.1));
    w.expect(Pattern::DuplicateKey, row, (who, "insert"), (by, "insert"));
    w.end(b);
}
