#!/usr/bin/env bash
# Installs the database server that pgearth needs on Debian 12: PostgreSQL, PostGIS with postgis_raster, plpython3u, pgvector, and Debian's
# Python with venv (the virtual environment must be of the interpreter that plpython3u is linked to).
#
#   docker/install-server.sh                  as root, or as a user who may use sudo
#   PG_MAJOR=17 docker/install-server.sh      another major version, where the machine's apt sources have it
#
# A second run changes nothing. No cluster is created: `pgearth server start` makes its own.
set -euo pipefail

PG_MAJOR=${PG_MAJOR:-15}

# pgvector's source packages that Debian's pool serves although no suite may list them. The sum of a .dsc pins the whole source package:
# it holds the SHA-256 sums of the other files, which dpkg-source checks.
PINNED_PGVECTOR=(
    "0.8.6-1 d08de2aa48b7cb70319cc896aa3d95514690d1009f96579dbe6b23c59634f4e6"
    "0.8.3-1 5d0e7566e9533d602f04478e11fb3e5ea93f401704abdbfaf5246f9455ba4fbf"
)
# Older versions may corrupt an index by vacuum, and overflow in parallel HNSW builds.
WANTED_PGVECTOR=0.8.3

PACKAGES=(
    "postgresql-$PG_MAJOR"
    "postgresql-$PG_MAJOR-postgis-3"
    "postgresql-$PG_MAJOR-postgis-3-scripts"
    "postgresql-plpython3-$PG_MAJOR"
    python3
    python3-venv
)
PGVECTOR_PACKAGE="postgresql-$PG_MAJOR-pgvector"
PGVECTOR_CONTROL="/usr/share/postgresql/$PG_MAJOR/extension/vector.control"
# What building pgvector needs beyond the server; whatever of it was not there before is removed again.
BUILD_PACKAGES=("postgresql-server-dev-$PG_MAJOR" dpkg-dev gcc libc6-dev make)

CLUSTER_SETTINGS=/etc/postgresql-common/createcluster.d/pgearth-install.conf
APT_GET=(apt-get --yes --option DPkg::Lock::Timeout=300)

work=            # temporary folder
build_only=()    # packages to remove at the end

say() { printf '%s\n' "$*"; }

fail() { # MESSAGE ADVICE
    printf 'install-server: %s\n%s\n' "$1" "$2" >&2
    exit 1
}

# Runs a command quietly; shows the end of its output where it fails.
quietly() {
    if ! "$@" >"$work/log" 2>&1; then
        tail -n 20 "$work/log" >&2
        return 1
    fi
}

