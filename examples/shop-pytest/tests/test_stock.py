import pytest

from shop import stock


def test_the_shelf_starts_with_ten_mugs(db):
    assert stock.available(db, "MUG") == 10


def test_a_delivery_adds_to_the_shelf(db):
    stock.receive(db, "MUG", 5)
    assert stock.available(db, "MUG") == 15


def test_taking_tells_the_price_and_leaves_the_rest(db):
    assert stock.take(db, "SAUCER", 4) == 600
    assert stock.available(db, "SAUCER") == 21


def test_more_than_there_is_cannot_be_taken(db):
    with pytest.raises(stock.SoldOut):
        stock.take(db, "MUG", 11)
    assert stock.available(db, "MUG") == 10


def test_the_last_teapot_can_be_taken_once(db):
    stock.take(db, "TEAPOT", 1)
    with pytest.raises(stock.SoldOut):
        stock.take(db, "TEAPOT", 1)


def test_what_runs_low_is_listed(db):
    stock.take(db, "MUG", 8)
    assert stock.running_low(db, below=5) == ["MUG", "TEAPOT"]


def test_a_new_product_is_on_the_shelf(db):
    stock.add_product(db, "TEST-LAMP", "Lamp", 2500, stock=3)
    assert stock.available(db, "TEST-LAMP") == 3


def test_a_price_list_counts_the_prices_that_changed(db):
    for number in range(30):
        stock.add_product(db, f"TEST-{number}", f"Cup {number}", 100 + number)
    prices = [f"TEST-{number};120" for number in range(30)]
    assert stock.import_price_list(db, prices) == 29


def test_a_broken_price_list_changes_no_price(db):
    with pytest.raises(ValueError):
        stock.import_price_list(db, ["MUG;1", "SPOON;1", "SAUCER;cheap"])
    assert stock.take(db, "MUG", 1) == 1200
