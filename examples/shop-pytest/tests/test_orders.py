import pytest

from shop import orders, stock


def test_an_order_takes_its_things_from_the_shelf(db, alice):
    orders.place(db, alice, {"MUG": 3})
    assert stock.available(db, "MUG") == 7


def test_the_total_is_the_sum_of_the_lines(db, alice):
    order = orders.place(db, alice, {"MUG": 2, "SPOON": 4})
    assert orders.total(db, order) == 2 * 1200 + 4 * 350


def test_the_last_teapot_goes_to_whoever_comes_first(db, alice, bob):
    orders.place(db, alice, {"TEAPOT": 1})
    with pytest.raises(stock.SoldOut):
        orders.place(db, bob, {"TEAPOT": 1})


def test_an_order_that_cannot_be_filled_leaves_nothing_behind(db, alice):
    with pytest.raises(stock.SoldOut):
        orders.place(db, alice, {"MUG": 2, "TEAPOT": 2})
    assert stock.available(db, "MUG") == 10
    assert orders.history(db, alice) == []


def test_an_empty_basket_is_no_order(db, alice):
    with pytest.raises(ValueError):
        orders.place(db, alice, {})


def test_cancelling_puts_everything_back(db, alice):
    order = orders.place(db, alice, {"MUG": 3, "TEAPOT": 1})
    orders.cancel(db, order)
    assert stock.available(db, "MUG") == 10
    assert stock.available(db, "TEAPOT") == 1


def test_an_order_is_cancelled_only_once(db, alice):
    order = orders.place(db, alice, {"MUG": 3})
    orders.cancel(db, order)
    with pytest.raises(orders.NotOpen):
        orders.cancel(db, order)
    assert stock.available(db, "MUG") == 10


def test_a_paid_order_cannot_be_cancelled(db, alice):
    order = orders.place(db, alice, {"SAUCER": 1})
    orders.pay(db, order)
    with pytest.raises(orders.NotOpen):
        orders.cancel(db, order)
    assert orders.state(db, order) == "paid"


def test_the_newest_order_comes_first_in_the_history(db, alice):
    first = orders.place(db, alice, {"SPOON": 1})
    second = orders.place(db, alice, {"SPOON": 2})
    assert orders.history(db, alice) == [second, first]


def test_a_later_price_does_not_change_an_order(db, alice):
    order = orders.place(db, alice, {"MUG": 1})
    stock.import_price_list(db, ["MUG;1500"])
    assert orders.total(db, order) == 1200


def test_only_paid_orders_are_revenue(db, alice):
    orders.pay(db, orders.place(db, alice, {"MUG": 1}))
    orders.place(db, alice, {"MUG": 5})
    assert orders.revenue(db) == 1200


def test_best_sellers_are_counted_over_all_customers(db, alice, bob):
    for customer, basket in [(alice, {"SPOON": 6}), (bob, {"SPOON": 6, "MUG": 2})]:
        orders.pay(db, orders.place(db, customer, basket))
    assert orders.best_sellers(db, limit=2) == [("SPOON", 12), ("MUG", 2)]
