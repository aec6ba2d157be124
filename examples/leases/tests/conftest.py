import os
import random

import pytest

from warehouse import SKUS, Warehouse


@pytest.fixture(scope="session")
def warehouse():
    return Warehouse()


@pytest.fixture
def sku(request):
    """An article of which there is one piece left."""
    if "ISOLANE_SOCKET" not in os.environ:
        return random.choice(SKUS)
    return request.getfixturevalue("isolane").lease("sku")["id"]