installed() { # PACKAGE...
    local package
    for package in "$@"; do
        [[ $(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || return 1
    done
}

# Version of an installed package without epoch and Debian revision.
version_of() { dpkg-query --show --showformat '${source:Upstream-Version}' "$1" | sed 's/[+~-].*//'; }

offered() { # PACKAGE
    [[ $(apt-cache policy "$1") == *"Candidate: "[^\(]* ]]
}

pgvector_version() { sed -n "s/^default_version = '\(.*\)'/\1/p" "$PGVECTOR_CONTROL" 2>/dev/null; }

complete() { installed "${PACKAGES[@]}" && [[ -n $(pgvector_version) ]]; }

remove_build_packages() {
    ((${#build_only[@]})) || return 0
    say "Removing ${#build_only[@]} packages that only the build needed"
    # Unlike apt, dpkg refuses to remove what something else has come to need meanwhile.
    dpkg --purge "${build_only[@]}" >/dev/null 2>&1 || say "Other packages need some of them, which stay: ${build_only[*]}"
    build_only=()
}

allow_main_cluster() {
    rm -f "$CLUSTER_SETTINGS"
    rmdir --ignore-fail-on-non-empty "${CLUSTER_SETTINGS%/*}" 2>/dev/null || true
}

cleanup() {
    local status=$?
    allow_main_cluster
    remove_build_packages
    rm -rf "$work"
    exit "$status"
}

update_package_lists() {
    say "Updating the package lists"
    # One broken third-party entry makes the whole command fail; what counts is whether Debian's packages are offered.
    quietly "${APT_GET[@]}" update || say "Some apt sources failed (above); going on with the others"
    offered "postgresql-$PG_MAJOR" || fail "the apt sources do not offer postgresql-$PG_MAJOR" \
        "Check the network and Debian's entry in /etc/apt/sources.list.d, or set PG_MAJOR to a version offered here: $(
            apt-cache pkgnames postgresql- | sed -n 's/^postgresql-\([0-9][0-9]*\)$/\1/p' | sort -n | xargs
        )"
}

install_packages() {
    say "Installing ${PACKAGES[*]}"
    # Debian starts a cluster `main` with the first server of a version; a private cluster is all that is needed.
    mkdir -p "${CLUSTER_SETTINGS%/*}"
    echo 'create_main_cluster = false' >"$CLUSTER_SETTINGS"
    quietly "${APT_GET[@]}" install --no-install-recommends "${PACKAGES[@]}" ||
        fail "installing Debian's packages failed" \
            "If apt cannot find or fetch a package, check the network and Debian's entry in /etc/apt/sources.list.d; else try
'apt-get --fix-broken install'. Then run this again."
    allow_main_cluster
}

install_pgvector() {
    if offered "$PGVECTOR_PACKAGE"; then
        say "Installing $PGVECTOR_PACKAGE"
        quietly "${APT_GET[@]}" install --no-install-recommends "$PGVECTOR_PACKAGE" ||
            fail "installing $PGVECTOR_PACKAGE failed" "Do what apt says above, then run this again."
        return
    fi
    say "No binary pgvector is offered for PostgreSQL $PG_MAJOR: building it from Debian's source package"
    install_build_packages
    fetch_pgvector "$work/source" || fail "no source package of pgvector could be had" \
        "Check the network, or add the apt repository of the PostgreSQL project (PGDG), which has $PGVECTOR_PACKAGE; then run this again."
    build_pgvector "$work/source"
    remove_build_packages
}

install_build_packages() {
    local new
    new=$("${APT_GET[@]}" install --simulate --no-upgrade --no-install-recommends "${BUILD_PACKAGES[@]}" debian-archive-keyring) ||
        fail "apt cannot install what building pgvector needs: ${BUILD_PACKAGES[*]}" \
            "See 'apt-get install ${BUILD_PACKAGES[*]}' for the reason, then run this again."
    # "Inst NAME (VERSION ..." is a new package, "Inst NAME [OLD] (VERSION ..." an upgrade.
    mapfile -t build_only < <(sed -n 's/^Inst \([^ ]*\) (.*/\1/p' <<<"$new" | grep -vx debian-archive-keyring)
    quietly "${APT_GET[@]}" install --no-upgrade --no-install-recommends "${BUILD_PACKAGES[@]}" debian-archive-keyring ||
        fail "installing what building pgvector needs failed" "Do what apt says above, then run this again."
}

# The archives that the machine's own entries for Debian name, of either format, without the security archive.
debian_archives() {
    # shellcheck disable=SC2016
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' 'Component: main' | sort -u
}

fetch_pgvector() { # FOLDER
    local pinned
    fetch_from_suite sid "$1" && return
    fetch_from_suite testing "$1" && return
    for pinned in "${PINNED_PGVECTOR[@]}"; do
        # shellcheck disable=SC2086
        fetch_from_pool $pinned "$1" && return
    done
    fetch_from_suite trixie "$1"
}

# `apt-get source` with a deb-src entry of its own, in a folder of its own: the machine's entries and package lists stay as they are.
# apt verifies the suite's signature and the sums of all files.
fetch_from_suite() { # SUITE FOLDER
    local suite=$1 folder=$2 apt=$work/apt
    rm -rf "$folder" "$apt"
    mkdir -p "$folder" "$apt/lists" "$apt/cache"
    debian_archives | sed "s|.*|deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] & $suite main|" >"$apt/sources.list"
    local private=(
        apt-get --option "Dir::Etc::sourcelist=$apt/sources.list" --option Dir::Etc::sourceparts=/dev/null
        --option "Dir::State::lists=$apt/lists" --option "Dir::Cache=$apt/cache"
    )
    if "${private[@]}" update &>"$work/log" && (cd "$folder" && "${private[@]}" source --download-only pgvector) &>>"$work/log"; then
        say "Fetched $(basename "$folder"/*.dsc .dsc) from $suite"
    else
        say "Debian $suite: no pgvector ($(grep '^E:' "$work/log" | head -n 1))"
        return 1
    fi
}

fetch_from_pool() { # VERSION SHA256 FOLDER
    local version=$1 sha256=$2 folder=$3 archive
    local pool=pool/main/p/pgvector dsc=pgvector_$version.dsc
    rm -rf "$folder"
    mkdir -p "$folder"
    for archive in $(debian_archives); do
        if (
            cd "$folder"
            download "$archive$pool/$dsc" "$dsc" "$sha256"
            sed -n '/^Checksums-Sha256:/,/^[^ ]/s/^ \([0-9a-f]*\) [0-9]* \(.*\)/\2 \1/p' "$dsc" | while read -r name sum; do
                download "$archive$pool/$name" "$name" "$sum"
            done
        ) &>"$work/log"; then
            say "Fetched pgvector_$version from the pool"
            return
        fi
    done
    say "Debian's pool: no pgvector $version ($(grep '^E:' "$work/log" | head -n 1))"
    return 1
}

# apt's own downloader: it takes the proxy and certificate settings of the machine, and checks the sum.
download() { # URL FILE SHA256
    /usr/lib/apt/apt-helper download-file "$1" "$2" "SHA256:$3" || exit 1
}

# Makes a Debian package of it: then `apt-get remove` removes it, and a newer binary package replaces it.
build_pgvector() { # FOLDER
    local version package=$work/package
    version=$(sed -n 's/^Version: //p' "$1"/*.dsc)
    say "Building pgvector $version for PostgreSQL $PG_MAJOR"
    quietly dpkg-source --require-strong-checksums --extract "$1"/*.dsc "$work/pgvector" ||
        fail "unpacking pgvector's source package failed" "Run this again; if it fails again, the mirror serves a damaged file."
    # An empty OPTFLAGS replaces -march=native: the result must run on any machine of the architecture, as an image is carried about.
    make_pgvector() { make --directory "$work/pgvector" OPTFLAGS= PG_CONFIG="/usr/lib/postgresql/$PG_MAJOR/bin/pg_config" "$@"; }
    quietly make_pgvector --jobs "$(nproc)" install DESTDIR="$package" ||
        fail "building pgvector $version failed" "The compiler's message is above; is the disk full?"
    mkdir -p "$package/DEBIAN"
    cat >"$package/DEBIAN/control" <<CONTROL
Package: $PGVECTOR_PACKAGE
Source: pgvector ($version)
Version: $version~pgearth
Architecture: $(dpkg --print-architecture)
Maintainer: pgearth <root@localhost>
Depends: postgresql-$PG_MAJOR, libc6
Section: database
Priority: optional
Description: pgvector $version, built from Debian's source package by pgearth's install-server.sh
CONTROL
    quietly dpkg-deb --root-owner-group --build "$package" "$work/$PGVECTOR_PACKAGE.deb" ||
        fail "packing the pgvector that was built failed" "Do what dpkg-deb says above; is the disk full?"
    quietly dpkg --install "$work/$PGVECTOR_PACKAGE.deb" ||
        fail "installing the pgvector that was built failed" "Do what dpkg says above, then run this again."
}

report() {
    local pgvector
    pgvector=$(pgvector_version)
    say "PostgreSQL $(version_of "postgresql-$PG_MAJOR"), PostGIS $(version_of "postgresql-$PG_MAJOR-postgis-3"), pgvector $pgvector," \
        "plpython3u $(version_of "postgresql-plpython3-$PG_MAJOR") with Python $(version_of python3)"
    if dpkg --compare-versions "$pgvector" lt "$WANTED_PGVECTOR"; then
        say "pgvector $pgvector is older than $WANTED_PGVECTOR: pgearth builds its indexes without parallel workers." \
            "To try for a newer one: dpkg --purge $PGVECTOR_PACKAGE, then run this again."
    fi
}

main() {
    if complete; then
        report
        return
    fi
    if ((EUID != 0)); then
        command -v sudo >/dev/null || fail "installing packages needs root, and there is no sudo" "Run $0 as root."
        say "Installing packages needs root: going on through sudo (if that is refused, run $0 as root)"
        exec sudo --preserve-env=PG_MAJOR,http_proxy,https_proxy,no_proxy "${BASH_SOURCE[0]}"
    fi
    export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
    work=$(mktemp --directory)
    chmod 755 "$work" # apt downloads as the user _apt
    trap cleanup EXIT
    update_package_lists
    installed "${PACKAGES[@]}" || install_packages
    [[ -n $(pgvector_version) ]] || install_pgvector
    report
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    main "$@"
fi
