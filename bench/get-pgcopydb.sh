#!/usr/bin/env bash
# Puts pgcopydb at the path given, and wal2json, with which its `follow` decodes, into ../lib/postgresql-15 beside it.
# Unpacks Debian's packages instead of installing them: that needs no root. Their library libpq5 has to be here.
set -euo pipefail

to=$1
if ! command -v apt-get > /dev/null; then
    echo "pgcopydb: there is no apt-get to fetch it with" >&2
    exit 1
fi

packages=(pgcopydb postgresql-15-wal2json)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 777 "$work"  # apt downloads as a user of its own
cd "$work"
if ! apt-get download -qq "${packages[@]}" 2> /dev/null; then
    # The package lists may be old or were never fetched; only root can mend that.
    apt-get update -qq
    apt-get download -qq "${packages[@]}"
fi
for package in *.deb; do
    dpkg-deb --extract "$package" unpacked
done
cd - > /dev/null
if ! "$work/unpacked/usr/bin/pgcopydb" --version > /dev/null 2>&1; then
    echo "pgcopydb: does not run here; is libpq5 installed?" >&2
    exit 1
fi
install -D -m 644 "$work/unpacked/usr/lib/postgresql/15/lib/wal2json.so" "$(dirname "$to")/../lib/postgresql-15/wal2json.so"
install -m 755 "$work/unpacked/usr/bin/pgcopydb" "$to"
