#!/usr/bin/env bash
# Installs from Debian 12's packages what a part of pgearth needs that not everybody uses:
#
#   docker/install-optional.sh qgis     QGIS with its Python bindings, for tests/qgis: about 100 MB to fetch. No desktop
#   docker/install-optional.sh spark    Java, for --engine spark: about 50 MB. Spark itself is a Python package, the extra
#                                       `spark` of pgearth
#
# As root, or as a user who may use sudo. A second run changes nothing.
set -euo pipefail

case ${1-} in
    qgis) NAME=QGIS PACKAGES=(python3-qgis qgis-providers) SPACE='1 GB' ;;
    spark) NAME=Java PACKAGES=(openjdk-17-jre-headless) SPACE='300 MB' ;;
    *)
        printf 'usage: %s qgis|spark\n' "$0" >&2
        exit 2
        ;;
esac
APT_GET=(apt-get --yes --option DPkg::Lock::Timeout=300)

installed() { # PACKAGE...
    local package
    for package in "$@"; do
        [[ $(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || return 1
    done
}

if ! installed "${PACKAGES[@]}"; then
    if ((EUID != 0)); then
        command -v sudo >/dev/null || {
            printf 'install-optional: installing packages needs root, and there is no sudo\nRun %s %s as root.\n' "$0" "$1" >&2
            exit 1
        }
        exec sudo --preserve-env=http_proxy,https_proxy,no_proxy "${BASH_SOURCE[0]}" "$1"
    fi
    export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
    log=$(mktemp)
    trap 'rm -f "$log"' EXIT
    printf 'Installing %s\n' "${PACKAGES[*]}"
    # One broken third-party entry makes `update` fail; what counts is whether the packages can be had.
    "${APT_GET[@]}" update >"$log" 2>&1 || true
    "${APT_GET[@]}" install --no-install-recommends "${PACKAGES[@]}" >>"$log" 2>&1 || {
        tail -n 20 "$log" >&2
        printf 'install-optional: installing %s failed\nCheck the network and the disk (%s); then run this again.\n' "$NAME" "$SPACE" >&2
        exit 1
    }
fi
printf '%s %s\n' "$NAME" "$(dpkg-query --show --showformat '${source:Upstream-Version}' "${PACKAGES[0]}")"
