mod common;

use shop::{Refusal, orders, stock};

#[test]
fn the_total_is_the_sum_of_the_lines() {
    let mut db = common::open();
    let alice = db.alice();
    let order = orders::place(&mut db, alice, &[("MUG", 2), ("SPOON", 4)]).unwrap();
    assert_eq!(orders::total(&mut db, order).unwrap(), 2 * 1200 + 4 * 350);
}

#[test]
fn an_order_that_cannot_be_filled_leaves_nothing_behind() {
    let mut db = common::open();
    let alice = db.alice();
    let order = orders::place(&mut db, alice, &[("MUG", 2), ("TEAPOT", 2)]);
    assert!(matches!(order, Err(Refusal::SoldOut(_))));
    assert_eq!(stock::available(&mut *db, "MUG").unwrap(), 10);
    assert!(orders::history(&mut db, alice).unwrap().is_empty());
}

#[test]
fn an_empty_basket_is_no_order() {
    let mut db = common::open();
    let alice = db.alice();
    assert!(matches!(orders::place(&mut db, alice, &[]), Err(Refusal::EmptyBasket)));
}

#[test]
fn cancelling_puts_everything_back() {
    let mut db = common::open();
    let alice = db.alice();
    let order = orders::place(&mut db, alice, &[("MUG", 3), ("TEAPOT", 1)]).unwrap();
    orders::cancel(&mut db, order).unwrap();
    assert_eq!(stock::available(&mut *db, "MUG").unwrap(), 10);
    assert_eq!(stock::available(&mut *db, "TEAPOT").unwrap(), 1);
}

#[test]
fn a_paid_order_cannot_be_cancelled() {
    let mut db = common::open();
    let alice = db.alice();
    let order = orders::place(&mut db, alice, &[("SAUCER", 1)]).unwrap();
    orders::pay(&mut db, order).unwrap();
    assert!(matches!(orders::cancel(&mut db, order), Err(Refusal::NotOpen)));
}

#[test]
fn the_newest_order_comes_first_in_the_history() {
    let mut db = common::open();
    let alice = db.alice();
    let first = orders::place(&mut db, alice, &[("SPOON", 1)]).unwrap();
    let second = orders::place(&mut db, alice, &[("SPOON", 2)]).unwrap();
    assert_eq!(orders::history(&mut db, alice).unwrap(), [second, first]);
}

#[test]
fn only_paid_orders_are_revenue() {
    let mut db = common::open();
    let alice = db.alice();
    let paid = orders::place(&mut db, alice, &[("MUG", 1)]).unwrap();
    orders::pay(&mut db, paid).unwrap();
    orders::place(&mut db, alice, &[("MUG", 5)]).unwrap();
    assert_eq!(orders::revenue(&mut db).unwrap(), 1200);
}
