import pytest

from shop import customers, orders


def test_a_customer_logs_in_with_the_password_given_at_registration(db, alice):
    assert customers.log_in(db, "testuser_alice@example.com", "wonderland") == alice


def test_a_wrong_password_is_refused(db, alice):
    assert customers.log_in(db, "testuser_alice@example.com", "looking-glass") is None


def test_an_unknown_e_mail_is_refused(db, alice):
    assert customers.log_in(db, "testuser_bob@example.com", "wonderland") is None


def test_an_e_mail_registers_once(db, alice):
    with pytest.raises(customers.EmailTaken):
        customers.register(db, "testuser_alice@example.com", "Another Alice", "secret")


def test_capitals_in_an_e_mail_make_no_difference(db, alice):
    assert customers.log_in(db, "TestUser_Alice@Example.com", "wonderland") == alice


def test_customers_are_listed_by_name(db, bob, alice):
    assert customers.names(db) == ["Alice", "Bob"]


def test_a_new_name_shows_in_the_list(db, alice):
    customers.rename(db, alice, "Alice Liddell")
    assert customers.names(db) == ["Alice Liddell"]


def test_a_closed_account_takes_its_orders_along(db, alice):
    orders.place(db, alice, {"SPOON": 2})
    customers.close_account(db, alice)
    assert customers.names(db) == []
    assert orders.history(db, alice) == []
