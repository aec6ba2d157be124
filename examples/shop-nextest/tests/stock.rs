mod common;

use shop::{Refusal, orders, stock};

#[test]
fn a_delivery_adds_to_the_shelf() {
    let mut db = common::open();
    stock::receive(&mut *db, "MUG", 5).unwrap();
    assert_eq!(stock::available(&mut *db, "MUG").unwrap(), 15);
}

#[test]
fn an_order_takes_its_things_from_the_shelf() {
    let mut db = common::open();
    let alice = db.alice();
    orders::place(&mut db, alice, &[("MUG", 3)]).unwrap();
    assert_eq!(stock::available(&mut *db, "MUG").unwrap(), 7);
}

#[test]
fn the_last_teapot_goes_to_whoever_comes_first() {
    let mut db = common::open();
    let (alice, bob) = (db.alice(), db.bob());
    orders::place(&mut db, alice, &[("TEAPOT", 1)]).unwrap();
    let second = orders::place(&mut db, bob, &[("TEAPOT", 1)]);
    assert!(matches!(second, Err(Refusal::SoldOut(sku)) if sku == "TEAPOT"));
}

#[test]
fn what_runs_low_is_listed() {
    let mut db = common::open();
    let alice = db.alice();
    orders::place(&mut db, alice, &[("MUG", 8)]).unwrap();
    assert_eq!(stock::running_low(&mut *db, 5).unwrap(), ["MUG", "TEAPOT"]);
}
