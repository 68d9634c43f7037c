#!/usr/bin/env bash
# Puts promtool, which checks the alert rules, at the path given. Unpacks Debian's package instead of installing
# it: that needs no root, and no Prometheus server is started on this machine.
set -euo pipefail

to=$1
if found=$(command -v promtool); then
    ln -sf "$found" "$to"
    exit
fi
if ! command -v apt-get > /dev/null; then
    echo "promtool: not installed, and there is no apt-get to fetch it with" >&2
    exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"  # apt downloads as a user of its own
cd "$work"
if ! apt-get download -qq prometheus 2> /dev/null; then
    # The package lists may be old or were never fetched; only root can mend that.
    apt-get update -qq
    apt-get download -qq prometheus
fi
dpkg-deb --extract prometheus_*.deb unpacked
cd - > /dev/null
install -m 755 "$work/unpacked/usr/bin/promtool" "$to"
