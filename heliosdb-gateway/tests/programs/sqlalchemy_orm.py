"""A shop in SQLAlchemy, as its documentation has it: a session around each unit of work, closed without a commit where
nothing was written. So each SELECT stands in a transaction, which ends with the ROLLBACK that gives the connection back.

Usage: sqlalchemy_orm.py psycopg2 | psycopg | pg8000
"""

import sys
from decimal import Decimal

from sqlalchemy import ForeignKey, Numeric, String, create_engine, func, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, selectinload

from answers import DATABASE, HOST, PORT, ROUNDS, told


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50), unique=True)
    orders: Mapped[list["Order"]] = relationship(back_populates="customer", order_by="Order.id")


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey("customers.id", ondelete="CASCADE"))
    total: Mapped[Decimal] = mapped_column(Numeric(8, 2))
    customer: Mapped[Customer] = relationship(back_populates="orders")


def engine(**options):
    url = f"postgresql+{sys.argv[1]}://postgres:none@{HOST}:{PORT}/{DATABASE}"
    return create_engine(url, **options)


def read(session):
    ada = session.get(Customer, 1)
    by_name = session.scalars(select(Customer).where(Customer.name == "Bob").options(selectinload(Customer.orders))).one()
    return (
        ada and (ada.name, [(order.id, order.total) for order in ada.orders]),
        (by_name.id, len(by_name.orders)),
        session.scalar(select(func.sum(Order.total))),
        session.execute(
            select(Customer.name, func.count(Order.id)).join(Customer.orders).group_by(Customer.name).order_by(Customer.name)
        ).all(),
    )


def main():
    shop, desk = engine(), engine(pool_pre_ping=True)
    Base.metadata.create_all(shop)
    with Session(shop) as session:
        session.add_all([
            Customer(name="Ada", orders=[Order(total=10), Order(total=20)]),
            Customer(name="Bob", orders=[Order(total=5)]),
        ])
        session.commit()
    for number in range(ROUNDS):
        # Two applications, each with connections of its own.
        for name, app in (("shop", shop), ("desk", desk)):
            for _ in range(3):
                with Session(app) as session:
                    told(f"{name} {number}", read(session))
        with Session(shop) as session:
            session.get(Customer, 1).orders[0].total += 1
            # What it has written, and nobody else sees.
            told("inside", session.scalar(select(func.sum(Order.total))))
            with Session(desk) as other:
                told("outside", other.scalar(select(func.sum(Order.total))))
            session.commit()
            told("after", session.get(Customer, 1).orders[0].total)
        with Session(desk) as session:
            told("the other", read(session))
    with Session(shop) as session:
        bob = session.scalars(select(Customer).where(Customer.name == "Bob")).one()
        with session.begin_nested():
            bob.orders.append(Order(total=1))
        try:
            with session.begin_nested():
                session.add(Customer(name="Ada"))
        except IntegrityError:
            told("refused", len(bob.orders))
        session.commit()
    with Session(desk) as session:
        told("nested", read(session))
    with shop.connect() as connection:
        connection.execute(text("UPDATE orders SET total = 0"))
        told("undone, inside", connection.scalar(text("SELECT sum(total) FROM orders")))
        # No commit: closing it rolls back.
    with Session(desk) as session:
        told("undone", read(session))
    with shop.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        told("before", connection.scalar(select(func.count(Order.id))))
        with Session(desk) as session:
            session.add(Order(customer_id=1, total=3))
            session.commit()
        told("repeated", connection.scalar(select(func.count(Order.id))))
    with shop.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for _ in range(3):
            told("autocommit", connection.scalar(select(func.count(Order.id))))
        connection.execute(text("DELETE FROM customers WHERE name = 'Bob'"))
        told("cascaded", connection.scalar(select(func.count(Order.id))))
    with Session(desk) as session:
        told("gone", session.scalars(select(Customer.name)).all())
        for order in session.scalars(select(Order).order_by(Order.id).execution_options(yield_per=2)):
            told("streamed", order.id)


main()
