# Sourced by the data scripts. unpack_package NAME: fetches a package of the distribution without
# installing it and unpacks it into a temporary folder, PACKAGE_ROOT (removed at exit).
unpack_package() {
  local name=$1
  command -v apt-get > /dev/null || { echo "error: no apt-get here; install the package $name yourself" >&2; exit 1; }
  PACKAGE_ROOT=$(mktemp -d)
  trap 'rm -rf "$PACKAGE_ROOT"' EXIT
  chmod 755 "$PACKAGE_ROOT"
  echo "fetching the package $name"
  if ! (cd "$PACKAGE_ROOT" && apt-get download -q "$name" > apt.log 2>&1); then
    # The package lists may be missing or old; only root can renew them.
    local sudo=""
    if [ "$(id -u)" != 0 ]; then sudo=sudo; fi
    $sudo apt-get update -qq || true
    if ! (cd "$PACKAGE_ROOT" && apt-get download -q "$name" > apt.log 2>&1); then
      echo "error: cannot fetch the package $name: $(tail -n 1 "$PACKAGE_ROOT/apt.log")" >&2
      exit 1
    fi
  fi
  dpkg-deb -x "$PACKAGE_ROOT"/*.deb "$PACKAGE_ROOT"
}
