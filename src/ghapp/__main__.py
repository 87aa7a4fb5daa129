"""``python -m ghapp``."""

from ghapp.cli import main


main()
