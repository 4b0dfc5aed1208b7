"""The application of django_site.py."""
