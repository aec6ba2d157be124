mod common;

use shop::{Refusal, customers, orders};

#[test]
fn a_registered_customer_is_found() {
    let mut db = common::open();
    let alice = db.alice();
    assert_eq!(customers::find(&mut db, "testuser_alice@example.com").unwrap(), Some(alice));
}

#[test]
fn capitals_in_an_e_mail_make_no_difference() {
    let mut db = common::open();
    let alice = db.alice();
    assert_eq!(customers::find(&mut db, "TestUser_Alice@Example.com").unwrap(), Some(alice));
}

#[test]
fn an_e_mail_registers_once() {
    let mut db = common::open();
    db.alice();
    let again = customers::register(&mut db, "testuser_alice@example.com", "Another Alice");
    assert!(matches!(again, Err(Refusal::EmailTaken)));
}

#[test]
fn customers_are_listed_by_name() {
    let mut db = common::open();
    db.bob();
    db.alice();
    assert_eq!(customers::names(&mut db).unwrap(), ["Alice", "Bob"]);
}

#[test]
fn a_closed_account_takes_its_orders_along() {
    let mut db = common::open();
    let alice = db.alice();
    orders::place(&mut db, alice, &[("SPOON", 2)]).unwrap();
    customers::close_account(&mut db, alice).unwrap();
    assert!(customers::names(&mut db).unwrap().is_empty());
    assert!(orders::history(&mut db, alice).unwrap().is_empty());
}
