#!/usr/bin/env bash
# Installs Java from Debian 12's packages: what Spark runs on, about 50 MB to fetch. Spark itself is a Python package,
# the extra `spark` of pgearth.
#
#   docker/install-spark.sh    as root, or as a user who may use sudo
#
# A second run changes nothing.
set -euo pipefail

PACKAGES=(openjdk-17-jre-headless)
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
            printf 'install-spark: installing packages needs root, and there is no sudo\nRun %s as root.\n' "$0" >&2
            exit 1
        }
        exec sudo --preserve-env=http_proxy,https_proxy,no_proxy "${BASH_SOURCE[0]}"
    fi
    export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
    log=$(mktemp)
    trap 'rm -f "$log"' EXIT
    printf 'Installing %s\n' "${PACKAGES[*]}"
    # One broken third-party entry makes `update` fail; what counts is whether the packages can be had.
    "${APT_GET[@]}" update >"$log" 2>&1 || true
    "${APT_GET[@]}" install --no-install-recommends "${PACKAGES[@]}" >>"$log" 2>&1 || {
        tail -n 20 "$log" >&2
        printf 'install-spark: installing Java failed\nCheck the network and the disk (300 MB); then run this again.\n' >&2
        exit 1
    }
fi
printf 'Java %s\n' "$(dpkg-query --show --showformat '${source:Upstream-Version}' "${PACKAGES[0]}")"
