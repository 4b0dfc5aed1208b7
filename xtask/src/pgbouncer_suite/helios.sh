#!/bin/sh
# PgBouncer's command line for helios. The file is written by `cargo xtask pgbouncer-suite`.
helios='@HELIOS@'
file=
for word in "$@"; do
    case $word in
    -V | --version) exec "$helios" --version ;;
    -h | --help) exec "$helios" serve --help ;;
    # What --quiet keeps from the terminal is kept from nobody here.
    -q | --quiet | -v | --verbose) ;;
    -*)
        echo "helios has nothing for PgBouncer's $word" >&2
        exit 2
        ;;
    *) file=$word ;;
    esac
done
if [ -z "$file" ]; then
    echo "a pgbouncer.ini is needed" >&2
    exit 2
fi
# The tests send signals to the process that they started: it has to become helios.
exec "$helios" serve --pgbouncer-ini "$file"
