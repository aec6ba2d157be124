import pytest
from shop.models import Category, Customer, Order, Product


@pytest.mark.django_db
@pytest.mark.parametrize("n", range(500))
def test_sells(n):
    customer = Customer.objects.create(email="a@example.com", name="A")
    lamp = Product.objects.create(category=Category.objects.create(name="light"), name="lamp", price=12)
    order = Order.objects.create(customer=customer)
    order.items.create(product=lamp, quantity=2)
    Order.objects.filter(id=order.id).update(is_paid=True)
    assert Order.objects.get().is_paid
    assert [item.product.name for item in order.items.select_related("product")] == ["lamp"]
