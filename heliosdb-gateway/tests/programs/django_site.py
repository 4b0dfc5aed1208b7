"""A site in Django with its admin: autocommit, atomic blocks, a request in a transaction, and the forms that read with
cursors. Its requests are handled in this process, by Django's own test client.

Usage: django_site.py atomic | autocommit
"""

import datetime
import re
import sys

import django
from django.conf import settings

from answers import DATABASE, HOST, PORT, ROUNDS, told

settings.configure(
    ALLOWED_HOSTS=["*"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": HOST,
            "PORT": PORT,
            "NAME": DATABASE,
            "USER": "postgres",
            "ATOMIC_REQUESTS": sys.argv[1] == "atomic",
            "CONN_MAX_AGE": 600,
        }
    },
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    INSTALLED_APPS=[
        "django.contrib.admin",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.messages",
        "django.contrib.sessions",
        "books",
    ],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="not one",
    TEMPLATES=[
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ]
            },
        }
    ],
    TIME_ZONE="Europe/Berlin",
    USE_TZ=True,
)
django.setup()

from django.contrib import admin  # noqa: E402
from django.contrib.auth.models import Group, User  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import models, transaction  # noqa: E402
from django.http import JsonResponse  # noqa: E402
from django.test import Client  # noqa: E402
from django.urls import path  # noqa: E402

from books.models import Author, Book  # noqa: E402


class BookAdmin(admin.ModelAdmin):
    list_display = ("title", "author", "published")
    list_filter = ("author",)
    search_fields = ("title",)
    date_hierarchy = "published"


admin.site.register(Author)
admin.site.register(Book, BookAdmin)


def shelf(request):
    books = Book.objects.select_related("author").order_by("id")
    with transaction.atomic():
        count = Book.objects.count()
    return JsonResponse({"books": [[book.title, book.author.name] for book in books], "count": count})


urlpatterns = [path("admin/", admin.site.urls), path("shelf/", shelf)]


def rows_of(page):
    """The titles that the admin's list shows."""
    return re.findall(r'class="field-title"><a [^>]*>([^<]*)', page.content.decode())


def read():
    with transaction.atomic():
        first = Author.objects.get(pk=1)
        with transaction.atomic():
            titles = list(first.books.order_by("id").values_list("title", flat=True))
    return (
        first.name,
        titles,
        Book.objects.filter(title__startswith="b").exists(),
        list(Author.objects.annotate(n=models.Count("books")).order_by("id").values_list("name", "n")),
        Book.objects.aggregate(models.Max("published")),
        [str(date) for date in Book.objects.datetimes("published", "day")],
    )


def main():
    call_command("migrate", run_syncdb=True, verbosity=0)
    moment = datetime.datetime(2024, 3, 1, 12, tzinfo=datetime.timezone.utc)
    ada = Author.objects.create(name="Ada")
    for number in range(3):
        Book.objects.create(title=f"b{number}", author=ada, published=moment + datetime.timedelta(days=number))
    User.objects.create_superuser("root", "", "root")
    Group.objects.create(name="editors")
    site = Client()
    told("login", site.login(username="root", password="root"))
    for number in range(ROUNDS):
        for _ in range(3):
            told(f"read {number}", read())
            told("shelf", site.get("/shelf/").json())
        told("index", site.get("/admin/").status_code)
        told("list", rows_of(site.get("/admin/books/book/")))
        told("search", rows_of(site.get("/admin/books/book/?q=b1")))
        told("form", site.get("/admin/books/book/1/change/").status_code)
        told("user", site.get("/admin/auth/user/1/change/").status_code)
        answer = site.post(
            "/admin/books/book/1/change/",
            {"title": f"changed {number}", "author": 1, "published_0": "2024-03-01", "published_1": "13:00:00"},
        )
        told("posted", answer.status_code)
        told("list behind it", rows_of(site.get("/admin/books/book/")))
        try:
            with transaction.atomic():
                Author.objects.filter(pk=1).update(name="nobody")
                told("inside", Author.objects.get(pk=1).name)
                raise LookupError
        except LookupError:
            told("undone", Author.objects.get(pk=1).name)
        told("iterated", [book.id for book in Book.objects.order_by("id").iterator(2)])
        with transaction.atomic():
            told("locked", list(Author.objects.select_for_update().values_list("name", flat=True)))
        told("made", Author.objects.get_or_create(name=f"author {number}")[1])
        told("raw", [author.name for author in Author.objects.raw("SELECT * FROM books_author ORDER BY id")])
    ada.delete()
    told("deleted", (Book.objects.count(), site.get("/shelf/").json()))


main()
