import os

import pytest

from warehouse import SoldOut

# Fewer, to look at it quickly.
TESTS = int(os.environ.get("ISOLANE_EXAMPLE_TESTS", "5000"))


@pytest.mark.parametrize("customer", range(TESTS))
def test_the_last_piece_is_sold_once(warehouse, sku, customer):
    assert warehouse.pieces(sku) == 1
    order = warehouse.buy(sku, "customer %d" % customer)
    try:
        with pytest.raises(SoldOut):
            warehouse.buy(sku, "somebody else")
    finally:
        warehouse.cancel(order, sku)
    assert warehouse.pieces(sku) == 1
