"""`python -m warehouse.open` makes the warehouse, or fills it again."""

from warehouse import Warehouse

Warehouse().open()
